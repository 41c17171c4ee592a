"""What decorators, descriptors and closures hold, without running any of it."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object itself, not those of its class."""
    try:
        return dict(vars(value))
    except Exception:  # noqa: BLE001 - it has none, or does not want to show them
        return {}


def functions_within(value: Any) -> list[Any]:
    """Return the functions that a descriptor or a decorated function stands for."""
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, functools.cached_property):
        return [value.func]
    attributes = attributes_of(value)
    return [attributes["__wrapped__"]] if "__wrapped__" in attributes else []


def closure_of(function: FunctionType) -> dict[str, Any]:
    """Return the variables of enclosing functions that a function uses."""
    cells = function.__closure__ or ()
    return dict(zip(function.__code__.co_freevars, map(_content, cells), strict=True))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"


def defaults_of(function: FunctionType) -> dict[str, Any]:
    """Return the parameters that have a default, with it."""
    code, defaults = function.__code__, function.__defaults__ or ()
    last = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    return dict(zip(last, defaults, strict=True)) | (function.__kwdefaults__ or {})
