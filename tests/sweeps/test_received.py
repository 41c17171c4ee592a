"""An electron gets what a loop over the values, as the user gave them, would give."""

import array
import json
import operator
from datetime import date
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from atomizer_dask import Atom, Electron, Run, atom, grid, zipped
from atomizer_dask.sweeps.columns import loop_values
from atomizer_dask.sweeps.received import given, restored

BIG = 2**63 + 1

# Of these a loop gives just what electrons get.
LOOPED = {
    "floats": np.linspace(-1, 1, 3),
    "singles": np.ones(3, "f4") / 3,
    "halves": np.arange(3, dtype="f2"),
    "long": np.arange(3, dtype="g"),
    "ints": np.arange(3),
    "small": np.arange(3, dtype="i1"),
    "unsigned": np.array([1, BIG], "u8"),
    "bools": np.array([True, False]),
    "complex": np.array([1j, 2], "c8"),
    "swapped": np.arange(3, dtype=">f8"),
    "strided": np.arange(9)[::-3],
    "nan": np.array([np.nan, -0.0, 0.0, np.inf]),
    "days": np.array(["2020-01-01", "NaT"], "M8[D]"),
    "nanoseconds": np.array(["2020-01-01", "2020-01-02"], "M8[ns]"),
    "spans": np.array([1, 2], "m8[s]"),
    "texts": np.array(["a", "bc"]),
    "bytes": np.array([b"a", b"bc"]),
    "objects": np.array([1, 1.0, True, None], dtype=object),
    "rows": np.arange(6.0).reshape(3, 2),
    "boxes": np.arange(12, dtype="f4").reshape(3, 2, 2),
    "list_of_ints": [1, 2, 3],
    "list_of_floats": [0.5, 1.0, -0.0],
    "list_of_bools": [True, False],
    "mixed": [1, 1.0, True],
    "ints_and_floats": [1, 2.5],
    "with_none": [1, None, 2.5],
    "big": [1, 2**70],
    "unsigned_list": [BIG, 1],
    "scalars": [np.float32(0.1), np.float32(0.2)],
    "mixed_scalars": [np.float32(0.1), 0.1, np.int8(3), 3],
    "units": [np.datetime64("2020", "Y"), np.datetime64("2020-01-01", "s")],
    "list_of_arrays": [np.arange(2), np.arange(2) + 1],
    "ragged": [np.arange(2), np.arange(3.0)],
    "lists": [[1, 2.0], [], [True]],
    "tuples": [(1, 2), (True, 2.0)],
    "dicts": [{"a": 1}, {"a": 1.0}],
    "times": [pd.Timestamp("2020"), pd.Timestamp("2021", tz="UTC")],
    "decimals": [Decimal("0.10"), Decimal(1)],
    "fractions": [Fraction(1, 3), 1],
    "dates": [date(2020, 1, 1)],
    "range": range(3, 9, 2),
    "far_range": range(2**70, 2**70 + 3),
    "tuple": (1, 2.0),
    "generator": [3, 1.5],
    "array_array": array.array("f", [0.5, 1.5]),
    "series_of_ints": pd.Series([1, 2]),
    "series_of_singles": pd.Series([0.1, 0.2], dtype="f4"),
    "series_of_bools": pd.Series([True, False]),
    "series_of_complex": pd.Series([1j, 2]),
    "series_of_objects": pd.Series([1, 1.0, np.float32(2), None], dtype=object),
    "series_of_times": pd.Series(np.array(["2020-01-01", "NaT"], "M8[s]")),
    "series_of_spans": pd.to_timedelta(pd.Series([1, 2]), unit="s"),
    "zones": pd.Series(pd.date_range("2020", periods=2, tz="Europe/Berlin")),
    "series_of_texts": pd.Series(["a", None]),
    "string": pd.Series(["a", None], dtype="string"),
    "categories": pd.Series(pd.Categorical([3, 1, 3])),
    "categories_of_texts": pd.Series(["a", "b", None], dtype="category"),
    "intervals": pd.Series(pd.interval_range(0, 2)),
    "periods": pd.Series(pd.period_range("2020", periods=2, freq="M")),
    "arrow_ints": pd.Series([1, None], dtype="int64[pyarrow]"),
    "arrow_floats": pd.Series([1.5, None], dtype="float[pyarrow]"),
    "arrow_decimals": pd.Series([Decimal("1.50")], dtype=pd.ArrowDtype(pa.decimal128(9, 2))),
    "arrow_lists": pd.Series([[1, 2], [3]], dtype=pd.ArrowDtype(pa.list_(pa.int64()))),
    "arrow_times": pd.Series([pd.Timestamp("2020")], dtype=pd.ArrowDtype(pa.timestamp("us"))),
    "index": pd.Index([1, 2]),
    "range_index": pd.RangeIndex(3),
    "times_index": pd.date_range("2020", periods=2),
    "multi_index": pd.MultiIndex.from_tuples([(1, "a"), (2, "b")]),
}  # fmt: skip

