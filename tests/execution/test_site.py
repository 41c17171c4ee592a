"""Executing batches at a site of the test's own: no conductor, no driver."""

import copy
import threading
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomizer_dask import atom
from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.execution import remaining, vector_loop
from atomizer_dask.execution.batch import Batch, Origin
from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.outcome import Outcome
from atomizer_dask.execution.site import Site
from atomizer_dask.sweeps.inputs import Rows
from atomizer_dask.sweeps.make import as_sweep


class Here(Site):
    """This thread as a site; it keeps what it is told."""

    name = "here"

    def __init__(self):
        super().__init__()
        self.given_back, self.events, self.released = [], [], 0

    def find_atom(self, batch):
        return batch.version

    def give_back(self, batch, kept):
        self.given_back.append(kept)

    def emit(self, channel, event):
        self.events.append((channel, event))

    def release_slot(self):
        self.released += 1

    def children(self, origin, root, stream, lease):
        return origin, stream, lease


def batch_of(function, sweep, start=0, stop=None, seconds=60.0, **options):
    if not hasattr(function, "id"):
        function = atom(id="tested")(function)
    sweep = as_sweep(sweep)
    inputs = sweep.take(start, sweep.length if stop is None else stop)
    options = {
        "run_id": "R",
        "root_id": "R",
        "stream": RandomStream(7),
        "origin": Origin("channel"),
    } | options
    return Batch(
        key="key", atom_id=function.id, version=function, inputs=inputs,
        positions=range(start, start + len(inputs)),
        seconds=seconds, **options,
    )  # fmt: skip


def sent_of(function, payloads):
    function = atom(id="tested")(function)
    count = range(len(payloads))
    return Batch(
        "key", "tested", function, Rows(payloads), count,
        [(RandomStream.of_id(f"e{n}"), 0) for n in count], Origin(), ids=[f"e{n}" for n in count],
        seconds=60.0,
    )  # fmt: skip


def facts(outcome, batch):
    return [
        (p.electron_id, repr(p.result), p.error and (p.error.kind, p.error.message), p.start, p.end)
        for p in outcome.properties(batch)
    ]


def odd_fails(x):
    if x % 2:
        raise ValueError(f"odd {x}")
    return x


def test_batch_is_executed_in_order():
    seen = []
    outcome = Here().execute(batch_of(lambda x: seen.append(x), {"x": range(3000)}))
    assert seen == list(range(3000))
    assert outcome.stop == 3000
    assert outcome.worker == "here"


def test_properties_tell_every_electron():
    batch = batch_of(odd_fails, {"x": range(10)}, 4, 8)
    properties = list(Here().execute(batch).properties(batch))
    assert [p.electron_id for p in properties] == ["R-4", "R-5", "R-6", "R-7"]
    assert [p.result for p in properties] == [4, None, 6, None]
    assert [p.error and p.error.message for p in properties] == [None, "odd 5", None, "odd 7"]
    starts, ends = [p.start for p in properties], [p.end for p in properties]
    assert starts[1:] == ends[:-1]
    assert starts == sorted(starts)


def test_failures_alike_are_kept_once():
    def fails(x):
        raise ValueError("always the same")

    outcome = Here().execute(batch_of(fails, {"x": range(5000)}))
    assert len(outcome.failed) == 5000
    assert len(outcome.failures) == 1


def test_stopping_gives_back_what_has_not_begun():
    site = Here()

    def stops(x):
        if x == 2:
            site.stop("R", 0, cancel=True)
        return x

    batch = batch_of(stops, {"x": range(5000)})
    outcome = site.execute(batch)
    assert site.given_back == [3]
    assert outcome.stop == 3
    assert outcome.results["result"].values.tolist() == [0, 1, 2]
    assert len(outcome.times()[0]) == 3


@pytest.mark.parametrize("at", [0, 1022, 1023, 1024, 1025, 2047, 4998])
def test_stopping_at_any_place_keeps_what_was_executed(at):
    site, seen = Here(), []

    def stops(x):
        seen.append(x)
        if x == at:
            site.stop("R", 0, cancel=True)
        return x

    outcome = site.execute(batch_of(stops, {"x": range(5000)}))
    assert seen == list(range(at + 1))
    assert outcome.stop == at + 1
    assert site.given_back == [at + 1]


def test_stopping_tells_the_electron_that_runs():
    site, told = Here(), []

    def stops(x, *, context):
        told.append(context.cancelled)
        site.stop("R", 0, cancel=True)
        told.append(context.cancelled)

    site.execute(batch_of(stops, {"x": range(10)}))
    assert told == [False, True]


