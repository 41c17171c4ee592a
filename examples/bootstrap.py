"""A bootstrap confidence interval for a correlation, with each resample an electron.

How sure can we be of the correlation between body-mass index and the progression of diabetes, in
the 442 patients of Efron, Hastie, Johnstone & Tibshirani (Annals of Statistics 32, 407, 2004)?
Draw 442 patients with replacement, correlate, and do that again many times: the central 95 % of
the outcomes are the percentile interval (Efron & Tibshirani, *An Introduction to the Bootstrap*,
1993, chapter 13). SciPy's own bootstrap, on a tenth of the resamples, is the cross-check.

    python examples/bootstrap.py
    python examples/bootstrap.py --resamples 1000000 --scheduler tcp://host:8786
"""

import click
import numpy as np

from atomizer_dask import Atomizer, DaskConductor, atom


def correlation(x, y):
    """Return Pearson's correlation of two samples."""
    return np.corrcoef(x, y)[0, 1]


def bootstrap_of(statistic, *samples):
    """Return an atom that computes a statistic of paired samples, resampled once.

    The samples travel to each worker once, with the atom, and not with every electron.
    """
    count = len(samples[0])

    @atom(id="bootstrap.resampled")
    def resampled(resample, *, context):
        chosen = context.rng.integers(count, size=count)
        return statistic(*(sample[chosen] for sample in samples))

    return resampled


@click.command(help=__doc__.partition("\n")[0])
@click.option("--resamples", default=100_000, help="How many times to draw.")
@click.option("--seed", default=7, help="The same seed gives the same numbers.")
@click.option("--scheduler", metavar="ADDRESS", help="Of a Dask scheduler; else a local cluster.")
def main(resamples, seed, scheduler):
    """Resample, and compare with SciPy."""
    from scipy import stats  # here, because worker processes import this file too
    from sklearn.datasets import load_diabetes

    patients = load_diabetes(as_frame=True).frame
    bmi, progression = patients["bmi"].to_numpy(), patients["target"].to_numpy()

    resampled = bootstrap_of(correlation, bmi, progression)
    with Atomizer(DaskConductor(scheduler), resampled) as atomizer:
        run = atomizer.map(resampled, {"resample": range(resamples)}, seed=seed)
        run.wait()
        outcomes = run.to_frame()["result"]

    low, high = outcomes.quantile([0.025, 0.975])
    fewer = max(100, resamples // 10)
    check = stats.bootstrap(
        (bmi, progression), correlation, paired=True, vectorized=False,
        n_resamples=fewer, method="percentile", rng=seed,
    )  # fmt: skip
    theirs, error = check.confidence_interval, check.standard_error
    click.echo(f"Body-mass index and progression of diabetes, {len(patients)} patients\n")
    click.echo(f"correlation     {correlation(bmi, progression):.4f}")
    click.echo(f"95 % interval   {low:.4f} to {high:.4f}   {len(outcomes):,} resamples")
    click.echo(f"  SciPy says    {theirs.low:.4f} to {theirs.high:.4f}   {fewer:,} resamples")
    click.echo(f"standard error  {outcomes.std():.4f}")
    click.echo(f"  SciPy says    {error:.4f}")


if __name__ == "__main__":
    main()