# Of these a loop gives NumPy's scalars, and electrons get Python's, exactly.
EXACT = {
    "Int64": (pd.Series([7, 2**62], dtype="Int64"), [7, 2**62]),
    "Int64_missing": (pd.Series([7, None], dtype="Int64"), [7, pd.NA]),
    "UInt8": (pd.Series([7, 255], dtype="UInt8"), [7, 255]),
    "Float64": (pd.Series([0.5, None], dtype="Float64"), [0.5, pd.NA]),
    "boolean": (pd.Series([True, None], dtype="boolean"), [True, pd.NA]),
    "sparse": (pd.Series(pd.arrays.SparseArray([0, 0, 5])), [0, 0, 5]),
    "index": (pd.Index([1, 2], dtype="Int64"), [1, 2]),
    "bare": (pd.array([1, 2], dtype="Int64"), [1, 2]),
}


def kind_and_value(v):
    return f"{type(v).__module__}.{type(v).__name__} {v!r}"


@atom(id="tests.told")
def told(v):
    return kind_and_value(v)


@atom(id="tests.told_of_payload")
def told_of_payload(v, *, context):
    return kind_and_value(context.electron.payload["v"])


@atom(id="tests.Told")
class Told(Atom):
    def process(self, context, conductor, electron):
        return kind_and_value(electron.payload["v"])


@atom(id="tests.told_again")
def told_again(v, *, context):
    if context.attempt == 1:
        raise ValueError
    return kind_and_value(v)


def results(run):
    run.wait(60)
    assert not len(run.errors), run.errors["message"].iloc[0]
    return run.to_frame()["result"].tolist()


@pytest.mark.parametrize("name", LOOPED)
def test_electrons_get_what_a_loop_gives(local, tmp_path, name):
    values = LOOPED[name]
    expected = [kind_and_value(v) for v in values]
    assert results(local.map(told, zipped(v=values))) == expected
    assert results(local.map(told, {"v": values})) == expected
    assert results(local.map(told, ({"v": v} for v in values))) == expected
    assert results(local.map(told_of_payload, grid(v=values))) == expected
    assert results(local.map(Told, grid(v=values))) == expected
    assert results(local.map(told, [{"v": v} for v in values])) == expected
    if isinstance(values, pd.Series):
        assert results(local.map(told, pd.DataFrame({"v": values}))) == expected
    run = local.map(told_again, grid(v=values), on_failure="retry", max_attempts=2)
    assert results(run) == expected
    assert [run.replay(position) for position in range(len(expected))] == expected


@pytest.mark.parametrize("name", [n for n in LOOPED if n != "fractions"])
def test_a_store_hands_out_the_same_and_takes_the_same_for_the_same(local, tmp_path, name):
    values = LOOPED[name]
    expected = [kind_and_value(v) for v in values]
    make = (grid, zipped)[len(name) % 2]
    store, options = tmp_path / "s", {"store": tmp_path / "s", "allow_pickle": True}
    local.map(told_again, make(v=values), **options).wait(30)
    again = local.map(told_again, make(v=values), **options).wait(30)
    assert len(json.loads((store / "run.json").read_text())["sweeps"]) == 1
    assert again.progress.failed == len(expected)
    run = local.attach(**options)
    assert results(run.retry()) == expected
    opened = Run.open(store, allow_pickle=True)
    payloads = [opened.sweep.payload(n)["v"] for n in range(len(values))]
    assert list(map(kind_and_value, payloads)) == expected


