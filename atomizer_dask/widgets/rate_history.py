"""The rate of a run over its whole course, in at most 90 points."""

from __future__ import annotations

from atomizer_dask.widgets.format import rounded

POINTS = 90
FIRST_STEP = 0.4  # seconds
CLOCK_STEP = 1e-9  # seconds: the resolution of the clock; closer samples give no rate


class RateHistory:
    """The rate of a run over its whole course.

    However long the run takes, there are at most `POINTS` points: when there are more, every other
    one is dropped, and from then on samples are taken half as often.

    Examples
    --------
    >>> course = RateHistory()
    >>> for second in range(4):
    ...     course.note(second, 100 * second)
    >>> course.rates()
    [[1.0, 100.0], [2.0, 100.0], [3.0, 100.0]]
    """

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = [(0.0, 0)]
        self._step = FIRST_STEP

    def note(self, seconds: float, ended: int, *, last: bool = False) -> None:
        """Add a sample.

        Parameters
        ----------
        seconds
            Time since the run began.
        ended
            How many electrons have ended by then.
        last
            Add it also where the sample before is more recent than the current step.
        """
        samples = self._samples
        if len(samples) > 1 and ended == samples[-1][1] == samples[-2][1]:
            samples.pop()  # while the count stands still, only its first and last samples stay
        elif not last and seconds - samples[-1][0] < self._step:
            return
        elif last and len(samples) > 1 and seconds - samples[-1][0] < self._step / 2:
            samples.pop()  # a rate over a few milliseconds would be noise
        if seconds - samples[-1][0] < CLOCK_STEP:
            return
        samples.append((seconds, ended))
        if len(samples) > POINTS:
            self._samples = [*samples[:-1:2], samples[-1]]
            self._step *= 2

    def rates(self) -> list[list[float]]:
        """Return pairs: seconds at a sample, and electrons per second since the one before."""
        pairs = zip(self._samples, self._samples[1:], strict=False)
        return [
            [rounded(after[0], 4), rounded(max(0, after[1] - before[1]) / (after[0] - before[0]))]
            for before, after in pairs
        ]
