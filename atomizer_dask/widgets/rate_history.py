"""How fast a run was over its whole course, in a handful of points."""

from __future__ import annotations

from atomizer_dask.widgets.format import rounded

POINTS = 90
FIRST_STEP = 0.4  # seconds
CLOCK_STEP = 1e-9  # seconds: what is closer together happened at once, as far as clocks show


class RateHistory:
    """The rate of a run over its whole course.

    However long it takes, there are at most `POINTS` points: when there are more, every other one
    is forgotten and from then on they are taken half as often.

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
        """Take down how many electrons have ended by then.

        Parameters
        ----------
        seconds
            Since the run began.
        ended
            How many have ended.
        last
            Take it down also where that was done a moment ago.
        """
        samples = self._samples
        if len(samples) > 1 and ended == samples[-1][1] == samples[-2][1]:
            samples.pop()  # a rest has a beginning and an end
        elif not last and seconds - samples[-1][0] < self._step:
            return
        elif last and len(samples) > 1 and seconds - samples[-1][0] < self._step / 2:
            samples.pop()  # of a few milliseconds there is no rate to speak of
        if seconds - samples[-1][0] < CLOCK_STEP:
            return
        samples.append((seconds, ended))
        if len(samples) > POINTS:
            self._samples = [*samples[:-1:2], samples[-1]]
            self._step *= 2

    def rates(self) -> list[list[float]]:
        """Return pairs of seconds and of electrons per second until then."""
        pairs = zip(self._samples, self._samples[1:], strict=False)
        return [
            [rounded(after[0], 4), rounded(max(0, after[1] - before[1]) / (after[0] - before[0]))]
            for before, after in pairs
        ]
