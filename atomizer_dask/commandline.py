"""What the commands share: a conductor, an atom by its name, and how a run comes to its end."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from atomizer_dask import config
from atomizer_dask.atoms.definition import Definition, as_definition
from atomizer_dask.conductors.amqp.address import PASSWORD_VARIABLE, URL_VARIABLE, USER_VARIABLE
from atomizer_dask.errors import AtomizerError
from atomizer_dask.placing import say
from atomizer_dask.policy import MOST_PRIORITY
from atomizer_dask.runs.run import Run

_Command = TypeVar("_Command", bound=Callable[..., Any])

LEAVE_SECONDS = 12.0  # for a batch system to take orders; it kills us after some 30
FAILED, INCOMPLETE = 3, 4  # exit codes: all done but with failures; not all done


def broker_options(command: Any) -> Any:
    """Give a command the options that say which queue of which broker; see `BrokerCommand`."""
    for option in (
        click.option(
            "--ca",
            type=click.Path(exists=True, dir_okay=False),
            help="With amqps: certificates to trust, in place of those of this machine.",
        ),
        click.option("--queue", help="The work queue; atomizer unless configured."),
        click.option(
            "--amqp",
            metavar="URL",
            help=f"The broker, amqp://user:password@host:5672/vhost or amqps://...; by default "
            f"that of {URL_VARIABLE}. User and password may be in {USER_VARIABLE} and "
            f"{PASSWORD_VARIABLE} instead, where other users of the machine do not see them.",
        ),
    ):
        command = option(command)
    return command


def priority_option(otherwise: str) -> Callable[[_Command], _Command]:
    """Give a command the option that says before whom a run goes."""
    return click.option(
        "--priority",
        type=click.IntRange(-MOST_PRIORITY, MOST_PRIORITY),
        help=f"Before all runs of a lower one on the same scheduler; {otherwise} unless given.",
    )


class BrokerCommand(click.Command):
    """A command that does not repeat credentials where a URL is in the wrong place."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Read the arguments."""
        with _credentials_hidden():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Do what the command does."""
        with _credentials_hidden():
            return super().invoke(ctx)


@contextmanager
def _credentials_hidden() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        shown = re.sub(r"://\S*@", "://***@", error.message)
        error.message = shown  # type: ignore[misc, unused-ignore] # of any class of errors
        raise


def load_atom(target: str) -> Definition:
    """Return the atom that is named as ``MODULE:ATOM``."""
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise click.UsageError(
            f"expected MODULE:ATOM, as in examples/ising.py:ising, got {target!r}"
        )
    module = _import(place)
    value = getattr(module, name, None)
    definition = None if value is None else as_definition(value)
    if definition is None:
        nearest = get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        what = "nothing" if value is None else f"no atom but {type(value).__name__}"
        raise click.UsageError(f"{place} has {what} of the name {name!r}{hint}")
    return definition


def _import(place: str) -> Any:
    if not place.endswith(".py"):
        sys.path.insert(0, "")
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise click.UsageError(f"cannot import {place!r}: {error}") from error
    path = Path(place)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        raise click.UsageError(f"there is no file {place}")
    module = importlib.util.module_from_spec(spec)
    # Registered, so that the atom's code is known to be the user's own and travels by value.
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module


@contextmanager
def errors_as_text() -> Iterator[None]:
    """Show our errors as people want to read them, those of the configuration first of all."""
    try:
        config.check()
        yield
    except AtomizerError as error:
        raise click.ClickException(str(error).removeprefix("atomizer error ")) from error
    except ValueError as error:  # an option that makes no sense
        raise click.UsageError(str(error)) from error


class _TerminatedError(BaseException):
    """Raised in the main thread where the process shall end."""


@contextmanager
def heeding_termination() -> Iterator[None]:
    """Exit as with what is not all done where the process is told to end, as batch systems do."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        for one in before:
            signal.signal(one, signal.SIG_IGN)  # once is enough
        raise _TerminatedError

    # A terminal that is closed hangs up; nohup would have that ignored.
    told = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, terminate) for number in told}
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

    Jobs of a batch system do not, and are cancelled. To be called on the main thread, also by what
    handles a signal there, and so whatever it was about.
    """
    ending = threading.Thread(target=click.get_current_context().close, daemon=True)
    ending.start()
    ending.join(LEAVE_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def wait_for(run: Run) -> None:
    """Wait for a run; interrupted twice it is cancelled, terminated it is suspended."""
    try:
        with suppress(KeyboardInterrupt):  # by now it is cancelled
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
    return FAILED if p.failed else 0


def show_failures(run: Run) -> None:
    """Print the most frequent failures."""
    errors = run.errors
    counts = errors.groupby(["kind", "type", "message"]).size().nlargest(5)
    for count, row in zip(counts, counts.index.to_frame().itertuples(index=False), strict=True):
        text = ": ".join(filter(None, (str(row.type), str(row.message))))
        click.echo(f"  {count:,} x {row.kind!s}: {text}", err=True)
