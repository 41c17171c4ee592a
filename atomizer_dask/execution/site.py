"""Places where batches are executed, and how a place executes one."""

from __future__ import annotations

import threading
from math import inf
from typing import Any

from atomizer_dask.atoms.context import EXECUTING
from atomizer_dask.atoms.definition import Definition, FunctionAtom
from atomizer_dask.atoms.global_generators import TURN
from atomizer_dask.console.capture import recording
from atomizer_dask.execution.batch import Batch
from atomizer_dask.execution.calls import inputs_as_columns
from atomizer_dask.execution.lease import HAND_OVER_SECONDS, Lease, LeaseSite, SingletonSlot
from atomizer_dask.execution.outcome import Outcome
from atomizer_dask.execution.outputs import join_outcomes
from atomizer_dask.execution.remaining import Remaining
from atomizer_dask.execution.row_dependence import Cuts
from atomizer_dask.execution.scalar_loop import run_each
from atomizer_dask.execution.vector_loop import run_slices
from atomizer_dask.sweeps.columns import size_of

_REMEMBERED = 10_000  # runs that were stopped


class Site(LeaseSite):
    """A place where batches are executed, and the leases of those that execute."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self._stopped: dict[str, tuple[int, bool]] = {}
        self._singletons: dict[Any, SingletonSlot] = {}
        self.cuts = Cuts()

    def stop(self, root: str, epoch: int, *, cancel: bool) -> None:
        """Give back the electrons not begun of a run, or of an electron's descendants.

        Parameters
        ----------
        root
            Id of the run or the electron; or the channel of a conductor, for all electrons that
            were sent through it one by one.
        epoch
            Of a run only batches of this epoch, or of an earlier one, are stopped.
        cancel
            Cancel the running electrons too.
        """
        # For batches that are still to begin. The oldest of very many runs are over.
        self._stopped[root] = epoch, cancel
        if len(self._stopped) > _REMEMBERED:
            del self._stopped[next(iter(self._stopped))]
        for lease in list(self._leases.values()):
            lease.heed(root, epoch, cancel)

    def execute(self, batch: Batch) -> Outcome:
        """Execute a batch until it is done, its time box ends, or it is stopped."""
        lease = self.lease(batch)
        definition = self.find_atom(batch)
        self._leases[batch.key] = lease
        if self._stopped:
            names = batch.root_id, batch.origin.channel, *(batch.ids or ()), *(batch.roots or ())
            for root in set(names):
                if root in self._stopped:
                    lease.heed(root, *self._stopped[root])
        try:
            if not definition.singleton:
                return run(lease, definition)
            return self._execute_singleton(lease, definition)
        finally:
            del self._leases[batch.key]

    def lease(self, batch: Batch) -> Lease:
        """Return the lease on a batch that is about to be executed."""
        return Lease(batch, self)

    def singleton(self, batch: Batch) -> SingletonSlot:
        """Return the slot of the singleton that a batch is for."""
        return self._singletons.setdefault(batch.version, SingletonSlot())

    def _execute_singleton(self, lease: Lease, definition: Definition) -> Outcome:
        lock = self.singleton(lease.batch).lock
        while not lock.acquire(timeout=HAND_OVER_SECONDS):
            if lease.stopped:
                return Outcome.none()
        try:
            return run(lease, definition)
        finally:
            lock.release()


def run(lease: Lease, definition: Definition) -> Outcome:
    """Execute a batch until it is done, its time box ends, or it is stopped."""
    timer = None
    seconds = lease.site.seconds_for(lease.batch) if len(lease.batch) > 1 else inf
    if seconds < inf:
        timer = threading.Timer(seconds, lease.time_is_up)
        timer.daemon = True
        timer.start()
    if definition.draws_from:
        TURN.begin()
    try:
        with EXECUTING:
            outcome = _run(lease, definition)
    finally:
        if definition.draws_from:
            TURN.end()
        lease.ended()
        if timer is not None:
            timer.cancel()
    return lease.rest_of(outcome)


def _run(lease: Lease, definition: Definition) -> Outcome:
    if lease.site.isolates(lease.batch, definition):
        return _run_pieces(lease, definition)
    inputs = inputs_as_columns(definition, lease.batch)
    with recording(lease.recorder):
        if inputs is not None:
            assert isinstance(definition, FunctionAtom)
            return run_slices(lease, definition, inputs)
        return run_each(lease, definition)


def _run_pieces(lease: Lease, definition: Definition) -> Outcome:
    """Execute a batch piece by piece in a child process."""
    first = 2 if definition.vectorized else 1
    claims = Remaining(len(lease.batch), first)
    pieces: list[Outcome] = []

    def so_far() -> Outcome:
        return join_outcomes(pieces, lease.site.name, exact=lease.batch.ids is not None)

    lease.begin(claims, so_far)
    for piece in lease.site.execute_pieces(lease, definition, claims):
        with lease.lock:
            pieces.append(piece)
        lease.fill(sum(size_of(column.values) for column in piece.results.values()))
    return so_far()
