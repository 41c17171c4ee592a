"""The contract that every conductor keeps: all of it is run against each of them."""

import asyncio
import concurrent.futures
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster

from atomizer_dask import (
    Atom,
    Atomizer,
    Conductor,
    ConductorError,
    DaskConductor,
    Electron,
    InvalidPayloadError,
    MemoryConductor,
    RegistrationError,
    UnpicklableError,
    atom,
    grid,
    zipped,
)
from atomizer_dask.atoms.random_streams import Positioned, RandomStream
from atomizer_dask.conductors.dask.messages import (
    TOPICS,
    AtomsClaimed,
    BufferMissing,
    DemandChanged,
    OutcomesStored,
    TaskAdopted,
    TaskHandedOn,
    WorkerIdle,
    WorkerLeaving,
    as_event,
)
from atomizer_dask.conductors.dask.plugins.by_value import PluginByValue
from atomizer_dask.conductors.dask.plugins.idle_workers import IdleWorkersByValue
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import (
    ONCE,
    OutcomeLostError,
    is_lost,
)


@atom(id="tests.double")
def double(x):
    return 2 * x


@atom(id="tests.where")
def where(x):
    return os.getpid()


@atom(id="tests.gated")
def gated(path, x=0):
    while not os.path.exists(path):
        time.sleep(0.005)
    return x


class Echo(Atom):
    id = "tests.Echo"

    def process(self, context, conductor, electron):
        return electron.payload


# -- sending -------------------------------------------------------------------------------------


def test_conductor_is_one(conductor):
    assert isinstance(conductor, Conductor)
    assert conductor.threads == 2
    assert conductor.id in repr(conductor)
    assert conductor.state in conductor._repr_html_()


def test_electron_is_executed_and_has_properties(atomizer):
    properties = atomizer.send(double, {"x": 21}).result(60)
    assert properties.value() == 42
    assert properties.atom_id == "tests.double"
    assert properties.attempts == 1
    assert properties.worker
    assert properties.start.utcoffset() is not None
    assert properties.end >= properties.start


def test_electron_keeps_its_id(atomizer):
    atomizer.register(double)
    electron = Electron("tests.double", {"x": 1}, id="mine")
    assert atomizer.send(electron).result(60).electron_id == "mine"


def test_atom_sees_its_electron(atomizer):
    @atom(id="tests.look")
    def look(x, *, context):
        electron = context.electron
        return electron.id, electron.sender_id, electron.atom_id, electron.payload, context.attempt

    atomizer.register(look)
    electron = Electron("tests.look", {"x": 1}, id="E", sender_id="S")
    assert atomizer.send(electron).result(60).value() == ("E", "S", "tests.look", {"x": 1}, 1)


def test_many_electrons_are_each_answered_once(atomizer):
    futures = [atomizer.send(double, {"x": n}) for n in range(2000)]
    concurrent.futures.wait(futures, 60)
    assert [future.result(0).value() for future in futures] == [2 * n for n in range(2000)]


def test_electrons_of_several_atoms_may_be_mixed(atomizer):
    atomizer.register(double, Echo)
    electrons = [(("tests.double", {"x": n}), ("tests.Echo", n))[n % 2] for n in range(100)]
    futures = [atomizer.send(Electron(*electron)) for electron in electrons]
    assert [f.result(60).value() for f in futures] == [
        2 * n if n % 2 == 0 else n for n in range(100)
    ]


def test_electrons_of_many_senders_travel_together_and_each_keeps_its_own():
    batches = []

    class Counted(MemoryConductor):
        def submit(self, batch, post):
            batches.append(batch)
            super().submit(batch, post)

    @atom(id="tests.sender")
    def sender(*, context):
        return context.electron.sender_id

    conductor, gate = Counted(2), threading.Event()
    with Atomizer(conductor, sender):
        conductor.post(gate.wait)
        sent = {f"S{n}": Electron("tests.sender", sender_id=f"S{n}") for n in range(1000)}
        futures = {name: conductor.send(electron) for name, electron in sent.items()}
        gate.set()
        for name, future in futures.items():
            properties = future.result(60)
            assert properties.value() == name
            assert properties.electron_id == sent[name].id
    assert len(batches) < 100


