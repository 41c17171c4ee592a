"""Jobs of a batch system for the length of a command; here they are processes of this machine."""

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from time import monotonic, sleep

import dask.config
import pandas as pd
import psutil
import pytest
from click.testing import CliRunner
from patience import wait_until

from atomizer_dask import Atomizer, MemoryConductor, grid
from atomizer_dask.cli.atoms import load_atom
from atomizer_dask.cli.commands import main

pytest.importorskip("dask_jobqueue")

PROGRAM = Path(sys.executable).parent / "atomizer-dask"
SLOW = """
import time

def slow(x):
    time.sleep(0.05)
    return x
"""
SIZES = {"cores": 1, "memory": "1GB"}
PENDING = "#!/bin/sh\necho Registered to: nobody >&2\nexec sleep 600\n"
REFUSED = "#!/bin/sh\necho error: Invalid account or partition >&2\n"


class Command:
    """A command that runs with a configuration of its own, and whose processes can be found."""

    def __init__(self, folder, *arguments, python=None):
        self.mark = uuid.uuid4().hex
        config = folder / "dask"
        config.mkdir()
        lines = [f"    python: {python}\n"] if python else []
        (config / "jobqueue.yaml").write_text(
            "jobqueue:\n  local:\n    cores: 1\n    memory: 1GB\n    processes: 1\n"
            "    scheduler-options:\n      host: 127.0.0.1\n"
            "      dashboard_address: 127.0.0.1:0\n" + "".join(lines)
        )
        self.process = subprocess.Popen(
            [PROGRAM, *map(str, arguments)],
            env={**os.environ, "DASK_CONFIG": str(config), "ATOMIZER_TEST": self.mark},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.errors = []

    def until(self, said):
        """Read what it says until there is some text."""
        while line := self.process.stderr.readline():
            self.errors.append(line)
            if said in line:
                return
        pytest.fail(f"it did not say {said!r}: {''.join(self.errors)}")

    def end(self, number=None):
        """Return what it printed, what it said, and its exit code, once nothing is left of it."""
        if number is not None:
            self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=90)
        until = monotonic() + 30
        while left := self.left():
            assert monotonic() < until, left
            sleep(0.05)
        return output, "".join([*self.errors, errors]), self.process.returncode

    def left(self):
        """Return the processes that descend from it."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("ATOMIZER_TEST") == self.mark:
                    found.append(process.cmdline())
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


@pytest.fixture
def command(tmp_path):
    begun = []

    def begin(*arguments, fake=None):
        python = None
        if fake is not None:
            python = tmp_path / "python"
            python.write_text(fake)
            python.chmod(0o755)
        begun.append(Command(tmp_path, *arguments, python=python))
        return begun[-1]

    yield begin
    for one in begun:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


@pytest.fixture
def mapping(tmp_path):
    (tmp_path / "slow_atom.py").write_text(SLOW)
    pd.DataFrame({"x": range(2000)}).to_csv(tmp_path / "in.csv", index=False)
    return ["map", "slow_atom.py:slow", "--sweep", "in.csv", "--store", "store"]


@pytest.mark.dask
@pytest.mark.parametrize("how", [["local", "--jobs", "1"], ["LocalCluster", "--adapt", "0", "1"]])
def test_workers_are_jobs_that_end_with_the_command(command, how):
    begun = command("pi", "--tosses", "1e6", "--seed", "7", "--cluster", *how)
    output, errors, code = begun.end()
    assert code == 0, errors
    assert output.startswith("pi = 3.14")
    submitted = re.search(r"submitted: (\d+)\n", errors)
    assert submitted, errors
    job = int(submitted[1])
    wait_until(lambda: not psutil.pid_exists(job), "told to end, it does so a moment later")
    assert re.search(r"the first worker came after \d+ s; 1 is there\n", errors)


@pytest.mark.dask
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_jobs_end_where_a_run_is_suspended(command, mapping, tmp_path, number):
    begun = command(*mapping, "--cluster", "local", "--jobs", "1")
    begun.until("the first worker came")
    while not [*(tmp_path / "store").glob("properties/*.parquet")]:
        assert begun.process.poll() is None
        sleep(0.05)
    _, errors, code = begun.end(number)
    assert code == 4
    assert "atomizer-dask resume" in errors


@pytest.mark.dask
def test_jobs_end_where_a_command_is_terminated(command):
    begun = command("pi", "--tosses", "1e12", "--cluster", "local", "--jobs", "1")
    begun.until("the first worker came")
    _, errors, code = begun.end(signal.SIGTERM)
    assert code == 4
    assert "terminated before it was done" in errors


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 1), (signal.SIGTERM, 4), (signal.SIGHUP, 4)],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
def test_jobs_that_wait_are_cancelled(command, number, code):
    begun = command("pi", "--cluster", "local", "--jobs", "2", fake=PENDING)
    begun.until("waiting for the first worker; Ctrl-C cancels the jobs")
    begun.until("submitted: ")
    assert begun.left()
    output, errors, returned = begun.end(number)
    assert returned == code, errors
    assert output == ""


def test_a_job_that_is_refused_is_told_and_ends_the_others(command):
    begun = command("pi", "--cluster", "local", "--jobs", "2", fake=REFUSED)
    _, errors, code = begun.end()
    assert code == 1
    assert "LocalCluster refuses a job: " in errors
    assert "Invalid account or partition" in errors


def refused(*options, command=("pi",)):
    result = CliRunner().invoke(main, [*command, *options])
    assert result.exit_code in (1, 2)
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--cluster", "slurm"], "needs either --jobs N, for as many all the time, or --adapt"),
        (["--cluster", "slurm", "--jobs", "2", "--adapt", "0", "2"], "both were given"),
        (["--jobs", "2"], "--jobs is for jobs of a batch system: add --cluster"),
        (["--adapt", "0", "2"], "--adapt is for jobs of a batch system: add --cluster"),
        (["--cluster", "slurm", "--adapt", "3", "2"], "the least and the most jobs"),
        (["--cluster", "slurm", "--jobs", "1", "--workers", "2"], "--workers and --cluster say"),
        (["--cluster", "slurm", "--jobs", "1", "--scheduler", "a:1"], "--scheduler and --cluster"),
        (["--scheduler", "a:1", "--scheduler-file", "f.json"], "--scheduler-file say different"),
        (["--scheduler", "a:1", "--workers", "2"], "--workers is for a local cluster"),
        (["--scheduler", ""], "--scheduler is empty"),
        (["--scheduler-file", ""], "--scheduler-file is empty"),
        (["--cluster", "slurmm", "--jobs", "1"], "did you mean slurm?), but htcondor, local, lsf"),
        (["--cluster", "x", "--jobs", "1"], "knows no batch system 'x', but htcondor, local, lsf"),
    ],
)
def test_options_that_make_no_sense_are_told(options, told):
    assert told in refused(*options)


@pytest.mark.parametrize("name", ["map", "resume"])
def test_store_that_is_held_is_told_before_there_are_jobs(mapping, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    atom = load_atom("slow_atom.py:slow")
    arguments = mapping if name == "map" else ["resume", "store", "--atom", "slow_atom.py:slow"]
    with Atomizer(MemoryConductor()) as atomizer:
        run = atomizer.map(atom, grid(x=range(2000)), store="store")
        told = refused("--cluster", "local", "--jobs", "1", command=arguments)
        run.cancel()
    assert "is held by process" in told
    assert "--takeover" in told
    assert "submitted" not in told


def test_what_a_job_asks_for_must_be_configured():
    with dask.config.set({"jobqueue.slurm.cores": None, "jobqueue.slurm.memory": "2GB"}):
        told = refused("--cluster", "SLURM", "--jobs", "1")
    assert "jobqueue.slurm lacks cores. Write it to ~/.config/dask/jobqueue.yaml" in told
    assert "DASK_JOBQUEUE__SLURM__CORES" in told


def test_what_dask_jobqueue_does_not_understand_is_told():
    own = {f"jobqueue.htcondor.{name}": value for name, value in SIZES.items()}
    with dask.config.set({**own, "jobqueue.htcondor.disk": None}):
        told = refused("--cluster", "htcondor", "--jobs", "1")
    assert "HTCondorCluster cannot be started as jobqueue.htcondor of Dask's configuration" in told
    assert "disk" in told


def test_dask_jobqueue_that_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    told = refused("--cluster", "slurm", "--jobs", "1")
    assert "which is not installed: pip install 'atomizer_dask[hpc]'" in told


def test_a_run_is_not_left_to_jobs_that_end_with_the_command():
    told = refused("--detach", "--cluster", "slurm", "--jobs", "1", command=("resume", "store"))
    assert "--detach makes no sense with --cluster" in told


@pytest.mark.dask
def test_the_configured_scheduler_is_used_unless_an_option_says_otherwise(cluster, configure):
    configure({"connection.target": cluster.scheduler_address})
    used = CliRunner().invoke(main, ["pi", "--tosses", "1000"])
    assert used.exit_code == 0, used.output
    assert re.search(f"on <DaskConductor dask: .*{cluster.scheduler_address}", used.output)
    configure({"connection.target": "tcp://127.0.0.1:1"})
    told = refused()
    assert "nobody answers at 'tcp://127.0.0.1:1'" in told
    used = CliRunner().invoke(
        main, ["pi", "--tosses", "1000", "--scheduler", cluster.scheduler_address]
    )
    assert used.exit_code == 0, used.output


@pytest.mark.dask
def test_the_scheduler_of_a_file_is_used(cluster, tmp_path):
    # As dask scheduler writes it; a client would raise once tasks had tuples for keys.
    facts = {"type": "Scheduler", "id": cluster.scheduler.id, "address": cluster.scheduler_address}
    (tmp_path / "scheduler.json").write_text(json.dumps(facts))
    used = CliRunner().invoke(
        main, ["pi", "--tosses", "1000", "--scheduler-file", str(tmp_path / "scheduler.json")]
    )
    assert used.exit_code == 0, used.output
    assert cluster.scheduler_address in used.output


def test_a_typo_in_the_configuration_is_told_by_commands(configure):
    configure({"map.timout": 3})
    assert "did you mean atomizer.map.timeout?" in refused()
