"""The electrons of a batch that nobody has begun, and who may take them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from operator import length_hint
from typing import Any

LARGEST_PIECE = 2**20
PIECE_SECONDS = 0.02  # duration of a piece: a batch can be interrupted between two pieces


class Remaining:
    """The electrons of a batch that nobody has begun, handed out piece by piece.

    Parameters
    ----------
    electrons
        Number of electrons.
    size
        Number of electrons in the first piece.
    """

    def __init__(self, electrons: int, size: int) -> None:
        self._left = electrons
        self._size = size
        self._lock = threading.Lock()
        self._count = 0  # of the piece that was drawn last
        self._each: Iterator[Any] = iter(())

    def draw(self) -> int:
        """Return how many electrons the next piece has; 0 when there are none left."""
        with self._lock:
            self._count = min(self._size, self._left)
            self._left -= self._count
            return self._count

    def each_of(self, values: list[Any]) -> Iterator[Any]:
        """Return an iterator over the piece, which `drain` cuts short.

        Drawing from the iterator of a list is atomic under the interpreter lock: an electron
        belongs to whoever draws it.
        """
        self._each = iter(values)
        return self._each

    def drawn_of_piece(self) -> int:
        """Return how many electrons of the piece its iterator has given to the loop."""
        with self._lock:
            return self._count - length_hint(self._each)

    def drain(self) -> int:
        """Take all that have not been begun and return how many they were."""
        with self._lock:
            of_piece = len(list(self._each))
            self._count -= of_piece
            left, self._left = self._left, 0
            return of_piece + left

    def learn(self, count: int, seconds: float) -> None:
        """Size pieces to take `PIECE_SECONDS`, now that one of `count` took `seconds`."""
        fitting = int(count * PIECE_SECONDS / max(seconds, 1e-6))
        self._size = max(1, min(fitting, 8 * self._size, LARGEST_PIECE))
