"""Waiting in tests for what nobody tells of."""

from time import monotonic, sleep

SECONDS = 100  # a busy machine takes its time
PAUSE = 0.01


def wait_until(condition, what="it does not come about", seconds=SECONDS):
    """Return what a condition returns once that is true, or fail and say what was waited for."""
    end = monotonic() + seconds
    while not (found := condition()):
        assert monotonic() < end, f"not within {seconds} s: {what}"
        sleep(PAUSE)
    return found
