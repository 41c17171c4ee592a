"""Whose turn it is on threads that several share: pure policy.

A batch is due when its turn would come if its source had all threads for itself, and what is due
first goes first. So whoever begins goes before what others have queued, those who go on share
equally, and nobody starves: what is queued is overtaken only by what is due before it, which
after a while nothing new is (earliest deadline first, Liu & Layland, J. ACM 20(1), 1973; that
due dates follow from each one's own backlog is the idea of virtual clocks, Zhang, ACM Trans.
Comput. Syst. 9(2), 1991).
"""

from __future__ import annotations

SECONDS_OF_PRIORITY = 1e10  # more than any due date, so that one step outweighs all of them
MARGIN = 2.0  # times its own backlog: who has none goes first although estimates are rough
DEEPER_SECONDS = 1.5  # by how much the deepest go before their time


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
