"""Generators that a process shares, and generators made outside of an atom."""

import random
from random import gauss

import numpy as np
import numpy.random as npr
import pytest

from atomizer_dask import Atom, Atomizer, Electron, RegistrationError, atom, grid
from atomizer_dask.atoms.code.values import closure_of
from atomizer_dask.atoms.definition import as_definition
from atomizer_dask.atoms.global_generators import drawn_from
from atomizer_dask.atoms.pickling import dump_atom

RNG = np.random.default_rng(1)
LEGACY, PYTHON = np.random.RandomState(1), random.Random(1)


def of_numpy(i):
    return np.random.normal()


def of_python(i):
    return gauss(0, 1)


def imported_within(i):
    import random as rnd

    import numpy

    return rnd.random() + numpy.random.rand()


def held_in_a_variable(i):
    draws = npr
    return draws.rand()


def in_a_function_within(i):
    def draw():
        return random.random()

    return draw()


def of_a_helper(i):
    return of_numpy(i)


def its_own(i):
    return np.random.default_rng(i).normal() + random.Random(i).random()


def not_random(i, context):
    return np.sin(i) + context.rng.random()


@atom
def waits(i, *, context):
    before = np.random.random()
    child = context.conductor.send(Electron("test_global_generators.of_numpy", {"i": i}))
    return {"before": before, "child": child.result().value(), "after": np.random.random()}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (of_numpy, {"numpy"}),
        (of_python, {"random"}),
        (imported_within, {"numpy", "random"}),
        (held_in_a_variable, {"numpy"}),
        (in_a_function_within, {"random"}),
        (its_own, set()),
        (not_random, set()),
    ],
)
def test_code_tells_which_generators_it_draws_from(function, expected):
    scope = {**function.__globals__, **closure_of(function)}
    assert drawn_from(function.__code__, scope) == expected


@pytest.mark.parametrize(
    "function",
    [of_numpy, of_python, imported_within, held_in_a_variable, in_a_function_within, of_a_helper],
)
@pytest.mark.parametrize("options", [{}, {"timeout": 60}], ids=["here", "child"])
def test_old_code_follows_the_seed(atomizer, function, options):
    def draw(seed, count=60):
        run = atomizer.map(function, grid(i=range(count)), seed=seed, **options).wait(60)
        return run.to_frame()["result"].tolist()

    first = draw(7)
    assert first == draw(7)
    assert first[:20] == draw(7, 20)
    assert len(set(first)) == 60
    assert not set(first) & set(draw(8))


def test_numbers_are_those_of_every_conductor(memory, dask):
    from atomizer_dask import Atomizer

    draws = [
        Atomizer(conductor).map(of_numpy, grid(i=range(50)), seed=3).wait(60).to_frame()
        for conductor in (memory, dask)
    ]
    assert draws[0].equals(draws[1])


def test_an_electron_that_waits_for_children_draws_on_from_its_own_stream(atomizer):
    atomizer.register(of_numpy, waits)
    sweep = grid(i=range(8))
    first, second = (
        atomizer.map(waits, sweep, seed=5).wait(60).to_frame().drop(columns="i") for _ in range(2)
    )
    assert first.equals(second)
    assert np.unique(first.to_numpy()).size == first.size


def test_replay_gives_the_same_numbers(atomizer):
    run = atomizer.map(of_numpy, grid(i=range(5)), seed=1).wait(60)
    assert run.replay(3) == run.to_frame()["result"][3]


def from_global(i):
    return RNG.random()


def from_default(i, rng=LEGACY):
    return rng.random()


def from_helper(i):
    return from_global(i)


def from_table(i):
    return TABLE["rng"].random()


TABLE = {"rng": PYTHON}


class Drawing(Atom):
    def __init__(self):
        self.rng = np.random.default_rng(1)

    def process(self, context, conductor, electron):
        return self.rng.random()


def closure():
    rng = np.random.default_rng(2)
    return lambda i: rng.random()


@pytest.mark.parametrize(
    ("value", "culprit"),
    [
        (from_global, "the global 'RNG' (Generator)"),
        (from_default, "the default of its parameter 'rng' (RandomState)"),
        (from_helper, "the global 'from_global' (function)"),
        (from_table, "the global 'TABLE' (dict)"),
        (Drawing(), "its attribute 'rng' (Generator)"),
        (atom(id="closure")(closure()), "the variable 'rng' (Generator)"),
        (atom(id="method")(lambda i, draw=RNG.normal: draw()), "parameter 'draw'"),
    ],
)
def test_a_generator_made_outside_is_refused_with_what_to_do(atomizer, value, culprit):
    with pytest.raises(RegistrationError, match=r"context\.rng") as caught:
        atomizer.map(value, grid(i=range(10)), copy_state=isinstance(value, Atom))
    assert culprit in str(caught.value)


def test_a_distribution_that_draws_from_the_shared_generator_is_none_of_its_own():
    stats = pytest.importorskip("scipy.stats")
    prior = stats.norm(0, 1)

    def density(x):
        return float(prior.pdf(x))

    assert dump_atom(as_definition(density))


@atom(id="tests.randomness.asks")
def asks(i):
    before = random.random()
    return before + ASKED[0].send(of_python, {"i": i}).result(20).value()


ASKED = []


def test_an_electron_that_waits_for_others_lets_them_draw(local):
    ASKED[:] = [local]
    random.seed(5)
    expected = random.random()
    random.seed(5)
    try:
        run = local.map(asks, grid(i=[0]), seed=1).wait(60)
    finally:
        ASKED.clear()
    assert run.progress.done == 1
    assert random.random() == expected, "the user's own generator was drawn from"


def in_a_default(i, rng=np.random):
    return rng.normal()


def as_a_default(i, draw=np.random.normal):
    return draw()


class OfAClass:
    rng = np.random

    def draw(self):
        return self.rng.normal()


OF_A_CLASS = OfAClass()


def of_a_class(i):
    return OF_A_CLASS.draw()


@pytest.mark.parametrize("function", [in_a_default, as_a_default, of_a_class])
def test_generators_are_found_wherever_they_are_held(local, function):
    first, second = (
        local.map(function, grid(i=range(20)), seed=2).wait(60).to_frame()["result"].tolist()
        for _ in range(2)
    )
    assert first == second


@atom(vectorized=True)
def vectorised(i):
    return np.random.normal(size=len(i))


def test_a_vectorised_atom_that_draws_so_is_told(local, caplog):
    local.map(vectorised, grid(i=range(100)), seed=1).wait(60)
    assert "context.random(shape)" in caplog.text


def drawn_by_dask():
    from distributed import worker

    before = random.getstate()
    numbers = {worker.random.random() for _ in range(10)}
    return len(numbers), random.getstate() == before, worker.random.Random is random.Random


def test_dask_draws_from_a_generator_of_its_own_on_workers(dask):
    Atomizer(dask).map(of_python, grid(i=range(10))).wait(20)
    assert set(dask.client.run(drawn_by_dask).values()) == {(10, True, True)}
