"""Figures 8 and 9: how well the workers are kept busy."""

import time
from collections.abc import Iterator

from atomizer_dask import Atomizer, atom, zipped
from atomizer_dask.runs.run import Run
from benchmarks.fresh import Sample
from benchmarks.work import WORKERS, scaled, two_workers

SHORT, LONG = 0.01, 1.0  # seconds


@atom
def nap(seconds):
    time.sleep(seconds)
    return seconds


def utilisation(scale: float, repeats: int) -> Iterator[Sample]:
    """Figure 8: what the electrons took, as a share of what the threads had."""
    naps = [SHORT] * scaled(2000, scale)
    with two_workers(nap) as atomizer:
        _timed(atomizer, [SHORT] * 10)
        for _ in range(repeats):
            wall, run = _timed(atomizer, naps)
            busy = run.to_frame(metadata=True)["duration"].sum().total_seconds()
            yield {"value": busy / (WORKERS * wall), "seconds": wall}


def skew(scale: float, repeats: int) -> Iterator[Sample]:
    """Figure 9: the wall time as a multiple of the optimal schedule's."""
    count = scaled(1000, scale, least=50)
    long = max(2, count // 100)
    naps = [SHORT] * (count - long) + [LONG] * long
    optimum = max(sum(naps) / WORKERS, LONG)
    with two_workers(nap) as atomizer:
        _timed(atomizer, [SHORT] * 10)
        for _ in range(repeats):
            wall, _ = _timed(atomizer, naps)
            yield {"value": wall / optimum, "seconds": wall, "optimum": optimum}


def _timed(atomizer: Atomizer, naps: list[float]) -> tuple[float, Run]:
    start = time.perf_counter()
    run = atomizer.map(nap, zipped(seconds=naps)).wait(progress=False)
    return time.perf_counter() - start, run
