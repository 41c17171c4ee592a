"""Large values of atoms: once to each host, however many workers, electrons and runs use them."""

import gc
import os
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster

from atomizer_dask import Atomizer, DaskConductor, atom, grid
from atomizer_dask.atoms import shared_files
from atomizer_dask.atoms.atom_code import LargeBuffer
from atomizer_dask.conductors.dask import atom_versions, large_buffers
from atomizer_dask.conductors.dask.large_buffers import BufferPiece, BufferReceiver
from atomizer_dask.conductors.dask.messages import as_event, of_event

SECONDS = 60
MIB = 2**20
TABLE = np.arange(300_000.0)  # 2.4 MB


@atom(id="tests.looked.up")
def looked_up(i):
    return TABLE[i]


def until(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.05)


def files_of(host):
    folder = host / f"atomizer-{os.getuid()}"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def hosts(tmp_path):
    """Folders that stand for the memory of two hosts, and a cluster with workers on both."""
    one, other = tmp_path / "one", tmp_path / "other"

    def worker(host):
        host.mkdir(exist_ok=True)
        config = {"atomizer": {"large-values": {"folder": str(host)}}}
        return {"cls": Nanny, "options": {"nthreads": 1, "config": config}}

    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0"}}
    workers = {0: worker(one), 1: worker(one), 2: worker(other)}
    with SpecCluster(workers=workers, scheduler=scheduler) as cluster:
        yield SimpleNamespace(cluster=cluster, folders=[one, other], worker=worker)


@pytest.fixture
def sent(monkeypatch):
    """The pieces that this process sends, with the worker of each."""
    pieces = []
    call = large_buffers._Route.call

    async def noted(route, function, piece):
        if piece.data:
            pieces.append((route._worker, piece.buffer.digest))
        return await call(route, function, piece)

    monkeypatch.setattr(large_buffers._Route, "call", noted)
    return pieces


@pytest.mark.dask
def test_large_value_travels_once_to_each_host_and_goes_with_its_last_use(hosts, sent, monkeypatch):
    with Atomizer(DaskConductor(hosts.cluster), looked_up) as atomizer:
        for _ in range(3):
            frame = atomizer.map(looked_up, grid(i=range(300))).wait(SECONDS).to_frame()
            assert frame["result"].tolist() == TABLE[:300].tolist()
        assert [len(files_of(host)) for host in hosts.folders] == [1, 1]
        assert {worker for worker, _ in sent} == (workers := set(dict(sent)))
        assert len(workers) == 2
        pieces = len(sent)

        another = atom(id="tests.another")(lambda i: TABLE[-1 - i])
        frame = atomizer.map(another, grid(i=range(300))).wait(SECONDS).to_frame()
        assert frame["result"].tolist() == TABLE[::-1][:300].tolist()
        assert len(sent) == pieces

        monkeypatch.setattr(atom_versions, "IDLE_SECONDS", 0.0)
        monkeypatch.setitem(globals(), "TABLE", np.zeros(3))
        atomizer.map(looked_up, grid(i=range(3))).wait(SECONDS)
        del another
        gc.collect()
        until(lambda: [files_of(host) for host in hosts.folders] == [[], []])


@pytest.mark.dask
def test_worker_that_joins_on_another_host_gets_it(hosts, sent, tmp_path):
    with Atomizer(DaskConductor(hosts.cluster), looked_up) as atomizer:
        run = atomizer.map(looked_up, grid(i=range(300))).wait(SECONDS)
        late, (one, other) = tmp_path / "late", hosts.folders
        hosts.cluster.worker_spec = {3: hosts.worker(late)}
        hosts.cluster.sync(hosts.cluster._correct_state)
        until(lambda: len(files_of(one)) == len(files_of(other)) == 0)
        frame = atomizer.map(looked_up, grid(i=range(300))).wait(SECONDS).to_frame()
        assert frame["result"].tolist() == TABLE[:300].tolist()
        assert len(files_of(late)) == 1
        assert len({worker for worker, _ in sent}) == 3
        assert run.state == "finished"


# -- a receiver by itself ------------------------------------------------------------------------

DATA = bytes(range(256)) * 8192
BUFFER = LargeBuffer("digest", len(DATA))


@pytest.fixture
def receiver(tmp_path, configure):
    """A receiver of a worker; `asked` are the buffers that it asked for."""
    configure({"large-values.folder": str(tmp_path)})
    asked = []

    def log_event(topic, msg):
        asked.append(of_event(topic, msg))

    worker = SimpleNamespace(address="tcp://here", log_event=log_event)
    receiver = BufferReceiver(worker, limit=2**30)
    receiver.asked = asked
    return receiver


