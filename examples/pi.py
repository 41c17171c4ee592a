"""Pi from darts: the "hello world" of Monte Carlo, and of the atomizer in Go.

A dart thrown at a square hits the circle within it with probability pi / 4. `MonteCarlo` is a
spawner: it is sent one electron, sends as many of `Toss` as it likes, waits for them on the
cluster, and answers with the estimate. As in the Go application an atom is called by its id,
and its result is a mapping.

    python examples/pi.py
    python examples/pi.py --tosses 100000000000 --scheduler tcp://host:8786
"""

import math

import click

from atomizer_dask import Atomizer, DaskConductor
from atomizer_dask.montecarlopi import MonteCarlo, Toss, standard_error


@click.command(help=__doc__.partition("\n")[0])
@click.option("--tosses", default=1_000_000_000, help="More are better, by the square root.")
@click.option("--seed", default=7, help="The same seed gives the same numbers.")
@click.option("--scheduler", metavar="ADDRESS", help="Of a Dask scheduler; else a local cluster.")
def main(tosses, seed, scheduler):
    """Toss, and compare with the value in the books."""
    with Atomizer(DaskConductor(scheduler), MonteCarlo, Toss) as atomizer:
        # The random numbers of an electron that is sent by itself follow from its id.
        future = atomizer.send("montecarlopi.MonteCarlo", {"tosses": tosses}, id=f"pi-{seed}")
        properties = future.result()

    result, seconds = properties.value(), properties.duration.total_seconds()
    error = standard_error(result["in"], result["tosses"] - result["errors"])
    click.echo(f"{result['in']:,} of {result['tosses']:,} darts hit the circle")
    click.echo(f"{result['errors']:,} were lost; {tosses / seconds:,.0f} flew per second\n")
    click.echo(f"pi       {result['pi']:.8f} +- {error:.8f}")
    click.echo(f"truly    {math.pi:.8f}")
    click.echo(f"off by   {(result['pi'] - math.pi) / error:+.2f} standard errors")


if __name__ == "__main__":
    main()
