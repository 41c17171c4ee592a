"""The live panel of an atomizer: its runs, its atoms, its conductors, and all events."""

from __future__ import annotations

from typing import Any

from atomizer_dask.atomizer import Atomizer
from atomizer_dask.events import EventLog
from atomizer_dask.widgets.panel import Panel
from atomizer_dask.widgets.summary import atomizer_facts

ATOMIZER_SECONDS = 0.5


class AtomizerPanel(Panel):
    """The live panel of an atomizer."""

    @property
    def log(self) -> EventLog | None:
        """All its events."""
        atomizer: Atomizer = self.thing
        return atomizer.recent

    @property
    def pace(self) -> float | None:
        """Twice a second until it is closed."""
        return ATOMIZER_SECONDS if self.thing.state == "open" else None

    def facts(self) -> dict[str, Any]:
        """Return what the head says."""
        return atomizer_facts(self.thing)

    def do(self, what: str, message: dict[str, Any]) -> None:
        """Do what a button beside a run says."""
        runs = {run.id: run for run in self.thing.runs}
        run = runs.get(message.get("run", ""))
        if run is None:
            raise KeyError("no variable holds that run any more")
        if what not in ("pause", "resume", "cancel"):
            raise ValueError(f"the page asked for {what!r}, which this panel does not know")
        getattr(run, what)()
