"""Large arrays that an atom returns: taken over where nobody else has them."""

from threading import get_ident

import numpy as np
import pytest

from atomizer_dask import atom, grid
from atomizer_dask.execution import scalar_loop
from atomizer_dask.execution.outputs import outputs_of, own_slice

SECONDS = 60
ITEMS = 200_000
BUFFER = np.zeros(ITEMS)
KEPT: list = []
SHARED: dict = {}


def first_of(value):
    while isinstance(value, list | tuple | np.ndarray):
        value = value[0]
    return int(value)


def large(value=0.0):
    return np.full(ITEMS, value)


def test_array_that_nobody_else_has_is_not_copied():
    for make in (lambda: [large()], lambda: [{"a": large(), "b": 1.5}]):
        results = make()
        array = results[0] if type(results[0]) is np.ndarray else results[0]["a"]
        address = array.__array_interface__["data"][0]
        del array
        outputs, scalar = outputs_of(results)
        name = next(iter(outputs))
        assert outputs[name].values.__array_interface__["data"][0] == address
        assert outputs[name].values.shape == (1, ITEMS)
        assert scalar is (name == "result")
        assert scalar or outputs["b"].values.tolist() == [1.5]


def _in_a_list():
    KEPT[:] = [large()]
    return KEPT[0]


def _in_a_kept_dict():
    KEPT[:] = [{"a": large()}]
    return KEPT[0]


def _view():
    KEPT[:] = [large()]
    return KEPT[0][:]


def _viewed():
    array = large()
    KEPT[:] = [array[5:]]
    return {"a": array}


def _with_memoryview():
    array = large()
    KEPT[:] = [memoryview(array)]
    return array


@pytest.mark.parametrize(
    "make", [_in_a_list, _in_a_kept_dict, _view, _viewed, _with_memoryview, lambda: BUFFER]
)
def test_array_that_somebody_else_has_is_copied(make):
    outputs, _ = outputs_of([make()])
    (column,) = outputs.values()
    held = BUFFER if not KEPT else KEPT[0]["a"] if isinstance(KEPT[0], dict) else KEPT[0]
    assert not np.shares_memory(column.values, np.asarray(held))
    KEPT.clear()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f8", "i4", "c16", "M8[s]", "U4", object])
def test_taken_or_not_values_are_the_same(dtype, order):
    def made():
        return np.asarray(np.arange(2 * ITEMS).reshape(2, -1).astype(dtype), order=order)

    (column,) = outputs_of([made()])[0].values()
    two = outputs_of([made(), made()])[0]["result"]
    assert column.values.dtype == two.values.dtype
    assert (column.values[0] == two.values[0]).all()


def test_atom_that_returns_the_same_buffer_each_time_has_all_its_results(atomizer):
    @atom(id="tests.buffer")
    def filled(i):
        buffer = SHARED.setdefault(("large", get_ident()), np.zeros(ITEMS))
        buffer[:] = i
        return buffer

    @atom(id="tests.cached")
    def cached(i):
        kept = SHARED.setdefault(("kept", get_ident()), [])
        kept.append(np.full(ITEMS, float(i)))
        for array in kept[:-1]:
            array[0] = -1
        return {"a": kept[-1]}

    for each, name in ((filled, "result"), (cached, "a")):
        frame = atomizer.map(each, grid(i=range(8))).wait(SECONDS).to_frame()
        assert [array[0] for array in frame[name]] == [float(i) for i in range(8)]
    SHARED.clear()


@pytest.mark.parametrize("count", [1, 7, 3000])
def test_atom_that_changes_what_it_has_returned_has_all_its_results(atomizer, count):
    def same_array(i):
        SHARED.setdefault(("array", get_ident()), np.zeros(3))[:] = i
        return SHARED["array", get_ident()]

    def view(i):
        return same_array(i)[1:]

    def in_a_dict(i):
        return {"result": same_array(i)}

    def same_dict(i):
        SHARED.setdefault(("dict", get_ident()), {})["result"] = i
        return SHARED["dict", get_ident()]

    def same_list(i):
        SHARED.setdefault(("list", get_ident()), [0])[0] = i
        return SHARED["list", get_ident()]

    def stops_first(i):
        if i == 0:
            raise StopIteration
        return same_array(i)

    def sometimes(i):
        return np.full(3, i) if i % 8 == 0 else same_array(i)

    def in_a_tuple(i):
        return same_array(i), i

    def in_a_list(i):
        return [same_array(i)]

    alike = same_array, view, in_a_dict, same_dict, same_list, sometimes, in_a_tuple, in_a_list
    for number, function in enumerate(alike):
        made = atom(id=f"tests.same.{number}")(function)
        frame = atomizer.map(made, grid(i=range(count))).wait(SECONDS).to_frame()
        first = (
            [int(np.ravel(value[0])[0]) for value in map(np.atleast_1d, frame["result"])]
            if function not in (in_a_tuple, in_a_list)
            else [int(value[0][0]) for value in frame["result"]]
        )
        assert first == list(range(count)), function.__name__
        SHARED.clear()
    run = atomizer.map(atom(id="tests.stops")(stops_first), grid(i=range(count))).wait(SECONDS)
    assert run.progress.failed == 1
    if count > 1:
        assert [int(v[0]) for v in run.to_frame()["result"].dropna()] == list(range(1, count))
    SHARED.clear()


@pytest.mark.parametrize("form", ["array", "view", "dict", "pair", "input"])
def test_vectorised_atom_that_reuses_its_buffer_has_all_its_results(atomizer, form):
    @atom(id="tests.vector.buffer", vectorized=True)
    def reusing(i):
        if form == "input":
            i += 1
            return i
        size = 10_000 if form == "view" else len(i)
        buffer = SHARED.setdefault((size, get_ident()), np.zeros(size))
        out = buffer[: len(i)] if form == "view" else buffer
        np.add(i, 1, out=out)
        return {"dict": {"result": out}, "pair": (out, [None] * len(i))}.get(form, out)

    frame = atomizer.map(reusing, grid(i=range(9000))).wait(SECONDS).to_frame()
    assert frame["result"].tolist() == list(range(1, 9001))
    SHARED.clear()


def test_fresh_result_of_a_vectorised_atom_is_not_copied():
    addresses = []

    def made(form):
        array = np.arange(1000.0)
        addresses.append(array.__array_interface__["data"][0])
        return {"dict": {"result": array}, "array": array}[form]

    for form in ("array", "dict"):
        result = own_slice(made(form))
        array = result if form == "array" else result["result"]
        assert array.__array_interface__["data"][0] == addresses[-1]


@pytest.mark.parametrize("form", ["array", "dict", "list"])
def test_fresh_result_of_a_scalar_atom_is_not_copied(local, monkeypatch, form):
    @atom(id="tests.fresh")
    def fresh(i):
        array = np.full(10, i)
        return {"array": array, "dict": {"a": array}, "list": [i]}[form]

    copied = []
    monkeypatch.setattr(scalar_loop, "own_copy", copied.append)
    local.map(fresh, grid(i=range(5))).wait(SECONDS)
    assert copied == []
