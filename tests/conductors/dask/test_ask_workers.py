"""Asking workers, of whom some die as they are asked."""

from contextlib import closing

import pytest
from distributed.comm import CommClosedError

from atomizer_dask import Atomizer, DaskConductor, grid

pytestmark = pytest.mark.dask


def double(i):
    return 2 * i


@pytest.mark.parametrize("operation", ["plugin-add", "plugin_add"], ids=["worker", "nanny"])
def test_worker_that_dies_as_it_is_given_a_plugin_costs_no_conductor(
    cluster, monkeypatch, operation
):
    broadcast, died = cluster.scheduler.broadcast, []

    async def dies_once(*, msg, **options):
        if msg["op"] == operation and not died:
            died.append(operation)
            raise CommClosedError("a worker died, and Dask takes it for the client")
        return await broadcast(msg=msg, **options)

    monkeypatch.setattr(cluster.scheduler, "broadcast", dies_once)
    with (
        closing(DaskConductor(cluster.scheduler_address)) as conductor,
        Atomizer(conductor) as atomizer,
    ):
        assert died, "nothing was installed"
        run = atomizer.map(double, grid(i=[1, 2])).wait(30, progress=False)
        assert list(run.to_frame().result) == [2, 4]
