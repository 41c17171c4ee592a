"""Making the source of a run, with its record."""

from __future__ import annotations

from collections.abc import Sequence

from atomizer_dask.conductors.batch_conductor import BatchConductor
from atomizer_dask.execution.batch import Batch
from atomizer_dask.runs.ledger import Ledger
from atomizer_dask.runs.plan import Listeners, Plan
from atomizer_dask.runs.sources.record import MemoryRecord
from atomizer_dask.runs.sources.retries import Retries
from atomizer_dask.runs.sources.source import RunSource
from atomizer_dask.runs.sources.store_record import StoreRecord
from atomizer_dask.runs.sources.stored_source import StoredRunSource
from atomizer_dask.store.writer import ResultWriter


def source_of(
    plan: Plan,
    conductor: BatchConductor,
    ledger: Ledger,
    listeners: Listeners,
    journal: ResultWriter | None = None,
    in_flight: Sequence[Batch] = (),
) -> RunSource:
    """Return the source of a run, which writes to a store where `journal` is given.

    Parameters
    ----------
    in_flight
        Batches that an earlier process sent and that may be under way, in the order of sending.
    """
    retries = Retries(plan.options.policy, ledger, listeners.on_problem)
    if journal is None:
        record = MemoryRecord(ledger, retries, listeners)
        return RunSource(plan, conductor, ledger, listeners, record)
    in_store = StoreRecord(journal, ledger, retries, listeners, in_flight)
    return StoredRunSource(plan, conductor, ledger, listeners, in_store)
