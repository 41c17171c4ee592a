"""Workers whose wall time ends in the middle of a run."""

import asyncio
import re
import time
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from types import SimpleNamespace

import numpy as np
import pytest
from distributed import LocalCluster
from patience import wait_until
from shortlived import counted, marked, workers_with

from atomizer_dask import Atomizer, DaskConductor, Electron, MemoryConductor, Run, atom
from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.conductors.batch_size import Sizing
from atomizer_dask.conductors.dask.walltime import WallTime, WorkerShutdown
from atomizer_dask.execution.batch import Batch, Origin
from atomizer_dask.sweeps.inputs import Columns

pytestmark = pytest.mark.dask


def test_wall_times_cost_no_result_and_no_electron_its_time(tmp_path):
    (marks := tmp_path / "marks").mkdir()
    electrons = 40
    seconds = [0.05 + 1.2 * (7 * i % electrons) / electrons for i in range(electrons)]
    options = "--nworkers 2 --nthreads 2 --lifetime 8s --lifetime-stagger 1s --lifetime-restart"
    with (
        workers_with(tmp_path, *options.split()) as conductor,
        Atomizer(conductor, marked) as atomizer,
    ):
        events = atomizer.events(buffer=10_000)
        sweep = {"i": range(electrons), "seconds": seconds, "folder": [str(marks)] * electrons}
        frame = atomizer.map(marked, sweep).wait(100).to_frame(metadata=True)
    assert frame["result"].tolist() == list(range(electrons))
    assert (frame["attempts"] == 1).all()
    assert counted(marks, "ended") == dict.fromkeys(range(electrons), 1)
    messages = [event.message for event in events]
    lives = 2 + sum(" joined" in message for message in messages)
    cut = counted(marks, "begun").total() - electrons  # on a busy machine some take longer
    assert cut <= 2 * lives
    told = [message for message in messages if "no more electrons" in message]
    assert told
    assert "its wall time ends in" in told[0]


@contextmanager
def short_lived(seconds, **options):
    """Give an atomizer on a worker of one thread that lives for some seconds, again and again."""
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            lifetime=f"{seconds}s",
            lifetime_restart=True,
            dashboard_address=None,
            **options,
        ) as cluster,
        Atomizer(DaskConductor(cluster), marked) as atomizer,
    ):
        yield atomizer


def test_an_electron_longer_than_any_wall_time_fails_with_a_hint(tmp_path):
    with short_lived(5) as atomizer:
        sweep = {"i": [0, 1, 2], "seconds": [60, 0, 0], "folder": [str(tmp_path)] * 3}
        run = atomizer.map(marked, sweep).wait(100)
    assert run.to_frame()["result"].tolist()[1:] == [1, 2]
    (error,) = run.errors.to_dict("records")
    assert (error["i"], error["kind"], error["type"]) == (0, "timeout", "WallTimeError")
    assert "give workers a longer lifetime or time limit" in error["message"]
    assert counted(tmp_path, "begun")[0] <= 3  # cut short, at most once more, and the full life


def test_an_electron_that_needs_most_of_a_wall_time_gets_it(tmp_path):
    with short_lived(10) as atomizer:
        seconds = [0.1] * 20 + [5.0] + [0.1] * 20
        sweep = {"i": range(41), "seconds": seconds, "folder": [str(tmp_path)] * 41}
        run = atomizer.map(marked, sweep).wait(100)
    assert run.errors.empty
    assert run.to_frame()["result"].tolist() == list(range(41))


def test_a_worker_leaves_before_its_job_ends(tmp_path):
    (marks := tmp_path / "marks").mkdir()
    # As Slurm itself tells it; the suite of Slurm has the real one.
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_END_TIME": str(int(time.time()) + 12)}
    with (
        workers_with(tmp_path, "--nthreads", "1", environment=job) as conductor,
        Atomizer(conductor, marked) as atomizer,
    ):
        sweep = {"i": range(100), "seconds": [0.5] * 100, "folder": [str(marks)] * 100}
        events = atomizer.events(buffer=1000)
        run = atomizer.map(marked, sweep)
        while not re.match("worker .* left", events.get(timeout=60).message):
            pass
        assert conductor.threads == 0
        assert counted(marks, "ended") == counted(marks, "begun")
        assert run.progress.done == len(counted(marks, "ended"))
        run.cancel()


def test_a_detached_run_outlives_its_workers(tmp_path):
    (marks := tmp_path / "marks").mkdir()
    store = str(tmp_path / "store")
    options = "--nworkers 2 --nthreads 1 --lifetime 6s --lifetime-stagger 1s --lifetime-restart"
    with (
        workers_with(tmp_path, *options.split()) as conductor,
        Atomizer(conductor, marked) as atomizer,
    ):
        sweep = {"i": range(50), "seconds": [0.3] * 50, "folder": [str(marks)] * 50}
        run = atomizer.map(marked, sweep, store=store)
        next(iter(run))  # by now there are workers
        run.detach()
        while (run := Run.open(store)).state != "finished":
            time.sleep(0.2)
    assert run.to_frame()["result"].tolist() == list(range(50))
    assert counted(marks, "ended") == dict.fromkeys(range(50), 1)


