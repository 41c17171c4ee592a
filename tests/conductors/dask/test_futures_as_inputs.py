"""Futures of Dask as inputs and fixed values: workers have what they stand for."""

import functools

import dask as dask_itself
import numpy as np
import pytest
from distributed import Client

from atomizer_dask import Atomizer, InvalidSweepError, atom, grid, zipped

SECONDS = 60
TABLE = np.arange(300_000.0)


@atom(id="tests.summed")
def summed(i, table):
    return float(table[: i + 1].sum())


@atom(id="tests.written.to")
def written_to(i, table):
    table[0] = 7
    return float(table[0])


@pytest.fixture
def client(cluster):
    with Client(cluster.scheduler_address, set_as_default=False) as client:
        yield client


@pytest.fixture
def atomizer(client):
    from atomizer_dask import DaskConductor

    with Atomizer(DaskConductor(client)) as atomizer:
        yield atomizer


@pytest.mark.dask
def test_future_is_given_as_its_value(atomizer, client):
    scattered, computed = client.scatter(TABLE), client.submit(np.ones, 10)
    for sweep, expected in (
        (grid(table=[scattered, computed], i=[0, 1]), [0.0, 1.0, 1.0, 2.0]),
        (zipped(i=[2, 3, 4], table=[scattered, computed, scattered]), [3.0, 4.0, 10.0]),
    ):
        run = atomizer.map(summed, sweep).wait(SECONDS)
        assert run.to_frame()["result"].tolist() == expected
        assert run.replay(f"{run.id}-1") == expected[1]
        assert run.verify(2)["different"].tolist() == [0]
    assert atomizer.map(written_to, grid(i=[1], table=[scattered])).wait(SECONDS).progress.done


@pytest.mark.dask
def test_future_as_a_fixed_value_is_given_as_its_value(atomizer, client):
    scattered = client.scatter(TABLE, broadcast=True)
    for run in (
        atomizer.map(summed, grid(i=range(50)), fixed={"table": scattered}),
        atomizer.map(functools.partial(summed, table=scattered), grid(i=range(50)), timeout=30),
    ):
        frame = run.wait(SECONDS).to_frame()
        assert frame["result"].tolist() == [float(TABLE[: i + 1].sum()) for i in range(50)]
        assert run.fixed["table"] is scattered
        assert run.replay(f"{run.id}-2") == 3.0
    run = atomizer.map(written_to, grid(i=[1]), fixed={"table": scattered}).wait(SECONDS)
    assert run.errors["message"].tolist() == ["assignment destination is read-only"]
    vectorised = atom(id="tests.vector", vectorized=True)(lambda i, table: table[i])
    run = atomizer.map(vectorised, grid(i=range(5)), fixed={"table": scattered}).wait(SECONDS)
    assert run.to_frame()["result"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.dask
def test_future_that_failed_fails_its_electrons_alone(atomizer, client):
    broken, fine = client.submit(lambda: 1 / 0, pure=False), client.scatter(TABLE)
    run = atomizer.map(summed, grid(i=[1], table=[broken])).wait(SECONDS)
    assert run.progress.failed == 1
    assert "ZeroDivisionError" in str(run.errors[["type", "message"]].to_dict())
    assert atomizer.map(summed, grid(i=[1], table=[fine])).wait(SECONDS).progress.done == 1


@pytest.mark.dask
def test_where_no_worker_has_the_value_a_future_is_refused(atomizer, client, local, tmp_path):
    future = client.scatter(TABLE)
    for how in ({"fixed": {"table": future}}, {}):
        sweep = grid(i=[1]) if how else grid(i=[1], table=[future])
        with pytest.raises(InvalidSweepError, match=r"MemoryConductor has no workers .*gather"):
            local.map(summed, sweep, **how)
        with pytest.raises(InvalidSweepError, match=r"a store cannot keep: give what .*gather"):
            atomizer.map(summed, sweep, store=tmp_path / "store", **how)
        assert not (tmp_path / "store").exists()
    for send in (local.send, atomizer.send):
        with pytest.raises(InvalidSweepError, match="gather"):
            send(summed, {"i": 1, "table": future})
        with pytest.raises(InvalidSweepError, match="gather"):
            send(summed, {"i": 1}, fixed={"table": future})


@pytest.mark.dask
@pytest.mark.parametrize("way", ["axis", "fixed"])
def test_what_must_be_computed_first_is_refused(atomizer, way):
    delayed = dask_itself.delayed(np.ones)(3)
    sweep = grid(i=[1], table=[delayed]) if way == "axis" else grid(i=[1])
    fixed = {"table": delayed} if way == "fixed" else None
    with pytest.raises(InvalidSweepError, match=r"compute it first, as by dask\.compute"):
        atomizer.map(summed, sweep, fixed=fixed)


@pytest.mark.dask
def test_future_of_another_scheduler_or_cancelled_is_refused(atomizer, client, empty):
    empty.scale(1)
    here = client.submit(np.full, 4, 1.0, key="same-key")
    with Client(empty, set_as_default=False) as elsewhere:
        there = elsewhere.submit(np.full, 4, 100.0, key="same-key")
        with pytest.raises(InvalidSweepError, match="of another scheduler"):
            atomizer.map(summed, grid(i=[3], table=[there]))
    frame = atomizer.map(summed, grid(i=[3], table=[here])).wait(SECONDS).to_frame()
    assert frame["result"].tolist() == [4.0]
    here.cancel()
    with pytest.raises(InvalidSweepError, match="that is cancelled"):
        atomizer.map(summed, grid(i=[3]), fixed={"table": here})