def test_random_numbers_of_an_electron_follow_from_its_id(atomizer):
    @atom(id="tests.draw")
    def draw(*, context):
        return context.rng.random()

    @atom(id="tests.draws", vectorized=True)
    def draws(x, *, context):
        return context.random()

    atomizer.register(draw, draws)
    expected = [Positioned().at(RandomStream.of_id(f"E{n}"), 0).random() for n in range(50)]
    drawn = [atomizer.send(Electron("tests.draw", id=f"E{n}")) for n in range(50)]
    assert [future.result(60).value() for future in drawn] == expected
    drawn = [atomizer.send(Electron("tests.draws", {"x": n}, id=f"E{n}")) for n in range(50)]
    assert [future.result(60).value() for future in drawn] == expected


@pytest.mark.parametrize(
    "payload",
    [None, 0, "text", [1, 2], {"a": {"b": 1}}, (1, 2), np.arange(3), {1, 2}, b"bytes"],
    ids=lambda payload: type(payload).__name__,
)
def test_payload_and_result_arrive_as_they_were(atomizer, payload):
    result = atomizer.send(Echo, payload).result(60).value()
    assert type(result) is type(payload)
    assert np.array_equal(result, payload)


def test_future_can_be_awaited(atomizer):
    async def main():
        return await atomizer.send(double, {"x": 4})

    assert asyncio.run(main()).value() == 8


def test_big_payloads_and_results_travel(atomizer):
    data = np.arange(10**6)
    assert np.array_equal(atomizer.send(Echo, data).result(60).value(), data)


def test_vectorised_atom_may_be_sent_one_electron(atomizer):
    @atom(id="tests.square", vectorized=True)
    def square(x):
        assert isinstance(x, np.ndarray)
        return x**2

    @atom(id="tests.both", vectorized=True)
    def both(x):
        return {"plus": x + 1, "minus": x - 1}

    assert atomizer.send(square, {"x": 3}).result(60).value() == 9
    assert atomizer.send(both, {"x": 3}).result(60).value() == {"plus": 4, "minus": 2}


def test_class_form_is_given_a_fresh_instance_or_a_copy(atomizer):
    class Count(Atom):
        id = "tests.Count"

        def __init__(self, start=0):
            self.count = start

        def process(self, context, conductor, electron):
            self.count += 1
            return self.count

    atomizer.register(Count(10))
    assert [atomizer.send("tests.Count").result(60).value() for _ in range(2)] == [1, 1]
    copies = [atomizer.send("tests.Count", copy_state=True) for _ in range(2)]
    assert [copy.result(60).value() for copy in copies] == [11, 11]


# -- unknown atoms and bad input -----------------------------------------------------------------


def test_unknown_atom_is_answered(atomizer):
    properties = atomizer.send("tests.nowhere", {"x": 1}).result(60)
    assert properties.error.kind == "unknown_atom"
    assert "tests.nowhere" in str(properties.error)
    assert properties.result is None


def test_unknown_atom_cannot_be_mapped(atomizer):
    atomizer.register(double)
    with pytest.raises(RegistrationError, match=r"did you mean 'tests\.double'"):
        atomizer.map("tests.duoble", {"x": [1]})


def test_misfit_is_refused_before_it_is_sent(atomizer):
    with pytest.raises(InvalidPayloadError, match="unknown 'y'"):
        atomizer.send(double, {"y": 1})
    with pytest.raises(InvalidPayloadError, match="must be a mapping"):
        atomizer.send(double, 5)
    with pytest.raises(InvalidPayloadError, match="missing 'x'"):
        atomizer.map(double, {"y": [1]})


def test_misfit_of_a_streamed_row_costs_only_that_electron(atomizer):
    run = atomizer.map(double, iter([{"x": 1}, {"y": 2}, {"x": 3}])).wait(60)
    assert run.errors["kind"].tolist() == ["invalid_payload"]
    assert run.errors.index.tolist() == [1]
    assert run.to_frame()["result"].dropna().tolist() == [2, 6]


# -- whatever an atom does -----------------------------------------------------------------------


class UnprintableError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class UnreadableError(Exception):
    """Made with two arguments, of which pickle knows one: it cannot be made again."""

    def __init__(self, one, two):
        super().__init__(one)


class UnwritableError(Exception):
    def __init__(self):
        super().__init__("has a lock")
        self.lock = threading.Lock()


def _fails_to_load():
    raise RuntimeError("cannot be made again")


class Unloadable:
    """Can be pickled, and not unpickled."""

    def __reduce__(self):
        return _fails_to_load, ()


def _raise(error):
    raise error


