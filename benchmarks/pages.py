"""Figure 15c: what a live panel keeps, in the kernel and in JupyterLab in Chromium.

The server and the browser are those of the tests.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.fresh import ROOT, Sample
from benchmarks.memory import status

sys.path.append(str(ROOT / "tests" / "support"))

MINUTES = 10
SETTLED = 2  # minutes until all that is bounded is full
CELLS = [
    "import os; from benchmarks import panels; panels.open_workers(); print('pid', os.getpid())",
    "panels.begin('chat', 1_000_000)",
]


@contextmanager
def _lab() -> Iterator[Any]:
    """JupyterLab and a browser: a function that opens a notebook there."""
    import browsing
    import serving
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, sync_playwright() as library:
        browser = browsing.Chromium(library)
        server = serving.Jupyter(Path(folder)).start()
        try:
            yield lambda cells: browsing.Notebook(
                browser.page("light", 1200, 1000), server, cells, "light", "lab"
            )
        finally:
            server.stop()
            browser.close()


def memory(scale: float, repeats: int) -> Iterator[Sample]:
    """MiB by which page and kernel grow while a chatty atom runs for ten minutes."""
    minute = 60 * scale
    for _ in range(repeats):
        with _lab() as open_notebook:
            notebook = open_notebook(CELLS)
            notebook.run_cell(0)
            kernel = int(notebook.output(0).inner_text().split()[-1])
            notebook.run_cell(1)
            notebook.page.locator(".az .ev").nth(100).wait_for()
            page = _Heap(notebook.page)
            seen = [_seen(kernel, page)]
            began = time.monotonic()
            for number in range(1, MINUTES + 1):
                notebook.page.wait_for_timeout(
                    1000 * max(0.0, began + number * minute - time.monotonic())
                )
                seen.append(_seen(kernel, page))
            yield _grown(seen)


def _seen(kernel: int, page: "_Heap") -> dict[str, float]:
    return {"kernel": status("VmRSS", kernel) / 2**20, **page.read()}


def _grown(seen: list[dict[str, float]]) -> Sample:
    """Return by how much each has grown since it settled, and what it came to."""
    last, settled = seen[-1], seen[SETTLED]
    return {
        "value": last["page"] - settled["page"],
        "kernel": last["kernel"] - settled["kernel"],
        "nodes": last["nodes"] - settled["nodes"],
        **{
            f"{name}, MiB, min {i}": m[name]
            for name in ("page", "kernel")
            for i, m in enumerate(seen)
        },
    }


class _Heap:
    """What the scripts of a page keep, once what they do not is collected."""

    def __init__(self, page: Any) -> None:
        self._session = page.context.new_cdp_session(page)
        self._session.send("Performance.enable")

    def read(self) -> dict[str, float]:
        self._session.send("HeapProfiler.collectGarbage")
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        found = {metric["name"]: metric["value"] for metric in metrics}
        return {"page": found["JSHeapUsedSize"] / 2**20, "nodes": found["Nodes"]}
