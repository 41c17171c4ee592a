"""Workers that are there and do nothing: paused, stopped, silent, or busy with something else."""

import ctypes
import io
import os
import signal
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import dask.config
import pytest
from distributed import LocalCluster
from patience import wait_until

from atomizer_dask import Atomizer, DaskConductor, Run, grid
from atomizer_dask.conductors.dask.plugins.idle_workers import SILENT, Idle, IdleWorkersPlugin
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import is_batch
from atomizer_dask.widgets.summary import run_facts

pytestmark = [pytest.mark.dask, pytest.mark.timeout(180)]
ELECTRONS = 100


@contextmanager
def cluster_of(workers, settings):
    """Give so many workers of a thread each, while settings hold."""
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module")
def cluster():
    """Two workers, between which Dask moves no tasks by itself."""
    settings = {
        "distributed.scheduler.work-stealing": False,
        "atomizer.workers.patience": "1s",
        "atomizer.workers.restart": "3s",
    }
    with (
        cluster_of(2, settings) as cluster,
        DaskConductor(cluster),  # the first one has the scheduler look out
    ):
        yield cluster


@pytest.fixture
def atomizer(cluster):
    # Of the run of a test that fails an atomizer by itself would wait for the end.
    with closing(Atomizer(DaskConductor(cluster))) as atomizer:
        wait_until_all_work(cluster.scheduler)
        yield atomizer


def wait_until_all_work(scheduler):
    idle = scheduler.plugins["atomizer-lookout"]._idle
    wait_until(lambda: len(scheduler.running) == 2 and not idle)


def slow(x):
    time.sleep(0.02)
    return 2 * x


def wait_at(gate):
    while not Path(gate).exists():
        time.sleep(0.01)


def wait_with_the_lock(x, gate, log):
    """Hold the interpreter lock until the gate opens, which nobody in this process can do."""
    if x == 0:
        with Path(log).open("a") as file:
            file.write("x")
        ctypes.PyDLL(None).system(f"until test -e {gate}; do sleep 0.05; done".encode())
    return 2 * x


@contextmanager
def stopped(pids):
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def pids_of(cluster):
    return [nanny.process.pid for nanny in cluster.workers.values()]


def set_pause_fraction(dask_worker, fraction):
    """Have Dask's memory monitor pause a worker, or let it go on."""
    dask_worker.memory_manager.memory_pause_fraction = fraction


def check(run, count=ELECTRONS):
    frame = run.to_frame()
    assert len(frame) == count
    assert (frame["result"] == 2 * frame["x"]).all()


def has_told(atomizer, words):
    return any(words in event.message for _, event in atomizer.recent.since(0))


@pytest.mark.parametrize("kept", [False, True])
def test_what_a_stopped_worker_holds_is_executed_elsewhere(atomizer, cluster, tmp_path, kept):
    store = tmp_path / "run" if kept else None
    run = atomizer.map(slow, grid(x=range(ELECTRONS)), store=store)
    worker = cluster.scheduler.workers[cluster.workers[0].worker_address]
    wait_until(lambda: run.progress.done and worker.processing)
    with stopped(pids_of(cluster)[:1]):
        run.wait(60)
        check(run)
    wait_until_all_work(cluster.scheduler)
    atomizer.map(slow, grid(x=range(50))).wait(60)  # so that what was late is told by now
    assert has_told(atomizer, "is silent")  # and why, where it had begun something
    check(run)
    if kept:
        check(Run.open(store))


def test_of_a_silent_worker_whose_process_is_stopped_that_is_told():
    idle = Idle(SILENT, since=time.time())
    IdleWorkersPlugin(patience=1, restart=None, is_own=False)._note_process(idle, "stopped", 0.0)
    assert idle.text == "silent (process stopped)"


def test_a_worker_that_does_not_answer_keeps_nobody_waiting(atomizer, cluster):
    run = atomizer.map(slow, grid(x=range(10_000)))
    wait_until(lambda: run.progress.done)
    with stopped(pids_of(cluster)[:1]):
        run.pause()
        run.resume()
        run.cancel()
        assert run.join(20)
        with DaskConductor(cluster.scheduler_address) as other, Atomizer(other) as atomizer:
            check(atomizer.map(slow, grid(x=range(10))).wait(60), 10)


