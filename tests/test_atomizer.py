import asyncio
import concurrent.futures
import os
import queue
import threading
import time

import pytest

from atomizer_dask import (
    Atomizer,
    Conductor,
    ConductorError,
    Electron,
    MemoryConductor,
    RegistrationError,
    atom,
    grid,
)
from atomizer_dask.future import ElectronFuture

IMG = "<img src=x onerror=alert(1)>"


@atom(id="tests.double")
def double(x):
    return 2 * x


@atom(id="tests.gated")
def gated(path, x=0):
    while not os.path.exists(path):
        time.sleep(0.005)
    return x


class Receiving(Conductor):
    """Receives what a test puts into its queue, and keeps the answers."""

    id = "receiving"

    def __init__(self):
        self.received = queue.SimpleQueue()
        self.answers = queue.SimpleQueue()

    def receive(self):
        return iter(self.received.get, None)

    def complete(self, properties):
        self.answers.put(properties)

    def send(self, electron):
        raise ConductorError("this conductor only receives")

    def close(self):
        self.received.put(None)


class Failing(Conductor):
    """Its other side is gone."""

    id = "failing"

    def receive(self):
        raise OSError("connection reset")

    def send(self, electron):
        raise ConductorError("connection reset")

    def close(self):
        pass


class Custom(Conductor):
    """Executes what it is sent right away, and receives nothing."""

    id = "custom"

    def __init__(self):
        self.sent = []

    def send(self, electron):
        self.sent.append(electron)
        future = ElectronFuture()
        future.set_result(f"properties of {electron.id}")
        return future

    def close(self):
        self.sent.append("closed")


# -- life ----------------------------------------------------------------------------------------


def test_exec_may_be_called_again(local):
    assert local.exec() is local
    assert local.exec() is local
    assert local.send(double, {"x": 1}).result(60).value() == 2


def test_with_waits_for_everything_and_closes(gate):
    with Atomizer(MemoryConductor(2)) as atomizer:
        future = atomizer.send(gated, {"path": gate.path, "x": 5})
        run = atomizer.map(gated, grid(path=[gate.path], x=range(10)))
        gate.open()
    assert future.done()
    assert run.state == "finished"
    with pytest.raises(ConductorError, match="closed"):
        atomizer.send(double, {"x": 1})


def test_with_closes_at_once_where_an_exception_is_on_its_way(gate):
    def fails():
        with Atomizer(MemoryConductor(2)) as atomizer:
            runs.append(atomizer.map(gated, grid(path=[gate.path], x=range(10))))
            raise LookupError("on its way")

    runs = []
    with pytest.raises(LookupError, match="on its way"):
        fails()
    gate.open()
    assert runs[0].state in ("cancelled", "failed")


def test_closing_twice_does_no_harm(local):
    local.close()
    local.close()
    with pytest.raises(ConductorError, match="this atomizer is closed; make a new one"):
        local.exec()


def test_closing_ends_the_streams():
    atomizer = Atomizer(MemoryConductor(1))
    events, errors = atomizer.events(), atomizer.errors()
    atomizer.send(double, {"x": 1}).result(60)
    atomizer.close()
    assert list(events) == []
    assert list(errors) == []


def test_wait_waits_for_what_was_sent(atomizer, gate):
    futures = [atomizer.send(gated, {"path": gate.path, "x": x}) for x in range(10)]
    with pytest.raises(TimeoutError):
        atomizer.wait(0.05)
    gate.open()
    assert atomizer.wait(60) is atomizer
    assert all(future.done() for future in futures)


def test_wait_waits_for_runs(atomizer, gate):
    run = atomizer.map(gated, grid(path=[gate.path], x=range(10)))
    with pytest.raises(TimeoutError):
        atomizer.wait(0.05)
    gate.open()
    atomizer.wait(60)
    assert run.state == "finished"


def test_repr_of_an_atomizer_is_short_and_escaped(memory):
    atomizer = Atomizer(memory, double)
    assert repr(atomizer) == "<Atomizer: 1 atoms, conductors: memory>"
    assert "<img" not in Atomizer(MemoryConductor(1, id=IMG))._repr_html_()


