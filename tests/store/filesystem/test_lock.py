"""Who works on a store: one process at a time, and what becomes of the others."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from atomizer_dask import Atomizer, MemoryConductor, Run, atom, grid
from atomizer_dask.errors import StoreError, StoreHeldError
from atomizer_dask.store.filesystem.folder import Folder
from atomizer_dask.store.filesystem.lock import LockHolder, acquire, read_holder, release
from atomizer_dask.store.layout import HOLDER


@atom(id="tests.waiting")
def waiting(x, path, free=0):
    while x >= free and not os.path.exists(path):
        time.sleep(0.005)
    return x / 2


@atom(id="tests.waiting_rows", vectorized=True)
def waiting_rows(x, *, context):
    time.sleep(0.02)
    return x / 2


SCRIPT = """
import os, sys, time
from atomizer_dask import Atomizer, MemoryConductor, atom, grid

@atom(id="tests.waiting")
def waiting(x, path, free=0):
    while x >= free and not os.path.exists(path):
        time.sleep(0.005)
    return x / 2

if __name__ == "__main__":
    store, path, free, action = sys.argv[1:]
    atomizer = Atomizer(MemoryConductor(2), waiting)
    if action == "attach":
        run = atomizer.attach(store, accept_changes=True)
    else:
        run = atomizer.map(waiting, grid(x=range(40), path=[path], free=[int(free)]), store=store)
    while run.progress.done < int(free):
        time.sleep(0.01)
    time.sleep(0.7)  # what is done is written twice a second
    print("ready", flush=True)
    try:
        run.wait()
        print("finished", flush=True)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(0)