def test_batch_of_a_run_that_was_stopped_is_given_back_whole():
    site = Here()
    site.stop("R", 0, cancel=True)
    outcome = site.execute(batch_of(lambda x: x, {"x": range(10)}))
    assert outcome.stop == 0
    assert site.given_back == [0]


def test_stopping_another_run_changes_nothing():
    site = Here()
    site.stop("other", 0, cancel=True)
    assert site.execute(batch_of(lambda x: x, {"x": range(10)})).stop == 10


def test_time_box_ends_a_batch():
    site, ended = Here(), threading.Event()
    give_back = site.give_back
    site.give_back = lambda batch, kept: (give_back(batch, kept), ended.set())

    def waits(x):
        ended.wait(60)
        return x

    outcome = site.execute(batch_of(waits, {"x": range(10)}, seconds=0.01))
    assert outcome.stop == 1
    assert site.given_back == [1]


def test_single_electron_has_no_time_box():
    site = Here()
    outcome = site.execute(batch_of(lambda x: threading.Event().wait(0.05), {"x": [1]}, seconds=0))
    assert outcome.stop == 1
    assert site.given_back == []


def test_giving_back_while_the_batch_ends_keeps_the_count_right(monkeypatch):
    """The thread that gives back may be interrupted between taking electrons and counting them."""
    site, ended, drained = Here(), threading.Event(), threading.Event()
    drain = remaining.Remaining.drain

    def slow_drain(claims):
        rest = drain(claims)
        drained.set()
        ended.wait(0.5)
        return rest

    monkeypatch.setattr(remaining.Remaining, "drain", slow_drain)

    def atom_of(x):
        if x == 2:
            threading.Thread(target=site.stop, args=["R", 0], kwargs={"cancel": True}).start()
            drained.wait(60)
        return x

    outcome = site.execute(batch_of(atom_of, {"x": range(10)}))
    ended.set()
    assert outcome.stop == 3
    assert len(outcome.times()[0]) == 3


def test_waiting_gives_the_slot_and_the_rest_back_once():
    site = Here()

    def waits(x, *, context):
        _, _, lease = context.conductor
        lease.about_to_wait()
        lease.about_to_wait()
        return x

    outcome = site.execute(batch_of(waits, {"x": range(10)}))
    assert outcome.stop == 1
    assert site.released == 1
    assert site.given_back == [1]


def test_children_descend_from_their_electron():
    def sends(x, *, context):
        origin, stream, _ = context.conductor
        return origin.depth, stream.key

    batch = batch_of(sends, {"x": range(3)})
    results = [p.result for p in Here().execute(batch).properties(batch)]
    assert results == [(1, RandomStream(7).child(n).key) for n in range(3)]


def test_events_go_to_whoever_sent_the_batch():
    site = Here()
    site.execute(batch_of(lambda x, *, context: context.emit("seen", x=x), {"x": [1, 2]}))
    assert [channel for channel, _ in site.events] == ["channel"] * 2
    assert [event.electron_id for _, event in site.events] == ["R-0", "R-1"]


def test_electrons_sent_one_by_one_keep_their_results_as_they_are():
    marker = object()
    batch = sent_of(lambda x: marker if x else {"a": 1}, [{"x": 0}, {"x": 1}, {"y": 1}, 5])
    properties = list(Here().execute(batch).properties(batch))
    assert [p.electron_id for p in properties] == ["e0", "e1", "e2", "e3"]
    assert properties[0].result == {"a": 1}
    assert properties[1].result is marker
    assert [p.error.kind for p in properties[2:]] == ["invalid_payload"] * 2


# -- vectorised ----------------------------------------------------------------------------------


def test_vectorised_atom_is_handed_slices_in_order():
    seen = []

    def function(x):
        seen.append(len(x))
        return x + 1

    outcome = Here().execute(
        batch_of(atom(id="v", vectorized=True)(function), {"x": range(10_000)})
    )
    assert [seen.pop(1), seen.pop(1)] == [32, 32]  # executed again in other cuts
    assert sum(seen) == 10_000
    assert outcome.results["result"].values.tolist() == list(range(1, 10_001))
    assert len(outcome.times()[0]) == 10_000


@given(st.lists(st.integers(0, 1023), unique=True, max_size=12))
def test_bisecting_fails_guilty_rows_alone_with_few_calls(guilty):
    calls = []

    def function(x):
        calls.append(len(x))
        if np.isin(x, guilty).any():
            raise ValueError("guilty")
        return 2 * x

    outcome = Here().execute(batch_of(atom(id="v", vectorized=True)(function), {"x": range(1024)}))
    assert list(outcome.failed) == sorted(guilty)
    good = [2 * x for x in range(1024) if x not in guilty]
    assert outcome.stop == 1024
    if good:
        assert outcome.results["result"].values.tolist() == good
    # Two halves at each of log2(1024) levels for each guilty row, the first call and other cuts.
    assert len(calls) <= 3 + 2 * 10 * len(guilty)


