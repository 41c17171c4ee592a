"""Fixtures: one Dask cluster of processes for the whole session, and each conductor in turn."""

from pathlib import Path

import pytest
from distributed import LocalCluster
from hypothesis import settings

from atomizer_dask import Atomizer, DaskConductor, MemoryConductor
from atomizer_dask.registry import registered

settings.register_profile("atomizer", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("atomizer")


@pytest.fixture(scope="session")
def cluster():
    """A Dask cluster of two worker processes with a thread each."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.fixture
def memory():
    """A MemoryConductor of two threads."""
    conductor = MemoryConductor(2)
    yield conductor
    conductor.close()


@pytest.fixture
def dask(cluster):
    """A DaskConductor on the cluster of the session."""
    conductor = DaskConductor(cluster.scheduler_address)
    yield conductor
    conductor.close()


@pytest.fixture(params=["memory", pytest.param("dask", marks=pytest.mark.dask)])
def conductor(request):
    """Each conductor in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def atomizer(conductor):
    """An atomizer with each conductor in turn, and no atoms."""
    atomizer = Atomizer(conductor)
    yield atomizer
    atomizer.close()


@pytest.fixture
def local(memory):
    """An atomizer in this process, and no atoms."""
    atomizer = Atomizer(memory)
    yield atomizer
    atomizer.close()


@pytest.fixture(autouse=True)
def _clean_registry():
    """What a test registers at import time is forgotten after it."""
    atoms, conductors = dict(registered.atoms), dict(registered.conductors)
    yield
    registered.atoms, registered.conductors = atoms, conductors


class Gate:
    """A file that electrons wait for, in whichever process they are."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "gate")

    def open(self) -> None:
        Path(self.path).touch()


@pytest.fixture
def gate(tmp_path):
    """A gate that electrons wait at until the test opens it."""
    gate = Gate(tmp_path)
    yield gate
    gate.open()
