import io
import json
import pickle
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import pairwise
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomizer_dask.codec import RefusedError, common, decode, encode, recode
from atomizer_dask.columns import as_objects, column, concatenate, python_values
from atomizer_dask.errors import StoreError, UnstorableError


def written(array, note):
    """Return a file with a column and its note."""
    metadata = {"note": json.dumps(note)}
    schema = pa.schema([pa.field("x", array.type, metadata=metadata)])
    file = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([array], schema=schema), file)
    return file


def stored(array, note):
    """Return a column and its note as they come back from a file."""
    table = pq.read_table(written(array, note))
    return table["x"], json.loads(table.schema.field("x").metadata[b"note"])


def there_and_back(values, *, allow_pickle=False):
    coded = encode(values, allow_pickle=allow_pickle)
    return decode(*stored(*coded), allow_pickle=allow_pickle)


def row_facts(value):
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, [row_facts(item) for item in value.ravel().tolist()]
    if isinstance(value, list | tuple):
        return type(value), [row_facts(item) for item in value]
    if isinstance(value, dict):
        return dict, [(row_facts(key), row_facts(item)) for key, item in value.items()]
    if isinstance(value, np.generic):
        # Long doubles have bytes of padding, and far times have no repr.
        return value.dtype, repr(value) if value.dtype.kind in "fc" else value.tobytes()
    return type(value), repr(value), getattr(value, "unit", None)


def facts(values):
    """Return all that somebody could notice of a column."""
    assert isinstance(values, np.ndarray)
    return values.dtype, values.shape, [row_facts(row) for row in values]


def check(values, *, allow_pickle=False):
    assert facts(there_and_back(values, allow_pickle=allow_pickle)) == facts(values)


NUMBERS = [*"?bBhHiIlLefdFD"]


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 2, 3), (4, 0), (4, 2, 0)])
def test_numbers_come_back(kind, shape):
    values = (np.arange(np.prod(shape)).reshape(shape) * 3 - 2).astype(kind)
    check(values)
    check(values[:0])
    check(values[::2])
    assert there_and_back(values.astype(values.dtype.newbyteorder(">"))).dtype == values.dtype


def test_numbers_need_no_note_and_no_copy():
    values = np.arange(1000.0)
    array, note = encode(values)
    assert note == {}
    assert array.type == pa.float64()
    assert np.shares_memory(decode(array, note), values)


def test_floats_keep_every_bit():
    values = np.array([np.nan, -np.nan, -0.0, np.inf, 5e-324, -np.inf])
    values[1:2].view(np.int64)[0] += 5
    array, _ = encode(values)
    assert array.null_count == 0
    assert there_and_back(values).tobytes() == values.tobytes()


def test_range_comes_back_as_its_numbers():
    assert facts(there_and_back(range(5, 0, -2))) == facts(np.array([5, 3, 1]))
    assert facts(there_and_back(range(0))) == facts(np.array([], np.int64))


def test_long_doubles_come_back():
    check(np.array([1, 2], np.longdouble) / 3)
    check(np.array([1, 2], np.clongdouble) / 3)


@pytest.mark.parametrize("kind", "mM")
@pytest.mark.parametrize("unit", ["as", "ns", "us", "ms", "s", "m", "h", "D", "W", "M", "Y", "25s"])
@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_times_come_back(kind, unit, shape):
    values = np.array([0, 5, -1, 0]).view(f"{kind}8[{unit}]").reshape(shape)
    values.flat[3] = "NaT"
    check(values)
    extreme = np.array([2**63 - 1, -(2**63) + 1, -(2**63)]).view(values.dtype)
    check(extreme)
    assert facts(through([values.ravel(), extreme])) == facts(
        concatenate([values.ravel(), extreme])
    )


def test_texts_and_bytes_come_back():
    check(np.array(["a", "bcd", "", "ä\U0001f600"]))
    check(np.array([b"a", b"bcd", b""]))
    check(np.array([["a", "b"], ["c", "d"]]))
    check(np.array(["a\ud800"]))
    check(as_objects(["a", "", "a\0b", None, "ä"]))
    check(as_objects([b"a", b"\0", None]))
    check(as_objects(["\ud83d\ude00", "\ud800"]))
    check(np.array([["a", 1], [None, b"x"]], dtype=object))


def test_nothing_but_none_comes_back():
    check(as_objects([None, None]))
    check(as_objects([]))


