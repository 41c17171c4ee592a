"""How a handle finds the widget that shows it: the one import upwards, to `widgets`.

Widgets import the handles that they show: runs, atomizers, conductors. If handles imported their
widgets, imports would be circular. So a handle loads the package of widgets by name when it is
first shown, as pandas loads a plotting backend. `Front` is the interface of that package. A worker
has handles too, but never shows one, and does not load ipywidgets.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    import pandas as pd

FRONT = "atomizer_dask.widgets"


class ExplorerWidget(Protocol):
    """What `Atomizer.explore` returns: a widget with a control for each parameter of an atom."""

    @property
    def inputs(self) -> dict[str, Any]:
        """The values that the controls have now."""

    @property
    def frame(self) -> pd.DataFrame:
        """Inputs and outputs of the electrons that ended, a row each."""

    def sweep(self) -> Any:
        """Return the `Grid` of the ranges of all controls."""

    def map(self, **options: Any) -> Any:
        """Start a `Run` over the sweep, with the options of `Atomizer.map`."""

    def wait(self, timeout: float | None = None) -> Self:
        """Wait until the electron for the current values has ended, and return the widget."""

    def close(self) -> None:
        """Cancel the electron under way, and send no more."""


class Front(Protocol):
    """The interface of the package of widgets, for handles."""

    def Explorer(self, atomizer: Any, definition: Any, ranges: Any) -> ExplorerWidget:  # noqa: N802
        """Return a widget with a control for each parameter of an atom."""

    def panel_of(self, handle: Any) -> Any:
        """Return the live panel of a handle; always the same one."""

    def display(self, handle: Any) -> None:
        """Show the live panel of a handle in the cell that is being executed."""

    def html_of(self, handle: Any) -> str:
        """Return a handle as HTML, as it is now."""

    def refresh(self, handle: Any) -> None:
        """Refresh the panel of a handle, where there is one."""

    def update_saved_output(self, handle: Any) -> None:
        """Update the still picture of a panel that a saved notebook keeps, where there is one."""


def widgets() -> Front:
    """Return the package of widgets; the first call loads it."""
    front: Any = importlib.import_module(FRONT)
    return front  # type: ignore[no-any-return]


def in_kernel() -> bool:
    """Return whether this process is a kernel, to which a page may be connected."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class LiveDisplay:
    """A handle that a kernel shows as a live panel, and other front ends as text or static HTML."""

    def watch(self) -> Any:
        """Return its live panel, a widget to display anywhere, any number of times."""
        return widgets().panel_of(self)

    def _refresh_panel(self) -> None:
        """Refresh its panel, where there is one."""
        if (loaded := _loaded("refresh")) is not None:
            loaded(self)

    def _update_saved_output(self) -> None:
        """Update the still picture of its panel, where there is one, before returning."""
        if (loaded := _loaded("update_saved_output")) is not None:
            loaded(self)

    def _ipython_display_(self) -> None:
        if not in_kernel():
            raise NotImplementedError  # IPython then shows the text
        widgets().display(self)

    def _repr_html_(self) -> str:
        return widgets().html_of(self)


def _loaded(name: str) -> Any:
    """Return a function of the package of widgets; None while that is not, or not fully, loaded."""
    return getattr(sys.modules.get(FRONT), name, None)