PANICS = {
    "exception": (lambda: 1 / 0, "ZeroDivisionError"),
    "exit": (lambda: sys.exit(3), "SystemExit"),
    "interrupt": (lambda: _raise(KeyboardInterrupt()), "KeyboardInterrupt"),
    "stop": (lambda: next(iter(())), "RuntimeError"),
    "generator_exit": (lambda: _raise(GeneratorExit()), "GeneratorExit"),
    "base_exception": (lambda: _raise(BaseException("base")), "BaseException"),
    "cancelled": (lambda: _raise(asyncio.CancelledError()), "CancelledError"),
    "recursion": (lambda: _forever(0), "RecursionError"),
    "group": (lambda: _raise(ExceptionGroup("g", [ValueError()])), "ExceptionGroup"),
    "unprintable": (lambda: _raise(UnprintableError()), "UnprintableError"),
    "unreadable": (lambda: _raise(UnreadableError(1, 2)), "UnreadableError"),
    "unwritable": (lambda: _raise(UnwritableError()), "UnwritableError"),
}


def _forever(n):
    return _forever(n + 1)


@pytest.mark.parametrize(("panic", "name"), PANICS.values(), ids=PANICS)
def test_panic_of_one_electron_is_recorded_and_costs_no_other(atomizer, panic, name):
    @atom(id="tests.panic")
    def risky(x):
        return panic() if x in (3, 9) else 2 * x

    run = atomizer.map(risky, grid(x=range(10))).wait(60)
    errors = run.errors
    assert errors.index.tolist() == [3, 9]
    assert errors["type"].tolist() == [name] * 2
    assert errors["kind"].tolist() == ["exception"] * 2
    good = [x for x in range(10) if x not in (3, 9)]
    assert run.to_frame().loc[good, "result"].tolist() == [2 * x for x in good]

    futures = [atomizer.send(risky, {"x": x}) for x in range(10)]
    properties = [future.result(60) for future in futures]
    assert [p.result for p in properties] == [None if x in (3, 9) else 2 * x for x in range(10)]
    assert {p.error.type for p in properties if p.error} == {name}
    assert atomizer.send(double, {"x": 1}).result(60).value() == 2


def test_error_tells_where_in_the_atom_it_happened(atomizer):
    @atom(id="tests.deep")
    def deep(x):
        def inner():
            raise ValueError("deep inside")

        inner()

    error = atomizer.send(deep, {"x": 1}).result(60).error
    assert error.message == "deep inside"
    assert isinstance(error.internal, ValueError)
    lines = error.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "in deep" in lines[1]
    assert lines[-1] == "ValueError: deep inside"
    assert "execute.py" not in error.traceback


def test_error_tells_its_cause(atomizer):
    @atom(id="tests.caused")
    def caused(x):
        try:
            {}["key"]
        except KeyError as error:
            raise ValueError("second") from error

    error = atomizer.send(caused, {"x": 1}).result(60).error
    assert "KeyError" in error.traceback
    assert "ValueError: second" in error.traceback


def test_error_raised_by_value_has_the_atoms_own_exception_as_cause(atomizer):
    @atom(id="tests.bad")
    def bad(x):
        raise OSError(2, "no such thing")

    error = atomizer.send(bad, {"x": 1}).result(60).error
    assert isinstance(error.internal, FileNotFoundError)
    assert pickle.loads(pickle.dumps(error)).kind == "exception"


@pytest.mark.dask
def test_result_that_cannot_be_pickled_costs_no_other(dask):
    @atom(id="tests.lock")
    def lock(x):
        return threading.Lock() if x == 3 else x

    with Atomizer(dask) as atomizer:
        run = atomizer.map(lock, grid(x=range(10))).wait(60)
        assert run.errors.index.tolist() == [3]
        assert "cannot travel" in run.errors["message"][3]
        assert run.to_frame()["result"].drop(3).tolist() == [x for x in range(10) if x != 3]
        assert "lock" in str(atomizer.send(lock, {"x": 3}).result(60).error)
        assert atomizer.send(lock, {"x": 4}).result(60).value() == 4


def test_result_that_cannot_be_pickled_is_no_matter_in_memory(memory):
    with Atomizer(memory) as atomizer:
        result = atomizer.send(atom(id="lock")(lambda: threading.Lock())).result(60).value()
        assert isinstance(result, type(threading.Lock()))


@pytest.mark.dask
def test_result_that_cannot_be_unpickled_costs_no_other(dask):
    @atom(id="tests.unloadable")
    def unloadable(x):
        return Unloadable() if x == 3 else x

    with Atomizer(dask) as atomizer:
        run = atomizer.map(unloadable, grid(x=range(10))).wait(60)
        assert run.errors.index.tolist() == [3]
        assert run.to_frame()["result"].drop(3).tolist() == [x for x in range(10) if x != 3]
        assert atomizer.send(double, {"x": 4}).result(60).value() == 8


