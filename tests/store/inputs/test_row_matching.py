"""A second map into the same store: what is there is not computed again."""

import json
import os
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from atomizer_dask import Run, atom, grid, zipped
from atomizer_dask.errors import InvalidSweepError, StoreError
from atomizer_dask.store.inputs.row_matching import match
from atomizer_dask.sweeps.inputs import Columns


@atom(id="tests.counted")
def counted(x, log, replica=0, *, context):
    """Its executions can be counted, and its outputs are random."""
    with open(log, "a") as file:
        file.write(f"{x}\n")
    return {"u": context.rng.random(), "y": x * 2}


@atom(id="tests.fails_until")
def fails_until(x, log, *, context):
    with open(log, "a") as file:
        file.write(f"{x}\n")
    if x % 3 == 1 and not os.path.exists(log + ".mended"):
        raise ValueError(f"{x} with {context.rng.random()}")
    return context.rng.random()


@atom(id="tests.echo_one")
def echo_one(x, log):
    with open(log, "a") as file:
        file.write("1\n")
    return {"repr": repr(x)}


@pytest.fixture
def log(tmp_path):
    """A file with a line per execution."""
    return tmp_path / "log"


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def atomizer(atomizer):
    atomizer.register(counted, fails_until, echo_one)
    return atomizer


def executed(log):
    lines = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return sorted(map(int, lines))


def rows_in(store):
    return sorted(pd.read_parquet(Path(store, "properties"))["electron"])


def manifest_of(store):
    return json.loads((store / "run.json").read_text())


# -- the same sweep ----------------------------------------------------------------------------


def test_second_map_computes_nothing(atomizer, store, log):
    sweep = grid(x=range(20), log=[str(log)])
    run = atomizer.map(counted, sweep, seed=5, store=store).wait(60)
    assert executed(log) == list(range(20))
    for options in ({}, {"seed": 5}):
        again = atomizer.map(counted, sweep, store=store, **options).wait(60)
        assert executed(log) == []
        assert again.seed == 5
        assert again.id == run.id
        assert_frame_equal(again.to_frame(), run.to_frame())
        assert_frame_equal(again.to_frame(metadata=True), run.to_frame(metadata=True))
        assert again.progress.done == 20
        assert len([*again]) == 20
    assert rows_in(store) == list(range(20))
    assert len(manifest_of(store)["sweeps"]) == 1


def test_another_seed_or_atom_is_refused(atomizer, store, log):
    sweep = grid(x=range(2), log=[str(log)])
    atomizer.map(counted, sweep, seed=5, store=store).wait(60)
    with pytest.raises(StoreError, match=r"made with seed 5, not 6: give that one, or none"):
        atomizer.map(counted, sweep, seed=6, store=store)
    with pytest.raises(StoreError, match=r"store of a run of tests\.counted, not of tests\.fails"):
        atomizer.map(fails_until, sweep, store=store)
    with pytest.raises(InvalidSweepError, match=r"has the inputs \['log', 'x'\], the sweep has"):
        atomizer.map(counted, grid(x=range(2), log=[str(log)], replica=[1]), store=store)
    assert atomizer.map(counted, sweep, store=store).wait(60).progress.done == 2


# -- another sweep -----------------------------------------------------------------------------


def extended(atomizer, store, log, first, second, f=counted):
    """The frames of a sweep and of another one in the same store; and what was executed."""
    before = atomizer.map(f, first, seed=5, store=store).wait(60)
    frame = before.to_frame()
    executed(log)
    run = atomizer.map(f, second, store=store).wait(60)
    new = executed(log)
    frames = [
        run.to_frame(),
        Run.open(store).to_frame(),
        atomizer.attach(store).wait(60).to_frame(),
    ]
    assert executed(log) == []
    for each in frames[1:]:
        assert_frame_equal(each, frames[0])
    return frame, frames[0], new


def as_sweep(frame, log):
    return frame.assign(log=str(log))


