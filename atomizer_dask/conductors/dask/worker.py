"""The worker's side of the Dask conductor: the one task it submits, and the site it runs on."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import ModuleType
from typing import Any

from distributed import Client, Worker, WorkerPlugin, get_client, get_worker, secede
from distributed.utils import sync

from atomizer_dask.atoms import namespaces
from atomizer_dask.atoms.atom_code import AtomCode
from atomizer_dask.atoms.definition import Definition
from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.atoms.shared_files import SharedFile
from atomizer_dask.conductors.child_conductor import ChildConductor
from atomizer_dask.conductors.dask.atom_versions import LARGE, collect
from atomizer_dask.conductors.dask.carrier import WorkerCalls
from atomizer_dask.conductors.dask.large_buffers import BufferPiece, BufferReceiver
from atomizer_dask.conductors.dask.messages import (
    BatchArrived,
    BatchGivenBack,
    BatchPartly,
    EventsEmitted,
    WorkerMessage,
    to_topic,
)
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import METADATA, SEND_SECONDS
from atomizer_dask.conductors.dask.walltime import WallTime, WorkerShutdown
from atomizer_dask.conductors.dask.worker_conductor import WorkerConductor
from atomizer_dask.errors import UnpicklableError, text_of
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Batch, Origin, StoreTarget
from atomizer_dask.execution.lease import Lease
from atomizer_dask.execution.outcome import BatchOutcome, Outcome
from atomizer_dask.execution.packing import Packed, dump_events, pack_outcome, unpack_outcome
from atomizer_dask.execution.quarantine.nested_processes import let_code_travel_on
from atomizer_dask.execution.quarantine.parent import IsolatingSite
from atomizer_dask.execution.quarantine.signals import heed_not
from atomizer_dask.store.worker_writer import WorkerWriter

logger = logging.getLogger(__name__)

LARGE_PART = 2**20  # bytes of a report on a batch that goes on: it travels through the scheduler
SPACES = 16  # of code among inputs: so many of the latest are kept
SMALL_OUTCOME = 8192  # bytes; the scheduler keeps the last messages of a topic
EVENT_SECONDS = 0.1
SWITCH_SECONDS = 0.001
_MAKING = threading.Lock()  # held while a worker's site is made


def run_batch(packed: Packed, channel: str, *values: Any) -> Packed:
    """Execute a batch on the worker this runs on; the one task this package submits.

    Parameters
    ----------
    packed
        The batch to execute.
    channel
        The topic on which the conductor that sent the batch listens.
    *values
        The values of the Futures among the inputs.

    Raises
    ------
    UnpicklableError
        Where an input of the batch cannot be read here.
    """
    site = DaskSite.of(get_worker())
    site.atom_of(packed.space)  # inputs may be of classes of the atom's code
    files = site.receiver.obtain(packed.large)
    try:
        batch = replace(packed.load(values), code=packed.space.partition("/")[2])
    except BaseException as error:  # Dask would end the worker for a SystemExit
        why = f"the input cannot be unpickled on the worker: {text_of(error)}"
        raise UnpicklableError(why) from error
    finally:
        del files  # what is mapped stays
    return site.carry_out(batch, channel)


def drive_detached(
    drive: Callable[..., str], url: str, atom: bytes, policy: bytes, task: str
) -> str:
    """Drive a run without its client, and without holding a thread of the worker's pool."""
    client = get_client()
    secede()
    return drive(client, url, atom, policy, task)


async def sees(sink: StoreTarget, dask_worker: Worker) -> bool:
    """Return whether a store can be seen from this worker."""
    sees = DaskSite.of(dask_worker).depository.sees
    return await asyncio.get_running_loop().run_in_executor(None, sees, sink)


async def stop(root: str, epoch: int, cancel: bool, dask_worker: Worker) -> None:
    """Do what `Site.stop` does on this worker."""
    DaskSite.of(dask_worker).stop(root, epoch, cancel=cancel)


