"""Figures 1 to 4: how many electrons a second, from a sweep to a frame."""

import time
from collections.abc import Iterator
from concurrent.futures import Executor

import numpy as np
import pandas as pd

from atomizer_dask import Atomizer, atom, grid
from atomizer_dask.montecarlopi import TOSSES_PER_ELECTRON, MonteCarlo, Toss, count_inside
from benchmarks.fresh import Sample
from benchmarks.work import (
    best_chunk,
    frame,
    plus_one,
    scaled,
    seconds,
    sweep,
    two_processes,
    two_workers,
)


def _combine(a, b, c):
    return {"total": a + b, "product": b * c}


combine = atom(_combine)


@atom(vectorized=True)
def increments(x):
    return x + 1


def plus_one_in_full(x):
    """Keep what the package keeps of every electron: when it ended, and its error."""
    result = error = None
    try:
        result = x + 1
    except Exception as caught:
        error = caught
    return result, time.time(), error


def scalar(scale: float, repeats: int) -> Iterator[Sample]:
    """Figure 1, as a multiple of a ProcessPoolExecutor at its best chunk size."""
    n = scaled(5e6, scale)
    with two_processes() as pool, two_workers() as atomizer:
        chunk = best_chunk(lambda n, chunk: _map_bare(pool, n, chunk), n)
        for _ in range(repeats):
            ours = n / seconds(sweep, atomizer, n)
            bare = n / seconds(_map_bare, pool, n, chunk)
            full = n / seconds(_map_in_full, pool, n, chunk)
            yield {
                "value": ours / bare,
                "electrons/s": ours,
                "pool's": bare,
                "its best chunk": chunk,
                "pool's with end time and error": full,
            }


def _map_bare(pool: Executor, electrons: int, chunk: int) -> pd.DataFrame:
    return frame(list(pool.map(plus_one, range(electrons), chunksize=chunk)))


def _map_in_full(pool: Executor, electrons: int, chunk: int) -> pd.DataFrame:
    rows = pool.map(plus_one_in_full, range(electrons), chunksize=chunk)
    results, ends, errors = zip(*rows, strict=True)
    return frame(list(results)).assign(end=ends, error=errors)


def keywords(scale: float, repeats: int) -> Iterator[Sample]:
    """Figure 2, as a multiple of the electrons/s of figure 1, and of a pool on the same work."""
    n = scaled(5e6, scale)
    inputs = pd.DataFrame({"a": np.arange(n), "b": np.linspace(0, 1, n), "c": np.arange(n) % 7})
    with two_processes() as pool, two_workers(combine) as atomizer:
        _map(atomizer, combine, inputs.head(100_000))
        chunk = best_chunk(lambda n, chunk: _combine_bare(pool, inputs.head(n), chunk), n)
        for _ in range(repeats):
            one = n / seconds(sweep, atomizer, n)
            three = n / seconds(_map, atomizer, combine, inputs)
            bare = n / seconds(_combine_bare, pool, inputs, chunk)
            yield {
                "value": three / one,
                "x the pool": three / bare,
                "electrons/s": three,
                "with one input": one,
                "pool's": bare,
                "its best chunk": chunk,
            }


def _combine_bare(pool: Executor, inputs: pd.DataFrame, chunk: int) -> pd.DataFrame:
    columns = (inputs[name].tolist() for name in inputs)
    return inputs.join(pd.DataFrame(list(pool.map(_combine, *columns, chunksize=chunk))))


def vectorised(scale: float, repeats: int) -> Iterator[Sample]:
    """Figure 3, in electrons/s."""
    n = scaled(50e6, scale)
    with two_workers(increments) as atomizer:
        _map(atomizer, increments, grid(x=range(1_000_000)))
        for _ in range(repeats):
            yield {"value": n / seconds(_map, atomizer, increments, grid(x=range(n)))}


def _map(atomizer: Atomizer, function, inputs) -> pd.DataFrame:
    return atomizer.map(function, inputs).wait(progress=False).to_frame()


def pi(scale: float, repeats: int) -> Iterator[Sample]:
    """Figure 4, as a multiple of bare NumPy's tosses/s in two processes."""
    tosses = scaled(4e9, scale)
    with two_processes() as pool, two_workers(MonteCarlo, Toss) as atomizer:
        _toss(atomizer, 8 * TOSSES_PER_ELECTRON)
        _toss_bare(pool, 8 * TOSSES_PER_ELECTRON)
        for _ in range(repeats):
            ours = tosses / seconds(_toss, atomizer, tosses)
            bare = tosses / seconds(_toss_bare, pool, tosses)
            yield {"value": ours / bare, "tosses/s": ours, "bare NumPy's": bare}


def _toss(atomizer: Atomizer, tosses: int) -> float:
    result = atomizer.send(MonteCarlo, {"tosses": tosses}).result().value()
    return _checked(result["pi"])


def _toss_bare(pool: Executor, tosses: int) -> float:
    calls = -(-tosses // TOSSES_PER_ELECTRON)
    shares = [TOSSES_PER_ELECTRON] * (calls - 1)
    shares.append(tosses - sum(shares))
    return _checked(4 * sum(pool.map(_toss_once, range(calls), shares)) / tosses)


def _toss_once(key: int, tosses: int) -> int:
    return count_inside(np.random.Generator(np.random.Philox(key=key)), tosses)


def _checked(estimate: float) -> float:
    if abs(estimate - np.pi) > 0.01:
        raise ValueError(f"pi came out as {estimate}")
    return estimate