BERLIN = ZoneInfo("Europe/Berlin")
OBJECTS = [
    [1, 2],
    [1, None],
    [True, False],
    [1.5, float("nan"), None],
    [1, 2.5],
    [True, 1],
    [2**63, -(2**70), 10**3500],
    [1j, complex(float("nan"), -0.0), "x"],
    [Decimal("1.50"), Decimal("1.50")],
    [Decimal("1.50"), Decimal("1.5"), Decimal("NaN")],
    [date(2026, 1, 1), None],
    [datetime(2026, 1, 1, 2, 3, 4, 5), datetime(1, 1, 1)],
    [datetime(2026, 1, 1, tzinfo=UTC)],
    [datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1), datetime(2026, 10, 25, 2, fold=1)],
    [time(1, 2, 3, 4), time(5)],
    [timedelta(days=-1, microseconds=1)],
    [date(2026, 1, 1), "x", time(1, tzinfo=UTC), timedelta(5), Decimal(1), b"x"],
    [[1, 2], [], None],
    [[1, 2.5], [1]],
    [[1, None], [2]],
    [["a", "b"], []],
    [[], []],
    [[[1.5]], [[2.0], []]],
    [["\ud800"]],
    [[{}], [{"a": 1}]],
    [(1, 2), (3,)],
    [("a", 1), ("b", None)],
    [[(1, 2)], [(3,)]],
    [((1,), [2])],
    [(), []],
    [{"a": 1}, {"b": [None, True, 1.0, {"c": float("inf")}]}],
    [{}, {"$tuple": [1]}, {"$": 1}, {1: 2, "a": 3}, {(1, 2): {b"x": 1j}}],
    [{"b": 1, "a": 2}, {"a": 1, "b": 2}],
    [{"\ud800": 1}],
    [np.float64(1.5), 1.5],
    [np.int8(1), np.float32(0.1), np.bool_(True), np.str_("x"), np.bytes_(b"x"), np.str_("")],
    [
        np.datetime64("2026-01-01"),
        np.datetime64("NaT"),
        np.timedelta64(3, "h"),
        np.datetime64(1, "us"),
    ],
    [np.zeros(2), np.ones(3)],
    [np.zeros(2, "c8"), None, np.ones(0, "c8")],
    [np.array(["a", "bc"]), np.array(["dd"])],
    [np.zeros(2, "M8[s]"), np.zeros(1, "M8[s]")],
    [np.zeros(0), np.zeros(0)],
    [np.zeros(2), np.ones(3, "i4"), np.ones((2, 2), ">f4"), np.zeros((0, 3)), np.array(5)],
    [[np.zeros(2)], {"a": np.ones(2)}],
    [pd.Timestamp("2026-01-01"), None],
    [pd.Timestamp("2026-01-01 00:00:00.123456789"), pd.Timestamp("2026-01-01")],
    [
        pd.Timestamp("2026-01-01", tz="Europe/Berlin"),
        pd.Timestamp("2026-01-02", tz="Europe/Berlin"),
    ],
    [pd.Timestamp("2026-01-01", tz="Europe/Berlin"), pd.Timestamp("2026-01-02", tz="UTC"), "x"],
    [pd.Timedelta(5), pd.Timedelta("1 day"), "x"],
    [pd.Timedelta(5), pd.Timedelta(6)],
    [pd.Timestamp("2026-01-01"), pd.NaT],
    [pd.Period("2026-01", "M"), pd.Period("2026-02", "M")],
]


@pytest.mark.parametrize("values", OBJECTS)
def test_objects_come_back_with_their_types(values):
    check(as_objects(values))
    check(as_objects([*values, None]))


@pytest.mark.parametrize("values", OBJECTS)
def test_objects_mix_with_others_as_they_do_in_memory(values):
    values = [value for value in values if value is not None]
    for more in ([1], [2.5], ["x"], [True], [[1]], [np.zeros(2)], [(1, 2)], [{"a": 1}]):
        parts = [column(values), column(more)]
        if isinstance(values[0], pd.Period):
            with pytest.raises(UnstorableError):
                through(parts)
        assert facts(through(parts, allow_pickle=True)) == facts(in_memory(parts))
        parts.reverse()
        assert facts(through(parts, allow_pickle=True)) == facts(in_memory(parts))


class Odd:
    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return f"Odd({self.value!r})"


class Unpicklable:
    def __reduce__(self):
        raise TypeError("not me")


