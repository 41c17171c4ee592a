"""Workers that a cluster of Dask's gives up for good while they start again.

Such a cluster closes a worker that has been away for ``distributed.deploy.lost-worker-timeout``,
by default 15 seconds, after its process ended. On a busy machine, or where modules come from a slow
file system, its nanny needs longer to start the next process; and no other worker takes its place,
though the cluster is still meant to have it.
"""

from __future__ import annotations

from typing import Any

from distributed import Nanny, SpecCluster

from atomizer_dask.conductors.dask.cluster.internals import start_missing


class LostWorkers:
    """Has a cluster of this process start again which workers it gave up.

    A worker that was retired, or whose job is over, is not lost.

    Parameters
    ----------
    cluster
        The cluster.

    Attributes
    ----------
    restarted
        The names of workers that have ended to be started again.
    """

    def __init__(self, cluster: SpecCluster) -> None:
        self._cluster = cluster
        self._nannies: dict[Any, Nanny] = {}  # by the names of their workers
        self.restarted: set[Any] = set()
        self._look()

    def replace(self) -> None:
        """Look which are lost, and have them started."""
        cluster, lost = self._cluster, self._look()
        if cluster.status.name == "running" and any(map(self._is_to_be_replaced, lost)):
            # Not scale(), which may undo what somebody else asks of it just then.
            start_missing(cluster)

    def _look(self) -> set[Any]:
        """Note whose nannies go on, and return the names of workers that are not there."""
        workers = dict(self._cluster.workers)
        for name, worker in workers.items():
            if isinstance(worker, Nanny) and worker.status.name == "running":
                self._nannies[name] = worker
            else:  # it is retired, or a job
                self._nannies.pop(name, None)
        lost: set[Any] = self._cluster.worker_spec.keys() - workers.keys()
        return lost

    def _is_to_be_replaced(self, name: Any) -> bool:
        """Return whether a worker that is lost went on, and has ended by now, so has its name."""
        here = list(self._cluster.scheduler_info["workers"].values())
        if any(facts["name"] == name for facts in here):
            return False
        if (nanny := self._nannies.get(name)) is not None:
            return nanny.status.name in ("closed", "failed")
        return name in self.restarted
