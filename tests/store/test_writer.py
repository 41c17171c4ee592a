"""What is written of a run, and what attaching makes of it."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from atomizer_dask import (
    Atomizer,
    InvalidSweepError,
    MemoryConductor,
    RegistrationError,
    Run,
    atom,
    grid,
    zipped,
)
from atomizer_dask.atoms.code.fingerprint import code_of
from atomizer_dask.atoms.definition import as_definition
from atomizer_dask.errors import StoreChangedError, StoreError, UnstorableError

HERE = Path(__file__).parent


@atom(id="tests.flaky")
def flaky(x, log, *, context):
    with open(log, "a") as file:
        file.write(f"{x}\n")
    if x % 5 == 2 and not os.path.exists(log + ".mended"):
        raise ValueError(f"{x} failed in attempt {context.attempt}")
    return {"u": context.rng.random(), "tries": context.attempt}


@atom(id="tests.gated")
def gated(x, path, free=0):
    while x >= free and not os.path.exists(path):
        time.sleep(0.005)
    return x / 2


@atom(id="tests.opaque")
def opaque(x):
    return {"o": {x} if x == 1 else x, "y": x}


@atom(id="tests.heavy")
def heavy(x):
    return np.full((300, 300), float(x))


@atom(id="tests.same")
def same(x):
    return x


@pytest.fixture
def atomizer(atomizer):
    atomizer.register(flaky, gated, opaque, heavy, same)
    return atomizer


@pytest.fixture
def local(local):
    local.register(flaky, gated, opaque, heavy, same)
    return local


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


def executed(log):
    lines = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return sorted(map(int, lines))


def rows_in(store):
    return sorted(pd.read_parquet(Path(store, "properties"))["electron"])


# -- retrying and cancelling -------------------------------------------------------------------


def test_retried_electrons_leave_no_second_row(atomizer, store, log):
    sweep = grid(x=range(20), log=[str(log)])
    run = atomizer.map(flaky, sweep, seed=1, store=store).wait(60)
    assert len(run.errors) == 4
    assert len(run.retry(where=lambda e: e.message.startswith("2 ")).wait(60).errors) == 4
    Path(f"{log}.mended").touch()
    run.retry(where=lambda e: not e.message.startswith("17")).wait(60)
    executed(log)
    for each in (run, Run.open(store), atomizer.attach(store).wait(60)):
        assert each.errors["x"].tolist() == [17]
        assert each.progress.done == 19
        frame = each.to_frame(metadata=True)
        assert frame["x"].tolist() == list(range(20))
        assert frame["tries"].astype(object).fillna(0).tolist()[:13:5] == [1, 1, 1]
        assert frame["attempts"].tolist()[2] == 3
        assert frame["attempts"].tolist()[7] == 2
    assert executed(log) == []
    assert rows_in(store) == list(range(20))
    last = atomizer.attach(store).wait(60).retry().wait(60)
    assert last.progress.done == 20
    assert rows_in(store) == list(range(20))
    bare = atomizer.map(flaky, sweep, seed=1).wait(60)
    assert_frame_equal(last.to_frame(columns=["u"]), bare.to_frame(columns=["u"]))


def test_cancelled_electrons_are_executed_on_attach(atomizer, store, gate):
    sweep = grid(x=range(500), path=[gate.path], free=[100])
    run = atomizer.map(gated, sweep, store=store)
    while run.progress.done < 100:
        time.sleep(0.01)
    run.cancel()
    gate.open()
    run.wait(60)
    assert run.state == "cancelled"
    looked = Run.open(store)
    assert looked.state == "cancelled"
    assert looked.progress.done == run.progress.done
    assert len(looked.errors) == 0
    again = atomizer.attach(store)
    assert again.progress.done >= 100
    assert again.wait(60).to_frame()["result"].tolist() == [x / 2 for x in range(500)]
    assert again.state == "finished"
    assert rows_in(store) == list(range(500))


def test_cancelled_run_is_retried(atomizer, store, gate):
    run = atomizer.map(gated, grid(x=range(50), path=[gate.path]), store=store)
    run.cancel()
    gate.open()
    run.wait(60)
    assert run.retry().wait(60).to_frame()["result"].tolist() == [x / 2 for x in range(50)]
    assert rows_in(store) == list(range(50))
    assert Run.open(store).state == "finished"


def test_history_survives(atomizer, store, log):
    options = {"on_failure": "retry", "max_attempts": 3}
    run = atomizer.map(flaky, grid(x=range(8), log=[str(log)]), store=store, **options).wait(60)
    for each in (run, Run.open(store), atomizer.attach(store).wait(60)):
        assert each.errors["attempts"].tolist() == [3, 3]
        history = each.errors["history"].iloc[1]
        assert [entry["attempt"] for entry in history] == [1, 2, 3]
        assert history[0]["message"] == "7 failed in attempt 1"
        assert "ValueError" in each.errors["traceback"].iloc[0]
        failures = {p.electron_id: p for p in each if p.error}
        assert {len(p.failures) for p in failures.values()} == {2}
    assert executed(log) == sorted([*range(8), 2, 2, 7, 7])
    Path(f"{log}.mended").touch()
    again = atomizer.attach(store).wait(60).retry().wait(60)
    assert again.to_frame()["tries"].tolist() == [1, 1, 4, 1, 1, 1, 1, 4]


def test_attempts_that_were_made_count_after_a_crash(local, store, log):
    sweep = grid(x=[1, 2, 3], log=[str(log)])
    run = local.map(flaky, sweep, store=store, on_failure="retry", max_attempts=3, backoff=30)
    while run.progress.done < 2:
        time.sleep(0.01)
    time.sleep(0.8)
    Path(f"{log}.mended").touch()
    again = local.attach(store, takeover=True).wait(30)
    assert again.to_frame()["tries"].tolist() == [1, 2, 1]
    assert rows_in(store) == [0, 1, 2]


def test_function_as_policy_is_asked_for(local, store, log):
    sweep = grid(x=range(4), log=[str(log)])
    local.map(flaky, sweep, store=store, on_failure=lambda e: "fail").wait(30)
    with pytest.raises(StoreError, match=r"had a function as on_failure.*attach\(store, on_fail"):
        local.attach(store)
    assert local.attach(store, on_failure="fail").wait(30).progress.failed == 1


def test_texts_of_failures_that_no_file_holds(atomizer, store):
    run = atomizer.map(surrogate, grid(x=range(5)), store=store).wait(30)
    for each in (run, Run.open(store)):
        assert each.progress.failed == 5
        assert "half" in each.errors["message"].iloc[0]


@atom(id="tests.surrogate")
def surrogate(x):
    raise ValueError("half \ud800 of a pair")


# -- what cannot be stored ---------------------------------------------------------------------


def test_result_without_an_arrow_type_is_a_failure_of_its_electron(atomizer, store):
    run = atomizer.map(opaque, zipped(x=[0, 1, 2]), store=store).wait(30)
    for each in (run, Run.open(store)):
        assert each.errors["type"].tolist() == ["UnstorableError"]
        assert each.errors["x"].tolist() == [1]
        assert "allow_pickle=True" in each.errors["message"].iloc[0]
        assert each.to_frame()["y"].tolist()[::2] == [0, 2]


def test_pickles_are_written_and_read_where_that_is_allowed(atomizer, store):
    run = atomizer.map(opaque, zipped(x=[0, 1, 2]), store=store, allow_pickle=True).wait(30)
    assert run.to_frame()["o"].tolist() == [0, {1}, 2]
    assert Run.open(store, allow_pickle=True).to_frame()["o"].tolist() == [0, {1}, 2]
    looked = Run.open(store)
    with pytest.raises(UnstorableError, match="allow_pickle=True"):
        looked.to_frame()
    assert looked.to_frame(columns=["x", "y"])["y"].tolist() == [0, 1, 2]
    assert looked.progress.done == 3


def test_inputs_without_an_arrow_type_are_refused(atomizer, store):
    sweep = zipped(x=[{1}, {2}])
    with pytest.raises(UnstorableError, match=r"inputs 'x' cannot be kept in a store: .*allow_pi"):
        atomizer.map(same, sweep, store=store)
    run = atomizer.map(same, sweep, store=store, allow_pickle=True).wait(30)
    assert run.to_frame()["result"].tolist() == [{1}, {2}]
    for call in (Run.open, atomizer.attach):
        with pytest.raises(UnstorableError, match="allow_pickle=True"):
            call(store)
    assert Run.open(store, allow_pickle=True).to_frame()["x"].tolist() == [{1}, {2}]
    assert atomizer.attach(store, allow_pickle=True).wait(30).progress.done == 2


def test_pickles_are_not_read_because_a_manifest_says_so(local, store, tmp_path):
    local.map(same, zipped(x=[Bomb(tmp_path / "boom")]), store=store, allow_pickle=True).wait(30)
    (tmp_path / "boom").unlink(missing_ok=True)
    with pytest.raises(UnstorableError):
        local.attach(store)
    with pytest.raises(UnstorableError):
        Run.open(store)
    assert not (tmp_path / "boom").exists()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("rows", [1, 2**30], ids=["worker_writes", "client_writes"])
def test_streamed_inputs_without_an_arrow_type_are_refused(local, store, rows, configure):
    configure({"store.gather-rows": rows})
    count = atom(id="tests.count_of")(lambda x: len(x))
    run = local.map(count, ({"x": {n}} for n in range(5)), store=store)
    with pytest.raises(StoreError, match=r"cannot be kept in a store: .*allow_pickle=True"):
        run.wait(30)
    with pytest.raises(StoreError):
        local.map(count, ({"x": {n}} for n in range(5)), store=store).wait(30)


# -- streamed sweeps ---------------------------------------------------------------------------


def streamed(count):
    return ({"x": x, "text": str(x), "extra": [x, None]} for x in range(count))


@atom(id="tests.of_stream")
def of_stream(x, text, extra, *, context):
    return {"u": context.rng.random(), "t": text + "!", "e": extra[0]}


def test_streamed_sweep(atomizer, store):
    atomizer.register(of_stream)
    bare = atomizer.map(of_stream, streamed(300), seed=2).wait(60).to_frame()
    run = atomizer.map(of_stream, streamed(300), seed=2, store=store).wait(60)
    assert_frame_equal(run.to_frame(), bare)
    assert_frame_equal(Run.open(store).to_frame(), bare)
    assert Run.open(store).progress.total == 300
    again = atomizer.attach(store).wait(60)
    assert again.progress.total == 300
    assert_frame_equal(again.to_frame(), bare)
    second = atomizer.map(of_stream, streamed(300), store=store).wait(60)
    assert_frame_equal(second.to_frame(), bare)
    longer = atomizer.map(of_stream, streamed(400), store=store).wait(60)
    assert_frame_equal(longer.to_frame()[:300], bare)
    assert_frame_equal(Run.open(store).to_frame(), longer.to_frame())
    assert rows_in(store) == list(range(400))


def test_streamed_sweep_that_comes_again_changed(local, store):
    local.map(same, ({"x": x} for x in range(20)), store=store).wait(30)
    with pytest.raises(Exception, match=r"row 7 of the sweep is \{'x': -7\}, in the store it is"):
        local.map(same, ({"x": x if x != 7 else -x} for x in range(20)), store=store).wait(30)
    with pytest.raises(StoreError, match="not both streams"):
        local.map(same, grid(x=range(3)), store=store)
    assert local.map(same, ({"x": x} for x in range(22)), store=store).wait(30).progress.done == 22
    assert rows_in(store) == list(range(22))


def test_streamed_rows_of_arrays_come_again(local, store):
    def rows():
        return ({"x": np.arange(n)} for n in range(1, 5))

    first = local.map(same, rows(), store=store).wait(30).to_frame()
    second = local.map(same, rows(), store=store).wait(30).to_frame()
    assert_frame_equal(first, second)


def test_streamed_sweep_whose_rows_lack_fields(local, store):
    def rows():
        return ({"x": n} | ({"free": 10} if n % 2 else {}) | {"path": ""} for n in range(10))

    bare = local.map(gated_now, rows()).wait(30).to_frame()
    run = local.map(gated_now, rows(), store=store).wait(30)
    assert_frame_equal(run.to_frame(), bare)
    assert_frame_equal(Run.open(store).to_frame(), bare)


@atom(id="tests.gated_now")
def gated_now(x, path, free=0):
    return x + free


STREAM = """
import os, sys, time
sys.path[:0] = {tests!r}
from test_writer import *