async def census(channel: str, dask_worker: Worker) -> tuple[int, int]:
    """Return what `DaskSite.census` counts on this worker."""
    return await DaskSite.of(dask_worker).census(channel)


async def wall_time(dask_worker: Worker) -> tuple[float, float]:
    """Return the seconds that electrons have left on this worker, and had at first."""
    of_site: WallTime = DaskSite.of(dask_worker).leaving.wall_time
    return of_site.left, of_site.life


async def unload(dask_worker: Worker) -> None:
    """Do what `WorkerShutdown.unload` does on this worker."""
    await DaskSite.of(dask_worker).leaving.unload()


async def hold_atom(version: str, dask_worker: Worker) -> None:
    """Load a version of an atom on this worker, with what is large in it."""
    site = DaskSite.of(dask_worker)
    await asyncio.get_running_loop().run_in_executor(None, site.atom_of, version)


async def take_piece(piece: BufferPiece, dask_worker: Worker) -> bool:
    """Do what `BufferReceiver.take` does on this worker."""
    take = DaskSite.of(dask_worker).receiver.take
    return await asyncio.get_running_loop().run_in_executor(None, take, piece)


async def forget(versions: list[str], dask_worker: Worker) -> None:
    """Do what `DaskSite.forget` does on this worker."""
    DaskSite.of(dask_worker).forget(versions)


async def release_finished(dask_worker: Worker) -> None:
    """Do what `DaskSite.release_finished` does on this worker."""
    DaskSite.of(dask_worker).release_finished()


class Undisturbed(WorkerPlugin):  # type: ignore[misc]
    """Has a worker ignore signals: the process that started it decides when it ends.

    A service manager, a batch system and a terminal signal all processes at once.
    """

    name = "atomizer-undisturbed"

    def setup(self, worker: Worker) -> None:
        """Ignore the signals that ask processes to end."""
        with suppress(ValueError):  # the worker is in a thread of somebody's process
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, heed_not)


def _have_dask_draw_apart() -> None:
    """Have Dask draw random numbers from another generator than atoms do.

    Dask draws in threads of its own, in the midst of electrons. Its modules get a copy of the
    module `random` whose functions are those of a generator of its own.
    """
    generator = random.Random()  # noqa: S311 - for samples and pauses
    apart = ModuleType(random.__name__, random.__doc__)
    vars(apart).update(vars(random))
    for name, function in vars(random).items():
        if isinstance(getattr(function, "__self__", None), random.Random):
            setattr(apart, name, getattr(generator, name))
    for name, module in list(sys.modules.items()):
        is_dasks = name.partition(".")[0] in ("dask", "distributed", "tornado")
        if is_dasks and getattr(module, "random", None) is random:
            module.random = apart  # type: ignore[attr-defined]


