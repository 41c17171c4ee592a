"""Reproducible random streams: one for each electron, whatever it runs next to.

The generator is Philox4x64-10 (Salmon, Moraes, Dror & Shaw, *Parallel random numbers: as easy as
1, 2, 3*, SC11, 2011), as NumPy implements it. Its 256-bit counter and 128-bit key leave room to
give every electron a stream by arithmetic alone::

    key      the seed itself, or for what an electron sends a digest of its parent's stream
    counter  [ draws of the electron (128 bits) | index (64 bits) | generation (64 bits) ]

The map from (seed, index) to (key, counter) is one-to-one, so no two electrons of a run and no
two seeds share a stream; children live in another generation than their parents.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from hashlib import blake2b
from operator import index as as_index
from typing import Any

import numpy as np

_WORD = 2**64
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_DRAWS_PER_BLOCK = 4
_ROWS_AT_ONCE = 8192  # keeps the dozen temporaries of the vectorised Philox in the CPU's cache
_LOOP_FROM = 40  # draws a row above which positioning NumPy's own generator is the faster way


def seed_of(seed: int | None) -> int:
    """Return `seed`, or 128 fresh random bits for None.

    Raises
    ------
    TypeError, ValueError
        Where it is not an integer from 0 to 2**128 - 1.
    """
    if seed is None:
        return secrets.randbits(128)
    try:
        number = as_index(seed)
    except TypeError:
        raise TypeError(f"seed must be an integer or None, got {seed!r}") from None
    if not 0 <= number < 2**128:
        raise ValueError(f"seed must be between 0 and 2**128 - 1, got {number}")
    return number


@dataclass(frozen=True, slots=True)
class RandomStream:
    """The address of a family of random streams: one per index.

    Parameters
    ----------
    key
        128 bits.
    generation
        0 for electrons of a seeded run, 1 for everything derived from an electron or an id.
    """

    key: int
    generation: int = 0

    def child(self, index: int) -> RandomStream:
        """Return the family of the electrons that electron `index` of this family sends."""
        parent = b"%d/%d/%d" % (self.key, self.generation, index)
        return RandomStream(int.from_bytes(blake2b(parent, digest_size=16).digest(), "little"), 1)

    @classmethod
    def of_id(cls, electron_id: str) -> RandomStream:
        """Return the family of an electron that was sent by itself, from its id."""
        digest = blake2b(electron_id.encode(), digest_size=16, person=b"electron id")
        return cls(int.from_bytes(digest.digest(), "little"), 1)


class Positioned:
    """A NumPy generator that can be put at the start of any electron's stream.

    Positioning writes the 256-bit counter into the one bit generator, which takes a tenth of
    the time of making a new one.

    Examples
    --------
    >>> rng = Positioned()
    >>> first = rng.at(RandomStream(7), 3).random()
    >>> _ = rng.at(RandomStream(7), 4).random()
    >>> rng.at(RandomStream(7), 3).random() == first
    True
    """

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self.generator = np.random.Generator(self._bits)
        self._counter = [0, 0, 0, 0]
        self._key = [0, 0]
        # Plain lists: Cython reads them three times as fast as arrays of NumPy scalars.
        self._state: Any = {
            "bit_generator": "Philox",
            "state": {"counter": self._counter, "key": self._key},
            "buffer": [0, 0, 0, 0],
            "buffer_pos": _DRAWS_PER_BLOCK,  # empty: the next draw makes a block
            "has_uint32": 0,
            "uinteger": 0,
        }

    def at(self, stream: RandomStream, index: int) -> np.random.Generator:
        """Return the generator, at the first draw of electron `index` of `stream`."""
        self._key[0] = stream.key % _WORD
        self._key[1] = stream.key // _WORD
        self._counter[2] = index
        self._counter[3] = stream.generation
        self._bits.state = self._state
        return self.generator


def philox(counter: list[np.ndarray], key: int) -> list[np.ndarray]:
    """Return Philox4x64-10 of many counters under one key.

    Parameters
    ----------
    counter
        Its four words, least significant first, each an array of uint64 of one shape.
    key
        128 bits.

    Returns
    -------
    list of numpy.ndarray
        The four words of output, in the order in which NumPy's generator hands them out.

    Notes
    -----
    Checked against the known answers published with Random123, and against NumPy's own Philox.
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key % _WORD, key // _WORD
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], x0)
        high1, low1 = _multiply(_MULTIPLIERS[1], x2)
        x0, x1, x2, x3 = high1 ^ x1 ^ np.uint64(k0), low1, high0 ^ x3 ^ np.uint64(k1), low0
        k0, k1 = (k0 + _WEYL[0]) % _WORD, (k1 + _WEYL[1]) % _WORD
    return [x0, x1, x2, x3]


def _multiply(factor: int, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the high and the low 64 bits of ``factor * words``, by 32-bit halves."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    a1, a0 = np.uint64(factor >> 32), np.uint64(factor & 0xFFFFFFFF)
    b1, b0 = words >> half, words & mask
    middle = a1 * b0 + (a0 * b0 >> half)
    other = a0 * b1 + (middle & mask)
    high = a1 * b1 + (middle >> half) + (other >> half)
    return high, np.uint64(factor) * words


def uniform(stream: RandomStream, indices: np.ndarray, skip: int, draws: int) -> np.ndarray:
    """Return uniform numbers in [0, 1): a row per electron, each from that electron's stream.

    Row i has the bits that ``rng.random(skip + draws)[skip:]`` has for electron ``indices[i]``.

    Parameters
    ----------
    stream
        The family.
    indices
        Which electrons, shape (n,).
    skip
        How many draws each electron has made before.
    draws
        How many are wanted.

    Returns
    -------
    numpy.ndarray
        Shape (n, draws), float64.
    """
    result = np.empty((len(indices), draws))
    if draws >= _LOOP_FROM:
        rng = Positioned()
        for row, index in zip(result, indices.tolist(), strict=True):
            generator = rng.at(stream, index)
            if skip:
                generator.bit_generator.random_raw(skip, output=False)
            generator.random(out=row)
        return result
    for start in range(0, len(indices), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        _fill(result[rows], stream, indices[rows].astype(np.uint64), skip)
    return result


def _fill(result: np.ndarray, stream: RandomStream, indices: np.ndarray, skip: int) -> None:
    draws = result.shape[1]
    zeros = np.zeros_like(indices)
    generation = np.full_like(indices, stream.generation)
    for block in range(skip // _DRAWS_PER_BLOCK, -(-(skip + draws) // _DRAWS_PER_BLOCK)):
        # NumPy counts up before it makes a block, hence the 1.
        words = philox([zeros + np.uint64(block + 1), zeros, indices, generation], stream.key)
        for position, word in enumerate(words, start=block * _DRAWS_PER_BLOCK - skip):
            if 0 <= position < draws:
                result[:, position] = (word >> np.uint64(11)) * 2.0**-53