def test_other_objects_are_refused_or_pickled():
    values = as_objects([Odd(1), 2, None, [Odd(3)]])
    with pytest.raises(RefusedError, match=r"Odd.*Odd\(1\).*allow_pickle=True") as caught:
        encode(values)
    assert caught.value.rows == [0, 3]
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.rows == [0, 3]
    assert str(again) == str(caught.value)
    check(values, allow_pickle=True)
    coded = encode(values, allow_pickle=True)
    with pytest.raises(UnstorableError, match="reading them runs code"):
        decode(*coded)


def test_rows_refused_are_those_that_could_not_be_stored_alone():
    period = pd.Period("2026-01", "M")
    with pytest.raises(RefusedError) as caught:
        encode(as_objects([period, 1, {2}]))
    assert caught.value.rows == [2]
    with pytest.raises(RefusedError) as caught:
        encode(as_objects([period, 1, period]))
    assert caught.value.rows == [0, 2]
    with pytest.raises(RefusedError) as caught:
        encode(np.array([[1, 2], [Odd(1), Odd(2)]], dtype=object))
    assert caught.value.rows == [1]


def test_what_cannot_be_pickled_is_refused_by_row():
    with pytest.raises(RefusedError, match="cannot be pickled") as caught:
        encode(as_objects([{1}, Unpicklable()]), allow_pickle=True)
    assert caught.value.rows == [1]


def test_lists_within_themselves_are_refused():
    endless = []
    endless.append(endless)
    deep = []
    for _ in range(10**5):
        deep = [deep]
    with pytest.raises(RefusedError) as caught:
        encode(as_objects([[1], endless, deep]))
    assert caught.value.rows == [1, 2]


def test_damaged_pickle_is_a_store_error():
    with pytest.raises(StoreError, match="cannot be read here"):
        decode(pa.array([b"nonsense"]), {"form": "pickle"}, allow_pickle=True)


def test_structured_arrays_are_refused_or_pickled():
    values = np.zeros(2, [("a", "i4"), ("b", "f8")])
    with pytest.raises(RefusedError, match="return numbers") as caught:
        encode(values)
    assert caught.value.rows == [0, 1]
    check(values, allow_pickle=True)
    check(values.reshape(2, 1), allow_pickle=True)


EXTENSIONS = [
    pd.array([1, None, 3], dtype="Int64"),
    pd.array([1, None, 3], dtype="UInt8"),
    pd.array([None, None], dtype="Int64"),
    pd.array([True, None], dtype="boolean"),
    pd.array([1.5, None], dtype="Float64"),
    pd.array([1.5, None], dtype="Float32"),
    pd.array(["a", None, ""], dtype="string"),
    pd.array(["a", None, ""], dtype="string[python]"),
    pd.array(["a", None, ""], dtype="string[pyarrow]"),
    pd.array(["a", None, ""], dtype="str"),
    pd.Categorical(["b", "a", None, "b"], categories=["b", "a", "c"]),
    pd.Categorical(["b", "a"], categories=["b", "a", "c"], ordered=True),
    pd.Categorical([3, 1, None]),
    pd.Categorical([1.5, 2.5]),
    pd.Categorical(pd.to_datetime(["2026-01-01", None])),
    pd.Categorical(as_objects(["x", 1])),
    pd.Categorical(pd.Index(["x", "y"], dtype=object)),
    pd.cut(np.arange(5), 2),
    pd.Categorical([None, None]),
    pd.Series(pd.date_range("2026-01-01", periods=3, tz="Europe/Berlin")).array,
    pd.Series(pd.date_range("2026-01-01", periods=3, tz="+02:00", unit="s")).array,
    pd.Series(pd.to_datetime(["2026-01-01", None], utc=True)).array,
    pd.Series(pd.to_datetime(["2026-01-01", None])).array,
    pd.Series(pd.to_timedelta([1, None])).array,
    pd.period_range("2026", periods=3, freq="M").array,
    pd.array([pd.Period("2026", "D"), None], dtype="period[D]"),
    pd.interval_range(0, 3).array,
    pd.interval_range(0.5, 3.5, closed="both").array,
    pd.interval_range(pd.Timestamp("2026-01-01"), periods=2).array,
    pd.arrays.IntervalArray.from_tuples([(0.0, 1.0), None]),
    pd.arrays.SparseArray([0.0, 0.0, 1.5]),
    pd.arrays.NumpyExtensionArray(np.array([1, 2])),
    pd.arrays.NumpyExtensionArray(np.array(["a", 1], dtype=object)),
    pd.array([1, None], dtype="int64[pyarrow]"),
    pd.array([datetime(2026, 1, 1), None], dtype="timestamp[s][pyarrow]"),
    pd.array([[1], None], dtype=pd.ArrowDtype(pa.list_(pa.int8()))),
    pd.array([Decimal("1.5"), None], dtype=pd.ArrowDtype(pa.decimal128(5, 2))),
    pd.array(["a", None], dtype=pd.ArrowDtype(pa.dictionary(pa.int8(), pa.string()))),
    pd.array([None], dtype=pd.ArrowDtype(pa.null())),
]


