"""Atoms that are called as the functions they are: at a prompt, in tests, by other atoms."""

import inspect
import logging
import pydoc
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest

from atomizer_dask import Context, atom, grid

SECONDS = 60


@atom(id="tests.noisy")
def noisy(temperature, size=3, *, context):
    """Return a temperature with noise."""
    return temperature + size * context.rng.random()


@atom(id="tests.noisy_rows", vectorized=True)
def noisy_rows(x, context, scale=1.0):
    return x + scale * context.random()


@atom(id="tests.first")
def first(context, x):
    return x, context.rng.random()


def test_an_atom_that_is_called_has_a_context_of_its_own():
    assert noisy(1.0) != noisy(1.0)
    assert 1.0 <= noisy(1.0, size=1) <= 2.0


def test_its_random_stream_can_be_seeded():
    assert noisy(1.0, context=Context(seed=7)) == noisy(1.0, context=Context(seed=7))
    assert noisy(1.0, context=Context(seed=7)) != noisy(1.0, context=Context(seed=8))
    one = Context(seed=7)
    assert noisy(1.0, context=one) == noisy(1.0, context=one)


def test_it_is_that_of_a_run_with_this_seed(local):
    frame = local.map(noisy, grid(temperature=[0.0] * 5), seed=7).wait(SECONDS).to_frame()
    by_hand = [noisy(0.0, context=Context(seed=7, electron=i)) for i in range(5)]
    assert frame["result"].tolist() == by_hand


def test_a_vectorised_atom_has_a_row_of_random_numbers_per_electron(local):
    frame = local.map(noisy_rows, grid(x=[0.0] * 5), seed=7).wait(SECONDS).to_frame()
    assert noisy_rows(np.zeros(5), context=Context(seed=7)).tolist() == frame["result"].tolist()
    assert noisy_rows(np.zeros(5)).shape == (5,)
    assert noisy_rows(pd.Series([0.0, 0.0]), scale=0.0).tolist() == [0.0, 0.0]
    later = noisy_rows(np.zeros(2), context=Context(seed=7, electron=3))
    assert later.tolist() == frame["result"].tolist()[3:]


def test_a_context_may_be_given_by_position(local):
    assert first(Context(seed=7), 3) == first(Context(seed=7), x=3)
    assert first(x=3)[0] == 3
    frame = local.map(first, grid(x=[3]), seed=7).wait(SECONDS).to_frame()
    assert list(frame["result"][0]) == list(first(Context(seed=7), 3))


def test_anything_may_be_given_as_context():
    class Fake:
        rng = np.random.default_rng(1)

    assert noisy(1.0, context=Fake()) == 1.0 + 3 * np.random.default_rng(1).random()


def test_what_a_context_says_of_a_call(caplog):
    @atom(id="tests.tells")
    def tells(x, context):
        context.emit("here", level="warning")
        return context

    with caplog.at_level(logging.DEBUG, logger="atomizer_dask"):
        context = tells(5)
    assert context.electron.payload == {"x": 5}
    assert context.electron.atom_id == "tests.tells"
    assert (context.attempt, context.failures, context.deadline) == (1, (), None)
    assert not context.cancelled
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "here" in caplog.text
    assert "tests.tells" in repr(context)
    assert "tests.tells" in context._repr_html_()
    with pytest.raises(AttributeError, match=r"called as a function.*MemoryConductor"):
        _ = context.conductor


@pytest.mark.parametrize(
    ("args", "named", "message"),
    [
        ((), {}, "missing 1 required positional argument: 'temperature'"),
        ((1, 2, 3), {}, "takes from 1 to 2 positional arguments but 3"),
        ((1,), {"sise": 2}, "unexpected keyword argument 'sise'"),
        ((1,), {"temperature": 2}, "multiple values for argument 'temperature'"),
    ],
)
def test_a_wrong_call_is_pythons_own_error(args, named, message):
    with pytest.raises(TypeError, match=message):
        noisy(*args, **named)


def test_a_seed_that_is_none_is_refused():
    with pytest.raises(TypeError, match="seed must be an integer"):
        Context(seed="seven")
    with pytest.raises(ValueError, match="seed must be between"):
        Context(seed=-1)


CALLS = """
from atomizer_dask import atom

@atom(id="tests.noisy2")
def noisy(x, context):
    return x + context.rng.random()

@atom(id="tests.calls")
def calls(x):
    return noisy(x)

@atom(id="tests.passes")
def passes(x, context):
    return noisy(x, context=context)
"""


@pytest.mark.parametrize("isolation", ["", "process"])
def test_an_atom_that_calls_another_gives_its_own_context(atomizer, isolation, tmp_path):
    # New random numbers at each call would differ each time that the run is repeated.
    path = tmp_path / "calling.py"
    path.write_text(CALLS)
    scope = {"__name__": "calling"}
    exec(compile(CALLS, str(path), "exec"), scope)
    calls = atom(id="tests.calls", isolation=isolation)(scope["calls"].function)
    passes = atom(id="tests.passes", isolation=isolation)(scope["passes"].function)
    sweep = grid(x=[0.0] * 3)
    run = atomizer.map(calls, sweep, seed=7).wait(SECONDS)
    assert run.progress.failed == 3
    assert "context=context" in run.errors["message"].iloc[0]
    with pytest.raises(TypeError, match="context=context"):
        run.replay(f"{run.id}-0")
    frame = atomizer.map(passes, sweep, seed=7).wait(SECONDS).to_frame()
    assert frame["result"].tolist() == [
        scope["noisy"](0.0, context=Context(seed=7, electron=i)) for i in range(3)
    ]
    assert 0 <= scope["noisy"](0.0) <= 1  # after a run, calls are calls again


def test_help_and_signature_are_those_of_the_function():
    text = pydoc.plain(pydoc.render_doc(noisy))
    assert "noisy(temperature, size=3)" in text
    assert "Return a temperature with noise." in text
    assert str(inspect.signature(noisy)) == "(temperature, size=3, *, context)"
    bare = pydoc.plain(pydoc.render_doc(noisy_rows))
    assert "tests.noisy_rows(x, scale=1.0)" in bare
    assert "check_fields" not in bare
    assert noisy.__doc__ == "Return a temperature with noise."


def test_an_atom_with_fixed_values_is_called_with_them():
    import functools

    from atomizer_dask.atoms.definition import as_definition

    table = np.arange(3)

    def look(i, table, context):
        return int(table[i]), table.flags.writeable

    fixed = as_definition(functools.partial(look, table=table))
    assert fixed(2) == (2, False)
    assert fixed(i=1) == (1, False)


TYPED = """
from typing import assert_type
from atomizer_dask import Atom, atom

@atom
def plain(x: float, n: int = 1) -> float:
    return x * n

@atom(vectorized=True, id="other")
def named(x: int) -> str:
    return str(x)

@atom
class Thing(Atom):
    id = "thing"

assert_type(plain(1.0, n=2), float)
assert_type(named(1), str)
assert_type(Thing.id, str)
plain("text")  # error
plain(1.0, m=2)  # error
named()  # error
"""


def test_types_are_those_of_the_function(tmp_path):
    path = tmp_path / "typed.py"
    path.write_text(textwrap.dedent(TYPED))
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    wrong = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    expected = {n for n, line in enumerate(TYPED.splitlines(), 1) if line.endswith("# error")}
    assert wrong == expected, done.stdout + done.stderr
