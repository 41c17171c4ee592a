import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_columns import (
    ANY,
    ARRAYS,
    HUGE,
    NESTED,
    NUMPY,
    OBJECTS,
    PLAIN,
    SMALL,
    TEXTS,
    facts,
    stored,
)

from atomizer_dask.errors import UnstorableError
from atomizer_dask.store.arrow.codec import RefusedError, decode, encode
from atomizer_dask.store.arrow.common_form import common, recode
from atomizer_dask.store.arrow.encoded import BYTES, TEXT
from atomizer_dask.sweeps.columns import as_objects, column, concatenate


def test_equal_forms_are_their_own_and_nothing_is_absent():
    integers = pa.int64(), {}
    assert common(integers, integers) == integers
    assert common(integers, (pa.null(), {})) == integers
    assert common((pa.null(), {}), integers) == integers
    assert common(integers, (pa.float64(), {})) == (pa.float64(), {})
    json_form = TEXT, {"form": "json", "mixed": True}
    assert common(integers, (pa.bool_(), {})) == json_form
    assert common(integers, (pa.uint64(), {})) == json_form


@pytest.mark.parametrize("values", OBJECTS)
def test_objects_mix_with_others_as_they_do_in_memory(values):
    values = [value for value in values if value is not None]
    for more in ([1], [2.5], ["x"], [True], [[1]], [np.zeros(2)], [(1, 2)], [{"a": 1}]):
        parts = [column(values), column(more)]
        assert facts(through(parts)) == facts(concatenate(parts))
        parts.reverse()
        assert facts(through(parts)) == facts(concatenate(parts))


@pytest.mark.parametrize("kind", "mM")
@pytest.mark.parametrize("unit", ["ns", "s", "D", "h", "Y", "25s"])
def test_times_mix_with_those_far_away(kind, unit):
    near = np.array([0, 5, -1]).view(f"{kind}8[{unit}]")
    far = np.array([2**63 - 1, -(2**63) + 1, -(2**63)]).view(near.dtype)
    assert facts(through([near, far])) == facts(concatenate([near, far]))


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
    one_by_one = concatenate([decode(a, form[1], allow_pickle=allow_pickle) for a in arrays])
    if form[1].get("mixed") and all(part.ndim == 1 for part in parts):
        assert facts(at_once) == facts(one_by_one)
    return one_by_one


def parts_of(elements):
    lists = st.lists(elements, max_size=4)
    return st.lists(st.one_of(lists, lists.map(lambda values: values * 2)), min_size=1, max_size=4)


def check_parts(parts):
    assert facts(through(parts)) == facts(concatenate(parts))


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
    kinds = [PLAIN, SMALL, st.floats(), st.booleans(), TEXTS, NESTED, NUMPY, ARRAYS, ANY]
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


def test_recode_reports_rows_of_the_column_it_was_given():
    array, note = encode(as_objects([{1}, {2}]), allow_pickle=True)
    padded = array.take(pa.array([0, None, 1]))
    with pytest.raises(RefusedError) as caught:
        recode(padded, note, TEXT, {"form": "json"}, allow_pickle=True)
    assert caught.value.rows == [0, 2]


def test_pickles_are_not_recoded_without_leave():
    pickled = encode(as_objects([{1}]), allow_pickle=True)
    integers = encode(np.array([1, 2]))
    form = common((integers.array.type, integers.note), (pickled.array.type, pickled.note))
    assert form == (BYTES, {"form": "pickle", "mixed": True})
    with pytest.raises(UnstorableError, match="allow_pickle=True"):
        recode(*integers, *form)


@pytest.mark.parametrize("values", OBJECTS)
def test_forms_are_the_same_after_a_file(values):
    array, note = encode(as_objects(values))
    again, read = stored(array, note)
    assert common((array.type, note), (again.type, read)) == (array.type, note)


def test_large_texts_fit_small_ones():
    small, large = (pa.string(), {}), (pa.large_string(), {})
    assert common(small, large) == common(large, small) == large
    assert common(large, (pa.int64(), {})) == (pa.large_string(), {"form": "json", "mixed": True})
    recoded = recode(pa.array(["a", None]), {}, *large)
    assert recoded.equals(pa.array(["a", None], pa.large_string()))
    assert decode(recoded, {}).tolist() == ["a", None]
