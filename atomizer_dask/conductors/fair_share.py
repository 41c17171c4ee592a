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
    """Return what is the higher, the sooner a batch shall go.

    Parameters
    ----------
    priority
        That of the user.
    due
        In seconds, on a clock that all who share the threads have in common.

    Examples
    --------
    >>> task_priority(0, due=10.0) > task_priority(0, due=10.5)
    True
    >>> task_priority(1, due=1e6) > task_priority(0, due=10.0)
    True
    """
    return priority * SECONDS_OF_PRIORITY - due


def due_seconds(ahead: float, depth: int, waiting: float, waited: float) -> float:
    """Return after how many seconds a batch is due.

    Parameters
    ----------
    ahead
        Seconds until it would begin if its source were alone.
    depth
        How many spawners are above it. Deeper ones go before their time: they are what others
        wait for.
    waiting, waited
        How many electrons of its source wait for what they have sent, beyond one per thread, as
        a multiple of the threads, and for how many seconds the first of them has. Another one
        that will wait too can wait for its turn as well: that bounds how many there are.

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
