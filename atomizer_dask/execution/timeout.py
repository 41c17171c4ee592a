"""Electrons that take too long: the watch over their time, and the exceptions that end them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, Protocol


class OvertimeError(Exception):
    """An electron ran out of time; `tier` says what it took to end it."""

    def __init__(self, message: str, tier: str) -> None:
        super().__init__(message, tier)
        self.message = message
        self.tier = tier


class TimeIsUp(BaseException):
    """Raised in the middle of an electron that has no time left."""


class Watch(Protocol):
    """A watch over the time that electrons take; `ChildWatch` is one."""

    def left(self) -> float | None:
        """Return the seconds that the running electron has left; None for no limit."""

    def begin(self, offset: int, count: int) -> None:
        """Note that `count` electrons begin."""

    def end(self) -> None:
        """Note that they have ended.

        Raises
        ------
        OvertimeError
            Where they had no time left.
        """

    def overtime(self) -> OvertimeError:
        """Return the error of electrons in which `TimeIsUp` was raised."""


def watched(
    call: Callable[..., Any], watch: Watch, offset: int | None = None, count: int = 1
) -> Callable[..., Any]:
    """Return a call that is watched; without an `offset` it counts the electrons itself."""
    offsets: Iterable[int] = repeat(offset) if offset is not None else itertools.count()
    following = iter(offsets).__next__

    def call_watched(*values: Any, **named: Any) -> Any:
        watch.begin(following(), count)
        try:
            try:
                result = call(*values, **named)
            except BaseException as error:
                try:
                    watch.end()
                except OvertimeError as overtime:
                    raise overtime from error
                raise
            watch.end()
        except TimeIsUp as error:  # raised just after the call
            raise watch.overtime() from error
        return result

    return call_watched
