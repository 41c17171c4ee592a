"""Whatever is raised on a thread of ours ends what it concerns, and nobody waits for ever."""

import os
import random
import threading
import time
from contextlib import suppress
from time import monotonic
from types import FunctionType

import numpy as np
import pytest
from patience import wait_until

from atomizer_dask import (
    Atomizer,
    AtomizerError,
    ConductorError,
    DaskConductor,
    MemoryConductor,
    atom,
    grid,
    zipped,
)
from atomizer_dask.conductors import dispatcher
from atomizer_dask.conductors.batch_size import Sizing
from atomizer_dask.conductors.dask.batch_tasks import BatchTasks
from atomizer_dask.conductors.dask.carrier import DaskCarrier
from atomizer_dask.conductors.dask.worker_watch import WorkerWatch
from atomizer_dask.conductors.driver import Driver
from atomizer_dask.conductors.electron_sender import ElectronSender
from atomizer_dask.conductors.electron_source import ElectronSource
from atomizer_dask.execution.outcome import Outcome
from atomizer_dask.runs.ledger import Ledger
from atomizer_dask.runs.sources import stored_source
from atomizer_dask.runs.sources.electron_queue import ElectronQueue
from atomizer_dask.runs.sources.feed import Feed
from atomizer_dask.runs.sources.record import MemoryRecord
from atomizer_dask.runs.sources.retries import Retries
from atomizer_dask.runs.sources.source import RunSource
from atomizer_dask.runs.sources.store_record import StoreRecord
from atomizer_dask.runs.sources.stored_source import StoredRunSource
from atomizer_dask.store import writer
from atomizer_dask.store.filesystem.folder import Folder
from atomizer_dask.store.writer import ResultWriter
from atomizer_dask.sweeps.equality import alike
from atomizer_dask.widgets.summary import run_facts

SOON = 20  # seconds; the machine is busy


class InjectedError(Exception):
    """Raised where a test wants something to be raised."""


@atom(id="tests.third")
def third(x):
    if x % 7 == 3:
        raise ValueError("three")
    return x / 3


@atom(id="tests.kind_of")
def kind_of(x):
    return type(x).__name__


def raising_at(method, number, error=InjectedError):
    """A method that raises the n-th time that it is called, and from then on works again."""
    calls = iter(range(1, 10**9))

    def raises(*args, **options):
        if next(calls) == number:
            raise error(f"in {method.__qualname__}")
        return method(*args, **options)

    return raises


def ends(run):
    """How a run ended, which must be soon."""
    assert run.join(SOON), f"{run} goes on"
    if run.error is not None:
        assert run.state == "failed"
        with pytest.raises(type(run.error)):
            run.wait(SOON)
    return run.state


# -- a method of our own that raises ---------------------------------------------------------------

GUARDS = {"act", "post", "post_action", "post_later", "fail", "give_up", "_break_off", "__init__"}
GUARDS |= {"join", "rate", "__len__", "__eq__", "__repr__", "look", "snapshot", "reopen"}
OF_RUNS = (
    RunSource,
    StoredRunSource,
    ElectronQueue,
    Feed,
    Retries,
    MemoryRecord,
    StoreRecord,
    Ledger,
)
KINDS = (Driver, *OF_RUNS, ResultWriter, ElectronSource, ElectronSender, Sizing, Outcome)
PLACES = [
    (kind, name)
    for kind in KINDS
    for name, method in vars(kind).items()
    if isinstance(method, FunctionType) and name not in GUARDS
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0].__name__}.{place[1]}")
def test_any_method_that_raises_leaves_nobody_waiting(place, monkeypatch, tmp_path):
    kind, name = place
    monkeypatch.setattr(stored_source, "FLUSH_SECONDS", 0.01)
    options = {"on_failure": "retry", "max_attempts": 2, "backoff": 0.01}
    number = 1 + PLACES.index(place) % 2
    atomizer = Atomizer(MemoryConductor(2), third)
    path, runs, futures = tmp_path / "store", [], []
    with monkeypatch.context() as patch:
        patch.setattr(kind, name, raising_at(vars(kind)[name], number))
        rows, stream = grid(x=range(300)), ({"x": x} for x in range(100))
        for sweep, more in ((rows, {}), (stream, {}), (rows, {"store": path})):
            with suppress(InjectedError):  # raised before there is a run
                runs.append(atomizer.map(third, sweep, **options, **more))
        for x in range(20):
            with suppress(InjectedError):
                futures.append(atomizer.send(third, {"x": x}))
        for run in runs:
            ends(run)
        for future in futures:
            assert isinstance(future.exception(SOON), AtomizerError | None)
        with suppress(InjectedError):
            runs = [atomizer.map(third, rows)]
            for act in (runs[0].pause, runs[0].resume, runs[0].cancel):
                act()
            ends(runs[0])
    assert ends(atomizer.map(third, rows)) == "finished"  # it is none the worse for it
    began = monotonic()
    atomizer.close()
    assert monotonic() - began < SOON
    with Atomizer(MemoryConductor(2), third) as again:
        attached = again.attach(path, takeover=True).wait(SOON)
        assert attached.progress.done + attached.progress.failed == 300
        # No trouble of ours is an electron's outcome.
        assert set(attached.errors["kind"]) == {"exception"}


