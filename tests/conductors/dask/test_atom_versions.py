"""What is executed is what the process would execute now; what nobody needs goes away."""

import copy
import gc
import importlib
import pickle
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from patience import wait_until

from atomizer_dask import Atom, Atomizer, DaskConductor, Electron, atom, grid, zipped
from atomizer_dask.atoms.definition import as_definition
from atomizer_dask.atoms.pickling import dump_watched
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import METADATA

OFFSET = 1
TABLE = {"offset": 1}
VALUES = np.ones(3)


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    globals().update(OFFSET=1, helper=first_helper)
    TABLE["offset"], VALUES[:], Shifts.by, shifted_by_attribute.by = 1, 1, 1, 1


def helper(x):
    return x + 1


first_helper = helper


class Shifts:
    by = 1

    def __call__(self, x):
        return x + self.by


SHIFTS = Shifts()


@atom
def shifted(x):
    return x + OFFSET


def shifted_by_table(x):
    return x + TABLE["offset"]


def shifted_by_array(x):
    return x + VALUES[0]


def shifted_by_helper(x):
    return helper(x)


def shifted_by_class(x):
    return SHIFTS(x)


def shifted_by_default(x, by=1):
    return x + by


def shifted_by_attribute(x):
    return x + shifted_by_attribute.by


shifted_by_attribute.by = 1


class Shifted(Atom):
    by = 1

    def process(self, context, conductor, electron):
        return electron.payload["x"] + self.by


@atom
def parent(x, *, context):
    return context.conductor.send(Electron(shifted.id, {"x": x})).result().value()


def changes():
    by_closure = 1

    def shifted_by_closure(x):
        return x + by_closure

    def set_closure():
        nonlocal by_closure
        by_closure = 10

    return {
        "global": (shifted, lambda: globals().update(OFFSET=10)),
        "table": (shifted_by_table, lambda: TABLE.update(offset=10)),
        "array": (shifted_by_array, lambda: VALUES.__setitem__(0, 10)),
        "helper": (shifted_by_helper, lambda: globals().update(helper=lambda x: x + 10)),
        "class": (shifted_by_class, lambda: setattr(Shifts, "by", 10)),
        "default": (shifted_by_default, lambda: setattr(shifted_by_default, "__defaults__", (10,))),
        "attribute": (shifted_by_attribute, lambda: setattr(shifted_by_attribute, "by", 10)),
        "closure": (shifted_by_closure, set_closure),
        "atom": (Shifted, lambda: setattr(Shifted, "by", 10)),
        "code": (
            shifted_by_helper,
            lambda: setattr(first_helper, "__code__", (lambda x: x + 10).__code__),
        ),
    }


@pytest.mark.parametrize("child", [False, True], ids=["here", "child"])
@pytest.mark.parametrize("how", changes())
def test_what_is_executed_is_what_there_is_now(atomizer, how, child):
    value, change = changes()[how]
    before, options = first_helper.__code__, {"timeout": 60} if child else {}
    definition = as_definition(value)
    atomizer.register(definition)
    try:
        first = atomizer.map(definition, grid(x=[0, 1]), **options).wait(60).to_frame()
        change()
        second = atomizer.map(definition, grid(x=[0, 1]), **options).wait(60).to_frame()
        sent = atomizer.send(definition, {"x": 0}, **options).result(60).value()
    finally:
        Shifted.by, shifted_by_default.__defaults__ = 1, (1,)
        first_helper.__code__ = before
    assert first["result"].tolist() == [1, 2]
    assert (second["result"].tolist(), sent) == ([10, 11], 10)


def test_children_are_executed_as_they_are_now(atomizer):
    global OFFSET
    atomizer.register(shifted, parent)
    assert atomizer.send(parent, {"x": 0}).result(60).value() == 1
    OFFSET = 10
    assert atomizer.send(parent, {"x": 0}).result(60).value() == 10
    assert atomizer.map(parent, grid(x=[1])).wait(60).to_frame()["result"].tolist() == [11]


