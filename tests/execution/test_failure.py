"""Failure is data: policies, timeouts, cancelling and pausing, on every conductor."""

import math
import os
import re
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atomizer_dask import Atom, Atomizer, Electron, atom, grid


@atom
def flaky(x, good_at, context):
    """Fails until attempt number `good_at`."""
    if context.attempt < good_at:
        raise OSError(f"attempt {context.attempt} of {x}")
    return [context.attempt, [(f.kind, f.message, f.worker) for f in context.failures]]


@atom
def troubled(x):
    if x == 3:
        raise TimeoutError("too slow")
    if x == 5:
        raise KeyError("gone")
    return x


PACE = threading.Event()  # never set: where time itself is what matters


# -- policies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["retry", "requeue"])
def test_failed_electrons_are_tried_again_and_told_of_it(atomizer, policy):
    inputs = {"x": [1, 2, 3], "good_at": [1, 2, 3]}
    run = atomizer.map(flaky, inputs, on_failure=policy, max_attempts=3).wait(60)
    df = run.to_frame(metadata=True)
    assert [row[0] for row in df["result"]] == df["attempts"].tolist() == [1, 2, 3]
    told = [row[1] for row in df["result"]]
    assert [[f[:2] for f in failures] for failures in told] == [
        [],
        [("exception", "attempt 1 of 2")],
        [("exception", "attempt 1 of 3"), ("exception", "attempt 2 of 3")],
    ]
    assert len(run.errors) == run.progress.failed == 0
    assert run.progress.done == 3


def test_retry_stays_and_requeue_goes_elsewhere(dask):
    with Atomizer(dask) as atomizer:
        inputs = {"x": range(40), "good_at": [2] * 40}
        stays = atomizer.map(flaky, inputs, on_failure="retry").wait(60).to_frame(metadata=True)
        goes = atomizer.map(flaky, inputs, on_failure="requeue").wait(60).to_frame(metadata=True)
    for df, same in ((stays, True), (goes, False)):
        for (_, failures), worker in zip(df["result"], df["worker"], strict=True):
            assert (failures[0][2] == worker) is same


def test_attempts_end(atomizer):
    run = atomizer.map(flaky, {"x": [1], "good_at": [99]}, on_failure="retry", max_attempts=4)
    errors = run.wait(60).errors
    assert errors["attempts"].tolist() == [4]
    history = errors["history"][0]
    assert [entry["attempt"] for entry in history] == [1, 2, 3, 4]
    assert [entry["message"] for entry in history] == [f"attempt {n} of 1" for n in range(1, 5)]
    assert all(entry["worker"] and entry["start"] <= entry["end"] for entry in history)
    assert run.progress.failed == 1


def test_policy_may_be_a_function_of_the_failure(atomizer):
    asked = []

    def only_timeouts(failure):
        asked.append((failure.type, failure.attempt))
        return "retry" if isinstance(failure.internal, TimeoutError) else "fail"

    run = atomizer.map(troubled, grid(x=range(8)), on_failure=only_timeouts, max_attempts=2)
    assert run.wait(60).errors["attempts"].to_dict() == {3: 2, 5: 1}
    assert sorted(asked) == [("KeyError", 1), ("TimeoutError", 1)]


def test_policy_that_raises_is_reported_and_stops_nothing(atomizer):
    errors = atomizer.errors()
    run = atomizer.map(troubled, grid(x=range(8)), on_failure=lambda failure: 1 / 0).wait(60)
    assert run.errors.index.tolist() == [3, 5]
    assert any(isinstance(errors.get(10).internal, ZeroDivisionError) for _ in range(4))


def test_policy_may_cancel_the_run(atomizer):
    runs = []

    def give_up(failure):
        runs[0].cancel()
        return "retry"

    @atom
    def fails_late(x, gate):
        while not Path(gate).exists():
            time.sleep(0.01)
        raise OSError(x)

    with tempfile.TemporaryDirectory() as folder:
        gate = Path(folder, "gate")
        sweep = grid(x=range(50), gate=[str(gate)])
        runs.append(atomizer.map(fails_late, sweep, on_failure=give_up))
        gate.touch()
        assert runs[0].wait(20).state == "cancelled"
    assert len(runs[0].errors) == 50


def test_backing_off_holds_no_slot(atomizer):
    inputs = {"x": range(6), "good_at": [2] * 6}
    waiting = atomizer.map(flaky, inputs, on_failure="retry", backoff="1s")
    before = time.monotonic()
    atomizer.map(troubled, grid(x=range(2))).wait(60)
    assert waiting.state == "running"
    df = waiting.wait(60).to_frame(metadata=True)
    assert time.monotonic() - before >= 0.9
    assert df["attempts"].tolist() == [2] * 6


