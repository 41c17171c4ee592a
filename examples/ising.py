"""The phase transition of the two-dimensional Ising model.

One electron is one simulated square lattice, periodic, without a field: the Metropolis algorithm on
a checkerboard, every site of one colour at a time. The sweep is a grid of temperatures, sizes and
independent replicas, and what comes back is a DataFrame with a row for each lattice. Temperatures
are in units of the coupling, J / k_B.

Below the critical temperature ``Tc = 2 / ln(1 + sqrt(2))`` (Onsager, Phys. Rev. 65, 117, 1944) the
infinite lattice has the spontaneous magnetisation ``m = (1 - sinh(2 / T)**-4) ** (1 / 8)``
(Onsager 1949; derived by Yang, Phys. Rev. 85, 808, 1952), and above it has none. Small lattices
round the transition off.

    python examples/ising.py
    python examples/ising.py --sizes 32,64 --replicas 50 --sweeps 2000 --scheduler tcp://host:8786
"""

import click
import numpy as np

from atomizer_dask import Atomizer, DaskConductor, atom, grid

CRITICAL = 2 / np.log(1 + np.sqrt(2))


@atom
def ising(temperature, size, replica, sweeps=500, *, context):
    """Return energy and absolute magnetisation, per site and averaged over the later sweeps."""
    rng = context.rng
    spins = np.ones((size, size), dtype=int)
    black = np.indices(spins.shape).sum(axis=0) % 2 == 0
    energies, magnetisations = [], []
    for _ in range(sweeps):
        for colour in (black, ~black):
            neighbours = sum(np.roll(spins, step, axis) for step in (-1, 1) for axis in (0, 1))
            odds = np.exp(-2 / temperature * spins * neighbours)
            spins[colour & (rng.random(spins.shape) < odds)] *= -1
        # Each bond joins a black to a white site, and white is the colour that moved last.
        energies.append(-(spins * neighbours)[colour].sum() / spins.size)
        magnetisations.append(abs(spins.mean()))
    settled = slice(sweeps // 5, None)
    return {
        "energy": np.mean(energies[settled]),
        "magnetisation": np.mean(magnetisations[settled]),
    }


def onsager(temperature):
    """Return the spontaneous magnetisation of the infinite lattice."""
    order = np.clip(1 - np.sinh(2 / temperature) ** -4, 0, None)
    return order ** (1 / 8)


def numbers(kind):
    """Return a click callback that reads numbers with commas between them."""
    return lambda context, option, text: [kind(number) for number in text.split(",")]


@click.command(help=__doc__.partition("\n")[0])
@click.option("--temperatures", default="1.5,2.0,2.2,2.3,2.5,3.5", callback=numbers(float))
@click.option("--sizes", default="16,32", callback=numbers(int), help="Even numbers.")
@click.option("--replicas", default=10, help="Lattices for each temperature and size.")
@click.option("--sweeps", default=500, help="Updates of each site; the first fifth settle it.")
@click.option("--seed", default=7, help="The same seed gives the same numbers.")
@click.option("--scheduler", metavar="ADDRESS", help="Of a Dask scheduler; else a local cluster.")
def main(temperatures, sizes, replicas, sweeps, seed, scheduler):
    """Sweep, and compare with the exact solution."""
    if any(size % 2 for size in sizes):
        raise click.UsageError("a periodic checkerboard has an even number of sites on each side")
    lattices = grid(temperature=temperatures, size=sizes, replica=range(replicas), sweeps=[sweeps])
    with Atomizer(DaskConductor(scheduler), ising) as atomizer:
        run = atomizer.map(ising, lattices, seed=seed)
        run.wait()
        df = run.to_frame()

    table = df.groupby(["temperature", "size"])[["magnetisation", "energy"]].agg(["mean", "sem"])
    table.columns = ["|m|", "error", "energy", "error"]
    table = table.reset_index()
    table["Onsager"] = onsager(table["temperature"])
    click.echo(f"{len(df)} lattices, {sweeps} sweeps each; per site, mean and standard error\n")
    plain = {"temperature": "{:g}".format}
    click.echo(table.to_string(index=False, float_format="{:.4f}".format, formatters=plain))
    click.echo(
        f"\nThe infinite lattice orders below Tc = 2 / ln(1 + sqrt 2) = {CRITICAL:.4f} J/k_B."
    )


if __name__ == "__main__":
    main()
