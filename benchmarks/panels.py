"""Figures 15 and 15b: what a live panel costs, and what it sends to the page.

The kernel is real; they take the part of the page themselves.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median, quantiles
from typing import Any

from atomizer_dask import Run, atom, grid
from atomizer_dask.widgets.panels import panel_of
from benchmarks.fresh import Sample
from benchmarks.notebook import Kernel, Traffic
from benchmarks.work import WORKERS, increment, scaled, two_workers

PAIRS = 20  # of runs with and without a panel, each of a second
CHATTY = 1000  # events a second
EVENTS = 2000  # of an electron that chats: four seconds of them
KINDS = 25  # of exceptions
RESTING = 5  # seconds, in which no update may come
SETTLING = 28  # seconds, until nobody asks any more what was done lately
OPEN = "from IPython.display import display; from benchmarks import panels; panels.open_workers()"

_opened = ExitStack()
_atomizer: Any = None
run: Any = None


@atom
def chat(electron, context):
    """Emit as often as it takes all workers to do `CHATTY` events a second."""
    pause = WORKERS * EVENTS / CHATTY
    end = time.monotonic() + pause
    for number in range(EVENTS):
        context.emit("measured", number=number, electron=electron)
        time.sleep(max(0.0, end - pause * (1 - (number + 1) / EVENTS) - time.monotonic()))
    return electron


@atom
def stumble(electron):
    """Fail in one of many ways, a long way down."""
    kind = type(f"Trouble{electron % KINDS}Error", (Exception,), {})
    return _descend(40, kind(f"electron {electron} does not converge " + 10 * "at all "))


def _descend(depth: int, error: Exception) -> None:
    if not depth:
        raise error
    _descend(depth - 1, error)


# -- in the kernel -----------------------------------------------------------------------------


def open_workers() -> None:
    """Start what the cells below work with."""
    global _atomizer
    _atomizer = _opened.enter_context(two_workers(chat, stumble))


def begin(what: str, electrons: int) -> Run:
    """Begin a run, for a cell to display."""
    global run
    atoms = {"increment": (increment, "x"), "chat": (chat, "electron")}
    function, name = atoms.get(what, (stumble, "electron"))
    run = _atomizer.map(function, grid(**{name: range(electrons)}))
    return run


def finish() -> tuple[float, float]:
    """Wait for the run, and return its seconds and those of the kernel's processor so far."""
    run.wait(progress=False)
    return run.seconds, time.process_time()


def rest() -> None:
    """Pause the run, and wait until nothing runs any more."""
    run.pause()
    while run.state != "paused" or run.progress.running:
        time.sleep(0.05)


def forget() -> None:
    """End the run, and keep nothing of it alive."""
    global run
    run.cancel()
    run.join()
    panel_of(run).close()
    run = None


# -- figures -------------------------------------------------------------------------------------


def loss(scale: float, repeats: int) -> Iterator[Sample]:
    """Percent of the rate of figure 1 that a visible panel costs, by turns with and without."""
    electrons = scaled(5e6, scale)
    with Kernel.started() as kernel:
        kernel.execute(OPEN)
        for shown in (True, False):
            _turn(kernel, electrons, shown)
        for _ in range(repeats):
            pairs = [_pair(kernel, electrons, shown_first=bool(i % 2)) for i in range(PAIRS)]
            losses = [100 * (1 - bare[0] / shown[0]) for shown, bare in pairs]
            low, _, high = quantiles(losses, n=4)
            more = median(1000 * (shown[1] - bare[1]) / shown[0] for shown, bare in pairs)
            yield {
                "value": median(losses),
                "a quarter of the pairs below": low,
                "a quarter above": high,
                "ms of the kernel's processor a second": more,
                "electrons/s without": electrons / median(bare[0] for _, bare in pairs),
            }


Turn = tuple[float, float]


def _pair(kernel: Kernel, electrons: int, *, shown_first: bool) -> tuple[Turn, Turn]:
    turns = {shown: _turn(kernel, electrons, shown) for shown in (shown_first, not shown_first)}
    return turns[True], turns[False]


def _turn(kernel: Kernel, electrons: int, shown: bool) -> Turn:
    """Return the seconds of a run and of the kernel's processor."""
    before = kernel.execute("panels.time.process_time()")
    cell = f"panels.begin('increment', {electrons})"
    kernel.execute(f"display({cell})" if shown else f"{cell};")
    if shown:
        kernel.look(tabs=["events"])
    seconds, processor = kernel.execute("panels.finish()")
    kernel.execute("panels.forget()")
    return seconds, processor - before


def traffic(scale: float, repeats: int) -> Iterator[Sample]:
    """Updates a second, and their kB, at their highest.

    Opening a panel, which sends its code once, is no update.
    """
    with Kernel.started() as kernel:
        kernel.execute(OPEN)
        for _ in range(repeats):
            fast, over = _fast(kernel, scaled(5e6, scale))
            chatty, paused = _chatty(kernel, 20 * scale)
            failing = _failing(kernel, scaled(20_000, scale))
            all_of_them = {"5 million": fast, "chatty": chatty, "failing": failing}
            yield {
                "value": max(t.most_updates() for t in all_of_them.values()),
                "kB": max(t.most_kilobytes() for t in all_of_them.values()),
                "resting": len(paused.updates) + len(over.updates),
                **{f"{name}: updates/s": t.rate() for name, t in all_of_them.items()},
                **{f"{name}: kB/s": t.kilobytes() for name, t in all_of_them.items()},
            }


def _fast(kernel: Kernel, electrons: int) -> tuple[Traffic, Traffic]:
    """Return what came of a run of scalar electrons, and what came when it was over."""
    _show(kernel, "increment", electrons)
    kernel.execute("panels.finish()[0]")
    during = kernel.traffic()
    kernel.listen(SETTLING)
    return during, _resting(kernel)


def _chatty(kernel: Kernel, seconds: float) -> tuple[Traffic, Traffic]:
    """Return what came of a run of chatty electrons, and what came while it was paused."""
    _show(kernel, "chat", 1_000_000)
    kernel.listen(seconds)
    during = kernel.traffic()
    kernel.execute("panels.rest()")
    kernel.listen(SETTLING)
    return during, _resting(kernel)


def _failing(kernel: Kernel, electrons: int) -> Traffic:
    """Return what came of a run all of whose electrons fail."""
    _show(kernel, "stumble", electrons)
    kernel.execute("panels.finish()[0]")
    during = kernel.traffic()
    kernel.execute("panels.forget()")
    return during


def _show(kernel: Kernel, what: str, electrons: int) -> None:
    kernel.traffic()
    kernel.execute(f"display(panels.begin({what!r}, {electrons}))")
    kernel.look()


def _resting(kernel: Kernel) -> Traffic:
    kernel.traffic()
    kernel.listen(RESTING)
    resting = kernel.traffic()
    kernel.execute("panels.forget()")
    return resting
