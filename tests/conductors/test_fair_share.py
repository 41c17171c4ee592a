"""Several runs, and several clients, on the same threads."""

import json
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from distributed import Client, LocalCluster
from patience import wait_until

from atomizer_dask import Atomizer, DaskConductor, Electron, MemoryConductor, Run, atom, grid
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import ONCE
from atomizer_dask.conductors.fair_share import due_seconds
from atomizer_dask.policy import priority_of

SECOND = Path(__file__).parents[1] / "support" / "second_notebook.py"
WITHIN = 60.0  # seconds, in which anything must happen
LONG = 10**6  # electrons of 10 ms, which nobody waits for


@atom(id="tests.sharing.note")
def note(x, who, log, seconds, gate):
    """Say in a file that it was its turn, and wait at a gate where there is one."""
    while gate and not Path(gate).exists():
        time.sleep(0.005)
    with open(log, "a") as file:
        file.write(f"{who}\n")
    time.sleep(seconds)
    return x


@atom(id="tests.sharing.parent")
def parent(x, log, *, context):
    inputs = {"x": x, "who": "child", "log": log, "seconds": 0.0, "gate": ""}
    context.conductor.send(Electron(note.id, inputs))


@atom(id="tests.sharing.nap")
def nap(x):
    time.sleep(0.01)
    return x


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log"
    path.touch()
    return path


@pytest.fixture
def one_thread(request):
    """An atomizer over a single thread, in this process or on a cluster of its own."""
    conductor = MemoryConductor(1) if request.param == "memory" else DaskConductor(workers=1)
    with closing(Atomizer(conductor, note, parent)) as atomizer:
        yield atomizer


each_conductor = pytest.mark.parametrize(
    "one_thread", ["memory", pytest.param("dask", marks=pytest.mark.dask)], indirect=True
)


def turns(log):
    return log.read_text().split()


def notes(count, who, log, seconds=0.0, gate=""):
    return grid(x=range(count), who=[who], log=[str(log)], seconds=[seconds], gate=[gate])


