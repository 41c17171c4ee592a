"""From whatever names a Dask cluster to a client of our own."""

from __future__ import annotations

import threading
from concurrent.futures import Future as ThreadFuture
from typing import Any, NamedTuple

from distributed import Client, LocalCluster
from distributed.deploy import Cluster

from atomizer_dask.errors import ConductorError
from atomizer_dask.events import Event

CONNECT_SECONDS = 8


class Connection(NamedTuple):
    """A client of our own, whose settings nobody else sees, and the cluster that was started."""

    client: Client
    cluster: Cluster | None


def connect(target: Any, id: str, workers: int | None, threads_per_worker: int) -> Connection:
    """Connect to what a conductor was given; see `DaskConductor`."""
    cluster = None
    if target is None:
        try:
            target = Client.current()
        except ValueError:  # there is none
            target = cluster = _LocalCluster(
                n_workers=workers,
                threads_per_worker=threads_per_worker,
                dashboard_address="127.0.0.1:0",
            )
    security = getattr(target, "security", None)
    where = target.scheduler.address if isinstance(target, Client) else target
    if not isinstance(where, str | Cluster):
        raise TypeError(
            f"expected a scheduler's address, a distributed.Client or a Dask cluster, got "
            f"{type(target).__name__} {target!r}"
        )
    try:
        return Connection(_client_within(CONNECT_SECONDS, where, security), cluster)
    except (OSError, ValueError) as error:
        raise ConductorError(
            Event(
                f"nobody answers at {where!r}: check that dask-scheduler runs there, that "
                "host, port and protocol (tcp:// or tls://) are right, and that no firewall "
                "is in between",
                conductor_id=id,
                level="error",
            ),
            error,
        ) from error


class _LocalCluster(LocalCluster):  # type: ignore[misc]
    """A LocalCluster whose nannies restart their workers however often these die.

    Dask's own gives a worker up that happens to be away 15 seconds after any of its deaths.
    """

    def _update_worker_status(self, op: str, msg: Any) -> None:
        Cluster._update_worker_status(self, op, msg)


def _client_within(seconds: float, where: Any, security: Any) -> Client:
    """Return a client, or raise; Dask itself would wait for ever for one who keeps silent."""
    made: ThreadFuture[Client] = ThreadFuture()

    def make() -> None:
        try:
            client = Client(where, timeout=seconds, set_as_default=False, security=security)
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
        return made.result(seconds + 1)
    except TimeoutError:
        if not made.cancel():
            return made.result()
        raise TimeoutError(f"no answer within {seconds + 1} s") from None
