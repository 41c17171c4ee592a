"""From a target that names a Dask cluster to a client of our own."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future as ThreadFuture
from math import isfinite
from numbers import Integral
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

import dask.config
from distributed import Client
from distributed.deploy import Cluster
from distributed.security import Security

from atomizer_dask import config
from atomizer_dask.conductors.dask.cluster import internals, scheduler_file
from atomizer_dask.conductors.dask.cluster.credentials import (
    as_client,
    check_security,
    of_local_cluster,
    trouble_with,
)
from atomizer_dask.conductors.dask.cluster.local_cluster import check_main_is_done, start_cluster
from atomizer_dask.conductors.dask.cluster.scheduler_file import NoSchedulerFileError, NotYetError
from atomizer_dask.config import setting
from atomizer_dask.errors import ConductorError
from atomizer_dask.events import Event
from atomizer_dask.interruptible import has_ended
from atomizer_dask.policy import seconds_of

POLL_SECONDS, LONGEST_POLL_SECONDS = 0.1, 1.0
LEAST_SECONDS = 1.0  # for a listening scheduler to answer, however little time is left


class ClusterConnection(NamedTuple):
    """A client of our own, whose settings nobody else sees.

    Attributes
    ----------
    client
        The client; the caller closes it.
    name
        What the client is connected to, in words: a scheduler or a kind of cluster.
    cluster
        The cluster that the client is connected to; None where this process does not have it.
    is_own
        Whether the cluster was started for the client, so that the caller closes it too.
    """

    client: Client
    name: str
    cluster: Cluster | None = None
    is_own: bool = False


def connect(
    target: Any,
    id: str,
    workers: int | None,
    threads_per_worker: int | None,
    security: Security | bool | None,
    timeout: Any,
) -> ClusterConnection:
    """Connect to the target that a conductor was given; see `DaskConductor`."""
    wants_local = workers is not None or threads_per_worker is not None
    seconds = _checked(target, workers, threads_per_worker, security, timeout)
    if target is None:
        try:
            target = Client.current()
        except ValueError:  # there is none
            target = None if wants_local or security is True else _configured()
        if target is None:
            return _start(id, workers, threads_per_worker, security, seconds)
        check_security(security, target)
    if scheduler_file.is_path(target):
        path = Path(os.path.expandvars(os.path.expanduser(target)))
        client = _connect_by_file(
            path, id, security, seconds or setting("connection.scheduler-file-timeout")
        )
        return ClusterConnection(client, f"scheduler of {path.name}")
    if (
        isinstance(target, str)
        and "://" not in target
        and getattr(security, "require_encryption", False)
    ):
        target = f"tls://{target}"
    where, name, security = _place_of(target, security)
    seconds = seconds or setting("connection.timeout")
    cluster = target.cluster if isinstance(target, Client) else target
    client = _connect_at(where, id, security, seconds)
    return ClusterConnection(client, name, cluster if isinstance(cluster, Cluster) else None)


def _checked(
    target: Any,
    workers: int | None,
    threads_per_worker: int | None,
    security: Security | bool | None,
    timeout: Any,
) -> float | None:
    """Raise where an option makes no sense; return the timeout in seconds."""
    if target is not None and (workers is not None or threads_per_worker is not None):
        raise TypeError(
            "workers and threads_per_worker are for a local cluster that the conductor starts; "
            f"{target!r} has its own"
        )
    check_security(security, target)
    seconds = seconds_of(timeout, "timeout")
    if seconds is not None and not isfinite(seconds):
        raise ValueError(f"timeout must be some number of seconds, got {timeout!r}")
    _check_whole(workers, "workers")
    _check_whole(threads_per_worker, "threads_per_worker")
    return seconds


def _configured() -> Any:
    """Return the target that is configured for this package, else for Dask as a whole."""
    return config.target() or dask.config.get("scheduler-address", None)


def _check_whole(number: Any, name: str) -> None:
    if number is None:
        return
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise TypeError(f"{name} must be a whole number, got {number!r}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")


def _place_of(target: Any, security: Any) -> tuple[Any, str, Any]:
    """Return the target that Dask connects to, its name in words, and the credentials."""
    if isinstance(target, str):
        if not target.strip():
            raise ValueError(
                "the scheduler's address is empty: give one such as 'tcp://node1:8786', or leave "
                "it out for the current client or a local cluster"
            )
        return target, "scheduler", security
    if isinstance(target, Client):
        if target.status != "running":
            raise TypeError(
                f"the client is {target.status}: expected one that is connected, got {target!r}; "
                "await it if it is asynchronous, or give the scheduler's address"
            )
        if target.cluster is not None:
            _check_cluster(target.cluster)
        name = "scheduler" if target.cluster is None else type(target.cluster).__name__
        return target.scheduler.address, name, as_client(target.security)
    if isinstance(target, Cluster):
        _check_cluster(target)
        return target, type(target).__name__, getattr(target, "security", None)
    raise TypeError(
        "expected a scheduler's address, a distributed.Client, a Dask cluster, or the path of a "
        f"scheduler file, got {type(target).__name__} {target!r}"
    )


def _check_cluster(cluster: Cluster) -> None:
    if cluster.asynchronous:
        raise TypeError(
            f"{cluster!r} is asynchronous: a conductor would wait for the event loop that it is "
            "called from; make the cluster without asynchronous=True, or give its "
            "scheduler_address"
        )
    if cluster.status.name in ("closing", "closed", "failed"):
        raise TypeError(f"{cluster!r} is {cluster.status.name}: expected one that is running")


def _start(
    id: str, workers: int | None, threads: int | None, security: Any, seconds: float | None
) -> ClusterConnection:
    """Start a cluster of processes that listen to this machine alone, and connect to it."""
    check_main_is_done()
    seconds = seconds or setting("connection.timeout")
    threads = setting("local-cluster.threads-per-worker") if threads is None else threads
    cluster = start_cluster(
        n_workers=setting("local-cluster.workers") if workers is None else workers,
        threads_per_worker=threads,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        security=of_local_cluster(security),
    )
    try:
        client = _connect_at(cluster, id, cluster.security, seconds)
    except BaseException:  # Ctrl-C too
        cluster.close()
        raise
    return ClusterConnection(client, "LocalCluster", cluster, is_own=True)


def _connect_at(where: Any, id: str, security: Any, seconds: float) -> Client:
    try:
        return _client_within(seconds, where, security)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        message = trouble_with(where, error, security) or (
            f"{_who_is_at(where)}: check that dask-scheduler runs there, that host, port and "
            "protocol (tcp:// or tls://) are right, and that no firewall is in between"
        )
        raise _failed(message, id, error) from error


def _who_is_at(where: Any) -> str:
    """Return who answers at an address, in words, after Dask has tried it until time was up."""
    address = str(getattr(where, "scheduler_address", where))
    try:
        is_tried = scheduler_file.probe(address)
    except NotYetError as error:
        return f"nobody answers at {where!r} ({error.__cause__})"
    if is_tried:
        return f"nobody answers at {where!r} as a scheduler would, though somebody listens there"
    return f"nobody answers at {where!r}"


def _connect_by_file(path: Path, id: str, security: Any, seconds: float) -> Client:
    """Wait for a file and its scheduler; the file may be one that an earlier job left behind."""
    until, pause = monotonic() + seconds, POLL_SECONDS
    while True:
        try:
            return _connect_as_named(path, id, security, until)
        except NotYetError as reason:
            left = until - monotonic()
            if left <= 0:
                raise _failed(
                    f"no scheduler is to be found by the file {str(path)!r} within {seconds:g} s: "
                    f"{reason}; check that the job has begun that runs dask scheduler "
                    "--scheduler-file with this path, on a file system that is seen from here, "
                    "or give it more time: timeout='10 minutes'",
                    id,
                    reason,
                ) from reason
        except (OSError, UnicodeError, NoSchedulerFileError) as error:
            raise _failed(
                f"{str(path)!r} is no scheduler file that can be read: {error}", id, error
            ) from error
        sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_POLL_SECONDS)


def _connect_as_named(path: Path, id: str, security: Any, until: float) -> Client:
    named = scheduler_file.read(path)
    scheduler_file.probe(named.address)
    seconds = min(setting("connection.timeout"), max(until - monotonic(), LEAST_SECONDS))
    try:
        client = _client_within(seconds, named.address, security)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        message = trouble_with(named.address, error, security)
        if message is None:
            raise NotYetError(f"it names {named.address}, and {error}") from error
        raise _failed(message, id, error) from error
    # A port may be used again: by the next job of the same user, or by somebody else.
    answers = client.scheduler_info()["id"]
    if named.id and answers != named.id:
        client.close()
        raise NotYetError(f"it names {named.id} at {named.address}, where {answers} answers")
    return client


def _failed(message: str, id: str, error: BaseException) -> ConductorError:
    return ConductorError(Event(message, conductor_id=id, level="error"), error)


class _Client(Client):  # type: ignore[misc]
    """A client that is closed at once where it cannot connect.

    Dask's own client is closed only when it is collected as garbage. That may happen while another
    client starts, on the thread that holds a lock which closing waits for. And its loop goes on.
    """

    def start(self, **options: Any) -> None:
        try:
            super().start(**options)
        except BaseException:
            self.close()
            internals.stop_loop(self)
            raise


_Client.__name__ = Client.__name__  # the name in its repr


def _client_within(seconds: float, where: Any, security: Any) -> Client:
    """Return a client, or raise; Dask itself waits for ever where a peer keeps silent."""
    made: ThreadFuture[Client] = ThreadFuture()

    def make() -> None:
        try:
            client = _Client(where, timeout=seconds, set_as_default=False, security=security)
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits
            if made.set_running_or_notify_cancel():
                made.set_exception(error)
            return
        if made.set_running_or_notify_cancel():
            made.set_result(client)
        else:
            client.close()  # it came too late

    threading.Thread(target=make, name="atomizer-connect", daemon=True).start()
    try:
        return _await(made, seconds + 1)
    except BaseException:  # Ctrl-C too
        if not made.cancel() and made.exception() is None:
            made.result().close()
        raise


def _await(made: ThreadFuture[Client], seconds: float) -> Client:
    if not has_ended(made, seconds) and made.cancel():
        raise TimeoutError("no answer within that time")
    return made.result()
