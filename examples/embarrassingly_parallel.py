"""A slow function of a table of parameters, the rows in parallel.

The pattern of Dask's example of this name: 500 rows of four random parameters, and a simulation
that takes its time over each. There a loop makes a task of each row, and the results come back as
a list; here the DataFrame goes in as it is, and comes back with a column more.

    python examples/embarrassingly_parallel.py
    python examples/embarrassingly_parallel.py --workers 8
"""

import time

import click
import numpy as np
import pandas as pd

from atomizer_dask import Atomizer, DaskConductor, atom


@atom
def simulate(a, b, c, d, patience, *, context):
    """Return the sum of four parameters, after a random time of `patience` seconds on average."""
    time.sleep(context.rng.uniform(0, 2 * patience))
    return {"total": a + b + c + d}


@click.command(help=__doc__.partition("\n")[0])
@click.option("--rows", default=500, help="Of parameters.")
@click.option("--seconds", default=10.0, help="Of work in all of them together.")
@click.option("--workers", type=int, help="Of the local cluster; as many as cores unless given.")
@click.option("--seed", default=7, help="The same seed gives the same numbers.")
@click.option("--scheduler", metavar="ADDRESS", help="Of a Dask scheduler; else a local cluster.")
def main(rows, seconds, workers, seed, scheduler):
    """Simulate each row, and tell how much time was saved."""
    draws = np.random.default_rng(seed).random((rows, 4))
    parameters = pd.DataFrame(draws, columns=["a", "b", "c", "d"])

    with Atomizer(DaskConductor(scheduler, workers=workers), simulate) as atomizer:
        start = time.perf_counter()
        run = atomizer.map(simulate, parameters.assign(patience=seconds / rows), seed=seed)
        run.wait()
        wall = time.perf_counter() - start
        df = run.to_frame(metadata=True)

    df["seconds"] = df["duration"].dt.total_seconds()
    serial = df["seconds"].sum()
    click.echo(f"{len(df)} rows, {len(run.errors)} of them failed. The first:\n")
    click.echo(df[["a", "b", "c", "d", "total", "seconds"]].head().round(4).to_string())
    click.echo(f"\nmean of the totals   {df['total'].mean():7.4f}")
    click.echo(f"one after the other  {serial:5.2f} s")
    click.echo(f"on {df['worker'].nunique():2} workers        {wall:5.2f} s")
    click.echo(f"speed-up             {serial / wall:5.2f}")


if __name__ == "__main__":
    main()
