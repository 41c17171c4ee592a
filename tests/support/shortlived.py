"""Real workers that live for a short while, and electrons that leave marks of what they did."""

import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager

from atomizer_dask import DaskConductor, atom


@atom
def marked(i, seconds, folder):
    """Sleep, and leave a mark where it begins and where it ends."""
    with open(f"{folder}/begun-{i}", "a") as file:
        file.write("x")
    time.sleep(seconds)
    with open(f"{folder}/ended-{i}", "a") as file:
        file.write("x")
    return i


def counted(folder, what):
    """Return how often each electron has begun, or ended."""
    return Counter(
        {int(path.name.partition("-")[2]): path.stat().st_size for path in folder.glob(f"{what}-*")}
    )


@contextmanager
def workers_with(folder, *options, environment=None):
    """Give a conductor to real workers with options of ``dask worker``."""
    file = folder / "scheduler.json"
    common = ["--scheduler-file", str(file)]
    scheduler = [*common, "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    worker = [*common, "--local-directory", str(folder), "--no-dashboard", *options]
    with (folder / "log").open("w") as log:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{program}", *arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )
            for program, arguments in (("scheduler", scheduler), ("worker", worker))
        ]
        try:
            yield DaskConductor(file, timeout=60)
        finally:
            for process in reversed(started):  # workers take leave of their scheduler
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:  # Dask may miss it while a worker starts
                    process.kill()
                    process.wait()
