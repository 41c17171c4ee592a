"""The panels by thing: each run, atomizer or conductor has one, however often it is displayed."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from atomizer_dask.atomizer import Atomizer
from atomizer_dask.runs.run import Run
from atomizer_dask.widgets.atomizer_panel import AtomizerPanel
from atomizer_dask.widgets.conductor_panel import ConductorPanel
from atomizer_dask.widgets.panel import Panel, refresher
from atomizer_dask.widgets.run_panel import RunPanel

_panels: weakref.WeakKeyDictionary[Any, Panel] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def panel_of(thing: Any) -> Panel:
    """Return the live panel of a run, an atomizer or a conductor; always the same one."""
    with _making:
        panel = _panels.get(thing)
        if panel is None or panel.comm is None:  # it was closed
            kinds = {Run: RunPanel, Atomizer: AtomizerPanel}
            kind = next((kinds[k] for k in kinds if isinstance(thing, k)), ConductorPanel)
            panel = _panels[thing] = kind(thing)
            refresher.schedule(panel)
        return panel


def display(thing: Any) -> None:
    """Show a thing in the cell that is being executed."""
    panel_of(thing).show_here()


def refresh(thing: Any) -> None:
    """Refresh the panel of a thing, if there is one, in the refresher's thread."""
    if (panel := _panels.get(thing)) is not None:
        refresher.schedule(panel)


def update_saved_output(thing: Any) -> None:
    """Update the panel of a thing and its still picture, if there is one, before returning."""
    if (panel := _panels.get(thing)) is not None:
        panel.update_saved_output()
