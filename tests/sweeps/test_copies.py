"""An atom that changes an input changes it for itself alone."""

import copy
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

import numpy as np
import pandas as pd
import pytest

from atomizer_dask import Atom, Atomizer, Electron, atom, grid, zipped
from atomizer_dask.sweeps.copies import can_change, own_copy, own_payload


@dataclass
class Model:
    layers: list = field(default_factory=lambda: [1])


@dataclass(frozen=True)
class Frozen:
    values: tuple = ([1], 2)


class Own:
    def __init__(self):
        self.seen = [1]


class Colour(Enum):
    RED = 1


class Slotted:
    __slots__ = ("seen",)

    def __init__(self):
        self.seen = {1: [2]}


def holding_itself():
    values = [1]
    values.append(values)
    return values


# What to change, how, and what to look at.
CHANGES = {
    "list": ([0], lambda v: v.append(1), len),
    "nested": ([[0], 2], lambda v: v[0].append(1), lambda v: len(v[0])),
    "dict": ({"a": 1}, lambda v: v.update(b=2), len),
    "deep_dict": ({"a": {"b": [1]}}, lambda v: v["a"]["b"].append(1), repr),
    "set": ({1}, lambda v: v.add(2), len),
    "tuple": (([0], 1), lambda v: v[0].append(1), lambda v: len(v[0])),
    "array": (np.zeros(3), lambda v: np.add(v, 1, out=v), np.sum),
    "array_of_objects": (np.array([[0], None], dtype=object), lambda v: v[0].append(1), repr),
    "record": (np.zeros(1, "i4,f8")[0], lambda v: v.__setitem__("f0", 5), repr),
    "records": (np.zeros(2, "i4,f8"), lambda v: v["f0"].fill(5), repr),
    "bytearray": (bytearray(b"a"), lambda v: v.append(1), len),
    "deque": (deque([1]), lambda v: v.append(1), len),
    "counter": (Counter("a"), lambda v: v.update("b"), len),
    "defaultdict": (defaultdict(list), lambda v: v["x"].append(1), repr),
    "ordered": (OrderedDict(a=[1]), lambda v: v["a"].append(1), repr),
    "dataclass": (Model(), lambda v: v.layers.append(2), repr),
    "frozen": (Frozen(), lambda v: v.values[0].append(2), repr),
    "object": (Own(), lambda v: v.seen.append(2), lambda v: len(v.seen)),
    "slots": (Slotted(), lambda v: v.seen[1].append(2), lambda v: repr(v.seen)),
    "frame": (pd.DataFrame({"a": [1]}), lambda v: v.insert(0, "b", 2), lambda v: v.shape),
    "series": (pd.Series([1, 2]), lambda v: v.__setitem__(0, 5), lambda v: v.sum()),
    "itself": (holding_itself(), lambda v: v.append(1), len),
}


def changing(change, look):
    def changed(v):
        change(v)
        return look(v)

    return atom(changed, id="tests.changed")


def alone(value, change, look):
    own = copy.deepcopy(value)
    change(own)
    return look(own)


def ways_of(value):
    yield "grid", grid(v=[value], i=range(5))
    yield "zipped", {"v": [value] * 5, "i": range(5)}
    yield "mappings", [{"v": value, "i": i} for i in range(5)]
    yield "stream", ({"v": value, "i": i} for i in range(5))
    column = np.empty(5, dtype=object)
    column[:] = [value] * 5
    yield "objects", zipped(v=column, i=range(5))
    yield "frame", pd.DataFrame({"v": pd.Series([*column], dtype=object), "i": range(5)})


@pytest.mark.parametrize(("value", "change", "look"), CHANGES.values(), ids=CHANGES.keys())
def test_nobody_else_sees_an_input_change(local, value, change, look):
    function = changing(change, look)
    before, expected = look(value), alone(value, change, look)

    def with_number(v, i):
        return {"seen": look(v), "result": function.function(v)}

    for way, sweep in ways_of(value):
        run = local.map(atom(with_number, id="tests.n"), sweep).wait(30)
        assert not len(run.errors), (way, run.errors["message"].iloc[0])
        frame = run.to_frame()
        assert frame["result"].tolist() == [expected] * 5, way
        assert frame["seen"].tolist() == [before] * 5, way
        assert look(value) == before, way
    futures = [local.send(function, {"v": value}) for _ in range(5)]
    assert [f.result(30).value() for f in futures] == [expected] * 5
    run = local.map(function, grid(v=[value])).wait(60)
    assert [run.replay(0), run.replay(0)] == [expected] * 2
    assert look(value) == before


def test_in_a_child_process(local):
    def appended(v, i):
        v.append(1)
        return len(v)

    run = local.map(atom(appended, isolation="process"), grid(v=[[0]], i=range(20))).wait(60)
    assert run.to_frame()["result"].tolist() == [2] * 20


@pytest.mark.dask
def test_on_workers(dask):
    with Atomizer(dask) as atomizer:
        for value, change, look in CHANGES.values():
            if type(value).__module__ == __name__:
                continue  # its class is another one there
            sweep = grid(v=[value], i=range(5))

            def with_number(v, i, change=change, look=look):
                change(v)
                return look(v)

            run = atomizer.map(atom(with_number, id="tests.n"), sweep).wait(60)
            assert run.to_frame()["result"].tolist() == [alone(value, change, look)] * 5


