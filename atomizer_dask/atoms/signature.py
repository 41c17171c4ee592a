"""What the signature of a function says about its atom, and values for its parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from inspect import Parameter
from typing import Any, TypeVar

import numpy as np

from atomizer_dask.display.text import brief, one_line
from atomizer_dask.errors import RegistrationError
from atomizer_dask.sweeps.copies import own_copy

R = TypeVar("R")


def checked_options(id: str, isolation: str, singleton: str) -> tuple[str, str]:
    """Return two options of an atom, or raise `RegistrationError` where one makes no sense."""
    if isolation not in ("", "process"):
        raise RegistrationError(f"isolation of {id} must be 'process', got {isolation!r}")
    if singleton not in ("", "node", "cluster"):
        raise RegistrationError(f"singleton of {id} must be 'node' or 'cluster', got {singleton!r}")
    return isolation, singleton


def id_of(function: Callable[..., Any]) -> str:
    """Return the id of the atom of a function: ``module.qualname``."""
    name = getattr(function, "__qualname__", None)
    if name is None:
        raise RegistrationError(f"{function!r} has no name of its own; give one: atom(id=...)")
    return f"{function.__module__}.{name}"


def parameters_of(function: Callable[..., Any], id: str) -> dict[str, Parameter]:
    """Return the parameters of a function by name.

    Raises
    ------
    RegistrationError
        Where one cannot be given by name, or they cannot be read.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):
        raise RegistrationError(
            f"the parameters of {id} cannot be read; wrap it in a function that names them"
        ) from None
    unnamed = [
        str(parameter)
        for parameter in parameters.values()
        if parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.VAR_POSITIONAL)
    ]
    if unnamed:
        raise RegistrationError(
            f"{id} takes {', '.join(unnamed)} by position only; electrons name their fields, so "
            "wrap it in a function whose parameters have names"
        )
    return dict(parameters)


def shown_parameter(parameter: Parameter) -> str:
    """Return a parameter as in a signature, with a long default shortened."""
    bare = one_line(str(parameter.replace(default=Parameter.empty)))
    if parameter.default is Parameter.empty:
        return bare
    equals = "=" if parameter.annotation is Parameter.empty else " = "
    return f"{bare}{equals}{brief(parameter.default, 40)}"


def with_values(
    function: Callable[..., R], values: Mapping[str, Any], copied: Collection[str] = ()
) -> Callable[..., R]:
    """Return a function with values for some of its parameters; arrays are read-only in it.

    Parameters
    ----------
    copied
        Names of the values of which each call is given a copy.
    """
    own = {name: value for name, value in values.items() if name in copied}
    shared = {name: value for name, value in values.items() if name not in own}
    bound: Callable[..., R] = functools.partial(function, **_read_only(shared))
    if not own:
        return bound

    def called(*args: Any, **kwargs: Any) -> R:
        return bound(*args, **{name: own_copy(value) for name, value in own.items()}, **kwargs)

    return called


def _read_only(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by name, with read-only views of the arrays among them."""
    found = dict(values)
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            found[name] = value.view()
            found[name].flags.writeable = False
    return found