class DaskSite(IsolatingSite):
    """The site of a worker: executes batches, and reports on them to the conductor."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self.name = worker.address
        self._worker = worker
        self.memory_limit = worker.memory_manager.memory_limit or 0
        self._atoms: dict[str, Definition] = {}
        self._codes: dict[str, bytes] = {}
        self._files: dict[str, list[SharedFile]] = {}  # with large buffers, by version
        self._recent: dict[str, None] = {}  # spaces of code among inputs, the latest is the last
        self._forgotten_bytes = 0  # since garbage was last collected
        self._channels: dict[str, str] = {}
        self._conductor: WorkerConductor | None = None
        self._events: dict[str, list[Event]] = {}
        self._guard = threading.Lock()  # for the events
        self._opening = threading.Lock()  # for the conductor
        self.receiver = BufferReceiver(worker, self.memory_limit)
        self.depository = WorkerWriter()
        self.leaving = WorkerShutdown(
            worker,
            leases=lambda: list(self._leases.values()),
            emit=self.emit,
            channel_of=lambda batch: self._channels.get(batch.key, batch.origin.channel),
            hand_on=self.hand_on,
            keep=self.keep,
        )
        let_code_travel_on()
        _have_dask_draw_apart()
        # What a worker has imported by now lives as long as the worker. The many small objects of
        # spawners wake the collector often; it need not look at those modules again.
        gc.collect()
        gc.freeze()
        # An atom in pure Python holds the interpreter lock for 5 ms a turn. What the worker's event
        # loop does in several turns (take a task, send a result) would take 40 ms.
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
        # And an outcome must not wait up to 2 ms for others to travel with.
        worker.batched_stream.interval = min(worker.batched_stream.interval, SEND_SECONDS)

    @classmethod
    def of(cls, worker: Worker) -> DaskSite:
        """Return the site of a worker, made when first asked for."""
        site: DaskSite | None = worker.extensions.get("atomizer")
        if site is None:
            with _MAKING:
                site = worker.extensions.get("atomizer") or cls(worker)
                # A new table: a heartbeat may be iterating over the old one in the event loop, and
                # Dask closes the worker where the size of that changes.
                worker.extensions = {**worker.extensions, "atomizer": site}
        return site

    def carry_out(self, batch: Batch, channel: str) -> Packed:
        """Execute a batch and return its outcome, packed; a small one is sent ahead."""
        self._channels[batch.key] = channel
        try:
            outcome = self.execute(batch)
        finally:
            del self._channels[batch.key]
            self._flush()
        packed = pack_outcome(self._deposit(batch, outcome))
        if packed.nbytes <= SMALL_OUTCOME:
            self._send(channel, BatchArrived(batch.key, packed.whole()))
        return packed

    def _deposit(self, batch: Batch, outcome: Outcome) -> BatchOutcome:
        return self.depository.put(batch, outcome, however_small=self.leaving.is_last_chance)

    def keep(self, outcomes: list[tuple[Packed, Packed]]) -> None:
        """Write outcomes that nobody has fetched into the stores of their runs."""
        for batch, packed in outcomes:
            try:
                outcome = unpack_outcome(packed, batch.space)
                if isinstance(outcome, Outcome):
                    self.depository.put(batch.load(), outcome, however_small=True)
            except BaseException:  # of the user's objects, while the worker leaves
                logger.warning("an outcome that nobody has fetched cannot be kept", exc_info=True)

    def execute(self, batch: Batch) -> Outcome:
        """Execute a batch, or give all of it back where no electron of it would end in time."""
        return super().execute(batch) if self.leaving.takes(batch) else Outcome.none()

    def seconds_for(self, batch: Batch) -> float:  # noqa: D102
        return self.leaving.seconds_for(batch)

    def find_atom(self, batch: Batch) -> Definition:  # noqa: D102
        return self.atom_of(batch.space)

    def atom_of(self, space: str) -> Definition:
        """Return the atom of a space, loaded from the scheduler's table by its version.

        Raises
        ------
        LookupError
            Where the scheduler does not know the version.
        """
        version, _, code = space.partition("/")
        if code:
            self._recent.pop(space, None)
            self._recent[space] = None
        known = self._atoms.get(space)
        if known is None:
            self._forget_old_spaces()
            data = sync(
                self._worker.loop,
                self._worker.scheduler.get_metadata,
                keys=[METADATA, version],
                default=None,
            )
            if data is None:
                raise LookupError(f"the scheduler does not know the code of version {version}")
            atom = AtomCode.of(data)
            files = self.receiver.obtain(atom.large)
            known = self._atoms[space] = atom.load(space=space)
            self._codes[version], self._files[version] = data, files
        return known

    def _forget_old_spaces(self) -> None:
        """Forget spaces of code among inputs that no lease uses, except the latest."""
        in_use = {lease.batch.space for lease in list(self._leases.values())}
        old = [space for space in list(self._recent)[:-SPACES] if space not in in_use]
        for space in old:
            self._recent.pop(space, None)
            self._atoms.pop(space, None)
            namespaces.forget(space)
        if old:
            self.forget_in_children(old)

    def forget(self, versions: list[str]) -> None:
        """Forget versions of atoms that nobody needs any more."""
        gone = [space for space in list(self._atoms) if space.partition("/")[0] in versions]
        for space in gone:
            del self._atoms[space]
            self._recent.pop(space, None)
            namespaces.forget(space)
        for version in versions:
            self._forgotten_bytes += len(self._codes.pop(version, b""))
            self._singletons.pop(version, None)
            self._files.pop(version, None)
        self.forget_in_children(gone)
        if self._forgotten_bytes > LARGE:
            self._forgotten_bytes = 0
            collect()

    def code_of(self, batch: Batch) -> tuple[str, bytes]:  # noqa: D102
        return batch.space, self._codes[batch.version]

    def report_part(self, batch: Batch, outcome: Outcome) -> bool:  # noqa: D102
        packed = pack_outcome(self._deposit(batch, outcome))
        if packed.nbytes > LARGE_PART and not self.leaving.is_last_chance:
            return False
        channel = self._channels.get(batch.key)
        if channel is not None:
            self._send(channel, BatchPartly(batch.key, packed.whole()))
        return True

    def stop(self, root: str, epoch: int, *, cancel: bool) -> None:
        """Give back electrons that have not begun; with `cancel` cancel children sent here, too."""
        super().stop(root, epoch, cancel=cancel)
        if cancel and self._conductor is not None:
            conductor = self._conductor
            conductor.post(lambda: conductor.cancel_descendants(root))

    def give_back(self, batch: Batch, stop: int) -> None:  # noqa: D102
        if (channel := self._channels.get(batch.key)) is not None:
            self._send(channel, BatchGivenBack(batch.key, stop))

    def release_slot(self) -> None:  # noqa: D102
        # Not followed by rejoin(): at each level of a tree of spawners that would wait for a free
        # thread, just to run the few lines that an atom has after its wait.
        secede()

    def children(  # noqa: D102
        self, origin: Origin, root: str, stream: RandomStream, lease: Lease
    ) -> ChildConductor:
        # Not the lock of the events: the event loop sends events while a client is made.
        with self._opening:
            if self._conductor is None:
                self._conductor = WorkerConductor(self._worker, self._open_client(), CALLS)
        return ChildConductor(self._conductor, origin, root, stream, lease)

    def _open_client(self) -> Client:
        """Return a client that is this worker's alone.

        Dask's `get_client` gives all workers of a process the same client. It uses the connections
        of the first worker, and so fails once that worker has left.
        """
        worker = self._worker
        return Client(
            worker.scheduler.address,
            loop=worker.loop,
            security=worker.security,
            set_as_default=False,
            direct_to_workers=True,
            name="worker",
        )

    async def close(self) -> None:  # type: ignore[override]
        """End all children; awaited by the worker when it closes, before its event loop ends."""
        super().close()
        if self._conductor is not None:
            await self._conductor.part()
        self.leaving.stop_running()

    def emit(self, channel: str, event: Event) -> None:  # noqa: D102
        with self._guard:
            first = not self._events
            self._events.setdefault(channel, []).append(event)
        if first:
            self._worker.loop.add_callback(self._worker.loop.call_later, EVENT_SECONDS, self._flush)

    async def census(self, channel: str) -> tuple[int, int]:
        """Return how many children of a channel are not done, and how many were ever sent here."""
        if self._conductor is None:
            return 0, 0
        conductor = self._conductor
        return await asyncio.wrap_future(conductor.ask(lambda: conductor.census(channel)))

    async def hand_on(self) -> None:
        """Hand on the children that electrons here have sent; see `WorkerConductor.hand_on`."""
        if self._conductor is not None:
            await asyncio.wrap_future(self._conductor.ask(self._conductor.hand_on))

    def release_finished(self) -> None:
        """Release the outcomes of children that have been delivered."""
        if self._conductor is not None:
            self._conductor.release_finished()

    def _flush(self) -> None:
        with self._guard:
            events, self._events = self._events, {}
        for channel, those in events.items():
            self._send(channel, EventsEmitted(dump_events(those)))

    def _send(self, channel: str, message: WorkerMessage) -> None:
        self._worker.log_event(channel, to_topic(message))


CALLS = WorkerCalls(run_batch, stop, census, wall_time, take_piece)
