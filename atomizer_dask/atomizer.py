"""The runtime: atoms, conductors, and the streams of what happens."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from atomizer_dask.atoms.definition import Definition, bind_fixed
from atomizer_dask.conductor import Conductor, Route, check_electron, refuse_annotations
from atomizer_dask.conductors.batch_conductor import BatchConductor
from atomizer_dask.conductors.receiver import answered
from atomizer_dask.conductors.roster import Roster
from atomizer_dask.config import check
from atomizer_dask.console.recorder import PRINTED
from atomizer_dask.display.completion import offers
from atomizer_dask.display.live import ExplorerWidget, LiveDisplay, widgets
from atomizer_dask.electron import Electron
from atomizer_dask.errors import AtomizerError, ConductorError, StoreError, text_of
from atomizer_dask.events import Event, EventLog, Stream
from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.options import MapOptions
from atomizer_dask.future import ElectronFuture
from atomizer_dask.policy import OnFailure, priority_of
from atomizer_dask.properties import Properties
from atomizer_dask.registry import AtomLookup, Registry, registered
from atomizer_dask.runs.run import Run
from atomizer_dask.runs.start import Storing, go_on, start
from atomizer_dask.store.layout import GOING
from atomizer_dask.streams import Streams

if TYPE_CHECKING:
    AtomizerState: TypeAlias = Literal["open", "closed"]
else:
    AtomizerState = str  # see `State` in store/layout.py

_CLOSE_SECONDS = 2.0  # for running electrons to heed that they are cancelled


@offers(
    "atoms attach close conductors errors events exec explore map recent register runs send "
    "state wait watch"
)
class Atomizer(LiveDisplay):
    """The runtime: a registry of atoms and conductors, and the streams of what happens.

    Parameters
    ----------
    *values
        Atoms (functions, `Atom` subclasses, instances of them) and conductors.

    Raises
    ------
    RegistrationError
        Where a value is neither.
    ConfigurationError
        Where something is configured that makes no sense.

    Examples
    --------
    >>> from atomizer_dask import MemoryConductor, atom, grid
    >>> @atom
    ... def add(x, y):
    ...     return x + y
    >>> with Atomizer(MemoryConductor(), add) as atomizer:
    ...     atomizer.map(add, grid(x=[1, 2], y=[10, 20])).wait().to_frame()
       x   y  result
    0  1  10      11
    1  1  20      21
    2  2  10      12
    3  2  20      22
    """

    def __init__(self, *values: Any) -> None:
        check()
        self._streams = Streams()
        self._registry = Registry()
        self._lookup = AtomLookup(self._registry)
        self._executing = False
        self._closed = False
        self._lock = threading.RLock()
        self._runs: weakref.WeakValueDictionary[str, Run] = weakref.WeakValueDictionary()
        self._under_way: set[Future[Properties]] = set()
        self._roster = Roster(self, self._under_way)
        self.register(*values)

    # -- registering ----------------------------------------------------------------------------

    def register(self, *values: Any) -> None:
        """Add atoms and conductors, before or after `exec`; one of the same id overrides.

        Electrons already sent keep the version of the atom that they were sent with.

        Raises
        ------
        RegistrationError
            Where a value is neither an atom nor a conductor.
        UnpicklableError
            Where an atom cannot travel to the workers of a conductor.
        """
        with self._lock:
            for value in values:
                kept = self._registry.register(value)
                if isinstance(kept, Definition):
                    if self._executing:
                        self._roster.publish(kept)
                else:
                    self._roster.add(kept)
                    if self._executing:
                        self._roster.attach(kept)
                if self._executing:
                    self._roster.start_receiving()

    def exec(self) -> Self:
        """Begin to work, and to receive from conductors that receive; once is enough.

        Implied by ``with``, `send` and `map`.

        Raises
        ------
        UnpicklableError
            Where an atom cannot travel to the workers of a conductor.
        """
        with self._lock:
            if self._closed:
                raise ConductorError("this atomizer is closed; make a new one")
            if self._executing:
                return self
            self._roster.add_shared(registered.conductors.values())
            # Every conductor knows the atoms before any of them receives an electron.
            for conductor in list(self._roster.conductors.values()):
                self._roster.attach(conductor)
            self._roster.start_receiving()
            self._executing = True
        return self

    # -- sending --------------------------------------------------------------------------------

    def send(
        self,
        atom: Any,
        payload: Any = None,
        *,
        fixed: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> ElectronFuture:
        """Have one electron executed.

        Parameters
        ----------
        atom
            An atom, its id, or an `Electron`.
        payload
            A mapping of the atom's parameters to values; for an atom in class form anything.
        fixed
            Values of further parameters, as in `map`: a large one travels once, however many
            electrons are sent with the very same objects.
        **options
            Further parameters of `Electron`. The random stream of the electron follows from its
            `id`: give one where the same bits shall come again.

        Returns
        -------
        ElectronFuture
            Of its `Properties`; it can be awaited. A failed electron has Properties like any
            other, also one for an atom that nobody knows.

        Raises
        ------
        InvalidPayloadError
            Where the payload does not fit the atom.
        ConductorError
            Where no conductor is left to carry it.
        """
        self.exec()
        if isinstance(atom, Electron):
            if payload is not None or options or fixed:
                raise TypeError("an Electron carries its payload and options itself")
            electron, definition = atom, self.find(atom.atom_id)
        else:
            atom_id, definition = self._lookup.resolve_for_send(atom, fixed)
            electron = Electron(atom_id, payload, **options)
        check_electron(electron)
        if definition is not None:
            definition.check_payload(electron.payload)
            definition.check_copy_state(electron.copy_state)
        future = self._roster.send(electron, definition)
        future.report_to(self._streams.report_problem)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    def map(
        self,
        atom: Any,
        sweep: Any,
        *,
        fixed: Mapping[str, Any] | None = None,
        seed: int | None = None,
        timeout: float | str | None = None,
        on_failure: OnFailure | None = None,
        max_attempts: int | None = None,
        backoff: float | str | None = None,
        store: Any = None,
        allow_pickle: bool = False,
        detached: bool = False,
        takeover: bool = False,
        accept_changes: bool = False,
        name: str | None = None,
        copy_state: bool = False,
        priority: int = 0,
        output: str = "keep",
    ) -> Run:
        """Have one electron executed for each row of a sweep.

        Where `timeout`, `on_failure`, `max_attempts` or `backoff` is not given, the configuration
        applies (``atomizer.map`` in Dask's), and without one the default that is named here.

        Parameters
        ----------
        atom
            An atom or its id.
        sweep
            `grid`, `zipped`, a DataFrame, a mapping of equal-length columns, a list of mappings,
            or any iterator of mappings. An electron gets what a ``for`` loop over the values, as
            they are given here, would give: NumPy's scalars of an array, else Python's. What can be
            changed, a list or an array say, is a copy for it alone; what cannot be copied, an open
            file say, is given as it is.
        fixed
            Values of parameters that are the same for all electrons, by name: constants. A large
            one, as an array or a model, travels once to each host, however many electrons, batches
            and runs use it. An array is read-only in the atom; other objects are shared by the
            electrons of a process, and not to be changed. ``functools.partial(f, table=T)`` as the
            atom means the same. They count as part of the atom's code: a store is of one set of
            them.
        seed
            An integer from 0 to 2**128 - 1 that fixes all random streams; random where not given,
            and then found in `Run.seed`.
        timeout
            Of each attempt of each electron: seconds, or a text such as ``"30s"``; infinity, the
            default, for none. When it is up, ``context.cancelled`` is true; half a second later an
            exception is raised in the atom; a second later the process it runs in is killed. For
            that, electrons with a timeout run in a child process of the worker.
        on_failure
            ``"fail"``, the default: record the failure. ``"retry"``: again on the same worker,
            where ``context.attempt`` and ``context.failures`` have its earlier failures.
            ``"requeue"``: again, on another worker where there is one. Or a function of the
            failure, an `ElectronError`, that returns one of these; it is called here.
        max_attempts
            How often an electron is tried at most; 3 where `on_failure` may try again.
        backoff
            Seconds, or a text, before the second attempt; doubled before each further one, and up
            to half as much again by chance. Waiting electrons hold no worker.
        store
            A folder, a path or a URL that fsspec understands, in which the run survives: `attach`
            goes on with it after this process, the scheduler or the machine has died. Where it
            has an earlier run of the same atom and seed, rows with the same inputs keep the
            electron that they had and are not computed again: only new rows are sent.
        allow_pickle
            Let the store keep inputs and results that have no Arrow type, as pickles; else these
            are refused: an electron that returns such a value fails and keeps its other outputs,
            and a run of which no result can be stored stops. Reading them takes the same option:
            reading a pickle runs its code.
        detached
            Have the cluster go on without this process from the start: see `Run.detach`.
        takeover
            Take the store from another process that has its lock, whose run ends with an error.
        accept_changes
            Go on in the store although the atom's code, or Python or a package, has changed.
        name
            Begins the id of the run; the atom's name unless given.
        copy_state
            For an atom in class form: process with copies of the registered instance.
        priority
            A whole number from -1000 to 1000. Runs of a higher priority, and what their electrons
            send, go first wherever they share threads with other runs or with other clients of the
            scheduler; runs of the same priority share equally.
        output
            What becomes of what the atom prints, logs and warns of. ``"keep"``: `Run.output` has
            it, and the store. ``"stream"``: it is shown here too, as it comes, each line with the
            label of its electron. ``"drop"``: nothing is kept.

        Returns
        -------
        Run
            At once; the electrons are under way.

        Raises
        ------
        TypeError, ValueError
            Where an option makes no sense.
        InvalidSweepError, InvalidPayloadError
            Where the sweep is none, is empty, or does not fit the atom.
        UnpicklableError
            Where the atom cannot travel, or an input, which is named by column and row.
        RegistrationError
            Where there is no atom of that id, or it draws from a generator made outside of it.
        ConductorError
            Where no conductor is left that could carry it.
        StoreError
            Where the store is held by another process, is of another run, or cannot be written;
            `StoreChangedError` where the atom has changed since.
        """
        options = MapOptions.of(
            timeout=timeout,
            on_failure=on_failure,
            max_attempts=max_attempts,
            backoff=backoff,
            copy_state=copy_state,
            allow_pickle=allow_pickle,
            priority=priority,
            output=output,
        )
        if detached and store is None:
            raise StoreError("a detached run needs a store, or nobody could find it: give store=")
        storing = Storing(store, takeover, accept_changes, detached)
        conductor = self._sweeper()
        definition = bind_fixed(self._lookup.definition_of(atom, conductor.fetch), fixed)
        return start(self, conductor, definition, sweep, seed, options, storing, name)

    def explore(
        self, atom: Any, /, *, fixed: Mapping[str, Any] | None = None, **ranges: Any
    ) -> ExplorerWidget:
        """Return controls for an atom's parameters, with what it returns shown beside them.

        Whenever a control changes, one electron is sent, and those that nobody waits for any more
        are cancelled: an atom that takes long should heed ``context.cancelled``, or it goes on.
        The result shown before stays until there is a new one.

        Parameters
        ----------
        atom
            An atom or its id.
        fixed
            Values of parameters that get no control, as in `map`.
        **ranges
            For each parameter what `ipywidgets.interact` understands: ``(min, max)``,
            ``(min, max, step)``, a number, a boolean, a text, a list or a dict of choices, a list
            of ``(label, value)``, a widget, or ``ipywidgets.fixed(value)``. Parameters without a
            range get a control where their default is a number, a boolean or a text.

        Returns
        -------
        Explorer
            A widget, which also has ``result``, a ``frame`` of all electrons tried, and a button
            that maps the atom over the ranges given. Each electron has a random stream of its
            own: where the same inputs shall give the same bits, make the seed a parameter.

        Raises
        ------
        InvalidPayloadError
            Where a parameter has neither range nor default, or there is none of that name.
        InvalidSweepError
            Where no control can be made of a range.
        RegistrationError
            Where there is no atom of that id.
        ConductorError
            Where no conductor is left.

        Examples
        --------
        >>> from atomizer_dask import MemoryConductor, atom
        >>> @atom
        ... def area(width, height=2):
        ...     return width * height
        >>> with Atomizer(MemoryConductor(), area) as atomizer:
        ...     explorer = atomizer.explore(area, width=(1, 5)).wait()
        ...     explorer.controls["width"].value = 4
        ...     explorer.wait().frame[["width", "height", "result"]]
           width  height  result
        0      3       2       6
        1      4       2       8
        """
        definition = self._lookup.definition_of(atom, self._sweeper().fetch)
        if "fixed" in definition.defaults or not isinstance(fixed, Mapping | None):  # a parameter
            ranges, fixed = {"fixed": fixed, **ranges}, None
        definition = bind_fixed(definition, fixed)
        return widgets().Explorer(self, definition, ranges)

    def attach(
        self,
        store: Any,
        *,
        takeover: bool = False,
        accept_changes: bool = False,
        drop_corrupted: bool = False,
        allow_pickle: bool = False,
        on_failure: OnFailure | None = None,
        priority: int | None = None,
    ) -> Run:
        """Go on with a run that is kept in a store: what is done is kept, the rest is executed.

        Electrons in flight on the scheduler, sent by a process that died, are waited for rather
        than sent again.

        Parameters
        ----------
        store
            Where it is: a path, or a URL that fsspec understands.
        takeover
            Take it from another process that has its lock, whose run ends with an error.
        accept_changes
            Go on although the atom's code, or Python or a package, has changed. Where all is done,
            a change of Python or of a package need not be accepted.
        drop_corrupted
            Put damaged files aside, and execute their electrons again.
        allow_pickle
            Read pickles in the store: those that `map` was allowed to write, and the atom itself
            where none of its id is registered here. Reading a pickle runs its code.
        on_failure
            As in `map`; by default what was given there, except a function, which no store keeps.
        priority
            As in `map`; by default what was given there.

        Returns
        -------
        Run
            At once, with its whole history; the remaining electrons are under way.

        Raises
        ------
        StoreHeldError
            Where another process holds it; the message says which, and since when.
        StoreChangedError
            Where the atom has changed; the message shows how.
        StoreCorruptedError
            Where a file of it is damaged.
        StoreError
            Where there is no store, or it cannot be written.
        RegistrationError
            Where its atom is not registered here. One of a script or a notebook, which nobody can
            import, is read from a store that this very user wrote.
        """
        urgent = None if priority is None else priority_of(priority)
        conductor = self._sweeper()
        return go_on(
            self,
            conductor,
            store,
            lambda atom_id: self.find(atom_id) or conductor.fetch(atom_id),
            takeover=takeover,
            accept_changes=accept_changes,
            drop_corrupted=drop_corrupted,
            allow_pickle=allow_pickle,
            on_failure=on_failure,
            priority=urgent,
        )

    def _sweeper(self) -> BatchConductor:
        """Return the conductor that a sweep goes through, at work."""
        refuse_annotations()
        self.exec()
        return self._roster.for_sweep()

    # -- receiving ------------------------------------------------------------------------------

    def execute(self, electron: Electron, route: Route | None = None) -> ElectronFuture:
        """Have a received electron executed here, or by a conductor that carries batches.

        By an atom that is registered here, and not by one of another client of the scheduler.
        """
        check_electron(electron)
        definition = self.find(electron.atom_id)
        if definition is None:
            message = text_of(self._lookup.unknown(electron.atom_id))
            failure = Failure("unknown_atom", "RegistrationError", message)
            return answered(failure.properties(electron))
        definition.check_copy_state(electron.copy_state)
        return self._roster.execute(electron, definition, route)

    def lose(self, conductor: Conductor, error: ConductorError) -> None:
        """Note that a conductor has failed; the others go on."""
        self._roster.lose(conductor, error)
        self.report(error)

    # -- events of conductors -------------------------------------------------------------------

    def find(self, atom_id: str) -> Definition | None:
        """Return the atom that is registered under this id now; None where there is none."""
        return self._lookup.find(atom_id)

    @property
    def threads(self) -> int:
        """How many electrons its conductors execute at a time, as last seen."""
        return self._roster.threads

    def note_waiting(self, electron_id: str) -> None:
        """Note that a received electron waits for others that it sent; its conductor may act."""
        self._roster.note_waiting(electron_id)

    def emit(self, event: Event) -> None:
        """Note an event: on the atomizer's streams, and on those of its run."""
        run = self._runs.get(event.run_id)
        if PRINTED in event.fields:  # no event: it is shown as it comes
            if run is not None:
                run.show_printed(event.fields[PRINTED])
            return
        if run is not None:
            run.note(event)
        elif event.conductor_id and not event.run_id:  # a worker is lost: it concerns all of them
            for other in self.runs:
                if other.state in GOING:
                    other.overhear(event)
        self._streams.put(event)

    def report(self, error: AtomizerError) -> None:
        """Note an error: on the error streams, and in the log where nobody listens."""
        self._streams.report(error)

    # -- events of runs -------------------------------------------------------------------------

    def add_run(self, run: Run) -> None:
        """Keep a run that is about to start, as long as somebody has a handle of it."""
        self._runs[run.id] = run

    def put_event(self, event: Event) -> None:
        """Put an event of a run on the streams."""
        self._streams.put(event)

    def report_failure(self, error: Callable[[], AtomizerError]) -> None:
        """Report an electron that failed for good, where somebody listens."""
        if self._streams.has_error_streams:
            self.report(error())

    def report_problem(self, message: str, error: BaseException) -> None:
        """Report what went wrong in a function of the user that is not an atom."""
        self._streams.report_problem(message, error)

    # -- looking ---------------------------------------------------------------------------------

    @property
    def recent(self) -> EventLog:
        """The newest events; reading removes none."""
        return self._streams.recent

    @property
    def state(self) -> AtomizerState:
        """Whether anything can be sent."""
        return "closed" if self._closed else "open"

    @property
    def runs(self) -> list[Run]:
        """Its runs that somebody still has a handle of, the oldest first."""
        return list(self._runs.values())

    @property
    def atoms(self) -> dict[str, Definition]:
        """The atoms that it knows, by id: its own, and those registered for all."""
        return {**registered.atoms, **self._registry.atoms}

    @property
    def conductors(self) -> dict[str, Conductor]:
        """Its conductors, by id."""
        return dict(self._roster.conductors)

    def events(self, buffer: int | None = None) -> Stream[Event]:
        """Return a stream of the events from now on; iterate over it.

        Parameters
        ----------
        buffer
            How many unread ones are kept, 1,000 unless configured. A further one drops the
            oldest, which `Stream.dropped` counts.
        """
        return self._streams.events(buffer)

    def errors(self, buffer: int | None = None) -> Stream[AtomizerError]:
        """Return a stream of the errors from now on; iterate over it.

        Parameters
        ----------
        buffer
            How many unread ones are kept, 1,000 unless configured. A further one drops the
            oldest, which `Stream.dropped` counts.
        """
        return self._streams.errors(buffer)

    # -- ending ---------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> Self:
        """Wait until everything sent so far has ended, children of free spawners included.

        Parameters
        ----------
        timeout
            Seconds; None waits as long as it takes.

        Raises
        ------
        TimeoutError
            When time is up.
        ConductorError
            Where the conductor of something under way is gone, or no conductor is left.
        """
        until = None if timeout is None else monotonic() + timeout
        for run in list(self._runs.values()):
            if not run.join(_left(until)):
                raise TimeoutError(f"{run.id} has not ended within {timeout} s; it goes on")
        pending = wait(list(self._under_way), _left(until)).not_done
        if pending:
            raise TimeoutError(f"{len(pending):,} electrons have not ended within {timeout} s")
        if not self._roster.join(lambda: _left(until)):
            raise TimeoutError(f"children of free spawners have not ended within {timeout} s")
        if self._executing and not self._closed:
            self._roster.check_any()
        return self

    def close(self) -> None:
        """End what is under way and close the conductors that were given to it.

        A run that has a store is suspended, and `attach` goes on with it; a run without one is
        cancelled. The conductors are closed also for other atomizers that were given them.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        running = [run for run in self.runs if run.state in GOING]
        for run in running:
            run.leave()
        until = monotonic() + _CLOSE_SECONDS
        for run in running:
            run.join(_left(until))
        try:
            self._roster.close()
        finally:
            self._streams.close()
            self._lookup.forget()
            self._refresh_panel()

    def __enter__(self) -> Self:
        return self.exec()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for everything, as executors do, unless an exception is on its way; then close."""
        try:
            if error is None:
                self.wait()
        finally:
            self.close()

    def __repr__(self) -> str:
        conductors = ", ".join(self._roster.conductors) or "none"
        state = ", closed" if self._closed else ""
        return f"<Atomizer: {len(self._registry.atoms)} atoms, conductors: {conductors}{state}>"


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - monotonic())
