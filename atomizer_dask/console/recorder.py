"""Records what the electrons of one batch print, as long as it is not too much.

Millions of electrons may print a line each, and ``print`` writes a line in several parts. So a
part is only appended to a list, and a mark is made where a line or an electron begins; see
`Recorder.writer`. What to keep is decided a few thousand parts at a time.
"""

from __future__ import annotations

import bdb
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from time import time_ns
from typing import NamedTuple

from atomizer_dask.console.printed import LEFT_OUT, Printed

PRINTED = "printed"  # field of an event that shows what electrons print
LAST_CHARACTERS = 2000  # of a failed electron, which are kept however much was printed before
LIVE_SECONDS = 0.1  # between two looks at what was printed, where it is shown as it comes
_MOST_PARTS = 4000  # that wait
_LONG = 4096  # characters of a part that does not wait
_NOBODY = -1

Piece = tuple[int, int, int, str]  # electron, time, source and text
Write = Callable[[str], int]


class Allowance(NamedTuple):
    """How much is kept of what electrons print.

    Parameters
    ----------
    of_electron
        Characters of one electron: the first half of them and the last.
    of_batch
        Characters of a batch.
    is_live
        Whether it is shown while the electrons go on.
    """

    of_electron: int
    of_batch: int
    is_live: bool = False


NOTHING = Allowance(0, 0)


class Recorder:
    """Records what the electrons of a batch print.

    Only the thread that executes the batch writes; any thread may call `until` and `show`.

    Parameters
    ----------
    allowance
        How much is kept.
    show
        Called with new pieces, now and then, where the allowance is live; from any thread.

    Attributes
    ----------
    has_failed
        Returns whether the electron at an offset has failed.
    is_muted
        Whether nothing is recorded for now.
    mirror
        Called with pieces as soon as they are printed, in the same thread; None for none.
    """

    def __init__(
        self, allowance: Allowance, show: Callable[[list[Piece]], None] | None = None
    ) -> None:
        self.has_failed: Callable[[int], bool] = bool
        self.mirror: Callable[[list[Piece]], None] | None = None
        self.is_muted = self._is_deaf = not allowance.of_electron
        self._thread = threading.get_ident()
        self._running: Callable[[], int] = int
        self._ended: Sized = ()
        self._parts: list[str] = []
        self._marks: list[tuple[int, int, int, int]] = []  # first part, electron, time, source
        self._source = _NOBODY  # of the latest part
        self._keeper = Keeper(allowance, lambda offset: self.has_failed(offset))
        self._is_live = allowance.is_live
        self._show = show
        self._sorting = threading.Lock()
        self._lock = threading.Lock()  # of what follows
        self._unshown: list[Piece] = []
        self._timer: threading.Timer | None = None

    def runs(self, running: Callable[[], int], ended: Sized) -> None:
        """Note which electrons run from now on.

        Parameters
        ----------
        running
            Returns the offset of the running electron.
        ended
            Changes its length when another electron runs.
        """
        self._running, self._ended, self._source = running, ended, _NOBODY

    def writer(self, source: int, through: Write) -> Write:
        """Return a function that records a text; `through` gets what a debugger writes."""
        if self._is_deaf:
            return len
        parts, mark = self._parts, self._mark
        keep = parts.append
        most = 0 if self._waits_for_none else _MOST_PARTS
        ended, latest, is_new = self._ended, 0, True

        def write(text: str) -> int:
            nonlocal ended, latest, is_new
            if is_new or len(ended) != latest or self._source != source:
                if _is_debugged():
                    return through(text)
                if not mark(source):
                    return len(text)
                ended = self._ended
                latest = len(ended)
            keep(text)
            is_new = text == "\n" or text[-1:] == "\n"
            if len(text) > _LONG or len(parts) > most:
                self._sort_out()
            return len(text)

        return write

    def write(self, source: int, text: str) -> None:
        """Record a whole record or warning."""
        if self._mark(source):
            self._parts.append(text)
            self._source = _NOBODY
            if self._waits_for_none:
                self._sort_out()

    @property
    def _waits_for_none(self) -> bool:
        return self._is_live or self.mirror is not None

    def _mark(self, source: int) -> bool:
        """Note where a line begins; return whether it is recorded."""
        if self.is_muted:
            return False
        self._marks.append((len(self._parts), self._running(), time_ns(), source))
        self._source = source
        return True

    def _lines(self) -> list[Piece]:
        parts = self._parts[:]  # first: the thread that writes makes a mark before a part
        marks = self._marks[:]
        ends = [*(mark[0] for mark in marks[1:]), len(parts)][: len(marks)]
        return [
            (electron, time, source, "".join(parts[first:end]))
            for (first, electron, time, source), end in zip(marks, ends, strict=True)
        ]

    def _sort_out(self) -> None:
        """Keep the parts that wait, or not; in the thread that writes."""
        with self._sorting:
            pieces = self._lines()
            self._parts.clear()
            self._marks.clear()
            self._source = _NOBODY
            self._keeper.take(pieces)
        if self.mirror is not None:
            self.mirror(pieces)
        if self._is_live:
            self._show_soon(pieces)

    def until(self, stop: int) -> Printed | None:
        """Return what the electrons before an offset have printed, all of which have ended."""
        if threading.get_ident() == self._thread:
            self._sort_out()
            pieces = self._keeper.until(stop)
        else:  # these do not come again: what is reported now is cut from later outcomes
            with self._sorting:
                pieces = self._keeper.pieces[:] + self._lines()
        return Printed.of(pieces).of_offsets(0, stop) if pieces else None

    # -- as it comes -----------------------------------------------------------------------------

    def _show_soon(self, pieces: list[Piece]) -> None:
        with self._lock:
            self._unshown += pieces
            if self._timer is None:
                self._timer = threading.Timer(LIVE_SECONDS, self.show)
                self._timer.daemon = True
                self._timer.start()

    def show(self, *, is_last: bool = False) -> None:
        """Show the lines that have been printed since the last time, at last one without an end."""
        with self._lock:
            ends = [number for number, piece in enumerate(self._unshown, 1) if "\n" in piece[3]]
            count = len(self._unshown) if is_last else max(ends, default=0)
            pieces, self._unshown = self._unshown[:count], self._unshown[count:]
            self._timer = None
        if pieces and self._show is not None:
            self._show(pieces)


