"""What became of electrons as Arrow tables, and back.

A table of properties has a row per electron: ``electron`` (its position), inputs, outputs, and

==========  ==============================================================================
start, end  when it ran; UTC
worker      where
attempts    which attempt it was
code        the fingerprint of the code it ran
error       what it failed with; null where all is well
==========  ==============================================================================

An input that has one of these names is called ``input_...`` in the table; an output that has one of
these names, or that of an input, ``result_...``. A table of failures has a row per failed attempt,
with its traceback.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from atomizer_dask.errors import ElectronError
from atomizer_dask.execution.batch import Positions
from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.outcome import Column, Outcome, RunPart
from atomizer_dask.store.arrow import codec
from atomizer_dask.store.arrow.codec import EncodedColumn
from atomizer_dask.sweeps.columns import OUTPUT_PREFIX, Values, numpy_values, renamed
from atomizer_dask.sweeps.inputs import numpy_or_extension

# Our own columns: inputs and outputs have other names in a file.
FACTS = ("electron", "start", "end", "worker", "attempts", "code", "error")
REQUIRED = FACTS  # of which each file has these; one that came later is not in older files
_TIME = pa.timestamp("ns", "UTC")
_NAME = pa.dictionary(pa.int32(), pa.string())
OURS = b"atomizer"

FAILURE_SCHEMA = pa.schema(
    [
        pa.field("electron", pa.int64(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("kind", pa.string()),
        pa.field("type", pa.string()),
        pa.field("message", pa.string()),
        pa.field("traceback", pa.string()),
        pa.field("tier", pa.string()),
        pa.field("worker", pa.string()),
        pa.field("start", _TIME),
        pa.field("end", _TIME),
    ]
)


class Encoded(NamedTuple):
    """An outcome, and its outputs as Arrow.

    Parameters
    ----------
    outcome
        The outcome; electrons whose results cannot be stored are failed in it.
    outputs
        Columns of the electrons that did not fail, by the name of the output.
    """

    outcome: Outcome
    outputs: dict[str, EncodedColumn]


def encode_outputs(outcome: Outcome, *, allow_pickle: bool) -> Encoded:
    """Return the outputs as Arrow; a result that has no Arrow type is a failure.

    What such an electron returned stays in `Outcome.unstored`.
    """
    original, refused, whys = outcome, set[int](), list[str]()
    while True:
        outputs, bad, why = {}, set[int](), ""
        for name, (values, present) in outcome.results.items():
            try:
                coded = codec.encode(values, allow_pickle=allow_pickle)
            except codec.RefusedError as error:
                rows = error.rows
                bad |= set(rows if present is None else np.flatnonzero(present)[rows].tolist())
                why = error.event.message if name == "result" else f"{name}: {error.event.message}"
                continue
            outputs[name] = EncodedColumn(_spread(coded.array, present), coded.note)
        if not bad:
            return Encoded(outcome, outputs)
        # `bad` has offsets among the electrons still good, `refused` among those good at first.
        left = np.setdiff1d(np.arange(len(original) - len(original.failed)), sorted(refused))
        refused |= set(left[sorted(bad)].tolist())
        whys += [why] if why not in whys else []
        failure = Failure("exception", "UnstorableError", "; ".join(whys))
        outcome = original.with_unstored(sorted(refused), failure)


def encode_unstored(outcome: Outcome, *, allow_pickle: bool) -> dict[str, EncodedColumn]:
    """Return what failed electrons returned as Arrow, but values that a store cannot hold."""
    outputs = {}
    for name, (values, present) in (outcome.unstored or {}).items():
        try:
            coded = codec.encode(values, allow_pickle=allow_pickle)
        except codec.RefusedError as error:
            values, present = _without(Column(values, present), error.rows)
            if not len(values):
                continue
            coded = codec.encode(values, allow_pickle=allow_pickle)
        outputs[name] = EncodedColumn(_spread(coded.array, present), coded.note)
    return outputs


def _without(column: Column, rows: Sequence[int]) -> Column:
    """Return a column without the values in some rows."""
    values, present = column
    stays = np.ones(len(values), dtype=bool)
    stays[np.asarray(rows, dtype=np.int64)] = False
    here = np.ones(len(values), dtype=bool) if present is None else present.copy()
    here[np.flatnonzero(here)[~stays]] = False
    return Column(numpy_or_extension(values)[stays], here)


def _spread(array: Any, present: np.ndarray | None) -> Any:
    """Return an array with nulls where `present` is False."""
    if present is None:
        return array
    indices = pa.array(np.cumsum(present) - 1, mask=~present)
    return array.take(indices)


def table_of_good(
    part: RunPart,
    inputs: Mapping[str, Values],
    outputs: Mapping[str, EncodedColumn],
    code: str,
    *,
    allow_pickle: bool,
    constants: Collection[str] = (),
) -> pa.Table:
    """Return a part in which no electron failed as a table of properties.

    Parameters
    ----------
    inputs
        Columns of its electrons, by name.
    outputs
        The outputs of its outcome as Arrow, by name.
    code
        The fingerprint of the code that ran.
    allow_pickle
        Whether inputs without an Arrow type may be pickled.
    constants
        Further inputs, which the table does not have.
    """
    table = _table(part, inputs, outputs, code, None, allow_pickle, constants)
    return table.replace_schema_metadata({OURS: json.dumps({"scalar": part.outcome.scalar})})


def table_of_failed(
    part: RunPart,
    inputs: Mapping[str, Values],
    code: str,
    *,
    allow_pickle: bool,
    constants: Collection[str] = (),
) -> pa.Table:
    """Return a part whose electrons all failed as a table of properties.

    Where an electron failed because an output cannot be stored, the table has its other outputs.
    """
    texts = [_text_of(part.outcome.failures[failure]) for failure in part.outcome.codes]
    outputs = encode_unstored(part.outcome, allow_pickle=allow_pickle)
    return _table(part, inputs, outputs, code, texts, allow_pickle, constants)


def _text_of(failure: Failure) -> str:
    texts = failure.type or failure.kind, failure.message
    return str(_storable(": ".join(text for text in texts if text)))


def _storable(text: Any) -> Any:
    """Return a text with escapes for halves of surrogate pairs, which UTF-8 cannot encode."""
    return text.encode(errors="backslashreplace").decode() if isinstance(text, str) else text


def _table(
    part: RunPart,
    inputs: Mapping[str, Values],
    outputs: Mapping[str, EncodedColumn],
    code: str,
    errors: list[str] | None,
    allow_pickle: bool,
    constants: Collection[str],
) -> pa.Table:
    count = len(part)
    arrays = [pa.array(numpy_values(part.positions), pa.int64())]
    # Arrow does not search a column that is not nullable: a tenth of the time to write it.
    fields = [pa.field("electron", pa.int64(), nullable=False)]
    names = physical_names([*inputs, *constants], outputs)
    columns = {
        ("input", name): codec.encode_inputs(f"the inputs {name!r}", v, allow_pickle=allow_pickle)
        for name, v in inputs.items()
    } | {("output", name): coded for name, coded in outputs.items()}
    for (role, name), coded in columns.items():
        arrays.append(coded.array)
        ours = json.dumps({"role": role, "name": name, "note": coded.note}, sort_keys=True)
        fields.append(pa.field(names[role, name], coded.array.type, metadata={OURS: ours}))
    for name, times in zip(("start", "end"), part.outcome.times(), strict=True):
        arrays.append(pa.array(times, pa.int64()).view(_TIME))
        fields.append(pa.field(name, _TIME, nullable=False))
    arrays += [
        _constant(part.outcome.worker, count),
        pa.array(np.full(count, part.attempt, dtype=np.int32)),
        _constant(code, count),
        pa.nulls(count, pa.string()) if errors is None else pa.array(errors, pa.string()),
    ]
    fields += [
        pa.field("worker", _NAME, nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("code", _NAME, nullable=False),
        pa.field("error", pa.string()),
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _constant(text: str, count: int) -> Any:
    indices = pa.array(_zeros(1 << max(0, count - 1).bit_length())[:count])
    return pa.DictionaryArray.from_arrays(indices, pa.array([text], pa.string()))


@lru_cache(maxsize=4)
def _zeros(count: int) -> np.ndarray:
    """Return zeros that are shared: new memory for those of each file costs more than the rest."""
    zeros = np.zeros(count, dtype=np.int32)
    zeros.flags.writeable = False
    return zeros


def physical_names(inputs: Iterable[str], outputs: Iterable[str]) -> dict[tuple[str, str], str]:
    """Return how columns are called in a file, by role and name."""
    names: dict[tuple[str, str], str] = {}
    used = {*FACTS}
    for role, prefix, those in (("input", "input_", inputs), ("output", OUTPUT_PREFIX, outputs)):
        shown = renamed({name: name for name in those}, prefix, used)
        names |= {(role, name): physical for physical, name in shown.items()}
        used |= shown.keys()
    return names


# -- and back ------------------------------------------------------------------------------------


class Field(NamedTuple):
    """An input or an output in a file.

    Parameters
    ----------
    physical
        The name of its column in the file.
    role
        ``input`` or ``output``.
    name
        The name that the user knows.
    note
        As of an `EncodedColumn`.
    """

    physical: str
    role: str
    name: str
    note: dict[str, Any]


def fields_of(schema: pa.Schema) -> list[Field]:
    """Return the inputs and outputs of a table of properties."""
    return [
        Field(field.name, facts["role"], facts["name"], facts["note"])
        for field in schema
        if (facts := facts_of(field))
    ]


def facts_of(field: pa.Field) -> dict[str, Any]:
    """Return role, name and note of an input or an output; empty for another column."""
    facts: dict[str, Any] = json.loads((field.metadata or {}).get(OURS, b"{}"))
    return facts


def parts_of(table: pa.Table, *, metadata: bool, allow_pickle: bool) -> Iterator[RunPart]:
    """Yield good electrons as parts; one for each worker, attempt and code with `metadata`.

    Raises
    ------
    UnstorableError
        Where a column holds pickles, and these must not be read.
    """
    if not metadata:
        yield _part(table, allow_pickle)
        return
    names = ["worker", "attempts", "code"]
    plain = table.select(names).combine_chunks()
    codes = np.zeros(len(table), dtype=np.int64)
    for name in names:
        values = plain.column(name)
        values = values.cast(pa.string()) if name != "attempts" else values
        encoded = values.combine_chunks().dictionary_encode()
        codes = codes * max(1, len(encoded.dictionary)) + encoded.indices.to_numpy()
    distinct = np.unique(codes).tolist()
    if len(distinct) <= 1:  # no copy of what may be large
        yield _part(table, allow_pickle)
        return
    for code in distinct:
        yield _part(table.filter(pa.array(codes == code)), allow_pickle)


def _part(table: pa.Table, allow_pickle: bool) -> RunPart:
    positions = table.column("electron").to_numpy()
    results = {
        field.name: decode(table.column(field.physical), field.note, allow_pickle=allow_pickle)
        for field in fields_of(table.schema)
        if field.role == "output"
    }
    here, count = set(table.column_names), len(table)
    first, starts, ends = 0, None, np.zeros(1)
    counts: np.ndarray | None = np.array([count])
    if "start" in here and count:
        began = table.column("start").cast(pa.int64()).to_numpy()
        ended = table.column("end").cast(pa.int64()).to_numpy()
        first = int(began.min())
        starts, ends, counts = (began - first) / 1e9, (ended - first) / 1e9, None
    ours = json.loads((table.schema.metadata or {}).get(OURS, b"{}"))
    outcome = Outcome(
        stop=len(table),
        results=results,
        failed=[],
        codes=[],
        failures=[],
        start_ns=first,
        starts=starts,
        ends=ends,
        counts=counts,
        worker=_only(table, "worker"),
        scalar=bool(ours.get("scalar", True)),
    )
    attempt = table.column("attempts")[0].as_py() if "attempts" in here and len(table) else 1
    return RunPart(_as_range(positions), outcome, attempt, code=_only(table, "code"))


def _only(table: pa.Table, name: str) -> str:
    return str(table.column(name)[0].as_py()) if name in table.column_names and len(table) else ""


def _as_range(positions: np.ndarray) -> Positions:
    count = len(positions)
    if (
        count
        and positions[-1] - positions[0] + 1 == count
        and bool(np.all(np.diff(positions) == 1))
    ):
        return range(int(positions[0]), int(positions[-1]) + 1)
    return positions


def decode(column: pa.ChunkedArray, note: Mapping[str, Any], *, allow_pickle: bool) -> Column:
    """Return a column of a file as an output."""
    if not column.null_count:
        return Column(codec.decode(column, note, allow_pickle=allow_pickle))
    present = pc.is_valid(column).to_numpy()
    return Column(codec.decode(column.drop_null(), note, allow_pickle=allow_pickle), present)


# -- failures ------------------------------------------------------------------------------------


def table_of_failures(errors: Sequence[tuple[int, ElectronError]]) -> pa.Table:
    """Return failed attempts, each with the position of its electron, as a table."""
    columns: dict[str, list[Any]] = {
        "electron": [position for position, _ in errors],
        "attempt": [error.attempt for _, error in errors],
        **{
            name: [_storable(getattr(error, name)) for _, error in errors]
            for name in ("kind", "type", "message", "traceback", "tier", "worker", "start", "end")
        },
    }
    return pa.table(columns, schema=FAILURE_SCHEMA)


class Failed(NamedTuple):
    """A failed attempt, as it is read back."""

    attempt: int
    failure: Failure
    worker: str
    start: datetime
    end: datetime


def failures_of(table: pa.Table) -> Iterator[tuple[int, Failed]]:
    """Yield the failed attempts of a table, each with the position of its electron."""
    texts = ["kind", "type", "message", "traceback", "exception", "tier"]
    times = [
        pc.cast(table.column(name), pa.timestamp("us", "UTC"), safe=False).to_pylist()
        for name in ("start", "end")
    ]
    table = table.append_column("exception", pa.nulls(len(table)))
    columns = [table.column(name).to_pylist() for name in ("electron", "attempt", "worker", *texts)]
    for (position, attempt, worker, *text), start, end in zip(
        zip(*columns, strict=True), *times, strict=True
    ):
        yield position, Failed(attempt, Failure(*text), worker, start, end)


def unstored_of(table: pa.Table, rows: Sequence[int], *, allow_pickle: bool) -> Any:
    """Return the outputs of failed electrons in rows of a table; None where there are none."""
    unstored = {}
    for field in fields_of(table.schema):
        if field.role == "output":
            column = table.column(field.physical).take(pa.array(rows, pa.int64()))
            if column.null_count < len(column):
                unstored[field.name] = decode(column, field.note, allow_pickle=allow_pickle)
    return unstored or None


def part_of_failed(those: Sequence[tuple[int, Failed]]) -> RunPart:
    """Return failed electrons of one worker and attempt as a part."""
    known: dict[Failure, int] = {}
    codes = [known.setdefault(failed.failure, len(known)) for _, failed in those]
    starts = np.array([failed.start.timestamp() for _, failed in those])
    ends = np.array([failed.end.timestamp() for _, failed in those])
    first = int(starts.min() * 1e9)
    count = len(those)
    outcome = Outcome(
        stop=count,
        results={},
        failed=range(count),
        codes=np.array(codes, dtype=np.int32),
        failures=list(known),
        start_ns=first,
        starts=starts - first / 1e9,
        ends=ends - first / 1e9,
        counts=None,
        worker=those[0][1].worker,
    )
    positions = np.array([position for position, _ in those], dtype=np.int64)
    return RunPart(positions, outcome, those[0][1].attempt)
