"""Stores that 0.1.0 wrote, when its modules had other names, are read, attached to and extended."""

import shutil
import sys
from pathlib import Path

import pytest

import atomizer_dask
from atomizer_dask import Electron, Run, grid
from atomizer_dask.atoms.namespaces import _RENAMED, loads
from atomizer_dask.atoms.pickling import load_atom
from atomizer_dask.montecarlopi import Toss

STORES = Path(__file__).parents[1] / "support" / "stores"

of_this_python = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="code that travels by value is of Python 3.11 here"
)


@pytest.fixture
def old(tmp_path):
    """A function that copies one of the stores."""
    return lambda name: shutil.copytree(STORES / name, tmp_path / name)


@pytest.fixture
def old_atoms(monkeypatch):
    monkeypatch.syspath_prepend(STORES)
    import old_atoms

    yield old_atoms
    sys.modules.pop("old_atoms", None)


@of_this_python
def test_results_are_read_without_the_module_of_their_classes(old):
    run = Run.open(old("measured"), allow_pickle=True)
    frame = run.to_frame()
    assert frame["volume"].tolist()[:3] == [2.0, 2.0, 128.0]
    assert [one.volume for one in frame["measure"][:3]] == [1.0, 1.0, 64.0]
    assert [body.shape.value for body in frame["body"]] == ["round", "flat", "round", "flat"]
    assert isinstance(frame["request"][0], Electron)
    assert run.errors["message"].tolist() == ["too flat: 4.0"]


@of_this_python
def test_the_atom_that_a_store_keeps_is_executed(old, local):
    run = local.attach(old("measured"), allow_pickle=True, accept_changes=True).wait(30)
    assert run.progress.failed == 1
    before = run.to_frame()["drawn"].tolist()[:3]
    run.retry().wait(30)
    with pytest.raises(ValueError, match="too flat"):
        run.replay(3)
    assert run.replay(0)["drawn"] == before[0]


def test_a_store_is_extended_and_what_is_in_it_is_not_executed_again(old, local, old_atoms):
    store = old("measured")
    started = Run.open(store, allow_pickle=True).to_frame(metadata=True)["start"].tolist()
    bodies = [old_atoms.Body(s, float(n)) for n in (1, 4, 2) for s in old_atoms.Shape]
    sweep = grid(body=bodies, factor=[2.0])
    options = {"store": store, "allow_pickle": True, "accept_changes": True}
    run = local.map(old_atoms.measured, sweep, **options).wait(30)
    frame = run.to_frame(metadata=True)
    assert frame["volume"].tolist()[:3] + frame["volume"].tolist()[4:] == [2.0, 2.0, 128.0, 16, 16]
    assert frame["start"].tolist()[:4] == started
    assert frame["start"].min() == min(started) < frame["start"][4]
    assert {type(body) for body in frame["body"]} == {old_atoms.Body}


def test_an_atom_in_class_form_is_read_by_its_name(old, local):
    store = old("tosses")
    definition = load_atom((store / "atom.pickle").read_bytes())
    assert definition.cls is Toss
    run = local.map(definition, grid(tosses=[10, 20, 30]), store=store, accept_changes=True)
    frame = run.wait(30).to_frame()
    assert frame["tosses"].tolist() == [10, 20, 30]
    assert frame["value"].tolist()[:2] == Run.open(STORES / "tosses").to_frame()["value"].tolist()


def test_every_name_that_pickles_of_old_call_is_still_there():
    for names in _RENAMED.values():
        for name, module in names.items():
            module = __import__(f"atomizer_dask.{module}", fromlist=[name])
            assert hasattr(module, name)


@pytest.mark.parametrize("where", ["sweep\ngrid", "conductors.dask\nDaskConductor", "run\nRun"])
def test_public_names_are_found_where_they_are_now(where):
    module, name = where.split("\n")
    assert loads(f"catomizer_dask.{module}\n{name}\n.".encode()) is getattr(atomizer_dask, name)


def test_a_name_that_never_was_is_still_an_error():
    with pytest.raises((ModuleNotFoundError, AttributeError)):
        loads(b"catomizer_dask.sweep\nnothing\n.")