@pytest.mark.parametrize("values", EXTENSIONS)
def test_extension_arrays_come_back(values):
    for some in (values, values[:0], values[1:], values[::2]):
        again = there_and_back(some)
        assert type(again) is type(some)
        assert again.dtype == some.dtype
        assert again.equals(some)


@pytest.mark.parametrize("values", EXTENSIONS)
def test_absent_rows_of_extension_arrays_fit(values):
    array, note = encode(values)
    form = common((array.type, note), (pa.null(), {}))
    padded = recode(pa.nulls(2), {}, *form)
    if str(values.dtype) in ("int64", "interval[int64, right]"):
        return  # has no missing values
    again = decode(*stored(pa.concat_arrays([array, padded]), form[1]))
    assert again[: len(values)].equals(values)


def test_extension_arrays_mix_as_in_pandas():
    integers = pd.array([1, None], dtype="Int64")
    parts = [integers, np.array([1, 2]), pd.array([1.5], dtype="Float64")]
    assert through(parts).equals(concatenate(parts))
    berlin = pd.Series(pd.date_range("2026-01-01", periods=3, tz="Europe/Berlin")).array
    parts = [berlin, berlin.as_unit("ns")]
    assert through(parts).equals(concatenate(parts))
    parts = [pd.array(["a"], dtype="str"), pd.array(["b", None], dtype="str")]
    assert through(parts).equals(concatenate(parts))
    parts = [pd.Categorical(["a"]), pd.Categorical(["b"])]
    assert list(through(parts)) == list(concatenate(parts))
    parts = [integers[:1], as_objects(["x"])]
    assert list(through(parts)) == list(concatenate(parts))


def through(parts, *, allow_pickle=False):
    """Return columns end to end, each of them stored in the form that fits them all."""
    coded = [encode(part, allow_pickle=allow_pickle) for part in parts]
    form = coded[0].array.type, coded[0].note
    for array, note in coded[1:]:
        form = common(form, (array.type, note))
        assert form == common((array.type, note), form) or form[0] == pa.null()
    arrays = []
    for array, note in coded:
        padded = pa.concat_arrays([array, pa.nulls(1, array.type)])
        recoded, _ = stored(recode(padded, note, *form, allow_pickle=allow_pickle), form[1])
        assert recoded.slice(len(array)).null_count == 1
        arrays.append(recoded.slice(0, len(array)))
    chunks = pa.chunked_array([chunk for a in arrays for chunk in a.chunks], form[0])
    at_once = decode(*stored(chunks, form[1]), allow_pickle=allow_pickle)
    if not same_shapes(parts):
        return at_once
    one_by_one = concatenate([decode(a, form[1], allow_pickle=allow_pickle) for a in arrays])
    if form[1].get("mixed") and all(part.ndim == 1 for part in parts):
        assert facts(at_once) == facts(one_by_one)
    return one_by_one


def same_shapes(parts):
    return len({part.shape[1:] for part in parts if len(part)}) <= 1


def in_memory(parts):
    if same_shapes(parts):
        return concatenate(parts)
    rows = [
        part.tolist() if part[:0].ndim == 1 and part.dtype.kind in "biufc" else part
        for part in parts
    ]
    return column([row for part in rows for row in part])


