"""Digests of large buffers, at the speed of memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any

import numpy as np

LARGE_BUFFER = 2**16  # bytes from which a value counts by the digest of its buffer
_PIECE = 2**22  # bytes that one thread digests at a time
_DIGEST_BYTES = 16
_MOST_THREADS = 8


def digest_of_buffer(buffer: Any) -> str:
    """Return the digest of the bytes of a contiguous buffer, in 32 hex digits."""
    return digest_of_array(np.frombuffer(buffer, np.uint8))


def digest_of_array(array: np.ndarray) -> str:
    """Return the digest of the items of an array, in C order, in 32 hex digits.

    It is the BLAKE2b of the BLAKE2b of each piece, of as many rows as have 4 MiB, so that threads
    share the work. Nothing is copied where the array is contiguous; else one piece a thread.

    Parameters
    ----------
    array
        Numbers, times or texts of fixed size: no objects.

    Examples
    --------
    >>> table = np.arange(6.0).reshape(2, 3)
    >>> digest_of_array(table) == digest_of_array(np.asfortranarray(table))
    True
    """
    array = np.atleast_1d(array)
    rows = max(1, _PIECE * len(array) // max(1, array.nbytes))

    def digest(start: int) -> bytes:
        piece = np.ascontiguousarray(array[start : start + rows])
        digested: bytes = _hash(piece.reshape(-1).view(np.uint8)).digest()
        return digested

    starts = range(0, len(array), rows)
    if len(starts) <= 1:
        digests = list(map(digest, starts))
    else:
        threads = min(_MOST_THREADS, os.cpu_count() or 1)
        with ThreadPoolExecutor(threads, "atomizer-digest") as pool:
            digests = list(pool.map(digest, starts))
    return str(_hash(b"".join(digests)).hexdigest())


def _hash(data: Any) -> Any:
    return blake2b(data, digest_size=_DIGEST_BYTES)
