"""The one way up, from the handles of a user to the widgets that show them.

A worker has handles too and never shows one: ipywidgets is loaded when somebody first looks.
"""

from __future__ import annotations

import sys
from typing import Any


def widgets() -> Any:
    """Return the package of the widgets, loaded when first asked for."""
    import atomizer_dask.widgets

    return atomizer_dask.widgets


def in_kernel() -> bool:
    """Return whether this process is a kernel, to which a page may be connected."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class Shown:
    """What a notebook shows as a live panel, and anything else as it is at the moment."""

    def watch(self) -> Any:
        """Return its live panel, a widget to be displayed anywhere and as often as one likes."""
        return widgets().panel_of(self)

    def _look_anew(self) -> None:
        """Have its panel, where there is one, show what has just changed."""
        _call_loaded("look_anew", self)

    def _settle(self) -> None:
        """Have what a saved notebook keeps of its panel brought up to date before going on."""
        _call_loaded("settle", self)

    def _ipython_display_(self) -> None:
        if not in_kernel():
            raise NotImplementedError  # which has IPython show the text
        widgets().display(self)

    def _repr_html_(self) -> str:
        html: str = widgets().still(self)
        return html


def _call_loaded(name: str, thing: Any) -> None:
    """Call a function of the widgets if these are loaded; they may be just about to be."""
    function = getattr(sys.modules.get("atomizer_dask.widgets"), name, None)
    if function is not None:
        function(thing)