def obtaining(receiver):
    """Have a thread obtain the buffer; return it and where its result will be."""
    results = []

    def obtain():
        try:
            results.append(receiver.obtain([BUFFER])[0])
        except OSError as error:
            results.append(error)

    thread = threading.Thread(target=obtain)
    thread.start()
    until(lambda: receiver.asked or results)
    return thread, results


def test_what_is_missing_is_asked_for_and_taken_in_any_order(receiver):
    thread, results = obtaining(receiver)
    assert receiver.asked == [of_event(**as_event_of(BUFFER))]
    assert receiver.take(BufferPiece(BUFFER, "client"))
    assert receiver.take(BufferPiece(BUFFER, "client", 1000, DATA[1000:]))
    assert not receiver.take(BufferPiece(BUFFER, "another"))
    assert not receiver.take(BufferPiece(BUFFER, "client", 0, DATA[:1000]))
    thread.join(SECONDS)
    assert results[0].map() == DATA
    assert not receiver.take(BufferPiece(BUFFER, "another"))


def as_event_of(buffer):
    return as_event(large_buffers.BufferMissing(*buffer[:2], "tcp://here"))


def test_nobody_who_has_it_is_an_error_in_time(receiver, monkeypatch):
    monkeypatch.setattr(large_buffers, "GIVE_UP_SECONDS", 0.2)
    thread, results = obtaining(receiver)
    thread.join(SECONDS)
    assert "a value (2 MiB) is not on this host" in str(results[0])
    assert shared_files.find("digest", len(DATA)) is None


def test_provider_that_dies_is_replaced(receiver, monkeypatch):
    monkeypatch.setattr(large_buffers, "ASK_AGAIN_SECONDS", 0.2)
    thread, results = obtaining(receiver)
    assert receiver.take(BufferPiece(BUFFER, "dies"))
    assert receiver.take(BufferPiece(BUFFER, "dies", 0, DATA[:1000]))
    until(lambda: len(receiver.asked) > 1)
    until(lambda: receiver.take(BufferPiece(BUFFER, "lives")))
    receiver.take(BufferPiece(BUFFER, "lives", 0, DATA))
    thread.join(SECONDS)
    assert results[0].map() == DATA


def test_no_room_is_the_error_of_who_waits(receiver, monkeypatch):
    thread, results = obtaining(receiver)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(large_buffers, "Incoming", full)
    assert not receiver.take(BufferPiece(BUFFER, "client"))
    thread.join(SECONDS)
    assert "No space left" in str(results[0])


def test_value_that_a_worker_has_no_memory_for_is_named(receiver):
    receiver._limit = 2**20
    with pytest.raises(OSError, match=r"a value \(2 MiB\), and the worker may use 1 MiB"):
        receiver.obtain([BUFFER])


def test_piece_that_comes_twice_counts_once(receiver):
    thread, results = obtaining(receiver)
    receiver.take(BufferPiece(BUFFER, "client"))
    assert receiver.take(BufferPiece(BUFFER, "client", 0, DATA[: 2**20]))
    assert receiver.take(BufferPiece(BUFFER, "client", 0, DATA[: 2**20]))
    assert not receiver.take(BufferPiece(BUFFER, "client", 2**20, DATA[2**20 :]))
    thread.join(SECONDS)
    assert results[0].map() == DATA


@pytest.mark.dask
@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"a": np.zeros(60 * MIB), "b": 1}, r"needs the value of 'a' \(480 MiB\)"),
        ({"a": bytes(300 * MIB)}, r"the value of 'a' \(300 MiB\).*400 MiB.*take 600"),
        ({"a": np.zeros(30 * MIB), "b": np.ones(31 * MIB)}, r"'a' \(240 MiB\) and .*'b' \(248"),
    ],
    ids=["array", "bytes", "two"],
)
def test_what_does_not_fit_into_memory_is_named_with_its_size(fixed, message):
    def total(i, a, b=0):
        return len(a)

    with (
        LocalCluster(n_workers=1, memory_limit="400MiB", dashboard_address=None) as cluster,
        Client(cluster) as client,
        Atomizer(DaskConductor(client)) as atomizer,
    ):
        run = atomizer.map(total, grid(i=range(3)), fixed=fixed).wait(SECONDS)
        assert set(run.errors["kind"]) == {"rejected"}
        assert run.errors["message"].str.contains(message).all()
