"""Chaos: workers are killed, stopped, interrupted, join and leave, and nothing may be lost.

A seed decides what happens, as far as anything can. ``make chaos SEEDS=50`` runs seeds 0 to 49;
``ATOMIZER_CHAOS_SEEDS=7 python -m pytest tests/test_chaos.py`` just seed 7.
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import psutil
import pytest
from distributed import LocalCluster, Status

from atomizer_dask import Atomizer, DaskConductor, MemoryConductor, atom, zipped

ELECTRONS = 20_000
WORKERS = 3
CHAOS_SECONDS = 9.0  # of disturbances at most: a run that never gets anywhere never ends
WITHIN = 60.0  # seconds, in which a run must end
SETTLED = 10.0  # seconds, in which nothing may be left of a run that has ended
GOOD, RAISES, RAISES_ONCE, EXITS, HANGS = range(5)

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]


def seeds():
    """The seeds that ATOMIZER_CHAOS_SEEDS names, as in 0-49 or 3,7; else a few."""
    chosen = []
    for part in os.environ.get("ATOMIZER_CHAOS_SEEDS", "0-1").split(","):
        first, _, last = part.partition("-")
        chosen += range(int(first), int(last or first) + 1)
    return chosen


# -- what the electrons do -----------------------------------------------------------------------


def misbehave(x, deed, attempt):
    if deed == RAISES or (deed == RAISES_ONCE and attempt == 1):
        raise ValueError(f"bad {x}")
    if deed == EXITS:
        os._exit(1)
    if deed == HANGS:
        time.sleep(3600)


def burn(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


@atom(id="tests.chaos.one")
def one(x, deed, seconds, *, context):
    burn(seconds)
    misbehave(x, deed, context.attempt)
    return 3 * x + 1


@atom(id="tests.chaos.isolated", isolation="process")
def isolated(x, deed, seconds, *, context):
    burn(seconds)
    misbehave(x, deed, context.attempt)
    return 3 * x + 1


@atom(id="tests.chaos.many", vectorized=True)
def many(x, deed, seconds, *, context):
    for row in np.flatnonzero(deed):
        misbehave(x[row], deed[row], context.attempt)
    burn(seconds.sum())
    return 3 * x + 1


# -- what a seed decides -------------------------------------------------------------------------


@dataclass
class Plan:
    """All that a seed decides: the electrons, how they are sent, and what befalls them."""

    seed: int
    workers: bool  # that can be killed, join and leave
    counts: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self.rng = rng = random.Random(f"{self.seed} {self.workers}")
        self.atom = rng.choice([one, one, many, isolated])
        self.timeout = rng.choice([None, None, "5s"])
        self.on_failure = rng.choice(["fail", "retry", "requeue"])
        self.attempts = 1 if self.on_failure == "fail" else 2
        contained = self.workers or self.timeout is not None or self.atom is isolated
        exits = 2 if contained and rng.random() < 0.25 else 0
        # A second attempt at it would take another six seconds.
        hangs = 1 if self.timeout and self.attempts == 1 and rng.random() < 0.5 else 0
        once = ELECTRONS // 200 if self.attempts > 1 else 0
        deeds = [RAISES] * (ELECTRONS // 100) + [RAISES_ONCE] * once
        deeds += [EXITS] * exits + [HANGS] * hangs
        self.deeds = np.full(ELECTRONS, GOOD)
        self.deeds[rng.sample(range(ELECTRONS), len(deeds))] = deeds
        self.seconds = [rng.uniform(0.3e-3, 0.5e-3) for _ in range(ELECTRONS)]
        # A child that is killed while its electron hangs may hide that it hangs.
        self.acts = {"pause": 2, "flicker": 1, "interrupt": 2, "child": 0 if hangs else 1}
        if self.workers:
            self.acts |= {"kill": 5, "kill all": 1, "scale": 3, "stop": 2}

    @property
    def kinds(self):
        """The expected kind of failure by position."""
        kinds = {RAISES: "exception", EXITS: "killed", HANGS: "timeout"}
        return {int(i): kinds[d] for i, d in enumerate(self.deeds) if d in kinds}

    def next_act(self):
        """After how many seconds what happens."""
        act = self.rng.choices([*self.acts], [*self.acts.values()])[0]
        return self.rng.uniform(0.2, 1.2), act

    def __str__(self):
        deeds = Counter(self.deeds.tolist())
        extras = f"{deeds[EXITS]} exits, {deeds[HANGS]} hangs"
        return (
            f"seed {self.seed} on {'dask' if self.workers else 'memory'}: {self.atom.id}, "
            f"timeout {self.timeout}, {self.on_failure}, {extras}"
        )


# -- what befalls them ---------------------------------------------------------------------------


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def stop(pid, seconds):
    """Stop a process, and have it go on some seconds later."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        later = threading.Timer(seconds, go_on, [pid])
        later.daemon = True
        later.start()
        return True
    return False


def go_on(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def interrupt(pids):
    """Send processes and all that they have started what Ctrl-C does, and return to how many."""
    count = 0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGINT)
                    count += 1
    return count


def worker_pids(cluster):
    nannies = [nanny for nanny in list(cluster.workers.values()) if nanny.process is not None]
    return [n.process.pid for n in nannies if n.process.status == Status.running and n.process.pid]


