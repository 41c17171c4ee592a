"""The conductor that carries batches through Dask.

::

    client process                      scheduler                worker process
    DaskConductor.submit  ── task ────▶            ── task ────▶ run_batch ▸ DaskSite.execute
    _on_message          ◀── topic ───            ◀── topic ──── given back, small outcome, events
    _carry_out           ◀─────────── gather, from the worker ── large outcome

A small outcome rides on the topic, which saves the round trip of a gather; the task's future
stays the authority on whether the batch has ended. An electron sends children through the
`WorkerConductor` of its worker, which has a client of its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from distributed import Client
from distributed.deploy import Cluster
from distributed.security import Security

from atomizer_dask.atoms import pickling
from atomizer_dask.atoms.atom_code import AtomCode
from atomizer_dask.conductor import Listener
from atomizer_dask.conductors.batch_conductor import JOIN_SECONDS
from atomizer_dask.conductors.dask.ask_workers import install
from atomizer_dask.conductors.dask.carrier import DaskCarrier
from atomizer_dask.conductors.dask.cluster.compatibility import Compatibility
from atomizer_dask.conductors.dask.cluster.connect import connect
from atomizer_dask.conductors.dask.cluster.shielding import shield
from atomizer_dask.conductors.dask.messages import OutcomesStored, as_event
from atomizer_dask.conductors.dask.plugins.by_value import PluginByValue
from atomizer_dask.conductors.dask.plugins.idle_workers import IdleWorkersByValue
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import (
    DRIVER,
    forget_runs,
    knows,
    tasks_of_run,
)
from atomizer_dask.conductors.dask.task_keys import key_of_run
from atomizer_dask.conductors.dask.worker import (
    CALLS,
    Undisturbed,
    drive_detached,
    hold_atom,
    release_finished,
    sees,
)
from atomizer_dask.config import setting
from atomizer_dask.display.completion import offers
from atomizer_dask.electron import new_id
from atomizer_dask.errors import ConductorError
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Batch, StoreTarget
from atomizer_dask.execution.packing import Packed
from atomizer_dask.interruptible import wait
from atomizer_dask.policy import Policy

logger = logging.getLogger(__name__)

DRIVER_PRIORITY = 1e15  # over all batches
DRIVER_RETRIES = 3  # of the task that drives a detached run, which has no client to retry it


@offers("client error")
class DaskConductor(DaskCarrier):
    """Carries electrons to the workers of a Dask cluster.

    Parameters
    ----------
    target
        One of:

        - any Dask ``Cluster``: one of dask-jobqueue such as ``SLURMCluster``, a ``LocalCluster``,
          a ``SpecCluster`` and so on, but no asynchronous one;
        - a scheduler's address, ``"tcp://node1:8786"``;
        - a `distributed.Client`;
        - the path of a scheduler file, as `pathlib.Path` or text, which need not exist yet;
        - None: the current client where there is one, else what is configured as
          ``atomizer.connection.target`` or, for all of Dask, as ``scheduler-address``, else a local
          cluster of processes that listen to this machine alone and live as long as the conductor.
    id
        The name of the conductor.
    workers, threads_per_worker
        Of the local cluster. As many processes as there are cores and one thread in each unless
        given: atoms are Python and NumPy, which often hold the interpreter lock. Atoms that
        release it, or that share large memory, are better off in one process of many threads.
        Elsewhere choose by the same rule where you start the workers: ``dask worker --nworkers
        auto --nthreads 1``, or ``SLURMCluster(cores=8, processes=8)``.
    security
        A `distributed.Security` for an address, a scheduler file or a local cluster; True for a
        local cluster with temporary certificates, which needs cryptography. Clients and clusters
        have their own.
    timeout
        How long to wait for a scheduler, in seconds or as ``"10 minutes"``: unless given or
        configured 8 seconds at an address, and 30 for a scheduler file to appear and its scheduler
        to answer.

    Raises
    ------
    ConductorError
        Where no scheduler answers in time or certificates do not fit, or the workers' Python or
        version of this package is another one; the message lists which worker has which.

    Notes
    -----
    Closing it closes what it opened itself: its connection, and a local cluster that it started.
    The processes of that cluster never import the main module, go on at Ctrl-C, may have children,
    and end with this process, however it ends.
    Workers may join later, and execute registered atoms at once. Where a worker's environment
    differs, a warning says so; no electron goes to a worker on which it would fail.

    Examples
    --------
    ``DaskConductor(SLURMCluster(cores=8, processes=8, memory="16GB"))``, or where the scheduler is
    in a job of its own ``DaskConductor("scheduler.json", timeout="1 hour")``.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | Client | Cluster | None = None,
        *,
        id: str = "dask",
        workers: int | None = None,
        threads_per_worker: int | None = None,
        security: Security | bool | None = None,
        timeout: float | str | None = None,
    ) -> None:
        client, self._name, self._cluster, self._owns_cluster = connect(
            target, id, workers, threads_per_worker, security, timeout
        )
        self._news: list[Event] = []  # about connecting, and environments that differ
        try:
            super().__init__(id, client, CALLS, self._cluster)
        except BaseException:  # Ctrl-C too
            client.close()
            if self._owns_cluster and self._cluster is not None:
                self._cluster.close()
            raise
        try:
            self._news.append(self._connected())
            logger.info("%s", self._news[0])
            self._ask(self._client.register_plugin, PluginByValue())
            self._ask(self._client.register_plugin, self._lookout())
            if not self._owns_cluster:
                self._ask(shield, self._client)
            self._placement.fitness = self._check_workers()
        except BaseException:  # Ctrl-C too
            self.close()
            raise

    def _connected(self) -> Event:
        crew = str(self._watch.crew) if self._watch.workers else "no workers yet"
        message = f"connected to {self._name} at {self._address}: {crew}"
        return Event(message, conductor_id=self.id, fields={"scheduler": self._address})

    def _lookout(self) -> IdleWorkersByValue:
        return IdleWorkersByValue(
            patience=setting("workers.patience"),
            restart=setting("workers.restart"),
            is_own=self._owns_cluster,
        )

    def _check_workers(self) -> Compatibility:
        fitness = Compatibility(self._client, self.id, self._note_news)
        self._ask(fitness.check)
        return fitness

    def _note_news(self, event: Event) -> None:
        """Emit an event to listeners, also to those that attach later."""
        self._news.append(event)
        self.emit(self.channel, event)

    def attach(self, listener: Listener) -> None:
        """Look up atoms at `listener` first; send it events, also earlier ones about connecting."""
        is_new = listener not in self._listeners
        super().attach(listener)
        for event in list(self._news) if is_new else ():
            listener.emit(event)

    def shield_workers(self) -> None:
        """Have workers of the conductor's own cluster ignore signals: this process ends them."""
        if self._owns_cluster:
            self._ask(self._client.sync, install, self._client, Undisturbed())

    def check_detachable(self, sink: StoreTarget) -> None:
        """Raise where no worker sees the store, so that none could go on with the run."""
        seeing = self._ask(self._ask_workers, sees, sink)
        if not seeing:
            raise ConductorError(
                f"there are no workers at {self._address} yet that could go on with the run: wait "
                "for some, as by conductor.client.wait_for_workers(1)"
            )
        if not any(seeing.values()):
            raise ConductorError(
                f"no worker sees the store {sink.url}, so that none can go on with the run: put "
                "it where they do, on a file system that they share or at a URL"
            )

    def detach_run(
        self,
        run_id: str,
        sink: StoreTarget,
        version: Any,
        policy: Policy,
        drive: Callable[..., str],
    ) -> None:
        """Have a worker that sees the store drive a run from now on."""
        code = self._atoms.code_of(version)
        seeing = [
            worker for worker, does in self._ask(self._ask_workers, sees, sink).items() if does
        ]
        if AtomCode.of(code).large:  # this process, which has it, may end at once
            self._ask(self._ask_workers, hold_atom, version, workers=seeing)
        name = f"drive-{new_id()}"
        future = self._client.submit(
            drive_detached,
            drive,
            sink.url,
            code,
            pickling.dumps(policy),
            name,
            key=(name, run_id, DRIVER),
            workers=seeing,
            priority=DRIVER_PRIORITY,
            retries=DRIVER_RETRIES,
            pure=False,
        )
        # This process may end as soon as the scheduler has it.
        while not (future.done() or self._ask(self._client.run_on_scheduler, knows, future.key)):
            wait(self._pause, JOIN_SECONDS)

    def whereabouts(self) -> dict[str, Any]:
        """Return type, threads, scheduler and workers, as the store of a run records them."""
        there = {"scheduler": self._address, "workers": sorted(self._watch.workers)}
        return {**super().whereabouts(), **there}

    def in_flight(self, run_id: str) -> list[Batch]:
        """Return the batches of a run that outlived their client, in the order of submission."""
        batches = []
        for _, args in self._ask(self._client.run_on_scheduler, tasks_of_run, run_id):
            if args and isinstance(args[0], Packed):  # else the task is one whose outcome is lost
                batches.append(args[0].load())
        return batches

    def settle(self, run_id: str, atom_id: str, keys: list[str] | None) -> None:
        """Forget the outcomes of batches of a run, all where `keys` is None: the store has them."""
        tasks = None if keys is None else [key_of_run(atom_id, key, run_id) for key in keys]
        if self._client.status == "running":
            stored = as_event(OutcomesStored(run_id, tasks))
            self._client.loop.add_callback(self._client.scheduler.log_event, **stored)

    def close(self) -> None:
        """End what is under way, and close what it opened itself."""
        if self._closed:
            return
        super().close()
        self.release_finished()
        if self._client.status == "running":
            self._client.unsubscribe_topic(self.channel)
            if self._owns_cluster:
                # Or the scheduler would warn of lost results that nobody wants any more.
                self._call_workers(release_finished)
                self._client.run_on_scheduler(forget_runs)
        self._client.loop.add_callback(self._watch.cancel)
        self._client.close()
        if self._owns_cluster and self._cluster is not None:
            self._cluster.close()

    def __repr__(self) -> str:
        crew = "closed" if self._closed else str(self._watch.crew)
        return f"<DaskConductor {self.id}: {self._name} {self._address}, {crew}>"
