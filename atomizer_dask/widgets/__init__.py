"""Live panels for notebooks: the only importer of ipywidgets and anywidget.

Handles find these names without importing them; see `atomizer_dask.display.live`.
"""

from atomizer_dask.widgets.explore.explorer import Explorer
from atomizer_dask.widgets.panels import display, panel_of, refresh, update_saved_output
from atomizer_dask.widgets.static_html import html_of

__all__ = ["Explorer", "display", "html_of", "panel_of", "refresh", "update_saved_output"]
