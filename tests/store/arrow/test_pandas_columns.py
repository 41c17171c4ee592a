from datetime import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from stored_columns import facts, stored, there_and_back

from atomizer_dask.errors import UnstorableError
from atomizer_dask.store.arrow.codec import RefusedError, decode, encode
from atomizer_dask.store.arrow.common_form import common, recode
from atomizer_dask.sweeps.columns import as_objects

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
    pd.Categorical([None, None]),
    pd.Series(pd.date_range("2026-01-01", periods=3, tz="Europe/Berlin")).array,
    pd.Series(pd.date_range("2026-01-01", periods=3, tz="+02:00", unit="s")).array,
    pd.Series(pd.to_datetime(["2026-01-01", None], utc=True)).array,
    pd.period_range("2026", periods=3, freq="M").array,
    pd.array([pd.Period("2026", "D"), None], dtype="period[D]"),
    pd.interval_range(0, 3).array,
    pd.interval_range(0.5, 3.5, closed="both").array,
    pd.interval_range(pd.Timestamp("2026-01-01"), periods=2).array,
    pd.arrays.IntervalArray.from_tuples([(0.0, 1.0), None]),
    pd.cut(np.arange(5), 2),
    pd.array([1, None], dtype="int64[pyarrow]"),
    pd.array([datetime(2026, 1, 1), None], dtype="timestamp[s][pyarrow]"),
    pd.array([None], dtype=pd.ArrowDtype(pa.null())),
]


WRAPPED = [
    pd.Series(pd.to_datetime(["2026-01-01", None])).array,
    pd.Series(pd.to_timedelta([1, None])).array,
    pd.arrays.NumpyExtensionArray(np.array([1, 2])),
    pd.arrays.NumpyExtensionArray(np.array(["a", 1], dtype=object)),
]
EXOTIC = [
    pd.arrays.SparseArray([0.0, 0.0, 1.5]),
    pd.array([[1], None], dtype=pd.ArrowDtype(pa.list_(pa.int8()))),
    pd.Categorical.from_codes([1, 0, -1], as_objects([frozenset({1}), frozenset({2})])),
]


@pytest.mark.parametrize("values", EXTENSIONS)
def test_extension_arrays_come_back(values):
    for some in (values, values[:0], values[1:], values[::2]):
        again = there_and_back(some)
        assert type(again) is type(some)
        assert again.dtype == some.dtype
        assert again.equals(some)


@pytest.mark.parametrize("values", WRAPPED)
def test_wrapped_arrays_come_back_as_those_of_numpy(values):
    assert facts(there_and_back(values)) == facts(values.to_numpy())
    assert facts(there_and_back(values[:0])) == facts(values.to_numpy()[:0])


@pytest.mark.parametrize("values", EXOTIC)
def test_exotic_arrays_are_refused_or_pickled(values):
    with pytest.raises(RefusedError, match="the dtype") as caught:
        encode(values)
    assert caught.value.rows == list(range(len(values)))
    again = there_and_back(values, allow_pickle=True)
    assert again.dtype == values.dtype
    assert again.equals(values)
    with pytest.raises(UnstorableError, match="reading them runs code"):
        decode(*encode(values, allow_pickle=True))


@pytest.mark.parametrize("values", EXTENSIONS)
def test_absent_rows_of_extension_arrays_fit(values):
    array, note = encode(values)
    form = common((array.type, note), (pa.null(), {}))
    padded = recode(pa.nulls(2), {}, *form)
    if str(values.dtype) == "interval[int64, right]":
        return  # has no missing values
    again = decode(*stored(pa.concat_arrays([array, padded]), form[1]))
    assert again[: len(values)].equals(values)


@pytest.mark.parametrize("values", EXTENSIONS)
def test_extension_arrays_mix_with_others(values):
    coded = [encode(part) for part in (values, as_objects([(1,)]))]
    form = common(*((array.type, note) for array, note in coded))
    arrays = [recode(*one, *form) for one in coded]
    found = decode(pa.concat_arrays(arrays), form[1])
    assert list(found) == [*(None if pd.isna(v) is True else v for v in values), (1,)]


def test_pickled_dtypes_are_read_with_leave_only():
    note = {"pandas": "pickle", "dtype": "nonsense"}
    with pytest.raises(UnstorableError, match="reading them runs code"):
        decode(pa.array([1]), note)
    with pytest.raises(UnstorableError, match="reading them runs code"):
        recode(pa.array([1]), {}, pa.int64(), note)
