"""The live panel of a conductor: state, address and workers of its cluster."""

from __future__ import annotations

from typing import Any

from atomizer_dask.conductors.batch_conductor import BatchConductor
from atomizer_dask.conductors.status import ConductorStatus
from atomizer_dask.widgets.panel import Panel
from atomizer_dask.widgets.summary import conductor_facts, status_of
from atomizer_dask.widgets.workers import WorkerTable

CONDUCTOR_SECONDS = 1.0


class ConductorPanel(Panel):
    """The live panel of a conductor."""

    def __init__(self, conductor: BatchConductor) -> None:
        self._crew = WorkerTable()
        self._status = ConductorStatus("connected", "")
        super().__init__(conductor)

    @property
    def pace(self) -> float | None:
        """Seconds between refreshes while it is connected or reconnecting; else None."""
        return CONDUCTOR_SECONDS if self.thing.state in ("connected", "reconnecting") else None

    def facts(self) -> dict[str, Any]:
        """Return the facts for the head of the panel."""
        self._status = status_of(self.thing)
        self._crew.note(self._status)
        busy = self._crew.busy(self._status.workers)
        return {**conductor_facts(self.thing, self._status), "busy": busy}

    def due_traits(self) -> dict[str, Any]:
        """Return the trait of the tab of workers."""
        return {"workers": self._crew.rows(self._status)}
