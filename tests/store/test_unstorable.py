"""Results that a store cannot hold: they cost no others, and no second computation."""

import json
import time

import numpy as np
import pandas as pd
import pytest

from atomizer_dask import Atomizer, MemoryConductor, Run, atom, grid
from atomizer_dask.errors import StoreError, UnstorableError


class Opaque:
    """Something that Arrow cannot hold, and a pickle can."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return self.value == other.value

    __hash__ = None


@atom(id="tests.unstorable.study")
def study(i, log="", first=0, wait=0.0):
    if log:
        with open(log, "a") as file:
            file.write("x")
    time.sleep(wait)
    return {"peak": i / 2, "path": Opaque(i) if i >= first else i}


@atom(id="tests.unstorable.bare")
def bare(i):
    return Opaque(i)


@atom(id="tests.unstorable.mixed")
def mixed(i):
    if i % 4 == 0:
        raise ValueError(f"no {i}")
    return {"peak": i / 2, "path": {i} if i % 4 == 1 else i}


@atom(id="tests.unstorable.many", vectorized=True)
def many(i):
    return {"peak": i / 2, "path": [{int(n)} if n >= 2000 else int(n) for n in i]}


def peaks(run):
    """The outputs that can be stored, by input."""
    frame = run.to_frame()
    return dict(zip(frame["i"], frame["peak"], strict=True))


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def test_run_stops_where_no_result_can_be_stored(atomizer, store, tmp_path):
    counts = tmp_path / "counts"
    run = atomizer.map(study, grid(i=range(500), log=[str(counts)], wait=[0.01]), store=store)
    with pytest.raises(UnstorableError, match=r"path: the column holds Opaque.*allow_pickle=True"):
        run.wait(30)
    assert run.state == "failed"
    executed = counts.stat().st_size
    assert executed < 100
    # In this process nothing is lost, in others all but what cannot be stored.
    for each in (run, Run.open(store)):
        known = peaks(each)
        assert len(known) == executed == each.progress.failed
        assert all(known[i] == i / 2 for i in known)
        assert set(each.errors["type"]) == {"UnstorableError"}
    frame = run.to_frame()
    assert [value.value for value in frame["path"]] == frame["i"].tolist()
    assert "path" not in Run.open(store).to_frame()


def test_what_is_still_there_is_stored_as_pickles(atomizer, store, tmp_path):
    counts = tmp_path / "counts"
    run = atomizer.map(study, grid(i=range(60), log=[str(counts)], wait=[0.005]), store=store)
    with pytest.raises(UnstorableError):
        run.wait(30)
    assert run.retry(allow_pickle=True).wait(30) is run
    assert counts.stat().st_size == 60  # each of them once
    assert run.state == "finished"
    assert run.error is None
    for each in (run, Run.open(store, allow_pickle=True)):
        assert each.progress.done == 60
        assert each.errors.empty
        assert [value.value for value in each.to_frame()["path"]] == list(range(60))
        assert each.to_frame()["peak"].tolist() == [i / 2 for i in range(60)]
    assert json.loads((store / "run.json").read_text())["options"]["allow_pickle"]


def test_late_results_cost_only_themselves(atomizer, store):
    run = atomizer.map(study, grid(i=range(40), first=[37]), store=store).wait(30)
    assert run.state == "finished"
    for each in (run, Run.open(store)):
        assert each.progress.done == 37
        assert each.errors["i"].tolist() == [37, 38, 39]
        assert peaks(each) == {i: i / 2 for i in range(40)}
    assert [value.value for value in run.to_frame()["path"][37:]] == [37, 38, 39]
    run.retry(allow_pickle=True).wait(30)
    assert run.progress.done == 40
    opened = Run.open(store, allow_pickle=True)
    assert opened.errors.empty
    assert opened.to_frame()["path"].tolist()[:3] == [0, 1, 2]


def test_what_could_be_stored_stays_known_to_who_attaches(local, store):
    local.map(study, grid(i=range(40), first=[37]), store=store).wait(30)
    with Atomizer(MemoryConductor(2), study) as other:
        run = other.attach(store).wait(30)
        assert run.errors["i"].tolist() == [37, 38, 39]
        assert peaks(run) == {i: i / 2 for i in range(40)}
        assert run.retry(allow_pickle=True).wait(30).progress.done == 40
        assert [value.value for value in run.to_frame()["path"][37:]] == [37, 38, 39]


def test_result_that_is_no_dict(atomizer, store):
    run = atomizer.map(bare, grid(i=range(100)), store=store)
    with pytest.raises(UnstorableError, match="the column holds Opaque"):
        run.wait(30)
    run.retry(allow_pickle=True).wait(30)
    assert [value.value for value in run.to_frame()["result"]] == list(range(100))


def test_other_failures_stay_what_they_are(atomizer, store):
    run = atomizer.map(mixed, grid(i=range(40)), store=store).wait(30)
    for each in (run, Run.open(store)):
        kinds = each.errors["type"].value_counts().to_dict()
        assert kinds == {"ValueError": 10, "UnstorableError": 10}
        frame = each.to_frame()
        expected = [np.nan if i % 4 == 0 else i / 2 for i in range(40)]
        np.testing.assert_array_equal(frame["peak"].astype(float), expected)
    run.retry(where=lambda error: error.type == "UnstorableError", allow_pickle=True).wait(30)
    assert run.progress.done == 30
    assert set(run.errors["type"]) == {"ValueError"}


def test_worker_that_writes_keeps_the_columns_that_can_be_stored(atomizer, store, configure):
    configure({"store.gather-rows": 1, "store.gather-bytes": 1})
    run = atomizer.map(many, grid(i=range(2100)), store=store).wait(30)
    for each in (run, Run.open(store)):
        assert each.progress.done == 2000
        assert each.to_frame()["peak"].tolist() == [i / 2 for i in range(2100)]
    run.retry(allow_pickle=True).wait(30)
    assert run.to_frame()["path"].tolist()[1998:2002] == [1998, 1999, {2000}, {2001}]


def test_user_is_told_at_once(local, store, caplog):
    told = []
    local.events().subscribe(told.append)
    run = local.map(study, grid(i=range(200), wait=[0.002]), store=store)
    with pytest.raises(UnstorableError):
        run.wait(30)
    warnings = [event.message for event in told if event.level == "warning"]
    assert "the store cannot hold results: path" in warnings[0]
    assert "run.retry(allow_pickle=True)" in caplog.text


def test_another_process_can_allow_pickles(local, store):
    with pytest.raises(UnstorableError):
        local.map(study, grid(i=range(50)), store=store).wait(30)
    run = local.map(study, grid(i=range(50)), store=store, allow_pickle=True).wait(30)
    assert run.progress.done + run.progress.failed == 50
    assert run.retry().wait(30).progress.done == 50


def test_pickles_need_a_store(local):
    run = local.map(study, grid(i=range(3))).wait(30)
    with pytest.raises(StoreError, match="no store"):
        run.retry(allow_pickle=True)


@pytest.mark.parametrize("value", [pd.DataFrame({"t": [0]}), {1: 2}, {1}, object(), slice(2)])
def test_inputs_are_not_spoken_of_as_results(local, store, value):
    with pytest.raises(UnstorableError) as told:
        local.map(bare, [{"i": value}], store=store)
    assert "return" not in str(told.value)
