import asyncio
import itertools
import os
import threading
import time

import numpy as np
import pandas as pd
import pytest

from atomizer_dask import (
    Atomizer,
    AtomizerError,
    DaskConductor,
    Electron,
    MemoryConductor,
    atom,
    grid,
    zipped,
)
from atomizer_dask.execution import remaining, scalar_loop, vector_loop

IMG = "<img src=x onerror=alert(1)>"


@atom(id="tests.half")
def half(x):
    if x % 10 == 3:
        raise ValueError(f"three in {x}")
    return x / 2


@atom(id="tests.gated_half")
def gated_half(x, path, free=0):
    while x >= free and not os.path.exists(path):
        time.sleep(0.005)
    return x / 2


@atom(id="tests.until_cancelled")
def until_cancelled(x, free=0, *, context):
    if x < free:
        return "free"
    context.emit("begun")
    while not context.cancelled:
        time.sleep(0.005)
    return "told"


@atom(id="tests.appends")
def appends(path, x):
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b"%d\n" % x)
    os.close(file)
    until = time.perf_counter() + 0.0005
    while time.perf_counter() < until:
        pass
    return x


@atom(id="tests.draw")
def draw(x, *, context):
    return {"uniform": context.rng.random(), "normal": context.rng.normal(), "x2": 2 * x}


@atom(id="tests.draw_rows", vectorized=True)
def draw_rows(x, *, context):
    return {
        "a": context.random(),
        "b": list(context.random(3)),
        "c": context.random((2, 2))[:, 1, 0],
    }


@atom(id="tests.draw_each")
def draw_each(x, *, context):
    return {
        "a": context.rng.random(),
        "b": context.random(3),
        "c": context.random((2, 2))[1, 0],
    }


@atom(id="tests.toss")
def toss(n, *, context):
    return int((context.rng.random(n) < 0.5).sum())


@atom(id="tests.spawn")
def spawn(x, *, context):
    own = context.rng.random()
    children = [context.conductor.send(Electron("tests.toss", {"n": 100})) for _ in range(3)]
    return {"own": own, "sum": [child.result().value() for child in children]}


def wait_for_event(stream, message):
    while (event := stream.get(60)).message != message:
        pass
    return event


# -- waiting -------------------------------------------------------------------------------------


def test_wait_returns_the_run_whatever_failed(atomizer):
    run = atomizer.map(half, grid(x=range(100)))
    assert run.wait(60) is run
    assert run.state == "finished"
    assert run.progress.done == 90
    assert run.progress.failed == 10


def test_map_returns_before_the_electrons_are_done(atomizer, gate):
    run = atomizer.map(gated_half, grid(x=range(2, 6), path=[gate.path]))
    assert run.state == "running"
    with pytest.raises(TimeoutError, match=r"0 of 4 electrons have; it goes on"):
        run.wait(0.05)
    gate.open()
    assert len(run.wait(60).to_frame()) == 4


def test_iteration_yields_properties_as_they_complete(atomizer, gate):
    run = atomizer.map(gated_half, grid(x=range(10), path=[gate.path], free=[3]))
    seen = []
    for properties in run:
        seen.append(properties)
        if len(seen) == 2:
            gate.open()  # the first two came while others wait
    assert sorted(p.result for p in seen) == [x / 2 for x in range(10)]
    assert {p.electron_id for p in seen} == {f"{run.id}-{n}" for n in range(10)}


def test_iteration_yields_failed_electrons_too(atomizer):
    outcomes = {p.electron_id: p for p in atomizer.map(half, grid(x=range(20)))}
    assert len(outcomes) == 20
    errors = [p.error for p in outcomes.values() if p.error]
    assert sorted(error.message for error in errors) == ["three in 13", "three in 3"]


def test_run_can_be_iterated_twice(atomizer):
    run = atomizer.map(half, grid(x=range(20)))
    assert [p.electron_id for p in run] == [p.electron_id for p in run]