@pytest.mark.dask
def test_input_that_cannot_be_read_by_workers_costs_no_other(dask):
    with Atomizer(dask) as atomizer:
        run = atomizer.map(Echo, zipped(x=[*range(5), Unloadable(), *range(5)])).wait(30)
        assert run.errors.index.tolist() == [5]
        assert atomizer.send(double, {"x": 4}).result(60).value() == 8


@pytest.mark.dask
@pytest.mark.parametrize("poison", [threading.Lock(), Unloadable()], ids=["lock", "unloadable"])
def test_payload_that_cannot_travel_is_answered(dask, poison):
    with Atomizer(dask) as atomizer:
        assert atomizer.send(Echo, poison).result(30).error is not None
        assert atomizer.send(double, {"x": 4}).result(60).value() == 8


def test_results_that_numpy_cannot_unite_are_kept(atomizer):
    @atom(id="tests.units")
    def units(x):
        return np.timedelta64(1, "Y" if x % 2 else "D")

    frame = atomizer.map(units, grid(x=range(4))).wait(20).to_frame()
    assert len(frame["result"]) == 4


# -- vectorised ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (lambda x: x[:-1], "given 10 electrons and returned 9 values"),
        (lambda x: 5, "given 10 electrons and returned a single value"),
        # Wrong for a batch of any size: after the first one, they may have as few as two.
        (lambda x: {"y": x, "z": x[:-1]}, "returned 9 values for the output 'z'"),
        (lambda x: [[1], [1, 2]], "inhomogeneous"),
        (lambda x: None, "returned a single value"),
    ],
    ids=["short", "scalar", "dict", "ragged", "none"],
)
def test_wrong_length_of_a_vectorised_result_says_both(atomizer, returned, says):
    @atom(id="tests.short", vectorized=True)
    def short(x):
        return returned(x)

    run = atomizer.map(short, zipped(x=np.arange(40))).wait(60)  # the first batch has 10
    assert len(run.errors) == 40
    assert says in run.errors["message"][0]


def test_vectorised_frame_with_a_column_twice_is_an_error(atomizer):
    @atom(id="tests.twice", vectorized=True)
    def twice(x):
        import pandas as pd

        return pd.DataFrame(np.zeros((len(x), 2)), columns=["a", "a"])

    run = atomizer.map(twice, zipped(x=np.arange(10))).wait(20)
    assert len(run.errors) == 10


def test_panics_of_a_vectorised_atom_fail_guilty_electrons_alone(atomizer):
    @atom(id="tests.halves", vectorized=True)
    def halves(x):
        if np.isin(x, [3, 700]).any():
            sys.exit(1)
        return x / 2

    run = atomizer.map(halves, grid(x=range(1000))).wait(60)
    assert run.errors.index.tolist() == [3, 700]
    assert run.errors["type"].tolist() == ["SystemExit"] * 2
    assert run.progress.done == 998


# -- spawners ------------------------------------------------------------------------------------


@atom(id="tests.tree")
def tree(depth, *, context):
    if depth == 0:
        return 1
    children = [
        context.conductor.send(Electron("tests.tree", {"depth": depth - 1})) for _ in range(2)
    ]
    return 1 + sum(child.result().value() for child in children)


@atom(id="tests.waiting")
def waiting(how, *, context):
    children = [context.conductor.send(Electron("tests.double", {"x": n})) for n in range(5)]
    if how == "as_completed":
        done = concurrent.futures.as_completed(children)
    elif how == "wait":
        done = concurrent.futures.wait(children).done
    else:
        done = children
    return sum(child.result().value() for child in done)


@atom(id="tests.child")
def child(n, *, context):
    context.emit("child ran", n=n)


@atom(id="tests.free")
def free(count, *, context):
    for n in range(count):
        context.conductor.send(Electron("tests.child", {"n": n}))
    return count


@pytest.mark.parametrize("how", ["result", "as_completed", "wait"])
def test_spawner_may_wait_for_its_children(atomizer, how):
    atomizer.register(double)
    assert atomizer.send(waiting, {"how": how}).result(60).value() == 20


def test_more_waiting_spawners_than_threads_do_not_deadlock(atomizer):
    atomizer.register(double)
    run = atomizer.map(waiting, {"how": ["result"] * 20}).wait(60)
    assert run.to_frame()["result"].tolist() == [20] * 20


