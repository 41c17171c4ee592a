"""Live panels for notebooks: the only importer of ipywidgets."""
