"""The base class of conductors that carry batches."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from time import monotonic
from typing import Any, TypeVar

from atomizer_dask.atoms.code.fingerprint import Code, code_of
from atomizer_dask.atoms.definition import Definition
from atomizer_dask.atoms.namespaces import HOME
from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.conductor import Conductor, Listener, Route, check_electron
from atomizer_dask.conductors.dispatcher import Dispatcher, as_error
from atomizer_dask.conductors.driver import Carrier, Driver, Source
from atomizer_dask.conductors.electron_sender import ElectronSender
from atomizer_dask.conductors.process_end import watch
from atomizer_dask.conductors.status import ConductorState, ConductorStatus
from atomizer_dask.config import check
from atomizer_dask.display.completion import offers
from atomizer_dask.display.live import LiveDisplay
from atomizer_dask.electron import Electron
from atomizer_dask.errors import AtomizerError, ConductorError
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Batch, Origin, StoreTarget
from atomizer_dask.execution.input_checks import check_no_futures
from atomizer_dask.future import ElectronFuture
from atomizer_dask.interruptible import SLICE_SECONDS, has_ended, wait
from atomizer_dask.policy import Policy
from atomizer_dask.registry import registered
from atomizer_dask.sweeps.sweep import Sweep

logger = logging.getLogger(__name__)
T = TypeVar("T")

JOIN_SECONDS = 0.05  # between two looks at what has not ended
HEED_SECONDS = 0.9  # for a running electron to heed that it is cancelled
LEAVE_SECONDS = 10.0  # to wait for runs to be left when the interpreter ends


@offers("state status watch")
class BatchConductor(LiveDisplay, Conductor, Carrier):
    """A conductor of whole batches: it runs sweeps, and bundles electrons sent one by one."""

    space = HOME  # in which outcomes of electrons sent from here are unpickled; see `namespaces`

    def __init__(self, id: str) -> None:
        check()
        self.id = id
        self.channel = ""
        self._listeners: list[Listener] = []
        self._sender = ElectronSender(self)
        self._drivers: weakref.WeakSet[Driver] = weakref.WeakSet()
        self._dispatcher: Dispatcher | None = None
        self._opening = threading.Lock()
        self._pause = threading.Event()  # set when closed
        self._closed = False
        self._gone: ConductorError | None = None
        self._withdrawn: ConductorError | None = None

    # -- what subclasses override -----------------------------------------------------------

    @abstractmethod
    def stop(self, root: str, epoch: int, *, cancel: bool) -> None:
        """Have workers give back electrons not begun, of a run or of an electron's descendants.

        Parameters
        ----------
        root
            The id of the run or the electron; or the channel of all that was sent one by one.
        epoch
            Only batches made in this epoch or an earlier one are stopped.
        cancel
            Cancel running electrons too, through ``context.cancelled``.
        """

    def check_detachable(self, sink: StoreTarget) -> None:
        """Raise where a run cannot go on without this process.

        Raises
        ------
        ConductorError
            Where it cannot.
        """
        raise ConductorError(
            f"a {type(self).__name__} cannot go on without this process; a DaskConductor can"
        )

    def check_inputs(self, sweep: Sweep, fixed: Mapping[str, Any]) -> None:
        """Raise where inputs, or fixed values, cannot be carried.

        Raises
        ------
        UnpicklableError
            Where they cannot travel.
        InvalidSweepError
            Where they are Futures of Dask, and this conductor has no workers with their values.
        """
        check_no_futures(sweep, fixed, f"and a {type(self).__name__} has no workers of Dask")

    def code_of(self, definition: Definition) -> Code:
        """Return the code that electrons of an atom execute, which may have changed since."""
        return code_of(definition)

    def detach_run(
        self,
        run_id: str,
        sink: StoreTarget,
        version: Any,
        policy: Policy,
        drive: Callable[..., str],
    ) -> None:
        """Have a run go on without this process."""
        raise NotImplementedError

    def whereabouts(self) -> dict[str, Any]:
        """Return the conductor's type and threads, as the store of a run records them."""
        return {"conductor": type(self).__name__, "threads": self.threads}

    @abstractmethod
    def status(self) -> ConductorStatus:
        """Return the state of the conductor and its workers, as last reported."""

    @property
    def state(self) -> ConductorState:
        """Whether electrons can be sent: ``connected``, ``closed``, or ``gone``."""
        if self._closed:
            return "closed"
        return "connected" if self._gone is None else "gone"

    def in_flight(self, run_id: str) -> list[Batch]:
        """Return the batches of a run that outlived their client, in the order of submission."""
        return []

    def settle(self, run_id: str, atom_id: str, keys: list[str] | None) -> None:
        """Forget the outcomes of batches of a run, all where `keys` is None: the store has them."""

    def standstill(self, version: Any) -> str:
        """Return why no worker can execute an atom at present; empty where one can."""
        return ""

    @abstractmethod
    def version_of(self, definition: Definition) -> Any:
        """Return the version of an atom: what a site needs to find this very definition.

        Raises
        ------
        UnpicklableError
            Where it cannot travel.
        """

    def find_version(self, atom_id: str) -> Any:
        """Return the version of an atom that another client published; None without one."""
        return None

    def fetch(self, atom_id: str) -> Definition | None:
        """Return an atom that another client published; None where there is none."""
        return None

    def catalog(self) -> Mapping[str, Any]:
        """Return the versions that descendants of an electron shall find, by atom id."""
        return Origin().catalog

    def publish(self, definition: Definition) -> None:
        """Publish an atom to all others that use the same transport."""

    # -- what the atomizer uses -------------------------------------------------------------

    def attach(self, listener: Listener) -> None:
        """Look up atoms at `listener` first, and send it events."""
        if listener not in self._listeners:
            self._listeners.append(listener)

    def detach(self, listener: Listener) -> None:
        """Undo `attach`."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def find(self, atom_id: str) -> Definition | None:
        """Return the atom of that id, from the listeners or from what `register` was given."""
        for listener in self._listeners:
            if (definition := listener.find(atom_id)) is not None:
                return definition
        return registered.atoms.get(atom_id)

    def census(self, channel: str) -> tuple[int, int]:
        """Return how many electrons of a channel are not done, and how many were ever sent here.

        The second number counts all channels. To be called on the dispatcher's thread.
        """
        return self._sender.unfinished(channel), self._sender.count

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all electrons sent one by one, and their descendants, are done.

        Returns False where that takes longer than `timeout` seconds. Two counts in a row must
        agree, because workers do not count at the same moment.
        """
        until = None if timeout is None else monotonic() + timeout
        before = None
        while self._dispatcher is not None and not self._closed and self._gone is None:
            now = self.count_all()
            alive = now[0] > 0
            if not alive and now == before:
                break
            before = now
            if until is not None and monotonic() > until:
                return False
            if alive:
                wait(self._pause, JOIN_SECONDS)
        return True

    def count_all(self) -> tuple[int, int]:
        """Return the census of the conductor's own channel, over all processes."""
        counted = self.ask(lambda: self.census(self.channel))
        while not has_ended(counted, SLICE_SECONDS):  # however long the action before takes
            if not self._dispatch().is_alive:
                return 0, self._sender.count
        return counted.result()

    def version_for(self, atom_id: str) -> Any:
        """Return the version of the atom that this id means now; None where it means none."""
        definition = self.find(atom_id)
        return self.find_version(atom_id) if definition is None else self.version_of(definition)

    def drive(self, source: Source, row_bytes: float = 0.0) -> Driver:
        """Return a driver that carries the electrons of `source`."""
        driver = Driver(self, self._dispatch(), source, row_bytes)
        self._drivers.add(driver)
        return driver

    def demand(self) -> tuple[int, float]:
        """Return how many electrons are not done, and about how long a thread would take."""
        each = [driver.demand() for driver in list(self._drivers)]
        return sum(number for number, _ in each), sum(seconds for _, seconds in each)

    def post(self, action: Callable[[], Any]) -> None:
        """Have `action` called on the dispatcher's thread; where it raises, all under way fails.

        An action about the electrons of one source is posted to their driver instead.
        """
        self._dispatch().post(action)

    def post_later(self, seconds: float, action: Callable[[], Any]) -> None:
        """Have `action` called after some seconds; to be called on the dispatcher's thread."""
        self._dispatch().post_later(seconds, action)

    def do(self, action: Callable[[], None]) -> None:
        """Have `action` done on the dispatcher's thread, and wait for it.

        On that thread itself, as within a policy of the user's, the action is only posted.

        Raises
        ------
        ConductorError
            Where that thread is stuck in something else.
        Exception
            Whatever the action raises.
        """
        self._dispatch().do(action)

    def ask(self, action: Callable[[], T]) -> Future[T]:
        """Have `action` called on the dispatcher's thread; the future has its result."""
        return self._dispatch().ask(action)

    @property
    def obstacle(self) -> str:
        """Where the dispatcher's thread is stuck, in words; empty where it is not stuck."""
        dispatcher = self._dispatcher
        return dispatcher.obstacle.message if dispatcher and dispatcher.is_stuck else ""

    def cancel_descendants(self, root: str) -> None:
        """Answer `root` and its descendants as cancelled: queued ones now, running ones soon.

        To be called on the dispatcher's thread.
        """
        self._sender.cancel(root)
        self.post_later(HEED_SECONDS, lambda: self._sender.leave_behind(root))

    def cancel_electron(self, electron_id: str) -> None:
        """Cancel an electron that was sent from here, and what it sent; from any thread."""
        self.post(lambda: self.stop(electron_id, 0, cancel=True))

    def withdraw(self) -> None:
        """Begin no more electrons that were sent one by one; running ones run to their end.

        The futures of electrons that have not begun end with a `ConductorError`.
        """
        error = ConductorError(Event("it was withdrawn before it began", conductor_id=self.id))
        self._withdrawn = error
        self.do(lambda: self._sender.withdraw(error))
        self.post(lambda: self.stop(self.channel, 0, cancel=False))

    def check_open(self) -> None:
        """Raise `ConductorError` where nothing can be sent any more."""
        if self._gone is not None:
            raise self._gone
        if self._withdrawn is not None:
            raise self._withdrawn
        if self._closed:
            raise ConductorError(Event("the conductor is closed", conductor_id=self.id))

    def announce_waiting(self, channel: str, electron_id: str) -> None:
        """Notify the listeners and the drivers that an electron waits for its children."""
        for listener in self._listeners:
            listener.note_waiting(electron_id)
        self.post(lambda: self._sender.note_waiting(electron_id))

    def emit(self, channel: str, event: Event) -> None:
        """Emit an event to the listeners; `channel` says whose, where a conductor has several."""
        for listener in self._listeners:
            listener.emit(event)

    def report(self, channel: str, error: AtomizerError) -> None:
        """Report an error to the listeners."""
        for listener in self._listeners:
            listener.report(error)
        if not self._listeners:
            logger.error("%s", error)

    def send(self, electron: Electron) -> ElectronFuture:
        """Have an electron executed; see `Conductor.send`."""
        check_electron(electron)
        return self._sender.send(electron, self.version_for(electron.atom_id))

    def send_as(
        self, electron: Electron, definition: Definition, route: Route | None = None
    ) -> ElectronFuture:
        """Have this very definition execute an electron; what the electron sends takes `route`."""
        return self._sender.send(electron, self.version_of(definition), route)

    def send_child(
        self,
        electron: Electron,
        future: ElectronFuture,
        address: tuple[RandomStream, int],
        origin: Origin,
        root: str,
    ) -> ElectronFuture:
        """Have a child executed, by the version of its atom in its sender's catalog, else ours."""
        check_electron(electron)
        version = origin.catalog.get(electron.atom_id)
        if version is None:
            version = self.version_for(electron.atom_id)
        return self._sender.send_child(electron, future, address, origin, root, version)

    def close(self) -> None:
        """End what is under way, and release what is open."""
        with self._opening:
            already, self._closed = self._closed, True
        if already:
            return
        watch.discard(self)
        self._refresh_panel()
        self._pause.set()
        error = ConductorError(Event("the conductor was closed", conductor_id=self.id))
        if self._dispatcher is not None:
            self._dispatcher.post(lambda: self._fail_all(error))
            if not self._dispatcher.close():
                self._give_up(self._dispatcher.obstacle)

    def leave(self) -> None:
        """Leave runs that have a store, fail what else is under way, and close.

        For the interpreter ends, after which nothing can be sent.
        """
        if self._closed:
            return
        message = "the interpreter ended before what was under way"
        error = ConductorError(Event(message, conductor_id=self.id, level="error"))
        left: list[Callable[[], bool]] = []
        self.do(lambda: left.extend(d.leave(error) for d in list(self._drivers)))
        until = monotonic() + LEAVE_SECONDS
        while not all(has_ended() for has_ended in left) and monotonic() < until:
            wait(self._pause, JOIN_SECONDS)
        self.close()

    def disown(self) -> None:
        """Take part no more: this process was forked from the one whose conductor it is."""
        message = (
            f"the conductor is that of process {os.getppid()}, from which this one was forked: "
            "make one here, or do not fork"
        )
        error = ConductorError(Event(message, conductor_id=self.id, level="error"))
        self._opening = threading.Lock()  # a thread of the parent may have held it
        self._closed, self._gone = True, error
        for driver in list(self._drivers):
            driver.disown(error)

    # -- on the dispatcher's thread ---------------------------------------------------------

    def lose(self, error: ConductorError) -> None:
        """Note that the other side is gone: everything under way fails, and sending raises."""
        if self._gone is None and not self._closed:
            self._gone = error
            self.report("", error)
            self.post(lambda: self._fail_all(error))

    def _dispatch(self) -> Dispatcher:
        with self._opening:
            if self._dispatcher is None:
                watch.add(self)
                self._dispatcher = Dispatcher(self.id, self._report_broken)
            return self._dispatcher

    def _report_broken(self, error: BaseException) -> None:
        """Fail everything under way: the action that raised may concern any source."""
        failure = as_error(error)
        logger.error("all that is under way on %s fails: %s", self.id, failure)
        self._fail_all(failure)
        self.report("", failure)

    def _give_up(self, stuck: Event) -> None:
        """Wake the threads that wait, though the dispatcher's thread is stuck."""
        error = ConductorError(stuck)
        logger.error("%s", error)
        for driver in list(self._drivers):
            driver.give_up(error)
        self._sender.give_up(error)

    def _fail_all(self, error: AtomizerError) -> None:
        for driver in list(self._drivers):
            driver.fail(error)
        self._sender.fail(error)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}: {self.threads} threads, {self.state}>"