def test_more_replicas(atomizer, store, log):
    axes = {"x": range(5), "log": [str(log)]}
    frame, more, new = extended(
        atomizer, store, log, grid(**axes, replica=range(2)), grid(**axes, replica=range(4))
    )
    assert new == sorted([0, 1, 2, 3, 4] * 2)
    assert_frame_equal(more[more.replica < 2].reset_index(drop=True), frame, check_index_type=False)
    assert more["u"].is_unique
    assert rows_in(store) == list(range(20))
    assert manifest_of(store)["sweeps"][1]["first"] == 10


def test_finer_grid(atomizer, store, log):
    coarse, fine = (grid(x=np.linspace(0, 1, n), log=[str(log)]) for n in (5, 9))
    first = atomizer.map(echo_one, coarse, store=store).wait(60)
    second = atomizer.map(echo_one, fine, store=store).wait(60)
    assert executed(log) == [1] * 9
    ids = second.to_frame(metadata=True)["id"]
    assert ids[::2].tolist() == first.to_frame(metadata=True)["id"].tolist()
    assert ids[1::2].tolist() == [f"{first.id}-{n}" for n in range(5, 9)]


def test_streams_are_those_of_one_long_run(atomizer, store, log):
    axes = {"log": [str(log)]}
    _, more, _ = extended(atomizer, store, log, grid(x=range(5), **axes), grid(x=range(20), **axes))
    bare = atomizer.map(counted, grid(x=range(20), **axes), seed=5).wait(60).to_frame()
    assert_frame_equal(more, bare)


def test_smaller_sweep(atomizer, store, log):
    axes = {"log": [str(log)]}
    frame, less, new = extended(
        atomizer, store, log, grid(x=range(20), **axes), grid(x=range(5, 9), **axes)
    )
    assert new == []
    assert_frame_equal(less, frame[5:9].reset_index(drop=True), check_index_type=False)
    for run in (Run.open(store), atomizer.attach(store).wait(60)):
        assert run.progress.total == 4
        assert run.progress.done == 4
        assert sorted(p.result["y"] for p in run) == [10, 12, 14, 16]
        assert run.to_frame(metadata=True)["id"].tolist() == [f"{run.id}-{n}" for n in range(5, 9)]


def test_reordered_sweep(atomizer, store, log):
    rows = pd.DataFrame({"x": range(10)})
    frame, other, new = extended(
        atomizer, store, log, as_sweep(rows, log), as_sweep(rows[::-1], log)
    )
    assert new == []
    assert_frame_equal(other, frame[::-1])


def test_rows_that_are_alike_have_electrons_of_their_own(atomizer, store, log):
    _, more, new = extended(
        atomizer, store, log,
        zipped(x=[1, 1, 2], log=[str(log)] * 3), zipped(x=[2, 1, 1, 1, 2], log=[str(log)] * 5),
    )  # fmt: skip
    assert new == [1, 2]
    assert more["u"].is_unique
    assert rows_in(store) == list(range(5))


def test_dataframe_with_an_index_of_its_own(atomizer, store, log):
    rows = pd.DataFrame({"x": range(4)}, index=list("abcd"))
    grown = pd.DataFrame(
        {"x": [7, 2, 3, 0]}, index=pd.MultiIndex.from_product([["p", "q"], [1, 2]])
    )
    frame, more, new = extended(atomizer, store, log, as_sweep(rows, log), as_sweep(grown, log))
    assert new == [7]
    assert more.index.equals(grown.index)
    assert more["u"].tolist()[1:] == frame["u"].loc[["c", "d", "a"]].tolist()


def test_another_index_of_the_same_rows_comes_back(atomizer, store, log):
    rows = pd.DataFrame({"x": range(4)})
    _, other, new = extended(
        atomizer, store, log, as_sweep(rows, log), as_sweep(rows.set_axis(list("abcd")), log)
    )
    assert new == []
    assert other.index.tolist() == list("abcd")


def test_another_order_of_columns_comes_back(atomizer, store, log):
    _, other, new = extended(
        atomizer, store, log, zipped(x=[1, 2], log=[str(log)] * 2),
        zipped(log=[str(log)] * 2, x=[1, 2]),
    )  # fmt: skip
    assert new == []
    assert other.columns.tolist() == ["log", "x", "u", "y"]


