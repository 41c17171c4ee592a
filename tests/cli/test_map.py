import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from atomizer_dask.cli.commands import main

pytestmark = pytest.mark.dask

ATOMS = """
import time

def add(x, y=1):
    if x == 3:
        raise ValueError("three is not allowed")
    return x + y

def lists(x):
    return {"value": {"nested": object}}

NUMBER = 7
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "atoms_for_cli.py").write_text(ATOMS)
    pd.DataFrame({"x": [1, 2, 3, 4], "y": [10, 20, 30, 40]}).to_csv(
        tmp_path / "in.csv", index=False
    )
    return tmp_path


@pytest.fixture
def run(cluster, folder):
    def run_map(*arguments, out="out.parquet", scheduler=True):
        where = ["--scheduler", cluster.scheduler_address] if scheduler else []
        target, source, *more = map(str, arguments)
        options = ["--sweep", source, "--out", str(folder / out), *more, *where]
        return CliRunner().invoke(main, ["map", target, *options])

    return run_map


def test_map_writes_inputs_and_outputs_together(run, folder):
    result = run(f"{folder}/atoms_for_cli.py:add", folder / "in.csv")
    assert result.exit_code == 3  # one row failed
    frame = pd.read_parquet(folder / "out.parquet")
    assert frame["x"].tolist() == [1, 2, 3, 4]
    assert frame["result"].dtype == "Int64"
    assert frame["result"].fillna(-1).tolist() == [11, 22, -1, 44]
    assert "4 rows, 1 failed" in result.output
    assert "1 x exception: ValueError: three is not allowed" in result.output
    errors = pd.read_csv(folder / "out.parquet.errors.csv")
    assert errors["x"].tolist() == [3]
    assert "three is not allowed" in errors["traceback"][0]


def test_fixed_values_are_the_same_for_all_rows(run, folder):
    pd.DataFrame({"x": [1, 2]}).to_csv(folder / "in.csv", index=False)
    target = f"{folder}/atoms_for_cli.py:add"
    result = run(target, folder / "in.csv", "--fixed", "y=0.5")
    assert result.exit_code == 0, result.output
    frame = pd.read_parquet(folder / "out.parquet")
    assert list(frame) == ["x", "result"]
    assert frame["result"].tolist() == [1.5, 2.5]
    for pair, message in {
        "y": "--fixed takes NAME=VALUE",
        "z=1": "unknown 'z'",
        "x=1": "'x' is fixed",
    }.items():
        result = run(target, folder / "in.csv", "--fixed", pair)
        assert result.exit_code not in (0, 3)
        assert message in result.output


def test_map_reads_parquet_and_writes_csv_with_metadata(run, folder):
    frame = pd.DataFrame({"x": [1.5, 2.5]})
    frame.to_parquet(folder / "in.parquet")
    result = run(
        f"{folder}/atoms_for_cli.py:add", folder / "in.parquet", "--metadata", out="out.csv"
    )
    assert result.exit_code == 0, result.output
    written = pd.read_csv(folder / "out.csv")
    assert written["result"].tolist() == [2.5, 3.5]
    assert {"id", "start", "end", "duration", "worker", "attempts"} <= set(written)


def test_map_gives_the_same_for_the_same_seed(run, folder):
    (folder / "random_atom.py").write_text(
        "def draw(x, *, context):\n    return context.rng.random()\n"
    )
    frames = []
    for out in ("a.parquet", "b.parquet"):
        result = run(f"{folder}/random_atom.py:draw", _xs(folder), "--seed", 5, out=out)
        assert result.exit_code == 0, result.output
        frames.append(pd.read_parquet(folder / out))
    pd.testing.assert_frame_equal(*frames)


def _xs(folder):
    path = folder / "xs.csv"
    pd.DataFrame({"x": range(10)}).to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("atoms_for_cli.py:ad", "did you mean 'add'?"),
        ("atoms_for_cli.py:NUMBER", "no atom but int"),
        ("nothing.py:add", "there is no file"),
        ("no_such_module:add", "cannot import 'no_such_module'"),
        ("add", "expected MODULE:ATOM"),
    ],
)
def test_map_says_what_is_wrong_with_its_atom(run, folder, target, message):
    where = f"{folder}/{target}" if target.endswith(".py") or ".py:" in target else target
    result = run(where, folder / "in.csv")
    assert result.exit_code == 2
    assert message in result.output
    assert not (folder / "out.parquet").exists()


def test_map_names_a_column_that_does_not_fit(run, folder):
    pd.DataFrame({"xx": [1]}).to_csv(folder / "bad.csv", index=False)
    result = run(f"{folder}/atoms_for_cli.py:add", folder / "bad.csv")
    assert result.exit_code == 1
    assert "missing 'x'" in result.output
    assert "unknown 'xx' (did you mean 'x'?)" in result.output


def test_map_says_at_once_where_it_cannot_write(run, folder):
    result = run(f"{folder}/atoms_for_cli.py:add", folder / "in.csv", out="no/such/folder.parquet")
    assert result.exit_code == 2
    assert "cannot write to" in result.output


def test_outputs_that_parquet_cannot_hold_are_saved_as_text(run, folder):
    result = run(f"{folder}/atoms_for_cli.py:lists", _xs(folder))
    assert result.exit_code == 1
    assert "nothing is lost" in result.output
    assert len(pd.read_csv(folder / "out.csv")) == 10


@pytest.mark.parametrize(
    "command", [["atomizer-dask"], ["dask", "atomizer"]], ids=["atomizer-dask", "dask atomizer"]
)
def test_pi_prints_estimate_rate_and_frame(command):
    program, *group = command
    path = Path(sys.executable).parent / program
    done = subprocess.run(
        [path, *group, "pi", "--tosses", "1e6", "--seed", "7", "--workers", "1"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    estimate, rate, seed, _, header, *rows = done.stdout.splitlines()
    assert estimate.startswith("pi = 3.14")
    assert rate.startswith("1,000,000 tosses in ")
    assert seed == "seed 7"
    assert header.split()[:3] == ["tosses", "in", "result_tosses"]
    assert len(rows) == 5


@pytest.mark.parametrize("tosses", ["0", "-3", "1.5", "many"])
def test_pi_refuses_what_is_no_number_of_tosses(tosses):
    result = CliRunner().invoke(main, ["pi", "--tosses", tosses])
    assert result.exit_code == 2
    assert "Invalid value for '--tosses'" in result.output


def test_a_scheduler_that_is_not_there_is_named(folder):
    result = CliRunner().invoke(main, ["pi", "--scheduler", "tcp://127.0.0.1:1"])
    assert result.exit_code == 1
    assert "nobody answers at 'tcp://127.0.0.1:1'" in result.output
