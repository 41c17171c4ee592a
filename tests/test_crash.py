"""Crash: client, scheduler and workers are killed with SIGKILL, and the run is attached to again.

All are processes of their own. The atoms count themselves: each process that executes electrons
appends a record of each to a file of its own, so that a kill can at most cut the last one.

A seed decides who is killed when, as far as anything can: ``ATOMIZER_CRASH_SEEDS=0-49`` runs
more than one.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import psutil
import pytest
from distributed import Client
from pandas.testing import assert_frame_equal

from atomizer_dask import Atomizer, ConductorError, DaskConductor, MemoryConductor, Run, atom, grid
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import ONCE
from atomizer_dask.execution.row_dependence import MOST_ROWS
from atomizer_dask.runs.sources import stored_source
from atomizer_dask.store.writer import ResultWriter

ORPHAN_NS = 5_000_000_000  # in which a worker ends whose scheduler is gone
ELECTRONS = 5000
SEED = 5
WITHIN = 60.0  # seconds, in which anything must happen
GONE = 3  # the exit code of a client whose conductor is gone
LEASED_FOR = 0.1  # seconds, over which the greatest number of electrons in flight is taken

pytestmark = [pytest.mark.chaos, pytest.mark.dask, pytest.mark.timeout(180)]


def seeds():
    """The seeds that ATOMIZER_CRASH_SEEDS names, as in 0-49 or 3,7; else one."""
    chosen = []
    for part in os.environ.get("ATOMIZER_CRASH_SEEDS", "0").split(","):
        first, _, last = part.partition("-")
        chosen += range(int(first), int(last or first) + 1)
    return chosen


# -- what the electrons do -----------------------------------------------------------------------


def note(counts, i, attempt):
    """Append records of electrons, with the time, to the file of this process."""
    if counts:
        records = np.empty((np.size(i), 3), dtype=np.int64)
        records[:, 0], records[:, 1], records[:, 2] = i, attempt, time.time_ns()
        fd = os.open(f"{counts}/{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(fd, records.tobytes())
        os.close(fd)


def burn(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


@atom(id="tests.crash.one")
def one(i, seconds, counts, *, context):
    note(counts, i, context.attempt)
    burn(seconds)
    if i % 101 == 7:
        raise ValueError(f"bad {i}")
    return {"random": context.rng.random(), "double": 2 * i, "text": f"electron {i}"}


@atom(id="tests.crash.again")
def again(i, seconds, counts, *, context):
    note(counts, i, context.attempt)
    burn(seconds)
    if i % 101 == 7 and (context.attempt == 1 or i % 2):
        raise ValueError(f"bad {i} at {context.attempt}")
    return {"random": context.rng.random(), "attempt": context.attempt}


@atom(id="tests.crash.large")
def large(i, seconds, counts, *, context):
    note(counts, i, context.attempt)
    burn(seconds)
    return {"random": context.rng.random(), "many": context.rng.random(100)}


@atom(id="tests.crash.many", vectorized=True)
def many(i, seconds, counts, *, context):
    note(counts[0], i, 1)
    burn(float(np.sum(seconds)))
    return {"random": context.random(), "double": 2 * i}, i % 101 == 7


@atom(id="tests.crash.tiny")
def tiny(i, seconds, counts, *, context):
    note(counts, i, 1)
    return {"random": context.rng.random(), "double": 2 * i}


ATOMS = {
    definition.id.rpartition(".")[2]: definition for definition in (one, again, large, many, tiny)
}
OPTIONS = {"again": {"on_failure": "retry", "max_attempts": 2}}


# -- processes -----------------------------------------------------------------------------------

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["atomizer_dask", "distributed", "pytest", "pyarrow.parquet"])


def client(address, crash):
    """Map, or attach; in a process of its own."""
    os.chdir(crash.folder)
    try:
        with Atomizer(DaskConductor(address), *ATOMS.values()) as atomizer:
            run = crash.carry_on(atomizer)
            note_leased(run, crash.leased)
            run.wait(progress=False)
    except ConductorError as error:
        crash.said.write_text(str(error))
        os._exit(GONE)


def clumsy_client(crash, at, after):
    """The same in memory, which kills itself before or after the so manieth change of a file."""
    count = itertools.count(1)

    def counting(change):
        def changing(*args, **kwargs):
            here = next(count) == at
            if here and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = change(*args, **kwargs)
            if here:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return changing

    for name in ("replace", "link", "unlink"):
        setattr(os, name, counting(getattr(os, name)))
    stored_source.FLUSH_SECONDS = 0.02  # so that there is much to write, and to merge
    ResultWriter.merge_small.__defaults__ = (3,)
    with Atomizer(MemoryConductor(2), *ATOMS.values()) as atomizer:
        crash.carry_on(atomizer).wait(progress=False)


def note_leased(run, path):
    """Have the number of electrons that are in flight written, as long as there are some."""
    path.write_text(f"{run.progress.running:9}")

    def watch():
        fd, last = os.open(path, os.O_WRONLY), []
        while not run.join(0.005):
            last = [*last[-int(LEASED_FOR / 0.005) :], run.progress.running]
            os.pwrite(fd, f"{max(last):9}".encode(), 0)

    threading.Thread(target=watch, daemon=True).start()


def scheduler(file):
    """``dask scheduler``, in a process of its own."""
    from distributed.cli.dask_scheduler import main

    main(["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file])


def worker(file, folder, nanny):
    """``dask worker``, likewise."""
    from distributed.cli.dask_worker import main

    main(
        [
            "--scheduler-file",
            file,
            "--no-dashboard",
            "--nthreads",
            "1",
            "--death-timeout",
            "10",
            "--local-directory",
            folder,
            "--nanny" if nanny else "--no-nanny",
        ]
    )


def quiet(log, function, *args):
    """Call a function; what is printed goes to a file."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    function(*args)