def test_what_a_paused_worker_has_not_begun_goes_to_others(atomizer, cluster):
    client = atomizer.conductors["dask"].client
    first = next(iter(cluster.scheduler.workers))
    atomizer.map(slow, grid(x=range(10))).wait(60)
    client.run(set_pause_fraction, fraction=1e-9, workers=[first])
    try:
        run = atomizer.map(slow, grid(x=range(ELECTRONS))).wait(60)
    finally:
        for worker in cluster.scheduler.workers:
            client.run(set_pause_fraction, fraction=0.8, workers=[worker])
    check(run)


def test_workers_that_stay_paused_are_restarted_where_nobody_else_uses_them(atomizer, cluster):
    conductor = atomizer.conductors["dask"]
    before = set(cluster.scheduler.workers)
    run = atomizer.map(slow, grid(x=range(ELECTRONS)))
    wait_until(lambda: run.progress.done)
    conductor.client.run(set_pause_fraction, fraction=1e-9)
    wait_until(lambda: run.progress.standstill, "that nobody works is told")
    assert "nothing is executed: " in repr(run)
    assert "paused by Dask" in repr(conductor) + repr(run)
    assert run.progress.eta is None
    run.wait(100)
    check(run)
    assert before.isdisjoint(cluster.scheduler.workers) or len(before) == 2


@pytest.mark.parametrize("how", ["paused", "killed"])
def test_a_worker_that_its_cluster_gives_up_while_it_starts_again_is_replaced(how):
    settings = {
        "distributed.deploy.lost-worker-timeout": "50ms",  # as 15 s where imports are slow
        "atomizer.workers.patience": "0.5s",
        "atomizer.workers.restart": "0.5s",
    }
    with (
        cluster_of(1, settings) as cluster,
        Atomizer(conductor := DaskConductor(cluster)) as atomizer,
    ):
        first = cluster.workers[0]
        run = atomizer.map(slow, grid(x=range(ELECTRONS)))
        wait_until(lambda: run.progress.done)
        if how == "paused":
            conductor.client.run(set_pause_fraction, fraction=1e-9)
        else:
            os.kill(pids_of(cluster)[0], signal.SIGKILL)
        run.wait(60)
        assert cluster.workers[0] is not first
    check(run)


def test_a_worker_that_was_retired_is_not_replaced():
    settings = {"distributed.deploy.lost-worker-timeout": "3s"}
    with (
        cluster_of(2, settings) as cluster,
        Atomizer(conductor := DaskConductor(cluster)) as atomizer,
    ):
        atomizer.map(slow, grid(x=range(10))).wait(60)
        conductor.client.retire_workers([cluster.workers[0].worker_address])
        wait_until(lambda: 0 not in cluster.workers)
        check(atomizer.map(slow, grid(x=range(ELECTRONS))).wait(60))  # while it is looked
        assert set(cluster.workers) == {1}


def test_a_paused_worker_with_data_of_others_is_not_restarted(atomizer, cluster):
    client = atomizer.conductors["dask"].client
    worker, other = cluster.scheduler.workers
    theirs = client.scatter({"theirs": 1}, workers=[worker])
    run = atomizer.map(slow, grid(x=range(ELECTRONS)))
    wait_until(lambda: run.progress.done)
    client.run(set_pause_fraction, fraction=1e-9)
    run.wait(60)  # on what the other one is restarted as
    check(run)
    assert worker in cluster.scheduler.workers
    assert other not in cluster.scheduler.workers
    client.run(set_pause_fraction, fraction=0.8)
    assert client.gather(theirs) == {"theirs": 1}


def test_what_waits_behind_an_electron_that_holds_the_interpreter_lock_goes_on(
    atomizer, gate, tmp_path
):
    log = tmp_path / "log"
    inputs = grid(x=range(ELECTRONS), gate=[gate.path], log=[str(log)])
    run = atomizer.map(wait_with_the_lock, inputs)
    wait_until(lambda: run.progress.done == ELECTRONS - 1, "the others end")
    gate.open()
    run.wait(60)
    check(run)
    assert len(log.read_text()) <= 2


def test_a_blocked_event_loop_holds_nothing_up(atomizer, cluster, gate):
    client = atomizer.conductors["dask"].client
    worker = next(iter(cluster.scheduler.workers))
    run = atomizer.map(slow, grid(x=range(ELECTRONS)))
    wait_until(lambda: run.progress.done)
    block = threading.Thread(
        target=client.run, args=[wait_at, gate.path], kwargs={"workers": [worker]}
    )
    block.start()
    try:
        run.wait(60)
    finally:
        gate.open()
        block.join()
    check(run)


