"""The electrons that an explorer sent, as a frame."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from atomizer_dask.errors import ElectronError
from atomizer_dask.execution.outcome import Column
from atomizer_dask.execution.outputs import outputs_of
from atomizer_dask.properties import Properties
from atomizer_dask.runs.frames.frame import frame_of_columns
from atomizer_dask.sweeps.columns import METADATA_PREFIX, as_objects, renamed
from atomizer_dask.sweeps.make import zipped

if TYPE_CHECKING:
    import pandas as pd


MOST_TRIED = 10_000


class _One(NamedTuple):
    number: int
    inputs: dict[str, Any]
    properties: Properties


class Tried:
    """The last electrons that ended; one thread adds them, and any thread may read them.

    Parameters
    ----------
    names
        Names of their inputs.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)
        self._ones: deque[_One] = deque(maxlen=MOST_TRIED)
        self._lock = threading.Lock()

    def add(self, number: int, inputs: dict[str, Any], properties: Properties) -> None:
        """Add an electron; `number` counts electrons in the order in which they were sent."""
        with self._lock:
            self._ones.append(_One(number, inputs, properties))

    def to_frame(self) -> pd.DataFrame:
        """Return a frame with a row for each electron, in the order in which they were sent."""
        import pandas as pd

        with self._lock:
            ones = sorted(self._ones, key=lambda one: one.number)
        given = {name: [one.inputs[name] for one in ones] for name in self._names}
        columns = zipped(**given).columns() if ones and given else dict.fromkeys(given, np.empty(0))
        inputs = {name: Column(values) for name, values in columns.items()}
        outputs, outcomes = _outputs(ones), pd.RangeIndex(len(ones))
        frame = frame_of_columns(inputs, outputs, outcomes, nullable=False)
        for name, values in renamed(_errors(ones), METADATA_PREFIX, frame.columns).items():
            frame[name] = pd.Series(values, index=frame.index, dtype="str")
        return frame


def _outputs(ones: list[_One]) -> dict[str, Column]:
    is_good = np.array([one.properties.error is None for one in ones], dtype=bool)
    outputs, _ = outputs_of([o.properties.result for o in ones if o.properties.error is None])
    if is_good.all():
        return outputs
    spread = {}
    for name, column in outputs.items():
        present = is_good.copy()
        if column.present is not None:
            present[is_good] = column.present
        spread[name] = Column(column.values, present)
    return spread


def _errors(ones: list[_One]) -> dict[str, Any]:
    errors = [one.properties.error for one in ones]
    facts = {"error_kind": "kind", "error_type": "type", "error_message": "message"}
    return {
        column: as_objects(
            [getattr(e, name) if isinstance(e, ElectronError) else None for e in errors]
        )
        for column, name in facts.items()
    }