@atom(id="tests.forgets")
def forgets(i, seconds, folder, context):
    fields = {"i": i, "seconds": seconds, "folder": folder}
    context.conductor.send(Electron("shortlived.marked", fields))
    return i


@pytest.mark.parametrize("workers", [1, 2])  # where it is executed by the others, too
def test_what_an_electron_sent_outlives_its_worker(tmp_path, workers):
    (marks := tmp_path / "marks").mkdir()
    options = f"--nworkers {workers} --nthreads 2 --lifetime 6s --lifetime-restart"
    electrons = 12 * workers
    with (
        workers_with(tmp_path, *options.split()) as conductor,
        Atomizer(conductor, forgets, marked) as atomizer,
    ):
        sweep = {"seconds": [1.0] * electrons, "folder": [str(marks)] * electrons}
        atomizer.map(forgets, {"i": range(electrons), **sweep}).wait(60)
        deadline = time.monotonic() + 90
        while len(counted(marks, "ended")) < electrons and time.monotonic() < deadline:
            time.sleep(0.1)
    assert counted(marks, "ended") == dict.fromkeys(range(electrons), 1)


@atom(id="tests.large")
def large(i, seconds, folder):
    marked(i, seconds, folder)
    return np.full(100_000, i, dtype=float)


def test_large_results_are_not_thrown_away_with_the_electron_after_them(tmp_path):
    (marks := tmp_path / "marks").mkdir()
    electrons, longest = 100, 40
    seconds = [0.004] * electrons
    seconds[longest] = 60.0
    options = "--nthreads 1 --lifetime 6s --lifetime-restart"
    with (
        workers_with(tmp_path, *options.split()) as conductor,
        Atomizer(conductor, large) as atomizer,
    ):
        sweep = {"i": range(electrons), "seconds": seconds, "folder": [str(marks)] * electrons}
        run = atomizer.map(large, sweep).wait(100)
    assert run.errors["i"].tolist() == [longest]
    ended = dict.fromkeys(set(range(electrons)) - {longest}, 1)
    assert counted(marks, "ended") == ended


# -- how a worker leaves ---------------------------------------------------------------------


class Exited(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("ends_in_time", [False, True])
@pytest.mark.parametrize("restarts", [False, True])
def test_electrons_end_with_the_process_and_those_that_ended_before_are_told_of(
    monkeypatch, ends_in_time, restarts
):
    did = []

    def tell():
        if lease.has_unreported:
            did.append("told")
            lease.has_unreported = False

    lease = SimpleNamespace(surrender=lambda: None, hand_over=tell, has_unreported=False)
    leases = [lease]

    async def retire(workers, close_workers, remove):
        did.append("removed" if remove else "emptied")
        lease.has_unreported = True  # an electron ends just now
        if ends_in_time:  # and was the last
            leases.clear()

    async def close(nanny, **_):
        did.append(f"closed, its nanny too: {nanny}")

    def end(code):
        did.append("ended")
        raise Exited

    @asynccontextmanager
    async def rpc(address):
        async def close_gracefully(reason):
            did.append("told its nanny")

        yield SimpleNamespace(close_gracefully=close_gracefully)

    async def hand_on():
        did.append("handed on")

    def log_event(topic, msg):
        did.append("the scheduler knows")
        worker.stream_handlers["atomizer-heard"](number=msg["number"])

    worker = SimpleNamespace(
        address="tcp://here",
        nanny="tcp://nanny",
        status=SimpleNamespace(name="closing_gracefully"),
        log_event=log_event,
        stream_handlers={},
        lifetime_restart=restarts,
        data={},
        state=SimpleNamespace(executing=(), long_running=(), tasks={}),
        scheduler=SimpleNamespace(retire_workers=retire),
        rpc=rpc,
        close=close,
    )
    monkeypatch.setattr("os._exit", end)
    leaving = WorkerShutdown(
        worker, lambda: leases, emit=None, channel_of=None, hand_on=hand_on, keep=None
    )
    with suppress(Exited):
        asyncio.run(leaving._leave())
    assert did == [
        *("handed on", "the scheduler knows", "emptied"),
        *([] if restarts or ends_in_time else ["told its nanny"]),
        *([] if ends_in_time else ["told"]),
        *("handed on", "the scheduler knows"),
        f"closed, its nanny too: {not restarts}" if ends_in_time else "ended",
    ]


def leave(dask_worker):
    dask_worker.loop.add_callback(dask_worker.extensions["atomizer"].leaving._leave)


def test_what_nobody_has_fetched_is_in_the_store_once_a_worker_has_left(tmp_path, monkeypatch):
    (marks := tmp_path / "marks").mkdir()
    electrons = 20
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        closing(Atomizer(conductor := DaskConductor(cluster), marked)) as atomizer,
    ):
        monkeypatch.setattr(conductor._tasks, "post", lambda *_: None)  # nobody hears of it
        sweep = {"seconds": [0] * electrons, "folder": [str(marks)] * electrons}
        atomizer.map(marked, {"i": range(electrons), **sweep}, store=tmp_path / "store")
        (worker,) = cluster.scheduler.workers.values()
        wait_until(lambda: worker.has_what and not worker.processing, "some have ended")
        assert counted(marks, "ended")
        conductor.client.run(leave)
        wait_until(lambda: worker.address not in cluster.scheduler.workers)
        with Atomizer(MemoryConductor(1), marked) as other:
            run = other.attach(tmp_path / "store", takeover=True).wait(60)
    assert run.to_frame()["result"].tolist() == list(range(electrons))
    assert counted(marks, "ended") == dict.fromkeys(range(electrons), 1)


