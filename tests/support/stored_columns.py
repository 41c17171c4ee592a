"""Columns of all kinds, how they come back from a file, and what one could notice of them."""

import io
import json
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from atomizer_dask.store.arrow.codec import decode, encode


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


BERLIN = ZoneInfo("Europe/Berlin")
OBJECTS = [
    [1, 2],
    [1, None],
    [True, False],
    [1.5, float("nan"), None],
    [1, 2.5],
    [True, 1],
    [2**63, -(2**70), 10**3000],
    [1j, complex(float("nan"), -0.0), "x"],
    [Decimal("1.50"), Decimal("1.50")],
    [Decimal("1.50"), Decimal("1.5"), Decimal("NaN")],
    [date(2026, 1, 1), None],
    [datetime(2026, 1, 1, 2, 3, 4, 5), datetime(1, 1, 1)],
    [datetime(2026, 1, 1, tzinfo=UTC)],
    [datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1), datetime(2026, 10, 25, 2, fold=1)],
    [datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN), datetime(2026, 10, 25, 2, tzinfo=BERLIN)],
    [datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=-2))), datetime(2026, 1, 1)],
    [time(1, 2, 3, 4), time(5)],
    [timedelta(days=-1, microseconds=1)],
    [date(2026, 1, 1), "x", time(1, tzinfo=UTC), timedelta(5), Decimal(1), b"x"],
    [[1, 2], [], None],
    [[1, 2.5], [1]],
    [[1, None], [2]],
    [["a", "b"], []],
    [[], []],
    [[[1.5]], [[2.0], []]],
    [[{}], [{"a": 1}]],
    [(1, 2), (3,)],
    [("a", 1), ("b", None)],
    [[(1, 2)], [(3,)]],
    [((1,), [2])],
    [(), []],
    [{"a": 1}, {"b": [None, True, 1.0, {"c": float("inf")}]}],
    [{}, {"a": (1, 2), "b": 1j}, {"$": 1}],
    [{"b": 1, "a": 2}, {"a": 1, "b": 2}],
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
    [pd.Period("2026-01", "M"), pd.Period("2026-02", "2W-WED"), pd.Period("2026", "Y-MAR")],
    [pd.Interval(0, 1), pd.Interval(pd.Timestamp(0), pd.Timestamp(1), closed="both")],
]


SMALL = st.integers(-(2**63), 2**63 - 1)
HUGE = st.sampled_from([2**64, -(2**70), 2**200])
TEXTS = st.text(max_size=3)
PLAIN = st.one_of(SMALL, st.floats(), st.booleans(), st.complex_numbers(), TEXTS)
NESTED = st.recursive(
    st.one_of(SMALL, st.floats(), st.booleans(), TEXTS, st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3), st.tuples(inner)
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
