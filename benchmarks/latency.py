"""Figure 5: how long one electron takes, from sending it to its properties."""

from collections.abc import Iterator
from statistics import median

from distributed import Client

from atomizer_dask import Atomizer, DaskConductor
from benchmarks.fresh import Sample
from benchmarks.work import WORKERS, increment, plus_one, scaled, seconds

WARM_UP = 30


def one_electron(scale: float, repeats: int) -> Iterator[Sample]:
    """p50 as a multiple of that of ``client.submit(...).result()`` on the same cluster."""
    count = scaled(300, scale, least=30)
    conductor = DaskConductor(workers=WORKERS)
    address = conductor.client.scheduler.address
    with Atomizer(conductor, increment) as atomizer, Client(address) as client:
        for _ in range(repeats):
            ours = _p50(lambda i: atomizer.send(increment, {"x": i}).result(), count)
            raw = _p50(lambda i: client.submit(plus_one, i, pure=False).result(), count)
            yield {"value": ours / raw, "ms": ours * 1e3, "Client's ms": raw * 1e3}


def _p50(call, count: int) -> float:
    for i in range(WARM_UP):
        call(i)
    return median(seconds(call, i) for i in range(count))
