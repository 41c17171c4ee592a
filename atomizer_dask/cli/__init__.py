"""The command line: ``atomizer-dask``, and the same as ``dask atomizer``."""

from atomizer_dask.cli.commands import main

__all__ = ["main"]
