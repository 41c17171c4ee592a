"""The handle of one map: many electrons of one atom over one sweep."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral
from time import monotonic, sleep
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from atomizer_dask.atoms.definition import fixed_of
from atomizer_dask.conductor import refuse_annotations
from atomizer_dask.conductors.batch_conductor import BatchConductor
from atomizer_dask.config import setting
from atomizer_dask.display.completion import offers
from atomizer_dask.display.live import LiveDisplay
from atomizer_dask.errors import AtomizerError, ElectronError, StoreError
from atomizer_dask.events import Event, EventLog, Stream
from atomizer_dask.execution.batch import Batch, Positions
from atomizer_dask.execution.failure import Failure, within_atom
from atomizer_dask.policy import seconds_of
from atomizer_dask.runs.driving import Drive, Driven, Opened, RunControl
from atomizer_dask.runs.ledger import Ledger
from atomizer_dask.runs.plan import Host, Listeners, Plan
from atomizer_dask.runs.plots.methods import Pictures
from atomizer_dask.runs.progress import Progress, progress_of
from atomizer_dask.runs.recovery import (
    RENAME_SECONDS,
    events_before,
    failed,
    failures_in_words,
    interruption_of,
    ledger_of,
)
from atomizer_dask.runs.sources.make import source_of
from atomizer_dask.runs.verification import compare, draw
from atomizer_dask.runs.waiting import heard, interrupt, wait_showing, why_not_ended
from atomizer_dask.store.inputs.row_map import RowMap
from atomizer_dask.store.layout import State
from atomizer_dask.store.store import Store
from atomizer_dask.store.stored_run import described, read_run
from atomizer_dask.store.writer import ResultWriter

if TYPE_CHECKING:
    import pandas as pd


logger = logging.getLogger(__name__)


@offers(
    "atom_id cancel conductor detach durations electron_id error errors events failures fixed "
    "id interruption look_again open pause plot progress provenance recent replay resume "
    "retry seconds seed state store suspend sweep timeline to_dask to_frame to_xarray verify "
    "wait watch"
)
class Run(LiveDisplay, Pictures):
    """The handle of one map: many electrons of one atom over one sweep.

    Made by `Atomizer.map`. A run can be waited for, awaited, and iterated; the results so far can
    be read at any time. Failed electrons are rows with missing outputs and rows of `errors`; they
    make nothing raise.

    Attributes
    ----------
    id
        Id of the run in events and in the ids of its electrons, which are ``{run.id}-{position}``.
    atom_id
        Id of its atom.
    seed
        Seed of its random streams: with the same one, results are the same to the last bit.
    events
        A `Stream` of the events that its electrons emit and of those about the run.
    recent
        The newest of these events and of its failures; reading takes none away.
    interruption
        Of a run that was opened: which process died while it worked on the run, and how to go on;
        else empty.
    """

    def __init__(
        self,
        run_id: str,
        atom_id: str,
        seed: int,
        view: RowMap,
        ledger: Ledger,
        *,
        store: Store | None = None,
        allow_pickle: bool = False,
        control: RunControl | None = None,
    ) -> None:
        super().__init__(run_id, view, ledger, store, allow_pickle=allow_pickle)
        self.atom_id = atom_id
        self.seed = seed
        self.events: Stream[Event] = Stream(setting("events.run-buffer"))
        self.recent = EventLog()
        self.interruption = ""
        self._control = control or Opened(run_id, "" if store is None else store.folder.url)
        self._last_failure: Failure | None = None

    @property
    def fixed(self) -> Mapping[str, Any]:
        """The values of parameters that are the same for all electrons, by name.

        Of a run that was opened from its store, a text in place of what is no number or short text.
        """
        if self._control.is_driven:
            return MappingProxyType(dict(fixed_of(self._driven.plan.definition)))
        return super().fixed

    @classmethod
    def begin(
        cls,
        plan: Plan,
        conductor: BatchConductor,
        host: Host,
        view: RowMap,
        ledger: Ledger,
        journal: ResultWriter | None = None,
        in_flight: Sequence[Batch] = (),
        drive: Drive | None = None,
    ) -> Run:
        """Return a run that this process drives; `start` sends its electrons."""
        run = cls(
            plan.run_id,
            plan.definition.id,
            plan.seed,
            view,
            ledger,
            store=None if journal is None else journal.store,
            allow_pickle=journal is not None and journal.allow_pickle,
        )
        listeners = Listeners(
            on_event=run._on_event,
            on_failure=run._on_failure,
            on_problem=host.report_problem,
            on_end=run._close,
            on_reopen=run._reopen,
        )
        source = source_of(plan, conductor, ledger, listeners, journal, in_flight)
        run._control = Driven(plan, conductor, host, ledger, source, drive)
        run._reopen()
        if journal is not None:
            run._recall(journal.store.manifest["sessions"][:-1])  # the last one is our own
        return run

    @classmethod
    def open(cls, store: Any, *, allow_pickle: bool = False) -> Run:
        """Return a run from its store, read-only: no cluster and no atom is needed.

        Another process may be driving it; to go on with it use `Atomizer.attach`.

        Parameters
        ----------
        store
            A path, or a URL that fsspec understands.
        allow_pickle
            Whether columns of pickles may be read: that runs code of the process that wrote them.

        Raises
        ------
        StoreError
            Where there is no store.
        StoreCorruptedError
            Where a file of it is damaged.

        Examples
        --------
        ``Run.open("runs/ising").to_frame(columns=["temperature", "energy"])``
        """
        stored = read_run(store, allow_pickle=allow_pickle)
        run = cls(
            stored.run_id,
            stored.atom_id,
            stored.seed,
            stored.view,
            ledger_of(stored, allow_pickle),
            store=stored.store,
            allow_pickle=allow_pickle,
        )
        run.interruption = interruption_of(stored)
        run._recall(stored.store.manifest["sessions"])
        return run

    def _recall(self, sessions: Sequence[Mapping[str, Any]]) -> None:
        """Add to `recent` the events from before this process drove or opened the run."""
        for event in events_before(self.id, self.atom_id, sessions, self._ledger):
            self.recent.note(event)

    def start(self, electrons: Positions) -> None:
        """Begin to send these electrons, but for those of batches that are in flight already."""
        self._driven.source.start(electrons)

    @property
    def _driven(self) -> Driven:
        """The control of a run that this process drives; raises `StoreError` for any other."""
        return self._control.driven()

    @property
    def state(self) -> State:
        """``running``, ``paused``, ``finished``, ``cancelled``, ``failed``, or two more of a store.

        A run has failed where its conductor is gone, or where `error` has made it impossible to go
        on. With a store it may also be ``detached``, when a worker drives it in place of this
        process, or ``suspended``, when no process drives it and `Atomizer.attach` goes on. `open`
        also shows ``suspended`` where the process that drove the run has died.
        """
        return self._ledger.state

    @property
    def error(self) -> AtomizerError | None:
        """The error for which the run failed, which `wait` raises; None where there is none."""
        return self._ledger.error

    @property
    def seconds(self) -> float:
        """Seconds that the run has been under way, in earlier processes too."""
        return self._ledger.seconds

    @property
    def retried(self) -> int:
        """How many electrons have been tried more than once."""
        return len(self._ledger.history)

    @property
    def cancelled_count(self) -> int:
        """How many of the failed electrons were cancelled: before they ran, or in the middle."""
        return self._ledger.cancelled

    @property
    def is_driven(self) -> bool:
        """Whether this process drives the run, and can pause, cancel and retry it."""
        return self._control.is_driven

    @property
    def conductor(self) -> BatchConductor | None:
        """The conductor that carries its electrons; None where the run was opened from a store."""
        return self._control.conductor

    def look_again(self) -> None:
        """Read the store again, of a run that was opened; of one driven here do nothing."""
        if not self._control.is_driven:
            stored = replace(read_run(self.store, allow_pickle=self._allow_pickle), view=self._view)
            self._ledger = ledger_of(stored, self._allow_pickle)
            self.interruption = interruption_of(stored)

    @property
    def progress(self) -> Progress:
        """A snapshot of how far it is."""
        return progress_of(self._ledger, self._control, self._view.count, self.sweep.length)

    def wait(
        self,
        timeout: float | None = None,
        *,
        progress: bool | Callable[[Progress], object] | None = None,
    ) -> Run:
        """Wait until every electron has ended, and return the run.

        Ctrl-C, or interrupting the kernel, pauses the run and says how to go on; a second time it
        cancels the run. In a notebook the cell ends at once; a script goes on to wait.

        Parameters
        ----------
        timeout
            Seconds; None waits as long as it takes.
        progress
            Show a progress bar on stderr; where not given, if that is a terminal. Or a function
            that is called with a `Progress` a few times a second.

        Raises
        ------
        TimeoutError
            When time is up; the run goes on.
        ConductorError
            Where the conductor is gone. What had finished can still be looked at.
        AtomizerError
            Where anything else made it impossible to go on, which is its ``internal``: an exception
            of an object of yours where none is expected, say. Also `StoreError`.
        KeyboardInterrupt
            When interrupted, once the run is paused or cancelled.
        """
        until = None if timeout is None else monotonic() + timeout
        show = sys.stderr.isatty() if progress is None else progress
        while True:
            try:
                with heard():
                    ended = wait_showing(self, until, show, self._control)
                break
            except KeyboardInterrupt:
                with heard():
                    interrupt(self)
        self._update_saved_output()
        if not ended:
            raise TimeoutError(why_not_ended(self, timeout))
        if self._ledger.error is not None:
            raise self._ledger.error
        if self.state == "running":
            self._control.driven()  # which says what to do instead, where it is driven elsewhere
        if self.state in ("detached", "suspended"):
            what = "goes on without this process" if self.state == "detached" else "is suspended"
            raise StoreError(f"{self.id} {what}: atomizer.attach({self.store!r}) goes on with it")
        return self

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the run has ended, in whichever state, and return whether it has."""
        return self._ledger.join(timeout)

    def cancel(self) -> None:
        """End the run: electrons that have not begun never run, results so far are kept.

        Running electrons see it in ``context.cancelled``. The electrons that never ran are
        rows like any other, with an error of kind ``cancelled``.
        """
        driven = self._driven
        driven.do(driven.source.cancel)

    def pause(self) -> None:
        """Send no more electrons, and take back those that no worker has begun; `resume` goes on.

        Running electrons are not disturbed: they end, and are rows like any other.
        """
        driven = self._driven
        driven.do(driven.source.pause)

    def resume(self) -> None:
        """Go on after `pause`."""
        driven = self._driven
        driven.do(driven.source.resume)

    def retry(
        self,
        where: Callable[[ElectronError], bool] | None = None,
        *,
        timeout: float | str | None = None,
        allow_pickle: bool = False,
    ) -> Run:
        """Execute failed electrons again, within this run, and return it.

        With the same inputs and random streams as before, by the atom as it is now: a correction
        in an edited cell, a reloaded module or a helper counts. The new outcomes replace the
        failures; earlier failures stay in the column ``history`` of `errors` and in
        ``Properties.failures``. An iteration that has yielded these electrons yields them again.

        Parameters
        ----------
        where
            A function of the failure (see `ElectronError`) that returns whether to try again; where
            not given, all failed electrons are tried again.
        timeout
            Timeout of these attempts; the run's own where not given.
        allow_pickle
            From now on let the store keep results that have no Arrow type, as pickles; see `map`.
            Electrons that failed only for this reason are not executed again where this process
            still has their results, which are stored.

        Raises
        ------
        ConductorError
            Where the conductor is gone or closed.
        StoreError
            Where pickles are allowed, and the run has no store.
        AtomizerError
            Where the run has failed, is suspended or detached.
        Exception
            Whatever `where` raises; nothing is tried again then.

        Examples
        --------
        ``run.retry(where=lambda e: e.kind == "timeout", timeout="60s").wait()``
        """
        refuse_annotations()
        driven = self._driven
        driven.conductor.check_open()
        seconds = seconds_of(timeout, "timeout")
        if allow_pickle:
            driven.conductor.do(driven.stored("keeps pickles without a store").allow_pickle)
            self._allow_pickle = True
        driven.retry(where, seconds)
        return self

    def verify(
        self, n: int = 100, *, tolerance: float = 1e-9, seed: int | None = None
    ) -> pd.DataFrame:
        """Execute a random sample of electrons again, and compare the results.

        With the same inputs and random streams, on other workers than before where there are
        others. Nothing of the run changes; waits for the sample.

        Parameters
        ----------
        n
            Size of the sample, of electrons that ended well; all of these where there are fewer.
        tolerance
            Relative difference up to which numbers are close.
        seed
            Seed with which the sample is drawn.

        Returns
        -------
        pandas.DataFrame
            A row per output: ``compared``; ``equal``, to the last bit; ``close``; ``different``,
            or failed this time; ``largest``, the largest relative difference; and ``first``, the
            index label of the first electron that is not equal, for `replay`.

        Raises
        ------
        ValueError
            Where `n` makes no sense, or no electron has ended well.
        ConductorError
            Where the conductor is gone or closed.
        """
        driven = self._driven
        driven.conductor.check_open()
        if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
            raise ValueError(f"n must be a number of electrons, at least 1, got {n!r}")
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be a number of at least 0, got {tolerance!r}")
        if not self._ledger.done:
            raise ValueError(f"no electron of {self.id} has ended well: there is none to verify")
        sample = draw(self._ledger.snapshot(), int(n), seed)
        ledger = driven.execute_again(sample)
        before = self.frame_of(self._view.as_rows(sample.parts))
        names = [name for name in before.columns if name not in self.sweep.names]
        after = self.frame_of(self.rows_of(ledger.snapshot()))
        return compare(before, after, names, tolerance)

    @property
    def provenance(self) -> dict[str, Any]:
        """The origin of the results, so that a reader can judge whether to trust them.

        Run, atom, fingerprints of its code, seed, sweep, options, the sessions of the processes
        that worked on it (time, host, Python, packages, git commit, workers), and electrons and
        seconds by worker. It can be written as JSON. A run without a store has one session: this
        process.
        """
        facts = self._driven.provenance() if self._store is None else described(self._store)
        return {**facts, "workers": self.work()}

    def suspend(self) -> Run:
        """Stop here, so that any process can go on with `Atomizer.attach`; return the run.

        Results so far are written, and electrons that no worker has begun are taken back. Those
        still running after a second are left to the workers: on a cluster that stays, their results
        are not lost.

        Raises
        ------
        StoreError
            Where the run has no store, or it cannot be written.
        """
        self._driven.suspend()
        return self

    def leave(self) -> None:
        """Suspend the run where it has a store, else cancel it; return without waiting."""
        self._driven.leave()

    def detach(self) -> Run:
        """Have the cluster go on without this process, and return the run.

        From now on a task on one of the workers drives the run; the kernel may close.
        `Atomizer.attach` collects the results, at any time. This handle follows the run no
        further: its `state` stays ``detached``.

        Raises
        ------
        StoreError
            Where the run has no store.
        ConductorError
            Where the conductor cannot go on alone, or no worker sees the store.
        """
        self._driven.detach()
        return self

    def check_held(self) -> None:
        """End the run where another process has taken its store over.

        The run itself checks the lock with every outcome that arrives, so that this is only of use
        where no worker reports for long.
        """
        self._driven.check_held()

    def replay(self, electron: Any) -> Any:
        """Execute one electron here, in this thread, so that a debugger works; return its result.

        With the same inputs, random stream, attempt and earlier failures as when it ran last;
        without its timeout. Nothing of the run changes.

        Parameters
        ----------
        electron
            Its label in the index of the frame and of `errors`, or its id, as in
            ``run.to_frame(metadata=True)["id"]`` and events.

        Raises
        ------
        KeyError
            Where the run has no such electron, or several.
        Exception
            Whatever the atom raises, with its own traceback: use ``%debug``, or `pdb.pm`.
        """
        position = self._view.find(electron, self.id)
        attempt = 1 + len(self._ledger.history.get(position, ()))
        try:
            return self._driven.replay(position, attempt)
        except Exception as error:
            # A debugger, and who reads the traceback, begin in the atom.
            error.__traceback__ = within_atom(error.__traceback__)
            raise

    def __await__(self) -> Generator[Any, None, Run]:
        return self._until_ended().__await__()

    async def _until_ended(self) -> Run:
        ledger = self._ledger
        while True:
            with ledger.changed:
                woken = ledger.wakeups.future()
                if ledger.ended:
                    break
            await woken
        return self.wait(progress=False)

    def __repr__(self) -> str:
        p = self.progress
        total = "?" if p.total is None else f"{p.total:,}"
        failed = f", {p.failed:,} failed" if p.failed else ""
        how = f"{self.state}, {p.done:,} of {total} done{failed}"
        why = f"; {p.standstill}" if p.standstill else ""
        return f"<Run {self.id} of {self.atom_id}: {how}{why}>"

    def _find_merged(self, error: FileNotFoundError, ended: bool) -> None:
        if not self._control.is_driven:
            self.look_again()
        elif ended:
            raise StoreError(
                f"another process has gone on with {self.store} since {self.id} ended here: "
                "Run.open(store) shows it as it is now",
                error,
            ) from error
        else:
            sleep(RENAME_SECONDS)

    # -- what happens to it ------------------------------------------------------------------

    def note(self, event: Event) -> None:
        """Keep an event of this run; from any thread."""
        self.recent.note(event)
        self.events.put(event)

    def overhear(self, event: Event) -> None:
        """Add an event of the conductor to `recent`; a warning about a worker marks it as lost."""
        self.recent.note(event)
        if event.level == "warning" and "worker" in event.fields:
            self._lost_workers[event.fields["worker"]] = event.time

    def _on_event(self, event: Event) -> None:
        self.note(event)
        self._driven.host.put_event(event)

    def _on_failure(self, failure: Failure, position: int) -> None:
        if failure is not self._last_failure:  # equal failures of one outcome are one object
            self._last_failure = failure
            self.recent.note(failed(self.id, self.atom_id, failure, position))
        error = partial(failure.error, f"{self.id}-{position}", self.atom_id)
        self._driven.host.report_failure(error)

    def _reopen(self) -> None:
        self._refresh_panel()
        self.events = Stream(setting("events.run-buffer"), self._driven.host.report_problem)

    def _close(self) -> None:
        self._refresh_panel()
        self.events.close()
        if self._ledger.failed and self.state == "finished":
            logger.warning("%s: %s", self.id, failures_in_words(self._ledger))
