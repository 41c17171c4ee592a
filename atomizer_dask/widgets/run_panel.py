"""The live panel of a run."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from time import monotonic, thread_time
from typing import Any

from atomizer_dask.conductors.status import ConductorStatus
from atomizer_dask.errors import AtomizerError, ElectronError
from atomizer_dask.events import EventLog
from atomizer_dask.runs.run import Run
from atomizer_dask.store.layout import GOING
from atomizer_dask.widgets.failures import failure_groups, type_text
from atomizer_dask.widgets.output import output_rows
from atomizer_dask.widgets.panel import Panel, described
from atomizer_dask.widgets.preview import preview
from atomizer_dask.widgets.rate_history import RateHistory
from atomizer_dask.widgets.refresher import Cost
from atomizer_dask.widgets.summary import run_facts
from atomizer_dask.widgets.workers import WorkerTable

logger = logging.getLogger(__name__)

CREW_SECONDS = 1.0
TAB_SECONDS = 1.0
LEFT = ("suspended", "detached")  # of a store that somebody may go on with
LEFT_SECONDS = 30.0
ELSEWHERE_SECONDS = 2.0  # between two looks at a run that another process works on
RATE_CHANGE = 0.1  # relative; a smaller change of the rate alone is not sent


class RunPanel(Panel):
    """The live panel of a run."""

    def __init__(self, run: Run) -> None:
        self._course, self._crew = RateHistory(), WorkerTable()
        self._status: ConductorStatus | None = None
        self._due: dict[str, float] = {}
        self._costs: defaultdict[str, Cost] = defaultdict(Cost)
        self._last_sent: dict[str, Any] = {}
        self._spark: list[list[float]] = []
        self._column = ""
        super().__init__(run)

    @property
    def log(self) -> EventLog | None:
        """The events of the run."""
        run: Run = self.thing
        return run.recent

    @property
    def pace(self) -> float | None:
        """Seconds between refreshes while the run goes on, or another process may go on with it."""
        run: Run = self.thing
        if not run.is_driven and run.state in LEFT:
            return LEFT_SECONDS
        if run.state not in GOING:
            return None
        return self.interval if run.is_driven else ELSEWHERE_SECONDS

    def facts(self) -> dict[str, Any]:
        """Return the facts for the head of the panel."""
        run: Run = self.thing
        if not run.is_driven and run.state in (*GOING, *LEFT):
            run.look_again()
        self._refresh_workers(run)
        facts = self._steady(run_facts(run))
        going = facts["state"] in GOING
        ended = facts["done"] + facts["failed"]
        self._course.note(facts["elapsed"], ended, last=not going)
        if self._last_sent.get("ended") != ended or not self._spark or not going:
            self._last_sent["ended"] = ended
            self._spark = self._course.rates()
        return {**facts, "spark": self._spark, "workers": self._crew_facts()}

    def _steady(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the facts; where the rate alone has changed a little, with the previous rate."""
        rest = {n: v for n, v in facts.items() if n not in ("rate", "eta", "elapsed")}
        before = self._last_sent.get("rate", 0.0)
        if (
            self._last_sent.get("rest") == rest
            and abs(facts["rate"] - before) <= RATE_CHANGE * before
        ):
            return {**facts, "rate": before, "eta": self._last_sent["eta"]}
        self._last_sent |= {"rest": rest, "rate": facts["rate"], "eta": facts["eta"]}
        return facts

    def _refresh_workers(self, run: Run) -> None:
        if run.conductor is None or run.state not in GOING or not self._is_due("crew"):
            return
        began = thread_time()
        try:
            status = run.conductor.status()
        except AtomizerError:  # the scheduler is gone, and the conductor will end the run
            return
        if status.state != "connected":  # the status of other states lists no workers
            return
        self._status = status
        self._crew.note(self._status)
        self._put_off("crew", CREW_SECONDS, began)

    def _crew_facts(self) -> dict[str, Any] | None:
        if self._status is None:
            return None
        workers = self._status.workers
        busy = self._crew.busy(workers)
        return {"count": len(workers), "threads": sum(w.threads for w in workers), "busy": busy}

    def due_traits(self) -> dict[str, Any]:
        """Return the contents of open tabs, each updated as often as its cost allows."""
        run: Run = self.thing
        looks: dict[str, Callable[[], Any]] = {
            "failures": lambda: failure_groups(run),
            "output": lambda: output_rows(run),
            "workers": lambda: self._worker_rows(run),
            "results": lambda: preview(run, self._column),
        }
        progress = run.progress
        ended = progress.done, progress.failed, run.retried, run.state
        changed: dict[str, Any] = {}
        for tab, find in looks.items():
            known = tab != "workers" and tab not in self.troubles
            same = known and self._last_sent.get(tab) == (ended, self._column)
            if tab in self.wanted and not same and self._is_due(tab):
                began = thread_time()
                changed |= self._find(tab, find)
                self._last_sent[tab] = ended, self._column
                self._put_off(tab, TAB_SECONDS, began)
        return changed

    def _find(self, tab: str, find: Callable[[], Any]) -> dict[str, Any]:
        """Return the contents of a tab; an error goes to `troubles`, and the panel goes on."""
        try:
            found = {tab: find()}
        except Exception as error:
            trouble = f"the {tab} cannot be shown: {described(error)}"
            if self.troubles.get(tab) != trouble:
                logger.warning("of %s, %s", self.thing.id, trouble, exc_info=error)
            self.troubles[tab] = trouble
            return {}
        self.troubles.pop(tab, None)
        return found

    def _worker_rows(self, run: Run) -> list[dict[str, Any]]:
        self._crew.count(run)
        return self._crew.rows(self._status or ConductorStatus("closed", ""))

    def _is_due(self, what: str) -> bool:
        if self.thing.state not in GOING:
            return True
        return self.may_send and self._due.get(what, 0.0) <= monotonic()

    def _put_off(self, what: str, seconds: float, began: float) -> None:
        pause = self._costs[what].pause(thread_time() - began, seconds)
        self._due[what] = monotonic() + pause

    def hear(self, message: dict[str, Any]) -> None:
        """Note the output that the page selects, and update newly opened tabs without delay."""
        if "column" in message:
            self._column = str(message["column"])
            self._due.pop("results", None)
        for tab in message.get("tabs", ()):
            self._due.pop(tab, None)

    def do(self, what: str, message: dict[str, Any]) -> None:
        """Pause, resume, cancel or retry the run, for the button that was pressed."""
        run: Run = self.thing
        if what == "retry" and "type" in message:
            wanted = message["kind"], message["type"]

            def is_meant(error: ElectronError) -> bool:
                return (error.kind, type_text(error.type)) == wanted

            run.retry(where=is_meant)
        elif what in ("pause", "resume", "cancel", "retry"):
            getattr(run, what)()
        else:
            raise ValueError(f"the page asked for {what!r}, which this panel does not know")