RETRYING = [(kind, name) for kind, name in PLACES if kind in (*OF_RUNS, ResultWriter)]
RETRYING += [(Ledger, "reopen")]


def test_retry_in_which_anything_raises_leaves_nobody_waiting(monkeypatch, tmp_path):
    monkeypatch.setattr(stored_source, "FLUSH_SECONDS", 0.01)
    with Atomizer(MemoryConductor(2), third) as atomizer:
        for number, (kind, name) in enumerate(RETRYING):
            for where in (None, tmp_path / f"{number}"):
                run = atomizer.map(third, grid(x=range(30)), store=where).wait(SOON)
                with monkeypatch.context() as patch, suppress(InjectedError, AtomizerError):
                    patch.setattr(kind, name, raising_at(vars(kind)[name], 1))
                    run.retry()
                    ends(run)
                assert ends(run) in ("finished", "failed"), name
                if where is not None:
                    attached = atomizer.attach(where, takeover=True).wait(SOON)
                    assert (attached.progress.done, attached.progress.failed) == (26, 4), name


CHANCES = [InjectedError, SystemExit, MemoryError, KeyboardInterrupt]


@pytest.mark.parametrize("seed", range(6))
def test_chance_finds_nobody_waiting(seed, monkeypatch, tmp_path):
    chance = random.Random(seed)
    with monkeypatch.context() as patch:
        for kind, name in chance.sample(PLACES, 3):
            error = chance.choice(CHANCES)
            number = chance.randint(1, 20)
            patch.setattr(kind, name, raising_at(vars(kind)[name], number, error))
        atomizer = Atomizer(MemoryConductor(2), third)
        rows, stream = grid(x=range(500)), ({"x": x} for x in range(500))
        retried, kept_in = {"on_failure": "retry", "backoff": 0.01}, {"store": tmp_path / "store"}
        runs, futures = [], []
        for sweep, options in ((rows, retried), (stream, {}), (rows, kept_in)):
            with suppress(*CHANCES):  # raised before there is a run
                runs.append(atomizer.map(third, sweep, **options))
        for x in range(50):
            with suppress(*CHANCES):
                futures.append(atomizer.send(third, {"x": x}))
        for run in runs:
            ends(run)
        for future in futures:
            future.exception(SOON)
        atomizer.close()


CARRYING = [
    *((DaskCarrier, name) for name in ("submit", "retract", "stop", "_heed", "_announce_demand")),
    *((BatchTasks, name) for name in ("_carry_out", "_submit", "_clear", "post")),
    *((BatchTasks, name) for name in ("_release_soon", "_drop")),
    (WorkerWatch, "note"),
]


@pytest.mark.dask
@pytest.mark.parametrize("error", [InjectedError, SystemExit])
@pytest.mark.parametrize(("kind", "name"), CARRYING)
def test_conductor_that_raises_leaves_nobody_waiting(cluster, kind, name, error, monkeypatch):
    atomizer = Atomizer(DaskConductor(cluster.scheduler_address), third)
    with monkeypatch.context() as patch:
        patch.setattr(kind, name, raising_at(vars(kind)[name], 2, error))
        runs = [atomizer.map(third, grid(x=range(3000))), atomizer.map(third, grid(x=range(3000)))]
        with suppress(error):
            runs[0].pause()
            runs[0].resume()
        futures = [atomizer.send(third, {"x": x}) for x in range(20)]
        for run in runs:
            ends(run)
        for future in futures:
            assert isinstance(future.exception(SOON), AtomizerError | None)
    after = atomizer.map(third, grid(x=range(10)))
    assert after.wait(SOON).progress.done == 9
    began = monotonic()
    atomizer.close()
    assert monotonic() - began < SOON


