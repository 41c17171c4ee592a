"""Workers that a cluster of Dask's gives up for good while they restart.

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
    """Has a cluster of this process start workers again that it gave up.

    A worker that was retired, or whose job is over, is not lost.

    Parameters
    ----------
    cluster
        The cluster.

    Attributes
    ----------
    restarted
        The names of workers that were ended in order to restart.
    """

    def __init__(self, cluster: SpecCluster) -> None:
        self._cluster = cluster
        self._nannies: dict[Any, Nanny] = {}  # by the names of their workers
        self.restarted: set[Any] = set()
        self._missing()

    def replace(self) -> None:
        """Have the cluster start the workers that are lost."""
        cluster, lost = self._cluster, self._missing()
        if cluster.status.name == "running" and any(map(self._is_to_be_replaced, lost)):
            # Not scale(), which may undo a scaling that somebody else asks for just then.
            start_missing(cluster)

    def _missing(self) -> set[Any]:
        """Note the running nannies, and return the names of workers that are not there."""
        workers = dict(self._cluster.workers)
        for name, worker in workers.items():
            if isinstance(worker, Nanny) and worker.status.name == "running":
                self._nannies[name] = worker
            else:  # the worker is retired, or a job
                self._nannies.pop(name, None)
        lost: set[Any] = self._cluster.worker_spec.keys() - workers.keys()
        return lost

    def _is_to_be_replaced(self, name: Any) -> bool:
        """Return whether a lost worker has ended, so that another one may have its name."""
        here = list(self._cluster.scheduler_info["workers"].values())
        if any(facts["name"] == name for facts in here):
            return False
        if (nanny := self._nannies.get(name)) is not None:
            return nanny.status.name in ("closed", "failed")
        return name in self.restarted