@pytest.mark.parametrize(("values", "expected"), EXACT.values(), ids=EXACT.keys())
def test_numbers_that_pandas_holds_in_its_own_ways_are_exact(local, values, expected):
    told_of_these = [kind_and_value(v) for v in expected]
    assert results(local.map(told, grid(v=values))) == told_of_these
    if isinstance(values, pd.Series):
        assert results(local.map(told, pd.DataFrame({"v": values}))) == told_of_these


@pytest.mark.parametrize("name", ["mixed", "rows"])
def test_in_a_child_process(local, name):
    values = LOOPED[name]
    expected = [kind_and_value(v) for v in values]
    assert results(local.map(told, grid(v=values), timeout="30s")) == expected


@pytest.mark.dask
def test_on_workers(dask):
    from atomizer_dask import Atomizer

    runs = {}
    with Atomizer(dask) as atomizer:
        for name, values in LOOPED.items():
            runs[name] = atomizer.map(told, grid(v=values))
        for name, run in runs.items():
            assert results(run) == [kind_and_value(v) for v in LOOPED[name]], name
        scalar = atomizer.send(told, {"v": np.float32(0.1)}).result(60).value()
        assert scalar == kind_and_value(np.float32(0.1))


@pytest.mark.parametrize("function", [lambda v: v**0.5, lambda v: 1 / v, lambda v: v + 0.1])
def test_results_are_those_of_the_loop_to_the_bit(local, function):
    values = np.linspace(-1, 1, 21, dtype="f4")
    with np.errstate(all="ignore"):
        expected = np.array([function(v) for v in values])
        run = local.map(atom(function, id="tests.f"), grid(v=values)).wait(30)
    got = run.to_frame()["result"].to_numpy()
    assert got.dtype == expected.dtype
    assert got.tobytes() == expected.tobytes()


def test_frames_show_columns_as_before(local):
    sweep = zipped(a=[1, 2.5], b=np.array(["x", "y"]), c=[np.float32(1), 2.0], d=range(2))
    frame = local.map(told_all, sweep).wait(30).to_frame()
    kinds = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    assert kinds == {"a": "float64", "b": "str", "c": "float64", "d": "int64", "result": "str"}
    assert local.map(total, sweep).wait(30).to_frame()["result"].tolist() == [1.0, 3.5]


@atom(id="tests.told_all")
def told_all(a, b, c, d):
    return " ".join(map(kind_and_value, (a, b, c, d)))


@atom(id="tests.total", vectorized=True)
def total(a, b, c, d):
    assert a.dtype == np.float64
    return a + d - np.where(b == "y", 0, 0)


def test_masked_arrays_and_matrices_are_what_a_loop_over_them_gives(local):
    masked = np.ma.array([1.0, 2.0], mask=[False, True])
    assert results(local.map(told, grid(v=masked))) == [kind_and_value(v) for v in masked]
    matrix = np.matrix([[1, 2], [3, 4]])
    assert results(local.map(told, grid(v=matrix))) == [kind_and_value(v) for v in matrix]


def test_electrons_sent_by_hand_get_what_was_sent(local):
    local.register(told)
    for values in LOOPED.values():
        futures = [local.send(told, {"v": v}) for v in values]
        assert [f.result(30).value() for f in futures] == [kind_and_value(v) for v in values]
        electron = Electron("tests.told", {"v": next(iter(values))})
        assert local.send(electron).result(30).value() == kind_and_value(next(iter(values)))


@pytest.mark.parametrize("name", LOOPED)
def test_a_column_is_restored_from_its_values_and_its_form(name):
    column = given("v", LOOPED[name])
    again = restored(column.values, column.form)
    assert again.form == column.form
    assert again.scalars == column.scalars
    same = map(operator.is_, map(type, again.shown), map(type, column.shown))
    assert all(same)
    assert getattr(again.shown, "dtype", None) == getattr(column.shown, "dtype", None)
    handed = loop_values(again.values, scalars=again.scalars)
    assert list(map(kind_and_value, handed)) == list(map(kind_and_value, LOOPED[name]))