def test_tree_of_waiting_spawners_does_not_deadlock(atomizer):
    atomizer.register(tree)
    assert atomizer.send(tree, {"depth": 6}).result(90).value() == 2**7 - 1


def test_tree_of_waiting_spawners_does_not_deadlock_on_one_thread():
    with Atomizer(MemoryConductor(1), tree) as atomizer:
        assert atomizer.send(tree, {"depth": 6}).result(60).value() == 2**7 - 1


def test_children_of_a_free_spawner_are_executed(atomizer):
    atomizer.register(child)
    events = atomizer.events()
    assert atomizer.send(free, {"count": 10}).result(60).value() == 10
    ran = []
    while len(ran) < 10:
        event = events.get(60)
        if event.message == "child ran":
            ran.append(event.fields["n"])
    assert sorted(ran) == list(range(10))


def test_unknown_child_is_answered(atomizer):
    @atom(id="tests.parent")
    def parent(x, *, context):
        return context.conductor.send(Electron("tests.nowhere")).result().error.kind

    assert atomizer.send(parent, {"x": 1}).result(60).value() == "unknown_atom"


def test_failing_child_is_data_to_its_parent(atomizer):
    @atom(id="tests.bad_child")
    def bad_child():
        raise ValueError("child failed")

    @atom(id="tests.mother")
    def mother(x, *, context):
        return context.conductor.send(Electron("tests.bad_child")).result().error.message

    atomizer.register(bad_child)
    assert atomizer.send(mother, {"x": 1}).result(60).value() == "child failed"


def test_class_form_may_spawn(atomizer):
    class Parent(Atom):
        id = "tests.Parent"

        def process(self, context, conductor, electron):
            return conductor.send(Electron("tests.double", {"x": 5})).result().value()

    atomizer.register(double)
    assert atomizer.send(Parent).result(60).value() == 10


def test_class_form_may_spawn_from_threads_of_its_own(atomizer):
    class Parent(Atom):
        id = "tests.Parent"

        def process(self, context, conductor, electron):
            def send(n):
                return conductor.send(Electron("tests.draw", {"x": n}))

            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                futures = list(pool.map(send, range(40)))
            return isinstance(conductor, Conductor), [f.result().value() for f in futures]

    @atom(id="tests.draw")
    def draw(x, *, context):
        return x, context.rng.random()

    atomizer.register(draw)
    is_one, results = atomizer.send(Parent).result(60).value()
    assert is_one
    assert [x for x, _ in results] == list(range(40))
    assert len({number for _, number in results}) == 40  # each has a stream of its own


# -- versions ------------------------------------------------------------------------------------


def version(number):
    @atom(id="tests.version")
    def versioned(path, x):
        while not os.path.exists(path):
            time.sleep(0.005)
        return number

    return versioned


def test_redefinition_takes_effect_for_the_next_electron_and_not_for_those_sent(atomizer, gate):
    sweep = grid(path=[gate.path], x=range(20))
    atomizer.register(version(1))
    before = atomizer.map("tests.version", sweep)
    sent = [atomizer.send("tests.version", {"path": gate.path, "x": x}) for x in range(5)]
    atomizer.register(version(2))
    after = atomizer.map("tests.version", sweep)
    gate.open()
    assert set(before.wait(60).to_frame()["result"]) == {1}
    assert {future.result(60).value() for future in sent} == {1}
    assert set(after.wait(60).to_frame()["result"]) == {2}
    assert atomizer.send("tests.version", {"path": gate.path, "x": 0}).result(60).value() == 2


@pytest.mark.dask
def test_atom_registered_by_one_client_is_known_to_another(cluster):
    with (
        Atomizer(DaskConductor(cluster.scheduler_address), atom(id="tests.shared")(lambda x: -x)),
        Atomizer(DaskConductor(cluster.scheduler_address)) as second,
    ):
        assert second.send("tests.shared", {"x": 3}).result(60).value() == -3
        assert second.map("tests.shared", {"x": [1, 2]}).wait(60).to_frame()["result"].tolist() == [
            -1,
            -2,
        ]
        with pytest.raises(InvalidPayloadError, match="unknown 'y'"):
            second.map("tests.shared", {"y": [1]})


@pytest.mark.dask
def test_redefinition_by_one_client_is_seen_by_another(cluster):
    with (
        Atomizer(DaskConductor(cluster.scheduler_address)) as first,
        Atomizer(DaskConductor(cluster.scheduler_address)) as second,
    ):
        for number in (1, 2):
            first.register(atom(id="tests.renewed")(lambda x, n=number: n))
            assert second.send("tests.renewed", {"x": 0}).result(60).value() == number


