"""Processes that atoms start themselves: by multiprocessing, concurrent.futures and their like.

The standard library pickles functions and classes by name alone. Where an atom runs, those of a
script or notebook cannot be imported by name: they came by value, and must be sent on by value.
"""

from __future__ import annotations

import io
import sys
from collections import ChainMap
from multiprocessing.reduction import ForkingPickler
from types import FunctionType
from typing import Any, ClassVar

import cloudpickle


def let_code_travel_on() -> None:
    """Have multiprocessing in this process send by value what it could not send by name."""
    ForkingPickler.reducer_override = _reduce  # type: ignore[assignment,method-assign]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """A cloudpickle that hands on queues, locks and connections as multiprocessing does."""

    dispatch_table: ClassVar[ChainMap[Any, Any]] = ChainMap(
        ForkingPickler._extra_reducers,  # type: ignore[attr-defined]
        cloudpickle.Pickler.dispatch_table,
    )


def arrive(data: bytes) -> Any:
    """Return what was sent by value, and have this process send by value in return."""
    let_code_travel_on()
    return cloudpickle.loads(data)


def _reduce(pickler: ForkingPickler, value: Any) -> Any:
    if not isinstance(value, FunctionType | type) or _has_name(value):
        return NotImplemented
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return arrive, (file.getvalue(),)


def _has_name(value: FunctionType | type) -> bool:
    """Whether a function or class can be found again by its name."""
    found: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value