def test_run_fails_alone(local, monkeypatch, gate):
    calm = local.map(third, grid(x=range(1000)))
    monkeypatch.setattr(RunSource, "deliver", raising_at(RunSource.deliver, 1))
    with monkeypatch.context() as patch:
        patch.setattr(RunSource, "note_drawn", raising_at(RunSource.note_drawn, 1))
        broken = local.map(third, ({"x": x} for x in range(100)))
        assert broken.join(SOON)
    assert calm.join(SOON)
    assert sorted([calm.state, broken.state]) in (["failed", "finished"], ["failed", "failed"])


def test_error_of_a_run_says_what_was_raised_and_where(local, monkeypatch, caplog):
    def explode(*_):
        raise InjectedError("no way on")

    monkeypatch.setattr(RunSource, "take", explode)
    run = local.map(third, grid(x=range(10)))
    with pytest.raises(AtomizerError, match=r"no way on \(raised in .*explode, .*broken_off"):
        run.wait(SOON)
    assert isinstance(run.error.internal, InjectedError)
    assert run.state == "failed"
    wait_until(lambda: any(record.levelname == "ERROR" for record in caplog.records), "logged")
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 1
    assert len(told[0].getMessage().splitlines()) == 1  # a line, no traceback of hundreds
    assert "no way on" in [e for e in run.events if e.level == "error"][-1].fields["error"]


def test_events_of_a_run_that_broke_off_end(local, monkeypatch):
    monkeypatch.setattr(RunSource, "_set_state", raising_at(RunSource._set_state, 1))
    run = local.map(third, grid(x=range(10)))
    assert ends(run) == "failed"
    assert list(run.events) is not None  # the stream is closed, so that this returns


def test_run_that_broke_off_is_not_retried_in_vain(local, monkeypatch):
    monkeypatch.setattr(RunSource, "_end", raising_at(RunSource._end, 1))
    run = local.map(third, grid(x=range(10)))
    assert ends(run) == "failed"
    with pytest.raises(AtomizerError, match="map anew"):
        run.retry()
    assert run.state == "failed"


@atom(id="tests.third_at_gate")
def third_at_gate(x, path):
    while x != 3 and not os.path.exists(path):
        time.sleep(0.01)
    if x == 3:
        raise ValueError(x)


def test_suspended_run_is_not_retried_in_vain(local, tmp_path, gate):
    run = local.map(third_at_gate, grid(x=[3, 1, 2], path=[gate.path]), store=tmp_path / "s")
    wait_until(lambda: run.progress.failed == 1)
    assert run.suspend().state == "suspended"
    with pytest.raises(AtomizerError, match="attach"):
        run.retry()
    assert run.state == "suspended"
    gate.open()


def test_action_that_is_nobodys_fails_all_that_is_under_way(local, gate):
    run = local.map(third_at_gate, grid(x=[1], path=[gate.path]))
    future = local.send(third_at_gate, {"x": 1, "path": gate.path})
    conductor = run.conductor
    conductor.post(lambda: 1 / 0)
    assert ends(run) == "failed"
    assert isinstance(future.exception(SOON), AtomizerError)
    gate.open()
    assert local.map(third, grid(x=range(10))).wait(SOON).progress.done == 9


# -- objects of the user ---------------------------------------------------------------------------


class Hostile:
    """An input of which hardly anything can be asked."""

    def __init__(self, number=0):
        self.number = number

    def _raise(self, *_):
        raise InjectedError("ask me nothing")

    nbytes = shape = dtype = property(_raise)
    __eq__ = __len__ = __bool__ = __hash__ = __iter__ = __repr__ = __str__ = __array__ = _raise
    __getitem__ = __float__ = __int__ = __format__ = __lt__ = _raise


class Odd:
    """An input whose size is none."""

    def __init__(self, nbytes):
        self.nbytes = nbytes


