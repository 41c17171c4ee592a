"""The commands for a run with a store, as a batch script uses them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from click.testing import CliRunner
from patience import wait_until

from atomizer_dask import Run
from atomizer_dask.cli.commands import main

pytestmark = pytest.mark.dask

SCRIPT = "from atomizer_dask.cli import main; main()"
ATOMS = """
import os, time

def slow(x, *, context):
    with open(os.path.join(os.path.dirname(__file__), "executed"), "a") as file:
        file.write(f"{x}\\n")
    time.sleep(0.005)
    if x == 3:
        raise ValueError("three is not allowed")
    return x * context.rng.random()

def good(x):
    return x + 1

def hangs(x):
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "atoms.py").write_text(ATOMS)
    pd.DataFrame({"x": range(1000)}).to_csv(tmp_path / "in.csv", index=False)
    pd.DataFrame({"x": range(1500)}).to_csv(tmp_path / "more.csv", index=False)
    return tmp_path


@pytest.fixture
def command(cluster, folder):
    """Run a command in this process, on the cluster of the session."""

    def invoke(name, *arguments):
        where = [] if name == "status" else ["--scheduler", cluster.scheduler_address]
        return CliRunner().invoke(main, [name, *map(str, arguments), *where])

    return invoke


def start(folder, atom, *where):
    command = [sys.executable, "-c", SCRIPT, "map", f"{folder}/atoms.py:{atom}"]
    options = ["--sweep", "in.csv", "--store", "store", "--seed", "5", *where]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *options], cwd=folder, text=True, **pipes)


def start_on(cluster, folder, atom):
    return start(folder, atom, "--scheduler", cluster.scheduler_address)


def terminate(process):
    """Return what a command that is told to end says, within the time that it has for it."""
    process.send_signal(signal.SIGTERM)
    before = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - before < 5
    assert process.returncode == 4
    return errors


def executed(folder):
    path = folder / "executed"
    return path.read_text().split() if path.exists() else []


def test_map_into_a_store_needs_no_other_file(command, folder):
    result = command("map", f"{folder}/atoms.py:good", "--sweep", folder / "in.csv",
                     "--store", folder / "store")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert Run.open(folder / "store").to_frame()["result"].tolist() == list(range(1, 1001))
    assert "1,000 rows, 0 failed" in result.output


def test_map_needs_to_know_where_the_results_go(command, folder):
    result = command("map", f"{folder}/atoms.py:good", "--sweep", folder / "in.csv")
    assert result.exit_code == 2
    assert "give --out FILE, --store DIR, or both" in result.output


def test_status_tells_how_far_a_run_is_and_where_it_comes_from(command, folder):
    store = folder / "store"
    mapped = command("map", f"{folder}/atoms.py:slow", "--sweep", folder / "in.csv",
                     "--store", store, "--seed", 7)  # fmt: skip
    assert mapped.exit_code == 3, mapped.output
    result = command("status", store)
    assert result.exit_code == 3
    assert "finished: 1,000 of 1,000 electrons (100.0%), 1 failed" in result.output
    assert "1 x exception: ValueError: three is not allowed" in result.output
    assert "seed 7" in result.output
    assert "pandas" in result.output


def test_status_of_what_is_no_store(command, folder):
    result = command("status", folder / "nowhere")
    assert result.exit_code == 1
    assert "there is no store at" in result.output


def test_terminated_run_is_suspended_within_seconds_and_goes_on(cluster, command, folder):
    store = folder / "store"
    process = start_on(cluster, folder, "slow")
    wait_until(lambda: len(executed(folder)) > 100)
    errors = terminate(process)
    assert "is suspended" in errors
    assert "atomizer-dask resume" in errors
    done = Run.open(store).progress
    assert 0 < done.done < 1000
    assert not (store / "holder.json").exists()

    assert command("status", store).exit_code == 4
    resumed = command("resume", store)
    assert resumed.exit_code == 3, resumed.output
    assert sorted(map(int, executed(folder))) == list(range(1000))  # each of them once
    frame = Run.open(store).to_frame()
    assert len(frame) == 1000


