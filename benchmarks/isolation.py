"""Figure 13: what it costs to execute electrons in a child process, and to lose a process."""

import os
import time
from collections.abc import Iterator

from atomizer_dask import Atomizer, DaskConductor, atom, grid, zipped
from atomizer_dask.runs.run import Run
from benchmarks.fresh import Sample
from benchmarks.work import WORKERS, increment, scaled, seconds, sweep, two_workers

WARM_UP = 100_000  # electrons
TIMEOUT = 1.0  # seconds


@atom(isolation="process")
def isolated(x):
    return x + 1


@atom
def sleep(x):
    time.sleep(x)
    return x


@atom
def die(x, fatal):
    if fatal:
        os._exit(1)
    return x + 1


def one_child(scale: float, repeats: int) -> Iterator[Sample]:
    """Electrons/s through one child process, and the microseconds that it adds to each."""
    n = scaled(1e6, scale)
    with Atomizer(DaskConductor(workers=1), increment, isolated) as atomizer:
        _sweep_isolated(atomizer, WARM_UP)
        sweep(atomizer, WARM_UP)
        for _ in range(repeats):
            inside = seconds(_sweep_isolated, atomizer, n) / n
            bare = seconds(sweep, atomizer, n) / n
            added = (inside - bare) * 1e6
            yield {"value": 1 / inside, "added": added, "electrons/s without": 1 / bare}


def _sweep_isolated(atomizer: Atomizer, electrons: int) -> None:
    atomizer.map(isolated, grid(x=range(electrons))).wait(progress=False).to_frame()


def timeout(scale: float, repeats: int) -> Iterator[Sample]:
    """Seconds from the deadline of an electron in ``time.sleep`` until its timeout is reported."""
    with two_workers(sleep) as atomizer:
        atomizer.map(sleep, {"x": [0] * WORKERS}, timeout=TIMEOUT).wait(progress=False)
        for _ in range(repeats):
            sent = time.perf_counter()
            run = atomizer.map(sleep, {"x": [3600]}, timeout=TIMEOUT)
            (properties,) = run
            reported, passed = time.time(), time.perf_counter() - sent
            _check(run, {0: "timeout"})
            yield {
                "value": reported - properties.start.timestamp() - TIMEOUT,
                "s from map to the report": passed,
            }


def death(scale: float, repeats: int) -> Iterator[Sample]:
    """Seconds until 2,000 electrons and one that ends its worker's process have all ended."""
    good = scaled(2000, scale)
    conductor = DaskConductor(workers=WORKERS)
    with Atomizer(conductor, increment, die) as atomizer:
        for _ in range(repeats):
            conductor.client.wait_for_workers(WORKERS)
            sweep(atomizer, WARM_UP)
            alive, run = _timed(atomizer, good, fatal=None)
            _check(run, {})
            took, run = _timed(atomizer, good, fatal=good // 2)
            _check(run, {good // 2: "killed"})
            yield {"value": took, "s without it": alive}


def _timed(atomizer: Atomizer, good: int, fatal: int | None) -> tuple[float, Run]:
    inputs = zipped(x=range(good + 1), fatal=[x == fatal for x in range(good + 1)])
    start = time.perf_counter()
    run = atomizer.map(die, inputs).wait(progress=False)
    return time.perf_counter() - start, run


def _check(run: Run, kinds: dict[int, str]) -> None:
    if (found := run.errors["kind"].to_dict()) != kinds:
        raise ValueError(f"the failures came out as {found}, not as {kinds}")
