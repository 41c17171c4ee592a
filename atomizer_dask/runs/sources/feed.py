"""The rows of a streamed sweep, as a run's source takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from atomizer_dask.conductors.driver import Driver
from atomizer_dask.errors import AtomizerError
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Positions
from atomizer_dask.runs.ledger import Ledger
from atomizer_dask.sweeps.stream import Streamed
from atomizer_dask.sweeps.stream_reader import StreamReader


class FeedOwner(Protocol):
    """The source that takes the rows."""

    @property
    def driver(self) -> Driver:
        """Its driver, which calls actions on the dispatcher's thread."""

    @property
    def is_over(self) -> bool:
        """Whether it takes no more rows."""

    def add(self, positions: Positions) -> None:
        """Take the electrons of rows that have been drawn."""

    def note_drawn(self) -> None:
        """Note that there are no more rows."""


class Feed:
    """Draws rows from the user's iterator in a thread, and adds them to the source of a run.

    Parameters
    ----------
    sweep
        The streamed sweep whose rows are drawn.
    run_id
        Id of the run.
    ledger
        Counts the electrons that have ended: rows are drawn only a little ahead of execution.
    owner
        The source.
    """

    def __init__(self, sweep: Streamed, run_id: str, ledger: Ledger, owner: FeedOwner) -> None:
        self._sweep = sweep
        self._run_id = run_id
        self._ledger = ledger
        self._owner = owner
        self._reader = StreamReader(
            sweep,
            f"feed-{run_id}",
            ledger.changed,
            taken=lambda: ledger.done + ledger.failed + owner.driver.leased,
            over=lambda: owner.is_over,
            on_rows=lambda: owner.driver.post_action(self._add_drawn),
            on_error=lambda error: owner.driver.post_action(self._break, error),
            on_end=lambda: owner.driver.post_action(self._end),
        )
        self.start: Callable[[], None] = self._reader.start

    def end(self) -> Positions:
        """Draw no more, and return the positions of drawn rows that the source has not taken."""
        return self._reader.end()

    def _add_drawn(self) -> None:
        """Add the rows drawn since the last call to the source."""
        self._owner.add(self._reader.seen())

    def _break(self, error: BaseException) -> None:
        self._ledger.error = AtomizerError(
            Event(
                f"the sweep's iterator raised {type(error).__name__} after "
                f"{self._sweep.drawn:,} electrons; these were carried out",
                run_id=self._run_id,
                level="error",
            ),
            error,
        )

    def _end(self) -> None:
        if not self._owner.is_over:
            self._add_drawn()
            self._sweep.end()
            self._owner.note_drawn()