def test_commands_give_a_run_its_priority(command, folder):
    store = folder / "store"
    mapping = [f"{folder}/atoms.py:good", "--sweep", folder / "in.csv", "--store", store]
    assert command("map", *mapping, "--priority", 3).exit_code == 0
    assert "priority 3" in command("status", store).output
    assert command("resume", store).exit_code == 0
    assert "priority 3" in command("status", store).output
    assert command("resume", store, "--priority", -3).exit_code == 0
    assert "priority -3" in command("status", store).output
    refused = command("resume", store, "--priority", 1001)
    assert refused.exit_code == 2
    assert "1001 is not in the range -1000<=x<=1000" in refused.output


def test_run_whose_electrons_hang_is_suspended_within_seconds(folder):
    process = start(folder, "hangs", "--workers", "1")
    wait_until(lambda: (folder / "store" / "run.json").exists())
    wait_until(lambda: Run.open(folder / "store").provenance["sessions"])
    workers = psutil.Process(process.pid).children(recursive=True)
    errors = terminate(process)
    assert "is suspended" in errors
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []  # the local cluster has ended with the command


def test_command_that_is_terminated_while_it_starts_a_cluster_says_so(folder):
    process = start(folder, "slow", "--workers", "1")
    wait_until(lambda: psutil.Process(process.pid).children())
    errors = terminate(process)
    assert "terminated before it was done" in errors


def test_same_command_again_computes_only_what_is_new(command, folder):
    store = folder / "store"
    options = ["--store", store, "--seed", 7]
    first = command("map", f"{folder}/atoms.py:slow", "--sweep", folder / "in.csv", *options)
    assert first.exit_code == 3, first.output
    before = Run.open(store).to_frame()
    more = command("map", f"{folder}/atoms.py:slow", "--sweep", folder / "more.csv", *options)
    assert more.exit_code == 3, more.output
    assert sorted(map(int, executed(folder))) == list(range(1500))
    pd.testing.assert_frame_equal(Run.open(store).to_frame().head(1000), before)


def test_resume_says_what_it_needs_where_the_atom_is_gone(command, folder):
    store = folder / "store"
    command("map", f"{folder}/atoms.py:good", "--sweep", folder / "in.csv", "--store", store)
    (folder / "atoms.py").rename(folder / "elsewhere.py")
    result = command("resume", store)
    assert result.exit_code == 2
    assert "--atom MODULE:ATOM" in result.output
    assert command("resume", store, "--allow-pickle").exit_code == 0


def test_resume_refuses_another_atom_unless_told(command, folder):
    store = folder / "store"
    command("map", f"{folder}/atoms.py:good", "--sweep", folder / "in.csv", "--store", store)
    path = folder / "atoms.py"
    path.write_text(path.read_text().replace("return x + 1", "return x + 2"))
    result = command("resume", store)
    assert result.exit_code == 1
    assert "-    return x + 1" in result.output
    assert "+    return x + 2" in result.output
    assert command("resume", store, "--accept-changes").exit_code == 0
    codes = json.loads((store / "run.json").read_text())["codes"]
    assert len({code["fingerprint"] for code in codes}) == 2


def test_resume_may_leave_it_to_the_cluster(cluster, command, folder):
    store = folder / "store"
    process = start_on(cluster, folder, "slow")
    wait_until(lambda: len(executed(folder)) > 50)
    process.kill()
    process.communicate()
    result = command("resume", store, "--detach")
    assert result.exit_code == 0, result.output
    wait_until(lambda: Run.open(store).state == "finished")
    assert sorted(map(int, executed(folder))) == list(range(1000))


def test_watching_status_ends_with_the_run(cluster, folder):
    process = start_on(cluster, folder, "slow")
    wait_until(lambda: (folder / "store" / "run.json").exists())
    shown = subprocess.run(
        [sys.executable, "-c", SCRIPT, "status", "store", "--watch"],
        cwd=folder, capture_output=True, text=True, timeout=60, env={**os.environ},
    )  # fmt: skip
    process.communicate(timeout=30)
    assert shown.returncode == 3, shown.stdout + shown.stderr
    assert "finished: 1,000 of 1,000" in shown.stdout
    assert Path(folder / "store").exists()
