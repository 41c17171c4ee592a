"""Figures 25 to 28: large constants and large results, beside what one would do by hand."""

import gc
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from atomizer_dask import Atomizer, DaskConductor, atom, grid
from benchmarks.fresh import Sample
from benchmarks.memory import status
from benchmarks.storing import folder
from benchmarks.work import WORKERS, scaled

MB = 1_000_000


@atom
def looked_up(i, table):
    time.sleep(0.001)
    return float(table[i])


@atom
def filled(i, count):
    # Not all the same: Parquet would write one number, and what a store costs would not show.
    return {"array": np.arange(i, i + count, dtype=float), "mean": float(i)}


def _looked_up(i, table):
    return looked_up(i, table)


def _filled(i, count):
    return filled(i, count)


def constant(scale: float, repeats: int) -> Iterator[Sample]:
    """240 MB, 200 electrons of 1 ms, to the frame: x scatter and map; and the run after it."""
    for _ in range(repeats):
        table = np.random.default_rng().random(scaled(30e6, scale))
        with Atomizer(DaskConductor(workers=WORKERS), looked_up) as atomizer:
            client = (
                atomizer.map(looked_up, grid(i=[0]), fixed={"table": table[:1]})
                .wait(progress=False)
                .conductor.client
            )
            took, sent = _timed(_by_hand, client, table)
            ours, ours_sent = _timed(_constant, atomizer, table)
            again, _ = _timed(_constant, atomizer, table)
        yield {
            "value": ours / took,
            "of the bytes sent": ours_sent / table.nbytes,
            "by hand, of the bytes": sent / table.nbytes,
            "s": ours,
            "s again": again,
        }


def _constant(atomizer: Atomizer, table: np.ndarray) -> None:
    run = atomizer.map(looked_up, grid(i=range(200)), fixed={"table": table})
    if run.wait(progress=False).to_frame()["result"].sum() != table[:200].sum():
        raise ValueError("the frame is wrong")


def _by_hand(client: Any, table: np.ndarray) -> None:
    scattered = client.scatter(table, broadcast=True)
    client.gather(client.map(_looked_up, range(200), table=scattered, pure=False))


def _timed(function: Any, *arguments: Any) -> tuple[float, float]:
    """Return the seconds that a call takes, and the bytes that leave by the loopback meanwhile."""
    sent = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
    start = time.perf_counter()
    function(*arguments)
    took = time.perf_counter() - start
    return took, psutil.net_io_counters(pernic=True)["lo"].bytes_sent - sent


def closure(scale: float, repeats: int) -> Iterator[Sample]:
    """An atom that closes over 800 MB, until its first electron has ended: x scatter."""
    table = np.random.default_rng().random(scaled(100e6, scale))

    @atom(id="benchmark.closure")
    def first(i):
        return float(table[i])

    for _ in range(repeats):
        table[0] += 1
        with Atomizer(DaskConductor(workers=WORKERS), looked_up) as atomizer:
            run = atomizer.map(looked_up, grid(i=[0]), fixed={"table": table[:1]})
            client = run.wait(progress=False).conductor.client
            start = time.perf_counter()
            scattered = client.scatter(table, broadcast=True)
            client.submit(_looked_up, 0, scattered, pure=False).result()
            by_hand = time.perf_counter() - start
            del scattered
            gc.collect()
            before = _reset_peak()
            start = time.perf_counter()
            run = atomizer.map(first, grid(i=range(2)))
            mapped = time.perf_counter() - start
            run.wait(progress=False)
            took = time.perf_counter() - start
            peak = status("VmHWM") - before + table.nbytes
        yield {
            "value": took / by_hand,
            "x the array, client's peak": peak / table.nbytes,
            "s": took,
            "s until map returns": mapped,
            "by hand, s": by_hand,
        }


def _reset_peak() -> int:
    # Linux: sets the peak back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def written(scale: float, repeats: int) -> Iterator[Sample]:
    """40 results of 50 MB with a store on local disk: x two processes that write Parquet."""
    count = scaled(6.25e6, scale)
    nbytes = 40 * 8 * count
    for _ in range(repeats):
        with folder() as stores:
            start = time.perf_counter()
            with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
                pool.starmap(_write, [(0, 1, stores)] * WORKERS)
                start = time.perf_counter()
                pool.starmap(_write, [(i, count, stores) for i in range(40)], chunksize=1)
                by_hand = time.perf_counter() - start
            for path in stores.iterdir():
                path.unlink()  # or the disk would still write them while the next are measured
            with Atomizer(DaskConductor(workers=WORKERS), filled) as atomizer:
                small = grid(i=range(4), count=[10])
                atomizer.map(filled, small, store=stores / "small").wait(progress=False)
                before = _reset_peak()
                start = time.perf_counter()
                sweep = grid(i=range(40), count=[count])
                run = atomizer.map(filled, sweep, store=stores / "large").wait(progress=False)
                took = time.perf_counter() - start
                grown = status("VmHWM") - before
                before = _reset_peak()
                start = time.perf_counter()
                frame = run.to_frame(filters=[("i", "==", 3)])
                filtered = time.perf_counter() - start
                if frame["array"][3][0] != 3.0:
                    raise ValueError("the frame is wrong")
                filter_grown = status("VmHWM") - before
        yield {
            "value": by_hand / took,
            "MB/s": nbytes / took / MB,
            "MB that the client grew": grown / MB,
            "s of a filter for one row": filtered,
            "MB of it": filter_grown / MB,
        }


def _write(i: int, count: int, stores: Path) -> None:
    result = filled(i, count)
    array = pa.FixedSizeListArray.from_arrays(pa.array(result["array"]), count)
    table = pa.table({"i": [i], "array": array, "mean": [result["mean"]]})
    path = stores / f"by-hand-{i}.parquet"
    pq.write_table(table, path, compression="none", use_dictionary=False)  # a fifth of the time


def gathered(scale: float, repeats: int) -> Iterator[Sample]:
    """1,000 results of 8 MB without a store, to the frame: x client.gather of the same."""
    electrons, count = scaled(1000, scale), MB
    for _ in range(repeats):
        with Atomizer(DaskConductor(workers=WORKERS), filled) as atomizer:
            small = atomizer.map(filled, grid(i=range(4), count=[10])).wait(progress=False)
            client = small.conductor.client
            start = time.perf_counter()
            results = client.gather(client.map(_filled, range(electrons), count=count, pure=False))
            by_hand = time.perf_counter() - start
            del results
            gc.collect()
            before = _reset_peak()
            start = time.perf_counter()
            sweep = grid(i=range(electrons), count=[count])
            frame = atomizer.map(filled, sweep).wait(progress=False).to_frame()
            took = time.perf_counter() - start
            peak = status("VmHWM") - before
            if frame["array"].iloc[-1][0] != electrons - 1:
                raise ValueError("the frame is wrong")
            del frame
        yield {
            "value": took / by_hand,
            "x the bytes, client's peak": peak / (8 * count * electrons),
            "s": took,
            "by hand, s": by_hand,
        }