def test_a_module_that_is_reloaded_is_executed_as_it_is_now(atomizer, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "reloaded.py").write_text("import inner\ndef f(x):\n    return inner.g(x)\n")
    (tmp_path / "inner.py").write_text("def g(x):\n    return x + 1\n")
    importlib.invalidate_caches()
    module = importlib.import_module("reloaded")
    first = atomizer.map(module.f, grid(x=[0])).wait(60).to_frame()["result"].tolist()
    (tmp_path / "inner.py").write_text("def g(x):\n    return x + 100\n")
    importlib.reload(sys.modules["inner"])
    second = atomizer.map(module.f, grid(x=[0])).wait(60).to_frame()["result"].tolist()
    for name in ("reloaded", "inner"):
        del sys.modules[name]
    assert (first, second) == ([1], [100])


@pytest.mark.dask
def test_electrons_already_sent_keep_theirs(dask, gate):
    global OFFSET
    path = gate.path

    def waits(x):
        import os
        import time

        while not os.path.exists(path):
            time.sleep(0.01)
        return x + OFFSET

    run = Atomizer(dask).map(waits, {"x": list(range(50))})
    OFFSET = 10
    gate.open()
    assert run.wait(60).to_frame()["result"].tolist() == list(range(1, 51))


@pytest.mark.parametrize(
    ("value", "is_fixed"),
    [(shifted, True), (shifted_by_table, False), (shifted_by_array, False), (Shifted, True)],
)
def test_only_what_can_change_in_place_is_pickled_at_each_look(value, is_fixed):
    _, watched = dump_watched(as_definition(value))
    assert watched.is_fixed is is_fixed
    assert watched.is_current()


def test_pickling_instances_does_not_make_an_atom_another(dask):
    definition = as_definition(shifted_by_class)
    before = dask.version_of(definition)
    pickle.dumps(SHIFTS)
    copy.copy(SHIFTS)
    assert dask.version_of(definition) is before


def kept(dask_scheduler):
    return set(dask_scheduler.task_metadata[METADATA])


def on_workers(dask_worker):
    return set(dask_worker.extensions["atomizer"]._atoms)


def everywhere(client):
    """Return the versions of atoms that the scheduler and workers have."""
    return set().union(client.run_on_scheduler(kept), *client.run(on_workers).values())


@pytest.mark.dask
def test_versions_that_nobody_needs_go_away_everywhere(dask):
    atomizer = Atomizer(dask)
    versions = []
    for number in range(3):
        data = np.full(10, number)

        def uses(i, data=data):
            return float(data[i])

        run = atomizer.map(uses, grid(i=range(10)), timeout=60).wait(60)
        assert run.to_frame()["result"].tolist() == [float(number)] * 10
        versions.append(str(run._driven.plan.version))
        alive = weakref.ref(run)
        assert versions[-1] in everywhere(dask.client)
    del run, uses
    gc.collect()
    assert alive() is None
    wait_until(lambda: not everywhere(dask.client).intersection(versions))


@pytest.mark.dask
def test_what_a_suspended_run_left_under_way_keeps_its_version_and_no_other(
    cluster, dask, gate, tmp_path
):
    path, begun, store = gate.path, tmp_path / "begun", tmp_path / "store"

    def waits(x):
        begun.touch()
        while not Path(path).exists():
            time.sleep(0.01)
        return x

    def other(x):
        return 2 * x

    atomizer = Atomizer(DaskConductor(cluster.scheduler_address))
    run = atomizer.map(waits, zipped(x=[1]), store=store)
    suspended = str(run._driven.plan.version)
    wait_until(begun.exists)
    atomizer.close()  # while its electron is under way: its task stays
    atomizer = Atomizer(dask)
    run = atomizer.map(other, zipped(x=[1]))
    released = str(run._driven.plan.version)
    run.wait(60)
    del run, other
    gc.collect()
    wait_until(lambda: released not in everywhere(dask.client))
    assert suspended in everywhere(dask.client)
    gate.open()
    run = atomizer.map(waits, zipped(x=[1]), store=store).wait(60)
    assert run.to_frame()["result"].tolist() == [1]
    del run, waits

    def is_gone():
        gc.collect()  # a run is part of a cycle, and for a moment a timer refers to it
        return suspended not in everywhere(dask.client)

    wait_until(is_gone)


