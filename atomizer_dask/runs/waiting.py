"""Waiting for a run in a terminal or a notebook: a progress bar, and what Ctrl-C does."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, NoReturn, Protocol

from atomizer_dask.events import log_problem
from atomizer_dask.interruptible import noticing_signals
from atomizer_dask.runs.progress import Progress
from atomizer_dask.sweeps.sweep import Sweep

UPDATE_SECONDS = 0.1
TWICE_SECONDS = 1.0  # after a first interrupt in a notebook, within which a second one cancels
CANCEL_SECONDS = 3.0  # for a cancelled run to end


class Waitable(Protocol):
    """The interface of a run that can be waited for."""

    @property
    def id(self) -> str:
        """Id of the run, for messages."""

    @property
    def atom_id(self) -> str:
        """Id of its atom."""

    @property
    def sweep(self) -> Sweep:
        """Its inputs."""

    @property
    def state(self) -> str:
        """State of the run: running, paused, ..."""

    @property
    def progress(self) -> Progress:
        """How far it is."""

    @property
    def conductor(self) -> Any:
        """The conductor that carries its electrons; None where this process does not drive it."""

    def join(self, timeout: float | None = None) -> bool:
        """Wait, at most `timeout` seconds, and return whether it has ended."""

    def pause(self) -> None:
        """Begin no more electrons."""

    def resume(self) -> None:
        """Go on."""

    def cancel(self) -> None:
        """End it; what has ended by then is kept."""


@contextmanager
def heard() -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt, also where dask-jobqueue has been imported.

    dask-jobqueue installs a handler that exits the process, so that Ctrl-C could not pause a run.
    """
    handler = None
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGINT)
    if getattr(handler, "__module__", "") != "dask_jobqueue.runner":
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def wait_showing(run: Waitable, until: float | None, show: Any, control: Any) -> bool:
    """Wait for a run, showing how far it is, and return whether it has ended.

    Parameters
    ----------
    until
        When to give up, as `monotonic` counts; None for never.
    show
        Whether to show a bar; or a function to call with each `Progress`.
    control
        Control of the run. Where `show` raises, the host of a run driven here gets the error; for
        another run it is logged.
    """
    if not show:
        return run.join(None if until is None else max(0.0, until - monotonic()))
    if not callable(show):
        with bar(run) as update:
            return watch(run, until, update)

    def call(progress: Progress) -> None:
        try:
            show(progress)
        except Exception as error:  # noqa: BLE001 - the user's function; it must not stop the run
            report = control.driven().host.report_problem if control.is_driven else log_problem
            report("a progress callback raised", error)

    return watch(run, until, call)


def why_not_ended(run: Waitable, timeout: float | None) -> str:
    """Return the message of the TimeoutError for a run that has not ended in time."""
    p = run.progress
    obstacle = "" if run.conductor is None else run.conductor.obstacle
    return (
        f"{run.id} has not ended within {timeout} s: {p.done + p.failed:,} of "
        f"{'?' if p.total is None else f'{p.total:,}'} electrons have; "
        f"{'it is paused' if run.state == 'paused' else p.standstill or 'it goes on'}"
        f"{obstacle and f', but {obstacle}'}"
    )


def watch(run: Waitable, until: float | None, update: Callable[[Progress], object]) -> bool:
    """Wait for a run, calling `update` with how far it is; return whether it has ended."""
    while True:
        left = UPDATE_SECONDS if until is None else min(UPDATE_SECONDS, until - monotonic())
        ended = run.join(max(0.0, left))
        update(run.progress)
        if ended or (until is not None and monotonic() >= until):
            return ended


@contextmanager
def bar(run: Waitable) -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar on stderr; yields the function that updates it."""
    import click

    label = run.atom_id.rpartition(".")[2]
    length = run.sweep.length
    with click.progressbar(
        length=length or 1, label=label, file=sys.stderr, item_show_func=str
    ) as shown:
        shown.current_item = ""

        def update(progress: Progress) -> None:
            if progress.standstill != shown.current_item:
                shown.current_item = progress.standstill
                shown.show_eta = not progress.standstill
                shown.render_progress()
            shown.update(progress.done + progress.failed - shown.pos if length else 0)

        yield update


def interrupt(run: Waitable) -> None:
    """Pause a run that a user interrupts; cancel it where it is not running.

    Returns where the caller shall go on waiting.

    Raises
    ------
    KeyboardInterrupt
        Where the caller shall not: the run is cancelled, or stays paused in a notebook.
    """
    if run.state != "running":
        _cancel(run)
    try:
        run.pause()
        p = run.progress
        total = "?" if p.total is None else f"{p.total:,}"
        _say(f"{run.id} is paused: {p.done + p.failed:,} of {total} electrons have ended.")
        leave = _ask(run)
    except KeyboardInterrupt:
        _cancel(run)
    if leave:
        raise KeyboardInterrupt(f"{run.id} is paused; run.resume() goes on") from None


def _ask(run: Waitable) -> bool:
    """Print how to go on, and return whether the run stays paused and the caller stops waiting."""
    if _in_ipython():
        _say("run.resume() goes on, run.cancel() ends it. Interrupt again to cancel now.")
        run.join(TWICE_SECONDS)
        return True
    if sys.stdin is not None and sys.stdin.isatty():
        _say("Enter goes on, Ctrl-C again cancels.")
        with noticing_signals():
            sys.stdin.readline()
        run.resume()
    else:
        _say("run.resume(), from another thread, goes on; Ctrl-C again cancels.")
    return False


def _cancel(run: Waitable) -> NoReturn:
    run.cancel()
    run.join(CANCEL_SECONDS)
    _say(f"{run.id} is cancelled; what had ended is kept.")
    raise KeyboardInterrupt(f"{run.id} was cancelled")


def _say(text: str) -> None:
    print(f"\n{text}", file=sys.stderr, flush=True)  # noqa: T201 - an answer to who is waiting


def _in_ipython() -> bool:
    ipython: Any = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None
