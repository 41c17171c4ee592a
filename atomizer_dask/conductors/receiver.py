"""Electrons that others sent: received, executed here, and answered."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from atomizer_dask.conductor import Conductor, Route
from atomizer_dask.electron import Electron
from atomizer_dask.errors import AtomizerError, ConductorError
from atomizer_dask.events import Event
from atomizer_dask.execution.failure import CANCELLED, Failure
from atomizer_dask.future import ElectronFuture
from atomizer_dask.properties import Properties


class Executor(Protocol):
    """The atomizer, which executes received electrons."""

    def execute(self, electron: Electron, route: Route | None) -> ElectronFuture:
        """Have an electron executed; the electrons that it sends take `route`."""

    def lose(self, conductor: Conductor, error: ConductorError) -> None:
        """Note that a conductor has failed."""

    def report(self, error: AtomizerError) -> None:
        """Note an error."""


class Receiver(threading.Thread):
    """The thread that receives from one conductor, until the conductor ends or fails.

    Parameters
    ----------
    conductor
        Where it fails, all other conductors go on.
    executor
        Executes the electrons received.
    under_way
        The set that holds the futures of electrons that are being executed.
    """

    def __init__(
        self, conductor: Conductor, executor: Executor, under_way: set[Future[Properties]]
    ) -> None:
        super().__init__(name=f"receive-{conductor.id}", daemon=True)
        self.conductor = conductor
        self._executor = executor
        self._under_way = under_way
        self._route = conductor.route
        self.has_given_up = False  # because no conductor was left to execute electrons

    def run(self) -> None:
        """Receive electrons, and have them executed."""
        try:
            for electron in self.conductor.receive() or ():
                self._take(electron)
        except BaseException as error:  # noqa: BLE001 - it fails alone
            self._executor.lose(self.conductor, self._error("the conductor failed", error))

    def _take(self, electron: Any) -> None:
        try:
            future = self._executor.execute(electron, self._route)
        except ConductorError as error:  # nobody is left to execute it, nor what would come next
            self._give_up(electron, error)
            return
        except Exception as error:  # noqa: BLE001 - it costs no other electron
            self._executor.report(self._error("received what cannot be executed", error))
            if not isinstance(electron, Electron):
                return
            future = answered(self._rejected(electron, error))
        self._under_way.add(future)
        future.add_done_callback(partial(self._complete, electron))

    def _give_up(self, electron: Any, error: ConductorError) -> None:
        self.has_given_up = True
        self.conductor.stop_receiving()
        self._give_back(electron, error)
        self._executor.report(error)

    def _complete(self, electron: Electron, future: Future[Properties]) -> None:
        self._under_way.discard(future)
        if future.cancelled():
            properties = CANCELLED.properties(electron)
        elif isinstance(error := future.exception(), ConductorError):  # its conductor is gone
            self._give_back(electron, error)
            return
        elif error is not None:  # given back, it would come again and again
            properties = self._rejected(electron, error)
        else:
            properties = future.result()
        try:
            self.conductor.complete(properties)
        except BaseException as error:  # noqa: BLE001 - one answer that is lost must not stop the rest
            self._executor.report(self._error("an answer was lost", error))

    def _give_back(self, electron: Electron, error: ConductorError) -> None:
        """Return a received electron that is not executed here, or answer it as rejected."""
        with suppress(ConductorError):  # the conductor takes nothing back
            self.conductor.give_back(electron.id)
            return
        try:
            self.conductor.complete(self._rejected(electron, error))
        except Exception as broken:  # noqa: BLE001 - it costs no other electron
            self._executor.report(self._error("an electron was lost", broken))

    def _rejected(self, electron: Electron, error: BaseException) -> Properties:
        """Return the answer to an electron that could not be executed."""
        return Failure.rejected(error, text=self.conductor.text_of(error)).properties(electron)

    def _error(self, message: str, error: BaseException) -> ConductorError:
        return ConductorError(Event(message, conductor_id=self.conductor.id, level="error"), error)


def answered(properties: Properties) -> ElectronFuture:
    """Return the future of an electron that is answered without being executed."""
    future = ElectronFuture()
    future.set_result(properties)
    return future
