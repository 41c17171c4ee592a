"""Figures 19 and 19b: many workers on one machine, kept busy by one driver.

The electrons sleep, so that a few cores can stand for many. What is measured is then what Dask and
this package need for as many batches as so many workers ask for; the cores of the workers' own
messages are included, which on a cluster would be elsewhere.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import dask
import numpy as np
import pandas as pd
from distributed import Client, LocalCluster

from atomizer_dask import Atomizer, DaskConductor, atom, zipped
from benchmarks.fresh import Sample
from benchmarks.work import scaled

PROCESSES, THREADS = 64, 256
SECONDS = 20.0  # for which the electrons of a run last on all workers together
STEADY = (0.1, 0.9)  # of the wall time: without the ramp at its start and the tail at its end
START_SECONDS = 300.0  # for the processes: each imports for a second, on the cores there are
MEAN, SIGMA = 0.2, 1.0  # of the mixed ones, lognormal: seconds, and the spread of the logarithm
# What Dask's workers do for their own sake is per process, and here it would be hundreds of times
# on a few cores: a look at the clock every 20 ms, a profile every 10 ms, and /proc every 500 ms.
QUIET = {
    "distributed.admin.tick.interval": "1s",
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.worker.multiprocessing-method": "forkserver",  # starts 64 in seconds
}


@atom
def nap(seconds):
    time.sleep(seconds)


def processes(scale: float, repeats: int) -> Iterator[Sample]:
    """Figure 19: worker processes of one thread."""
    yield from _busy(scaled(PROCESSES, scale, least=2), scale, repeats, processes=True)


def threads(scale: float, repeats: int) -> Iterator[Sample]:
    """Figure 19b: workers of one thread within this process, as is the scheduler."""
    yield from _busy(scaled(THREADS, scale, least=2), scale, repeats, processes=False)


def naps(kind: str, threads: int, seconds: float) -> np.ndarray:
    """Return durations that last for some seconds on all threads."""
    if kind == "mixed":
        rng = np.random.default_rng(7)
        return rng.lognormal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, int(threads * seconds / MEAN))
    return np.full(int(threads * seconds / float(kind)), float(kind))


def busy_share(frame: pd.DataFrame, threads: int, begin: Any, end: Any) -> float:
    """Return which share of their time the threads were in electrons, from `begin` to `end`."""
    starts, ends = (frame[name].clip(begin, end) for name in ("start", "end"))
    return float((ends - starts).sum() / ((end - begin) * threads))


def _busy(workers: int, scale: float, repeats: int, *, processes: bool) -> Iterator[Sample]:
    """Shares of steady time, at its worst of all kinds, then each, and of the whole runs."""
    with _cluster(workers, processes=processes) as atomizer:
        for _ in range(repeats):
            sample: Sample = {"value": 1.0}
            for kind in ("0.05", "0.2", "1", "mixed"):
                steady, whole, late = _run(atomizer, workers, naps(kind, workers, SECONDS * scale))
                name = f"{kind} s" if kind != "mixed" else kind
                sample["value"] = min(sample["value"], steady)
                sample |= {name: steady, f"{name}, whole run": whole}
                sample[f"{name}, first electron of the median worker, s"] = late
            yield sample


def _run(atomizer: Atomizer, workers: int, durations: np.ndarray) -> tuple[float, float, float]:
    begin = pd.Timestamp.now("UTC")
    run = atomizer.map(nap, zipped(seconds=durations)).wait(progress=False)
    end = pd.Timestamp.now("UTC")
    frame = run.to_frame(metadata=True)
    wall = end - begin
    steady = busy_share(frame, workers, *(begin + share * wall for share in STEADY))
    firsts = (frame.groupby("worker")["start"].min() - begin).dt.total_seconds()
    return steady, busy_share(frame, workers, begin, end), median(firsts)


@contextmanager
def _cluster(workers: int, *, processes: bool) -> Iterator[Atomizer]:
    with (
        dask.config.set(QUIET),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=processes,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(workers, timeout=START_SECONDS)
        with Atomizer(DaskConductor(client), nap) as atomizer:
            # What is done once in the life of a worker: it imports this package.
            atomizer.map(nap, zipped(seconds=[0.1] * (20 * workers))).wait(progress=False)
            yield atomizer