@pytest.mark.parametrize(
    "nbytes", [Hostile(), -1, "many", None, np.inf, np.nan, True, 10**30, [1, 2], np.arange(3)]
)
def test_size_that_an_input_claims_is_not_trusted(atomizer, nbytes):
    run = atomizer.map(kind_of, zipped(x=[Odd(nbytes)] * 3))
    assert run.wait(60).to_frame()["result"].tolist() == ["Odd"] * 3


def test_inputs_of_which_nothing_can_be_asked_are_carried(atomizer):
    run = atomizer.map(kind_of, zipped(x=[Hostile(n) for n in range(5)]))
    assert run.wait(60).state == "finished"
    assert [properties.value() for properties in run] == ["Hostile"] * 5
    future = atomizer.send(kind_of, {"x": Hostile()})
    assert future.result(60).value() == "Hostile"


class Unreducible:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error("not to be pickled")


@pytest.mark.parametrize("error", [InjectedError, SystemExit, KeyboardInterrupt, MemoryError])
def test_input_whose_pickling_raises_anything_leaves_nobody_waiting(atomizer, error):
    values = [1, Unreducible(error), 3]
    try:
        run = atomizer.map(kind_of, zipped(x=values))
    except (AtomizerError, KeyboardInterrupt):  # in this thread it may be the user's
        return  # refused at once
    run.join(SOON)
    assert run.state in ("finished", "failed")
    assert atomizer.map(kind_of, zipped(x=[1, 2])).wait(60).progress.done == 2


@pytest.mark.parametrize("error", [InjectedError, SystemExit, MemoryError])
def test_what_raises_where_it_is_pickled_is_refused_by_a_store(local, tmp_path, error):
    sweep = zipped(make=[Unreducible, str], error=[error, 1])
    run = local.map(returns_given, sweep, store=tmp_path / "store", allow_pickle=True)
    assert run.wait(SOON).errors["type"].tolist() == ["UnstorableError"]
    assert not alike(Unreducible(error), Unreducible(error))


class Unloadable:
    """What can be pickled, and raises where it is unpickled, in a process or thread of ours."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        return _raise, (self.error,)


def _raise(error):
    raise error("not to be unpickled")


@atom(id="tests.returns_given")
def returns_given(make, error):
    return make(error)


@pytest.mark.dask
@pytest.mark.parametrize("error", [InjectedError, SystemExit, KeyboardInterrupt])
def test_what_raises_anything_where_it_is_unpickled_costs_one_electron(dask, error):
    with Atomizer(dask, kind_of, returns_given) as atomizer:
        if error is not KeyboardInterrupt:  # in this thread it may be the user's
            run = atomizer.map(kind_of, zipped(x=[1, Unloadable(error), 3])).wait(60)
            assert run.errors["kind"].tolist() == ["invalid_payload"]
        for make in (Unreducible, Unloadable):
            run = atomizer.map(returns_given, zipped(make=[make, str], error=[error, 1]))
            assert run.wait(60).errors["kind"].tolist() == ["exception"]
        future = atomizer.send(returns_given, {"make": Unloadable, "error": error})
        assert future.result(60).error.kind == "exception"


class LoudError(Exception):
    """An exception of the user's that can hardly be looked at."""

    def __str__(self):
        raise SystemExit("no text")

    __repr__ = __str__
    __hash__ = None

    def __eq__(self, other):
        raise InjectedError("compared")


@atom(id="tests.loud")
def loud(x):
    raise LoudError(x)


def test_exceptions_that_cannot_be_shown_are_failures_like_others(atomizer):
    run = atomizer.map(loud, grid(x=range(5)), on_failure="retry", max_attempts=2).wait(60)
    assert run.state == "finished"
    assert run.errors["kind"].tolist() == ["exception"] * 5
    assert "raised SystemExit" in run.errors["message"].iloc[0]
    assert atomizer.send(loud, {"x": 1}).result(60).error.kind == "exception"


class NotesError(Exception):
    @property
    def __notes__(self):
        raise SystemExit("notes")


class TracelessError(Exception):
    @property
    def __traceback__(self):
        raise InjectedError("no traceback")


class NobodysError(Exception):
    @property
    def __class__(self):
        raise SystemExit("no class")


@atom(id="tests.raises_given")
def raises_given(error):
    raise error("on purpose")