def test_several_extensions(atomizer, store, log):
    axes = {"log": [str(log)]}
    for stop in (3, 6, 4, 8):
        run = atomizer.map(counted, grid(x=range(stop), **axes), seed=1, store=store).wait(60)
        assert run.to_frame()["y"].tolist() == [2 * x for x in range(stop)]
    assert executed(log) == list(range(8))
    whole = atomizer.map(counted, grid(x=[9, 3], **axes), store=store).wait(60)
    assert executed(log) == [9]
    bare = atomizer.map(counted, grid(x=[*range(8), 9], **axes), seed=1).wait(60).to_frame()
    assert whole.to_frame()["u"].tolist() == bare["u"].iloc[[8, 3]].tolist()
    assert atomizer.attach(store).wait(60).to_frame()["x"].tolist() == [9, 3]


def test_the_same_smaller_sweep_twice_is_recorded_once(atomizer, store, log):
    axes = {"log": [str(log)]}
    atomizer.map(counted, grid(x=range(8), **axes), store=store).wait(60)
    for _ in range(3):
        atomizer.map(counted, grid(x=range(4), **axes), store=store).wait(60)
    assert len(manifest_of(store)["sweeps"]) == 2


def test_what_was_cancelled_is_executed_in_an_extended_run(atomizer, store, log):
    axes = {"log": [str(log)]}
    run = atomizer.map(counted, grid(x=range(2000), **axes), seed=1, store=store)
    run.cancel()
    run.wait(60)
    axes = {"x": range(2010)} | axes
    run = atomizer.map(counted, grid(**axes), store=store).wait(60)
    assert run.progress.done == 2010
    bare = atomizer.map(counted, grid(**axes), seed=1).wait(60)
    assert_frame_equal(run.to_frame(), bare.to_frame())
    assert rows_in(store) == list(range(2010))


# -- failed rows -------------------------------------------------------------------------------


def test_failed_rows_of_an_extended_run(atomizer, store, log):
    axes = {"log": [str(log)]}
    atomizer.map(fails_until, grid(x=range(6), **axes), seed=1, store=store).wait(60)
    assert executed(log) == list(range(6))
    sweep = pd.DataFrame({"x": [7, 4, 2, 8], "log": str(log)}, index=list("abcd"))
    run = atomizer.map(fails_until, sweep, store=store).wait(60)
    assert executed(log) == [7, 8]  # what failed is there, as a failure
    for each in (run, Run.open(store)):
        assert each.errors.index.tolist() == ["a", "b"]
        assert each.errors["x"].tolist() == [7, 4]
        assert each.progress.failed == 2
        assert each.progress.done == 2
        assert sorted(p.error is None for p in each) == [False, False, True, True]
    with pytest.raises(ValueError, match="4 with"):
        run.replay("b")
    with pytest.raises(ValueError, match="7 with"):
        run.replay(f"{run.id}-6")
    with pytest.raises(KeyError, match="has no electron"):
        run.replay(f"{run.id}-1")  # it is none of this sweep
    Path(f"{log}.mended").touch()
    executed(log)
    run.retry().wait(60)
    assert executed(log) == [4, 7]
    bare = atomizer.map(fails_until, grid(x=[*range(6), 7, 8], **axes), seed=1).wait(60).to_frame()
    expected = bare["result"].iloc[[6, 4, 2, 7]].tolist()
    for each in (run, Run.open(store), atomizer.attach(store).wait(60)):
        assert each.to_frame()["result"].tolist() == expected
        assert len(each.errors) == 0
    rows = pd.read_parquet(store / "properties").set_index("electron")
    assert sorted(rows.index) == list(range(8))
    assert rows["error"].notna()[rows["error"].notna()].index.tolist() == [1]  # still failed
    executed(log)
    whole = atomizer.map(fails_until, grid(x=range(6), **axes), store=store).wait(60)
    assert whole.errors["x"].tolist() == [1]
    assert len(whole.failures) == 1
    whole.retry().wait(60)
    assert rows_in(store) == list(range(8))
    assert executed(log) == [1]


# -- which values are alike --------------------------------------------------------------------