def begin_process(log, function, *args):
    process = processes.Process(target=quiet, args=(str(log), function, *args))
    process.start()
    return process


def wait_until(holds, otherwise):
    """Wait for something that nobody tells of, and return it."""
    until, never = time.monotonic() + WITHIN, threading.Event()
    while not (found := holds()):
        assert time.monotonic() < until, otherwise
        never.wait(0.002)
    return found


class Site:
    """A scheduler and two workers, under nannies or not, which can be killed."""

    def __init__(self, folder, nannies=True):
        self.folder = folder
        self.has_nannies = nannies
        self.processes = []
        self.times = 0
        self.start()

    def start(self):
        self.times += 1
        file, log = self.folder / f"scheduler-{self.times}.json", self.folder / "site.log"
        self.scheduler = begin_process(log, scheduler, str(file))
        where = str(file), str(self.folder), self.has_nannies
        self.nannies = [begin_process(log, worker, *where) for _ in range(2)]
        self.processes += [self.scheduler, *self.nannies]
        wait_until(lambda: readable(file), "no scheduler")
        self.address = json.loads(file.read_text())["address"]

    def workers(self):
        """The workers that are there at the moment."""
        if not self.has_nannies:
            return [process.pid for process in self.nannies]
        found = []
        for nanny in self.nannies:
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(nanny.pid).children()
                found += [
                    c.pid for c in children if "resource_tracker" not in " ".join(c.cmdline())
                ]
        return found

    def kill_scheduler(self):
        self.scheduler.kill()
        self.scheduler.join()

    def close(self):
        pids = self.workers()
        for process in self.processes:
            process.kill()
            process.join()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def with_children(pids):
    """These and the processes in which they execute what may have killed a worker."""
    found = [*pids]
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            found += [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return tuple(found)


def readable(file):
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None


@pytest.fixture
def site(tmp_path, request):
    site = Site(tmp_path, nannies=getattr(request, "param", True))
    yield site
    site.close()


# -- a run that is killed ------------------------------------------------------------------------


@dataclass
class Kill:
    """What was killed when, and what was known at that moment."""

    kind: str
    at: int  # ns
    leased: int  # electrons with the workers, as the client saw it
    stored: set = field(default_factory=set)  # electrons whose outcome was safe; of clients' ends
    pids: tuple = ()  # of the processes that died of it


class Crash:
    """A run that is killed, and attached to, until it ends."""

    def __init__(self, folder, name, electrons=ELECTRONS, seconds=0.001, store=""):
        self.folder = folder
        self.name = name
        self.electrons = electrons
        self.seconds = seconds
        self.path = folder / "store"
        self.store = store or str(self.path)  # as the client names it
        self.counts = folder / "counts"
        self.counts.mkdir()
        self.leased = folder / "leased"
        self.said = folder / "said"
        self.log = folder / "client.log"
        self.kills = []
        self.client = None

    def __getstate__(self):
        return {**self.__dict__, "client": None, "kills": []}

    def begin(self, atomizer, seconds, counts, **options):
        sweep = grid(i=range(self.electrons), seconds=[seconds], counts=[counts])
        options |= OPTIONS.get(self.name, {})
        return atomizer.map(ATOMS[self.name], sweep, seed=SEED, **options)

    def carry_on(self, atomizer):
        if (self.path / "run.json").exists():
            return atomizer.attach(self.store)
        return self.begin(atomizer, self.seconds, str(self.counts), store=self.store)

    # -- what happens to it

    def start(self, address):
        self.leased.unlink(missing_ok=True)
        self.client = begin_process(self.log, client, address, self)

    @property
    def runs(self):
        return self.client is not None and self.client.is_alive()

    def reach(self, executed, seconds):
        """Wait until so many electrons were executed, and return whether the client still runs."""
        wait_until(lambda: not self.runs or self.executed() >= executed, "it does not go on")
        return not self.client.join(seconds) and self.client.is_alive()

    def in_flight(self):
        """How many electrons were with the workers lately, as the client saw it."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(self.leased.read_text())
        return self.kills[-1].leased if self.kills else 0  # it has not yet got hold of the run

    def kill_client(self):
        leased = self.in_flight()
        self.client.kill()
        self.client.join()
        self.kills.append(Kill("client", time.time_ns(), leased, self.stored()))

    def kill_scheduler(self, site):
        """The run of the client must end with a clear error."""
        pids, at, leased = with_children(site.workers()), time.time_ns(), self.in_flight()
        site.kill_scheduler()
        self.client.join(WITHIN)
        assert self.client.exitcode == GONE, self.told_last()
        self.kills.append(Kill("scheduler", at, leased, self.stored(), pids))
        said = self.said.read_text()
        assert "the scheduler is gone" in said or "nobody answers at" in said

    def told_last(self):
        said = self.said.read_text() if self.said.exists() else ""
        return f"{self.client.exitcode} {said} {self.log.read_text()[-3000:]}"

    def kill_worker(self, site, rng):
        pid = rng.choice(wait_until(site.workers, "no worker comes back"))
        pids, at, leased = with_children([pid]), time.time_ns(), self.in_flight()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.kills.append(Kill("worker", at, leased, pids=pids))

    def finish(self, address):
        if not self.runs:
            self.start(address)
        self.client.join(WITHIN)
        assert self.client.exitcode == 0, self.told_last()

    # -- what is known of it

    def executed(self):
        return sum(entry.stat().st_size for entry in os.scandir(self.counts)) // 24

    def stored(self):
        """The electrons whose outcome is in the store."""
        found = set()
        for folder in ("properties", "merging", "incoming"):
            for file in (self.path / folder).glob("[!.]*.parquet"):
                if f"{folder}/{file.name}".startswith("merging/failed-"):
                    continue  # it counts once it has been moved
                found |= {*pd.read_parquet(file, columns=["electron"])["electron"].tolist()}
        return found

    def executions(self):
        """By electron and attempt, when which processes executed it."""
        found = {}
        for file in sorted(self.counts.iterdir()):
            data = file.read_bytes()
            records = np.frombuffer(data[: len(data) // 24 * 24], dtype=np.int64).reshape(-1, 3)
            for i, attempt, at in records.tolist():
                found.setdefault((i, attempt), []).append((at, int(file.name)))
        return {key: sorted(those) for key, those in found.items()}

    # -- what must hold

    def check(self):
        self.check_frame()
        self.check_store()
        return self.check_executions()

    def check_frame(self):
        """It equals that of an undisturbed run, bit for bit."""
        with Atomizer(MemoryConductor(2)) as atomizer:
            run = self.begin(atomizer, 0.0, "").wait(progress=False)
        want, got = run.to_frame(), Run.open(self.path).to_frame()
        want["seconds"], want["counts"] = self.seconds, str(self.counts)
        assert_frame_equal(got, want, check_exact=True)
        columns = ["kind", "type", "message", "attempts"]
        errors = Run.open(self.path).errors[columns]
        assert_frame_equal(errors, run.errors[columns], check_exact=True)
        assert len(errors) or self.name not in ("one", "again", "many")

    def check_store(self):
        """Each electron is in it once, and nothing else is."""
        rows = pd.read_parquet(f"{self.path}/properties")
        assert sorted(rows["electron"]) == [*range(self.electrons)]
        names = {*os.listdir(self.path)}
        assert "holder.json" not in names
        assert not [name for name in names if name.startswith("holder")]
        left = {name: os.listdir(self.path / name) for name in ("incoming", "merging")}
        assert left == {"incoming": [], "merging": []}
        manifest = json.loads((self.path / "run.json").read_text())
        assert manifest["state"] == "finished"

    def check_executions(self):
        """No more were executed twice than were in flight at the kills; return how many were."""
        executions = self.executions()
        self.active = active_of(executions)
        assert {i for i, _ in executions} == {*range(self.electrons)}
        twice, examined, unexplained = Counter(), Counter(), []
        kills = sorted(self.kills, key=lambda kill: kill.kind == "client")  # these last
        for (i, attempt), those in executions.items():
            for (at, pid), (then, next_pid) in itertools.pairwise(those):
                if self.name == "many" and pid == next_pid:  # in other cuts, to compare
                    examined[pid, then] += 1
                    continue
                kill = next((k for k in kills if self.explains(k, i, at, pid, then)), None)
                if kill is None:
                    unexplained.append((i, attempt, at, pid, then))
                else:
                    twice[id(kill)] += 1
        assert not unexplained, self.unexplained_told(unexplained)
        assert max(examined.values(), default=0) <= MOST_ROWS
        assert sum(twice.values()) <= sum(kill.leased for kill in self.kills), self.kills_told()
        kinds = Counter()
        for kill in self.kills:
            kinds[kill.kind] += twice[id(kill)]
        return kinds

    def unexplained_told(self, unexplained):
        first = min(kill.at for kill in self.kills)
        shown = [
            (
                i,
                attempt,
                (at - first) / 1e9,
                pid,
                (then - first) / 1e9,
                [i in k.stored for k in self.kills],
            )
            for i, attempt, at, pid, then in unexplained[:3] + unexplained[-3:]
        ]
        kills = [
            (k.kind, (k.at - first) / 1e9, k.pids, k.leased, len(k.stored)) for k in self.kills
        ]
        return f"{len(unexplained)}: {shown} {kills}"

    def kills_told(self):
        return [(k.kind, k.at, k.pids, k.leased, len(k.stored)) for k in self.kills]

    def explains(self, kill, i, at, pid, then):
        """Whether what was executed at one time was lost in a kill before the other."""
        if kill.kind == "client":
            return at <= kill.at <= then and i not in kill.stored
        # What has been begun goes on for a moment after its scheduler is gone, also in a child
        # process that a worker starts then.
        first, last = self.active[pid]
        orphan = kill.kind == "scheduler" and kill.at < first <= last < kill.at + ORPHAN_NS
        return kill.at <= then and (pid in kill.pids or orphan) and i not in kill.stored


def active_of(executions):
    """From when to when each process executed electrons."""
    active = {}
    for those in executions.values():
        for at, pid in those:
            first, last = active.get(pid, (at, at))
            active[pid] = min(first, at), max(last, at)
    return active


def check_nothing_left(address):
    """No task of ours is on the scheduler."""
    with Client(address, set_as_default=False) as client:
        wait_until(
            lambda: not client.run_on_scheduler(ours_on, ONCE), "tasks are left on the scheduler"
        )


def ours_on(mark, dask_scheduler):
    return [key for key in dask_scheduler.tasks if type(key) is tuple and key[-1] == mark]


@contextlib.contextmanager
def told(crash, seed, capsys):
    """Tell in one line what happened."""
    began, twice = time.perf_counter(), []
    ended = "failed"
    try:
        yield twice
        ended = "passed"
    finally:
        kills = Counter(kill.kind for kill in crash.kills)
        leased = sum(kill.leased for kill in crash.kills)
        with capsys.disabled():
            print(
                f"\ncrash: seed {seed}, {crash.name}, {crash.electrons:,} electrons, "
                f"killed {dict(kills)}, executed twice {dict(twice[0]) if twice else '?'} of "
                f"{leased:,} in flight; {time.perf_counter() - began:.1f} s, {ended}"
            )
        if crash.client is not None:
            crash.client.kill()
            crash.client.join()


def kill_clients(crash, address, rng, kills):
    """Kill clients: some as they begin, others while so many electrons have been executed."""
    moments = sorted(rng.uniform(0.02, 0.95) * crash.electrons for _ in range(kills))
    for moment in moments:
        crash.start(address)
        early = rng.random() < 0.4
        if not crash.reach(0 if early else moment, rng.uniform(0.0, 0.5 if early else 0.1)):
            break
        crash.kill_client()


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("seen", [True, False], ids=["seen", "not seen"])
def test_clients_are_killed(seed, seen, cluster, tmp_path, capsys):
    rng = random.Random(f"{seed} {seen}")
    # From the working directory of a worker the same path leads to somewhere else.
    store = "" if seen else "/proc/self/cwd/store"
    crash = Crash(tmp_path, "one" if seen else "large", store=store)
    with told(crash, seed, capsys) as twice:
        kill_clients(crash, cluster.scheduler_address, rng, 20 if seen else 5)
        crash.finish(cluster.scheduler_address)
        assert len(crash.kills) == (20 if seen else 5)
        twice.append(crash.check())
        assert not twice[0].total()
        check_nothing_left(cluster.scheduler_address)


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize(
    ("name", "electrons", "seconds"),
    [("again", 2000, 0.002), ("many", 4000, 0.001), ("tiny", 100_000, 0.0)],
)
def test_clients_of_other_atoms_are_killed(
    name, electrons, seconds, seed, cluster, tmp_path, capsys
):
    rng = random.Random(f"{seed} {name}")
    crash = Crash(tmp_path, name, electrons, seconds)
    with told(crash, seed, capsys) as twice:
        kill_clients(crash, cluster.scheduler_address, rng, 5)
        crash.finish(cluster.scheduler_address)
        assert len(crash.kills) == 5
        twice.append(crash.check())
        check_nothing_left(cluster.scheduler_address)


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("site", [False], indirect=True, ids=["no nannies"])
@pytest.mark.parametrize(("name", "kills"), [("one", 5), ("large", 2)])
def test_schedulers_are_killed(name, kills, seed, site, tmp_path, capsys):
    rng = random.Random(f"{seed} {name}")
    crash = Crash(tmp_path, name)
    with told(crash, seed, capsys) as twice:
        for moment in sorted(rng.uniform(0.05, 0.9) * crash.electrons for _ in range(kills)):
            crash.start(site.address)
            crash.reach(moment, rng.uniform(0.0, 0.1))
            crash.kill_scheduler(site)
            site.start()
        crash.finish(site.address)
        assert len(crash.kills) == kills
        twice.append(crash.check())
        check_nothing_left(site.address)


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("name", ["large", "again"])
def test_everything_is_killed(seed, name, site, tmp_path, capsys):
    rng = random.Random(f"{seed} {name}")
    crash = Crash(tmp_path, name)
    kinds = ["client"] * 4 + ["worker"] * 4 + ["scheduler"] * (name == "again")
    rng.shuffle(kinds)
    moments = sorted(rng.uniform(0.02, 0.9) * crash.electrons for _ in kinds)
    with told(crash, seed, capsys) as twice:
        for kind, moment in zip(kinds, moments, strict=True):
            if not crash.runs:
                crash.start(site.address)
            assert crash.reach(moment, rng.uniform(0.0, 0.2)), crash.told_last()
            if kind == "client":
                crash.kill_client()
            elif kind == "worker":
                crash.kill_worker(site, rng)
            else:
                crash.kill_scheduler(site)
                site.start()
        crash.finish(site.address)
        assert len(crash.kills) == len(kinds)
        twice.append(crash.check())
        check_nothing_left(site.address)


@pytest.mark.parametrize("seed", seeds())
def test_killed_between_any_two_writes(seed, tmp_path, capsys):
    rng = random.Random(seed)
    crash = Crash(tmp_path, "one", 2000, 0.0005)
    with told(crash, seed, capsys) as twice:
        for at in [*range(1, 31), 0]:
            crash.client = begin_process(crash.log, clumsy_client, crash, at, rng.random() < 0.5)
            crash.client.join(WITHIN)
            if crash.client.exitcode == 0:
                break
            assert crash.client.exitcode == -signal.SIGKILL, crash.told_last()
            leased = len({i for i, _ in crash.executions()} - crash.stored())
            crash.kills.append(Kill("client", time.time_ns(), leased, crash.stored()))
        assert crash.client.exitcode == 0
        assert len(crash.kills) > 10
        twice.append(crash.check())
