"""Live panels for notebooks: the only importer of ipywidgets and anywidget."""

from atomizer_dask.widgets.explore.explorer import Explorer
from atomizer_dask.widgets.panels import display, look_anew, panel_of, settle, still

__all__ = ["Explorer", "display", "look_anew", "panel_of", "settle", "still"]
