"""Figure 10: what the client's process needs on top, while a large frame comes together.

``python -m benchmarks.memory`` is the process that has the cluster in the meantime.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atomizer_dask import Atomizer, DaskConductor, atom, grid
from benchmarks.fresh import Sample
from benchmarks.work import WORKERS, scaled

LEAST = 1_000_000  # electrons, with which the frame is not lost beside the interpreter


@atom(vectorized=True)
def halve(x):
    return x / 2


def client_alone(scale: float, repeats: int) -> Iterator[Sample]:
    """Peak extra memory as a multiple of the frame's bytes, scheduler and workers elsewhere."""
    with cluster_elsewhere() as address:
        yield from _peaks(DaskConductor(address), scale, repeats)


def with_scheduler(scale: float, repeats: int) -> Iterator[Sample]:
    """The same where the scheduler lives in the client's process, as it does on a laptop."""
    yield from _peaks(DaskConductor(workers=WORKERS), scale, repeats)


def _peaks(conductor: DaskConductor, scale: float, repeats: int) -> Iterator[Sample]:
    n = scaled(50e6, scale, least=LEAST)
    with Atomizer(conductor, halve) as atomizer:
        atomizer.map(halve, grid(x=range(10_000))).wait(progress=False).to_frame()
        for _ in range(repeats):
            before = status("VmRSS")
            # Linux: sets the peak back to what is resident now.
            Path("/proc/self/clear_refs").write_text("5")
            frame = atomizer.map(halve, grid(x=range(n))).wait(progress=False).to_frame()
            extra = status("VmHWM") - before
            size = int(frame.memory_usage(index=True).sum())
            del frame
            yield {"value": extra / size, "MB": extra / 1e6, "frame's MB": size / 1e6}


def status(name: str, process: int | str = "self") -> int:
    """Return a figure of a process in bytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


@contextmanager
def cluster_elsewhere() -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.memory"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()  # which is what it waits for


def main() -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