@pytest.mark.dask
def test_worker_that_joins_later_serves_what_was_registered_before():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Atomizer(DaskConductor(cluster), where) as atomizer,
        Client(cluster, set_as_default=False) as client,
    ):
        old = atomizer.send("tests.where", {"x": 1}).result(60).worker
        atomizer.register(tree)
        cluster.scale(2)
        client.wait_for_workers(2, timeout=60)
        client.retire_workers([old], close_workers=False)
        properties = atomizer.send("tests.where", {"x": 1}).result(60)
        assert properties.error is None
        assert properties.worker != old
        assert atomizer.send("tests.tree", {"depth": 2}).result(60).value() == 7


# -- what Dask cannot carry ----------------------------------------------------------------------

LOCK = threading.Lock()


@atom(id="tests.global_lock")
def uses_global_lock(x):
    with LOCK:
        return x


def closes_over_a_lock():
    my_lock = threading.Lock()

    @atom(id="tests.closure")
    def uses_lock(x):
        with my_lock:
            return x

    return uses_lock


class Locked(Atom):
    id = "tests.Locked"

    def __init__(self):
        self.guard = threading.Lock()

    def process(self, context, conductor, electron):
        return 1


@pytest.mark.dask
@pytest.mark.parametrize(
    ("unpicklable", "culprit"),
    [(closes_over_a_lock(), "my_lock"), (uses_global_lock, "LOCK"), (Locked(), "guard")],
    ids=["closure", "global", "attribute"],
)
def test_atom_that_cannot_travel_names_what_cannot(dask, unpicklable, culprit):
    with Atomizer(dask) as atomizer:
        with pytest.raises(UnpicklableError, match=f"'{culprit}' .lock. .*cannot be pickled"):
            atomizer.map(unpicklable, {"x": [1]}, copy_state=True)
        with pytest.raises(UnpicklableError, match=culprit):
            atomizer.send(unpicklable, {"x": 1})
        with pytest.raises(UnpicklableError, match=culprit):
            atomizer.register(unpicklable)


def test_atom_need_not_travel_in_memory(local):
    assert local.send(closes_over_a_lock(), {"x": 1}).result(60).value() == 1


# -- connections ---------------------------------------------------------------------------------


@pytest.mark.dask
@pytest.mark.parametrize("how", ["address", "cluster", "client"])
def test_dask_conductor_takes_what_dask_users_have(cluster, how):
    with Client(cluster, set_as_default=False) as client:
        target = {"address": cluster.scheduler_address, "cluster": cluster, "client": client}[how]
        with Atomizer(DaskConductor(target, id="mine")) as atomizer:
            assert atomizer.send(double, {"x": 1}).result(60).value() == 2
        assert client.submit(int, 5).result(60) == 5  # what was not ours is still open


@pytest.mark.dask
def test_dask_conductor_takes_the_current_client(cluster):
    with Client(cluster), Atomizer(DaskConductor()) as atomizer:
        conductor_address = atomizer.send(double, {"x": 1}).result(60).worker
        assert conductor_address in Client.current().nthreads()


@pytest.mark.parametrize("target", [5, 1.5, ["tcp://host:1"]])
def test_target_that_is_none_is_refused(target):
    with pytest.raises(TypeError, match="expected a scheduler's address"):
        DaskConductor(target)


@pytest.mark.timeout(15)  # it is told within 10 seconds
def test_address_where_nobody_answers_is_told():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(ConductorError, match=f"nobody answers at '{address}'"):
        DaskConductor(address)


@pytest.mark.timeout(15)  # it is told within 10 seconds
def test_listener_that_keeps_silent_is_told():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConductorError, match=f"nobody answers at '{address}'"):
            DaskConductor(address)


def test_address_that_is_none_is_told():
    with pytest.raises(ConductorError, match="nobody answers at"):
        DaskConductor("nonsense://here:1")


def test_memory_conductor_needs_a_thread():
    with pytest.raises(ValueError, match="at least one thread, got 0"):
        MemoryConductor(0)


def test_closed_conductor_takes_nothing(conductor):
    atomizer = Atomizer(conductor).exec()
    conductor.close()
    conductor.close()
    with pytest.raises(ConductorError, match="closed"):
        atomizer.send(double, {"x": 1})
    with pytest.raises(ConductorError, match="closed"):
        atomizer.map(double, {"x": [1]})


