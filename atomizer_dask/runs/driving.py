"""Control of a run: full where this process drives it, read-only where it was opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, Protocol

from atomizer_dask.atoms.definition import as_it_is_now, fixed_of
from atomizer_dask.conductors.batch_conductor import BatchConductor
from atomizer_dask.conductors.child_conductor import replay
from atomizer_dask.electron import new_id
from atomizer_dask.errors import ConductorError, ElectronError, StoreError
from atomizer_dask.execution.batch import AttemptTerms, Batch
from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.packing import pack
from atomizer_dask.runs.ledger import Ledger
from atomizer_dask.runs.plan import Host, Listeners, Plan, Today
from atomizer_dask.runs.progress import ProgressSource
from atomizer_dask.runs.sources.make import source_of
from atomizer_dask.runs.sources.source import RunSource
from atomizer_dask.runs.sources.stored_source import StoredRunSource
from atomizer_dask.runs.verification import Sample
from atomizer_dask.store.provenance import described_values, surroundings
from atomizer_dask.sweeps.lazy_values import is_dask_future

Drive = Callable[[Any, str, bytes, bytes, str], str]


class RunControl(ProgressSource, Protocol):
    """What the handle of a run needs to control it: `Driven` or `Opened`."""

    @property
    def is_driven(self) -> bool:
        """Whether this process drives the run."""

    @property
    def conductor(self) -> BatchConductor | None:
        """The conductor that carries its electrons; None where this process does not drive it."""

    def driven(self) -> Driven:
        """Return the run as this process drives it.

        Raises
        ------
        StoreError
            Where this process does not drive it.
        """


class Opened:
    """A run that was opened from its store, read-only: another process drives it, or none.

    Parameters
    ----------
    run_id
        Id of the run.
    url
        Path or URL of its store.
    """

    is_driven = False
    conductor = None
    running = 0
    all_drawn = False

    def __init__(self, run_id: str, url: str) -> None:
        self._run_id = run_id
        self._url = url

    def standstill(self) -> str:
        """Return an empty text: only the process that drives the run knows."""
        return ""

    def driven(self) -> Driven:
        """Raise `StoreError`: this process does not drive the run."""
        raise StoreError(
            f"{self._run_id} was opened to be looked at; atomizer.attach({self._url!r}) goes on "
            "with it"
        )


class Driven:
    """A run that this process drives.

    Parameters
    ----------
    plan
        Its atom, inputs and options.
    conductor
        Carries its electrons.
    host
        The atomizer that started it, or the listener of a detached run.
    ledger
        The outcomes of its electrons.
    source
        The source from which the conductor's driver takes its electrons.
    drive
        Function that a worker calls to drive the run once it is detached; None without a store.
    """

    is_driven = True

    def __init__(
        self,
        plan: Plan,
        conductor: BatchConductor,
        host: Host,
        ledger: Ledger,
        source: RunSource,
        drive: Drive | None,
    ) -> None:
        self.plan = plan
        self.conductor = conductor
        self.host = host
        self.source = source
        self._ledger = ledger
        self._drive = drive

    def driven(self) -> Driven:
        """Return itself."""
        return self

    @property
    def running(self) -> int:
        """How many electrons are under way."""
        return self.source.running

    @property
    def all_drawn(self) -> bool:
        """Whether the number of electrons is known: a streamed sweep has been read to its end."""
        return self.source.all_drawn

    def standstill(self) -> str:
        """Return why no electron of it can be executed; empty where one can, or unless it runs."""
        if self._ledger.state != "running":
            return ""
        return self.conductor.standstill(self.plan.version)

    # -- going on, and not -----------------------------------------------------------------------

    def do(self, action: Callable[[], None]) -> None:
        """Call `action` on the dispatcher's thread, unless the run has ended."""
        if not self._ledger.ended:
            self.conductor.do(action)

    def suspend(self) -> None:
        """Suspend the run, so that any process can attach to it, and wait for the end here."""
        source = self.stored("stops here without a store")
        if not self._ledger.ended:
            self.conductor.do(source.suspend)
            self._ledger.join()
        self._raise_error()

    def leave(self) -> None:
        """Suspend the run where it has a store, else cancel it; return without waiting."""
        if not self._ledger.ended:
            source = self.source
            end = source.suspend if isinstance(source, StoredRunSource) else source.cancel
            self.conductor.post(end)

    def detach(self) -> None:
        """End the run here, and have a worker drive it from now on."""
        source = self.stored("goes on without a store")
        plan, conductor = self.plan, self.conductor
        assert plan.sink is not None
        assert self._drive is not None
        if self._ledger.ended:
            return
        if not source.all_drawn:
            raise StoreError(
                f"the sweep of {plan.run_id} is an iterator of this process that has not ended: "
                "wait until run.progress.total is known, or make it a table"
            )
        try:
            conductor.check_detachable(plan.sink)
        except ConductorError:
            if self._ledger.ended:  # meanwhile: it released the lock that the workers looked for
                return
            raise
        conductor.do(source.detach)
        if self._ledger.state == "detached":
            policy = plan.options.policy
            version = plan.bare_version  # for the driver finds constants in the store
            conductor.detach_run(plan.run_id, plan.sink, version, policy, self._drive)
        else:
            self._raise_error()

    def check_held(self) -> None:
        """End the run where another process has taken its store over."""
        self.conductor.do(self.stored("has a holder without a store").check_held)

    def stored(self, what: str) -> StoredRunSource:
        """Return the source of a run with a store.

        Parameters
        ----------
        what
            What only a run with a store can do; completes "nothing ..." in the message.

        Raises
        ------
        StoreError
            Where the run has no store.
        """
        if not isinstance(self.source, StoredRunSource):
            run_id = self.plan.run_id
            raise StoreError(f"{run_id} has no store, and nothing {what}: use map(..., store=...)")
        return self.source

    def _raise_error(self) -> None:
        if self._ledger.error is not None:
            raise self._ledger.error

    # -- executing again -------------------------------------------------------------------------

    def retry(self, where: Callable[[ElectronError], bool] | None, seconds: float | None) -> None:
        """Execute failed electrons again, by the atom as it is now."""
        limit = self.plan.options.timeout if seconds is None else seconds
        if self.source.stopping:  # it is being cancelled, which takes a second at most
            self._ledger.join()
        today = self._today()
        self.conductor.do(partial(self.source.retry, where, limit, today))
        if today is not None:
            self.plan = self.plan.renewed(today)

    def _today(self) -> Today | None:
        """Return the atom as it is now; None where it has not changed since the plan was made."""
        conductor, plan = self.conductor, self.plan
        definition = as_it_is_now(plan.definition)
        carried = plan.as_of(definition)
        version = conductor.version_of(carried)
        is_same = version == plan.version
        if is_same and (plan.sink is None or version is not carried):
            return None
        code = conductor.code_of(definition)
        if is_same and plan.sink is not None and code.has(plan.sink.code):
            return None
        bare = conductor.version_of(definition) if plan.constants else version
        return Today(definition, version, bare, conductor.catalog(), code)

    def execute_again(self, sample: Sample) -> Ledger:
        """Execute a sample of electrons once more, apart from the run; return their outcomes."""
        plan = replace(self.plan, sink=None, root=f"{self.plan.run_id}/verify-{new_id()}")
        ledger = Ledger(plan.run_id, plan.definition.id)
        listeners = Listeners(self.host.put_event, _ignore_failure, self.host.report_problem)
        source = source_of(plan, self.conductor, ledger, listeners)
        source.start_lots(sample.lots(plan.options.timeout))
        ledger.join()
        if ledger.error is not None:
            raise ledger.error
        return ledger

    def replay(self, electron: int, attempt: int) -> Any:
        """Execute one electron in this thread, and return its result or raise."""
        only = range(electron, electron + 1)
        batch = self.source.batch(f"replay-{self.plan.run_id}", only, AttemptTerms(attempt), inf)
        return replay(self.conductor, _with_values(batch), self.plan.carried)

    def provenance(self) -> dict[str, Any]:
        """Return the provenance of a run without a store, as this process knows it."""
        plan = self.plan
        return {
            "run_id": plan.run_id,
            "atom": plan.definition.id,
            "fixed": described_values(fixed_of(plan.definition)),
            "seed": plan.seed,
            "store": None,
            "state": self._ledger.state,
            "sweep": repr(plan.sweep),
            "options": plan.options.to_json(),
            "codes": [{"fingerprint": self.conductor.code_of(plan.definition).fingerprint}],
            "sessions": [{**surroundings(), **self.conductor.whereabouts()}],
        }


def _with_values(batch: Batch) -> Batch:
    """Return a batch of one electron with the values of Futures of Dask in place of these."""
    values = [*dict(batch.payload(0)).values(), *(batch.shared or {}).values()]
    if not any(map(is_dask_future, values)):
        return batch
    futures: list[Any] = []
    packed = pack(batch, references=futures)
    resolved: Batch = packed.load([future.result() for future in futures])
    return resolved


def _ignore_failure(failure: Failure, position: int) -> None:
    """Do nothing: `Run.verify` counts an electron that fails in its result, as different."""
