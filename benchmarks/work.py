"""What several figures share: the work itself, a pool, a clock."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from atomizer_dask import Atomizer, DaskConductor, atom, grid

WORKERS = 2
CHUNKS = (1_000, 10_000, 50_000, 200_000)  # what a careful user would try by hand


def plus_one(x):
    return x + 1


increment = atom(plus_one)


@atom
def slow_increment(x):
    """Take long enough that something can happen meanwhile to the process that runs many."""
    time.sleep(0.001)
    return x + 1


@contextmanager
def two_workers(*atoms: Any) -> Iterator[Atomizer]:
    """An atomizer over two workers of one thread, which have executed something before."""
    with Atomizer(DaskConductor(workers=WORKERS), increment, *atoms) as atomizer:
        sweep(atomizer, 100_000)
        yield atomizer


@contextmanager
def two_processes() -> Iterator[Executor]:
    """A pool that has started its processes: to be opened before anything that has threads."""
    with ProcessPoolExecutor(WORKERS) as pool:
        list(pool.map(plus_one, range(WORKERS)))
        yield pool


def sweep(atomizer: Atomizer, electrons: int) -> pd.DataFrame:
    """Do the work of figure 1."""
    return atomizer.map(increment, grid(x=range(electrons))).wait(progress=False).to_frame()


def frame(results: list[Any]) -> pd.DataFrame:
    """Glue results to their inputs, as `Run.to_frame` does."""
    return pd.DataFrame({"x": np.arange(len(results)), "result": results})


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def best_chunk(function: Callable[[int, int], Any], electrons: int) -> int:
    """The chunk size with which ``function(electrons, chunk)`` is the fastest."""
    return min(CHUNKS, key=lambda chunk: seconds(function, electrons, chunk))


def scaled(count: float, scale: float, least: int = 1) -> int:
    return max(least, int(count * scale))
