"""Others on the work of figure 1: each as a careful user would write it, on two workers.

A peer is a context manager that gives a function of (electrons, chunk): a frame, or the results.
Whoever takes chunks is given the best of `CHUNKS`. What is not installed is imported nowhere else.
"""

import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pandas as pd

from benchmarks.fresh import Sample
from benchmarks.work import (
    CHUNKS,
    WORKERS,
    best_chunk,
    frame,
    plus_one,
    scaled,
    seconds,
    sweep,
    two_processes,
    two_workers,
)

Work = Callable[[int, int], list[int]]


@contextmanager
def client_map() -> Iterator[Work]:
    from distributed import Client

    with Client(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as client:
        yield lambda n, _: client.gather(client.map(plus_one, range(n), pure=False))


@contextmanager
def loky() -> Iterator[Work]:
    from joblib import Parallel, delayed

    call = delayed(plus_one)
    with Parallel(n_jobs=WORKERS) as parallel:

        def work(n: int, chunk: int) -> list[int]:
            parallel.batch_size = chunk
            return parallel(call(x) for x in range(n))

        yield work


@contextmanager
def pool() -> Iterator[Work]:
    with two_processes() as processes:
        yield lambda n, chunk: list(processes.map(plus_one, range(n), chunksize=chunk))


@contextmanager
def ipyparallel() -> Iterator[Work]:
    import ipyparallel as ipp

    quiet = {"log_level": logging.ERROR, "profile_dir": os.path.abspath("ipython")}
    subprocess.run(
        ["ipython", "profile", "create", f"--profile-dir={quiet['profile_dir']}"], check=False
    )
    with ipp.Cluster(n=WORKERS, **quiet) as client:
        view = client.load_balanced_view()
        yield lambda n, chunk: list(view.map(plus_one, range(n), chunksize=chunk, block=True))


@contextmanager
def ray_tasks() -> Iterator[Work]:
    with _ray() as ray:
        task = ray.remote(plus_one)
        yield lambda n, _: ray.get([task.remote(x) for x in range(n)])


@contextmanager
def ray_pool() -> Iterator[Work]:
    with _ray():
        from ray.util.multiprocessing import Pool

        with Pool(WORKERS) as processes:
            yield lambda n, chunk: processes.map(plus_one, range(n), chunksize=chunk)


@contextmanager
def _ray():
    # Or it writes a token into the user's home, and reports usage to its makers.
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray

    ray.init(num_cpus=WORKERS, include_dashboard=False, logging_level=logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def parsl() -> Iterator[Work]:
    import parsl
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    executor = HighThroughputExecutor(
        address="127.0.0.1",
        max_workers_per_node=WORKERS,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    with parsl.load(parsl.Config(executors=[executor], run_dir="runinfo")):
        app = parsl.python_app(plus_one)
        yield lambda n, _: [future.result() for future in [app(x) for x in range(n)]]


@contextmanager
def ours() -> Iterator[Callable]:
    with two_workers() as atomizer:
        yield lambda n, _: sweep(atomizer, n)


@dataclass(frozen=True)
class Peer:
    """Somebody to compare with.

    Parameters
    ----------
    title, package
        How it is called, and which package it comes in; none for Python itself.
    open
        See above.
    electrons
        With which it is busy for about 10 seconds.
    chunks
        Whether it takes a chunk size.
    """

    title: str
    package: str
    open: Callable[[], AbstractContextManager[Callable]]
    electrons: float
    chunks: bool = False

    @property
    def version(self) -> str:
        """Its version; empty where it is not installed."""
        try:
            return version(self.package) if self.package else "in Python"
        except PackageNotFoundError:
            return ""


PEERS = {
    "ours": Peer("Atomizer.map", "atomizer_dask", ours, 20e6),
    "pool": Peer("ProcessPoolExecutor.map", "", pool, 20e6, chunks=True),
    "loky": Peer("joblib.Parallel (loky)", "joblib", loky, 5e6, chunks=True),
    "ipyparallel": Peer("LoadBalancedView.map", "ipyparallel", ipyparallel, 5e6, chunks=True),
    "ray-pool": Peer("ray.util.multiprocessing.Pool.map", "ray", ray_pool, 10e6, chunks=True),
    "ray-tasks": Peer("ray.remote tasks", "ray", ray_tasks, 50e3),
    "parsl": Peer("parsl HighThroughputExecutor", "parsl", parsl, 10e3),
    "client": Peer("distributed.Client.map", "distributed", client_map, 10e3),
}


def electrons_per_second(name: str, scale: float, repeats: int) -> Iterator[Sample]:
    """How many electrons a second, from a range to a frame."""
    peer = PEERS[name]
    n = scaled(peer.electrons, scale, least=1000)
    with peer.open() as work:
        work(WORKERS * CHUNKS[0] if peer.chunks else 100, CHUNKS[0])
        chunk = best_chunk(work, n) if peer.chunks else 1
        for _ in range(repeats):
            took = seconds(lambda: checked(work(n, chunk), n))
            yield {"value": n / took, "electrons": n, "chunk": chunk}


def checked(results: Any, electrons: int) -> pd.DataFrame:
    """Return the results as a frame, which must be whole and in order."""
    table = frame(results) if isinstance(results, list) else results
    if len(table) != electrons or not (table["result"] == table["x"] + 1).all():
        raise ValueError(f"{len(table)} results came for {electrons} electrons, or wrong ones")
    return table