def test_wrong_length_is_not_bisected():
    calls = []

    def function(x):
        calls.append(len(x))
        return [1]

    outcome = Here().execute(batch_of(atom(id="v", vectorized=True)(function), {"x": range(100)}))
    assert calls == [100]
    assert len(outcome.failed) == 100
    assert "given 100 electrons and returned 1 values" in outcome.failures[0].message


def test_vectorised_batch_can_be_stopped_between_slices(monkeypatch):
    monkeypatch.setattr(vector_loop, "_FIRST_SLICE", 10)
    monkeypatch.setattr(remaining, "LARGEST_PIECE", 10)
    site = Here()

    def function(x):
        if 25 in x:
            site.stop("R", 0, cancel=True)
        return x

    outcome = site.execute(batch_of(atom(id="v", vectorized=True)(function), {"x": range(100)}))
    assert outcome.stop == 30
    assert site.given_back == [30]


# -- outcomes ------------------------------------------------------------------------------------


def mixed(x):
    if x % 5 == 1:
        raise ValueError(f"no {x}")
    return [{"a": x}, {"a": x, "b": f"{x}"}, None, {"b": "only"}][x % 4]


def whole_rows(x):
    return np.stack([x, x], axis=1)


OUTCOMES = {
    "scalars": lambda: batch_of(odd_fails, {"x": range(20)}),
    "mixed": lambda: batch_of(mixed, {"x": range(20)}),
    "vectorised": lambda: batch_of(atom(id="v", vectorized=True)(whole_rows), {"x": range(20)}),
    "sent": lambda: sent_of(odd_fails, [{"x": x} for x in range(20)]),
}


@pytest.mark.parametrize("make", OUTCOMES.values(), ids=OUTCOMES)
def test_truncated_outcome_is_its_beginning(make):
    batch = make()
    outcome = Here().execute(batch)
    for kept in range(22):
        part = outcome.part(0, kept)
        assert part.stop == min(kept, 20)
        before, after = facts(outcome, batch)[:kept], facts(part, batch)
        assert [one[:3] for one in after] == [one[:3] for one in before]
        for (*_, end), (*_, end_before) in zip(after, before, strict=True):
            assert abs(end - end_before) <= timedelta(microseconds=1)


@pytest.mark.parametrize("make", OUTCOMES.values(), ids=OUTCOMES)
def test_outcome_can_be_told_of_in_two_parts(make):
    batch = make()
    outcome = Here().execute(batch)
    whole = facts(outcome, batch)
    for cut in range(21):
        joined = facts(outcome.part(0, cut), batch) + facts(outcome.part(cut, 20), batch)
        assert [one[:3] for one in joined] == [one[:3] for one in whole]


@pytest.mark.parametrize("make", OUTCOMES.values(), ids=OUTCOMES)
def test_good_electrons_can_be_failed_afterwards(make):
    batch = make()
    outcome = Here().execute(batch)
    before = copy.deepcopy(facts(outcome, batch))
    good = [n for n, one in enumerate(before) if one[2] is None]
    bad = [0, 3, len(good) - 1]
    after = facts(outcome.with_failed(bad, Failure("rejected", "E", "late")), batch)
    late = {good[n] for n in bad}
    assert [one[2] for one in after] == [
        ("rejected", "late") if n in late else one[2] for n, one in enumerate(before)
    ]
    assert [one[1] for one in after] == [
        "None" if n in late else one[1] for n, one in enumerate(before)
    ]
    assert facts(outcome, batch) == before


def test_electrons_that_never_ran_share_a_failure():
    outcome = Outcome.all_failed(5, Failure("cancelled", "", "too late"))
    batch = batch_of(odd_fails, {"x": range(5)})
    assert [p.error.kind for p in outcome.properties(batch)] == ["cancelled"] * 5
    assert outcome.part(0, 2).stop == len(outcome.part(0, 2).failed) == 2
    assert str(next(outcome.properties(batch)).error.event) == "[aid:tested | eid:R-0] too late"


def test_inputs_reach_the_atom_as_a_loop_over_what_was_given_has_them():
    types = []
    columns = {"x": np.arange(2, dtype="i2"), "y": np.zeros(2, "f4"), "z": pd.Series([True, False])}
    Here().execute(batch_of(lambda x, y, z: types.append((type(x), type(y), type(z))), columns))
    assert types == [(np.int16, np.float32, bool)] * 2