def children_of(pid):
    """The processes that execute isolated electrons, and the one that forks them."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children():
            if "run_zygote" in " ".join(child.cmdline()):
                inmates = [inmate.pid for inmate in child.children()]
                found += [child.pid, *inmates]
    return sorted(found)


def pause(run, seconds):
    run.pause()
    run.join(seconds)
    run.resume()


def flicker(run, seconds):
    """Pause and resume for some seconds, and return how often."""
    until, times = time.monotonic() + seconds, 0
    while time.monotonic() < until and not run.join(0.005):
        pause(run, 0.005)
        times += 1
    return times


def disturb(plan, run, cluster=None):
    """Do to a run, and to the cluster, what the plan says, until the run has ended."""
    rng, counts = plan.rng, plan.counts
    until = time.monotonic() + CHAOS_SECONDS
    while time.monotonic() < until:
        seconds, act = plan.next_act()
        if run.join(seconds):
            return
        pids = worker_pids(cluster) if cluster else [os.getpid()]
        if act == "pause":
            counts["pauses"] += 1
            pause(run, rng.uniform(0.0, 0.8))
        elif act == "flicker":
            counts["pauses"] += flicker(run, rng.uniform(0.1, 0.5))
        elif act == "interrupt":
            counts["interrupts"] += interrupt(pids if cluster else children_of(os.getpid()))
        elif act == "kill" and pids:
            counts["kills"] += kill(rng.choice(pids))
        elif act == "kill all":
            counts["kills"] += sum(map(kill, pids))
            # For some seconds nobody is there, and then somebody is.
            counts["pauses"] += flicker(run, rng.uniform(0.0, 3.0))
        elif act == "stop" and pids:
            counts["stops"] += stop(rng.choice(pids), rng.choice([0.5, 2.0, 6.0]))
        elif act == "child":
            children = [child for pid in pids for child in children_of(pid)]
            counts["children killed"] += bool(children) and kill(rng.choice(children))
        elif act == "scale":
            before, after = len(cluster.workers), rng.choice([2, 3, 4])
            counts["joins"] += max(0, after - before)
            counts["leaves"] += max(0, before - after)
            cluster.scale(after)


def wait_until(holds, seconds, otherwise):
    """Wait for something that nobody tells of."""
    until, never = time.monotonic() + seconds, threading.Event()
    while not holds():
        assert time.monotonic() < until, otherwise()
        never.wait(0.05)


# -- what must hold afterwards -------------------------------------------------------------------


def check(plan, run):
    run.wait(WITHIN)
    assert run.state == "finished"
    frame = run.to_frame(metadata=True)
    assert frame.index.tolist() == list(range(ELECTRONS))
    assert frame["id"].tolist() == [f"{run.id}-{i}" for i in range(ELECTRONS)]
    assert frame["x"].tolist() == list(range(ELECTRONS))
    failed = frame["result"].isna()
    kinds = plan.kinds
    assert np.flatnonzero(failed).tolist() == sorted(kinds)
    assert (frame["result"] == 3 * frame["x"] + 1)[~failed].all()
    twice = (plan.deeds != GOOD) & (plan.attempts == 2)
    assert frame["attempts"].tolist() == np.where(twice, 2, 1).tolist()
    errors = run.errors
    assert errors["kind"].to_dict() == kinds
    assert (errors["attempts"] == plan.attempts).all()
    raised = errors[errors["kind"] == "exception"]
    assert raised["message"].tolist() == [f"bad {x}" for x in raised.index]
    assert (run.progress.done, run.progress.failed) == (ELECTRONS - len(kinds), len(kinds))


def check_usable(atomizer):
    again = atomizer.map(one, zipped(x=range(100), deed=[GOOD] * 100, seconds=[0.0] * 100))
    assert again.wait(WITHIN).to_frame()["result"].tolist() == [3 * x + 1 for x in range(100)]


def check_nothing_left(cluster):
    scheduler = cluster.scheduler
    wait_until(
        lambda: not scheduler.tasks,
        SETTLED,
        lambda: f"left on the scheduler: {[*scheduler.tasks.values()][:5]}",
    )
    busy = [worker for worker in [*scheduler.workers.values()] if worker.processing]
    assert not busy


@contextlib.contextmanager
def told(plan, capsys):
    """Tell in one line what happened, and where it failed how to do just that again."""
    began = time.perf_counter()
    ended = "failed"
    try:
        yield
        ended = "passed"
    except BaseException as error:
        error.add_note(
            f"{plan}, {dict(plan.counts)}; to run just this one: "
            f"ATOMIZER_CHAOS_SEEDS={plan.seed} python -m pytest tests/test_chaos.py "
            f"-k {'dask' if plan.workers else 'memory'}"
        )
        raise
    finally:
        counts = ", ".join(f"{count} {name}" for name, count in plan.counts.items() if count)
        seconds = time.perf_counter() - began
        with capsys.disabled():
            print(f"\nchaos: {plan}: {counts or 'undisturbed'}; {seconds:.1f} s, {ended}")


def start(plan, atomizer):
    inputs = zipped(x=np.arange(ELECTRONS), deed=plan.deeds, seconds=plan.seconds)
    return atomizer.map(
        plan.atom,
        inputs,
        timeout=plan.timeout,
        on_failure=plan.on_failure,
        max_attempts=plan.attempts,
    )


@pytest.mark.dask
@pytest.mark.parametrize("seed", seeds())
def test_nothing_is_lost_on_dask(seed, capsys):
    plan = Plan(seed, workers=True)
    with (
        told(plan, capsys),
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Atomizer(DaskConductor(cluster), one, many, isolated) as atomizer,
    ):
        run = start(plan, atomizer)
        disturb(plan, run, cluster)
        check(plan, run)
        check_nothing_left(cluster)
        cluster.scale(WORKERS)
        check_usable(atomizer)
        check_nothing_left(cluster)


@pytest.mark.parametrize("seed", seeds())
def test_nothing_is_lost_in_memory(seed, capsys):
    plan = Plan(seed, workers=False)
    with told(plan, capsys), Atomizer(MemoryConductor(2), one, many, isolated) as atomizer:
        run = start(plan, atomizer)
        disturb(plan, run)
        check(plan, run)
        check_usable(atomizer)
