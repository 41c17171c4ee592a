import pickle
from datetime import date, datetime, timedelta, timezone
from itertools import pairwise

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_columns import ANY, OBJECTS, facts, there_and_back, written

from atomizer_dask.errors import StoreError, UnstorableError
from atomizer_dask.store.arrow.codec import RefusedError, decode, encode
from atomizer_dask.sweeps.columns import as_objects, column, python_values


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


def test_texts_and_bytes_come_back():
    check(np.array(["a", "bcd", "", "ä\U0001f600"]))
    check(np.array([b"a", b"bcd", b""]))
    check(np.array([["a", "b"], ["c", "d"]]))
    check(as_objects(["a", "", "a\0b", None, "ä"]))
    check(as_objects([b"a", b"\0", None]))
    check(np.array([["a", 1], [None, b"x"]], dtype=object))


def test_nothing_but_none_comes_back():
    check(as_objects([None, None]))
    check(as_objects([]))


@pytest.mark.parametrize("values", OBJECTS)
def test_objects_come_back_with_their_types(values):
    check(as_objects(values))
    check(as_objects([*values, None]))


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


def test_rows_of_arrays_are_refused_by_row():
    with pytest.raises(RefusedError) as caught:
        encode(np.array([[1, 2], [Odd(1), Odd(2)]], dtype=object))
    assert caught.value.rows == [1]


EXOTIC = [
    "\ud800",
    10**3500,
    {1: 2},
    {"$tuple": [1]},
    datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2), "here")),
]


@pytest.mark.parametrize("value", EXOTIC)
def test_exotic_objects_are_refused_or_pickled(value):
    for values, rows in (([value], [0]), ([1, value, None], [1])):
        with pytest.raises(RefusedError) as caught:
            encode(as_objects(values))
        assert caught.value.rows == rows
        check(as_objects(values), allow_pickle=True)


def test_halves_of_surrogate_pairs_and_numpy_strings_are_refused():
    with pytest.raises(RefusedError, match="surrogate"):
        encode(np.array(["a", "\ud800"]))
    with pytest.raises(RefusedError, match="StringDType"):
        encode(np.array(["a"], dtype=np.dtypes.StringDType()), allow_pickle=True)
    with pytest.raises(RefusedError):
        encode(np.array([], dtype=np.dtypes.StringDType()))


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


@given(st.lists(ANY, max_size=5))
def test_any_column_comes_back(values):
    check(column(values))
    check(as_objects(values))


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


def test_batches_that_are_all_there_keep_their_objects():
    values = as_objects([1, 2.5])
    assert [type(value) for value in python_values(there_and_back(values))] == [int, float]
    assert [a for a, _ in pairwise(python_values(there_and_back(range(3))))] == [0, 1]