def test_exception_whose_class_raises_costs_its_electron(local):
    run = local.map(raises_given, zipped(error=[NobodysError, KeyError])).wait(60)
    assert run.errors["kind"].tolist() == ["exception"] * 2


@pytest.mark.parametrize("error", [NotesError, TracelessError, GeneratorExit])
def test_exceptions_that_raise_where_they_are_described_cost_their_electron(atomizer, error):
    run = atomizer.map(raises_given, zipped(error=[error, error, KeyError])).wait(60)
    assert run.errors["kind"].tolist() == ["exception"] * 3
    assert run.errors["type"].tolist() == [error.__name__, error.__name__, "KeyError"]


@atom(id="tests.returns_hostile")
def returns_hostile(x):
    return Hostile(x)


def test_results_of_which_nothing_can_be_asked_are_carried(atomizer):
    run = atomizer.map(returns_hostile, grid(x=range(5))).wait(60)
    assert run.state == "finished"
    assert len(run.to_frame()) == 5


@atom(id="tests.emits_hostile")
def emits_hostile(x, *, context):
    context.emit("look", level="warning", worker=Hostile(), other=[Hostile()])
    return x


def test_events_with_fields_of_which_nothing_can_be_asked_are_told(atomizer):
    events = atomizer.events()
    run = atomizer.map(emits_hostile, grid(x=range(3))).wait(60)
    assert run.progress.done == 3
    while events.get(SOON).message != "look":
        pass
    assert atomizer.send(emits_hostile, {"x": 1}).result(60).value() == 1


# -- functions of the user -------------------------------------------------------------------------


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_policy_that_means_to_end_the_program_ends_its_run(atomizer, error):
    def policy(failure):
        raise error("enough")

    run = atomizer.map(third, grid(x=range(10)), on_failure=policy)
    assert ends(run) == "failed"
    assert isinstance(run.error.internal, error)
    future = atomizer.send(third, {"x": 3}, on_failure=policy)
    assert future.result(60).error.kind == "exception"
    assert atomizer.map(third, grid(x=range(10))).wait(60).progress.done == 9


class Agreeable:
    """Equal to everything, and nothing else."""

    def __eq__(self, other):
        return True

    __hash__ = object.__hash__


@pytest.mark.parametrize("decision", [Agreeable(), Hostile(), None, np.array(["retry", "fail"])])
def test_decision_that_is_none_is_told(local, decision, caplog):
    run = local.map(third, grid(x=range(10)), on_failure=lambda failure: decision).wait(SOON)
    assert (run.state, run.progress.failed) == ("finished", 1)
    assert "on_failure" in caplog.text