def test_conductor_that_is_closed_fails_what_is_under_way(conductor, gate):
    atomizer = Atomizer(conductor).exec()
    run = atomizer.map(gated, grid(path=[gate.path], x=range(10)))
    future = atomizer.send(gated, {"path": gate.path})
    conductor.close()
    with pytest.raises(ConductorError, match="closed"):
        run.wait(60)
    with pytest.raises(ConductorError, match="closed"):
        future.result(60)


@pytest.mark.dask
def test_scheduler_that_dies_is_told_to_whoever_waits(tmp_path, gate):
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*dask, "scheduler", "--scheduler-file", file, "--port", "0", "--no-dashboard"], **quiet
    )
    worker = subprocess.Popen(
        [*dask, "worker", "--scheduler-file", file, "--nthreads=1", "--no-nanny", "--no-dashboard"],
        **quiet,
    )
    try:
        with Client(scheduler_file=str(file), set_as_default=False, timeout=60) as client:
            client.wait_for_workers(1, timeout=60)
            address = client.scheduler.address
        atomizer = Atomizer(DaskConductor(address))
        errors = atomizer.errors()
        run = atomizer.map(gated, grid(path=[gate.path], x=range(10)))
        future = atomizer.send(gated, {"path": gate.path})
        scheduler.send_signal(signal.SIGKILL)
        with pytest.raises(ConductorError, match="gone"):
            run.wait(60)
        assert run.state == "failed"
        with pytest.raises(ConductorError, match="gone"):
            future.result(60)
        with pytest.raises(ConductorError, match="gone"):
            next(iter(run))
        assert "gone" in str(errors.get(60))
        with pytest.raises(ConductorError, match="no conductor is left"):
            atomizer.send(double, {"x": 1})
        with pytest.raises(ConductorError):
            atomizer.wait(60)
        atomizer.close()
    finally:
        gate.open()
        for process in (scheduler, worker):
            process.kill()
            process.wait()


def test_nothing_of_a_conductor_outlives_it():
    before = set(threading.enumerate())
    with Atomizer(MemoryConductor(2)) as atomizer:
        atomizer.map(double, grid(x=range(100))).wait(60)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert set(threading.enumerate()) <= before


# -- what a vectorised atom may do to its arrays, and what it is given -----------------------------


def test_vectorised_atom_may_work_in_place(atomizer):
    @atom(id="tests.in_place", vectorized=True)
    def in_place(x):
        x += 1
        if (x == 51).any():
            raise ValueError("fifty")
        return x

    given = np.arange(100.0)
    frame = atomizer.map(in_place, grid(x=given)).wait(60).to_frame()
    assert given.tolist() == list(range(100))
    assert frame["x"].tolist() == list(range(100))
    assert frame["result"].isna().tolist() == [x == 50 for x in range(100)]
    assert (frame["result"] - frame["x"]).dropna().unique().tolist() == [1.0]


def test_vectorised_atom_is_given_one_dtype_whatever_the_slice(atomizer):
    @atom(id="tests.dtype", vectorized=True)
    def dtype(x):
        return np.array([str(x.dtype)] * len(x))

    column = pd.array([1] * 5000 + [None], dtype="Int64")
    frame = atomizer.map(dtype, {"x": column}).wait(60).to_frame()
    assert frame["result"].nunique() == 1
    assert frame["x"].dtype == "Int64"


def test_vectorised_atom_that_reduces_is_found_out_on_a_few_rows(atomizer):
    @atom(id="tests.mean", vectorized=True)
    def mean(x):
        return np.array([x.mean()])

    run = atomizer.map(mean, {"x": [1.0, 2.0, 3.0, 4.0]}).wait(60)
    assert run.progress.failed == 4
    assert "returned 1 values" in run.errors["message"].iloc[0]


def test_inputs_are_those_of_the_moment_of_map(atomizer):
    values = np.arange(100_000)
    run = atomizer.map(double, {"x": values})
    values[:] = -1
    frame = run.wait(60).to_frame()
    assert frame["x"].tolist() == list(range(100_000))
    assert (frame["result"] == 2 * frame["x"]).all()


# -- free spawners --------------------------------------------------------------------------------


class Free(Atom):
    id = "tests.Free"

    def process(self, context, conductor, electron):
        for name in range(electron.payload["children"]):
            conductor.send(
                Electron("tests.Leaf", {"folder": electron.payload["folder"], "name": name})
            )


