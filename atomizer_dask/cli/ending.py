"""How a command comes to its end: done, interrupted or terminated."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import click

from atomizer_dask import config
from atomizer_dask.cli.clusters import say
from atomizer_dask.errors import AtomizerError
from atomizer_dask.runs.run import Run

LEAVE_SECONDS = 12.0  # to cancel jobs; some 30 s after SIGTERM a batch system kills this process
SOME_FAILED, INCOMPLETE = 3, 4  # exit codes: all done but with failures; not all done


@contextmanager
def errors_as_text() -> Iterator[None]:
    """Show errors of the package as click's messages; check the configuration first."""
    try:
        config.check()
        yield
    except AtomizerError as error:
        raise click.ClickException(str(error)) from error
    except ValueError as error:  # the value of an option is invalid
        raise click.UsageError(str(error)) from error


class _TerminatedError(BaseException):
    """Raised in the main thread by the handler of SIGTERM and SIGHUP."""


@contextmanager
def heeding_termination() -> Iterator[None]:
    """Exit with `INCOMPLETE` on SIGTERM or SIGHUP, as a batch system or a terminal sends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        for one in before:
            signal.signal(one, signal.SIG_IGN)  # a second signal does not interrupt the ending
        raise _TerminatedError

    # A terminal sends SIGHUP when it is closed. Under nohup it is ignored, and stays so.
    signals = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, terminate) for number in signals}
    try:
        yield
    except _TerminatedError:
        say("terminated before it was done")
        leave(INCOMPLETE)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(code: int) -> NoReturn:
    """Exit without waiting for the workers of a local cluster, which end with this process.

    Jobs of a batch system do not end with it, and are cancelled. Call this function on the main
    thread; a signal handler may call it, too.
    """
    ending = threading.Thread(target=click.get_current_context().close, daemon=True)
    ending.start()
    ending.join(LEAVE_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def wait_for(run: Run) -> None:
    """Wait for a run. A second Ctrl-C cancels the run; SIGTERM suspends it where it has a store."""
    try:
        with suppress(KeyboardInterrupt):  # `Run.wait` has cancelled the run
            run.wait()
    except _TerminatedError:
        if run.store is None:
            raise
        run.suspend()
        p = run.progress
        say(
            f"{run.id} is suspended, {p.done + p.failed:,} electrons have ended; "
            f"atomizer-dask resume {run.store} goes on"
        )
        leave(INCOMPLETE)


def exit_code(run: Run) -> int:
    """Return 0 where all is done, 3 where all is done but some failed, 4 where not all is done."""
    p = run.progress
    if run.state != "finished" or p.total is None or p.done + p.failed < p.total:
        return INCOMPLETE
    return SOME_FAILED if p.failed else 0


def show_failures(run: Run) -> None:
    """Print the most frequent failures."""
    errors = run.errors
    counts = errors.groupby(["kind", "type", "message"]).size().nlargest(5)
    for count, row in zip(counts, counts.index.to_frame().itertuples(index=False), strict=True):
        text = ": ".join(filter(None, (str(row.type), str(row.message))))
        click.echo(f"  {count:,} x {row.kind!s}: {text}", err=True)
