"""What a DaskConductor takes, how long it waits for it, and what it leaves as it was."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster
from local_jobs import cluster_of_jobs

from atomizer_dask import Atomizer, ConductorError, DaskConductor, atom, grid
from atomizer_dask.conductors.dask.cluster import scheduler_file

SECONDS = 120  # to start processes on a machine that does much else

pytestmark = pytest.mark.timeout(3 * SECONDS)


@atom(id="tests.increment")
def increment(x):
    return x + 1


@pytest.fixture
def file(cluster, tmp_path):
    """The scheduler file of the cluster of the session."""
    path = tmp_path / "scheduler.json"
    write(path, cluster)
    return path


def write(path, cluster):
    path.write_text(named(cluster))


def named(cluster):
    """Return what a scheduler writes when it starts."""
    facts = cluster.scheduler.identity(n_workers=0)
    return json.dumps({name: facts[name] for name in ("type", "id", "address", "services")})


def unused_address():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{unused.getsockname()[1]}"


@pytest.fixture
def waiting(monkeypatch):
    """Set once a conductor has looked at a scheduler file in vain, and when it looks again."""
    looked = threading.Semaphore(0)
    read = scheduler_file.read

    def noted(path):
        try:
            return read(path)
        finally:
            looked.release()

    monkeypatch.setattr(scheduler_file, "read", noted)
    return looked


def connect_later(target, act, waiting, **options):
    """Return a conductor, for which something is done once it has begun to wait."""
    failed = []

    def later():
        try:
            for step in act:
                assert waiting.acquire(timeout=SECONDS)
                step()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=later)
    thread.start()
    try:
        return DaskConductor(target, timeout=SECONDS, **options)
    finally:
        thread.join(SECONDS)
        assert not failed


def serves(conductor):
    """Whether electrons come back."""
    with Atomizer(conductor) as atomizer:
        return atomizer.send(increment, {"x": 1}).result(SECONDS).value() == 2


# -- what it takes --------------------------------------------------------------------------------


@pytest.mark.dask
def test_cluster_of_dask_jobqueue_is_taken_and_left_open(tmp_path):
    with cluster_of_jobs(tmp_path) as cluster:
        with DaskConductor(cluster) as conductor:
            assert "LocalCluster tcp://" in repr(conductor)
            cluster.scale(jobs=1)
            assert serves(conductor)
        assert cluster.status.name == "running"
        with Client(cluster, set_as_default=False) as client:
            assert client.submit(int, 5).result(SECONDS) == 5


@pytest.mark.dask
def test_any_other_cluster_is_taken_and_left_open(tmp_path):
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    nanny = {"cls": Nanny, "options": {"nthreads": 2, "local_directory": str(tmp_path), **options}}
    with SpecCluster(
        workers={"one": nanny}, scheduler={"cls": Scheduler, "options": options}
    ) as cluster:
        conductor = DaskConductor(cluster)
        where = f"SpecCluster {cluster.scheduler_address}"
        assert repr(conductor) == f"<DaskConductor dask: {where}, 1 worker, 2 threads>"
        assert serves(conductor)
        conductor.close()
        assert repr(conductor) == f"<DaskConductor dask: {where}, closed>"
        assert cluster.status.name == "running"


@pytest.mark.dask
@pytest.mark.parametrize("as_what", [Path, str])
def test_scheduler_file_is_taken(file, as_what):
    with DaskConductor(as_what(file)) as conductor:
        assert "scheduler of scheduler.json tcp://" in repr(conductor)
        assert serves(conductor)


@pytest.mark.dask
def test_client_is_left_open(cluster):
    with Client(cluster, set_as_default=False) as client:
        with DaskConductor(client) as conductor:
            assert f"LocalCluster {cluster.scheduler_address}, 2 workers" in repr(conductor)
        assert client.status == "running"
        assert client.submit(int, 5).result(SECONDS) == 5


@pytest.mark.dask
def test_local_cluster_has_a_thread_in_each_process_and_ends_with_its_conductor():
    with DaskConductor(workers=2) as conductor:
        assert {worker.threads for worker in conductor.status().workers} == {1}
        assert "LocalCluster tcp://127.0.0.1:" in repr(conductor)
        address = conductor.client.scheduler.address
    with pytest.raises(scheduler_file.NotYetError):
        scheduler_file.probe(address)


@pytest.mark.dask
def test_what_it_connected_to_is_told(cluster):
    atomizer = Atomizer(DaskConductor(cluster, id="mine"))
    events = atomizer.events()
    with atomizer:
        told = events.get(SECONDS)
    assert told.level == "info"
    assert told.message == (
        f"connected to LocalCluster at {cluster.scheduler_address}: 2 workers, 2 threads"
    )
    assert told.conductor_id == "mine"


async def _asynchronous(address):
    async with LocalCluster(
        n_workers=0, processes=False, asynchronous=True, dashboard_address=None
    ) as cluster:
        with pytest.raises(TypeError, match=r"is asynchronous: .* or give its scheduler_address"):
            DaskConductor(cluster)
        async with Client(cluster, asynchronous=True, set_as_default=False) as client:
            with pytest.raises(TypeError, match=r"is asynchronous: .* or give its scheduler_addr"):
                DaskConductor(client)
    async with Client(address, asynchronous=True, set_as_default=False) as client:
        assert client.status == "running"
    with pytest.raises(TypeError, match="the client is closed"):
        DaskConductor(client)


@pytest.mark.dask
def test_asynchronous_cluster_and_closed_client_are_refused(cluster):
    asyncio.run(_asynchronous(cluster.scheduler_address))


@pytest.mark.dask
def test_scheduler_that_is_configured_for_all_of_dask_is_used(cluster, configure):
    address = cluster.scheduler_address
    with dask.config.set({"scheduler-address": address}):
        with DaskConductor() as conductor:
            assert conductor.client.scheduler.address == address
        configure({"connection.target": "tcp://127.0.0.1:1"})
        with pytest.raises(ConductorError, match=r"nobody answers at 'tcp://127\.0\.0\.1:1'"):
            DaskConductor(timeout=1)


def test_closed_cluster_is_refused():
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        pass
    with pytest.raises(TypeError, match="is closed: expected one that is running"):
        DaskConductor(cluster)


@pytest.mark.parametrize("timeout", [0, -1, "soon", True])
def test_timeout_that_is_none_is_refused(timeout, tmp_path):
    with pytest.raises((TypeError, ValueError), match="timeout must be seconds"):
        DaskConductor(tmp_path / "scheduler.json", timeout=timeout)


# -- waiting for a scheduler ----------------------------------------------------------------------


@pytest.mark.dask
def test_scheduler_file_may_be_written_later_and_slowly(cluster, tmp_path, waiting):
    path = tmp_path / "scheduler.json"
    text = named(cluster)
    steps = [lambda: path.write_text(text[: len(text) // 2]), lambda: path.write_text(text)]
    with connect_later(path, steps, waiting) as conductor:
        assert serves(conductor)


@pytest.mark.dask
def test_file_of_an_earlier_job_is_waited_over(cluster, tmp_path, waiting):
    path = tmp_path / "scheduler.json"
    path.write_text(json.dumps({"id": "Scheduler-earlier", "address": unused_address()}))
    with connect_later(path, [lambda: write(path, cluster)], waiting) as conductor:
        assert serves(conductor)


@pytest.mark.dask
def test_scheduler_that_took_over_the_port_of_another_is_not_used(cluster, tmp_path, waiting):
    path = tmp_path / "scheduler.json"
    address = cluster.scheduler_address
    path.write_text(json.dumps({"id": "Scheduler-earlier", "address": address}))
    with pytest.raises(ConductorError, match=r"it names Scheduler-earlier at .* answers"):
        DaskConductor(path, timeout=0.01)
    with connect_later(path, [lambda: write(path, cluster)], waiting) as conductor:
        assert serves(conductor)


def test_scheduler_file_that_never_comes_is_told(tmp_path):
    path = tmp_path / "scheduler.json"
    with pytest.raises(
        ConductorError, match=r"scheduler.json' within 0.2 s: there is no such file; .* timeout="
    ):
        DaskConductor(str(path), timeout=0.2)
    address = unused_address()
    path.write_text(json.dumps({"address": address}))
    with pytest.raises(ConductorError, match=f"it names {address}, where nobody answers"):
        DaskConductor(path, timeout=0.2)
    path.write_text('{"address": "tcp://10.0')
    with pytest.raises(ConductorError, match="the file is not complete, or is no JSON"):
        DaskConductor(path, timeout=0.2)


@pytest.mark.parametrize("content", ['{"cells": []}', "[1, 2]", "5"])
def test_file_of_another_kind_is_told_at_once(tmp_path, content):
    path = tmp_path / "notebook.json"
    path.write_text(content)
    with pytest.raises(ConductorError, match=r"no scheduler file .* no 'address'"):
        DaskConductor(path, timeout=3600)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "tcp://127.0.0.1:99999", "node1:x"])
def test_address_in_a_file_that_is_none_is_told(tmp_path, address):
    path = tmp_path / "scheduler.json"
    path.write_text(json.dumps({"address": address}))
    with pytest.raises(ConductorError, match=f"it names {address}, where nobody answers"):
        DaskConductor(path, timeout=0.2)


def test_folder_is_told_at_once(tmp_path):
    with pytest.raises(ConductorError, match="no scheduler file that can be read"):
        DaskConductor(tmp_path, timeout=3600)


def test_address_is_waited_for_as_long_as_asked():
    address = unused_address()
    with pytest.raises(ConductorError, match=rf"nobody answers at '{address}' \(.*refused\)"):
        DaskConductor(address, timeout=0.2)


def test_somebody_who_is_no_scheduler_is_told():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConductorError, match="though somebody listens there"):
            DaskConductor(address, timeout=0.2)


@pytest.mark.parametrize(
    ("target", "options", "told"),
    [
        ("", {}, "the scheduler's address is empty"),
        (None, {"workers": 0}, "workers must be at least 1, got 0"),
        (None, {"workers": "2"}, "workers must be a whole number, got '2'"),
        (None, {"threads_per_worker": 0}, "threads_per_worker must be at least 1"),
        (None, {"timeout": float("inf")}, "timeout must be some number of seconds, got inf"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(target, options, told):
    with pytest.raises((TypeError, ValueError), match=told):
        DaskConductor(target, **options)


@pytest.mark.parametrize("kind", ["file", "silent"])
def test_ctrl_c_ends_waiting_for_a_scheduler(tmp_path, kind):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        target = str(tmp_path / "scheduler.json") if kind == "file" else address
        code = (
            "import sys; from atomizer_dask import DaskConductor\n"
            "try:\n    print('begun', flush=True)\n    DaskConductor(sys.argv[1], timeout=3600)\n"
            "except KeyboardInterrupt:\n    print('ended', flush=True)\n"
        )
        waiting = subprocess.Popen(
            [sys.executable, "-c", code, target], stdout=subprocess.PIPE, text=True
        )
        try:
            assert waiting.stdout.readline() == "begun\n"
            if kind == "silent":
                silent.accept()[0].close()  # it is under way
            waiting.send_signal(signal.SIGINT)
            assert waiting.stdout.readline() == "ended\n"
            assert waiting.wait(SECONDS) == 0
        finally:
            waiting.kill()
            waiting.wait()
            waiting.stdout.close()


# -- workers that come later ----------------------------------------------------------------------


@pytest.mark.dask
def test_workers_that_join_later_serve_what_is_registered(empty):
    with DaskConductor(empty) as conductor, Atomizer(conductor, increment) as atomizer:
        assert "no workers: waiting for some" in repr(conductor)
        run = atomizer.map("tests.increment", grid(x=range(20)))
        empty.scale(1)
        assert run.wait(SECONDS).to_frame()["result"].tolist() == list(range(1, 21))
        (first,) = {worker.address for worker in conductor.status().workers}
        empty.scale(2)
        conductor.client.wait_for_workers(2, timeout=SECONDS)
        (second,) = {worker.address for worker in conductor.status().workers} - {first}
        conductor.client.retire_workers([first])
        assert atomizer.send("tests.increment", {"x": 1}).result(SECONDS).worker == second