class Leaf(Atom):
    id = "tests.Leaf"

    def process(self, context, conductor, electron):
        Path(electron.payload["folder"], str(electron.payload["name"])).touch()


def test_children_of_a_free_spawner_are_waited_for(conductor, tmp_path):
    with Atomizer(conductor, Free, Leaf) as atomizer:
        payload = {"children": 20, "folder": str(tmp_path)}
        assert atomizer.send(Free, payload).result(60).error is None
        atomizer.wait(60)
        assert len(list(tmp_path.iterdir())) == 20


def test_leaving_with_waits_for_the_children_of_free_spawners(conductor, tmp_path):
    with Atomizer(conductor, Free, Leaf) as atomizer:
        atomizer.send(Free, {"children": 20, "folder": str(tmp_path)})
    assert len(list(tmp_path.iterdir())) == 20


# -- registering again ----------------------------------------------------------------------------


def test_registering_again_takes_what_the_atom_refers_to_now(atomizer):
    setting = {"factor": 2}

    @atom(id="tests.scaled")
    def scaled(x):
        return x * setting["factor"]

    atomizer.register(scaled)
    assert atomizer.send(scaled, {"x": 1}).result(60).value() == 2
    setting["factor"] = 3
    atomizer.register(scaled)
    assert atomizer.send(scaled, {"x": 1}).result(60).value() == 3


def test_outcome_that_died_with_its_worker_is_known_whoever_brought_the_plugin():
    # The scheduler raises in its place what the first of its clients brought along, by value.
    code = (
        "import pickle, sys\n"
        "from atomizer_dask.conductors.dask.plugins.by_value import PluginByValue\n"
        "sys.stdout.buffer.write(pickle.dumps(PluginByValue()))"
    )
    command = [sys.executable, "-c", code]
    brought = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    plugin = pickle.loads(brought)
    try:
        plugin.transition.__globals__["raise_lost"]()
    except Exception as error:
        raised = error
    assert type(raised) is not OutcomeLostError
    assert is_lost(raised)
    assert not is_lost(ValueError("lost"))


def test_plugins_understand_all_messages_where_the_package_is_not_installed():
    code = """
import asyncio, pickle, sys
from types import SimpleNamespace
from distributed import Scheduler

class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "atomizer_dask":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
plugins, events = pickle.load(sys.stdin.buffer)

async def main():
    async with Scheduler(dashboard_address=":0") as scheduler:
        for name, plugin in plugins.items():
            await scheduler.register_scheduler_plugin(plugin, name, idempotent=True)
        once, lookout = map(scheduler.plugins.get, plugins)
        for event in events:
            scheduler.log_event(**event)
        lookout._report(lookout._report.__globals__["WorkerIdle"]("tcp://a", rest=[("b", "o")]))
        print(once._claims, scheduler.get_events("atomizer-idle")[-1][1]["rest"])

asyncio.run(main())
"""
    sent = [
        TaskAdopted(("a", "run", ONCE), "client"),
        AtomsClaimed("client", ["version"], []),
        DemandChanged("client", 1, 1.0),
        OutcomesStored("run", None),
        TaskHandedOn(("a", "run", ONCE), "channel"),
        WorkerLeaving("tcp://a", final=True),
        BufferMissing("digest", 1, "tcp://a"),
    ]
    assert {type(message) for message in sent} == TOPICS.keys() - {WorkerIdle}
    brought = IdleWorkersByValue(patience=1.0, restart=None, is_own=False)
    plugins = {each.name: pickle.dumps(each) for each in (PluginByValue(), brought)}
    data = pickle.dumps((plugins, [as_event(message) for message in sent]))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=data, capture_output=True, timeout=60)
    assert done.stdout.decode().strip() == "{'version': {'client'}} [('b', 'o')]", done.stderr


@pytest.mark.dask
def test_client_that_died_as_it_asked_for_a_batch_is_given_none(cluster):
    with Client(cluster.scheduler_address, set_as_default=False) as client:
        DaskConductor(cluster.scheduler_address).close()  # which brings the plugin
        future = client.submit(int, key=("asked for", "run", ONCE), pure=False)
        future.result(timeout=30)
        client.log_event(**as_event(TaskAdopted(future.key, "Client-that-died")))
        wanted_by = client.run_on_scheduler(_clients_of, "Client-that-died")
        client.log_event(**as_event(OutcomesStored("run", None)))
    assert wanted_by == []


def _clients_of(name, dask_scheduler):
    return [client for client in dask_scheduler.clients if client == name]
