"""What runs in a child process of a worker: it executes pieces of batches, one after another."""

from __future__ import annotations

import ctypes
import itertools
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from queue import SimpleQueue
from time import perf_counter

import dask

from atomizer_dask.atoms import pickling
from atomizer_dask.atoms.atom_code import AtomCode
from atomizer_dask.atoms.definition import Definition
from atomizer_dask.atoms.namespaces import forget, loads
from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.conductor import Conductor, check_electron
from atomizer_dask.electron import Electron
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Batch, Origin
from atomizer_dask.execution.lease import Lease
from atomizer_dask.execution.packing import Packed, dumps, pack_outcome
from atomizer_dask.execution.quarantine.last_words import LastWords
from atomizer_dask.execution.quarantine.messages import (
    AtomsForgotten,
    ElectronCancelled,
    ElectronLost,
    ElectronSent,
    ElectronSettled,
    ElectronWaiting,
    EventEmitted,
    Piece,
    PieceCancelled,
    PieceDone,
    PieceRejected,
    ToChild,
    ToParent,
)
from atomizer_dask.execution.quarantine.nested_processes import let_code_travel_on
from atomizer_dask.execution.site import Site
from atomizer_dask.execution.timeout import OvertimeError, TimeIsUp
from atomizer_dask.future import ElectronFuture

INJECT_AFTER = 0.5  # seconds beyond its deadline, in which an electron may heed its context
POLL_SECONDS = 0.05
OFFSET, COUNT, BEGAN = range(3)  # indices of the doubles of the cursor; OFFSET -1: nothing runs


def serve(connection: Connection, cursor: memoryview[float]) -> None:
    """Execute pieces until the parent closes the connection, or dies."""
    let_code_travel_on()
    site = ChildSite(connection, cursor)
    threading.Thread(target=site.listen, name="listen", daemon=True).start()
    while (piece := site.pieces.get()) is not None:
        site.answer(piece)


class ChildSite(Site):
    """The place where pieces are executed: the main thread of a child process."""

    takes_back = False

    def __init__(self, connection: Connection, cursor: memoryview[float]) -> None:
        super().__init__()
        self.pieces: SimpleQueue[Piece | None] = SimpleQueue()
        self._connection = connection
        self._sending = threading.Lock()
        self._watch = ChildWatch(cursor, self._cancel_sent)
        self._last_words = LastWords(cursor)
        self._atoms: dict[str, Definition] = {}
        self._futures: dict[int, ElectronFuture] = {}
        self._spaces: dict[int, str] = {}  # by token: into which the outcome is unpickled
        self._began: dict[int, float] = {}  # by token: when its sender began
        self._tokens = itertools.count()
        self._lease: Lease | None = None

    def listen(self) -> None:
        """Receive the parent's messages, in a thread of its own."""
        try:
            while True:
                message: ToChild = pickle.loads(self._connection.recv_bytes())  # noqa: S301
                match message:
                    case Piece():
                        self.pieces.put(message)
                    case PieceCancelled(offset):
                        self._cancel(offset)
                    case AtomsForgotten(spaces):
                        self._forget(spaces)
                    case ElectronSettled(token, data):
                        self._settle(token, data)
                    case ElectronLost(token, data):
                        self._settle(token, data, is_lost=True)
        except (EOFError, OSError):
            self.pieces.put(None)

    def answer(self, piece: Piece) -> None:
        """Execute a piece, and send its outcome."""
        space, self.name = piece.space, piece.worker
        dask.config.set(piece.folders)
        try:
            if piece.code is not None:
                self._atoms[space] = AtomCode.of(piece.code).load(space=space)
            batch: Batch = replace(Packed.of(piece.batch), space=space).load()
            outcome = self.execute(replace(batch, version=space))
        except Exception as error:  # noqa: BLE001 - the parent raises it
            self.post(PieceRejected(f"{type(error).__name__}: {error}"))
            return
        self.post(PieceDone(pack_outcome(outcome)))

    def _forget(self, versions: list[str]) -> None:
        for version in versions:
            self._atoms.pop(version, None)
            self._singletons.pop(version, None)
            forget(version)

    def lease(self, batch: Batch) -> Lease:  # noqa: D102
        self._watch.watch(batch.terms.timeout)
        self._lease = Lease(batch, self, self._watch)
        if self._lease.recorder is not None:
            self._lease.recorder.mirror = self._last_words.note
        return self._lease

    def find_atom(self, batch: Batch) -> Definition:  # noqa: D102
        return self._atoms[batch.version]

    def give_back(self, batch: Batch, stop: int) -> None:  # noqa: D102
        raise AssertionError("a piece is executed whole")  # `takes_back` is False

    def emit(self, channel: str, event: Event) -> None:  # noqa: D102
        self.post(EventEmitted(dumps(event) or pickle.dumps(event.as_text())))

    def release_slot(self) -> None:  # noqa: D102
        self.post(ElectronWaiting())

    def children(  # noqa: D102
        self, origin: Origin, root: str, stream: RandomStream, lease: Lease
    ) -> IsolatedConductor:
        return IsolatedConductor(self, (origin, root, stream), lease)

    def post(self, message: ToParent) -> None:
        """Send a message to the parent."""
        with self._sending:
            self._connection.send_bytes(pickle.dumps(message))

    def expect(self, future: ElectronFuture, space: str) -> int:
        """Return the token by which the parent shall name the electron of this future."""
        token = next(self._tokens)
        self._spaces[token] = space
        self._futures[token] = future
        self._began[token] = self._watch.began
        return token

    def _cancel_sent(self) -> None:
        """Cancel the unanswered electrons that the running electron, whose time is up, has sent."""
        for token, began in list(self._began.items()):
            if began == self._watch.began and (future := self._futures.get(token)) is not None:
                future.cancel()

    def _settle(self, token: int, data: bytes, *, is_lost: bool = False) -> None:
        """End the future of an electron with its pickled properties, or error where it is lost."""
        future = self._futures.pop(token)
        del self._began[token]
        try:
            value = loads(data, space=self._spaces.pop(token))
        except BaseException as error:  # noqa: BLE001 - unpickling runs anybody's code
            value, is_lost = error, True
        if is_lost:
            future.set_exception(value)
        else:
            ElectronFuture.finish_all([future], [value])

    def _cancel(self, offset: int | None) -> None:
        lease = self._lease
        if lease is None:
            return
        if offset is None:
            lease.cancelled = True
        else:
            lease.cancelled_ones.add(offset)


