"""The worker's side of a store: a worker that sees its folder writes results there itself."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np

from atomizer_dask.errors import UnstorableError
from atomizer_dask.execution.batch import Batch, StoreTarget
from atomizer_dask.execution.outcome import BatchOutcome, Outcome, RunPart, StoredOutcome
from atomizer_dask.execution.packing import is_sure_to_travel
from atomizer_dask.store.filesystem.folder import Folder
from atomizer_dask.store.layout import HOLDER, INCOMING
from atomizer_dask.store.table_files import write_table
from atomizer_dask.store.tables import encode_outputs, table_of_good
from atomizer_dask.sweeps.columns import size_of
from atomizer_dask.sweeps.inputs import columns_of, numpy_or_extension

logger = logging.getLogger(__name__)


class WorkerWriter:
    """Writes the results of a site into those stores whose folders the site sees."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], Folder | None] = {}

    def put(self, batch: Batch, outcome: Outcome, *, however_small: bool = False) -> BatchOutcome:
        """Write the results of a batch into its store, and return a receipt.

        Returns the outcome, without a file, where the batch has no store, where the site cannot
        see or write its folder, or where the results are too small for a file. Electrons whose
        results cannot be stored are failed in it.

        Parameters
        ----------
        however_small
            Whether small results are written as well, for the worker may end before the client
            has gathered them.

        Raises
        ------
        UnstorableError
            Where inputs have no Arrow type, and must not be pickled.
        """
        if batch.sink is None:
            return outcome
        is_left = _is_small(outcome, batch.sink) and not (however_small and len(outcome))
        folder = None if is_left else self._folder(batch.sink)
        if folder is None:
            if all(is_sure_to_travel(column.values) for column in outcome.results.values()):
                return outcome  # the client encodes it
            # What cannot be stored must not depend on whether it could be pickled.
            return encode_outputs(outcome, allow_pickle=batch.sink.allow_pickle).outcome
        try:
            return _put(folder, batch, batch.sink, outcome)
        except UnstorableError:
            raise
        except Exception:  # disk full, an endpoint away: the client tries, and reports the error
            logger.warning("cannot write to the store %s", folder.url, exc_info=True)
            return outcome

    def sees(self, sink: StoreTarget) -> bool:
        """Return whether a store can be seen from here."""
        return self._folder(sink) is not None

    def _folder(self, sink: StoreTarget) -> Folder | None:
        key = sink.url, sink.token
        if key not in self._seen:
            self._seen[key] = _folder_of(sink)
        return self._seen[key]


def _folder_of(sink: StoreTarget) -> Folder | None:
    """Return the folder of a store, if its lock file has the token of the client; else None."""
    try:
        folder = Folder(sink.url)
        there = folder.read_json(HOLDER)["token"]
    except Exception:
        logger.debug("the store %s is not seen from here", sink.url, exc_info=True)
        return None
    return folder if there == sink.token else None


def _is_small(outcome: Outcome, sink: StoreTarget) -> bool:
    if len(outcome) >= sink.gather_rows:
        return False
    size = sum(size_of(c.values) for c in outcome.results.values() if len(c.values))
    return size < sink.gather_bytes


def _put(folder: Folder, batch: Batch, sink: StoreTarget, outcome: Outcome) -> StoredOutcome:
    outcome, outputs = encode_outputs(outcome, allow_pickle=sink.allow_pickle)
    bad, name = outcome.failed_mask(), ""
    if not bad.all():
        part = RunPart(batch.positions[outcome.first : outcome.stop], outcome, batch.terms.attempt)
        inputs = columns_of(batch.cut(outcome.first, outcome.stop))
        if bad.any():
            part = part.pick(~bad)
            inputs = {n: numpy_or_extension(values)[~bad] for n, values in inputs.items()}
        table = table_of_good(
            part,
            inputs,
            outputs,
            sink.code,
            allow_pickle=sink.allow_pickle,
            constants=sink.constants,
        )
        name = f"{batch.key}-{outcome.first}.parquet"
        folder.write_with(f"{INCOMING}/{name}", partial(write_table, table))
    return StoredOutcome(
        first=outcome.first,
        stop=outcome.stop,
        seconds=outcome.seconds,
        longest=outcome.longest,
        name=name,
        offsets=np.flatnonzero(bad) + outcome.first,
        failed=outcome.pick(bad) if bad.any() else Outcome.none(),
        printed=outcome.printed,
    )
