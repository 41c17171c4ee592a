"""Inputs that cannot be what their user means."""

import random
import threading

import numpy as np
import pytest

from atomizer_dask import Atomizer, InvalidSweepError, UnpicklableError, grid, zipped


def draw(generator, i=0):
    return generator.random()


def one(x):
    return 1


class Refuses:
    def __reduce__(self):
        raise ValueError("it is of this process")


RNG = np.random.default_rng(1)


@pytest.mark.parametrize(
    "sweep",
    [
        grid(generator=[RNG], i=range(5)),
        grid(generator=[random.Random(1)], i=[1, 2]),
        {"generator": [RNG] * 3},
        zipped(generator=[RNG, 1, RNG]),
        [{"generator": RNG}, {"generator": RNG}],
        {"generator": [np.random.RandomState(1)] * 2},
    ],
)
def test_one_generator_for_several_electrons_is_refused(atomizer, sweep):
    with pytest.raises(InvalidSweepError, match=r"'generator'.*context\.rng"):
        atomizer.map(draw, sweep)


def test_generators_of_their_own_are_inputs_like_others(atomizer):
    generators = [np.random.default_rng(seed) for seed in range(4)]
    expected = [np.random.default_rng(seed).random() for seed in range(4)]
    frame = atomizer.map(draw, {"generator": generators}).wait(60).to_frame()
    assert frame["result"].tolist() == expected
    assert atomizer.map(draw, grid(generator=generators)).wait(60).progress.done == 4


@pytest.mark.dask
@pytest.mark.parametrize(
    ("sweep", "where"),
    [
        ({"x": [1, Refuses()]}, r"row 1 of 'x' is .*Refuses.*it is of this process"),
        (grid(x=[threading.Lock(), 2]), r"value 0 of the axis 'x' is .*lock"),
        ({"x": [*range(5000), threading.Lock()]}, r"row 5000 of 'x'"),
    ],
)
def test_inputs_that_cannot_be_pickled_are_named_at_once(dask, sweep, where):
    with pytest.raises(UnpicklableError, match=where) as caught:
        Atomizer(dask).map(one, sweep)
    assert "make it within the atom" in str(caught.value)


@pytest.mark.dask
def test_a_row_of_a_stream_that_cannot_be_pickled_names_its_input(dask):
    rows = ({"x": Refuses() if i == 3 else i} for i in range(6))
    run = Atomizer(dask).map(one, rows).wait(60)
    assert run.errors["message"].str.contains("the input 'x' is .*Refuses").tolist() == [True]
    assert run.progress.done == 5


def test_what_cannot_be_pickled_is_an_input_where_nothing_travels(local):
    assert local.map(one, {"x": [1, Refuses()]}).wait(60).progress.done == 2