SMALL = st.integers(-(2**63), 2**63 - 1)
HUGE = st.sampled_from([2**64, -(2**70), 2**200])
TEXT = st.text(max_size=3)
PLAIN = st.one_of(SMALL, st.floats(), st.booleans(), st.complex_numbers(), TEXT)
NESTED = st.recursive(
    st.one_of(SMALL, st.floats(), st.booleans(), TEXT, st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3), st.tuples(inner)
    ),
    max_leaves=5,
).filter(lambda value: value is not None)
NUMPY = st.one_of(
    st.sampled_from([np.int8, np.uint8, np.int16, np.uint16, np.int64, np.uint64]).flatmap(
        lambda kind: st.integers(0, 100).map(kind)
    ),
    st.sampled_from([np.float16, np.float32, np.float64]).flatmap(
        lambda kind: st.floats(0, 1, width=16).map(kind)
    ),
    st.sampled_from([np.str_("ab"), np.bytes_(b"x"), np.datetime64("2026-01-01"), np.bool_(True)]),
    st.sampled_from(["h", "s", "us"]).map(lambda unit: np.timedelta64(3, unit)),
)
ARRAYS = st.builds(
    lambda shape, kind: np.ones(shape, dtype=kind),
    st.sampled_from([(1,), (2,), (2, 2), (0,)]),
    st.sampled_from([np.int64, np.float32, np.float64, bool, "U1", "U2", "c8", "M8[s]"]),
)
ANY = st.one_of(PLAIN, HUGE, NESTED, NUMPY, ARRAYS)


def parts_of(elements):
    lists = st.lists(elements, max_size=4)
    return st.lists(st.one_of(lists, lists.map(lambda values: values * 2)), min_size=1, max_size=4)


def check_parts(parts):
    assert facts(through(parts)) == facts(in_memory(parts))


@given(parts_of(st.one_of(SMALL, st.floats(), HUGE)))
def test_mixed_numbers_are_as_in_memory(lists):
    check_parts([column(values) for values in lists])


@given(parts_of(PLAIN))
def test_mixed_plain_values_are_as_in_memory(lists):
    check_parts([column(values) for values in lists])


@given(parts_of(NUMPY))
def test_mixed_numpy_scalars_are_as_in_memory(lists):
    check_parts([column(values) for values in lists])


@given(parts_of(ARRAYS))
def test_mixed_arrays_are_as_in_memory(lists):
    check_parts([column(values) for values in lists])


@given(parts_of(NESTED))
def test_mixed_lists_and_dicts_are_as_in_memory(lists):
    check_parts([column(values) for values in lists])


@given(st.data())
def test_batches_of_any_kinds_are_as_in_memory(data):
    kinds = [PLAIN, SMALL, st.floats(), st.booleans(), TEXT, NESTED, NUMPY, ARRAYS, ANY]
    lists = data.draw(
        st.lists(st.sampled_from(kinds).flatmap(lambda k: st.lists(k, max_size=3)), min_size=1)
    )
    check_parts([column(values) for values in lists])


@given(
    st.lists(
        st.tuples(st.sampled_from(["i8", "u8", "f4", "U1", "U3", "O", "?"]), st.integers(0, 2)),
        min_size=1,
        max_size=4,
    )
)
def test_vectorised_outputs_are_as_in_memory(cases):
    check_parts([np.ones((length, 2), dtype=kind) for kind, length in cases])
    check_parts([np.ones(length, dtype=kind) for kind, length in cases])


@given(st.lists(ANY, max_size=5))
def test_any_column_comes_back(values):
    check(column(values))
    check(as_objects(values))


def test_recode_reports_rows_of_the_column_it_was_given():
    array, note = encode(as_objects([pd.Period("2026-01", "M")] * 2))
    padded = array.take(pa.array([0, None, 1]))
    with pytest.raises(RefusedError) as caught:
        recode(padded, note, pa.string(), {"form": "json"})
    assert caught.value.rows == [0, 2]


def test_pickles_are_not_recoded_without_leave():
    pickled = encode(as_objects([{1}]), allow_pickle=True)
    integers = encode(np.array([1, 2]))
    form = common((integers.array.type, integers.note), (pickled.array.type, pickled.note))
    assert form == (pa.binary(), {"form": "pickle", "mixed": True})
    with pytest.raises(UnstorableError, match="allow_pickle=True"):
        recode(*integers, *form)


