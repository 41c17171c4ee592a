"""Electrons on a real Slurm: whatever becomes of jobs, nothing is lost, and hardly any redone."""

import math
import os
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import dask
import pandas as pd
import pytest
import slurm_atoms
from patience import wait_until
from slurm_atoms import marking

import atomizer_dask
from atomizer_dask import Atomizer, DaskConductor, Run, grid
from atomizer_dask.conductors.dask.worker import wall_time
from atomizer_dask.montecarlopi import MonteCarlo, Toss

pytestmark = [pytest.mark.slurm, pytest.mark.dask, pytest.mark.timeout(240)]
EXAMPLE = Path(__file__).parents[3] / "examples" / "slurm.sh"
PACKAGE = Path(atomizer_dask.__file__).parent.parent
SECONDS = 0.02  # that an electron takes, at least
# What a worker may have begun without having said so: of the batch that it executes, and of one
# that is on its way, each of which ends within a quarter of a second.
IN_FLIGHT = int(2 * 0.25 / SECONDS) + 1


@pytest.fixture(scope="module")
def queue(slurm):
    """Slurm, as dask-jobqueue finds it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(slurm.configuration))
        yield slurm


@contextmanager
def job_cluster(folder):
    """Give a Dask cluster whose workers are jobs, of which there are none yet."""
    from dask_jobqueue import SLURMCluster

    with (
        # Else a worker that has died counts for 15 s as one that there is.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "100ms"}),
        SLURMCluster(
            cores=1,
            processes=1,
            memory="1GiB",
            walltime="01:00:00",
            interface="lo",
            python=sys.executable,
            job_script_prologue=[f"export PYTHONPATH={PACKAGE}:$PYTHONPATH"],
            local_directory=str(folder / "local"),
            log_directory=str(folder / "logs"),
            scheduler_options={"dashboard_address": "127.0.0.1:0"},
        ) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module")
def jobs(queue, tmp_path_factory):
    """Such a cluster for all tests, each of which may end its jobs."""
    with job_cluster(tmp_path_factory.mktemp("jobs")) as cluster:
        yield cluster


def scale(jobs, number):
    """Have as many workers as that, no matter how many have died before."""
    wait_until(lambda: len(jobs.workers) == len(jobs.scheduler.workers), "notice of the dead")
    jobs.scale(number)
    wait_until(lambda: len(jobs.scheduler.workers) == number, f"{number} workers")


@pytest.fixture
def atomizer(jobs):
    """An atomizer on two workers."""
    scale(jobs, 2)
    atomizer = Atomizer(DaskConductor(jobs))
    yield atomizer
    atomizer.close()


class Marks:
    """What was begun in which job, in that order."""

    def __init__(self, folder):
        self.folder = folder / "marks"
        self.folder.mkdir()

    def sweep(self, number, seconds=SECONDS):
        return grid(x=range(number), seconds=[seconds], folder=[str(self.folder)])

    def open_gate(self):
        (self.folder / "gate").touch()

    def of(self, job):
        path = self.folder / job
        return list(map(int, path.read_text().split())) if path.exists() else []

    def jobs(self):
        return {path.name for path in self.folder.glob("[0-9]*")}

    def repeated(self):
        """Return what was begun more than once."""
        counts = Counter(x for job in self.jobs() for x in self.of(job))
        return {x for x, count in counts.items() if count > 1}


@pytest.fixture
def marks(tmp_path):
    return Marks(tmp_path)


def assert_complete(run, number):
    """There is one row for each electron, and it is right."""
    assert run.errors.empty
    frame = run.to_frame()
    assert frame["x"].tolist() == list(range(number))
    assert frame["result"].tolist() == [2 * x for x in range(number)]


def assert_only_in_flight_repeated(marks, job):
    """Nothing is begun twice but the last that a job has begun, and of these no more than that."""
    repeated = marks.repeated()
    assert len(repeated) <= IN_FLIGHT
    begun = marks.of(job)
    assert repeated == set(begun[len(begun) - len(repeated) :])


def some_job(jobs):
    return next(iter(jobs.workers.values())).job_id


def wait_for_share(run, share):
    wait_until(lambda: run.progress.done >= share * run.progress.total, f"{share} of the run")


def test_pi_is_estimated_in_jobs(atomizer):
    atomizer.register(MonteCarlo, Toss)
    value = atomizer.send("montecarlopi.MonteCarlo", {"tosses": 1_000_000}).result(100).value()
    assert value["tosses"] == 1_000_000
    assert value["errors"] == 0
    assert value["pi"] == pytest.approx(math.pi, abs=0.01)


def test_workers_know_when_their_job_ends(atomizer, jobs):
    client = atomizer.conductors["dask"].client

    def times():
        return list(client.run(wall_time).values())

    wait_until(lambda: all(life < math.inf for _, life in times()), "Slurm says it")
    told = times()
    assert len(told) == 2
    assert [one for one in told if not 3000 < one[0] <= one[1] <= 3600] == []


def test_command_runs_in_jobs_that_end_with_it(queue, tmp_path):
    settings = {
        "CORES": "1",
        "PROCESSES": "1",
        "MEMORY": "1GiB",
        "WALLTIME": "00:10:00",
        "INTERFACE": "lo",
        "PYTHON": sys.executable,
        "JOB_SCRIPT_PROLOGUE": f"['export PYTHONPATH={PACKAGE}:$PYTHONPATH']",
        "LOCAL_DIRECTORY": str(tmp_path / "local"),
        "LOG_DIRECTORY": str(tmp_path / "logs"),
    }
    configured = {f"DASK_JOBQUEUE__SLURM__{name}": value for name, value in settings.items()}
    before = set(queue.jobs())
    options = ["--tosses", "1e7", "--seed", "7", "--cluster", "slurm", "--jobs", "2"]
    done = subprocess.run(
        [sys.executable, "-c", "from atomizer_dask.cli import main; main()", "pi", *options],
        env={**os.environ, **configured},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pi = 3.14")
    assert "SLURMCluster" in done.stderr
    wait_until(lambda: set(queue.jobs()) <= before, "its jobs end")


def test_sweep_is_in_the_store_once(atomizer, marks, tmp_path):
    run = atomizer.map(marking, marks.sweep(2000, 0.005), store=tmp_path / "store").wait(100)
    assert_complete(run, 2000)
    assert_complete(Run.open(tmp_path / "store"), 2000)
    assert len(marks.jobs()) == 2
    assert not marks.repeated()


def test_cancelled_job_costs_what_was_in_flight(atomizer, jobs, queue, marks, tmp_path):
    run = atomizer.map(marking, marks.sweep(600), store=tmp_path / "store")
    wait_for_share(run, 0.3)
    job = some_job(jobs)
    queue.tell("scancel", job)
    queue.wait_until(lambda: queue.state(job) == "CANCELLED", "cancelled job")
    assert run.state == "running"
    marks.open_gate()
    assert_complete(run.wait(100), 600)
    assert_only_in_flight_repeated(marks, job)


def test_drained_node_finishes_what_it_has_and_gets_no_more(atomizer, jobs, queue, marks):
    run = atomizer.map(marking, marks.sweep(4000))
    wait_for_share(run, 0.01)
    before = set(queue.jobs())
    node = queue.node(some_job(jobs))
    queue.tell("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=maintenance")
    try:
        jobs.scale(3)
        wait_until(lambda: len(marks.jobs()) == 3, "electrons in a third job")
        (added,) = marks.jobs() - before
        assert queue.node(added) != node
        marks.open_gate()
        assert_complete(run.wait(100), 4000)
        assert set(queue.jobs()) == {*before, added}
        assert not marks.repeated()
    finally:
        queue.tell("scontrol", "update", f"NodeName={node}", "State=RESUME")


def test_job_at_its_time_limit_costs_what_was_in_flight(atomizer, jobs, queue, marks):
    run = atomizer.map(marking, marks.sweep(6000))
    wait_for_share(run, 0.01)
    job = some_job(jobs)
    # Limits are whole minutes, but may be changed; Slurm looks for what is over twice a minute.
    queue.tell("scontrol", "update", f"JobId={job}", "EndTime=now")
    queue.wait_until(lambda: queue.state(job) == "TIMEOUT", "job at its time limit")
    assert run.state == "running"
    marks.open_gate()
    assert_complete(run.wait(100), 6000)
    assert_only_in_flight_repeated(marks, job)


def test_adapts_from_nothing_to_four_workers_and_back(queue, marks, tmp_path):
    with job_cluster(tmp_path) as jobs, Atomizer(DaskConductor(jobs)) as atomizer:
        before = set(queue.jobs())
        jobs.adapt(minimum=0, maximum=4)
        run = atomizer.map(marking, marks.sweep(6000))
        wait_until(lambda: len(marks.jobs()) == 4, "electrons in four jobs")
        marks.open_gate()
        assert_complete(run.wait(100), 6000)
        assert not marks.repeated()
        assert not marks.jobs() & before
        wait_until(lambda: not jobs.scheduler.workers and set(queue.jobs()) <= before, "end of all")


class Submitted:
    """The example in a folder, where it is submitted with the same command again and again."""

    def __init__(self, queue, marks, number):
        self.queue, self.folder = queue, marks.folder.parent
        inputs = {"x": range(number), "seconds": SECONDS, "folder": str(marks.folder)}
        pd.DataFrame(inputs).to_csv(self.folder / "inputs.csv", index=False)

    def submit(self, atom="marking"):
        """Return the id of a job of two workers, each on a node of its own."""
        places = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        variables = {"PATH": places, "PYTHONPATH": PACKAGE, "INTERFACE": "lo", "LOCAL": self.folder}
        exported = ",".join(f"{name}={value}" for name, value in variables.items())
        options = (f"--export=ALL,{exported}", "--nodes=2", "--ntasks=2", "--mem-per-cpu=1G")
        run = (f"{slurm_atoms.__file__}:{atom}", "--sweep=inputs.csv", "--store=store")
        return self.queue.submit(*options, EXAMPLE, *run, cwd=self.folder)

    def wait_for(self, job, state):
        """Wait until its job is in a state, and fail with its log where it comes to none."""
        try:
            self.queue.wait_until(lambda: self.queue.state(job) == state, f"job {state}")
        except RuntimeError as error:
            error.add_note((self.folder / f"atomizer-{job}.log").read_text()[-5000:])
            raise

    def recorded(self):
        """Return what is in the store."""
        results = Run.open(self.folder / "store").to_frame().set_index("x")["result"]
        return set(results.dropna().index)


def test_example_goes_on_when_it_is_submitted_again(queue, marks):
    example = Submitted(queue, marks, 1000)
    first = example.submit()
    wait_until(lambda: len(marks.of(first)) > 100, "electrons")
    queue.tell("scancel", first)
    example.wait_for(first, "CANCELLED")
    wait_until(lambda: first not in queue.jobs(), "end of its processes")
    recorded = example.recorded()
    assert set() < recorded < set(range(1000))

    marks.open_gate()
    second = example.submit()
    example.wait_for(second, "COMPLETED")
    assert_complete(Run.open(example.folder / "store"), 1000)
    assert not recorded & set(marks.of(second))
    assert len(marks.repeated()) <= 2 * IN_FLIGHT


def test_example_ends_with_a_run_that_ends_before_workers_have_come(queue, marks):
    example = Submitted(queue, marks, 1)
    example.wait_for(example.submit("no_such_atom"), "FAILED")  # not when these give up waiting


def test_example_queues_itself_again_when_its_time_is_up(queue, marks):
    example = Submitted(queue, marks, 4000)
    job = example.submit()
    wait_until(lambda: len(marks.of(job)) > 100, "electrons")
    # Sooner than it asks to be told; Slurm looks for that twice a minute.
    queue.tell("scontrol", "update", f"JobId={job}", "EndTime=now+100")
    example.wait_for(job, "PENDING")
    before, recorded = len(marks.of(job)), example.recorded()
    assert set() < recorded < set(range(4000))

    marks.open_gate()
    queue.tell("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    example.wait_for(job, "COMPLETED")
    assert_complete(Run.open(example.folder / "store"), 4000)
    assert not recorded & set(marks.of(job)[before:])
    assert len(marks.repeated()) <= 2 * IN_FLIGHT
    assert not list(example.folder.glob("scheduler-*"))