def test_run_can_be_awaited(atomizer):
    async def main():
        run = atomizer.map(half, grid(x=range(20)))
        return run, await run

    run, awaited = asyncio.run(main())
    assert awaited is run
    assert run.state == "finished"


def test_run_can_be_iterated_asynchronously(atomizer):
    async def main():
        return [p async for p in atomizer.map(half, grid(x=range(20)))]

    assert len({p.electron_id for p in asyncio.run(main())}) == 20


def test_progress_adds_up_at_any_time(atomizer, gate):
    run = atomizer.map(gated_half, grid(x=range(200), path=[gate.path], free=[50]))
    for _ in zip(range(2), run, strict=False):
        p = run.progress
        assert p.done + p.failed + p.running + p.pending == p.total == 200
    gate.open()
    for _ in run:
        p = run.progress
        assert p.done + p.failed + p.running + p.pending == p.total == 200
    p = run.wait(60).progress
    assert (p.done, p.failed, p.running, p.pending, p.eta) == (200, 0, 0, 0, 0.0)
    assert p.rate > 0


def test_repr_of_a_run_is_short_and_escaped(local):
    run = local.map(atom(id=IMG)(lambda x: x), grid(x=range(5)), name=IMG).wait(60)
    assert "finished, 5 of 5 done" in repr(run)
    assert "<img" not in run._repr_html_()


def test_name_begins_the_id_of_a_run(local):
    assert local.map(half, {"x": [1]}, name="mine").id.startswith("mine-")
    assert local.map(half, {"x": [1]}).id.startswith("half-")


# -- events and errors ---------------------------------------------------------------------------


def test_run_tells_when_it_starts_and_ends(atomizer):
    events = atomizer.events()
    run = atomizer.map(half, grid(x=range(5))).wait(60)
    told = [event.message for event in run.events]
    assert (told[0], told[-1]) == ("started", "finished")
    assert wait_for_event(events, "finished").run_id == run.id


def test_what_an_atom_emits_arrives_on_both_streams(atomizer):
    @atom(id="tests.emit")
    def emit(x, *, context):
        context.emit("halfway", level="warning", x=x, array=np.float64(x))

    events = atomizer.events()
    run = atomizer.map(emit, grid(x=[5])).wait(60)
    for event in (wait_for_event(run.events, "halfway"), wait_for_event(events, "halfway")):
        assert event.electron_id == f"{run.id}-0"
        assert (event.atom_id, event.run_id, event.level) == ("tests.emit", run.id, "warning")
        assert event.fields == {"x": 5, "array": 5.0}


def test_vectorised_atom_may_emit(atomizer):
    @atom(id="tests.emit_rows", vectorized=True)
    def emit_rows(x, *, context):
        context.emit("slice", rows=len(x))
        return x

    run = atomizer.map(emit_rows, grid(x=range(10))).wait(60)
    slices = [event.fields["rows"] for event in run.events if event.message == "slice"]
    assert sum(slices) == 10


def test_failures_arrive_on_the_error_stream(atomizer):
    errors = atomizer.errors()
    run = atomizer.map(half, grid(x=range(20))).wait(60)
    told = sorted(errors.get(60).event.electron_id for _ in range(2))
    assert told == [f"{run.id}-13", f"{run.id}-3"]


def test_failure_of_an_electron_sent_alone_arrives_on_the_error_stream(atomizer):
    errors = atomizer.errors()
    properties = atomizer.send(half, {"x": 3}).result(60)
    error = errors.get(60)
    assert error.event.electron_id == properties.electron_id
    assert error.kind == "exception"


# -- cancelling ----------------------------------------------------------------------------------


