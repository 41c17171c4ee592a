"""What the running electron has printed last, in memory that outlives the process that runs it."""

from __future__ import annotations

from time import time_ns

from atomizer_dask.console.printed import STDOUT, Printed
from atomizer_dask.console.recorder import LAST_CHARACTERS, Piece

LENGTH, SPEAKER = 3, 4  # indices of doubles of the cursor, after those of `child`
_HEAD = 64  # bytes of the cursor before the text, each of whose characters has four at most


class LastWords:
    """Keeps the last text of the running electron in the cursor; in the child.

    Parameters
    ----------
    cursor
        The doubles that child and parent share; see `child.ChildWatch`.
    """

    def __init__(self, cursor: memoryview[float]) -> None:
        self._cursor = cursor
        self._text = ""

    def note(self, pieces: list[Piece]) -> None:
        """Note what has been printed: in an instant the process may be gone."""
        for electron, _, _, text in pieces:
            if electron != self._cursor[SPEAKER] or not self._cursor[LENGTH]:
                self._text = ""
            self._text = (self._text + text)[-LAST_CHARACTERS:]
            data = self._text.encode(errors="replace")
            self._cursor[LENGTH] = 0.0
            self._cursor.cast("B")[_HEAD : _HEAD + len(data)] = data
            self._cursor[SPEAKER] = electron
            self._cursor[LENGTH] = len(data)


def last_words(cursor: memoryview[float], offset: int, moved: int) -> Printed | None:
    """Return what the electron at an offset printed last, before its process died; in the parent.

    Parameters
    ----------
    moved
        Offset in the batch of the piece.
    """
    if cursor[SPEAKER] != offset or not cursor[LENGTH]:
        return None
    data = bytes(cursor.cast("B")[_HEAD : _HEAD + int(cursor[LENGTH])])
    text = data.decode(errors="replace")
    return Printed.of([(offset + moved, time_ns(), STDOUT, text)])
