"""The command ``console``: asks for tosses and says pi, as the test console in Go does."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from queue import Empty, SimpleQueue
from threading import TIMEOUT_MAX
from time import monotonic

import click

from atomizer_dask.cli.ending import SOME_FAILED, errors_as_text, heeding_termination
from atomizer_dask.cli.options import BrokerCommand, broker_options
from atomizer_dask.conductors.amqp.conductor import AmqpConductor
from atomizer_dask.display.text import one_line
from atomizer_dask.electron import Electron
from atomizer_dask.errors import AtomizerError, ElectronError
from atomizer_dask.events import Event
from atomizer_dask.interruptible import noticing_signals
from atomizer_dask.montecarlopi import MonteCarlo
from atomizer_dask.policy import seconds_of
from atomizer_dask.properties import Properties

PROMPT, ANSWER, INVALID = "Enter Tosses: ", "Pi Estimation: ", "Invalid number"
MOST_TOSSES = 2**63 - 1  # that a Go program can count

_LONGEST = 400  # letters of what a peer says
_NUMBER = re.compile(r"\+?(\d+|\d{1,3}([,_]\d{3})+|\d+(\.\d+)?[eE]\+?\d{1,3})", re.ASCII)
_EXPECTED = "write a whole number of at least 1, such as 1000, 1,000 or 1e6"


def tosses_of(text: str) -> int:
    """Return the number of tosses that a line asks for.

    A decimal point is accepted only before an exponent, since in some countries 1.000 is a
    thousand. A ValueError for any other text says what to write.

    >>> tosses_of("1,000"), tosses_of("1_000_000"), tosses_of("2.5e6")
    (1000, 1000000, 2500000)
    """
    if not _NUMBER.fullmatch(text):
        raise ValueError(_EXPECTED)
    number = Decimal(text.replace(",", "").replace("_", ""))
    if number > MOST_TOSSES:
        raise ValueError(f"it is more than {MOST_TOSSES:,}, the most that peers can count")
    if number < 1 or number != number.to_integral_value():
        raise ValueError(_EXPECTED)
    return int(number)


class _News:
    """The listener of the conductor: it queues events and errors in `texts`, and has no atoms."""

    threads = 0

    def __init__(self) -> None:
        self.texts: SimpleQueue[str] = SimpleQueue()
        self._last: Event | None = None

    def note_waiting(self, electron_id: str) -> None: ...

    def find(self, atom_id: str) -> None: ...

    def emit(self, event: Event) -> None:
        self._last = event
        self.texts.put(event.message)

    def report(self, error: AtomizerError) -> None:
        if error.event is not self._last:  # else `emit` has queued it already
            self.texts.put(str(error))


@dataclass
class Conversation:
    """Asks for tosses and prints estimates: stdout as in the Go console, all else to stderr.

    Parameters
    ----------
    conductor
        Sends the electrons.
    timeout
        Seconds to wait for each answer.
    quiet
        Whether stdout gets bare estimates and nothing else.
    interactive
        Whether Ctrl-C only ends the wait for one answer, rather than the conversation.
    read
        Returns the next line, given the prompt.
    """

    conductor: AmqpConductor
    timeout: float
    quiet: bool = False
    interactive: bool = False
    read: Callable[[str], str] = input
    failures: int = 0  # lines that have not led to an estimate
    _news: _News = field(default_factory=_News)

    def __post_init__(self) -> None:
        self.conductor.attach(self._news)

    def hold(self) -> None:
        """Read lines and answer them until the input ends, or the user interrupts it."""
        try:
            with noticing_signals():
                while True:
                    text = self.read("" if self.quiet else PROMPT)
                    self.failures += 1  # counts as failed until answered, also when interrupted
                    self.failures -= self._answer(text.strip())
        except (EOFError, KeyboardInterrupt):
            if self.interactive or not self.quiet:
                click.echo(err=self.quiet)

    def _answer(self, text: str) -> bool:
        """Answer a line; return whether there is an estimate."""
        try:
            tosses = tosses_of(text)
        except ValueError as error:
            click.echo(f"{INVALID} [{one_line(text)}]: {error}", err=self.quiet)
            return False
        try:
            return self._show(self._ask(tosses))
        except Empty:
            click.echo(self._unanswered(), err=True)
        except KeyboardInterrupt:
            if not self.interactive:  # end the conversation: a pipe may have many more lines
                raise
            click.echo("\nStopped waiting; an answer that still comes is not shown.", err=True)
        return False

    def _ask(self, tosses: int) -> Properties:
        """Return the answer to an electron, and print events meanwhile; raise Empty on timeout."""
        news = self._news.texts
        until = monotonic() + self.timeout
        future = self.conductor.send(Electron(MonteCarlo.id, {"tosses": tosses}))
        future.add_done_callback(lambda _: news.put(""))  # wakes the loop below
        try:
            while not (future.done() and news.empty()):
                text = news.get(timeout=min(max(until - monotonic(), 0), TIMEOUT_MAX))
                if text:
                    click.echo(one_line(text, _LONGEST), err=True)
            return future.result()
        finally:
            future.cancel()  # an electron that is still queued here is not sent any more

    def _unanswered(self) -> str:
        status = self.conductor.status()
        why = (
            f"does a node that has {MonteCarlo.id} serve the queue {status.queue!r} at "
            f"{status.address}? --timeout waits longer."
        )
        if status.state != "connected":
            why = f"the broker at {status.address} is away."
        elif status.blocked:
            why = f"the broker at {status.address} takes nothing: {status.blocked}."
        return f"No answer within {self.timeout:g} s: {why} One that still comes is not shown."

    def _show(self, properties: Properties) -> bool:
        """Print an answer; return whether it is an estimate."""
        error, result = properties.error, properties.result
        pi = result.get("pi") if isinstance(result, dict) else None
        if error is not None:
            kind = error.kind if isinstance(error, ElectronError) else "failed"
            click.echo(f"No estimate ({kind}): {one_line(error.event.message, _LONGEST)}", err=True)
        elif isinstance(pi, bool) or not isinstance(pi, int | float):
            click.echo(f"No estimate: the answer is {one_line(result, _LONGEST)}", err=True)
        else:
            if failed := result.get("errors"):
                click.echo(f"{one_line(failed)} tosses failed, and do not count.", err=True)
            shown = repr(pi).removesuffix(".0")  # as Go does
            click.echo(shown if self.quiet else f"{ANSWER}{shown}")
            return True
        return False


@click.command(cls=BrokerCommand)
@broker_options
@click.option("--timeout", default="30s", show_default=True, help="To wait for each answer.")
@click.option("--quiet", is_flag=True, help="Print bare estimates, one a line, and no prompt.")
def console(amqp: str | None, queue: str | None, ca: str | None, timeout: str, quiet: bool) -> None:
    """Ask the nodes on a queue for estimates of pi.

    Each line of input is a number of tosses. Ctrl-C stops waiting for an answer; at the prompt it
    ends the console, as Ctrl-D does.

    \b
    Exit codes: 0 on a terminal, or where all lines were answered; 3 where some were not;
    1 where the broker cannot be reached.
    """  # noqa: D301 - click wants it
    if sys.stdin is None or sys.stdout is None:  # as under some service managers
        raise click.UsageError(
            "it reads from stdin and writes to stdout, and one of them is closed"
        )
    interactive = sys.stdin.isatty()
    if interactive and sys.stdout.isatty():
        with suppress(ImportError):  # there is none on Windows, whose terminal edits lines itself
            import readline  # noqa: F401 - from now on `input` has line editing and a history
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a line that cannot be decoded is no number
    with heeding_termination(), errors_as_text():
        seconds = seconds_of(timeout, "--timeout") or 0.0
        with AmqpConductor(amqp, queue, ca_file=ca, serve=False) as conductor:
            talk = Conversation(conductor, seconds, quiet=quiet, interactive=interactive)
            talk.hold()
    if talk.failures and not interactive:
        raise SystemExit(SOME_FAILED)
