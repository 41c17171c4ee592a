"""Which part of an atom is to blame, where it cannot travel."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

from atomizer_dask.atoms.definition import ClassAtom, Definition, FunctionAtom


def culprit_of(definition: Definition, is_fine: Callable[[Any], bool]) -> str | None:
    """Return which part of an atom is not fine, in the user's words; None where none is found."""
    if isinstance(definition, ClassAtom) and definition.instance is not None:
        for name, value in vars(definition.instance).items():
            if not is_fine(value):
                return f"its attribute {name!r} ({type(value).__name__})"
    if not isinstance(definition, FunctionAtom):
        return None
    function = inspect.unwrap(definition.function)
    if not inspect.isfunction(function):
        return None
    for where, values in _used_by(function, definition):
        for name, value in values.items():
            if not is_fine(value):
                return f"{where.format(repr(name), type(value).__name__)}"
    return None


def _used_by(
    function: FunctionType, definition: FunctionAtom[..., Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "the fixed value {} ({})", definition.fixed
    captured = inspect.getclosurevars(function)
    yield "the variable {} ({}) it closes over", captured.nonlocals
    yield "the global {} ({}) it closes over", captured.globals
    defaults = {
        name: parameter.default
        for name, parameter in definition.parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    yield "the default of its parameter {} ({})", defaults