def test_electrons_sent_by_hand_have_policies_too(atomizer):
    atomizer.register(flaky)
    electron = Electron(flaky.id, {"x": 1, "good_at": 3}, on_failure="requeue", backoff=0.01)
    properties = atomizer.send(electron).result(60)
    assert properties.value()[0] == properties.attempts == 3
    assert [failure.attempt for failure in properties.failures] == [1, 2]
    failed = atomizer.send(flaky, {"x": 1, "good_at": 9}, on_failure="retry").result(60)
    assert failed.error.attempt == failed.attempts == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"on_failure": "again"}, "on_failure must be"),
        ({"on_failure": "retry", "max_attempts": 0}, "at least 1"),
        ({"on_failure": "retry", "max_attempts": 1.5}, "whole number"),
        ({"timeout": 0}, "timeout must be"),
        ({"timeout": "soon"}, "timeout must be"),
        ({"backoff": -1}, "backoff must be"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(atomizer, options, says):
    with pytest.raises((ValueError, TypeError), match=says):
        atomizer.map(troubled, grid(x=[1]), **options)
    with pytest.raises((ValueError, TypeError), match=says):
        atomizer.send(troubled, {"x": 1}, **options)


# -- timeouts ------------------------------------------------------------------------------------


@atom
def endless(x, context):
    if x == 20:
        while True:
            pass
    if x == 40:
        time.sleep(3600)
    if x == 60:
        re.match(r"(a+)+$", "a" * 40 + "b")
    if x == 80:
        while True:
            try:
                while True:
                    time.sleep(0.01)
            except BaseException:
                pass
    if x == 100:
        while not context.cancelled:
            time.sleep(0.01)
        assert context.deadline is not None
        raise RuntimeError("heeded")
    return 2 * x


TIERS = {20: "exception", 40: "kill", 60: "kill", 80: "kill", 100: "context"}


def test_whatever_takes_too_long_is_ended_and_costs_no_neighbour(atomizer):
    run = atomizer.map(endless, grid(x=range(500)), timeout="1s").wait(60)
    errors = run.errors
    assert errors["kind"].to_dict() == dict.fromkeys(TIERS, "timeout")
    # A machine with no time to spare may not get round to raising an exception.
    assert errors["tier"].to_dict() in (TIERS, TIERS | {20: "kill"})
    assert (errors["seconds"] >= 1).all()
    assert (errors["seconds"] < 4).all()
    df = run.to_frame()
    good = df.drop(index=list(TIERS))
    assert (good["result"] == 2 * good["x"]).all()
    # No slot is lost.
    both = atomizer.map(troubled, grid(x=[0, 1]), timeout=30).wait(30).to_frame()
    assert both["result"].tolist() == [0, 1]


def test_timeout_of_an_electron_sent_by_hand(atomizer):
    atomizer.register(endless)
    properties = atomizer.send(endless, {"x": 40}, timeout="300ms").result(30)
    assert (properties.error.kind, properties.error.tier) == ("timeout", "kill")
    assert 0.3 <= properties.duration.total_seconds() < 3
    assert "0.3 s" in str(properties.error)
    assert atomizer.send(endless, {"x": 1}, timeout=30).result(30).value() == 2


def test_traceback_says_where_the_time_was_spent(local):
    error = local.map(endless, grid(x=[20]), timeout=0.2).wait(30).errors.iloc[0]
    # The file's name, and with it the line itself, is lost with some versions of cloudpickle.
    assert "in endless" in error["traceback"]
    assert error["type"] == "TimeoutError"


def test_timeout_of_a_vectorised_atom_blames_the_row(atomizer):
    @atom(vectorized=True)
    def hangs(x):
        if (x == 13).any():
            time.sleep(3600)
        return x * 2

    run = atomizer.map(hangs, grid(x=range(32)), timeout=0.3).wait(60)
    assert run.errors["kind"].to_dict() == {13: "timeout"}
    assert run.to_frame()["result"].dropna().tolist() == [2 * x for x in range(32) if x != 13]


def test_random_streams_are_the_same_in_a_child_process(atomizer):
    @atom
    def draw(x, context):
        return context.rng.random()

    sweep = grid(x=range(50))
    plain = atomizer.map(draw, sweep, seed=3).wait(60).to_frame()
    timed = atomizer.map(draw, sweep, seed=3, timeout=60).wait(60).to_frame()
    assert plain.equals(timed)


# -- quarantine -----------------------------------------------------------------------------------


@atom(isolation="process")
def deadly(x):
    if x == 30:
        os._exit(3)
    if x == 60:
        os.kill(os.getpid(), 11)
    return x


def test_isolated_atom_may_crash_and_harms_nothing(atomizer):
    run = atomizer.map(deadly, grid(x=range(300))).wait(60)
    errors = run.errors
    assert errors["kind"].to_dict() == {30: "killed", 60: "killed"}
    assert "exit code 3" in errors["message"][30]
    assert "SIGSEGV" in errors["message"][60]
    assert run.to_frame()["result"].dropna().tolist() == [
        x for x in range(300) if x not in (30, 60)
    ]


def test_vectorised_atom_that_crashes_is_narrowed_down(atomizer):
    @atom(vectorized=True, isolation="process")
    def crashes(x):
        if (x == 77).any():
            os._exit(1)
        return x

    run = atomizer.map(crashes, grid(x=range(200))).wait(60)
    assert run.errors.index.tolist() == [77]


def test_isolated_electrons_emit_and_send(atomizer):
    @atom(isolation="process")
    def parent(x, context):
        context.emit("hello", x=x)
        sent = [context.conductor.send(Electron(troubled.id, {"x": n})) for n in range(5)]
        return sum(future.result().result or 0 for future in sent)

    atomizer.register(troubled)
    events = atomizer.events()
    run = atomizer.map(parent, grid(x=range(3))).wait(60)
    assert run.to_frame()["result"].tolist() == [7, 7, 7]
    seen = set()
    while len(seen) < 3:
        event = events.get(10)
        if event.message == "hello":
            seen.add(event.fields["x"])
    assert seen == {0, 1, 2}


# -- cancelling and pausing -----------------------------------------------------------------------


@atom
def patient(x, gate, context):
    """Wait at the gate, and say whether it opened before somebody asked to stop."""
    while not Path(gate).exists():
        if context.cancelled:
            raise RuntimeError("told to stop")
        time.sleep(0.01)
    return x


def test_cancelling_ends_what_runs_and_keeps_what_is_done(atomizer, gate):
    @atom
    def some(x, gate, context):
        return x if x < 10 else patient.function(x, gate, context)

    run = atomizer.map(some, grid(x=range(50), gate=[gate.path]))
    for properties in run:
        if properties.result == 9:
            break
    before = time.monotonic()
    run.cancel()
    run.wait(10)
    assert time.monotonic() - before < 2
    assert run.state == "cancelled"
    df = run.to_frame()
    assert df["result"].dropna().tolist() == list(range(10))
    assert set(run.errors["kind"]) == {"cancelled"}
    assert len(df) == 50


def test_electron_that_heeds_nothing_does_not_hold_a_cancelled_run_back(atomizer, gate):
    @atom
    def deaf(x, gate):
        while not Path(gate).exists():
            time.sleep(0.01)

    run = atomizer.map(deaf, grid(x=range(3), gate=[gate.path]))
    while run.progress.running < 1:
        time.sleep(0.01)
    run.cancel()
    assert run.wait(10).errors["kind"].tolist() == ["cancelled"] * 3


def test_finished_electrons_are_not_held_back_by_a_slow_one(atomizer, gate):
    @atom
    def last_waits(x, gate):
        while x == 5 and not Path(gate).exists():
            time.sleep(0.01)
        return x

    run = atomizer.map(last_waits, grid(x=range(200), gate=[gate.path]))
    seen = {properties.result for _, properties in zip(range(199), run, strict=False)}
    assert seen == set(range(200)) - {5}
    gate.open()
    assert run.wait(30).to_frame()["result"].tolist() == list(range(200))


def test_paused_run_stands_still_and_goes_on(atomizer):
    @atom
    def slow(x):
        time.sleep(0.005)
        return x

    run = atomizer.map(slow, grid(x=range(300)))
    next(iter(run))
    run.pause()
    assert run.state == "paused"
    while run.progress.running:
        time.sleep(0.01)
    halted = run.progress
    with pytest.raises(TimeoutError, match="paused"):
        run.wait(0.3)
    assert run.progress.done == halted.done < 300
    run.resume()
    assert run.state == "running"
    assert run.wait(60).to_frame()["result"].tolist() == list(range(300))


def test_pausing_does_not_disturb_running_electrons(atomizer, gate):
    run = atomizer.map(patient, grid(x=range(20), gate=[gate.path]))
    while run.progress.running < 1:
        time.sleep(0.01)
    run.pause()
    gate.open()
    run.resume()
    assert run.wait(60).progress.failed == 0


def test_paused_run_can_be_cancelled(atomizer, gate):
    run = atomizer.map(patient, grid(x=range(20), gate=[gate.path]))
    run.pause()
    run.cancel()
    assert run.wait(10).state == "cancelled"
    assert len(run.to_frame()) == 20


def test_pausing_and_resuming_like_mad_loses_nothing(atomizer):
    run = atomizer.map(atom(lambda x: x), grid(x=range(20_000)))
    for _ in range(20):
        run.pause()
        run.resume()
    assert run.wait(60).to_frame()["result"].tolist() == list(range(20_000))


def test_running_electron_sent_by_hand_can_be_cancelled(atomizer, gate):
    future = atomizer.send(patient, {"x": 1, "gate": gate.path})
    while not future.running():
        time.sleep(0.01)
    future.cancel()
    assert future.result(10).error.kind == "cancelled"


# -- spawners -------------------------------------------------------------------------------------


@atom
def spawner(gate, context):
    sent = [context.conductor.send(Electron(patient.id, {"x": n, "gate": gate})) for n in range(9)]
    return [future.result().error.kind for future in sent]


def test_cancelling_a_spawner_cancels_what_it_sent(atomizer, gate):
    atomizer.register(patient)
    run = atomizer.map(spawner, grid(gate=[gate.path]))
    while run.progress.running < 1:
        time.sleep(0.01)
    run.cancel()
    run.wait(10)
    assert run.state == "cancelled"
    # Nothing of it is left: others are served at once.
    assert atomizer.send(troubled, {"x": 1}).result(10).value() == 1
    atomizer.wait(10)


# -- looking back ---------------------------------------------------------------------------------


def test_failures_are_summed_up(atomizer):
    @atom
    def fails(x):
        if x % 3 == 0:
            raise KeyError("third")
        if x % 5 == 0:
            raise ValueError("fifth")
        return x

    run = atomizer.map(fails, grid(x=range(30))).wait(60)
    summary = run.failures
    assert summary["count"].to_dict() == {
        ("exception", "KeyError"): 10,
        ("exception", "ValueError"): 4,
    }
    assert summary["first"].tolist() == [0, 5]
    assert summary["hint"].str.contains("replay").all()
    assert run.errors.groupby("type").size().to_dict() == {"KeyError": 10, "ValueError": 4}


def test_chosen_failures_are_tried_again_in_the_same_run(atomizer, gate):
    @atom
    def late(x, gate):
        if x % 2 and not Path(gate).exists():
            time.sleep(30)
        if x == 4:
            raise ValueError("for good")
        return x

    run = atomizer.map(late, grid(x=range(6), gate=[gate.path]), timeout=0.2).wait(60)
    assert run.errors["kind"].tolist() == ["timeout", "timeout", "exception", "timeout"]
    gate.open()
    run.retry(where=lambda e: e.kind == "timeout", timeout="60s")
    df = run.wait(60).to_frame(metadata=True)
    assert run.state == "finished"
    assert df["result"].dropna().tolist() == [0, 1, 2, 3, 5]
    assert df["attempts"].tolist() == [1, 2, 1, 2, 1, 2]
    assert run.errors.index.tolist() == [4]
    assert (run.progress.done, run.progress.failed) == (5, 1)
    assert {p.electron_id for p in run} == {f"{run.id}-{n}" for n in range(6)}
    retried = next(p for p in run if p.attempts == 2)
    assert retried.failures[0].kind == "timeout"


def test_what_was_just_cancelled_can_be_tried_again_at_once(atomizer):
    @atom
    def slow(x):
        time.sleep(0.02)
        return x

    run = atomizer.map(slow, grid(x=range(100)))
    next(iter(run))
    run.cancel()
    run.retry()
    PACE.wait(1)  # longer than a cancelled run waits for its electrons
    assert run.wait(30).to_frame()["result"].tolist() == list(range(100))
    assert run.state == "finished"


def test_spawners_that_were_cancelled_can_be_tried_again(atomizer, gate):
    @atom
    def sends(gate, context):
        inputs = {"x": 1, "gate": gate}
        return context.conductor.send(Electron(patient.id, inputs)).result().value()

    atomizer.register(patient)
    run = atomizer.map(sends, grid(gate=[gate.path]))
    while run.progress.running < 1:
        time.sleep(0.01)
    run.cancel()
    run.wait(10)
    gate.open()
    assert run.retry().wait(30).to_frame()["result"].tolist() == [1]


def test_killing_a_spawner_cancels_what_it_sent(atomizer, gate):
    @atom
    def hangs(gate, context):
        return context.conductor.send(Electron(patient.id, {"x": 1, "gate": gate})).result()

    atomizer.register(patient)
    assert atomizer.send(hangs, {"gate": gate.path}, timeout=0.2).result(20).error.kind == "timeout"
    atomizer.wait(10)  # or it would wait for the gate for ever


def test_what_was_cancelled_can_be_tried_again(atomizer, gate):
    run = atomizer.map(patient, grid(x=range(20), gate=[gate.path]))
    run.cancel()
    run.wait(10)
    gate.open()
    assert run.retry().wait(60).to_frame()["result"].tolist() == list(range(20))


def test_retry_that_chooses_badly_changes_nothing(local):
    run = local.map(troubled, grid(x=range(8))).wait(60)
    with pytest.raises(ZeroDivisionError):
        run.retry(where=lambda e: 1 / 0)
    assert run.retry(where=lambda e: False).state == "finished"
    assert run.progress.failed == 2


def test_electron_is_replayed_here(atomizer):
    @atom
    def noisy(x, context):
        noise = context.rng.random()
        if x == 2:
            raise ValueError(noise)
        return os.getpid(), noise

    run = atomizer.map(noisy, grid(x=range(4)), seed=5).wait(60)
    pid, noise = run.replay(f"{run.id}-1")
    assert pid == os.getpid()
    assert noise == run.to_frame()["result"][1][1]
    with pytest.raises(ValueError, match=run.errors["message"][2]) as raised:
        run.replay(2)
    frames = [entry.name for entry in raised.traceback]
    assert frames[-1] == "noisy"
    with pytest.raises(KeyError, match="has no electron"):
        run.replay("nonsense")


def test_electron_is_replayed_by_its_label(local):
    frame = pd.DataFrame({"x": [2, 5, 3, 7]}, index=[3, 2, 1, 0])
    run = local.map(troubled, frame).wait(60)
    assert run.errors.index.tolist() == [2, 1]
    with pytest.raises(KeyError, match="gone"):
        run.replay(run.errors.index[0])
    assert run.replay(3) == 2
    named = local.map(troubled, frame.set_axis(list("pqqs"))).wait(60)
    assert named.replay("s") == 7
    assert named.replay(f"{named.id}-0") == 2
    with pytest.raises(KeyError, match="2 electrons of the label"):
        named.replay("q")
    with pytest.raises(KeyError, match="has no electron"):
        named.replay("z")


def test_vectorised_and_class_atoms_are_replayed(local):
    class Twice(Atom):
        id = "twice"

        def process(self, context, conductor, electron):
            return 2 * electron.payload["x"]

    vectorised = atom(vectorized=True, id="v")(lambda x: x * 3)
    assert local.map(vectorised, grid(x=range(4))).wait(60).replay(3) == 9
    assert local.map(Twice, grid(x=range(4))).wait(60).replay(3) == 6


# -- vectorised atoms -----------------------------------------------------------------------------


def test_guilty_rows_are_found_in_few_calls(local):
    calls = []

    @atom(vectorized=True)
    def picky(x):
        calls.append(len(x))
        if np.isin(x, [100, 4000]).any():
            raise ValueError("guilty")
        return x

    n = 5000
    run = local.map(picky, grid(x=range(n))).wait(60)
    assert run.errors.index.tolist() == [100, 4000]
    slices = sum(size > 1 for size in calls)
    assert len(calls) <= slices + 2 * (2 * math.ceil(math.log2(n)) + 1)
    assert len(calls) < 100


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (lambda x: x % 10 == 3, "the atom marked this row as failed"),
        (lambda x: np.where(x % 10 == 3, "no threes", ""), "no threes"),
        (lambda x: [OverflowError("big") if v % 10 == 3 else None for v in x], "big"),
    ],
)
def test_vectorised_atom_may_mark_rows_as_failed(atomizer, mark, message):
    @atom(vectorized=True)
    def marked(x):
        return {"y": x * 2}, mark(x)

    run = atomizer.map(marked, grid(x=range(100))).wait(60)
    assert run.errors.index.tolist() == list(range(3, 100, 10))
    assert set(run.errors["message"]) == {message}
    assert run.to_frame()["y"].dropna().tolist() == [2 * x for x in range(100) if x % 10 != 3]