ALIKE = {
    "nan": ([np.nan, 1.0], [1.0, np.nan, 2.0], 1),
    "none": (["a", None], [None, "a", "b"], 1),
    "none_to_text": (["a", None], ["a", "b"], 1),
    "text_to_none": (["a", "b"], ["a", None], 1),
    "ints_to_mixed": ([1, 2], [1, 2, "a"], 1),
    "ints_to_none": ([1, 2], [1, None], 1),
    "mixed_to_ints": ([1, "a"], [1, 2], 1),
    "floats_of_ints": ([1, 2], [1.0, 2.5], 2),
    "bools_and_ints": ([True, False], [1, 0], 2),
    "ints_bools_and_floats": ([1, 1.0, True], [True, 1, 1.0], 0),
    "signs_of_zero": ([0.0, -0.0, 1.0], [-0.0, 0.0, -0.0], 1),
    "within_tuples": ([(1, 2), (1.0, 2)], [(True, 2), (1, 2), (1.0, 2)], 1),
    "within_dicts": ([{"a": 1}], [{"a": 1.0}, {"a": 1}], 1),
    "nan_within": ([(np.nan, 1), (2, 3)], [(2, 3), (float("nan"), 1)], 0),
    "nan_in_arrays": ([np.array([np.nan, 1])], [np.array([np.nan, 1])], 0),
    "dtypes_of_arrays": ([np.zeros(2, "f4")], [np.zeros(2), np.zeros(2, "f4")], 1),
    "arrays_and_lists": ([np.zeros(2)], [[0.0, 0.0]], 1),
    "array_and_list": (np.array([0.5, 1.5]), [0.5, 1.5], 2),
    "array_and_array": (np.linspace(0, 1, 3), np.linspace(0, 1, 5), 2),
    "float32_and_float64": (np.ones(1, "f4"), np.ones(1), 1),
    "list_of_scalars_and_array": ([np.float64(0.5)], np.array([0.5, 1.5]), 1),
    "range_and_list": (range(3), [2, 1, 7], 1),
    "series_and_list": (pd.Series([1, 2], dtype="i2"), [2, 3], 1),
    "nullable_and_plain": (pd.Series([1, 2], dtype="Int64"), pd.Series([2, 3]), 1),
    "texts_of_an_array": (np.array(["a", "b"]), np.array(["b", "c"]), 1),
    "decimals": ([Decimal("1.0")], [Decimal("1.00"), Decimal("1.0")], 1),
    "none_and_nan": ([None], [np.nan, None], 1),
    "beyond_64_bits": (range(2**70, 2**70 + 2), [2**70 + 1, 2**70 + 2], 1),
    "text_and_ints": (["1", "2"], [1, 2], 2),
    "lists": ([["ab", "ab"], ["c"]], [["ab", "a" + "b"], ["d"]], 1),
    "tuples": ([("x", "x"), (1, 2)], [("x", "x"), (2, 1)], 1),
    "dicts": ([{"a": "k", "b": "k"}], [{"a": "k", "b": "k"}, {"a": "l", "b": "k"}], 1),
    "arrays": ([np.arange(3), np.arange(3) + 1], [np.arange(3), np.arange(4)], 1),
    "big": ([2**53, 2**53 + 1], [2**53 + 1, 2**53 + 2], 1),
    "bytes": ([b"a", b"b"], [b"b", b"c"], 1),
    "dates": ([date(2020, 1, 1)], [date(2020, 1, 1), date(2020, 1, 2)], 1),
    "days": (
        np.array(["2020-01-01", "NaT"], "M8[D]"), np.array(["NaT", "2020-01-02"], "M8[D]"), 1,
    ),
    "dates_and_ints": (np.array(["1970-01-01"], "M8[D]"), [0], 1),
    "categories": (pd.Series(pd.Categorical(["a", "b"])), pd.Series(["a", "c"]), 1),
    "nullable": (
        pd.Series(pd.array([1, None], "Int64")),
        pd.Series(pd.array([None, 2], "Int64")),
        1,
    ),
    "zones": (
        pd.Series(pd.date_range("2020", periods=2, tz="UTC")),
        pd.Series(pd.date_range("2020", periods=3, tz="UTC")), 1,
    ),
    "complex": ([1j, 2], [2, 3j], 1),
}  # fmt: skip