@contextmanager
def second_notebook(address, deed):
    process = subprocess.Popen(
        [sys.executable, str(SECOND), address, deed],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def told(process):
    return json.loads(process.stdout.readline())


# -- whose turn it is ----------------------------------------------------------------------------


def test_run_that_begins_goes_before_what_others_have_queued(log):
    with Atomizer(MemoryConductor(2), note) as atomizer:
        long = atomizer.map(note, notes(10_000, "long", log, 0.1))
        wait_until(lambda: long.progress.done > 10, "the long run does not begin")
        before = len(turns(log))
        atomizer.map(note, notes(4, "small", log, 0.1)).wait()
        meanwhile = turns(log)[before:].count("long")
        long.cancel()
    # Two threads are in the midst of a quarter of a second of it, and one goes on before the other
    # has done with the small one. Of another quarter of a second each there is none.
    assert meanwhile <= 9


def test_two_long_runs_share_equally(log):
    with Atomizer(MemoryConductor(2), note) as atomizer:
        runs = [atomizer.map(note, notes(10_000, who, log, 0.01)) for who in ("first", "second")]
        wait_until(lambda: all(run.progress.done > 20 for run in runs), "one of them starves")
        before = len(turns(log))
        wait_until(lambda: len(turns(log)) > before + 400, "they do not go on")
        meanwhile = turns(log)[before:]
        for run in runs:
            run.cancel()
    assert 0.25 < meanwhile.count("first") / len(meanwhile) < 0.75


@each_conductor
def test_higher_priority_goes_first(one_thread, log, gate):
    blocker = one_thread.map(note, notes(1, "blocker", log, gate=gate.path))
    wait_until(lambda: blocker.progress.running, "it does not begin")
    runs = [
        one_thread.map(note, notes(3, str(priority), log), priority=priority)
        for priority in (0, -2, 7)
    ]
    sent = one_thread.send(
        note, {"x": 0, "who": "1", "log": str(log), "seconds": 0.0, "gate": ""}, priority=1
    )
    wait_until(lambda: all(run.progress.pending == 0 for run in runs), "they are not sent")
    wait_until(sent.running, "it is not sent")
    settle(one_thread)
    gate.open()
    one_thread.wait(WITHIN)
    assert turns(log) == ["blocker", *["7"] * 3, "1", *["0"] * 3, *["-2"] * 3]


def settle(atomizer):
    """See to it that what has been sent has arrived at the worker."""
    conductor = next(iter(atomizer.conductors.values()))
    if isinstance(conductor, DaskConductor):
        wait_until(lambda: conductor.client.run_on_scheduler(processing) >= 8, "it does not arrive")
        conductor.client.run(len, ())  # along the same way, and after it


def processing(dask_scheduler):
    return sum(len(worker.processing) for worker in dask_scheduler.workers.values())


class Recording(MemoryConductor):
    """Says which priorities batches have."""

    def __init__(self):
        super().__init__(1)
        self.priorities = {}

    def submit(self, batch, post):
        self.priorities.setdefault(batch.atom_id, set()).add(batch.origin.priority)
        super().submit(batch, post)


def test_children_inherit_the_priority(log):
    conductor = Recording()
    with Atomizer(conductor, note, parent) as atomizer:
        atomizer.map(parent, grid(x=[0, 1], log=[str(log)]), priority=5)
        atomizer.send(parent, {"x": 2, "log": str(log)}, priority=-3)
    assert conductor.priorities == {parent.id: {5, -3}, note.id: {5, -3}}
    assert turns(log) == ["child"] * 3


@pytest.mark.parametrize(
    ("priority", "error"),
    [(1.5, TypeError), ("high", TypeError), (True, TypeError), (1001, ValueError)],
)
def test_priority_that_is_none_is_refused(local, priority, error):
    with pytest.raises(error, match="priority must be"):
        local.map(nap, grid(x=[1]), priority=priority)
    with pytest.raises(error, match="priority must be"):
        Electron("a", priority=priority)


def test_store_keeps_the_priority(local, tmp_path):
    local.register(nap)
    local.map(nap, grid(x=[1]), priority=3, store=tmp_path / "store").wait()
    again = local.attach(tmp_path / "store").wait()
    assert again.provenance["options"]["priority"] == 3
    local.attach(tmp_path / "store", priority=4).wait()
    assert Run.open(tmp_path / "store").provenance["options"]["priority"] == 4


def test_electrons_that_would_wait_as_well_come_later_the_more_wait():
    dues = [due_seconds(0.0, 0, waiting, waited=10.0) for waiting in (0.0, 1.0, 2.0)]
    assert dues == [0.0, 10.0, 20.0]
    assert due_seconds(0.0, 2, 0.0, 0.0) < due_seconds(0.0, 1, 0.0, 0.0) < 0


def test_priority_is_a_whole_number():
    assert priority_of(-1000) == -1000


# -- two clients ---------------------------------------------------------------------------------


@pytest.mark.dask
@pytest.mark.parametrize("deed", ["small", "small_by_hand"])
def test_small_work_of_another_client_ends_while_a_long_run_goes_on(cluster, deed):
    with Atomizer(DaskConductor(cluster.scheduler_address), nap) as atomizer:
        run = atomizer.map(nap, grid(x=range(LONG)))
        wait_until(lambda: run.progress.done > 100, "the long run does not begin")
        with second_notebook(cluster.scheduler_address, deed) as second:
            facts = told(second)
            assert facts.pop("right")
            assert all(seconds < WITHIN for seconds in facts.values())
            assert run.state == "running"
            assert second.wait(WITHIN) == 0
        done = run.progress.done
        wait_until(lambda: run.progress.done > done + 100, "the long run does not go on")
        run.cancel()


@pytest.mark.dask
@pytest.mark.parametrize("end", ["cancel", "hang", "killed"])
def test_end_of_one_client_leaves_the_other_alone(cluster, end):
    """Cancelled and closed, closed in the midst of it, and killed."""
    address = cluster.scheduler_address
    with Client(address, set_as_default=False) as client:
        before = client.run_on_scheduler(kept)
        with Atomizer(DaskConductor(address), nap) as atomizer:
            run = atomizer.map(nap, grid(x=range(1000)))
            with second_notebook(address, "hang" if end == "killed" else end) as second:
                of_run = told(second)["run"].rpartition("-")[2]
                assert any(of_run in name for name in client.run_on_scheduler(prefixes))
                if end == "killed":
                    second.kill()
                else:
                    second.stdin.write("\n")
                    second.stdin.flush()
                second.wait(WITHIN)
                frame = run.wait(WITHIN).to_frame()
                assert frame["result"].tolist() == list(range(1000))
                assert run.errors.empty
            assert atomizer.send(nap.id, {"x": 5}).result(WITHIN).value() == 5
        wait_until(lambda: client.run_on_scheduler(kept) == before, "something of them is kept")
        wait_until(lambda: not any(client.run(held).values()), "the workers hold something")


def kept(dask_scheduler):
    """What the scheduler keeps of anybody's."""
    tasks = [key for key in dask_scheduler.tasks if key[-1] == ONCE]
    topics = [name for name in dask_scheduler._broker._topics if name.startswith("atomizer-")]
    shown = [name for name in dask_scheduler.task_prefixes if "nap·" in name]
    return len(tasks), len(topics), shown


def prefixes(dask_scheduler):
    return list(dask_scheduler.task_prefixes)


def held(dask_worker):
    return len(dask_worker.data)


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.dask
def test_dashboard_tells_runs_apart(cluster, gate, log):
    with Atomizer(DaskConductor(cluster.scheduler_address), note) as atomizer:
        sweep = notes(40, "x", log, gate=gate.path)
        runs = [
            atomizer.map(note, sweep),
            atomizer.map(note, sweep),
            atomizer.map(note, sweep, name="cold - start 2"),
        ]
        wait_until(lambda: all(run.progress.running for run in runs), "they do not begin")
        client = next(iter(atomizer.conductors.values())).client
        wait_until(lambda: len(client.run_on_scheduler(groups)) >= 12, "their tasks do not arrive")
        tasks = client.run_on_scheduler(groups)
        gate.open()
        atomizer.wait(WITHIN)
    names = {prefix for prefix, _, _ in tasks}
    assert len(names) == len(runs)
    for run in runs:
        assert any(name.endswith("." + run.id.rpartition("-")[2]) for name in names)
    assert sum(name.startswith("note·cold_start_2·") for name in names) == 1
    # Of a large group Dask would keep tasks back on the scheduler.
    assert all(size == 1 for _, _, size in tasks)
    assert max(len(group) for _, group, _ in tasks) < 90


def groups(dask_scheduler):
    return [
        (group.prefix.name, name, len(group))
        for name, group in dask_scheduler.task_groups.items()
        if "note·" in name
    ]


@pytest.mark.dask
def test_tasks_left_in_flight_are_found_by_who_goes_on(tmp_path):
    """Their names are made again from what the store says."""
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        with Atomizer(DaskConductor(address), nap) as atomizer:
            run = atomizer.map(nap, grid(x=range(400)), store=tmp_path / "store", name="a - b")
            wait_until(lambda: run.progress.done > 10, "it does not begin")
            run.suspend()
        with Atomizer(DaskConductor(address), nap) as atomizer:
            frame = atomizer.attach(tmp_path / "store").wait(WITHIN).to_frame()
            assert frame["result"].tolist() == list(range(400))
            client = next(iter(atomizer.conductors.values())).client
            wait_until(lambda: not client.run_on_scheduler(kept)[0], "tasks are left")