"""


@pytest.fixture
def elsewhere(tmp_path):
    """Starts processes that work on a store, and ends them."""
    script, running = tmp_path / "script.py", []
    script.write_text(SCRIPT)

    def start(store, gate, free, action="map"):
        process = subprocess.Popen(
            [sys.executable, str(script), str(store), gate.path, str(free), action],
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def other():
    """A second atomizer in this process."""
    with closing(Atomizer(MemoryConductor(2))) as atomizer:
        yield atomizer


# -- one holder --------------------------------------------------------------------------------


def test_holder_comes_back_from_the_folder(tmp_path):
    folder, me = Folder(tmp_path), LockHolder.here()
    assert read_holder(folder) is None
    acquire(folder, me)
    assert read_holder(folder) == me
    release(folder, me)
    assert read_holder(folder) is None


def test_of_many_who_take_hold_at_once_one_does(tmp_path):
    folder, won, barrier = Folder(tmp_path), [], threading.Barrier(8)

    def take():
        me = LockHolder.here()
        barrier.wait()
        try:
            acquire(folder, me)
        except StoreHeldError:
            return
        won.append(me)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [read_holder(folder)] == won


def test_of_many_who_take_over_from_the_dead_one_does(tmp_path):
    folder = Folder(tmp_path)
    for _ in range(20):
        folder.write(HOLDER, LockHolder("t", socket.gethostname(), 2**22 + 1, 0.0, "then").dump())
        test_of_many_who_take_hold_at_once_one_does(tmp_path)
        folder.remove(HOLDER)
    assert folder.names() == []


def test_process_of_the_same_number_is_not_the_holder():
    me = LockHolder.here()
    assert not me.is_dead
    before = LockHolder("t", me.host, me.pid, me.born - 100, me.since)
    assert before.is_dead
    assert not LockHolder("t", "another-host", me.pid, me.born - 100, me.since).is_dead


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b'"x"', b"\xff"])
def test_damaged_holder_is_told(local, tmp_path, content):
    store = tmp_path / "store"
    local.register(waiting)
    local.map(waiting, grid(x=range(3), path=[str(tmp_path)]), store=store).wait(60)
    (store / HOLDER).write_bytes(content)
    with pytest.raises(StoreError, match=r"holder\.json cannot be read .* remove it where no"):
        local.attach(store)
    (store / HOLDER).unlink()
    assert local.attach(store).wait(60).progress.done == 3


def test_who_only_looks_is_not_in_the_way(local, tmp_path, gate):
    store = tmp_path / "store"
    run = local.map(waiting, grid(x=range(20), path=[gate.path], free=[5]), store=store)
    for _ in range(400):
        looked = Run.open(store)
        if looked.progress.done == 5:
            break
        time.sleep(0.01)
    assert looked.state == "running"
    assert looked.to_frame()["result"].tolist() == [x / 2 for x in range(5)]
    assert looked.progress.pending == 15
    with pytest.raises(StoreError, match=r"opened to be looked at; atomizer\.attach\('"):
        looked.retry()
    gate.open()
    run.wait(60)
    assert Run.open(store).state == "finished"


def test_looking_at_a_run_while_it_is_written(local, tmp_path, configure):
    configure({"store.gather-rows": 1})
    run = local.map(waiting_rows, grid(x=range(200)), store=tmp_path / "store")
    seen = 0
    while not run.join(0):
        frame = Run.open(tmp_path / "store").to_frame()
        assert frame["x"].is_unique
        assert (frame.get("result", frame["x"] / 2) == frame["x"] / 2).all()
        seen = max(seen, len(frame))
    looked = Run.open(tmp_path / "store")
    assert len(looked.to_frame()) == 200


def test_what_was_opened_is_still_read_after_files_were_merged(local, tmp_path, gate, configure):
    configure({"store.gather-rows": 1})
    sweep = grid(x=range(60), path=[gate.path], free=[30])
    run = local.map(waiting, sweep, store=tmp_path / "store")
    while run.progress.done < 30:
        time.sleep(0.01)
    looked = Run.open(tmp_path / "store")
    gate.open()
    run.wait(60)
    assert set(looked.to_frame()["x"]) >= set(range(20))


# -- several processes -------------------------------------------------------------------------


def test_second_process_is_told_who_holds_the_store(local, tmp_path, gate, elsewhere):
    process = elsewhere(tmp_path / "store", gate, 5)
    local.register(waiting)
    who = rf"held by process {process.pid} on {re.escape(socket.gethostname())}, since 20\d\d-"
    with pytest.raises(StoreHeldError, match=who) as told:
        local.attach(tmp_path / "store")
    assert "takeover=True" in str(told.value)
    with pytest.raises(StoreHeldError, match=who):
        local.map(waiting, grid(x=[1], path=[""]), store=tmp_path / "store")
    gate.open()
    assert process.stdout.readline() == "finished\n"
    run = local.attach(tmp_path / "store", accept_changes=True).wait(60)
    assert run.to_frame()["result"].tolist() == [x / 2 for x in range(40)]


def test_takeover_ends_the_run_of_the_other_process(local, tmp_path, gate, elsewhere):
    process = elsewhere(tmp_path / "store", gate, 5)
    local.register(waiting)
    run = local.attach(tmp_path / "store", takeover=True, accept_changes=True)
    assert run.progress.done == 5
    gate.open()
    run.wait(60)
    assert run.to_frame()["result"].tolist() == [x / 2 for x in range(40)]
    told = process.stdout.readline()
    assert told.startswith("StoreHeldError")
    assert "no longer held by this process but by" in told
    assert sorted(rows_in(tmp_path / "store")) == list(range(40))
    assert Run.open(tmp_path / "store").state == "finished"


def test_dead_holder_is_in_nobodys_way(local, tmp_path, gate, elsewhere):
    process = elsewhere(tmp_path / "store", gate, 5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    local.register(waiting)
    dead = Run.open(tmp_path / "store")
    assert dead.state == "suspended"
    assert dead.progress.done == 5
    run = local.attach(tmp_path / "store", accept_changes=True)
    assert run.progress.done == 5
    gate.open()
    run.wait(60)
    assert run.to_frame()["result"].tolist() == [x / 2 for x in range(40)]
    assert sorted(rows_in(tmp_path / "store")) == list(range(40))


def test_two_processes_that_attach_at_once(tmp_path, gate, elsewhere):
    process = elsewhere(tmp_path / "store", gate, 0)
    process.kill()
    process.wait()
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "store"), gate.path]
    both = [
        subprocess.Popen(
            [*command, "0", "attach"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        process.first = process.stdout.readline()
    gate.open()
    texts = [process.first + "".join(process.communicate(timeout=60)) for process in both]
    assert sorted("finished" in text for text in texts) == [False, True]
    assert sorted("StoreHeldError" in text for text in texts) == [False, True]
    assert sorted(rows_in(tmp_path / "store")) == list(range(40))


def rows_in(store):
    return pd.read_parquet(Path(store, "properties"))["electron"].tolist()


# -- within one process ------------------------------------------------------------------------


def test_same_store_twice_at_once(local, tmp_path, gate):
    local.register(waiting)
    sweep = grid(x=range(4), path=[gate.path])
    run = local.map(waiting, sweep, store=tmp_path / "store")
    with pytest.raises(StoreHeldError, match=f"held by process {os.getpid()} on"):
        local.map(waiting, sweep, store=tmp_path / "store")
    with pytest.raises(StoreHeldError, match="takeover=True"):
        local.attach(tmp_path / "store")
    gate.open()
    run.wait(60)
    assert sorted(rows_in(tmp_path / "store")) == list(range(4))


def test_two_stores_at_once(atomizer, tmp_path, gate):
    sweep = grid(x=range(40), path=[gate.path])
    runs = [atomizer.map(waiting, sweep, store=tmp_path / name) for name in ("a", "b")]
    gate.open()
    frames = [run.wait(60).to_frame() for run in runs]
    assert_frame_equal(*frames)
    assert runs[0].id != runs[1].id
    for name in ("a", "b"):
        assert sorted(rows_in(tmp_path / name)) == list(range(40))


@pytest.mark.parametrize("rows", [1, 2**30], ids=["worker_writes", "client_writes"])
def test_whoever_was_taken_over_writes_nothing_more(local, other, tmp_path, rows, configure):
    configure({"store.gather-rows": rows, "store.gather-bytes": rows})
    for atomizer in (local, other):
        atomizer.register(waiting_rows)
    run = local.map(waiting_rows, grid(x=range(200)), store=tmp_path / "store")
    while not run.progress.done:
        time.sleep(0.005)
    taken = other.attach(tmp_path / "store", takeover=True)
    with pytest.raises(StoreError, match="no longer held by this process but by process"):
        run.wait(30)
    assert run.state == "failed"
    taken.wait(30)
    assert taken.to_frame()["result"].tolist() == [x / 2 for x in range(200)]
    assert sorted(rows_in(tmp_path / "store")) == list(range(200))
    assert Run.open(tmp_path / "store").state == "finished"


def test_cancelling_what_was_taken_over_changes_nothing(local, other, tmp_path, gate):
    for atomizer in (local, other):
        atomizer.register(waiting)
    sweep = grid(x=range(20), path=[gate.path], free=[5])
    run = local.map(waiting, sweep, store=tmp_path / "store")
    while run.progress.done < 5:
        time.sleep(0.01)
    time.sleep(0.6)
    taken = other.attach(tmp_path / "store", takeover=True)
    run.cancel()
    assert run.join(30)
    gate.open()
    taken.wait(30)
    assert taken.progress.done == 20
    assert Run.open(tmp_path / "store").state == "finished"
    with open(tmp_path / "store" / "run.json") as file:
        manifest = json.load(file)
    assert len(manifest["sessions"]) == 2
    assert sorted(rows_in(tmp_path / "store")) == list(range(20))


def test_run_that_others_went_on_with_is_still_told_apart(local, other, tmp_path, configure):
    """Its files have been merged by them."""
    configure({"store.gather-rows": 1})
    for atomizer in (local, other):
        atomizer.register(waiting_rows)
    store = tmp_path / "store"
    run = local.map(waiting_rows, grid(x=range(100)), store=store).wait(30)
    other.map(waiting_rows, grid(x=range(1000)), store=store).wait(30)
    # Where the other has merged files, and only there, an error says so.
    with contextlib.suppress(StoreError):
        assert run.to_frame()["result"].tolist() == [x / 2 for x in range(100)]
    assert len(Run.open(store).to_frame()) == 1000


def test_retry_of_a_run_that_others_went_on_with(local, other, tmp_path):
    for atomizer in (local, other):
        atomizer.register(fails_once)
    store, flag = tmp_path / "store", tmp_path / "flag"
    run = local.map(fails_once, grid(x=range(10), path=[str(flag)]), store=store).wait(30)
    assert run.progress.failed == 5
    flag.touch()
    other.attach(store).retry().wait(30)
    with pytest.raises(StoreError, match="another"):
        run.retry().wait(30)
    assert sorted(rows_in(store)) == list(range(10))
    assert Run.open(store).progress.done == 10


@atom(id="tests.fails_once")
def fails_once(x, path):
    if x % 2 and not os.path.exists(path):
        raise ValueError(x)
    return x


def test_retry_while_another_process_holds_it_changes_nothing(local, other, tmp_path, gate):
    for atomizer in (local, other):
        atomizer.register(fails_once)
        atomizer.register(fails_once)
    store, flag = tmp_path / "store", tmp_path / "flag"
    run = local.map(fails_once, grid(x=range(10), path=[str(flag)]), store=store).wait(30)
    folder, someone = Folder(store), LockHolder.here()
    acquire(folder, someone)
    with pytest.raises(StoreHeldError):
        run.retry()
    assert run.progress.failed == 5
    assert len(run.errors) == 5
    release(folder, someone)
    flag.touch()
    assert run.retry().wait(30).progress.done == 10
