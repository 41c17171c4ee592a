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
        """The newest events of the atomizer."""
        atomizer: Atomizer = self.thing
        return atomizer.recent

    @property
    def pace(self) -> float | None:
        """Seconds between refreshes while the atomizer is open; None once it is closed."""
        return ATOMIZER_SECONDS if self.thing.state == "open" else None

    def facts(self) -> dict[str, Any]:
        """Return the facts for the head of the panel."""
        return atomizer_facts(self.thing)

    def do(self, what: str, message: dict[str, Any]) -> None:
        """Pause, resume or cancel a run, for the button beside it."""
        runs = {run.id: run for run in self.thing.runs}
        run = runs.get(message.get("run", ""))
        if run is None:
            raise KeyError("no variable holds that run any more")
        if what not in ("pause", "resume", "cancel"):
            raise ValueError(f"the page asked for {what!r}, which this panel does not know")
        getattr(run, what)()