def test_marks_of_the_wrong_length_are_an_error(local):
    run = local.map(atom(vectorized=True)(lambda x: (x, [True])), grid(x=range(10))).wait(60)
    assert "error mark per electron" in run.errors["message"][0]


# -- singletons -----------------------------------------------------------------------------------


class Count(Atom):
    id = "tests.Count"
    singleton = "cluster"

    def __init__(self):
        self.count = 0
        self.busy = threading.Lock()

    def __deepcopy__(self, memo):
        return type(self)()

    def process(self, context, conductor, electron):
        assert self.busy.acquire(blocking=False), "two at once"
        time.sleep(0.001)
        self.count += 1
        self.busy.release()
        return {"count": self.count, "pid": os.getpid()}


def test_singleton_of_the_cluster_is_one(atomizer):
    events = atomizer.events()
    first = atomizer.map(Count, grid(x=range(100)))
    second = atomizer.map(Count, grid(x=range(100)))
    frames = [run.wait(60).to_frame() for run in (first, second)]
    counts = sorted(frames[0]["count"].tolist() + frames[1]["count"].tolist())
    assert counts == list(range(1, 201))
    assert len(set(frames[0]["pid"]) | set(frames[1]["pid"])) == 1
    while "singleton initialised" not in events.get(10).message:
        pass


