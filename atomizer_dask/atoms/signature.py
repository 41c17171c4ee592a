"""What the signature of a function says about its atom."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

from atomizer_dask.display.text import brief, one_line
from atomizer_dask.errors import RegistrationError


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
