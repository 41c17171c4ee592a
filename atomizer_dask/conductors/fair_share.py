"""Which batch goes first on threads that several sources share: pure policy.

A batch is due when it would begin if its source had all threads for itself; the batch that is due
first goes first. So the first batches of a source go before batches that others have queued,
sources with a backlog share equally, and none starves: only batches that are due earlier overtake
a queued one, and after a while no new batch is due earlier (earliest deadline first, Liu &
Layland, J. ACM 20(1), 1973; that due dates follow from the backlog of each source is the idea of
virtual clocks, Zhang, ACM Trans. Comput. Syst. 9(2), 1991).
"""

from __future__ import annotations

SECONDS_OF_PRIORITY = 1e10  # more than any due date, so that one step outweighs all of them
MARGIN = 2.0  # times a source's own backlog: one without goes first although estimates are rough
DEEPER_SECONDS = 1.5  # most seconds by which depth makes a batch due earlier


def task_priority(priority: int, due: float) -> float:
    """Return the priority of a batch as a task of Dask: the highest goes first.

    Parameters
    ----------
    priority
        Of the run or electron, as the user gave it.
    due
        When the batch is due: seconds on a clock that all clients of the threads share.

    Examples
    --------
    >>> task_priority(0, due=10.0) > task_priority(0, due=10.5)
    True
    >>> task_priority(1, due=1e6) > task_priority(0, due=10.0)
    True
    """
    return priority * SECONDS_OF_PRIORITY - due


def due_seconds(ahead: float, depth: int, waiting: float, waited: float) -> float:
    """Return the seconds from now until a batch is due.

    Parameters
    ----------
    ahead
        Seconds until the batch would begin if its source had all threads.
    depth
        Number of spawners above its electrons. Deeper batches are due earlier: spawners wait for
        them.
    waiting
        Spawners of its source that wait for children, divided by the threads, minus 1.
    waited
        Seconds that the first of these has waited. A new top-level batch is delayed in proportion
        to both, which bounds the number of spawners that wait.

    Examples
    --------
    >>> due_seconds(0.0, depth=0, waiting=0.0, waited=0.0)
    0.0
    >>> due_seconds(0.0, depth=1, waiting=0.0, waited=0.0)
    -0.5
    >>> due_seconds(0.25, depth=0, waiting=2.0, waited=10.0)
    20.5
    """
    earlier = DEEPER_SECONDS * depth / (depth + 2)
    return MARGIN * ahead + waiting * max(1.0, waited) - earlier
