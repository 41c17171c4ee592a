"""A vectorised atom whose rows depend on each other is told so; one that only adds up is warned."""

import itertools
import os
import time

import numpy as np
import pandas as pd
import pytest

from atomizer_dask import Atomizer, Run, atom, zipped
from atomizer_dask.sweeps.columns import as_objects

RNG = np.random.default_rng(3)
X = RNG.normal(size=3000)


def changed_in_place(x):
    x -= x.mean()
    return x


def by_running_total(x):
    total = 0.0
    return [total := total + each for each in x]


def seeded_by_itself(x):
    return x + np.random.default_rng(0).random(len(x))


DEPENDENT = {
    "centred": lambda x: x - x.mean(),
    "normed": lambda x: x / x.sum(),
    "cumulative": lambda x: np.cumsum(x),
    "from_the_end": lambda x: np.cumsum(x[::-1])[::-1],
    "sorted": lambda x: np.sort(x),
    "ranks": lambda x: np.argsort(x),
    "rolling": lambda x: pd.Series(x).rolling(3, min_periods=1).mean().to_numpy(),
    "shifted": lambda x: np.roll(x, 1),
    "differences": lambda x: np.diff(x, prepend=0),
    "numbered": lambda x: np.arange(len(x)),
    "first": lambda x: np.full(len(x), x[0]),
    "largest": lambda x: x == x.max(),
    "codes": lambda x: pd.factorize(x.round(1))[0],
    "texts": lambda x: [f"{each - x.mean():.3f}" for each in x],
    "one_of_two": lambda x: {"good": x, "bad": x - x.min()},
    "frame": lambda x: pd.DataFrame({"y": x, "z": pd.Series(x).rank()}),
    "rows": lambda x: np.stack([x, x - x.mean()], axis=1),
    "marks": lambda x: ({"y": x - x.mean()}, [None] * len(x)),
    "single": lambda x: (x - x.mean()).astype("f4"),
    "in_place": changed_in_place,
    "running_total": by_running_total,
    "seeded": seeded_by_itself,
}


@pytest.mark.parametrize("function", DEPENDENT.values(), ids=DEPENDENT.keys())
def test_rows_that_depend_on_each_other_are_told(local, function):
    run = local.map(atom(function, vectorized=True, id="tests.f"), zipped(x=X)).wait(30)
    assert run.progress.failed == len(X)
    assert run.errors["type"].unique().tolist() == ["DependentRowsError"]
    assert run.errors["kind"].unique().tolist() == ["exception"]
    message = run.errors["message"].iloc[0]
    assert "the rows of the vectorised atom tests.f depend on each other" in message
    assert "give it as an input" in message


INDEPENDENT = {
    "plain": lambda x: 2 * x + 1,
    "nan": lambda x: np.where(x > 0, np.nan, x),
    "none": lambda x: [None if each > 0 else each for each in x],
    "none and ints": lambda x: [None if each > 1 else int(each) for each in x],
    "sets and ints": lambda x: [{1} if each > 1 else int(each) for each in x],
    "none and both": lambda x: [None if each > 2 else 0 if each > 0 else 0.5 for each in x],
    "truths and texts": lambda x: ["no" if each > 1 else bool(each > 0) for each in x],
    "texts": lambda x: [f"{each:.3f}" for each in x],
    "process": lambda x: np.full(len(x), os.getpid()),
    "rows": lambda x: np.stack([x, x**2], axis=1),
    "arrays": lambda x: as_objects([np.arange(int(abs(each) * 3)) for each in x]),
    "frame": lambda x: pd.DataFrame({"y": x, "z": pd.array(x > 0, "boolean")}),
    "times": lambda x: np.datetime64("2020", "s") + (x * 100).astype("m8[s]"),
    "objects": lambda x: [object() for _ in x],
    "functions": lambda x: [(lambda each=each: each) for each in x],
    "marks": lambda x: (x, [each > 2 for each in x]),
}


@pytest.mark.parametrize("function", INDEPENDENT.values(), ids=INDEPENDENT.keys())
def test_rows_that_do_not_are_left_alone(local, function):
    run = local.map(atom(function, vectorized=True), zipped(x=X)).wait(30)
    assert len(run.errors) == (int((X > 2).sum()) if function is INDEPENDENT["marks"] else 0)
    assert not [event for event in run.events if event.level == "warning"]


