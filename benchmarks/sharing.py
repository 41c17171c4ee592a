"""Figure 18: a small run beside a long one, each of a client of its own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter, sleep

from distributed import LocalCluster

from atomizer_dask import Atomizer, DaskConductor, Run, atom, grid
from benchmarks.fresh import ROOT, Sample

LONG, SMALL = 10**6, 100  # electrons of 10 ms
THREADS = 2
SETTLED = 500  # electrons, after which the long run knows how fast it is


@atom(id="benchmarks.nap")
def nap(x):
    sleep(0.01)
    return x


def fairness(scale: float, repeats: int) -> Iterator[Sample]:
    """Seconds to the first result of the small run, and beside it to its end."""
    with (
        LocalCluster(n_workers=THREADS, threads_per_worker=1, dashboard_address=None) as cluster,
        _long_run(cluster.scheduler_address),
        Atomizer(DaskConductor(cluster.scheduler_address), nap) as atomizer,
    ):
        atomizer.send(nap, {"x": 0}).result()
        for _ in range(repeats):
            start = perf_counter()
            run = atomizer.map(nap, grid(x=range(SMALL)))
            next(iter(run))
            first = perf_counter() - start
            run.wait(progress=False)
            yield {"value": first, "end": perf_counter() - start}


@contextmanager
def _long_run(address: str) -> Iterator[None]:
    """Have another client run a long one, until it is no longer needed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.sharing", address],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    if not process.stdout.readline():
        raise RuntimeError(f"the long run did not begin: exit code {process.wait()}")
    try:
        yield
    finally:
        process.stdin.close()
        process.wait()


def main(address: str) -> None:
    with Atomizer(DaskConductor(address), nap) as atomizer:
        run = atomizer.map(nap, grid(x=range(LONG)))
        _wait_settled(run)
        print(run.id, flush=True)
        sys.stdin.read()
        run.cancel()


def _wait_settled(run: Run) -> None:
    while run.progress.done < SETTLED:
        run.join(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])
