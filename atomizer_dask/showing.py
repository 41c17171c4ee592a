"""The one way up, from the handles of a user to the widgets that show them.

A worker has handles too and never shows one: ipywidgets is loaded when somebody first looks.
"""

from __future__ import annotations

from typing import Any


def widgets() -> Any:
    """Return the package of the widgets, loaded when first asked for."""
    import atomizer_dask.widgets

    return atomizer_dask.widgets