# -- sending -------------------------------------------------------------------------------------


def test_atom_may_be_sent_by_itself_or_by_its_id(local):
    local.register(double)
    electron = Electron("tests.double", {"x": 1})
    for sent in ((double, {"x": 1}), ("tests.double", {"x": 1}), (electron,)):
        assert local.send(*sent).result(60).value() == 2


def test_plain_function_may_be_sent_without_being_registered(local):
    def triple(x):
        return 3 * x

    assert local.send(triple, {"x": 2}).result(60).value() == 6
    assert local.map(triple, {"x": [2]}).wait(60).to_frame()["result"].tolist() == [6]


def test_electron_carries_its_payload_itself(local):
    with pytest.raises(TypeError, match="carries its payload"):
        local.send(Electron("tests.double", {"x": 1}), {"x": 2})


@pytest.mark.parametrize("what", [None, 5, ["tests.double"]])
def test_what_is_no_atom_cannot_be_sent(local, what):
    with pytest.raises(RegistrationError, match="expected an atom, the id of one, or an Electron"):
        local.send(what, {"x": 1})
    with pytest.raises(RegistrationError, match="expected an atom"):
        local.map(what, {"x": [1]})


def test_nothing_is_registered_is_told():
    with pytest.raises(ConductorError, match="no conductor is registered; give the atomizer one"):
        Atomizer(double).send(double, {"x": 1})
    with pytest.raises(ConductorError, match="no conductor is registered"):
        Atomizer(double).map(double, {"x": [1]})


def test_electrons_may_be_sent_from_many_threads(atomizer):
    def send(n):
        return atomizer.send(double, {"x": n}).result(60).value()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(send, range(200))) == [2 * n for n in range(200)]


def test_events_are_read_asynchronously(local):
    @atom
    def emits(x, *, context):
        context.emit(f"at {x}")

    async def read(stream):
        return [event.message async for event in stream]

    async def main():
        reader = asyncio.create_task(read(local.events()))
        await asyncio.sleep(0)  # it has subscribed
        await local.send(emits, {"x": 5})
        await asyncio.to_thread(local.close)
        return await reader

    assert asyncio.run(main()) == ["at 5"]


# -- conductors of one's own ---------------------------------------------------------------------


def test_received_electrons_are_executed_and_completed(atomizer):
    receiving = Receiving()
    atomizer.register(receiving, double)
    atomizer.exec()
    for x in range(50):
        receiving.received.put(Electron("tests.double", {"x": x}, id=f"e{x}"))
    answers = [receiving.answers.get(timeout=60) for _ in range(50)]
    assert {p.electron_id: p.result for p in answers} == {f"e{x}": 2 * x for x in range(50)}


def test_received_electrons_are_executed_without_another_conductor():
    receiving = Receiving()
    with Atomizer(receiving, double):
        receiving.received.put(Electron("tests.double", {"x": 4}))
        assert receiving.answers.get(timeout=60).value() == 8


def test_received_electron_of_an_unknown_atom_is_answered(local):
    receiving = Receiving()
    local.register(receiving)
    local.exec()
    receiving.received.put(Electron("tests.nowhere", id="lost"))
    answer = receiving.answers.get(timeout=60)
    assert (answer.electron_id, answer.error.kind) == ("lost", "unknown_atom")


@pytest.mark.parametrize(
    "bad",
    [Electron("tests.double", {"x": 1}, timeout="3s"), "no electron"],
    ids=["unsupported", "no electron"],
)
def test_received_electron_that_cannot_be_carried_out_costs_no_other(local, bad):
    receiving = Receiving()
    local.register(receiving, double)
    local.exec()
    receiving.received.put(bad)
    receiving.received.put(Electron("tests.double", {"x": 4}, id="good"))
    answers = []
    while not answers or answers[-1].electron_id != "good":
        answers.append(receiving.answers.get(timeout=10))
    assert answers[-1].value() == 8


def test_received_electron_that_fails_is_answered(local):
    receiving = Receiving()
    local.register(receiving, double)
    local.exec()
    receiving.received.put(Electron("tests.double", {"y": 1}))
    assert receiving.answers.get(timeout=60).error.kind == "invalid_payload"


