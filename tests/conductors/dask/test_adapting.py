"""Clusters that adapt have as many workers as there is work for."""

import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from distributed import Client, LocalCluster
from patience import wait_until
from shortlived import counted, marked

from atomizer_dask import Atom, Atomizer, DaskConductor, Electron, atom, grid

pytestmark = pytest.mark.dask


@atom(id="tests.patient")
def patient(x, gate):
    if not Path(gate).exists():
        time.sleep(0.02)
    return x


class Tally(Atom):
    id = "tests.RetiredTally"
    singleton = "cluster"

    def __init__(self):
        self.count = 0

    def process(self, context, conductor, electron):
        time.sleep(0.01)
        self.count += 1
        return self.count


@contextmanager
def adapting(**options):
    with LocalCluster(
        n_workers=0, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
    ) as cluster:
        cluster.adapt(minimum=0, interval="100ms", **options)
        yield cluster


def test_cluster_has_workers_for_the_work_and_then_none(gate):
    with adapting(maximum=3) as cluster, Atomizer(DaskConductor(cluster)) as atomizer:
        run = atomizer.map(patient, grid(x=range(10_000), gate=[gate.path]))
        wait_until(lambda: len(cluster.scheduler.workers) == 3)
        gate.open()
        assert run.wait(60).to_frame()["x"].tolist() == list(range(10_000))
        wait_until(lambda: not cluster.scheduler.workers)


def test_what_a_client_would_have_sent_goes_with_it(gate):
    with adapting(maximum=3) as cluster:
        conductor = DaskConductor(cluster)
        Atomizer(conductor).map(patient, grid(x=range(10_000), gate=[gate.path]))
        wait_until(lambda: len(cluster.scheduler.workers) == 3)
        conductor.close()
        wait_until(lambda: not cluster.scheduler.workers)


def test_little_work_is_for_one_worker(gate):
    with adapting(maximum=3) as cluster, Atomizer(DaskConductor(cluster)) as atomizer:
        gate.open()
        run = atomizer.map(patient, grid(x=range(2), gate=[gate.path])).wait(60)
        assert run.to_frame(metadata=True)["worker"].nunique() == 1


@pytest.mark.parametrize("how", ["scale", "retire"])
def test_what_has_ended_on_a_worker_that_is_retired_is_not_executed_again(tmp_path, how, configure):
    configure({"wall-time.margin": "15s"})  # in which what runs may end: on a busy machine, too
    electrons = 150
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as cluster,
        Atomizer(DaskConductor(cluster), marked) as atomizer,
    ):
        events = atomizer.events(buffer=1000)
        sweep = {"seconds": [0.05] * electrons, "folder": [str(tmp_path)] * electrons}
        run = atomizer.map(marked, {"i": range(electrons), **sweep})
        next(iter(run))
        if how == "scale":
            cluster.scale(1)
        else:
            with Client(cluster) as client:
                client.retire_workers(list(client.scheduler_info()["workers"])[:2])
        while "was retired" not in events.get(timeout=60).message:
            pass
        frame = run.wait(100).to_frame(metadata=True)
    assert frame["result"].tolist() == list(range(electrons))
    assert (frame["attempts"] == 1).all()
    assert counted(tmp_path, "ended") == dict.fromkeys(range(electrons), 1)


def test_electrons_that_run_on_when_their_worker_is_retired_end_with_it(tmp_path):
    """Dask waits half a minute for them, though others execute them by then."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Atomizer(DaskConductor(cluster), marked) as atomizer,
        Client(cluster) as client,
    ):
        sweep = {"i": range(2), "seconds": [3.0] * 2, "folder": [str(tmp_path)] * 2}
        run = atomizer.map(marked, sweep)
        wait_until(lambda: counted(tmp_path, "begun").total() == 2)
        client.retire_workers(list(client.scheduler_info()["workers"])[:1])
        frame = run.wait(100).to_frame(metadata=True)
    assert frame["result"].tolist() == [0, 1]
    assert counted(tmp_path, "begun").total() == 3
    assert counted(tmp_path, "ended") == {0: 1, 1: 1}


def test_a_singleton_whose_worker_is_retired_begins_anew_elsewhere_and_that_is_told():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Atomizer(DaskConductor(cluster), Tally) as atomizer,
        Client(cluster) as client,
    ):
        events = atomizer.events(buffer=1000)
        run = atomizer.map(Tally, grid(x=range(300)))
        home = next(iter(run)).worker
        client.retire_workers([home])
        told = f"singleton lost its state: its worker {home} was retired; re-initialised next"
        while events.get(timeout=60).message != told:
            pass
        frame = run.wait(60).to_frame(metadata=True)
    assert frame["worker"].nunique() == 2
    for _, there in frame.groupby("worker"):
        assert sorted(there["result"]) == list(range(1, len(there) + 1))


@atom(id="tests.relays")
def relays(x, context):
    return context.conductor.send(Electron("tests.relayed", {"x": x})).result().value()


@atom(id="tests.relayed")
def relayed(x):
    return x


def test_what_electrons_send_goes_on_when_another_worker_of_their_process_has_left():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        DaskConductor(cluster) as conductor,
        Atomizer(conductor, relays, relayed) as atomizer,
    ):
        assert atomizer.send(relays, {"x": 1}).result(60).value() == 1
        (first,) = cluster.scheduler.workers
        cluster.scale(2)
        conductor.client.wait_for_workers(2)
        conductor.client.retire_workers([first])
        wait_until(lambda: first not in cluster.scheduler.workers)
        run = atomizer.map(relays, {"x": range(20)}).wait(60)
        assert run.to_frame()["result"].tolist() == list(range(20))
        # And no worker that has left leaves its own client behind.
        wait_until(lambda: sum("worker" in name for name in cluster.scheduler.clients) == 1)
