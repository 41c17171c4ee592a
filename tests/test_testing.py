"""The contract that ships: every conductor of ours passes it, and one of somebody else."""

import importlib.util
from pathlib import Path

import pytest

from atomizer_dask import AmqpConductor, Conductor, Electron, MemoryConductor
from atomizer_dask.testing import ConductorContract

EXAMPLE = Path(__file__).parent.parent / "examples" / "own_conductor.py"


class TestMemoryConductor(ConductorContract):
    @pytest.fixture
    def ends(self):
        return MemoryConductor(2), None


@pytest.mark.dask
class TestDaskConductor(ConductorContract):
    @pytest.fixture
    def ends(self, dask):
        return dask, None


@pytest.mark.amqp
class TestAmqpConductor(ConductorContract):
    @pytest.fixture
    def ends(self, broker, queue):
        return AmqpConductor(broker.url, queue), AmqpConductor(broker.url, queue)


class TestConductorOfOnesOwn(ConductorContract):
    @pytest.fixture
    def ends(self, tmp_path):
        spec = importlib.util.spec_from_file_location("own_conductor", EXAMPLE)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.FolderConductor(tmp_path), module.FolderConductor(tmp_path)


def test_a_conductor_of_ones_own_is_short():
    lines = EXAMPLE.read_text().splitlines()
    begin = lines.index("class FolderConductor(Conductor):")
    end = next(n for n, line in enumerate(lines) if n > begin and line.startswith("@atom"))
    assert end - begin < 60


class Forgetful(Conductor):
    """Answers nothing, and says so to nobody."""

    def send(self, electron: Electron):
        from concurrent.futures import Future

        return Future()

    def close(self):
        pass


@pytest.mark.parametrize(
    "name",
    [
        "test_what_is_no_electron_is_refused",
        "test_nothing_can_be_sent_once_it_is_closed",
        "test_closing_it_leaves_nobody_waiting",
    ],
)
def test_a_conductor_that_keeps_nothing_does_not_pass(name, monkeypatch):
    monkeypatch.setattr("atomizer_dask.testing.SECONDS", 0.05)
    with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)):
        getattr(ConductorContract(), name)(Forgetful())
