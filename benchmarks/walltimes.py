"""Figure 17: what wall times cost, with workers that live for 20 seconds, give or take four.

Every execution leaves marks, where it begins and where it ends, in files of the test's own.
"""

import random
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from atomizer_dask import Atomizer
from benchmarks.fresh import ROOT, Sample
from benchmarks.work import scaled, seconds

sys.path.append(str(ROOT / "tests" / "support"))

LIFETIME = "--lifetime 20s --lifetime-stagger 4s --lifetime-restart"
WORKERS, THREADS = 2, 2
RUN_SECONDS = 600


def twice(scale: float, repeats: int) -> Iterator[Sample]:
    """Electrons of 0.1 to 6 s that were executed more than once, or begun and cut short."""
    from shortlived import counted, marked, workers_with

    count = scaled(80, scale, least=20)
    options = f"--nworkers {WORKERS} --nthreads {THREADS} {LIFETIME}".split()
    for repeat in range(repeats):
        durations = [random.Random(f"{repeat}-{i}").uniform(0.1, 6) for i in range(count)]
        with tempfile.TemporaryDirectory() as folder:
            (marks := Path(folder) / "marks").mkdir()
            with workers_with(Path(folder), *options) as conductor, Atomizer(conductor) as atomizer:
                sweep = {"i": range(count), "seconds": durations, "folder": [str(marks)] * count}
                run = atomizer.map(marked, sweep)
                took = seconds(partial(run.wait, RUN_SECONDS, progress=False))
                assert run.to_frame()["result"].tolist() == list(range(count))
            begun, ended = counted(marks, "begun"), counted(marks, "ended")
            assert set(ended) == set(range(count))
            yield {
                "value": sum(ended.values()) - count,
                "cut": sum(begun.values()) - sum(ended.values()),
                "busy": sum(durations) / (WORKERS * THREADS * took),
            }
