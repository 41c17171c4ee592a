"""Figure 14: what a store costs, and how soon one can be attached to."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atomizer_dask import Atomizer, DaskConductor, Run, atom, grid
from benchmarks.fresh import Sample
from benchmarks.memory import cluster_elsewhere, status
from benchmarks.work import increment, scaled, seconds, sweep, two_workers


@atom(vectorized=True)
def halve(x, y):
    return (x + y) / 2


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    made = Path(tempfile.mkdtemp(prefix="atomizer-benchmark-"))
    try:
        yield made
    finally:
        shutil.rmtree(made)


def overhead(scale: float, repeats: int) -> Iterator[Sample]:
    """Figure 1 with a store as a multiple of figure 1 without, by turns."""
    n = scaled(5e6, scale)
    with two_workers() as atomizer, folder() as stores:
        _stored(atomizer, n, stores / "first")
        for number in range(repeats):
            bare = min(seconds(sweep, atomizer, n) for _ in range(2))
            took = [_stored(atomizer, n, stores / f"{number}-{i}") for i in range(2)]
            stored, ended = (min(each) for each in zip(*took, strict=True))
            yield {
                "value": stored / bare,
                "electrons/s": n / stored,
                "without": n / bare,
                "until it has ended, of the time without": ended / bare,
            }


def _stored(atomizer: Atomizer, electrons: int, store: Path) -> tuple[float, float]:
    start = time.perf_counter()
    run = atomizer.map(increment, grid(x=range(electrons)), store=store).wait(progress=False)
    ended = time.perf_counter() - start
    frame = run.to_frame()
    took = time.perf_counter() - start
    if len(frame) != electrons:
        raise ValueError(f"the frame has {len(frame)} rows, not {electrons}")
    shutil.rmtree(store)
    return took, ended


def attach(scale: float, repeats: int) -> Iterator[Sample]:
    """Seconds to attach to a store of 10 million electrons of which half are done."""
    n = scaled(10e6, scale)
    sides = int(n**0.5)
    with folder() as stores, two_workers(halve) as atomizer:
        whole = stores / "run"
        atomizer.map(halve, grid(x=range(sides), y=range(sides)), store=whole).wait(progress=False)
        for _ in range(repeats):
            opened = seconds(Run.open, whole)
            start = time.perf_counter()
            run = atomizer.attach(whole)
            took = time.perf_counter() - start
            yield {
                "value": took,
                "s to open": opened,
                "million electrons": run.progress.done / 1e6,
                "files": len(list((whole / "properties").iterdir())),
            }
            run.wait(progress=False)


def memory(scale: float, repeats: int) -> Iterator[Sample]:
    """MiB by which the client grows over a run of 100 million electrons with a store."""
    n = scaled(100e6, scale, least=1_000_000)
    sides = int(n**0.5)
    whole = grid(x=range(sides), y=range(sides))
    with (
        cluster_elsewhere() as address,
        folder() as stores,
        Atomizer(DaskConductor(address), halve) as atomizer,
    ):
        atomizer.map(halve, grid(x=range(100), y=range(100))).wait(progress=False)
        for number in range(repeats):
            before = status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            start = time.perf_counter()
            atomizer.map(halve, whole, store=stores / str(number)).wait(progress=False)
            took = time.perf_counter() - start
            grown = (status("VmHWM") - before) / 2**20
            yield {"value": grown, "electrons/s": sides**2 / took}
            shutil.rmtree(stores / str(number))
