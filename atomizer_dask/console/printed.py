"""What the electrons of a batch, or of a run, have printed, as columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from logging import getLevelName
from typing import NamedTuple

import numpy as np

STDOUT, STDERR, WARNING, LEFT_OUT = range(4)
LOGGED = 100  # added to the level of a logging record
STREAMS = {STDOUT: "stdout", STDERR: "stderr", WARNING: "warnings", LEFT_OUT: "left out"}


class Line(NamedTuple):
    """A line that an electron has printed.

    Parameters
    ----------
    electron
        Offset or position of the electron.
    attempt
        Its attempt, from 1.
    time_ns
        Nanoseconds since the epoch.
    source
        One of `STREAMS`; of a logging record its level and `LOGGED`.
    text
        Without the end of the line.
    """

    electron: int
    attempt: int
    time_ns: int
    source: int
    text: str

    @property
    def stream(self) -> str:
        """Where it was printed: ``stdout``, ``stderr``, ``warnings`` or ``logging``."""
        return STREAMS.get(self.source, "logging")

    @property
    def level(self) -> str:
        """The level of a logging record or a warning; else empty."""
        if self.source >= LOGGED:
            return str(getLevelName(self.source - LOGGED))
        return "WARNING" if self.source == WARNING else ""


@dataclass(frozen=True, slots=True, eq=False)
class Printed:
    """Pieces of text, in the order in which they were printed.

    An atom that prints a line writes two pieces, the text and the end of the line. They become
    lines where somebody reads them.

    Parameters
    ----------
    text
        The texts of all pieces, end to end.
    lengths
        Of each piece the characters.
    electrons
        Of each piece the offset in the batch, or the position in the sweep; ascending in a batch.
    times
        Of each piece when it was printed: nanoseconds since the epoch.
    sources
        Of each piece one of `STREAMS`, or the level of a logging record and `LOGGED`. The text of
        a piece ``LEFT_OUT`` is how many characters are not kept.
    attempt
        Which attempt it was.
    """

    text: str
    lengths: np.ndarray
    electrons: np.ndarray
    times: np.ndarray
    sources: np.ndarray
    attempt: int = 1

    @classmethod
    def of(cls, pieces: list[tuple[int, int, int, str]]) -> Printed:
        """Return pieces, each with electron, time, source and text, as columns."""
        electrons, times, sources, texts = zip(*pieces, strict=True)
        count = len(pieces)
        return cls(
            "".join(texts),
            np.fromiter(map(len, texts), np.int32, count),
            np.fromiter(electrons, np.int64, count),
            np.fromiter(times, np.int64, count),
            np.fromiter(sources, np.uint16, count),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def of_offsets(self, start: int, stop: int) -> Printed | None:
        """Return the pieces of the electrons from one offset to another; None where none."""
        first, last = np.searchsorted(self.electrons, [start, stop]).tolist()
        if (first, last) == (0, len(self)):
            return self
        if first == last:
            return None
        ends = np.cumsum(self.lengths)
        begin = int(ends[first] - self.lengths[first])
        return replace(
            self,
            text=self.text[begin : int(ends[last - 1])],
            lengths=self.lengths[first:last],
            electrons=self.electrons[first:last],
            times=self.times[first:last],
            sources=self.sources[first:last],
        )

    def where(self, wanted: np.ndarray) -> Printed | None:
        """Return the pieces where the mask `wanted` is True; None where there are none."""
        if wanted.all():
            return self
        chosen = np.flatnonzero(wanted).tolist()
        if not chosen:
            return None
        ends = np.cumsum(self.lengths)
        begins = ends - self.lengths
        return replace(
            self,
            text="".join(self.text[begins[i] : ends[i]] for i in chosen),
            lengths=self.lengths[wanted],
            electrons=self.electrons[wanted],
            times=self.times[wanted],
            sources=self.sources[wanted],
        )

    def moved(self, by: int) -> Printed:
        """Return it as of electrons further on in the batch."""
        return replace(self, electrons=self.electrons + by)

    def at(self, electrons: np.ndarray, attempt: int) -> Printed:
        """Return it as of other electrons: positions in a sweep in place of offsets."""
        return replace(self, electrons=electrons, attempt=attempt)

    def lines(self) -> Iterator[Line]:
        """Yield its lines, each with the time of its first piece."""
        unfinished: dict[int, tuple[int, str]] = {}  # by source
        at, latest = 0, -1
        columns = self.electrons, self.times, self.sources, self.lengths
        for electron, time, source, length in zip(*(c.tolist() for c in columns), strict=True):
            text, at = self.text[at : at + length], at + length
            if electron != latest:
                yield from self._ends_of(latest, unfinished)
                latest = electron
            if source == LEFT_OUT:
                kept_out = f"[{int(text):,} characters are not kept]"
                yield Line(electron, self.attempt, time, source, kept_out)
                continue
            if source in unfinished:
                time, begun = unfinished.pop(source)
                text = begun + text
            *whole, rest = text.split("\n")
            for line in whole:
                yield Line(electron, self.attempt, time, source, _as_shown(line))
            if rest:
                unfinished[source] = time, rest
        yield from self._ends_of(latest, unfinished)

    def _ends_of(self, electron: int, unfinished: dict[int, tuple[int, str]]) -> Iterator[Line]:
        for source, (time, rest) in unfinished.items():
            yield Line(electron, self.attempt, time, source, _as_shown(rest))
        unfinished.clear()


def _as_shown(line: str) -> str:
    r"""Return what a terminal shows of a line that a progress bar has drawn again and again.

    >>> _as_shown("10 %\r20 %\r30 %"), _as_shown("of Windows\r")
    ('30 %', 'of Windows')
    """
    return line.removesuffix("\r").rpartition("\r")[2]


def join_printed(those: Iterable[Printed | None]) -> Printed | None:
    """Return what electrons of a batch have printed as one; None where there is nothing."""
    some = [each for each in those if each is not None]
    if len(some) < 2:
        return some[0] if some else None
    return Printed(
        "".join(each.text for each in some),
        np.concatenate([each.lengths for each in some]),
        np.concatenate([each.electrons for each in some]),
        np.concatenate([each.times for each in some]),
        np.concatenate([each.sources for each in some]),
    )
