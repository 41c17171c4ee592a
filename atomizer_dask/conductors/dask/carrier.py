"""The base class of the conductors of a client and of a worker: both carry batches by Dask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from time import time
from typing import Any, NamedTuple

from distributed import Client
from distributed.deploy import Cluster

from atomizer_dask.atoms.definition import Definition
from atomizer_dask.atoms.namespaces import loads
from atomizer_dask.conductors.batch_conductor import BatchConductor
from atomizer_dask.conductors.dask.ask_workers import ask_workers, successes
from atomizer_dask.conductors.dask.atom_table import AtomTable
from atomizer_dask.conductors.dask.atom_versions import Version
from atomizer_dask.conductors.dask.batch_tasks import BatchTasks
from atomizer_dask.conductors.dask.large_buffers import provide
from atomizer_dask.conductors.dask.messages import (
    BatchArrived,
    BatchExpiring,
    BatchGivenBack,
    BatchHandedOn,
    BatchPartly,
    BufferMissing,
    DemandChanged,
    ElectronHandedOn,
    ErrorReported,
    EventsEmitted,
    SpawnerWaiting,
    WorkerMessage,
    as_event,
    from_topic,
)
from atomizer_dask.conductors.dask.placement import Placement
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import SEND_SECONDS
from atomizer_dask.conductors.dask.worker_watch import WorkerList, WorkerWatch
from atomizer_dask.conductors.electron_source import Handed, Sent
from atomizer_dask.conductors.reports import Expiring, GivenBack, Report
from atomizer_dask.conductors.status import ConductorState, ConductorStatus, WorkerStatus
from atomizer_dask.electron import new_id
from atomizer_dask.errors import AtomizerError, ConductorError, InvalidSweepError, where_raised
from atomizer_dask.events import Event, Level
from atomizer_dask.execution.batch import Batch
from atomizer_dask.execution.input_checks import check_picklable, futures_in
from atomizer_dask.execution.packing import Packed
from atomizer_dask.sweeps.sweep import Sweep

TELL_SECONDS = 1.0  # for workers to answer a call


class WorkerCalls(NamedTuple):
    """The functions that a conductor has workers call.

    They are passed in, because their module makes conductors itself.

    Parameters
    ----------
    run_batch
        Executes a batch, from its packed form and the channel of its sender.
    stop
        Gives back electrons that have not begun, of a run or of an electron's descendants.
    census
        Counts the children that electrons of a channel have sent.
    wall_time
        Returns the seconds that electrons have left on a worker, and had at first.
    take_piece
        Gives a worker a piece of a large buffer that its host does not have.
    """

    run_batch: Callable[..., Packed]
    stop: Callable[..., Any]
    census: Callable[..., Any]
    wall_time: Callable[..., Any]
    take_piece: Callable[..., Any]


class DaskCarrier(BatchConductor):
    """Carries batches to the workers of a Dask cluster.

    Parameters
    ----------
    id
        The name of the conductor.
    client
        A client connected to the scheduler.
    calls
        The functions that workers call.
    cluster
        The cluster whose lost workers are replaced; None where it is not known.
    """

    def __init__(
        self, id: str, client: Client, calls: WorkerCalls, cluster: Cluster | None = None
    ) -> None:
        super().__init__(id)
        self.channel = f"atomizer-{new_id()}"
        self._client = client
        self._calls = calls
        self._channels: set[str] = {self.channel}
        self._demand = (0, 0.0)  # as last announced
        client.scheduler_comm.interval = SEND_SECONDS  # by default it gathers messages for 10 ms
        self._address = client.scheduler.address
        # Batches of different machines are due by the scheduler's clock.
        clock_offset = self._ask(client.run_on_scheduler, time) - time()
        self._placement = Placement(client, calls.wall_time, self.emit, self._note_lost_state)
        self._atoms = AtomTable(client, self._ask, self._placement)
        self._tasks = BatchTasks(client, self, calls.run_batch, self._placement, clock_offset)
        self._watch = WorkerWatch(client, self, self._tasks, self._placement, cluster)
        self._watch.note(WorkerList(self._ask(client.nthreads)))
        client.subscribe_topic(self.channel, self._on_message)
        self._watch.start()

    # -- what the driver needs --------------------------------------------------------------

    @property
    def client(self) -> Client:
        """The `distributed.Client` that the conductor works through."""
        return self._client

    @property
    def threads(self) -> int:
        """How many threads the workers have that do something, in all, as last seen."""
        return self._watch.crew.threads

    def standstill(self, version: Any) -> str:  # noqa: D102
        fitness = self._placement.fitness
        return self._watch.crew.standstill(set() if fitness is None else fitness.unfit_for(version))

    @property
    def state(self) -> ConductorState:
        """Whether electrons can be sent: ``connected``, ``reconnecting``, ``closed``, ``gone``."""
        state = super().state
        if state == "connected" and self._client.status != "running":
            return "reconnecting"
        return state

    def status(self) -> ConductorStatus:
        """Return the state of the conductor, and its workers as the scheduler knows them."""
        state = self.state
        if state != "connected":
            return ConductorStatus(state, self._address)
        known = self._ask(self._client.scheduler_info, n_workers=-1)["workers"]
        workers = tuple(_status_of(address, facts) for address, facts in known.items())
        return ConductorStatus(state, self._address, workers, self._client.dashboard_link or "")

    def submit(self, batch: Batch, post: Callable[[Report], None]) -> None:
        """Have a batch executed by some worker."""
        self._tasks.submit(batch, post)

    def await_batch(self, batch: Batch, post: Callable[[Report], None]) -> None:
        """Call `post` with reports about a batch that another process submitted."""
        if batch.origin.channel not in self._channels:  # on which its worker reports
            self._channels.add(batch.origin.channel)
            self._client.subscribe_topic(batch.origin.channel, self._on_message)
        self._tasks.adopt(batch, post)

    def forget(self, key: str) -> None:
        """Report nothing more about a batch, which goes on; see `in_flight`."""
        self._tasks.forget(key)

    def retract(self, key: str) -> None:
        """Forget a batch: nobody waits for it any more."""
        self._tasks.retract(key)

    def stop(self, root: str, epoch: int, *, cancel: bool) -> None:
        """Have workers give back electrons of a run, or of descendants, that have not begun."""
        if cancel:
            self.cancel_descendants(root)
        is_reached = self._client.status == "running"
        # Not by the workers as last seen: after a death the next worker may have begun already.
        if not (is_reached and self._call_workers(self._calls.stop, root, epoch, cancel)):
            self._tasks.drop_all()  # no worker has begun

    def release_finished(self) -> None:
        """Release the futures of outcomes that have been delivered."""
        self._tasks.release_finished()

    def count_all(self) -> tuple[int, int]:
        """Return the census of the conductor's channel, here and on all workers."""
        alive, sent = super().count_all()
        if self._client.status != "running":
            return alive, sent
        counts = self._ask_workers(self._calls.census, self.channel)
        return (
            alive + sum(alive_there for alive_there, _ in counts.values()),
            sent + sum(sent_there for _, sent_there in counts.values()),
        )

    # -- atoms ------------------------------------------------------------------------------

    def version_of(self, definition: Definition) -> Version:
        """Return the version that an atom has now, which the scheduler keeps as long as needed."""
        return self._atoms.version_of(definition)

    def check_inputs(self, sweep: Sweep, fixed: Mapping[str, Any]) -> None:
        """Raise where inputs cannot be pickled, with the column and the row."""
        for where, future in futures_in(sweep, fixed):
            if future.status in ("cancelled", "lost"):
                raise InvalidSweepError(f"{where} is a Future of Dask that is {future.status}")
            if future.client.scheduler.address != self._address:
                raise InvalidSweepError(
                    f"{where} is a Future of Dask of another scheduler than {self._address}: give "
                    "what client.gather(...) of it returns"
                )
        check_picklable(sweep)

    def publish(self, definition: Definition) -> None:
        """Publish an atom to every client of the scheduler, and to children of its electrons."""
        self._atoms.publish(definition)

    def find_version(self, atom_id: str) -> str | None:
        """Return the version of an atom that another client of the scheduler published."""
        return self._atoms.find_version(atom_id)

    def fetch(self, atom_id: str) -> Definition | None:
        """Return an atom that another client of the scheduler published."""
        return self._atoms.fetch(atom_id)

    def catalog(self) -> Mapping[str, str]:
        """Return the versions that descendants of an electron shall find, by atom id."""
        return self._atoms.catalog

    # -- messages of workers -----------------------------------------------------------------

    def _on_message(self, message: tuple[float, Any]) -> None:
        try:
            self._heed(from_topic(message[1]))
        except BaseException as error:  # noqa: BLE001 - of objects in events, on Dask's event loop
            # The future of a batch brings its outcome once more; nobody waits for an event.
            what = f"the workers reported something that cannot be read: {where_raised(error)}"
            self.report(
                "", AtomizerError(Event(what, conductor_id=self.id, level="warning"), error)
            )

    def _heed(self, message: WorkerMessage) -> None:
        match message:
            case BatchArrived(key, outcome):
                self._tasks.post_arrived(key, outcome)
            case BatchGivenBack(key, stop):
                self._tasks.post(key, GivenBack(key, stop))
            case BatchPartly(key, outcome):
                self._tasks.post_partly(key, outcome)
            case BatchExpiring(key, ran):
                self._tasks.post(key, Expiring(key, ran))
            case ElectronHandedOn(sent):
                electron: Sent = loads(sent)
                if self._is_of_ours(electron):
                    self._sender.send_again(electron)
            case BatchHandedOn(handed):
                batch: Handed = loads(handed)
                if self._is_of_ours(batch.electrons[0]):
                    self.post(partial(self._sender.adopt, batch))
            case SpawnerWaiting(electron_id):
                self.announce_waiting(self.channel, electron_id)
            case EventsEmitted(events):
                for event in loads(events):
                    self.emit(self.channel, event)
            case ErrorReported(error):
                self.report(self.channel, loads(error))

    def _is_of_ours(self, sent: Sent) -> bool:
        """Return whether an electron descends from one sent here: others listen to topics too."""
        return not self._closed and sent.origin.channel == self.channel

    # -- reports of its tasks and its watch ---------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed."""
        return self._closed

    def note_death(self, batch: Batch, worker: str) -> None:
        """Note that a worker died with a batch."""
        self._watch.note_death(batch, worker)

    def note_poll(self) -> None:
        """Do what is due once a second."""
        self.post(self._announce_demand)
        self.post(self._release_unneeded)

    def note_missing(self, missing: BufferMissing) -> None:
        """Send a large buffer to a worker whose host does not have it, where it is here."""
        self._client.loop.add_callback(provide, self._client, missing, self._calls.take_piece)

    def note_gone(self) -> ConductorError:
        """Note that the scheduler is gone, and return the error that says so."""
        gone = self._gone_error()
        self.lose(gone)
        return gone

    def _note_lost_state(self, batch: Batch, worker: str) -> None:
        self._watch.note_lost_state(batch, worker)

    def _release_unneeded(self) -> None:
        self._atoms.release_unneeded(is_idle=not self.demand()[0])

    def _announce_demand(self) -> None:
        """Announce to adaptive clusters how much is still to be done, if that has changed."""
        demand = self.demand()
        if demand != self._demand:
            self._demand = demand
            message = DemandChanged(self._client.id, *demand)
            self._client.loop.add_callback(self._client.scheduler.log_event, **as_event(message))

    def announce(self, message: str, level: Level = "info", **fields: Any) -> None:
        """Emit an event about the cluster."""
        event = Event(message, conductor_id=self.id, level=level, fields=fields)
        self.emit(self.channel, event)

    def error(self, message: str) -> ConductorError:
        """Return an error that names the scheduler."""
        return ConductorError(
            Event(f"{message} ({self._address})", conductor_id=self.id, level="error")
        )

    def _gone_error(self, cause: BaseException | None = None) -> ConductorError:
        error = self.error("the scheduler is gone")
        error.internal = cause
        return error

    # -- asking ------------------------------------------------------------------------------

    def _ask(self, ask: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a function that asks the scheduler; raise `ConductorError` where that is gone."""
        try:
            return ask(*args, **options)
        except OSError as error:
            raise self._gone_error(error) from error

    def _ask_workers(self, *function: Any, **options: Any) -> dict[str, Any]:
        """Run a function on all workers, and return the answers of those that do not fail."""
        answers: dict[str, Any] = self._client.sync(ask_workers, self._client, *function, **options)
        return successes(answers)

    def _call_workers(self, what: Callable[..., Any], *args: Any) -> bool:
        """Call a function on all workers, and return whether there are any.

        Workers that do not answer, as where an electron holds the interpreter lock, are not waited
        for.
        """
        call = partial(ask_workers, self._client, what, *args)
        with suppress(TimeoutError):
            return bool(self._client.sync(call, callback_timeout=TELL_SECONDS))
        return True


def _status_of(address: str, facts: Mapping[str, Any]) -> WorkerStatus:
    """Return what the scheduler knows of a worker; metrics come with its first heartbeat."""
    metrics = facts.get("metrics", {})
    return WorkerStatus(
        address=address,
        host=facts["host"],
        threads=facts["nthreads"],
        executing=metrics.get("task_counts", {}).get("executing", 0),
        memory=metrics.get("memory", 0),
        memory_limit=facts.get("memory_limit") or None,
    )
