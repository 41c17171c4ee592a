"""What atomizer_dask promises in figures, measured: ``python -m benchmarks``."""