# -- what a worker takes ---------------------------------------------------------------------


@pytest.fixture
def leaving():
    """A `WorkerShutdown` of a worker with ten seconds left of twenty, and what it told."""
    told = []
    worker = SimpleNamespace(
        address="tcp://here",
        loop=SimpleNamespace(add_callback=lambda *_: None),
        stream_handlers={},
        log_event=lambda topic, msg: told.append((topic, msg)),
    )
    leaving = WorkerShutdown(
        worker,
        leases=list,
        emit=lambda channel, event: told.append((channel, event)),
        channel_of=lambda _: "channel",
        hand_on=None,
        keep=None,
    )
    leaving.wall_time = WallTime(time.monotonic() + 10, 20)
    leaving.told = told
    return leaving


def batch_of(longest=0.0, needs=0.0):
    """Return a batch of two electrons that take so long."""
    batch = Batch(
        key="k",
        atom_id="a",
        version="v",
        inputs=Columns({"x": range(2)}, 2),
        positions=range(2),
        stream=RandomStream(0),
        origin=Origin("channel"),
        seconds=5.0,
        longest=longest,
    )
    return Batch(
        **{name: getattr(batch, name) for name in batch.__slots__}
        | {"terms": batch.terms._replace(min_seconds=needs)}
    )


def test_what_would_end_in_time_is_taken(leaving):
    assert leaving.takes(batch_of(longest=5))
    assert not leaving.takes(batch_of(longest=9))
    assert [event.fields["longest"] for _, event in leaving.told[-1:]] == [9]


def test_long_electrons_do_not_keep_a_worker_idle_for_most_of_its_life(leaving):
    leaving.wall_time = WallTime(time.monotonic() + 11, 20)
    assert leaving.takes(batch_of(longest=100))


def test_what_was_cut_short_is_left_to_others_without_a_word(leaving):
    assert not leaving.takes(batch_of(needs=12))
    assert not leaving.told


def test_a_worker_that_has_just_begun_refuses_nothing_for_none_would_have_more(leaving):
    now = time.monotonic()
    leaving.wall_time = WallTime(now + 3, 20, ready=now - 1)
    assert leaving.takes(batch_of(needs=12, longest=100))
    leaving.wall_time = WallTime(now + 3, 20, ready=now - 100)
    assert not leaving.takes(batch_of(longest=100))


def test_workers_that_need_much_of_their_life_to_start_keep_nothing_waiting_for_ever(tmp_path):
    """Four fifths of a life, after which an electron fails, are more than it can have there."""
    options = ["--nthreads", "1", "--lifetime", "6s", "--lifetime-restart", "--preload"]
    (tmp_path / "slow.py").write_text(
        "import time\nasync def dask_setup(worker):\n    time.sleep(2.5)\n"
    )
    with (
        workers_with(tmp_path, *options, str(tmp_path / "slow.py")) as conductor,
        Atomizer(conductor, marked) as atomizer,
    ):
        sweep = {"i": [0, 1], "seconds": [60, 0], "folder": [str(tmp_path)] * 2}
        run = atomizer.map(marked, sweep).wait(100)
    (error,) = run.errors.to_dict("records")
    assert (error["i"], error["type"]) == (0, "WallTimeError")
    assert counted(tmp_path, "begun")[0] <= 3


def test_the_time_box_shrinks_towards_the_end(leaving):
    assert leaving.seconds_for(batch_of(longest=1)) == 5
    leaving.wall_time = WallTime(time.monotonic() + 3, 20)
    assert 0 < leaving.seconds_for(batch_of(longest=1)) <= 3 - 1
    assert leaving.seconds_for(batch_of(longest=4)) == 0


def test_the_longest_electron_is_remembered_for_some_hundred():
    sizing = Sizing()
    sizing.note_longest(6.0)
    sizing.learn(10, 20.0)
    assert sizing.longest > 5
    sizing.learn(2000, 20.0)
    assert sizing.longest < 0.1
