"""Writes the stores beside this file: ``python write.py``, with version 0.1.0 of atomizer_dask."""

from old_atoms import Body, Shape, measured

from atomizer_dask import Atomizer, MemoryConductor, grid, montecarlopi  # noqa: F401 - registers

if __name__ == "__main__":
    bodies = [Body(shape, float(size)) for size in (1, 4) for shape in Shape]
    with Atomizer(MemoryConductor(2)) as atomizer:
        sweep = grid(body=bodies, factor=[2.0])
        atomizer.map(measured, sweep, store="measured", seed=7, allow_pickle=True).wait()
        atomizer.map("montecarlopi.Toss", grid(tosses=[10, 20]), store="tosses", seed=7).wait()
