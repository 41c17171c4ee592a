"""Runs that go on while no client is there."""

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster
from patience import wait_until

from atomizer_dask import (
    Atomizer,
    ConductorError,
    DaskConductor,
    MemoryConductor,
    Run,
    StoreChangedError,
    StoreError,
    atom,
    grid,
)
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import RUN_CLIENT

pytestmark = pytest.mark.dask
ELECTRONS = 400


@atom(id="tests.detach.slow")
def slow(x, executed, *, context):
    file = os.open(executed, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{x}\n".encode())
    os.close(file)
    time.sleep(0.005)
    if x == 7 and context.attempt == 1:
        raise ValueError("seven")
    return {"u": context.rng.random(), "attempt": context.attempt}


@pytest.fixture
def sweep(tmp_path):
    return grid(x=range(ELECTRONS), executed=[str(tmp_path / "executed")])


@pytest.fixture
def expected(sweep, local):
    return local.map(slow, sweep, seed=3, on_failure="retry").wait().to_frame()


def executed(tmp_path):
    path = tmp_path / "executed"
    return sorted(map(int, path.read_text().split())) if path.exists() else []


def atomizer_on(cluster):
    return Atomizer(DaskConductor(cluster.scheduler_address), slow)


ONCE = sorted([*range(ELECTRONS), 7])  # and electron 7 a second time


def test_detached_run_finishes_alone(cluster, tmp_path, sweep, expected):
    (tmp_path / "executed").unlink()
    store = tmp_path / "store"
    with atomizer_on(cluster) as atomizer:
        run = atomizer.map(slow, sweep, seed=3, on_failure="retry", store=store)
        wait_until(lambda: run.progress.done > 20)
        assert run.detach() is run
        assert run.state == "detached"
        with pytest.raises(StoreError, match="goes on without this process"):
            run.wait()
    wait_until(lambda: Run.open(store).state == "finished")
    pd.testing.assert_frame_equal(Run.open(store).to_frame(), expected)
    assert executed(tmp_path) == ONCE
    assert not (store / "holder.json").exists()


@pytest.mark.parametrize("way", ["fixed", "axis"])
def test_detached_run_has_large_values_after_its_client_has_gone(cluster, tmp_path, way):
    store, table = tmp_path / "store", np.arange(300_000.0)

    @atom(id="tests.detach.large")
    def looked_up(i, table):
        time.sleep(0.005)
        return float(table[i])

    with Atomizer(DaskConductor(cluster.scheduler_address), looked_up) as atomizer:
        axis = {"table": [table]} if way == "axis" else {}
        fixed = {"table": table} if way == "fixed" else None
        sweep = grid(i=range(ELECTRONS), **axis)
        atomizer.map(looked_up, sweep, fixed=fixed, store=store, detached=True)
    assert Run.open(store).state != "finished"
    wait_until(lambda: Run.open(store).state == "finished")
    frame = Run.open(store).to_frame(columns=["i", "result"])
    assert frame["result"].tolist() == table[:ELECTRONS].tolist()


def test_attaching_collects_a_run_that_was_detached_from_the_start(
    cluster, tmp_path, sweep, expected
):
    (tmp_path / "executed").unlink()
    store = tmp_path / "store"
    with atomizer_on(cluster) as atomizer:
        run = atomizer.map(slow, sweep, seed=3, on_failure="retry", store=store, detached=True)
        assert run.state == "detached"
    wait_until(lambda: len(executed(tmp_path)) > 50)
    with atomizer_on(cluster) as atomizer:
        run = atomizer.attach(store).wait()
    pd.testing.assert_frame_equal(run.to_frame(), expected)
    assert executed(tmp_path) == ONCE


def trip_once(where):
    """Have the next driver meet trouble, and note it."""
    from atomizer_dask.runs import start

    drive = start.drive

    def trip(*args):
        start.drive = drive
        try:
            open(where, "x").close()
        except FileExistsError:
            return drive(*args)
        raise OSError("an endpoint is away")

    start.drive = trip


def test_driver_that_meets_trouble_is_started_anew(cluster, tmp_path, sweep, expected):
    (tmp_path / "executed").unlink()
    store, troubles = tmp_path / "store", tmp_path / "troubles"
    with atomizer_on(cluster) as atomizer:
        atomizer.conductors["dask"].client.run(trip_once, str(troubles))
        atomizer.map(slow, sweep, seed=3, on_failure="retry", store=store, detached=True)
    wait_until(lambda: Run.open(store).state == "finished")
    pd.testing.assert_frame_equal(Run.open(store).to_frame(), expected)
    assert executed(tmp_path) == ONCE
    assert troubles.exists()


def test_driver_whose_worker_dies_is_started_anew(tmp_path, sweep, expected):
    (tmp_path / "executed").unlink()
    store = tmp_path / "store"
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False),
    ):
        with atomizer_on(cluster) as atomizer:
            atomizer.map(slow, sweep, seed=3, on_failure="retry", store=store, detached=True)
        wait_until(lambda: (store / "holder.json").exists())
        pid = Run.open(store).provenance["holder"].split("process ")[1].split()[0]
        wait_until(lambda: len(executed(tmp_path)) > 50)
        os.kill(int(pid), 9)
        wait_until(lambda: Run.open(store).state == "finished")
        # But for the driver's own, which is about to end.
        wait_until(lambda: len(cluster.scheduler.tasks) <= 1)
        # Nor is there anything left of who kept its tasks while no client was there.
        wait_until(
            lambda: not any(name.startswith(RUN_CLIENT) for name in cluster.scheduler.clients)
        )
    pd.testing.assert_frame_equal(Run.open(store).to_frame()[["x", "u"]], expected[["x", "u"]])
    assert set(executed(tmp_path)) == set(range(ELECTRONS))