def test_singleton_of_a_node_keeps_its_state_on_each(atomizer):
    class Node(Count):
        id = "tests.Node"
        singleton = "node"

    df = atomizer.map(Node, grid(x=range(200))).wait(60).to_frame()
    for _, group in df.groupby("pid"):
        assert sorted(group["count"]) == list(range(1, len(group) + 1))


def test_singleton_with_a_timeout_is_initialised_again_when_its_process_is_killed(local):
    class Stuck(Atom):
        id = "tests.Stuck"
        singleton = "node"

        def __init__(self):
            self.seen = 0

        def process(self, context, conductor, electron):
            self.seen += 1
            if electron.payload["x"] == 5:
                time.sleep(3600)
            return self.seen

    events = local.events()
    run = local.map(Stuck, grid(x=range(10)), timeout=0.3).wait(60)
    assert run.errors.index.tolist() == [5]
    counts = run.to_frame()["result"].dropna().tolist()
    assert len(counts) == 9
    assert counts.count(1) <= 2
    assert max(counts) < 10
    messages = [events.get(5).message for _ in range(len(events))]
    assert any("re-initialised" in message for message in messages)


# -- nothing silent -------------------------------------------------------------------------------


def test_subscriber_that_raises_is_reported_and_goes_on(atomizer):
    seen, enough = [], threading.Event()

    def note(event):
        seen.append(event.message)
        if len(seen) == 4:
            enough.set()
        raise ArithmeticError("in a subscriber")

    errors = atomizer.errors()
    atomizer.events().subscribe(note)
    atomizer.map(troubled, grid(x=[1])).wait(30)
    atomizer.map(troubled, grid(x=[1])).wait(30)
    assert enough.wait(10)
    assert isinstance(errors.get(10).internal, ArithmeticError)


