"""The contract of a conductor, as tests that anybody can run against their own.

Subclass `ConductorContract` in a test module, and give it the fixture ``ends``::

    from atomizer_dask.testing import ConductorContract

    class TestFolderConductor(ConductorContract):
        @pytest.fixture
        def ends(self, tmp_path):
            return FolderConductor(tmp_path), FolderConductor(tmp_path)

Every conductor of this package passes it. It needs pytest.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import ExitStack
from typing import Any

import pytest

from atomizer_dask.atomizer import Atomizer
from atomizer_dask.atoms.definition import FunctionAtom
from atomizer_dask.conductor import Conductor
from atomizer_dask.electron import Electron
from atomizer_dask.errors import ConductorError, ElectronError
from atomizer_dask.properties import Properties

SECONDS = 60.0  # for whatever is waited for


def _double(x: Any) -> Any:
    return 2 * x


def _divide(x: float) -> float:
    return 1 / x


double = FunctionAtom(_double, id="atomizer_dask.testing.double")
divide = FunctionAtom(_divide, id="atomizer_dask.testing.divide")  # which fails at 0


class ConductorContract:
    """Tests that a conductor passes; subclass it with a fixture ``ends``."""

    @pytest.fixture
    def ends(self) -> tuple[Conductor, Conductor | None]:
        """Return the sender, and the receiver: None where the sender executes electrons itself."""
        raise NotImplementedError(
            "give your test class a fixture `ends`; see atomizer_dask.testing"
        )

    @pytest.fixture
    def sender(self, ends: tuple[Conductor, Conductor | None]) -> Iterator[Conductor]:
        """Yield the sender, while an atomizer with two atoms executes what it sends."""
        sender, receiver = ends
        with ExitStack() as stack:
            stack.callback(sender.close)
            atomizer = Atomizer(receiver or sender, double, divide).exec()
            stack.callback(atomizer.close)
            yield sender

    def test_it_has_an_id(self, sender: Conductor) -> None:
        """Events and errors name it."""
        assert isinstance(sender, Conductor)
        assert isinstance(sender.id, str)
        assert sender.id

    def test_an_electron_is_answered_with_its_properties(self, sender: Conductor) -> None:
        """Whose outcome it is, when and how often it ran, and what it returned."""
        answer = _sent(sender, Electron(double.id, {"x": 21}, id="the one"))
        assert (answer.electron_id, answer.atom_id) == ("the one", double.id)
        assert (answer.result, answer.error, answer.attempts) == (42, None, 1)
        assert answer.start.tzinfo is not None
        assert answer.start <= answer.end

    def test_each_of_many_electrons_is_answered_once_and_with_its_own(
        self, sender: Conductor
    ) -> None:
        """None is lost, none is answered by another one's outcome."""
        futures = [sender.send(Electron(double.id, {"x": x})) for x in range(300)]
        assert not wait(futures, SECONDS).not_done
        assert [future.result().result for future in futures] == [2 * x for x in range(300)]

    def test_electrons_may_be_sent_from_several_threads(self, sender: Conductor) -> None:
        """Each thread gets the answers to what it sent."""
        answers: dict[int, list[Any]] = {}

        def send(number: int) -> None:
            futures = [sender.send(Electron(double.id, {"x": 100 * number + x})) for x in range(50)]
            answers[number] = [future.result(SECONDS).result for future in futures]

        threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        expected = {number: [2 * (100 * number + x) for x in range(50)] for number in range(4)}
        assert answers == expected

    def test_a_failure_is_an_outcome_like_any_other(self, sender: Conductor) -> None:
        """The future raises nothing; the error says what the atom raised."""
        answer = _sent(sender, Electron(divide.id, {"x": 0}))
        assert answer.result is None
        assert isinstance(answer.error, ElectronError)
        assert (answer.error.kind, answer.error.type) == ("exception", "ZeroDivisionError")
        assert "division by zero" in answer.error.message
        assert _sent(sender, Electron(divide.id, {"x": 4})).result == 0.25

    def test_an_atom_that_nobody_knows_is_answered_with_an_error(self, sender: Conductor) -> None:
        """Its future is answered, and no other electron is harmed."""
        answer = _sent(sender, Electron("atomizer_dask.testing.none_such", {"x": 1}))
        assert isinstance(answer.error, ElectronError)
        assert answer.error.kind == "unknown_atom"
        assert _sent(sender, Electron(double.id, {"x": 1})).result == 2

    def test_what_is_no_electron_is_refused(self, sender: Conductor) -> None:
        """`send` raises at once, in the thread that calls it."""
        something: Any = {"x": 1}
        with pytest.raises((TypeError, ConductorError)):
            sender.send(something)

    def test_closing_it_leaves_nobody_waiting(self, sender: Conductor) -> None:
        """What is under way ends one way or another; closing it twice does no harm."""
        futures = [sender.send(Electron(double.id, {"x": x})) for x in range(50)]
        sender.close()
        sender.close()
        assert not wait(futures, SECONDS).not_done

    def test_nothing_can_be_sent_once_it_is_closed(self, sender: Conductor) -> None:
        """The error says so at once."""
        with sender:
            assert _sent(sender, Electron(double.id, {"x": 1})).result == 2
        with pytest.raises(ConductorError):
            sender.send(Electron(double.id, {"x": 1}))


def _sent(sender: Conductor, electron: Electron) -> Properties:
    return sender.send(electron).result(SECONDS)
