"""When workers were busy with the electrons of a run, as spans of time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from atomizer_dask.errors import ElectronError
from atomizer_dask.execution.outcome import RunPart

MOST_SPANS = 4_000  # to draw, in all lanes together
MOST_EXACT = 200_000  # spans of a worker; of more, close neighbours are joined first
LEAST_STEPS = 200  # of time, that a lane shows separately


@dataclass(frozen=True, slots=True)
class Spans:
    """When a worker was busy, in nanoseconds since the epoch, and when electrons failed there.

    Parameters
    ----------
    worker
        Address of the worker; empty for electrons that never ran.
    starts, ends
        Start and end of each span: a series of electrons that ran without a pause.
    failed, killed
        When attempts failed, and when attempts killed their process.
    """

    worker: str
    starts: np.ndarray
    ends: np.ndarray
    failed: np.ndarray
    killed: np.ndarray


def spans_of(part: RunPart) -> Spans:
    """Return when the electrons of a part ran."""
    outcome = part.outcome
    starts, ends = outcome.times()
    offsets = np.asarray(outcome.failed, dtype=np.int64)
    kinds = np.array([failure.kind == "killed" for failure in outcome.failures], dtype=bool)
    codes = np.asarray(outcome.codes, dtype=np.int64)
    killed = kinds[codes] if len(codes) else np.zeros(0, dtype=bool)
    times = ends[offsets]
    return Spans(outcome.worker, *_chained(starts, ends, 0), times[~killed], times[killed])


def spans_of_attempts(attempts: Iterable[ElectronError]) -> list[Spans]:
    """Return when superseded attempts ran, a span for each."""
    found = []
    for error in attempts:
        if error.start is None or error.end is None:
            continue
        start, end = (int(time.timestamp() * 1e9) for time in (error.start, error.end))
        here, none = np.array([end]), np.empty(0, dtype=np.int64)
        marks = (none, here) if error.kind == "killed" else (here, none)
        found.append(Spans(error.worker, np.array([start]), here, *marks))
    return found


def _chained(starts: np.ndarray, ends: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Return spans, joining neighbours that follow each other within `gap`, or are the same.

    Spans must be in the order in which a thread executed the electrons.
    """
    if len(starts) < 2:
        return starts, ends
    pause = starts[1:] - ends[:-1]
    same = (starts[1:] == starts[:-1]) & (ends[1:] == ends[:-1])
    begins = np.ones(len(starts), dtype=bool)
    begins[1:] = ~(same | ((pause >= 0) & (pause <= gap)))
    lasts = np.append(np.flatnonzero(begins)[1:] - 1, len(starts) - 1)
    return starts[begins], ends[lasts]


@dataclass(frozen=True, slots=True)
class Lane:
    """When one thread of a worker was busy, in seconds since the first electron began.

    Parameters
    ----------
    worker
        Address of the worker.
    starts, ends
        Start and end of each span.
    """

    worker: str
    starts: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True, slots=True)
class Schedule:
    """When the threads of all workers were busy.

    Parameters
    ----------
    began
        When the first electron began, in nanoseconds since the epoch.
    lanes
        A lane for each thread; those of a worker next to each other.
    failed, killed
        Times of failures by worker, in seconds since then. Times too close to be seen apart
        count once.
    """

    began: int
    lanes: list[Lane]
    failed: dict[str, np.ndarray]
    killed: dict[str, np.ndarray]


def schedule(spans: Sequence[Spans]) -> Schedule:
    """Return the schedule of all spans; it has no lanes where no electron ran."""
    spans = [each for each in spans if each.worker and len(each.starts)]
    if not spans:
        return Schedule(0, [], {}, {})
    began = int(min(each.starts.min() for each in spans))
    length = int(max(each.ends.max() for each in spans)) - began
    workers = dict.fromkeys(
        each.worker for each in sorted(spans, key=lambda each: int(each.starts.min()))
    )
    step = max(1, length // max(LEAST_STEPS, MOST_SPANS // len(workers)))
    lanes, failed, killed = [], {}, {}
    for worker in workers:
        mine = [each for each in spans if each.worker == worker]
        lanes += [_lane(worker, began, *each) for each in _threads(mine, step)]
        failed[worker] = _seen([each.failed for each in mine], began, step)
        killed[worker] = _seen([each.killed for each in mine], began, step)
    return Schedule(began, lanes, failed, killed)


def _threads(spans: list[Spans], step: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the spans of a worker by thread: as few threads as suffice for none to overlap."""
    many = sum(len(each.starts) for each in spans) > MOST_EXACT
    chained = [_chained(each.starts, each.ends, step if many else 0) for each in spans]
    starts, ends = (np.concatenate(each) for each in zip(*chained, strict=True))
    order = np.argsort(starts, kind="stable")
    threads: list[tuple[list[int], list[int]]] = []
    free: list[tuple[int, int]] = []  # when a thread was done, and which one
    for start, end in zip(starts[order].tolist(), ends[order].tolist(), strict=True):
        if free and free[0][0] <= start + step:
            _, number = heappop(free)
        else:
            number = len(threads)
            threads.append(([], []))
        begun, done = threads[number]
        if done and start - done[-1] <= step:
            done[-1] = max(end, done[-1])
        else:
            begun.append(start)
            done.append(end)
        heappush(free, (done[-1], number))
    return [(np.array(begun), np.array(done)) for begun, done in threads]


def _lane(worker: str, began: int, starts: np.ndarray, ends: np.ndarray) -> Lane:
    return Lane(worker, (starts - began) / 1e9, (ends - began) / 1e9)


def _seen(times: list[np.ndarray], began: int, step: int) -> np.ndarray:
    """Return times in seconds since `began`, only the first of each `step`."""
    since = np.concatenate(times) - began
    _, first = np.unique(since // step, return_index=True)
    seconds: np.ndarray = since[first] / 1e9
    return seconds


@dataclass(frozen=True, slots=True)
class Durations:
    """How long electrons ran, in nanoseconds.

    Parameters
    ----------
    good, failed
        Durations of electrons that ended well, and of those that failed. Electrons that one call
        executed share one duration.
    electrons
        How many electrons there are.
    """

    good: np.ndarray
    failed: np.ndarray
    electrons: int


def durations_of(part: RunPart) -> Durations:
    """Return how long the electrons of a part ran; none where they never did."""
    outcome = part.outcome
    if not outcome.worker:
        none = np.empty(0, dtype=np.int64)
        return Durations(none, none, 0)
    starts, ends = outcome.times()
    another = np.ones(len(starts), dtype=bool)
    another[1:] = (starts[1:] != starts[:-1]) | (ends[1:] != ends[:-1])
    failed = outcome.failed_mask()
    another[1:] |= failed[1:] != failed[:-1]
    lengths = ends - starts
    return Durations(lengths[another & ~failed], lengths[another & failed], len(starts))
