"""The function that is called for an electron, and its arguments."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from typing import Any

import numpy as np

from atomizer_dask.atoms.base import Atom
from atomizer_dask.atoms.context import EXECUTING, Context
from atomizer_dask.atoms.definition import ClassAtom, Definition, FunctionAtom
from atomizer_dask.atoms.global_generators import TURN
from atomizer_dask.conductor import Conductor
from atomizer_dask.errors import InvalidPayloadError
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Batch
from atomizer_dask.execution.lease import Lease, LeaseSite
from atomizer_dask.execution.outputs import outputs_of_slice
from atomizer_dask.sweeps.columns import (
    as_objects,
    column,
    loop_values,
    numpy_values,
    python_values,
)
from atomizer_dask.sweeps.copies import (
    IMMUTABLE,
    can_change,
    column_can_change,
    own_copy,
    own_payload,
)
from atomizer_dask.sweeps.inputs import Columns, GridSlice, Rows

Arguments = Callable[[int, int], list[Any]]


def bond(lease: Lease, definition: Definition) -> tuple[Callable[..., Any], Arguments]:
    """Return what to call, and its arguments for electrons from one offset to another.

    An argument is an iterable of one value per electron. The first is a list: see
    `Remaining.each_of`.
    """
    inputs = lease.batch.inputs
    if isinstance(definition, ClassAtom):
        return _call_of_class(lease, definition), lambda a, b: [list(range(a, b))]
    assert isinstance(definition, FunctionAtom)
    if isinstance(inputs, Rows):
        payloads = inputs.payloads
        return _call_of_rows(lease, definition), lambda a, b: [payloads[a:b], range(a, b)]
    columns = inputs.shared_columns() if isinstance(inputs, GridSlice) else inputs.columns()
    by_position, by_keyword = definition.arrange(columns)
    call = _with_keywords(lease.batch.bound(definition.called), len(by_position), by_keyword)
    names = (*by_position, *by_keyword)

    changing = {name for name in columns if column_can_change(columns[name])}

    def arguments(start: int, stop: int) -> list[Any]:
        return [values_of(name, start, stop) for name in names]

    def values_of(name: str, start: int, stop: int) -> Any:
        if name not in columns:
            return map(Context, repeat(lease), range(start, stop))
        values = loop_values(columns[name][start:stop], scalars=name in inputs.scalars)
        # Lazily, so that there are never a thousand copies of something large.
        return map(own_copy, values) if name in changing else values

    if names[0] in columns and names[0] not in changing:
        return call, arguments
    return lambda _, *values: call(*values), lambda a, b: [list(range(a, b)), *arguments(a, b)]


def _call_of_rows(lease: Lease, definition: FunctionAtom[..., Any]) -> Callable[[Any, int], Any]:
    function = lease.batch.bound(definition.called)
    fitting: set[tuple[str, ...]] = set()

    def call(payload: Any, offset: int) -> Any:
        fields = {} if payload is None else payload
        # Electrons of one sender have the same few sets of fields.
        known = type(fields) is dict or isinstance(fields, Mapping)
        if not known or (names := tuple(fields)) not in fitting:
            definition.check_payload(payload)
            fitting.add(names)
        if not IMMUTABLE.issuperset(map(type, fields.values())):
            fields = own_payload(fields)
        if definition.vectorized:
            arrays = {name: column([value]) for name, value in fields.items()}
            return call_with_arrays_of_one(lease, definition, arrays, offset)
        if definition.takes_context:
            return function(**fields, context=Context(lease, offset))
        return function(**fields)

    return call


def call_with_arrays_of_one(
    lease: Lease, definition: FunctionAtom[..., Any], arrays: Mapping[str, np.ndarray], offset: int
) -> Any:
    """Call a vectorised atom for one electron, and return its result as a scalar atom gives it."""
    arguments: dict[str, Any] = dict(arrays)
    if definition.takes_context:
        arguments["context"] = Context(lease, offset, 1)
    outputs = outputs_of_slice(lease.batch.bound(definition.called)(**arguments), 1)
    row = {name: python_values(values)[0] for name, values in outputs.items()}
    return row["result"] if row.keys() == {"result"} else row


def _call_of_class(lease: Lease, definition: ClassAtom) -> Callable[[int], Any]:
    # A site can make its first conductor in this thread, but not in a thread that the atom starts.
    lease.conductor(0)

    def call(offset: int) -> Any:
        context = Context(lease, offset)
        instance = _instance(lease, definition)
        return instance.process(context, LateConductor(context), context.electron)

    return call


def _instance(lease: Lease, definition: ClassAtom) -> Atom:
    """Return the instance that shall process an electron."""
    if not definition.singleton:
        return definition.instantiate(lease.batch.copy_state)
    slot = lease.site.singleton(lease.batch)
    if slot.instance is None:
        slot.instance = definition.instantiate(copy_state=definition.instance is not None)
        message = f"singleton initialised on {lease.site.name}"
        batch = lease.batch
        lease.emit(Event(message, atom_id=batch.atom_id, run_id=batch.run_id))
    return slot.instance


def seeded(
    lease: Lease, call: Callable[..., Any], which: frozenset[str], offset: int | None = None
) -> Callable[..., Any]:
    """Return a call that first seeds the shared generators in `which` for its electron.

    That is the electron at `offset`, the first of a slice; without it, the call counts electrons.
    """
    offsets: Iterable[int] = repeat(offset) if offset is not None else itertools.count()
    following = iter(offsets).__next__

    def seeded(*values: Any, **named: Any) -> Any:
        TURN.take(which, *lease.batch.address(following()))
        try:
            return call(*values, **named)
        finally:
            TURN.give()

    return seeded


def call_first(lease: Lease, definition: Definition) -> Any:
    """Execute the first electron of the batch and return its result, or raise."""
    if definition.vectorized:
        assert isinstance(definition, FunctionAtom)
        first = inputs_as_columns(definition, lease.batch.part(0, 1))
        if first is not None:
            arrays = {n: own_array(numpy_values(v)) for n, v in first.columns().items()}
            return call_with_arrays_of_one(lease, definition, arrays, 0)
    call, arguments = bond(lease, definition)
    if definition.draws_from:
        call = seeded(lease, call, definition.draws_from)
    return call(*(next(iter(values)) for values in arguments(0, 1)))


def _with_keywords(
    function: Callable[..., Any], positional: int, keywords: list[str]
) -> Callable[..., Any]:
    if not keywords:
        return function
    if keywords == ["context"]:  # by far the most frequent, and worth half a microsecond
        return lambda *values: function(*values[:-1], context=values[-1])
    if positional:
        return lambda *values: function(
            *values[:positional], **dict(zip(keywords, values[positional:], strict=True))
        )
    return lambda *values: function(**dict(zip(keywords, values, strict=True)))


def inputs_as_columns(definition: Definition, batch: Batch) -> Columns | GridSlice | None:
    """Return the inputs of a vectorised atom as columns; None where electrons go one by one."""
    inputs = batch.inputs
    if not definition.vectorized:
        return None
    if not isinstance(inputs, Rows):
        return inputs
    payloads = inputs.payloads
    if batch.ids is not None or not all(isinstance(payload, Mapping) for payload in payloads):
        return None
    names = list(payloads[0])
    try:
        definition.check_fields(names)
    except InvalidPayloadError:
        return None
    if any(payload.keys() != payloads[0].keys() for payload in payloads):
        return None
    return Columns({n: column([row[n] for row in payloads]) for n in names}, len(payloads))


def own_array(values: np.ndarray) -> np.ndarray:
    """Return a copy of an array, with copies of the mutable objects in it."""
    if values.dtype == object and can_change(values.ravel().tolist()):
        return as_objects(list(map(own_copy, values.ravel().tolist()))).reshape(values.shape)
    return values.copy()


def execute_first(batch: Batch, definition: Definition, site: LeaseSite) -> Any:
    """Execute a batch of one electron in this thread, with nothing between it and a debugger.

    Raises
    ------
    Exception
        Whatever the atom raises.
    """
    with EXECUTING:
        return call_first(Lease(batch, site), definition)


class LateConductor:
    """An electron's conductor, made when it is first used: most electrons send nothing."""

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # `copy` and the like look for these, and do without
            raise AttributeError(name)
        return getattr(self._context.conductor, name)

    def __repr__(self) -> str:
        return repr(self._context.conductor)


Conductor.register(LateConductor)  # it stands for the conductor that it makes