def test_batches_do_not_wait_behind_tasks_of_others(atomizer, cluster, gate):
    client = atomizer.conductors["dask"].client
    worker = next(iter(cluster.scheduler.workers))
    theirs = client.submit(wait_at, gate.path, workers=[worker], pure=False)
    wait_until(lambda: cluster.scheduler.workers[worker].processing)
    run = atomizer.map(slow, grid(x=range(ELECTRONS))).wait(60)
    check(run)
    gate.open()
    theirs.result(60)


def write_and_wait(x, gate, log):
    with Path(log).open("a") as file:
        file.write("x")
    wait_at(gate)
    return 2 * x


def beat(dask_worker, on):
    """Have a worker send heartbeats, which say what it executes, or none."""
    heartbeat = dask_worker.periodic_callbacks["heartbeat"]
    heartbeat.start() if on else heartbeat.stop()


def test_what_a_worker_has_begun_since_it_last_reported_is_not_moved(
    atomizer, cluster, gate, tmp_path
):
    client, scheduler = atomizer.conductors["dask"].client, cluster.scheduler
    crowded = scheduler.plugins["atomizer-lookout"]._crowded
    log = tmp_path / "log"
    client.run(beat, on=False)
    try:
        for worker in scheduler.workers.values():
            worker.last_seen += 3600  # silent workers are another matter
        run = atomizer.map(write_and_wait, grid(x=[1], gate=[gate.path], log=[str(log)]))
        wait_until(log.exists, "it is begun")
        (task,) = (task for task in scheduler.tasks.values() if is_batch(task.key))
        worker = task.processing_on.address
        # To the scheduler it looks as if this one came first.
        urgent = client.submit(len, "", workers=[worker], priority=10, pure=False)
        wait_until(lambda: worker in crowded._unanswered, "its worker is asked to drop it")
        wait_until(lambda: worker not in crowded._unanswered, "which has begun it")
        gate.open()
        check(run.wait(60), 1)
    finally:
        client.run(beat, on=True)
    assert urgent.result(60) == 0
    assert log.read_text() == "x"


def test_what_a_worker_dropped_without_a_word_is_moved(
    atomizer, cluster, gate, tmp_path, monkeypatch
):
    client, scheduler = atomizer.conductors["dask"].client, cluster.scheduler
    crowded = scheduler.plugins["atomizer-lookout"]._crowded
    gates = {address: tmp_path / str(n) for n, address in enumerate(scheduler.workers)}
    theirs = [client.submit(wait_at, str(gates[w]), workers=[w], pure=False) for w in gates]
    wait_until(lambda: all(worker.processing for worker in scheduler.workers.values()))
    lost = []

    def rpc(address):
        monkeypatch.undo()

        async def run(**question):
            lost.append(await scheduler.rpc(address).run(**question))
            raise OSError("the connection is lost")

        return SimpleNamespace(run=run)

    names = ("workers", "running", "unrunnable", "valid_workers")
    as_before = {name: getattr(scheduler, name) for name in names}
    run = atomizer.map(slow, grid(x=range(ELECTRONS)))
    wait_until(lambda: all(len(w.processing) > 1 for w in scheduler.workers.values()))
    monkeypatch.setattr(crowded, "_scheduler", SimpleNamespace(rpc=rpc, **as_before))
    first, *_ = gates.values()
    first.touch()
    check(run.wait(60))
    assert lost[0]["status"] == "OK"
    for each in gates.values():
        each.touch()
    client.gather(theirs)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_where_there_is_no_worker_it_is_said(empty, monkeypatch):
    why = "no workers: waiting for some"
    with Atomizer(DaskConductor(empty)) as atomizer:
        run = atomizer.map(slow, grid(x=range(10)))
        assert run.progress.standstill == why
        assert run.progress.eta is None
        for shown in (run, run.progress, atomizer.conductors["dask"]):
            assert why in repr(shown)
        assert why in run_facts(run)["label"]
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        with pytest.raises(TimeoutError, match=why):
            run.wait(0.3, progress=True)
        assert why in terminal.getvalue()
        empty.scale(1)
        run.wait(60)
        assert not run.progress.standstill
        check(run, 10)
