"""Sweeps made of others: rows are those of the parts, wherever one looks."""

import numpy as np

from atomizer_dask import atom, grid, zipped
from atomizer_dask.sweeps.columns import loop_values
from atomizer_dask.sweeps.combined import Concatenated, SelectedRows

PARTS = [
    grid(x=range(3), y=["a", "b"]),
    SelectedRows(zipped(x=np.arange(10), y=list("abcdefghij")), np.array([7, 2, 9])),
    zipped(x=[5], y=["z"]),
]


def test_rows_are_those_of_the_parts_end_to_end():
    chained = Concatenated(PARTS)
    assert chained.length == 10
    assert chained.names == ("x", "y")
    expected = [0, 0, 1, 1, 2, 2, 7, 2, 9, 5]
    assert list(chained.columns()["x"]) == expected
    assert list(chained.columns(["y"])["y"]) == list("abababhcjz")
    for start in range(10):
        for stop in range(start + 1, 11):
            assert list(chained.take(start, stop).columns()["x"]) == expected[start:stop]


def test_rows_are_picked_in_any_order():
    chained, order = Concatenated(PARTS), np.array([9, 0, 6, 6, 3, 8, 1])
    picked = chained.pick(order).columns()
    assert list(picked["x"]) == [5, 0, 7, 7, 1, 9, 0]
    assert list(picked["y"]) == list("zahhbjb")


def test_chained_may_be_chained():
    chained = Concatenated(
        [Concatenated(PARTS[:2]), SelectedRows(Concatenated(PARTS), np.array([9, 0]))]
    )
    assert list(chained.columns()["x"]) == [0, 0, 1, 1, 2, 2, 7, 2, 9, 5, 0]
    assert list(chained.take(7, 11).columns()["x"]) == [2, 9, 5, 0]


def test_electrons_of_different_parts_are_not_in_one_batch():
    """They may be of another type: an electron must not depend on its neighbours."""
    chained = Concatenated([Concatenated(PARTS[:2]), PARTS[2]])
    assert chained.together(range(10)) == 6
    assert chained.together(range(5, 10)) == 1
    assert chained.together(range(6, 10)) == 3
    assert chained.together(range(7, 8)) == 1
    assert chained.together(range(9, 10)) == 1
    assert chained.together(np.array([0, 3, 5, 7, 9])) == 3
    assert chained.together(np.array([8, 6, 9, 7])) == 2
    assert chained.together(np.array([9])) == 1


def test_picked_rows_of_several_sweeps_are_given_as_those_of_each():
    parts = [zipped(x=[1, "a"]), zipped(x=np.ones(2, "f4")), zipped(x=[2.0, 1]), zipped(x=[True])]
    chained = Concatenated(parts)
    picked = chained.pick(np.array([6, 2, 0, 5, 4, 1]))
    values = loop_values(picked.data["x"], scalars="x" in picked.scalars)
    assert list(map(repr, values)) == ["True", "np.float32(1.0)", "1", "1", "2.0", "'a'"]
    alike = Concatenated(parts[1:2] * 2).pick(np.array([3, 0]))
    assert alike.data["x"].dtype == np.float32
    assert alike.scalars == {"x"}


@atom(id="tests.kind")
def kind(x):
    return type(x).__name__


def test_atom_is_given_the_same_wherever_batches_begin(local, tmp_path, gate):
    local.register(kind)
    run = local.map(kind, zipped(x=range(1000)), store=tmp_path / "store")
    run.cancel()
    run.wait(30)
    halves = zipped(x=[*map(float, range(1000)), *np.arange(0.5, 100)])
    kinds = local.map(kind, halves, store=tmp_path / "store").wait(30).to_frame()["result"]
    assert kinds.tolist() == ["float"] * 1000 + ["float64"] * 100
