"""What survives the death of worker processes, on clusters of their own."""

import ctypes
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import dask
import numpy as np
import pytest
from distributed import Client, Future, LocalCluster
from patience import wait_until
from shortlived import counted, marked

from atomizer_dask import Atom, Atomizer, ConductorError, DaskConductor, Electron, atom, grid
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import is_batch

pytestmark = pytest.mark.dask
PACE = threading.Event()  # never set: for electrons that take a while


@pytest.fixture(scope="module", params=[(2, 1), (1, 4)], ids=["2 of 1 thread", "1 of 4 threads"])
def shape(request):
    """A cluster that this module may harm."""
    workers, threads = request.param
    # A LocalCluster gives a worker up that is away 15 s after *any* of its deaths.
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            memory_limit="700MiB",
            dashboard_address=None,
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def frail(shape):
    """An atomizer on it, once all its workers are there."""
    shape.wait_for_workers(len(shape.worker_spec), timeout=60)
    atomizer = Atomizer(DaskConductor(shape))
    yield atomizer
    atomizer.close()


def pids(cluster):
    return [worker.process.pid for worker in cluster.workers.values() if worker.process]


def nothing_left(cluster, seconds=5):
    """Wait until the scheduler has no task, and say whether it has none."""
    until = time.monotonic() + seconds
    while cluster.scheduler.tasks and time.monotonic() < until:
        PACE.wait(0.02)
    return not cluster.scheduler.tasks


def die(how):
    if how == "exit":
        os._exit(1)
    elif how == "null":
        ctypes.string_at(0)
    else:
        hoard = []
        while True:
            hoard.append(np.ones(5_000_000))


@atom
def deadly(x, how):
    if x == 500:
        die(how)
    return 2 * x


REASONS = {"exit": "exit code 1", "null": "SIGSEGV", "hoard": "out of memory"}


@pytest.mark.parametrize("how", REASONS)
def test_culprit_is_named_and_no_neighbour_harmed(frail, shape, how):
    lost = []
    shape.scheduler.add_plugin(Leaving(lost), name="leaving")
    run = frail.map(deadly, grid(x=range(2000), how=[how])).wait(90)
    shape.scheduler.remove_plugin("leaving")
    errors = run.errors
    assert errors["x"].tolist() == [500]
    assert errors["kind"].tolist() == ["killed"]
    assert REASONS[how] in errors["message"].iloc[0]
    df = run.to_frame().drop(index=500)
    assert (df["result"] == 2 * df["x"]).all()
    assert len(lost) <= 2
    assert nothing_left(shape)


class Leaving:
    """A scheduler plugin that notes which workers leave."""

    def __init__(self, lost):
        self.lost = lost

    def remove_worker(self, scheduler, worker, **kwargs):
        self.lost.append(worker)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def test_many_killers_cost_two_workers_not_one_each(frail, shape):
    @atom
    def often_deadly(x):
        if x % 100 == 50:
            os._exit(1)
        return x

    lost = []
    shape.scheduler.add_plugin(Leaving(lost), name="leaving")
    run = frail.map(often_deadly, grid(x=range(2000))).wait(90)
    shape.scheduler.remove_plugin("leaving")
    assert run.errors["x"].tolist() == list(range(50, 2000, 100))
    assert set(run.errors["kind"]) == {"killed"}
    assert len(lost) <= 8


def test_killed_electron_sent_by_hand_is_named(frail):
    frail.register(deadly)
    futures = [frail.send(deadly, {"x": x, "how": "exit"}) for x in range(490, 510)]
    errors = [future.result(60).error for future in futures]
    assert [error and error.kind for error in errors] == [None] * 10 + ["killed"] + [None] * 9


def test_policy_applies_to_the_killed(frail, tmp_path):
    @atom
    def dies_once(x, path, context):
        if x == 3 and context.attempt == 1:
            os._exit(1)
        return context.attempt

    run = frail.map(dies_once, grid(x=range(6), path=[str(tmp_path)]), on_failure="retry").wait(60)
    assert run.errors.empty
    df = run.to_frame()
    assert df["result"].tolist() == [1, 1, 1, 2, 1, 1]


# -- spawners and singletons ----------------------------------------------------------------------


@atom
def child(n, folder):
    with Path(folder, f"{n}-{os.getpid()}-{time.monotonic_ns()}").open("w"):
        pass
    return n


@atom
def spawner(folder, context):
    sent = [
        context.conductor.send(Electron(child.id, {"n": n, "folder": folder})) for n in range(20)
    ]
    total = sum(future.result().value() for future in sent)
    first = Path(folder, "first")
    if not first.exists():
        first.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return total


def test_wait_spawner_whose_worker_died_gives_its_result_once(frail, shape, tmp_path):
    frail.register(child)
    run = frail.map(spawner, grid(folder=[str(tmp_path)])).wait(60)
    assert run.to_frame()["result"].tolist() == [sum(range(20))]
    assert nothing_left(shape)


def test_cancelled_spawner_leaves_nothing_on_the_scheduler(frail, shape, tmp_path):
    @atom
    def waits(n, gate, context):
        while not context.cancelled:
            time.sleep(0.01)

    @atom
    def sends(gate, context):
        sent = [
            context.conductor.send(Electron(waits.id, {"n": n, "gate": gate})) for n in range(9)
        ]
        return [future.result().error.kind for future in sent]

    frail.register(waits)
    run = frail.map(sends, grid(gate=[str(tmp_path)]))
    while len(shape.scheduler.tasks) < 2:
        PACE.wait(0.02)
    before = time.monotonic()
    run.cancel()
    run.wait(10)
    assert nothing_left(shape)
    assert time.monotonic() - before < 3


