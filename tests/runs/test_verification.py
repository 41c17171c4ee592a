import json
import os
import random
import time

import numpy as np
import pandas as pd
import pytest

from atomizer_dask import Run, StoreError, atom, grid
from atomizer_dask.runs.verification import compare


@atom(id="tests.verification.reproducible")
def reproducible(x, *, context):
    return {"u": context.rng.random(), "path": context.rng.random(3), "text": f"{x}"}


@atom(id="tests.verification.careless")
def careless(x):
    rng = random.SystemRandom()
    return {"noise": rng.random(), "nearly": x * (1 + 1e-11 * rng.random()), "same": x}


@pytest.mark.parametrize("kept", [False, True])
def test_what_is_reproducible_is_equal_to_the_last_bit(atomizer, kept, tmp_path):
    store = tmp_path / "store" if kept else None
    run = atomizer.map(reproducible, grid(x=range(3000)), store=store).wait()
    found = run.verify(50)
    assert found.index.tolist() == ["u", "path", "text"]
    assert (found["compared"] == 50).all()
    assert (found["equal"] == 50).all()
    assert found["first"].isna().all()
    assert run.progress.done == 3000
    assert run.state == "finished"


def test_what_is_not_reproducible_is_told_by_column(atomizer):
    run = atomizer.map(careless, grid(x=range(1, 200))).wait()
    found = run.verify(20, seed=1)
    assert found.loc["noise", "different"] == 20
    assert found.loc["nearly", "close"] == 20
    assert 0 < found.loc["nearly", "largest"] < 1e-10
    assert found.loc["same", "equal"] == 20
    assert found.loc["noise", "first"] in run.to_frame().index


@pytest.mark.dask
def test_sample_is_executed_on_another_worker(dask, tmp_path):
    from atomizer_dask import Atomizer

    @atom
    def where(x):
        return os.getpid()

    run = Atomizer(dask).map(where, grid(x=range(2000))).wait()
    assert run.to_frame()["result"].nunique() == 2
    assert run.verify(40)["equal"]["result"] == 0


def test_electrons_that_fail_this_time_differ(local, tmp_path):
    flag = tmp_path / "flag"

    @atom
    def fickle(x):
        if flag.exists():
            raise ValueError
        return x

    run = local.map(fickle, grid(x=range(30))).wait()
    flag.touch()
    found = run.verify(10)
    assert found.loc["result", "different"] == 10
    assert run.progress.failed == 0


def test_sample_is_as_large_as_can_be(local):
    run = local.map(careless, grid(x=[1, 2, 3])).wait()
    assert run.verify(100)["compared"].tolist() == [3, 3, 3]


def test_verifying_nothing_is_an_error(local):
    run = local.map(careless, grid(x=[1])).wait()
    with pytest.raises(ValueError, match="at least 1, got 0"):
        run.verify(0)


def test_run_that_was_opened_cannot_be_verified(local, tmp_path):
    local.map(careless, grid(x=[1]), store=tmp_path / "store").wait()
    with pytest.raises(StoreError, match="attach"):
        Run.open(tmp_path / "store").verify(1)


def test_comparing_tells_equal_close_and_different():
    before = pd.DataFrame({"a": [1.0, 2.0, np.nan, 4.0]})
    again = pd.DataFrame({"a": [1.0, 2.0 + 1e-12, np.nan, 5.0]})
    row = compare(before, again, ["a"], 1e-9).loc["a"]
    assert row[["compared", "equal", "close", "different"]].tolist() == [4, 2, 1, 1]
    assert row["largest"] == pytest.approx(0.2)
    assert row["first"] == 1


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([np.nan, 1.0], [np.nan, 1.0], "equal"),
        ({"a": [1.0, np.nan]}, {"a": [1.0, np.nan]}, "equal"),
        (0.0, -0.0, "close"),
        (1, True, "close"),
        (np.array([np.nan, 1.0]), np.array([np.nan, 1.0 + 1e-13]), "close"),
        ({"a": [1.0]}, {"a": [1.0 + 1e-13]}, "close"),
        ({"a": [1.0]}, {"b": [1.0]}, "different"),
        (np.array([1.0]), np.array([1.0, 2.0]), "different"),
        ("a", "b", "different"),
        (None, 1.0, "different"),
    ],
)
def test_values_of_all_kinds_are_compared(one, other, expected):
    before = pd.DataFrame({"a": pd.Series([one, 1], dtype=object)})
    again = pd.DataFrame({"a": pd.Series([other, 1], dtype=object)})
    row = compare(before, again, ["a"], 1e-9).loc["a"]
    assert row[expected] == (2 if expected == "equal" else 1)
    assert row["equal"] + row["close"] + row["different"] == 2
    assert row["first"] == (None if expected == "equal" else 0)


# -- provenance ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [False, True])
def test_provenance_says_where_results_come_from(atomizer, kept, tmp_path):
    store = str(tmp_path / "store") if kept else None
    run = atomizer.map(reproducible, grid(x=range(500)), seed=11, store=store, timeout="9s").wait()
    facts = json.loads(json.dumps(run.provenance))
    assert facts["run_id"] == run.id
    assert facts["seed"] == 11
    assert facts["store"] == store
    assert facts["options"]["timeout"] == 9.0
    session = facts["sessions"][0]
    assert session["pid"] == os.getpid()
    assert session["packages"]["numpy"] == np.__version__
    assert "git" in session
    assert sum(worker["electrons"] for worker in facts["workers"].values()) == 500
    assert all(worker["seconds"] > 0 for worker in facts["workers"].values())
    assert len(facts["codes"]) == 1


@pytest.mark.parametrize("kept", [False, True])
def test_seconds_of_workers_are_those_that_they_were_busy(local, kept, tmp_path):
    @atom(id="tests.verification.slices", vectorized=True)
    def slices(x):
        time.sleep(0.002)
        return x

    store = tmp_path / "store" if kept else None
    began = time.perf_counter()
    run = local.map(slices, grid(x=range(100_000)), store=store).wait()
    took = time.perf_counter() - began
    (work,) = run.provenance["workers"].values()
    assert work["electrons"] == 100_000
    assert 0.002 <= work["seconds"] <= 2 * took  # two threads


def test_provenance_of_an_opened_run(local, tmp_path):
    run = local.map(reproducible, grid(x=range(50)), seed=11, store=tmp_path / "store").wait()
    opened = Run.open(tmp_path / "store").provenance
    assert opened == run.provenance
    assert opened["sessions"][0]["end"] is not None


def test_frame_names_its_run_and_store(local, tmp_path):
    run = local.map(careless, grid(x=[1]), store=tmp_path / "store").wait()
    assert run.to_frame().attrs == {"run_id": run.id, "store": str(tmp_path / "store")}
    assert local.map(careless, grid(x=[1])).wait().to_frame().attrs["store"] is None