def test_atom_that_counts_its_calls_is_not_taken_for_one_that_reduces(local):
    calls = itertools.count()
    run = local.map(atom(lambda x: np.full(len(x), next(calls)), vectorized=True), zipped(x=X))
    assert len(run.wait(30).errors) == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_rows(local, count):
    centred = atom(DEPENDENT["centred"], vectorized=True)
    run = local.map(centred, zipped(x=X[:count])).wait(30)
    assert len(run.errors) == (0 if count == 1 else count)


def test_rows_that_are_all_alike_at_first_are_told_when_they_differ(local):
    x = np.concatenate([np.ones(2000), X, X])

    @atom(vectorized=True)
    def centred(x):
        time.sleep(2e-6 * len(x))
        return x - x.mean()

    run = local.map(centred, zipped(x=x)).wait(60)
    assert "DependentRowsError" in set(run.errors["type"])
    assert run.errors["x"].nunique() > 1


def test_random_numbers_are_the_same_in_any_cut_and_events_are_told_once(local):
    calls = []

    @atom(vectorized=True)
    def noisy(x, *, context):
        calls.append(len(x))
        context.emit("was called")
        return x + context.random() + context.random(3).sum(axis=1)

    run = local.map(noisy, zipped(x=X[:500]), seed=1).wait(30)
    assert len(run.errors) == 0
    told = [event.message for event in run.events].count("was called")
    assert 1 <= told < len(calls)  # not where electrons were executed again


@pytest.mark.parametrize("dtype", ["f8", "f4", "c16"])
def test_last_bits_are_told_once_and_cost_nobody_anything(local, dtype):
    @atom(vectorized=True)
    def summed(x):
        eps = np.finfo(dtype).eps
        return (x + (len(x) % 7) * 3 * eps).astype(dtype)

    run = local.map(summed, zipped(x=1 + np.abs(X))).wait(30)
    assert len(run.errors) == 0
    told = [event.message for event in run.events if event.level == "warning"]
    assert len(told) == 1
    assert "the last bits of what the vectorised atom" in told[0]


def test_rows_that_fail_do_not_hide_that_the_others_depend_on_each_other(local):
    @atom(vectorized=True)
    def fails(x):
        if (x > 2.5).any():
            raise ValueError("too large")
        return x - x.mean()

    run = local.map(fails, zipped(x=X)).wait(30)
    assert run.progress.failed == len(X)
    assert set(run.errors["type"]) == {"DependentRowsError"}


def test_slow_atom_is_executed_again_for_few_rows_once(local):
    rows = []

    @atom(vectorized=True)
    def slow(x):
        rows.append(len(x))
        time.sleep(0.001 * len(x))
        return x

    run = local.map(slow, zipped(x=X[:500])).wait(60)
    assert len(run.errors) == 0
    assert sum(rows) <= 500 + 2 * 32 * 2  # two cuts for each thread


def test_rows_of_a_stream_and_of_objects_that_depend_on_each_other(local):
    @atom(vectorized=True)
    def counted(v):
        return [len(each) + len(v) for each in v]

    for sweep in (({"v": [1] * n} for n in range(40)), zipped(v=[[1] * n for n in range(40)])):
        run = local.map(counted, sweep).wait(30)
        assert set(run.errors["type"]) == {"DependentRowsError"}
        assert len(run.errors) >= 38  # but where one came by itself


@pytest.mark.parametrize("options", [{"timeout": "30s"}, {}])
def test_in_children_and_in_stores(local, tmp_path, options):
    centred = atom(DEPENDENT["centred"], vectorized=True, id="tests.centred")
    run = local.map(centred, zipped(x=X[:50]), store=tmp_path / "s", **options).wait(60)
    assert len(run.errors) == 50
    assert set(Run.open(tmp_path / "s").errors["type"]) == {"DependentRowsError"}


@pytest.mark.dask
def test_on_workers(dask):
    with Atomizer(dask) as atomizer:
        run = atomizer.map(atom(DEPENDENT["ranks"], vectorized=True), zipped(x=X)).wait(60)
        assert run.progress.failed == len(X)
        assert "result" not in run.to_frame()