class Keeper:
    """Keeps pieces of text of electrons that execute one after another, as far as it may.

    Parameters
    ----------
    allowance
        How much is kept.
    has_failed
        Returns whether the electron at an offset has failed.

    Attributes
    ----------
    pieces
        What is kept.
    """

    def __init__(self, allowance: Allowance, has_failed: Callable[[int], bool]) -> None:
        self.pieces: list[Piece] = []
        self._has_failed = has_failed
        self._left = allowance.of_batch
        self._half = allowance.of_electron // 2 if self._left > 0 else 0
        self._most = max(self._half, LAST_CHARACTERS)
        self._electron = _NOBODY
        self._spent = 0  # characters of that electron
        self._last: deque[Piece] = deque()  # pieces of it beyond the first half
        self._last_size = 0
        self._left_out = 0
        self._uncounted: Piece | None = None  # of electrons of which nothing is kept

    def take(self, pieces: list[Piece]) -> None:
        """Take pieces, and keep them or count them."""
        for piece in pieces:
            if piece[0] != self._electron:
                self._end_electron()
                self._electron = piece[0]
            self._spent += len(piece[3])
            if self._spent <= self._half:
                self.pieces.append(piece)
            else:
                self._add_last(piece)

    def _add_last(self, piece: Piece) -> None:
        self._last.append(piece)
        self._last_size += len(piece[3])
        while (excess := self._last_size - self._most) > 0:
            electron, time, source, text = self._last.popleft()
            gone = min(excess, len(text))
            if gone < len(text):
                self._last.appendleft((electron, time, source, text[gone:]))
            self._last_size -= gone
            self._left_out += gone

    def _end_electron(self) -> None:
        """Keep the last pieces of the electron that has ended, or count them."""
        self._left -= min(self._spent, self._half) + self._last_size
        if self._last and (self._left >= 0 or self._has_failed(self._electron)):
            if self._left_out:
                gap = self._electron, self._last[0][1], LEFT_OUT, str(self._left_out)
                self.pieces.append(gap)
            self.pieces += self._last
        elif self._last:
            self._count(self._left_out + self._last_size)
        if self._left <= 0:
            self._half = 0
        self._spent = 0
        if self._last:
            self._last_size = self._left_out = 0
            self._last.clear()

    def _count(self, characters: int) -> None:
        """Note so many characters as left out, in one piece for electrons in a row."""
        if self._uncounted is not None and self.pieces[-1] is self._uncounted:
            self.pieces.pop()
            characters += int(self._uncounted[3])
        self._uncounted = self._electron, time_ns(), LEFT_OUT, str(characters)
        self.pieces.append(self._uncounted)

    def until(self, stop: int) -> list[Piece]:
        """Return the pieces kept of electrons before an offset, all of which have ended."""
        if 0 <= self._electron < stop:
            self._end_electron()
        self._uncounted = None  # what is reported is not added to
        return self.pieces


def _is_debugged() -> bool:
    """Return whether a debugger has the calling thread: it talks to its user."""
    trace = sys.gettrace()
    return trace is not None and isinstance(getattr(trace, "__self__", None), bdb.Bdb)


@contextmanager
def muted(recorder: Recorder | None) -> Iterator[None]:
    """Record nothing within: electrons are executed once more."""
    if recorder is None:
        yield
        return
    recorder.is_muted, before = True, recorder.is_muted
    try:
        yield
    finally:
        recorder.is_muted = before