READABLE = {
    "floats": (np.array([1.5, np.nan]), [1.5, float("nan")]),
    "halves": (np.array([1.5, 2.5], "f2"), [1.5, 2.5]),
    "unsigned": (np.array([1, 2], "u8"), [1, 2]),
    "booleans": (np.array([True, False]), [True, False]),
    "texts": (as_objects(["a", "ä"]), ["a", "ä"]),
    "unicode": (np.array(["a", "ä"]), ["a", "ä"]),
    "bytes": (as_objects([b"a", b"b"]), [b"a", b"b"]),
    "rows": (np.arange(4.0).reshape(2, 2), [[0.0, 1.0], [2.0, 3.0]]),
    "complex": (np.array([1j, 2]), [[0.0, 1.0], [2.0, 0.0]]),
    "images": (np.arange(8).reshape(2, 2, 2), [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]),
    "ragged": (as_objects([np.arange(2), np.arange(1)]), [[0, 1], [0]]),
    "lists": (as_objects([["a"], []]), [["a"], []]),
    "dicts": (as_objects([{"a": 1}, {"b": [True, None]}]), ['{"a":1}', '{"b":[true,null]}']),
    "tuples": (as_objects([(1, 2), (3, 4)]), [[1, 2], [3, 4]]),
    "seconds": (
        np.array(["2026-01-01T00:00:01", "NaT"], "M8[s]"),
        [datetime(2026, 1, 1, 0, 0, 1), None],
    ),
    "microseconds": (
        np.array(["2026-01-01T00:00:01", "NaT"], "M8[us]"),
        [datetime(2026, 1, 1, 0, 0, 1), None],
    ),
    "days": (np.array(["2026-01-01"], "M8[D]"), [date(2026, 1, 1)]),
    "integers": (pd.array([1, None], dtype="Int64"), [1, None]),
    "categories": (pd.Categorical(["b", None, "a"]), ["b", None, "a"]),
    "strings": (pd.array(["b", None], dtype="str"), ["b", None]),
}


def lists(value):
    """Return lists for what a reader gives as a sequence of its own."""
    is_sequence = isinstance(value, list | tuple | np.ndarray | polars.Series)
    return [lists(item) for item in value] if is_sequence else value


@pytest.mark.parametrize("case", READABLE)
def test_other_readers_see_plain_values(case, tmp_path):
    values, expected = READABLE[case]
    path = tmp_path / "column.parquet"
    path.write_bytes(written(*encode(values)).getvalue())
    found = [lists(row) for (row,) in duckdb.sql(f"SELECT x FROM '{path}'").fetchall()]
    assert repr(found) == repr(expected)
    assert repr([lists(row) for row in polars.read_parquet(path)["x"]]) == repr(expected)
    frame = pd.read_parquet(path)
    assert len(frame) == len(values)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_other_readers_read_durations(unit, tmp_path):
    path = tmp_path / "column.parquet"
    path.write_bytes(written(*encode(np.array([3], f"m8[{unit}]"))).getvalue())
    assert duckdb.sql(f"SELECT x FROM '{path}'").fetchall() == [(3,)]
    assert polars.read_parquet(path)["x"].len() == 1


def test_chunks_are_decoded_as_one_column():
    for values in (np.arange(4.0), np.ones((4, 2)), np.array([1j, 2]), as_objects([(1,), (2,)])):
        array, note = encode(values)
        chunks = pa.chunked_array([array[:1], array[1:]])
        assert facts(decode(chunks, note)) == facts(values)


def test_equal_forms_are_their_own_and_nothing_is_absent():
    integers = pa.int64(), {}
    assert common(integers, integers) == integers
    assert common(integers, (pa.null(), {})) == integers
    assert common((pa.null(), {}), integers) == integers
    assert common(integers, (pa.float64(), {})) == (pa.float64(), {})
    json_form = pa.string(), {"form": "json", "mixed": True}
    assert common(integers, (pa.bool_(), {})) == json_form
    assert common(integers, (pa.uint64(), {})) == json_form


def test_batches_that_are_all_there_keep_their_objects():
    values = as_objects([1, 2.5])
    assert [type(value) for value in python_values(there_and_back(values))] == [int, float]
    assert [a for a, _ in pairwise(python_values(there_and_back(range(3))))] == [0, 1]


@pytest.mark.parametrize("values", OBJECTS)
def test_forms_are_the_same_after_a_file(values):
    array, note = encode(as_objects(values))
    again, read = stored(array, note)
    assert common((array.type, note), (again.type, read)) == (array.type, note)


def test_pickled_categories_are_read_with_leave_only():
    values = pd.Categorical.from_codes([1, 0, -1], as_objects([frozenset({1}), frozenset({2})]))
    with pytest.raises(RefusedError):
        encode(values)
    assert there_and_back(values, allow_pickle=True).equals(values)
    with pytest.raises(UnstorableError, match="reading them runs code"):
        decode(*encode(values, allow_pickle=True))


def test_pickled_dtypes_are_read_with_leave_only():
    note = {"pandas": "pickle", "dtype": "nonsense", "of": {}}
    with pytest.raises(UnstorableError, match="reading them runs code"):
        decode(pa.array([1]), note)
    with pytest.raises(UnstorableError, match="reading them runs code"):
        recode(pa.array([1]), {}, pa.int64(), note)
