"""Figure 11: what an import costs, to everyone who starts a worker or a kernel."""

import subprocess
import sys
from collections.abc import Iterator

from benchmarks.fresh import Sample

SCRIPT = """
import sys, time
start = time.perf_counter()
import {module}
print(time.perf_counter() - start, "ipywidgets" in sys.modules)
"""


def imports(scale: float, repeats: int) -> Iterator[Sample]:
    """Seconds that ``import atomizer_dask`` takes beyond ``import distributed``."""
    for module in ("distributed", "atomizer_dask"):
        _import(module)  # whoever is first reads from the disk
    for _ in range(repeats):
        distributed, _ = _import("distributed")
        atomizer, ipywidgets = _import("atomizer_dask")
        yield {
            "value": atomizer - distributed,
            "seconds": atomizer,
            "distributed's": distributed,
            "ipywidgets": ipywidgets,
        }


def _import(module: str) -> tuple[float, bool]:
    command = [sys.executable, "-c", SCRIPT.format(module=module)]
    took, loaded = subprocess.check_output(command, text=True).split()
    return float(took), loaded == "True"