class IsolatedConductor(Conductor):
    """The conductor of an electron in a child process: the parent sends for it."""

    id = "quarantine"

    def __init__(
        self, site: ChildSite, sender: tuple[Origin, str, RandomStream], lease: Lease
    ) -> None:
        self._site = site
        self._sender = sender
        self._lease = lease
        self._condition = threading.Condition()

    @property
    def shares_queue(self) -> bool:  # type: ignore[override]
        """Whether the electrons that it sends go to a queue from which others receive too."""
        return self._sender[0].route is not None

    def send(self, electron: Electron) -> ElectronFuture:
        """Have a child electron executed."""
        check_electron(electron)
        future = ElectronFuture(self._condition, self._lease.about_to_wait)
        future.set_running_or_notify_cancel()
        data = pickling.dumps(electron)
        token = self._site.expect(future, self._lease.batch.space)
        future.stop_with(lambda: self._site.post(ElectronCancelled(token)))
        self._site.post(ElectronSent(token, data, *self._sender))
        return future

    def close(self) -> None:
        """Do nothing: it belongs to the site."""


class ChildWatch:
    """Keeps the cursor, and raises an exception in an electron that has no time left.

    Parameters
    ----------
    cursor
        Shared memory in which the parent reads which electron runs, and since when.
    on_late
        Called when an electron has run out of time.

    Attributes
    ----------
    began
        When the running electron began: seconds of `perf_counter`.
    """

    def __init__(self, cursor: memoryview[float], on_late: Callable[[], None]) -> None:
        self.began = 0.0
        self._cursor = cursor
        self._on_late = on_late
        self._timeout: float | None = None
        self._lock = threading.Lock()
        self._interrupted = 0.0  # `began` of the electron in which an exception was raised
        self._main = ctypes.c_ulong(threading.main_thread().ident or 0)
        self._thread: threading.Thread | None = None
        self._needed = threading.Event()

    def watch(self, timeout: float | None) -> None:
        """Watch over electrons that have `timeout` seconds each."""
        self._timeout = timeout
        if timeout is None:
            self._needed.clear()
            return
        self._needed.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._interrupt_late, daemon=True)
            self._thread.start()

    def left(self) -> float | None:
        """Return the seconds that the running electron has left; None for no limit."""
        if self._timeout is None:
            return None
        return self._timeout - (perf_counter() - self.began)

    def begin(self, offset: int, count: int) -> None:
        """Note that `count` electrons begin."""
        cursor = self._cursor
        # The offset last: the parent must not read a new offset with an old time.
        cursor[BEGAN] = self.began = perf_counter()
        cursor[COUNT] = count
        cursor[OFFSET] = offset

    def end(self) -> None:
        """Note that they have ended; raises `OvertimeError` where they were late."""
        late = self._timeout is not None and perf_counter() - self.began >= self._timeout
        self._cursor[OFFSET] = -1.0
        if late:
            raise self.overtime()

    def overtime(self) -> OvertimeError:
        """Return the error of an electron that was late, safe from further interruption."""
        with self._lock:
            self._cursor[OFFSET] = -1.0
            interrupted = self._interrupted == self.began
            if interrupted:  # one that was not delivered yet would hit the next electron
                ctypes.pythonapi.PyThreadState_SetAsyncExc(self._main, None)
        self._on_late()
        how = "an exception was raised in it" if interrupted else "it heeded its context"
        message = f"not done within {self._timeout:g} s; {how}"
        return OvertimeError(message, "exception" if interrupted else "context")

    def _interrupt_late(self) -> None:
        while self._needed.wait():
            threading.Event().wait(POLL_SECONDS)
            with self._lock:
                began, timeout = self._cursor[BEGAN], self._timeout
                late = timeout is not None and perf_counter() - began > timeout + INJECT_AFTER
                if late and self._cursor[OFFSET] >= 0 and self._interrupted != began:
                    self._interrupted = began
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        self._main, ctypes.py_object(TimeIsUp)
                    )
