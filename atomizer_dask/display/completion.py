"""What completion offers after a dot: what a user needs, and not what other modules call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T", bound=type)
_PACKAGE = __name__.partition(".")[0]


def offers(names: str) -> Callable[[T], T]:
    """Return a decorator of a class, whose objects offer names, and those that its bases offer.

    Completion and `dir` show them, and whatever a class outside of this package adds. The others
    are there as before.

    Parameters
    ----------
    names
        With spaces between them.
    """

    def decorate(cls: T) -> T:
        inherited: frozenset[str] = getattr(cls, "_offered", frozenset())
        cls._offered = inherited | {*names.split()}  # type: ignore[attr-defined]
        cls.__dir__ = _names_of  # type: ignore[assignment]
        return cls

    return decorate


def _names_of(self: Any) -> list[str]:
    kind = type(self)
    ours = [each for each in kind.__mro__ if each.__module__.partition(".")[0] == _PACKAGE]
    internal = {name for each in ours for name in vars(each)} - kind._offered
    if ours[0] is kind:
        internal |= getattr(self, "__dict__", {}).keys() - kind._offered
    everything = object.__dir__(self)
    return [name for name in everything if name.startswith("_") or name not in internal]