def test_cancelled_run_keeps_what_is_finished(atomizer):
    run = atomizer.map(until_cancelled, grid(x=range(100), free=[25]))
    for _ in zip(range(2), run, strict=False):
        run.cancel()
    run.wait(60)
    assert run.state == "cancelled"
    frame, errors = run.to_frame(), run.errors
    assert len(frame) == 100
    assert set(errors["kind"]) == {"cancelled"}
    assert frame["result"].notna().sum() + len(errors) == 100
    assert frame.loc[:24, "result"].tolist() == ["free"] * 25
    p = run.progress
    assert (p.done + p.failed, p.running, p.pending) == (100, 0, 0)


def test_running_electrons_are_told_that_they_are_cancelled(atomizer):
    run = atomizer.map(until_cancelled, grid(x=range(100)))
    wait_for_event(run.events, "begun")
    run.cancel()
    run.wait(60)
    results = run.to_frame()["result"].dropna()
    assert set(results) == {"told"}
    assert len(results) + len(run.errors) == 100


def test_cancelling_twice_or_after_the_end_does_no_harm(atomizer):
    run = atomizer.map(half, grid(x=range(20))).wait(60)
    run.cancel()
    run.cancel()
    assert run.wait(60).state == "finished"
    assert run.progress.done == 18


def test_conductor_is_free_after_a_run_was_cancelled(atomizer):
    run = atomizer.map(until_cancelled, grid(x=range(100)))
    wait_for_event(run.events, "begun")
    run.cancel()
    run.wait(60)
    assert atomizer.map(half, grid(x=range(3))).wait(60).progress.done == 3


# -- streamed sweeps -----------------------------------------------------------------------------


def test_iterator_is_swept_in_order(atomizer):
    run = atomizer.map(half, ({"x": x} for x in range(500)))
    frame = run.wait(60).to_frame()
    assert frame["x"].tolist() == list(range(500))
    assert frame["result"].dropna().tolist() == [x / 2 for x in range(500) if x % 10 != 3]
    assert run.progress.total == 500
    assert len(run.errors) == 50


def test_empty_iterator_is_a_run_of_no_electrons(atomizer):
    run = atomizer.map(half, iter([])).wait(60)
    assert (run.state, run.progress.total) == ("finished", 0)
    assert len(run.to_frame(metadata=True)) == 0
    assert len(run.errors) == 0
    assert list(run) == []


def test_infinite_iterator_is_drawn_as_needed_until_it_is_cancelled(atomizer):
    drawn = itertools.count()
    run = atomizer.map(gated_half, ({"x": x, "path": "/"} for x in drawn))
    for _ in zip(range(1000), run, strict=False):
        assert run.progress.total is None
    run.cancel()
    run.wait(60)
    assert run.state == "cancelled"
    p = run.progress
    assert p.done >= 1000
    assert p.total == p.done + p.failed
    frame = run.to_frame()
    assert frame["x"].tolist() == list(range(p.total))
    assert set(run.errors["kind"]) <= {"cancelled"}
    assert next(drawn) < 10**7


def test_iterator_that_waits_for_results_gets_them(atomizer):
    started = threading.Event()
    runs = []

    def rows():
        x = 64.0
        yield {"x": x, "path": "/"}
        assert started.wait(60)
        for properties in runs[0]:
            x = properties.result
            if x < 1:
                return
            yield {"x": x, "path": "/"}

    runs.append(run := atomizer.map(gated_half, rows()))
    started.set()
    assert run.wait(10).to_frame()["x"].tolist() == [64, 32, 16, 8, 4, 2, 1]


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_iterator_that_raises_is_told_after_its_electrons_were_carried_out(local, kind):
    def rows():
        yield from ({"x": x} for x in range(100, 103))
        raise kind("the tape is torn")

    run = local.map(half, rows())
    with pytest.raises(AtomizerError, match=f"iterator raised {kind.__name__} after 3 electrons"):
        run.wait(10)
    assert run.state == "failed"
    assert run.to_frame()["result"].tolist() == [50.0, 50.5, 51.0]