@pytest.mark.parametrize("error", [InjectedError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_iterator_that_raises_anything_ends_its_run(atomizer, error):
    def rows():
        yield {"x": 1}
        raise error("no more")

    run = atomizer.map(third, rows())
    assert ends(run) == "failed"
    assert isinstance(run.error.internal, error)
    assert run.progress.done == 1


def test_callback_of_a_future_that_raises_anything_costs_no_other(atomizer):
    futures = [atomizer.send(third, {"x": x}) for x in range(20)]

    def leave(future):
        raise SystemExit("callback")

    futures[0].add_done_callback(leave)
    assert [future.result(60).error is None for future in futures].count(True) == 17
    assert atomizer.map(third, grid(x=range(10))).wait(60).progress.done == 9


def test_condition_of_a_retry_that_raises_changes_nothing(local):
    run = local.map(third, grid(x=range(10))).wait(SOON)

    def where(failure):
        raise SystemExit("which")

    with pytest.raises(SystemExit, match="which"):
        run.retry(where=where)
    assert (run.state, run.progress.failed) == ("finished", 1)
    assert run.retry().wait(SOON).progress.failed == 1


def test_closing_says_what_the_conductor_is_stuck_in(monkeypatch, caplog):
    monkeypatch.setattr(dispatcher, "STUCK_SECONDS", 0.3)
    stuck, over = threading.Event(), threading.Event()

    def hanging_policy(failure):
        stuck.set()
        over.wait(100)
        return "fail"

    atomizer = Atomizer(MemoryConductor(2), third)
    run = atomizer.map(third, grid(x=range(10)), on_failure=hanging_policy)
    other = atomizer.map(third, grid(x=range(10)))
    assert stuck.wait(SOON)
    future = atomizer.send(third, {"x": 1})
    began = monotonic()
    atomizer.close()
    assert monotonic() - began < SOON
    assert ends(run) == "failed"
    assert "hanging_policy" in str(run.error) or "wait" in str(run.error)
    assert other.join(SOON)
    assert isinstance(future.exception(SOON), ConductorError)
    assert "has been busy" in caplog.text
    over.set()


def test_asking_a_conductor_that_is_stuck_says_so(monkeypatch):
    monkeypatch.setattr(dispatcher, "STUCK_SECONDS", 0.3)
    stuck, over = threading.Event(), threading.Event()

    def hanging_policy(failure):
        stuck.set()
        over.wait(100)
        return "fail"

    with Atomizer(MemoryConductor(2), third) as atomizer:
        run = atomizer.map(third, grid(x=range(10)), on_failure=hanging_policy)
        assert stuck.wait(SOON)
        with pytest.raises(ConductorError, match=r"has been busy for .* does not return"):
            run.pause()
        with pytest.raises(TimeoutError, match=r"it goes on, but the thread .* has been busy"):
            run.wait(0.01)
        assert "has been busy" in run_facts(run)["error"]
        over.set()
        run.resume()  # for what was asked for is done all the same
        assert run.join(SOON)


def test_closing_does_not_wait_for_a_file_system_that_hangs(monkeypatch, tmp_path):
    monkeypatch.setattr(dispatcher, "STUCK_SECONDS", 0.2)
    monkeypatch.setattr(dispatcher, "STORING_SECONDS", 0.6)
    hangs, over = threading.Event(), threading.Event()

    def hang(*_):
        hangs.set()
        over.wait(100)
        raise OSError("the server is back, and knows nothing of this")

    monkeypatch.setattr(ResultWriter, "_write_gathered", hang)
    atomizer = Atomizer(MemoryConductor(2), third)
    run = atomizer.map(third, grid(x=range(10)), store=tmp_path / "s")
    assert hangs.wait(SOON)
    began = monotonic()
    atomizer.close()
    assert 0.4 < monotonic() - began < SOON
    assert ends(run) == "failed"
    over.set()


# -- stores ----------------------------------------------------------------------------------------


class BucketError(Exception):
    """As botocore's: no OSError."""


FOLDER = ["write_with", "read", "names", "files", "remove", "move", "exists", "create", "write"]


@pytest.mark.parametrize("name", [name for name in FOLDER if name in vars(Folder)])
def test_store_that_goes_away_ends_the_run_in_a_few_lines(name, monkeypatch, tmp_path, caplog):
    method = vars(Folder)[name]
    for number in (1, 3, 6):
        where, away = tmp_path / f"{number}", threading.Event()
        calls = iter(range(1, 10**9))

        def goes_away(*args, calls=calls, away=away, number=number, **options):
            if away.is_set() and next(calls) >= number:
                raise BucketError("could not connect to the endpoint")
            return method(*args, **options)

        caplog.clear()
        atomizer = Atomizer(MemoryConductor(2), third)
        with monkeypatch.context() as patch:
            patch.setattr(Folder, name, goes_away)
            run = atomizer.map(third, grid(x=range(4000)), store=where)
            away.set()
            ends(run)
            if run.error is not None:
                assert "could not connect" in str(run.error)
                assert len(caplog.text.splitlines()) < 30
            began = monotonic()
            atomizer.close()
            assert monotonic() - began < SOON
        with Atomizer(MemoryConductor(2), third) as again:
            attached = again.attach(where, takeover=True).wait(60)
            assert set(attached.errors["kind"]) == {"exception"}
            assert attached.progress.done == 4000 - len(range(3, 4000, 7))


def test_merging_that_raises_ends_the_run(monkeypatch, tmp_path):
    monkeypatch.setattr(writer, "FLUSH_ROWS", 10)
    monkeypatch.setattr("atomizer_dask.runs.sources.stored_source.MERGE_AT_END", 1)
    monkeypatch.setattr(ResultWriter, "_merge", raising_at(ResultWriter._merge, 1, SystemExit))
    with Atomizer(MemoryConductor(2), third) as atomizer:
        run = atomizer.map(third, grid(x=range(4000)), store=tmp_path / "s")
        assert ends(run) in ("failed", "finished")
