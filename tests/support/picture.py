"""Makes the pictures of the README: a run half way, as JupyterLab shows it.

make picture
"""

import tempfile
from pathlib import Path

import browsing
import serving
from playwright.sync_api import sync_playwright

FOLDER = serving.ROOT / "notebooks"
BYTES = 200_000  # at most, for a README that opens at once
SCALE = 2
WIDTH, HEIGHT = 1120, 900
CELLS = [
    """
import time
import numpy as np
from atomizer_dask import Atomizer, DaskConductor, atom, grid

@atom
def ising(temperature, size, replica, *, context):
    rng = context.rng
    time.sleep(0.0004 + 0.0006 * rng.random())
    if temperature < 1.25 and replica % 150 == 42:
        raise FloatingPointError("overflow encountered in exp")
    if replica % 90 == 17:
        context.emit(f"equilibrated after {rng.integers(400, 600)} sweeps")
    if replica % 160 == 96:
        context.emit("slow to equilibrate: critical", level="warning")
    return {"energy": -2 / temperature + rng.normal(0, 0.05), "magnetisation": rng.random()}

atomizer = Atomizer(DaskConductor(workers=4), ising)
sweep = grid(temperature=np.linspace(1, 4, 61), size=[32, 64], replica=range(500))
run = atomizer.map(ising, sweep, seed=7)
run
"""
]
HALF_WAY = """() => {
    const bar = document.querySelector(".az [role=progressbar]");
    return bar && bar.ariaValueNow > 0.58 * bar.ariaValueMax
        && document.querySelectorAll(".az .ev").length > 7;
}"""
# A few whole rows of the list of events, and no more.
TRIM = "list => { list.style.maxHeight = `${7 * list.firstChild.offsetHeight}px`; }"


def take(chromium, server, theme):
    """Write the picture of a theme, and return its path."""
    page = chromium.page(theme, WIDTH, HEIGHT, scale=SCALE)
    notebook = browsing.Notebook(page, server, CELLS, theme, "lab")
    try:
        notebook.run_all()
        page.wait_for_function(HALF_WAY)
        page.locator(".az .events").evaluate(TRIM)
        path = FOLDER / f"panel-{theme}.png"
        page.locator(".az").screenshot(path=path)
    finally:
        notebook.close()
    return path


def main():
    """Write both."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = serving.Jupyter(Path(folder) / "jupyter").start()
        chromium = browsing.Chromium(playwright)
        try:
            paths = [take(chromium, server, theme) for theme in serving.THEMES]
        finally:
            chromium.close()
            server.stop()
    for path in paths:
        if path.stat().st_size > BYTES:
            raise RuntimeError(f"{path} has {path.stat().st_size:,} bytes; at most {BYTES:,}")


if __name__ == "__main__":
    main()
