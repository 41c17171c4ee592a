"""Executing the electrons of a batch one after another."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from sys import getrefcount
from time import perf_counter, time_ns
from typing import Any

import numpy as np

from atomizer_dask.atoms.definition import Definition
from atomizer_dask.execution.calls import bond, seeded
from atomizer_dask.execution.lease import Lease
from atomizer_dask.execution.outcome import Outcome
from atomizer_dask.execution.outputs import (
    IN_LOOP,
    ResultCollector,
    any_shared,
    bytes_of_arrays,
    is_shared,
    names_to_check,
    references_to,
)
from atomizer_dask.execution.remaining import Remaining
from atomizer_dask.execution.timeout import watched
from atomizer_dask.sweeps.copies import own_copy

_AT_ONCE = 1024  # electrons whose arguments and results are Python objects at a time


def run_each(lease: Lease, definition: Definition) -> Outcome:
    """Execute one electron after another."""
    start = time_ns(), perf_counter()
    call, arguments = bond(lease, definition)
    if definition.draws_from:
        call = seeded(lease, call, definition.draws_from)
    if lease.watch is not None:
        call = watched(call, lease.watch)
    claims = Remaining(len(lease.batch), _AT_ONCE)
    outputs = ResultCollector(as_they_are=lease.batch.ids is not None)
    times: list[np.ndarray] = []
    results: list[Any] = []
    ends: list[float] = []

    def so_far() -> Outcome:
        # An electron with a stamp is complete: the stamp comes last.
        stamped = np.array(ends)
        done = sum(map(len, times))
        failed = sum(done <= offset < done + len(stamped) for offset in lease.failures.offsets)
        joined, scalar = outputs.joined(results[: len(stamped) - failed])
        return lease.outcome(joined, start, _concatenated([*times, stamped]), scalar=scalar)

    lease.begin(claims, so_far)
    offset = 0
    # Piece by piece, so that arguments and results are in the cache, and become columns
    # before they are millions of objects.
    while count := claims.draw():
        first, *others = arguments(offset, offset + count)
        lease.runs(partial(_running, offset, ends), ends)
        calls = map(call, claims.each_of(first), *others)
        _execute_piece(calls, lease, claims, offset, results, ends)
        offset += len(ends)
        with lease.lock:  # `so_far` must not see one changed and not the other
            outputs.add(results)
            times.append(np.fromiter(ends, dtype=np.float64, count=len(ends)))
            results.clear()
            ends.clear()
    joined, scalar = outputs.joined()
    return lease.outcome(joined, start, _concatenated(times), scalar=scalar)


def _execute_piece(
    calls: Iterator[Any],
    lease: Lease,
    claims: Remaining,
    offset: int,
    results: list[Any],
    ends: list[float],
) -> None:
    """Execute the electrons of a piece, which begins at an offset; keep results and stamp ends."""
    keep, stamp, clock = results.append, ends.append, perf_counter
    # Whether results may be changed later: the first one shows it.
    is_known, changeable = False, None
    while True:
        try:
            for result in islice(calls, 0 if is_known else 1):
                is_known = True
                references = references_to(result)  # before it is an argument, which is one more
                is_taken = is_shared(result, references)
                keep(own_copy(result) if is_taken else result)
                stamp(clock())
                changeable = names_to_check(result) or (() if is_taken else None)
                lease.fill(bytes_of_arrays(result))
            if changeable is not None:
                for result in calls:
                    is_taken = getrefcount(result) > IN_LOOP or any_shared(result, changeable)
                    keep(own_copy(result) if is_taken else result)
                    stamp(clock())
            elif is_known:
                for result in calls:
                    keep(result)
                    stamp(clock())
        except BaseException as error:  # noqa: BLE001 - SystemExit is an atom's failure too
            lease.fail(offset + len(ends), error)
            stamp(clock())
            continue
        if len(ends) == claims.drawn_of_piece():
            return
        # `for` took a StopIteration that the atom raised for the end of its electrons.
        lease.fail(offset + len(ends), RuntimeError("the atom raised StopIteration"))
        stamp(clock())


def _running(offset: int, ends: list[float]) -> int:
    """Return the offset of the running electron of a piece that begins at an offset."""
    return offset + len(ends)


def _concatenated(times: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(times) if times else np.empty(0)
