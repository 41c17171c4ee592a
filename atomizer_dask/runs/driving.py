"""What can be done about a run: everything where this process drives it, else only looking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, Protocol

from atomizer_dask.atoms.definition import as_it_is_now
from atomizer_dask.conductors.batch_conductor import BatchConductor
from atomizer_dask.conductors.child_conductor import replay
from atomizer_dask.electron import new_id
from atomizer_dask.errors import ConductorError, ElectronError, StoreError
from atomizer_dask.execution.batch import AttemptTerms
from atomizer_dask.execution.failure import Failure
from atomizer_dask.runs.ledger import Ledger
from atomizer_dask.runs.plan import Host, Listeners, Plan, Today
from atomizer_dask.runs.progress import ProgressSource
from atomizer_dask.runs.sources.make import source_of
from atomizer_dask.runs.sources.source import RunSource
from atomizer_dask.runs.sources.stored_source import StoredRunSource
from atomizer_dask.runs.verification import Sample
from atomizer_dask.store.provenance import surroundings

Drive = Callable[[Any, str, bytes, bytes, str], str]


class RunControl(ProgressSource, Protocol):
    """Who drives a run, as its handle sees it."""

    @property
    def is_driven(self) -> bool:
        """Whether this process drives it."""

    @property
    def conductor(self) -> BatchConductor | None:
        """What carries its electrons."""

    def driven(self) -> Driven:
        """Return what drives it here.

        Raises
        ------
        StoreError
            Where nothing does.
        """


class Opened:
    """A run that was opened from its store, to be looked at: whoever drives it is elsewhere.

    Parameters
    ----------
    run_id
        Of the run.
    url
        Its store.
    """

    is_driven = False
    conductor = None
    running = 0
    all_drawn = False

    def __init__(self, run_id: str, url: str) -> None:
        self._run_id = run_id
        self._url = url

    def standstill(self) -> str:
        """Return nothing: it is not known here."""
        return ""

    def driven(self) -> Driven:
        """Raise: nothing drives it here."""
        raise StoreError(
            f"{self._run_id} was opened to be looked at; atomizer.attach({self._url!r}) goes on "
            "with it"
        )


class Driven:
    """A run that this process drives.

    Parameters
    ----------
    plan
        What is to be done.
    conductor
        Carries it out.
    host
        Whoever started it.
    ledger
        What has become of its electrons.
    source
        Where the conductor's driver takes its electrons from.
    drive
        What a worker is to call that goes on with it alone; None where it has no store.
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
        """Return it."""
        return self

    @property
    def running(self) -> int:
        """How many electrons are under way."""
        return self.source.running

    @property
    def all_drawn(self) -> bool:
        """Whether it is known how many electrons there are."""
        return self.source.all_drawn

    def standstill(self) -> str:
        """Return why nothing of it can be executed; nothing where it can."""
        if self._ledger.state != "running":
            return ""
        return self.conductor.standstill(self.plan.version)

    # -- going on, and not -----------------------------------------------------------------------

    def do(self, action: Callable[[], None]) -> None:
        """Do something on the dispatcher's thread, unless the run has ended."""
        if not self._ledger.ended:
            self.conductor.do(action)

    def suspend(self) -> None:
        """Stop such that any process can go on, and wait until that is so."""
        source = self.stored("stops here without a store")
        if not self._ledger.ended:
            self.conductor.do(source.suspend)
            self._ledger.join()
        self._raise_error()

    def leave(self) -> None:
        """Suspend the run where it has a store, else cancel it, without waiting for that."""
        if not self._ledger.ended:
            source = self.source
            end = source.suspend if isinstance(source, StoredRunSource) else source.cancel
            self.conductor.post(end)

    def detach(self) -> None:
        """Have a worker drive it from now on."""
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
            if self._ledger.ended:  # meanwhile, so that nobody holds the store that was looked for
                return
            raise
        conductor.do(source.detach)
        if self._ledger.state == "detached":
            policy = plan.options.policy
            conductor.detach_run(plan.run_id, plan.sink, plan.version, policy, self._drive)
        else:
            self._raise_error()

    def check_held(self) -> None:
        """End the run where another process has taken its store over."""
        self.conductor.do(self.stored("has a holder without a store").check_held)

    def stored(self, what: str) -> StoredRunSource:
        """Return its source, which has a store.

        Raises
        ------
        StoreError
            Where it has none, for then nothing does `what`.
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
            self.plan = replace(self.plan, definition=today.definition, version=today.version)

    def _today(self) -> Today | None:
        """Return the atom as it is now, None where it is what it was."""
        conductor, plan = self.conductor, self.plan
        definition = as_it_is_now(plan.definition)
        version = conductor.version_of(definition)
        is_same = version == plan.version
        if is_same and (plan.sink is None or version is not definition):
            return None
        code = conductor.code_of(definition)
        if is_same and plan.sink is not None and code.fingerprint == plan.sink.code:
            return None
        return Today(definition, version, conductor.catalog(), code)

    def execute_again(self, sample: Sample) -> Ledger:
        """Execute some electrons once more, beside the run; return what became of them."""
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
        return replay(self.conductor, batch, self.plan.definition)

    def provenance(self) -> dict[str, Any]:
        """Return where the results of a run come from that has no store."""
        plan = self.plan
        return {
            "run_id": plan.run_id,
            "atom": plan.definition.id,
            "seed": plan.seed,
            "store": None,
            "state": self._ledger.state,
            "sweep": repr(plan.sweep),
            "options": plan.options.to_json(),
            "codes": [{"fingerprint": self.conductor.code_of(plan.definition).fingerprint}],
            "sessions": [{**surroundings(), **self.conductor.whereabouts()}],
        }


def _ignore_failure(failure: Failure, position: int) -> None:
    """Do nothing: what fails when it is verified is a row of what `Run.verify` returns."""