@pytest.mark.dask
def test_a_version_that_is_needed_again_is_there_again(dask):
    atomizer = Atomizer(dask)

    def once():
        factor = 3

        def times(x):
            return factor * x

        return atomizer.map(times, grid(x=[1, 2])).wait(60).to_frame()["result"].tolist()

    for _ in range(5):
        assert once() == [3, 6]
        gc.collect()
        dask._atoms.release_unneeded()


def divided(x):
    return 1 / (x - OFFSET)


def test_retry_executes_what_there_is_now(atomizer):
    global OFFSET
    run = atomizer.map(divided, grid(x=[1, 2, 3])).wait(60)
    assert run.errors["type"].tolist() == ["ZeroDivisionError"]
    OFFSET = 3
    frame = run.retry().wait(60).to_frame()
    assert frame["result"].tolist() == [-0.5, 1.0, 0.5]
    assert run.replay(0) == -0.5


def test_retry_executes_a_function_that_was_defined_anew(atomizer, monkeypatch):
    def defined(source):
        scope = {"__name__": __name__}
        exec(source, scope)
        function = scope["mended"]
        monkeypatch.setitem(globals(), "mended", function)
        return function

    run = atomizer.map(defined("def mended(x):\n    return 1 / x\n"), grid(x=[0, 1])).wait(60)
    defined("def mended(x):\n    return 1 / x if x else None\n")
    assert len(run.errors) == 1
    assert not len(run.retry().wait(60).errors)


def test_retry_notes_in_the_store_that_the_code_is_another(atomizer, tmp_path):
    global OFFSET
    run = atomizer.map(divided, grid(x=[1, 2]), store=tmp_path / "store").wait(60)
    OFFSET = 3
    run.retry().wait(60)
    codes = run.to_frame(metadata=True)["code"]
    assert codes.nunique() == 2
    assert len(run.provenance["codes"]) == 2
    atomizer.register(divided)
    assert atomizer.attach(tmp_path / "store").wait(60).to_frame()["result"].tolist() == [-0.5, 1.0]


FACTOR = 1


def times(x):
    return FACTOR * x


class Multiplies:
    def __init__(self, x):
        self.x = x

    def result(self):
        return times(self.x)


def called(function, x):
    return function(x)


def asked(model):
    return model.result()


def returned(x):
    return lambda: x * FACTOR


@pytest.mark.parametrize("options", [{}, {"timeout": 60}], ids=["here", "child"])
def test_code_among_inputs_and_results_is_what_there_is_now(atomizer, monkeypatch, options):
    def executed():
        return [
            atomizer.map(called, {"function": [times], "x": [3]}, **options),
            atomizer.map(asked, {"model": [Multiplies(3)]}, **options),
        ], atomizer.send(asked, {"model": Multiplies(3)}, **options)

    for factor in (1, 2):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        runs, sent = executed()
        found = [run.wait(60).to_frame()["result"][0] for run in runs]
        assert [*found, sent.result(60).value()] == [3 * factor] * 3
        made = atomizer.map(returned, grid(x=[3]), **options).wait(60)
        assert next(iter(made)).value()() == 3 * factor
    monkeypatch.setattr(Multiplies, "result", lambda self: "patched")
    assert atomizer.send(asked, {"model": Multiplies(3)}, **options).result(60).value() == "patched"


@pytest.mark.dask
def test_code_among_inputs_goes_away_too(dask):
    def spaces(dask_worker):
        from atomizer_dask.atoms import namespaces

        return len(namespaces._spaces)

    atomizer = Atomizer(dask)
    before = dask.client.run(spaces)
    for number in range(40):
        run = atomizer.map(called, {"function": [lambda x, n=number: x + n], "x": [1]}).wait(60)
        assert run.to_frame()["result"][0] == 1 + number
    after = dask.client.run(spaces)
    assert max(after[worker] - before[worker] for worker in after) < 30


class Tables:
    __params__ = {"factor": 1}  # noqa: RUF012


def by_table(x):
    return x * Tables.__params__["factor"]


def test_attributes_with_underscores_count(atomizer, monkeypatch):
    assert atomizer.send(by_table, {"x": 3}).result(60).value() == 3
    monkeypatch.setitem(Tables.__params__, "factor", 5)
    assert atomizer.send(by_table, {"x": 3}).result(60).value() == 15