@pytest.mark.parametrize(("first", "second", "new"), ALIKE.values(), ids=ALIKE.keys())
def test_values_that_are_alike(local, store, log, first, second, new):
    local.register(echo_one)
    local.map(echo_one, zipped(x=first, log=[str(log)] * len(first)), store=store).wait(60)
    executed(log)
    run = local.map(echo_one, zipped(x=second, log=[str(log)] * len(second)), store=store).wait(60)
    assert executed(log) == [1] * new
    assert run.progress.done == len(second)
    frame = run.to_frame()
    assert_frame_equal(Run.open(store).to_frame(), frame)
    assert_frame_equal(local.attach(store).wait(60).to_frame(), frame)


@atom(id="tests.kind")
def kind(x):
    return type(x).__name__


def test_inputs_stay_what_they_are_wherever_batches_begin(local, store):
    local.register(kind)
    run = local.map(kind, zipped(x=range(30)), store=store)
    run.cancel()
    run.wait(30)
    run = local.map(kind, zipped(x=[*range(30), 0.5]), store=store).wait(30)
    more = local.map(kind, zipped(x=[*range(30), 0.5, *np.arange(31.0, 60.0)]), store=store)
    kinds = more.wait(30).to_frame()["result"].tolist()
    assert kinds == ["int"] * 30 + ["float"] + ["float64"] * 29


def test_match_of_large_columns():
    known = {"x": np.arange(100_000), "y": np.zeros(100_000)}
    given = {"y": np.zeros(100_001), "x": np.arange(100_001)[::-1]}
    found = match([Columns(known, 100_000)], Columns(given, 100_001))
    assert found[0] == -1
    assert (found[1:] == np.arange(100_000)[::-1]).all()


# -- parameters with defaults ------------------------------------------------------------------


@atom(id="tests.counted")
def counted_with_default(x, log, power=1, *, context):
    """The same with one parameter more."""
    with open(log, "a") as file:
        file.write(f"{x}\n")
    return {"u": context.rng.random(), "y": x * 2**power}


def test_parameter_with_a_default_that_is_added(atomizer, store, log):
    before = atomizer.map(counted, grid(x=range(5), log=[str(log)]), seed=5, store=store).wait(60)
    executed(log)
    atomizer.register(counted_with_default)
    options = {"store": store, "accept_changes": True}
    run = atomizer.map(
        counted_with_default, grid(x=range(5), log=[str(log)], power=[1, 2]), **options
    ).wait(60)
    assert executed(log) == list(range(5))  # those of the other power alone
    frames = [run.to_frame(), Run.open(store).to_frame(), atomizer.attach(store).wait().to_frame()]
    for frame in frames:
        assert_frame_equal(frame, frames[0])
        assert frame["y"].tolist() == [x * 2**power for x in range(5) for power in (1, 2)]
        old = frame[frame["power"] == 1].reset_index(drop=True)
        assert_frame_equal(old[["x", "u"]], before.to_frame()[["x", "u"]])
    # And back: who does not name it means its default.
    again = atomizer.map(counted_with_default, grid(x=range(6), log=[str(log)]), **options).wait(60)
    assert executed(log) == [5]
    assert "power" not in again.to_frame()
    assert again.to_frame()["y"].tolist() == [2 * x for x in range(6)]
    for each in (Run.open(store), atomizer.attach(store).wait(60)):
        assert_frame_equal(each.to_frame(), again.to_frame())
    assert executed(log) == []


def test_parameter_without_a_default_makes_another_sweep(atomizer, store, log):
    atomizer.map(counted_with_default, grid(x=[1], log=[str(log)], power=[3]), store=store).wait(60)
    with pytest.raises(InvalidSweepError, match="has a default in the atom may be left out"):
        atomizer.map(counted, grid(x=[1], log=[str(log)]), store=store, accept_changes=True)


def test_what_was_not_executed_gets_the_default(local, store, log):
    local.register(counted)
    run = local.map(counted, grid(x=range(3), log=[str(log)]), store=store)
    run.cancel()
    run.join()
    local.register(counted_with_default)
    options = {"store": store, "accept_changes": True}
    sweep = grid(x=range(3), log=[str(log)], power=[1])
    run = local.map(counted_with_default, sweep, **options).wait(60)
    assert run.to_frame()["y"].tolist() == [0, 2, 4]
    assert run.progress.done == 3