def rows():
    for x in range(10):
        yield {{"x": x, "path": {path!r}, "free": 6}}
    while True:
        time.sleep(1)

atomizer = Atomizer(MemoryConductor(2), gated)
run = atomizer.map(gated, rows(), store={store!r})
while run.progress.done < 6:
    time.sleep(0.01)
time.sleep(0.8)
os._exit(1)
"""


def test_streamed_sweep_whose_process_died(local, store, gate):
    script = STREAM.format(
        tests=[str(HERE), str(HERE.parent / "support")], path=gate.path, store=str(store)
    )
    subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    gate.open()
    assert Run.open(store).progress.done == 6
    run = local.attach(store, accept_changes=True).wait(30)
    assert run.to_frame()["x"].tolist() == list(range(run.progress.done))
    rows = [{"x": x, "path": gate.path, "free": 6} for x in range(30)]
    again = local.map(gated, iter(rows), store=store).wait(30)
    assert again.to_frame()["result"].tolist() == [x / 2 for x in range(30)]
    assert rows_in(store) == list(range(30))


def test_streamed_sweep_that_was_cancelled_is_retried(local, store, gate):
    rows = [{"x": x, "path": gate.path} for x in range(200)]
    run = local.map(gated, iter(rows), store=store)
    while not run.progress.running:
        time.sleep(0.01)
    run.cancel()
    gate.open()
    run.wait(30)
    count = len(run.to_frame())
    assert run.retry().wait(30).progress.done == count
    assert rows_in(store) == list(range(count))


# -- changed code ------------------------------------------------------------------------------


def changed():
    def same(x):
        return x + 1

    same.__qualname__ = "same"
    return atom(id="tests.same")(same)


def test_changed_atom_is_told_and_accepted(local, tmp_path, gate):
    store = tmp_path / "store"
    local.map(same, grid(x=range(3)), store=store).wait(30)
    with Atomizer(MemoryConductor(2), changed()) as other:
        before = (store / "run.json").read_bytes()
        for call in (
            lambda: other.attach(store),
            lambda: other.map("tests.same", grid(x=range(5)), store=store),
        ):
            with pytest.raises(StoreChangedError) as told:
                call()
            text = str(told.value)
            assert re.search(r"^-\s+return x$", text, re.MULTILINE)
            assert re.search(r"^\+\s+return x \+ 1$", text, re.MULTILINE)
            assert "accept_changes=True" in text
        assert (store / "run.json").read_bytes() == before
        other.attach(store, accept_changes=True).wait(30)
        run = other.map("tests.same", grid(x=range(5)), store=store).wait(30)
    assert run.to_frame()["result"].tolist() == [0, 1, 2, 4, 5]
    codes = Run.open(store).to_frame(metadata=True)["code"].astype(str).tolist()
    assert len(set(codes[:3])) == len(set(codes[3:])) == 1
    assert codes[0] != codes[3]
    manifest = json.loads((store / "run.json").read_text())
    assert [code["fingerprint"] for code in manifest["codes"]] == [codes[0], codes[3]]
    with pytest.raises(StoreChangedError):
        local.attach(store)


def test_store_with_a_fingerprint_of_earlier_versions_goes_on_under_it(local, store):
    table = np.arange(100_000.0)

    @atom(id="tests.looked.up")
    def looked_up(x):
        return table[x]

    with Atomizer(MemoryConductor(2), looked_up) as here:
        here.map(looked_up, grid(x=range(3)), store=store).wait(30)
        code = code_of(as_definition(looked_up))
        manifest = json.loads((store / "run.json").read_text())
        assert manifest["codes"][0].pop("fingerprint") == code.fingerprint
        manifest["codes"][0]["fingerprint"] = code.in_full()
        (store / "run.json").write_text(json.dumps(manifest))
        here.attach(store).wait(30)
        run = here.map(looked_up, grid(x=range(5)), store=store).wait(30)
        assert run.retry().wait(30).state == "finished"
    codes = Run.open(store).to_frame(metadata=True)["code"].astype(str).tolist()
    assert codes[3:] == [code.in_full()] * 2
    manifest = json.loads((store / "run.json").read_text())
    assert [each["fingerprint"] for each in manifest["codes"]] == [code.in_full()]


def test_atom_that_the_store_keeps_is_the_one_that_was_accepted(local, tmp_path):
    store = tmp_path / "store"
    local.map(same, grid(x=range(3)), store=store).wait(30)
    with Atomizer(MemoryConductor(2), changed()) as other:
        other.attach(store, accept_changes=True).wait(30)
    with Atomizer(MemoryConductor(2)) as nobody:
        with pytest.raises(RegistrationError, match=r"attach\(store, allow_pickle=True\)"):
            nobody.attach(store)
        run = nobody.attach(store, allow_pickle=True).wait(30)
    assert run.state == "finished"


def test_another_version_of_a_package_is_told(local, store):
    local.map(same, grid(x=range(3)), store=store).wait(30)
    manifest = json.loads((store / "run.json").read_text())
    manifest["codes"][-1]["versions"]["packages"]["numpy"] = "1.0"
    manifest["codes"][-1]["versions"]["python"] = "3.0"
    (store / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreChangedError, match="made with another environment") as told:
        local.map(same, grid(x=range(4)), store=store)
    assert "numpy" in str(told.value)
    assert "1.0" in str(told.value)
    assert np.__version__ in str(told.value)
    run = local.map(same, grid(x=range(4)), store=store, accept_changes=True)
    assert run.wait(30).progress.done == 4


@pytest.mark.parametrize("call", ["map", "attach"])
def test_another_version_of_a_package_is_in_nobodys_way_where_all_is_done(
    local, store, caplog, call
):
    sweep = grid(x=range(3))
    local.register(half)
    local.map(half, sweep, store=store).wait(30)
    manifest = json.loads((store / "run.json").read_text())
    manifest["codes"][-1]["versions"]["packages"]["numpy"] = "1.0"
    (store / "run.json").write_text(json.dumps(manifest))
    run = local.map(half, sweep, store=store) if call == "map" else local.attach(store)
    assert run.wait(30).progress.done == 2
    assert "another environment (numpy 1.0, now" in caplog.text
    with pytest.raises(StoreChangedError, match="another environment"):
        run.retry()  # which would execute something
    assert run.errors["x"].tolist() == [1]
    assert len(json.loads((store / "run.json").read_text())["codes"]) == 1


@atom(id="tests.half")
def half(x):
    if x == 1:
        raise ValueError("one")
    return x


@pytest.mark.parametrize(
    ("name", "version"), [("dask", "2020.1"), ("distributed", "2020.1"), ("python", "3.11.0")]
)
def test_what_only_carries_electrons_is_no_other_environment(local, store, name, version):
    if name == "python":
        version = ".".join([*platform.python_version_tuple()[:2], "99"])
    local.map(same, grid(x=range(3)), store=store).wait(30)
    manifest = json.loads((store / "run.json").read_text())
    versions = manifest["codes"][-1]["versions"]
    (versions if name == "python" else versions["packages"])[name] = version
    (store / "run.json").write_text(json.dumps(manifest))
    assert local.map(same, grid(x=range(5)), store=store).wait(30).progress.done == 5


# -- odds and ends -----------------------------------------------------------------------------


def test_iteration_over_a_run_that_was_opened(atomizer, store, log):
    run = atomizer.map(flaky, grid(x=range(10), log=[str(log)]), seed=1, store=store).wait(60)
    seen = {p.electron_id: p for p in Run.open(store)}
    for properties in run:
        known = seen.pop(properties.electron_id)
        assert known.result == properties.result
        assert (known.error is None) == (properties.error is None)
        if known.error:
            assert known.error.message == properties.error.message
            assert known.error.traceback == properties.error.traceback
        assert abs(known.end - properties.end).total_seconds() < 1e-3
        assert known.worker == properties.worker
    assert not seen


def test_one_electron(atomizer, store):
    run = atomizer.map(same, grid(x=[7]), store=store).wait(30)
    assert run.to_frame()["result"].tolist() == [7]
    assert run.wait(30) is run
    assert run.wait() is run
    assert Run.open(store).wait().progress.done == 1
    assert repr(Run.open(store)).endswith("finished, 1 of 1 done>")


def test_large_arrays(atomizer, store):
    run = atomizer.map(heavy, grid(x=range(40)), store=store).wait(60)
    for each in (run, Run.open(store)):
        values = each.to_frame()["result"]
        assert all(value.shape == (300, 300) for value in values)
        assert [value[0, 0] for value in values] == list(range(40))
    assert [int(p.result[0, 0]) for p in sorted(run, key=lambda p: p.result[0, 0])] == [*range(40)]


def test_paused_run_is_attached_to(local, store, gate):
    run = local.map(gated, grid(x=range(40), path=[gate.path], free=[10]), store=store)
    while run.progress.done < 10:
        time.sleep(0.01)
    run.pause()
    gate.open()
    time.sleep(0.7)
    again = local.attach(store, takeover=True).wait(30)
    assert again.progress.done == 40
    assert rows_in(store) == list(range(40))


def test_memory_of_the_client_stays_flat(local, store, configure):
    configure({"store.gather-rows": 2**40, "store.gather-bytes": 2**40})
    run = local.map(heavy, grid(x=range(200)), store=store).wait(60)
    assert not [part for part in run._ledger.parts if not hasattr(part, "store")]


def test_closed_atomizer_leaves_what_can_be_attached_to(tmp_path, gate):
    store = tmp_path / "store"
    with pytest.raises(RuntimeError), Atomizer(MemoryConductor(2), gated) as atomizer:  # noqa: PT012
        run = atomizer.map(gated, grid(x=range(40), path=[gate.path], free=[10]), store=store)
        while run.progress.done < 10:
            time.sleep(0.01)
        gate.open()
        raise RuntimeError
    with Atomizer(MemoryConductor(2), gated) as atomizer:
        run = atomizer.attach(store).wait(30)
    assert run.to_frame()["result"].tolist() == [x / 2 for x in range(40)]


def test_sweep_with_an_error_in_it_leaves_no_store(local, tmp_path):
    with pytest.raises(InvalidSweepError):
        local.map(same, [], store=tmp_path / "store")
    assert not (tmp_path / "store").exists()