def test_children_of_a_free_spawner_outlive_it_and_their_failures_are_told(frail):
    @atom
    def fails(n):
        time.sleep(0.2)
        raise ValueError(f"child {n}")

    @atom
    def free(context):
        for n in range(3):
            context.conductor.send(Electron(fails.id, {"n": n}))
        return "sent"

    frail.register(fails)
    errors = frail.errors()
    assert frail.send(free).result(30).value() == "sent"
    told = {errors.get(30).message for _ in range(3)}
    assert told == {"child 0", "child 1", "child 2"}


class Tally(Atom):
    id = "tests.Tally"
    singleton = "cluster"

    def __init__(self):
        self.count = 0

    def process(self, context, conductor, electron):
        time.sleep(0.002)
        self.count += 1
        return {"count": self.count, "pid": os.getpid()}


def test_singleton_is_initialised_again_when_its_worker_dies(frail, shape):
    events = frail.events(buffer=10_000)
    run = frail.map(Tally, grid(x=range(1500)))
    while run.progress.done < 100:
        PACE.wait(0.02)
    os.kill(int(run.to_frame()["pid"].iloc[0]), signal.SIGKILL)
    df = run.wait(90).to_frame()
    assert run.errors.empty
    for _, group in df.groupby("pid"):
        counts = group["count"]
        assert counts.is_unique
    assert df["pid"].nunique() >= 2
    messages = [events.get(5).message for _ in range(len(events))]
    assert any("re-initialised" in message for message in messages)
    assert sum("singleton initialised" in message for message in messages) >= 2


# -- deaths from outside --------------------------------------------------------------------------


def test_workers_that_are_killed_cost_nothing(frail, shape, tmp_path):
    @atom
    def noted(x, folder):
        with Path(folder, str(os.getpid())).open("a") as file:
            file.write(f"{x}\n")
        until = time.perf_counter() + 0.0005
        while time.perf_counter() < until:
            pass
        return x

    run = frail.map(noted, grid(x=range(6000), folder=[str(tmp_path)]))
    for share in (0.2, 0.5):
        while run.progress.done < share * 6000:
            PACE.wait(0.01)
        shape.wait_for_workers(len(shape.worker_spec), timeout=60)
        os.kill(pids(shape)[0], signal.SIGKILL)
    assert run.wait(90).to_frame()["result"].tolist() == list(range(6000))
    lines = (int(line) for file in tmp_path.iterdir() for line in file.read_text().split())
    executions = Counter(lines)
    assert len(executions) == 6000
    # Only what was in the dead workers' hands.
    assert sum(count > 1 for count in executions.values()) < 3000
    assert nothing_left(shape)


def test_electrons_are_executed_after_one_was_cancelled_from_outside(frail, shape, gate, tmp_path):
    @atom
    def lingers(begun, gate):
        Path(begun).touch()
        while not Path(gate).exists():
            time.sleep(0.01)
        return 1

    payload = {"begun": str(tmp_path / "begun"), "gate": gate.path}
    future = frail.send(lingers, payload)
    while not (tmp_path / "begun").exists():
        PACE.wait(0.02)
    with Client(shape, set_as_default=False) as other:
        (key,) = filter(is_batch, shape.scheduler.tasks)
        other.cancel([Future(key, other)], force=True)
    with pytest.raises(ConductorError, match="cancelled from outside"):
        future.result(timeout=60)
    gate.open()
    assert frail.send(lingers, payload).result(timeout=60).value() == 1


def test_cancelling_without_workers_leaves_nothing_queued():
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Atomizer(DaskConductor(cluster)) as atomizer,
    ):
        run = atomizer.map(atom(lambda x: time.sleep(0.05)), grid(x=range(100)))
        next(iter(run))
        cluster.scale(0)
        while cluster.scheduler.workers:
            PACE.wait(0.02)
        run.cancel()
        assert run.wait(20).state == "cancelled"
        assert nothing_left(cluster)
        assert len(run.to_frame()) == 100


def test_restarting_all_workers_costs_neither_results_nor_atoms(gate):
    @atom
    def patient(x, gate):
        while not Path(gate).exists():
            time.sleep(0.01)
        return x

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Atomizer(DaskConductor(cluster), patient) as atomizer,
        DaskConductor(cluster) as conductor,
        Atomizer(conductor, patient) as other,
    ):
        payload = {"x": 7, "gate": gate.path}
        run = atomizer.map(patient, grid(x=range(100), gate=[gate.path]))
        sent = atomizer.send(patient, payload)
        while not any(worker.processing for worker in cluster.scheduler.workers.values()):
            PACE.wait(0.01)
        conductor.client.restart()
        gate.open()
        frame = run.wait(60).to_frame(metadata=True)
        assert frame["result"].tolist() == list(range(100))
        assert (frame["attempts"] == 1).all()
        assert sent.result(60).value() == 7
        assert other.send(patient, payload).result(60).value() == 7
        assert nothing_left(cluster)


def test_what_a_worker_executes_that_has_just_taken_the_place_of_another_is_not_taken_from_it(
    tmp_path,
):
    conductor = DaskConductor(workers=1)
    with Atomizer(conductor, marked) as atomizer:
        run = atomizer.map(marked, {"i": [0], "seconds": [1.5], "folder": [str(tmp_path)]})
        wait_until(lambda: counted(tmp_path, "begun"))
        conductor._watch.workers.clear()  # as after a death, until workers are looked at again
        run.pause()
        run.resume()
        run.wait(60)
    assert counted(tmp_path, "begun") == counted(tmp_path, "ended") == {0: 1}
