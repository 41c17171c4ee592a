"""The future of an electron: awaitable, and known to whoever waits inside an atom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any

from atomizer_dask.properties import Properties


class _Waiters(list[Any]):
    """The list into which `concurrent.futures.wait` and `as_completed` put themselves."""

    def __init__(self, about_to_wait: Callable[[], None]) -> None:
        super().__init__()
        self._about_to_wait = about_to_wait

    def append(self, waiter: Any) -> None:
        self._about_to_wait()
        super().append(waiter)


class ElectronFuture(Future[Properties]):
    """The `Properties` of one electron, when there are.

    A `concurrent.futures.Future` that can be awaited too. It never holds an exception of the
    atom: a failed electron has Properties like any other, with an `error`.

    Parameters
    ----------
    about_to_wait
        Called where somebody is about to block on this future, by `result`, `exception`,
        `concurrent.futures.wait` or `as_completed`. An atom that waits gives up its slot there,
        which is why a tree of spawners cannot deadlock.
    """

    def __init__(self, about_to_wait: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._about_to_wait = about_to_wait
        if about_to_wait is not None:
            self._waiters = _Waiters(about_to_wait)

    def result(self, timeout: float | None = None) -> Properties:
        """Return the Properties, waiting up to `timeout` seconds for them."""
        if self._about_to_wait is not None and not self.done():
            self._about_to_wait()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what kept the electron from being carried out at all, None if nothing did."""
        if self._about_to_wait is not None and not self.done():
            self._about_to_wait()
        return super().exception(timeout)

    def __await__(self) -> Generator[Any, None, Properties]:
        return asyncio.wrap_future(self).__await__()