@pytest.mark.parametrize("on_failure", ["retry", "requeue"])
def test_another_attempt_sees_the_original(atomizer, on_failure):
    def until_second(v, *, context):
        v.append(1)
        if context.attempt < 3:
            raise ValueError
        return len(v)

    for sweep in (grid(v=[[0]] * 4), ({"v": v} for v in [[0]] * 4)):
        run = atomizer.map(until_second, sweep, on_failure=on_failure, max_attempts=3).wait(60)
        assert run.to_frame()["result"].tolist() == [2] * 4
    sent = atomizer.send(until_second, {"v": [0]}, on_failure=on_failure, max_attempts=3)
    assert sent.result(60).value() == 2


def test_classes_and_contexts_have_a_payload_of_their_own(local):
    class Changing(Atom):
        def process(self, context, conductor, electron):
            electron.payload["v"].append(1)
            electron.payload["more"] = 1
            return len(electron.payload["v"]) + len(context.electron.payload)

    shared = {"v": [0]}
    for sweep in (grid(v=[shared["v"]] * 5), ({"v": shared["v"]} for _ in range(5))):
        assert local.map(Changing, sweep).wait(30).to_frame()["result"].tolist() == [3] * 5
    assert [local.send(Changing, shared).result(30).value() for _ in range(3)] == [3] * 3
    assert shared == {"v": [0]}


def test_vectorised_atoms_change_columns_for_themselves(local):
    @atom(vectorized=True)
    def changed(v, x):
        x += 1
        for each in v:
            each.append(1)
        return [len(each) for each in v]

    x = np.arange(50)
    shared = [0]
    run = local.map(changed, zipped(v=[shared] * 50, x=x)).wait(30)
    assert run.to_frame()["result"].tolist() == [2] * 50
    assert run.replay(3) == 2
    assert shared == [0]
    assert x.tolist() == list(range(50))
    assert run.to_frame()["v"].tolist() == [[0]] * 50


def test_rows_of_an_array_are_writable_and_their_own(local):
    rows = np.zeros((5, 3))

    def filled(v):
        assert v.flags.writeable
        v += 1
        return v.sum()

    for sweep in (zipped(v=rows), grid(v=rows[:1], i=range(5)), zipped(v=list(rows))):
        function = filled if "i" not in sweep.names else (lambda v, i: filled(v))
        run = local.map(atom(function, id="tests.filled"), sweep).wait(30)
        assert run.to_frame()["result"].tolist() == [3] * 5
    assert not rows.any()


def test_an_array_keeps_its_order_in_memory(local):
    array = np.asfortranarray(np.ones((3, 4)))
    run = local.map(lambda v: v.flags.f_contiguous, grid(v=[array, np.ones(2)])).wait(30)
    assert run.to_frame()["result"].tolist() == [True, True]


def test_a_stream_may_use_one_mapping_for_all_its_rows(atomizer):
    def rows():
        row, values = {}, []
        for x in range(50):
            values.append(x)
            row.update(x=x, values=values)
            yield row

    frame = atomizer.map(lambda x, values: (x, len(values)), rows()).wait(60).to_frame()
    assert frame["result"].tolist() == [(x, x + 1) for x in range(50)]
    assert frame["x"].tolist() == list(range(50))


def test_what_its_sender_changes_afterwards_does_not_matter(atomizer, gate):
    def seen(v, path=gate.path):
        import os
        import time

        while not os.path.exists(path):
            time.sleep(0.01)
        return repr(v)

    shared, table = [0], np.zeros(4)
    payload = {"v": shared}
    atomizer.register(atom(seen, id="tests.seen"))
    runs = [
        atomizer.map("tests.seen", sweep)
        for sweep in (grid(v=[shared] * 4), zipped(v=[shared] * 4), [{"v": shared}] * 4)
    ]
    of_array = atomizer.map("tests.seen", zipped(v=table))
    futures = []
    for x in range(4):
        payload["v"] = [x]
        futures.append(atomizer.send("tests.seen", payload))
    electron = Electron("tests.seen", {"v": shared})
    futures.append(atomizer.send(electron))
    shared.append(1)
    table += 5
    gate.open()
    for run in runs:
        assert run.wait(60).to_frame()["result"].tolist() == ["[0]"] * 4
    assert of_array.wait(60).to_frame()["result"].tolist() == ["np.float64(0.0)"] * 4
    assert [f.result(60).value() for f in futures] == ["[0]", "[1]", "[2]", "[3]", "[0]"]


def test_what_cannot_be_copied_is_given_as_it_is(local):
    lock = threading.Lock()
    run = local.map(lambda v: id(v), grid(v=[lock, (lock, [1])])).wait(30)
    assert run.to_frame()["result"][0] == id(lock)


def test_copies_are_made_only_of_what_can_change():
    when = datetime(2020, 1, 1)
    for value in (
        1,
        "a",
        (1, (2, "b")),
        when,
        Colour.RED,
        np.float64(1),
        pd.NA,
        len,
        Own,
    ):
        assert own_copy(value) is value
    assert not can_change([1, "a", None, np.int8(1), pd.NaT, pd.Timestamp(2020)])
    assert can_change([1, ([],)])
    payload = {"x": 1}
    assert own_payload(payload) == payload
    assert own_payload(payload) is not payload


def test_what_an_electron_holds_twice_it_holds_twice(local):
    inner = [0]

    def changed(v):
        v[0].append(1)
        return len(v[1])

    assert local.map(changed, grid(v=[[inner, inner]])).wait(30).to_frame()["result"][0] == 2