def test_subscriber_of_errors_that_raises_does_not_feed_itself(atomizer):
    calls = []

    def note(error):
        calls.append(error)
        raise ArithmeticError("again")

    stream = atomizer.errors().subscribe(note)
    other = atomizer.errors()
    atomizer.map(troubled, grid(x=[3])).wait(30)
    assert other.get(10).type == "TimeoutError"
    assert isinstance(other.get(10).internal, ArithmeticError)
    atomizer.close()
    assert len(calls) <= 3
    assert stream.dropped == 0


def test_callback_of_a_future_that_raises_is_reported(atomizer, gate):
    errors = atomizer.errors()
    future = atomizer.send(patient, {"x": 1, "gate": gate.path})
    called = []
    future.add_done_callback(lambda done: 1 / 0)
    future.add_done_callback(called.append)
    gate.open()
    assert future.result(30).value() == 1
    assert isinstance(errors.get(10).internal, ZeroDivisionError)
    assert called == [future]


def test_progress_callback_is_called_and_may_fail(atomizer):
    seen = []

    def note(progress):
        seen.append(progress.done)
        raise ArithmeticError("in a callback")

    errors = atomizer.errors()
    atomizer.map(atom(lambda x: x), grid(x=range(100))).wait(60, progress=note)
    assert seen[-1] == 100
    assert isinstance(errors.get(10).internal, ArithmeticError)