def test_answer_that_is_lost_is_reported_and_the_others_go_on(local):
    class Forgetful(Receiving):
        def complete(self, properties):
            if properties.electron_id == "lost":
                raise OSError("channel closed")
            super().complete(properties)

    receiving = Forgetful()
    errors = local.errors()
    local.register(receiving, double)
    local.exec()
    for name in ("lost", "kept"):
        receiving.received.put(Electron("tests.double", {"x": 4}, id=name))
    assert receiving.answers.get(timeout=60).electron_id == "kept"
    assert "an answer was lost: channel closed" in str(errors.get(60))


def test_conductor_of_ones_own_is_sent_to():
    custom = Custom()
    with Atomizer(custom, double) as atomizer:
        electron = Electron("tests.double", {"x": 1}, id="e")
        assert atomizer.send(electron).result(60) == "properties of e"
        with pytest.raises(ConductorError, match="no conductor that can run a sweep"):
            atomizer.map(double, {"x": [1]})
    assert custom.sent == [electron, "closed"]


def test_id_of_a_conductor_is_its_class_unless_given():
    class Unnamed(Custom):
        id = ""

    class Named(Conductor):
        def send(self, electron):
            return None

        def close(self):
            pass

    assert Named.id == "Named"
    assert Custom.id == "custom"
    assert Unnamed.id == "Unnamed"


def test_failing_conductor_fails_alone(memory):
    atomizer = Atomizer(Failing(), memory, double)
    errors = atomizer.errors()
    atomizer.exec()
    error = errors.get(60)
    assert str(error) == ("the conductor failed: connection reset [cid:failing]")
    assert atomizer.send(double, {"x": 1}).result(60).value() == 2
    assert atomizer.map(double, {"x": [1]}).wait(60).progress.done == 1
    atomizer.wait(60)
    atomizer.close()


def test_failing_conductor_does_not_stop_one_that_receives():
    receiving = Receiving()
    atomizer = Atomizer(Failing(), receiving, double)
    errors = atomizer.errors()
    atomizer.exec()
    errors.get(60)
    receiving.received.put(Electron("tests.double", {"x": 4}))
    assert receiving.answers.get(timeout=60).value() == 8
    atomizer.close()


def test_atomizer_whose_only_conductor_is_gone_fails_loudly():
    atomizer = Atomizer(Failing(), double)
    errors = atomizer.errors()
    atomizer.exec()
    errors.get(60)
    with pytest.raises(ConductorError, match=r"no conductor is left: .*the conductor failed"):
        atomizer.send(double, {"x": 1})
    with pytest.raises(ConductorError):
        atomizer.map(double, {"x": [1]})
    with pytest.raises(ConductorError, match="no conductor is left"):
        atomizer.wait(60)
    atomizer.close()


def test_next_conductor_carries_where_one_is_closed():
    first, second = MemoryConductor(1, id="first"), MemoryConductor(1, id="second")
    with Atomizer(first, second, double) as atomizer:
        first.close()
        assert atomizer.send(double, {"x": 1}).result(60).value() == 2
        assert atomizer.map(double, {"x": [1]}).wait(60).progress.done == 1


def test_conductor_that_only_receives_is_passed_over(memory):
    with Atomizer(Receiving(), memory, double) as atomizer:
        assert atomizer.send(double, {"x": 1}).result(60).value() == 2


def test_two_atomizers_may_share_a_conductor(memory):
    first, second = Atomizer(memory), Atomizer(memory)
    first.register(atom(id="first")(lambda: 1))
    second.register(atom(id="second")(lambda: 2))
    assert first.send("first").result(60).value() == 1
    assert second.send("second").result(60).value() == 2
    first.exec().close()


def test_no_thread_is_left_of_a_receiving_atomizer():
    before = set(threading.enumerate())
    with Atomizer(MemoryConductor(1), Receiving(), double) as atomizer:
        atomizer.send(double, {"x": 1}).result(60)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert set(threading.enumerate()) <= before
