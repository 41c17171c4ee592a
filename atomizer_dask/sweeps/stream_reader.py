"""Drawing the rows of a streamed sweep: not many more than are needed soon."""

from __future__ import annotations

import threading
from collections.abc import Callable

from atomizer_dask.sweeps.stream import Streamed

DRAW_FIRST, DRAW_MOST = 64, 2**16  # rows to draw ahead


class StreamReader:
    """Draws the rows of a streamed sweep in a thread of its own.

    Parameters
    ----------
    sweep
        The rows.
    name
        Of the thread.
    changed
        Notified when more rows may be needed.
    taken
        Returns how many of the drawn rows have been taken.
    over
        Returns whether no more are wanted.
    on_rows, on_error, on_end
        Called in the thread of the reader: when there are more rows, when the iterator raised, and
        when there will be no more. `on_rows` is not called again until `seen` is called.
    """

    def __init__(
        self,
        sweep: Streamed,
        name: str,
        changed: threading.Condition,
        taken: Callable[[], int],
        over: Callable[[], bool],
        on_rows: Callable[[], None],
        on_error: Callable[[BaseException], None],
        on_end: Callable[[], None],
    ) -> None:
        self._sweep = sweep
        self._changed = changed
        self._taken = taken
        self._over = over
        self._on_rows = on_rows
        self._on_error = on_error
        self._on_end = on_end
        self._is_announced = False  # `on_rows` was called, `seen` was not yet
        self._seen = sweep.drawn  # how many drawn rows `seen` has returned
        self._thread = threading.Thread(target=self._draw, name=name, daemon=True)

    def start(self) -> None:
        """Begin to draw."""
        self._thread.start()

    def seen(self) -> range:
        """Return the rows that have been drawn since the last call."""
        self._is_announced = False  # first: a row drawn from here on is announced anew
        before, self._seen = self._seen, self._sweep.drawn
        return range(before, self._seen)

    def end(self) -> range:
        """End the sweep with the rows drawn so far, and return those that `seen` has not."""
        return range(self._seen, self._sweep.end())

    def _draw(self) -> None:
        chunk = DRAW_FIRST
        limit = self._sweep.drawn + chunk
        try:
            for drawn in self._sweep.draw():
                # Announced at once, for the next row may depend on what becomes of this one.
                if not self._is_announced:
                    self._is_announced = True
                    self._on_rows()
                if drawn == limit:
                    chunk = self._wait_for_need(chunk)
                    limit += chunk
                if self._over():
                    return
        except BaseException as error:  # noqa: BLE001 - the user's iterator, reported by wait
            self._on_error(error)
        self._on_end()

    def _wait_for_need(self, chunk: int) -> int:
        """Wait until more rows are needed, and return how many to draw then."""
        with self._changed:
            self._changed.wait_for(lambda: self._ahead() < chunk or self._over())
            starving = self._ahead() <= 0
        return min(2 * chunk, DRAW_MOST) if starving else chunk

    def _ahead(self) -> int:
        return self._sweep.drawn - self._taken()
