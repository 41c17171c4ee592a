"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from atomizer_dask.display import markup
from atomizer_dask.runs.ledger import Ledger


@dataclass(frozen=True, slots=True, repr=False)
class Progress:
    """How far a run is, at one moment.

    Parameters
    ----------
    total
        How many electrons there are; None while a streamed sweep has not ended.
    done, failed, running, pending
        How many ended well, ended in a failure, are with the workers, are still to be sent. They
        add up to `total`; while that is unknown, to the rows drawn so far.
    rate
        Electrons per second: over the last seconds, or over the whole of a run that has ended.
    eta
        Seconds until the end at that rate; None where that cannot be known.
    standstill
        Why no electron can be executed: there is no worker, or none that can. Empty where one can.
    """

    total: int | None
    done: int
    failed: int
    running: int
    pending: int
    rate: float
    eta: float | None
    standstill: str = ""

    def _pace(self) -> str:
        """Return the rate and the remaining time, as far as they are known."""
        left = f"{markup.duration(self.eta)} left" if self.eta else ""
        return ", ".join(filter(None, (f"{markup.rate(self.rate)}" if self.rate else "", left)))

    def _percent(self) -> str:
        return markup.percent(self.done + self.failed, self.total or 0)

    def __repr__(self) -> str:
        total = "?" if self.total is None else f"{self.total:,}"
        states = ("failed", self.failed), ("running", self.running), ("pending", self.pending)
        some = [f"{number:,} {state}" for state, number in states if number]
        pace = [text for text in (self._pace(), self.standstill) if text]
        return f"<Progress: {', '.join([f'{self.done:,} of {total} done', *some, *pace])}>"

    @markup.safely
    def _repr_html_(self) -> markup.Html:
        known = self.total or self.done + self.failed + self.running + self.pending
        share = 1 / max(known, 1)
        total = "an unknown number of" if self.total is None else f"{self.total:,}"
        shares: list[tuple[float, markup.Tone]] = [
            (self.done * share, "busy"),
            (self.failed * share, "bad"),
            (self.running * share, "plain"),
        ]
        failed = markup.badge(f"{self.failed:,} failed", "bad") if self.failed else None
        return markup.card(
            "Progress",
            markup.bar(shares),
            markup.facts(
                {
                    "done": markup.text(f"{self.done:,} of {total} electrons"),
                    "running": markup.text(f"{self.running:,}" if self.running else ""),
                    "pending": markup.text(f"{self.pending:,}" if self.pending else ""),
                    "rate": markup.text(self._pace()),
                    "waits": markup.text(self.standstill),
                }
            ),
            beside=[markup.text(self._percent()) if self.total else None, failed],
        )


class ProgressSource(Protocol):
    """What `progress_of` needs to know of the control of a run."""

    @property
    def running(self) -> int:
        """How many electrons are with the workers."""

    @property
    def all_drawn(self) -> bool:
        """Whether it is known how many electrons there are."""

    def standstill(self) -> str:
        """Return why no electron can be executed; empty where one can."""


def progress_of(ledger: Ledger, control: ProgressSource, rows: int, total: int | None) -> Progress:
    """Return how far a run is.

    Parameters
    ----------
    ledger
        The outcomes of its electrons.
    control
        Counts the electrons that are with the workers.
    rows
        How many rows of its sweep are known so far.
    total
        How many rows its sweep has in the end; None while that is not known.
    """
    with ledger.changed:
        done, failed = ledger.done, ledger.failed
        left = max(rows - done - failed, 0)
        # Electrons whose outcome is being delivered are for a moment neither running nor ended.
        running = min(control.running, left)
        pending = left - running
        rate = ledger.rate()
    eta: float | None = (running + pending) / rate if rate else None
    if ledger.ended:
        eta = 0.0 if not running + pending else None
    elif not control.all_drawn:
        eta = None
    left = running + pending or (total or 0) - done - failed  # before it has begun
    why = control.standstill() if left else ""
    return Progress(total, done, failed, running, pending, rate, None if why else eta, why)