def test_iterator_of_no_mappings_is_told(local):
    with pytest.raises(AtomizerError, match=r"row 1 of the sweep is 5"):
        local.map(half, iter([{"x": 1}, 5])).wait(30)


# -- nothing lost, nothing twice -----------------------------------------------------------------


@pytest.fixture
def tiny_batches(monkeypatch, configure):
    """Time boxes that end all the time, and pieces and slices that are small."""
    configure({"batches.first": 0.002, "batches.shortest": 0.01})
    monkeypatch.setattr(scalar_loop, "_AT_ONCE", 7)
    monkeypatch.setattr(vector_loop, "_FIRST_SLICE", 3)
    monkeypatch.setattr(remaining, "LARGEST_PIECE", 50)


@pytest.mark.usefixtures("tiny_batches")
def test_every_electron_is_executed_exactly_once_however_often_time_is_up(atomizer, tmp_path):
    path = str(tmp_path / "lines")
    run = atomizer.map(appends, grid(path=[path], x=range(2000))).wait(60)
    with open(path) as file:
        lines = [int(line) for line in file]
    assert sorted(lines) == list(range(2000))
    assert run.to_frame()["result"].tolist() == list(range(2000))
    assert len(run._ledger.parts) > 20  # time was up many times


def test_every_electron_of_a_cancelled_run_is_executed_or_cancelled(atomizer, tmp_path):
    path = str(tmp_path / "lines")
    run = atomizer.map(appends, grid(path=[path], x=range(100_000)))
    next(iter(run))
    run.cancel()
    run.wait(60)
    with open(path) as file:
        lines = [int(line) for line in file]
    assert len(set(lines)) == len(lines)
    assert run.to_frame()["result"].dropna().tolist() == sorted(lines)
    assert len(lines) + len(run.errors) == 100_000


# -- the same bits -------------------------------------------------------------------------------


def frames_of(address, function, sweep, *more):
    """Yield the frame of a run on each conductor."""
    for conductor in (MemoryConductor(1), MemoryConductor(2), DaskConductor(address)):
        with Atomizer(conductor, *more) as atomizer:
            run = atomizer.map(function, sweep(), seed=7).wait(60)
            assert len(run.errors) == 0
            yield run.to_frame()


@pytest.mark.dask
@pytest.mark.parametrize(
    ("function", "more"),
    [(draw, ()), (draw_rows, ()), (draw_each, ()), (spawn, (toss,))],
    ids=["scalar", "vectorised", "random", "spawner"],
)
@pytest.mark.parametrize("streamed", [False, True], ids=["grid", "streamed"])
def test_frames_are_the_same_on_each_conductor(cluster, function, more, streamed):
    def sweep():
        return iter([{"x": x} for x in range(60)]) if streamed else grid(x=range(60))

    first, *others = frames_of(cluster.scheduler_address, function, sweep, *more)
    for other in others:
        pd.testing.assert_frame_equal(other, first, check_exact=True)


@pytest.mark.dask
def test_frame_is_the_same_on_one_worker():
    frames = []
    for conductor in (MemoryConductor(2), DaskConductor(workers=1)):
        with Atomizer(conductor, toss) as atomizer:
            frames.append(atomizer.map(spawn, grid(x=range(30)), seed=7).wait(60).to_frame())
    pd.testing.assert_frame_equal(*frames, check_exact=True)


@pytest.mark.parametrize("function", [draw, draw_rows, draw_each], ids=lambda f: f.id)
def test_frame_is_the_same_whatever_the_batches(atomizer, function, request):
    atomizer.register(function)
    large = atomizer.map(function, grid(x=range(3000)), seed=7).wait(60).to_frame()
    request.getfixturevalue("tiny_batches")
    small = atomizer.map(function, grid(x=range(3000)), seed=7).wait(60).to_frame()
    pd.testing.assert_frame_equal(small, large, check_exact=True)