def test_run_without_a_store_cannot_be_detached(cluster, sweep):
    with atomizer_on(cluster) as atomizer:
        run = atomizer.map(slow, sweep, seed=3)
        with pytest.raises(StoreError, match="store"):
            run.detach()
        with pytest.raises(StoreError, match="give store="):
            atomizer.map(slow, sweep, detached=True)
        run.cancel()


def test_run_whose_store_no_worker_sees_cannot_be_detached(cluster, sweep):
    with atomizer_on(cluster) as atomizer:
        run = atomizer.map(slow, sweep, seed=3, store="memory://detached")
        with pytest.raises(ConductorError, match="no worker sees the store"):
            run.detach()
        assert len(run.wait().to_frame()) == ELECTRONS  # it goes on here


def test_run_in_threads_of_this_process_cannot_be_detached(tmp_path, sweep):
    with Atomizer(MemoryConductor(2), slow) as atomizer:
        run = atomizer.map(slow, sweep, seed=3, store=tmp_path / "store")
        with pytest.raises(ConductorError, match="DaskConductor"):
            run.detach()
        run.wait()


def test_detaching_what_has_ended_changes_nothing(cluster, tmp_path, sweep):
    with atomizer_on(cluster) as atomizer:
        run = atomizer.map(slow, sweep, seed=3, store=tmp_path / "store").wait()
        assert run.detach().state == "finished"
        assert Path(tmp_path / "store" / "run.json").exists()


@pytest.mark.parametrize("where", ["memory", "dask"])
def test_suspended_run_goes_on_where_it_was(where, request, tmp_path, sweep, expected):
    (tmp_path / "executed").unlink()
    store = tmp_path / "store"
    atomizer = Atomizer(request.getfixturevalue(where), slow)
    run = atomizer.map(slow, sweep, seed=3, on_failure="retry", store=store)
    wait_until(lambda: run.progress.done > 20)
    run.suspend()
    assert run.state == "suspended"
    assert not (store / "holder.json").exists()
    assert Run.open(store).progress.pending > 0
    again = atomizer.attach(store).wait()
    pd.testing.assert_frame_equal(again.to_frame(), expected)
    assert executed(tmp_path) == ONCE
    atomizer.close()


FACTOR = 2


@atom(id="tests.detach.scaled")
def scaled(x, table=None):
    time.sleep(0.005)
    return FACTOR * x


@pytest.mark.parametrize("axes", [{}, {"table": [np.zeros(300_000)]}], ids=["", "large"])
def test_detached_run_executes_the_code_that_it_was_begun_with(
    cluster, tmp_path, monkeypatch, axes
):
    store = tmp_path / "store"
    with Atomizer(DaskConductor(cluster.scheduler_address), scaled) as atomizer:
        run = atomizer.map(scaled, grid(x=range(200), **axes), store=store)
        wait_until(lambda: run.progress.done > 5)
        monkeypatch.setitem(scaled.function.__globals__, "FACTOR", 3)
        run.detach()
    wait_until(lambda: Run.open(store).state == "finished")
    assert Run.open(store).to_frame()["result"].tolist() == [2 * x for x in range(200)]


def test_store_names_the_code_that_workers_execute(cluster, tmp_path, monkeypatch):
    store = tmp_path / "store"
    with Atomizer(DaskConductor(cluster.scheduler_address), scaled) as atomizer:
        monkeypatch.setitem(scaled.function.__globals__, "FACTOR", 3)  # after it was registered
        run = atomizer.map(scaled, grid(x=range(20)), store=store).wait()
        assert run.to_frame()["result"].tolist() == [3 * x for x in range(20)]
    monkeypatch.undo()
    with (
        Atomizer(DaskConductor(cluster.scheduler_address), scaled) as atomizer,
        pytest.raises(StoreChangedError, match="FACTOR"),
    ):
        atomizer.attach(store)


def test_detaching_without_workers_says_so(tmp_path):
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        Atomizer(DaskConductor(cluster), scaled) as atomizer,
        pytest.raises(ConductorError, match=r"no workers at .* yet .* wait for some"),
    ):
        atomizer.map(scaled, {"x": [1.0]}, store=tmp_path / "store", detached=True)
