"""What is private to others is used in one place for each, and is there."""

import multiprocessing
import re
import threading
from multiprocessing import popen_spawn_posix
from pathlib import Path

import cloudpickle
import pandas as pd
import pytest
from distributed import Client, LocalCluster, Nanny, Worker
from distributed.deploy import Cluster
from patience import wait_until

import atomizer_dask
from atomizer_dask import future
from atomizer_dask.atoms import cloudpickle_internals
from atomizer_dask.conductors.dask.cluster import internals, local_cluster

HERE = Path(atomizer_dask.__file__).parent

# Names that only these files may use. That of a base class, which is overridden, counts as well.
OWNERS = {
    r"cloudpickle\._\w+|from cloudpickle.* import _": {"atoms/cloudpickle_internals.py"},
    r"_broker\b|\._groups\b|_task_spec\b|\._release_key\b|\._correct_state\b|Nanny\._instances"
    r"|\._scheduled\b|timer\._args\b|_loop_runner\b": {"conductors/dask/cluster/internals.py"},
    r"_update_worker_status\b|_immediate_exit_when_closed\b|process\._process\b": {
        "conductors/dask/cluster/local_cluster.py"
    },
    r"_MAX_RECV_BYTES\b|_frame_buffer\b|_on_data_available\b|_adapter_\w+": {
        "conductors/amqp/pika_connection.py"
    },
    r"futures\._base\b|_threads_queues\b|_threads_wakeups\b": {"future.py"},
    r"module\._inst\b|random\._inst\b|mtrand\._rand\b": {"atoms/global_generators.py"},
    r"_extra_reducers\b": {"execution/quarantine/nested_processes.py"},
    r"_inheriting\b|\._Popen\b|self\._fds\b|\._config\[": {
        "conductors/dask/cluster/local_cluster.py"
    },
    r"_register_atexit\b": {"conductors/process_end.py"},
    r"_dynamic_function_reduce\b": {"atoms/pickling.py"},
    r"\"_ndarray\"": {"execution/outputs.py"},
}


@pytest.mark.parametrize(("names", "owners"), OWNERS.items())
def test_what_is_private_to_others_is_used_in_one_place(names, owners):
    users = {
        str(path.relative_to(HERE))
        for path in HERE.rglob("*.py")
        if re.search(names, path.read_text())
    }
    assert users == owners


def test_what_is_private_to_cloudpickle_is_there():
    assert cloudpickle_internals.lookup(Path.mkdir)[1] == "Path.mkdir"
    assert not cloudpickle_internals.is_registered_by_value(re)


def test_what_is_private_to_concurrent_futures_is_there():
    assert future.executor_threads() is not None


def test_what_is_private_to_others_is_there():
    assert callable(threading._register_atexit)
    assert callable(cloudpickle.Pickler._dynamic_function_reduce)
    assert hasattr(pd.array([1.5], dtype="float64"), "_ndarray")
    assert hasattr(pd.Series([1.5]).array, "_ndarray")
    process = multiprocessing.get_context("spawn").Process()
    assert "daemon" in multiprocessing.current_process()._config or process._config is not None
    assert {"_Popen", "_target"} <= {*dir(process), *vars(process)}
    assert hasattr(popen_spawn_posix.Popen, "_launch")


@pytest.mark.dask
def test_what_is_private_to_distributed_is_there():
    ran = []
    with (
        LocalCluster(
            n_workers=1, processes=False, lifetime="1 hour", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        scheduler = cluster.scheduler
        client.subscribe_topic("mark-x", lambda _: None)
        wait_until(lambda: internals.subscribers(scheduler, "mark-x") == [client.id])
        internals.unsubscribe(scheduler, client.id, "mark-")
        assert internals.subscribers(scheduler, "mark-x") == []

        kept = client.submit(ran.append, 1, key="kept·x-1")
        kept.result()
        internals.forget_durations(scheduler, "·")
        assert "kept·x" in scheduler.task_prefixes  # there is one
        internals.have_run(scheduler.tasks["kept·x-1"], list)
        internals.release(client, "kept·x-1")
        wait_until(lambda: "kept·x-1" not in scheduler.tasks)
        internals.forget_durations(scheduler, "·")
        assert "kept·x" not in scheduler.task_prefixes

        (worker,) = cluster.workers.values()
        assert internals.lifetime_timer(worker).when() > 0
        internals.start_missing(cluster)
    assert isinstance(internals.nannies(), list)


def test_what_is_overridden_of_distributed_is_there():
    assert "_update_worker_status" in vars(Cluster)
    assert "_immediate_exit_when_closed" in vars(local_cluster.AsyncProcess)
    assert {"_run"} <= vars(local_cluster.AsyncProcess).keys()
    assert hasattr(Nanny, "_instances")
    assert hasattr(Worker, "close_gracefully")
