"""Figures 6 and 7: electrons that send electrons."""

from collections.abc import Iterator
from math import log2

from atomizer_dask import Electron, atom
from benchmarks.fresh import Sample
from benchmarks.work import increment, scaled, seconds, two_workers

CHILD = increment.id


@atom
def spawn(children, *, context):
    send = context.conductor.send
    futures = [send(Electron(CHILD, {"x": i})) for i in range(children)]
    return sum(future.result().value() for future in futures)


@atom(id="benchmarks.tree")
def tree(depth, *, context):
    """Count the leaves of a binary tree; every node but a leaf waits for two others."""
    if depth == 0:
        return 1
    send = context.conductor.send
    branches = [send(Electron("benchmarks.tree", {"depth": depth - 1})) for _ in range(2)]
    return sum(branch.result().value() for branch in branches)


def children(scale: float, repeats: int) -> Iterator[Sample]:
    """Figure 6, in children/s."""
    count = scaled(10_000, scale)
    with two_workers(spawn) as atomizer:

        def run(count: int) -> None:
            total = atomizer.send(spawn, {"children": count}).result().value()
            if total != count * (count + 1) // 2:
                raise ValueError(f"the sum over {count} children came out as {total}")

        for _ in range(4):  # whichever worker it lands on makes a conductor at its first child
            run(100)
        for _ in range(repeats):
            yield {"value": count / seconds(run, count)}


def recursion(scale: float, repeats: int) -> Iterator[Sample]:
    """Figure 7, in seconds."""
    depth = max(2, round(10 + log2(min(scale, 1))))
    with two_workers(tree) as atomizer:

        def run() -> None:
            leaves = atomizer.send(tree, {"depth": depth}).result().value()
            if leaves != 2**depth:
                raise ValueError(f"a tree of depth {depth} came out with {leaves} leaves")

        for _ in range(repeats):
            yield {"value": seconds(run), "electrons": 2 ** (depth + 1) - 1}
