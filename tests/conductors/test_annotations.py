"""What is asked for around electrons and would not be heeded."""

import dask
import pytest

from atomizer_dask import Electron, MemoryConductor


def same(x):
    return x


@pytest.mark.parametrize(
    ("asked", "instead"),
    [
        ({"priority": 3}, "priority="),
        ({"retries": 2}, "max_attempts="),
        ({"workers": ["tcp://node1:1"]}, "DaskConductor of a cluster"),
        ({"allow_other_workers": True}, "DaskConductor of a cluster"),
        ({"resources": {"GPU": 1}}, "resources={'GPU': 1}"),
        ({"mine": 1}, "leave it out"),
    ],
)
def test_map_names_what_to_use_instead_of_annotations(asked, instead, local):
    with dask.annotate(**asked), pytest.raises(TypeError, match=r"dask\.annotate") as told:
        local.map(same, {"x": [1]})
    assert instead in str(told.value)


def test_annotations_are_refused_wherever_electrons_begin(local, tmp_path):
    local.register(same)
    run = local.map(same, {"x": [1]}, store=tmp_path / "store").wait()
    ways = [
        lambda: local.send(same, {"x": 1}),
        lambda: local.send(Electron(next(iter(local.atoms)), {"x": 1})),
        lambda: local.attach(tmp_path / "store"),
        lambda: local.explore(same, x=(0, 3)),
        lambda: run.retry(),
    ]
    for way in ways:
        with dask.annotate(resources={"GPU": 1}), pytest.raises(TypeError, match="annotate"):
            way()


def test_a_conductor_refuses_them_by_itself():
    conductor = MemoryConductor(1)
    with dask.annotate(priority=1), pytest.raises(TypeError, match="priority="):
        conductor.send(Electron("nobody"))
    conductor.close()


@pytest.mark.dask
def test_an_atom_that_sends_is_told(dask_atomizer):
    def parent(x, *, context):
        with dask.annotate(workers="nobody"):
            return context.conductor.send(Electron("leaf", {"x": x})).result().value()

    run = dask_atomizer.map(parent, {"x": [1]}).wait(60)
    assert run.errors["type"].tolist() == ["TypeError"]


@pytest.fixture
def dask_atomizer(dask):
    from atomizer_dask import Atomizer

    return Atomizer(dask)


def test_what_is_annotated_elsewhere_does_not_matter(local):
    with dask.annotate(priority=1):
        pass
    assert local.map(same, {"x": [1]}).wait().to_frame()["result"].tolist() == [1]