def test_vectorised_rows_have_the_bits_of_single_electrons(atomizer):
    rows = atomizer.map(draw_rows, grid(x=range(500)), seed=7).wait(60).to_frame()
    each = atomizer.map(draw_each, grid(x=range(500)), seed=7).wait(60).to_frame()
    pd.testing.assert_frame_equal(rows, each, check_exact=True)


@pytest.mark.parametrize("draws", [1, 39, 40, 100])
def test_any_number_of_draws_gives_the_same_bits(local, draws):
    @atom(id="rows", vectorized=True)
    def rows(x, *, context):
        return {"first": context.random(draws), "second": context.random(3)}

    @atom(id="each")
    def each(x, *, context):
        return {"first": context.rng.random(draws), "second": context.rng.random(3)}

    frames = [local.map(f, grid(x=range(50)), seed=3).wait(60).to_frame() for f in (rows, each)]
    for name in ("first", "second"):
        assert np.array_equal(np.stack(frames[0][name]), np.stack(frames[1][name]))


def test_frame_is_the_same_whichever_way_the_sweep_is_given(local):
    sweeps = [
        grid(x=range(50)),
        zipped(x=range(50)),
        {"x": list(range(50))},
        pd.DataFrame({"x": range(50)}),
        [{"x": x} for x in range(50)],
        ({"x": x} for x in range(50)),
    ]
    first, *others = [local.map(draw, s, seed=7).wait(60).to_frame() for s in sweeps]
    for other in others:
        pd.testing.assert_frame_equal(other, first, check_exact=True)


def test_seed_decides_and_is_found_on_the_run(local):
    run = local.map(draw, grid(x=range(5))).wait(60)
    again = local.map(draw, grid(x=range(5)), seed=run.seed).wait(60)
    other = local.map(draw, grid(x=range(5)), seed=run.seed ^ 1).wait(60)
    pd.testing.assert_frame_equal(again.to_frame(), run.to_frame(), check_exact=True)
    assert not set(other.to_frame()["uniform"]) & set(run.to_frame()["uniform"])


def test_electrons_of_a_run_draw_different_numbers(local):
    frame = local.map(draw, grid(x=range(1000)), seed=0).wait(60).to_frame()
    assert frame["uniform"].is_unique
    assert frame["normal"].is_unique


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (2**128, ValueError), (0.5, TypeError)]
)
def test_bad_seed_is_refused(local, seed, error):
    with pytest.raises(error, match="seed must be"):
        local.map(draw, grid(x=[1]), seed=seed)


def test_electron_that_is_sent_draws_by_its_id(atomizer):
    atomizer.register(draw)
    results = [
        atomizer.send(Electron("tests.draw", {"x": 1}, id=name)).result(60).value()
        for name in ("a", "a", "b")
    ]
    assert results[0] == results[1] != results[2]


def test_what_a_vectorised_atom_cannot_ask_for_is_told(local):
    @atom(id="asks", vectorized=True)
    def asks(x, *, context):
        return context.rng.random(len(x))

    run = local.map(asks, grid(x=[1])).wait(60)
    assert "use context.random(shape)" in run.errors["message"][0]


def test_awaiting_can_be_given_up(local):
    async def give_up():
        run = local.map(gated, {"x": [1]})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run, 0.05)
        return run

    @atom(id="tests.gated_once")
    def gated(x):
        released.wait(30)
        return x

    released = threading.Event()
    run = asyncio.run(give_up())
    assert run.state == "running"
    released.set()
    assert run.wait(30).to_frame()["result"].tolist() == [1]


def test_closing_accounts_for_every_electron(memory):
    released = threading.Event()

    @atom(id="tests.sleeper")
    def sleeper(x):
        released.wait(30)
        return x

    atomizer = Atomizer(memory, sleeper)
    run = atomizer.map(sleeper, {"x": range(5)})
    atomizer.close()
    released.set()
    assert run.state == "cancelled"
    progress = run.progress
    assert progress.done + progress.failed == progress.total == 5
    assert len(run.to_frame()) == 5
