"""How a handle finds the widget that shows it: the one door up, from all rooms to `widgets`.

Widgets import the handles that they show: runs, atomizers, conductors. Handles that imported
their widgets would close a circle, so they find them by name when somebody first looks, as pandas
finds a plotting backend. `Front` is what they expect behind that name. A worker has handles too,
and never shows one: ipywidgets is not loaded there.
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
        """What was tried, a row each: inputs and outputs."""

    @property
    def sweep(self) -> Any:
        """The `Grid` of the ranges of all controls."""

    def map(self, **options: Any) -> Any:
        """Start a `Run` over the sweep, with the options of `Atomizer.map`."""

    def wait(self, timeout: float | None = None) -> Self:
        """Return when what was last tried is shown."""

    def close(self) -> None:
        """Cancel what is under way, and try nothing more."""


class Front(Protocol):
    """What the package of the widgets offers to handles."""

    def Explorer(self, atomizer: Any, definition: Any, ranges: Any) -> ExplorerWidget:  # noqa: N802
        """Return a widget with a control for each parameter of an atom."""

    def panel_of(self, handle: Any) -> Any:
        """Return the live panel of a handle; always the same one."""

    def display(self, handle: Any) -> None:
        """Show the live panel of a handle in the cell that is being executed."""

    def html_of(self, handle: Any) -> str:
        """Return a handle as HTML, as it is now."""

    def refresh(self, handle: Any) -> None:
        """Have the panel of a handle, where there is one, show what has just changed."""

    def update_saved_output(self, handle: Any) -> None:
        """Bring what a saved notebook keeps of a panel, where there is one, up to date."""


def widgets() -> Front:
    """Return the package of the widgets, loaded when first asked for."""
    front: Any = importlib.import_module(FRONT)
    return front  # type: ignore[no-any-return]


def in_kernel() -> bool:
    """Return whether this process is a kernel, to which a page may be connected."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class LiveDisplay:
    """A handle that a notebook shows as a live panel, and others as it is at the moment."""

    def watch(self) -> Any:
        """Return its live panel, a widget to be displayed anywhere and as often as one likes."""
        return widgets().panel_of(self)

    def _refresh_panel(self) -> None:
        """Have its panel, where there is one, show what has just changed."""
        if (loaded := _loaded("refresh")) is not None:
            loaded(self)

    def _update_saved_output(self) -> None:
        """Bring what a saved notebook keeps of its panel up to date before going on."""
        if (loaded := _loaded("update_saved_output")) is not None:
            loaded(self)

    def _ipython_display_(self) -> None:
        if not in_kernel():
            raise NotImplementedError  # which has IPython show the text
        widgets().display(self)

    def _repr_html_(self) -> str:
        return widgets().html_of(self)


def _loaded(name: str) -> Any:
    """Return a function of the widgets if these are loaded; they may be just about to be."""
    return getattr(sys.modules.get(FRONT), name, None)
