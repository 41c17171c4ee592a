"""What can be seen: events, and the bounded streams they travel on."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from time import monotonic
from typing import Any, Generic, Literal, TypeVar

from atomizer_dask.display import markup
from atomizer_dask.display.completion import offers
from atomizer_dask.display.text import one_line
from atomizer_dask.interruptible import wait_for

logger = logging.getLogger(__name__)
T = TypeVar("T")

Level = Literal["debug", "info", "warning", "error"]

_LONG = 300  # characters of a message
_NEWEST = 5  # items of a stream


def log_problem(message: str, error: BaseException) -> None:
    """Log what went wrong in a function of the user that is not an atom."""
    logger.warning("%s", message, exc_info=error)


def _now() -> datetime:
    return datetime.now(UTC)


@offers("atom_id concerns conductor_id electron_id fields level message run_id time")
@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, to which electron, atom and conductor.

    Parameters
    ----------
    message
        What happened, in the past tense.
    electron_id, atom_id, conductor_id
        Whom it concerns; empty where it concerns none in particular.
    time
        When, in UTC and timezone-aware.
    level
        How much it matters.
    run_id
        The run it belongs to, if any.
    fields
        Further facts, as given to `Context.emit`.

    Examples
    --------
    >>> str(Event("bonded", electron_id="E", atom_id="A"))
    '[aid:A | eid:E] bonded'
    >>> str(Event("idle"))
    'idle'
    """

    message: str
    electron_id: str = ""
    atom_id: str = ""
    conductor_id: str = ""
    time: datetime = field(default_factory=_now, compare=False)
    level: Level = "info"
    run_id: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def as_text(self) -> Event:
        """Return it with texts for its fields, where these cannot travel."""
        fields = {name: repr(value) for name, value in self.fields.items()}
        return replace(self, fields=fields)

    @property
    def concerns(self) -> str:
        """What it is about, ``[cid:C | aid:A | eid:E]``, the absent parts left out."""
        named = (("cid", self.conductor_id), ("aid", self.atom_id), ("eid", self.electron_id))
        ids = " | ".join(f"{name}:{value}" for name, value in named if value)
        return f"[{ids}]" if ids else ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.concerns, self.message)))

    def __repr__(self) -> str:
        return f"<Event {self.time:%H:%M:%S.%f} {self.level}: {one_line(str(self), 200)}>"

    @markup.safely
    def _repr_html_(self) -> markup.Html:
        ids = {
            "electron": self.electron_id,
            "atom": self.atom_id,
            "conductor": self.conductor_id,
            "run": self.run_id,
        }
        level = markup.badge(self.level, markup.TONES_OF_LEVELS.get(self.level, "plain"))
        long = self.message if len(str(self.message)) > _LONG or "\n" in self.message else ""
        return markup.card(
            "Event",
            markup.Html(f"<div>{markup.text(self.message, _LONG)}</div>"),
            markup.details("the whole message", long),
            markup.facts(
                {name: markup.code(whose) for name, whose in ids.items() if whose}
                | (markup.fields(self.fields, "fields") if self.fields else {})
            ),
            beside=[level, markup.muted(f"{self.time:%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC")],
        )


class Wakeups:
    """Futures of event loops that another thread wakes, without a thread for each wait.

    Its user holds one lock to look at a state and register, and to change the state and wake.
    """

    def __init__(self) -> None:
        self._futures: list[asyncio.Future[None]] = []

    def future(self) -> asyncio.Future[None]:
        """Return a future of the running loop that is done at the next `wake`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._futures = [f for f in self._futures if not f.done()]
        self._futures.append(future)
        return future

    def wake(self) -> None:
        """Wake them all; to be called from any thread."""
        futures, self._futures = self._futures, []
        for future in futures:
            loop = future.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_finish, future)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@offers("close dropped get subscribe")
class Stream(Generic[T]):
    """A bounded queue of what happened, read by iterating.

    Writing never blocks: when `buffer` items wait unread, the oldest is dropped and counted in
    `dropped`. Iteration ends when the stream is closed and empty.

    Parameters
    ----------
    buffer
        How many unread items are kept.
    on_problem
        Called with a message and the exception of a subscriber that raised; by default it is
        logged.

    Examples
    --------
    >>> stream = Stream(buffer=2)
    >>> for item in "abc":
    ...     stream.put(item)
    >>> stream.close()
    >>> list(stream), stream.dropped
    (['b', 'c'], 1)
    """

    def __init__(
        self, buffer: int = 1000, on_problem: Callable[[str, BaseException], None] | None = None
    ) -> None:
        if buffer < 1:
            raise ValueError(f"a stream keeps at least one item, got buffer={buffer}")
        self.dropped = 0
        self._items: deque[T] = deque()
        self._buffer = buffer
        self._on_problem = on_problem or log_problem
        self._changed = threading.Condition()
        self._closed = False
        self._wakeups = Wakeups()

    def put(self, item: T) -> None:
        """Add an item; one put after `close` is ignored."""
        with self._changed:
            if self._closed:
                return
            if len(self._items) == self._buffer:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            self._changed.notify()
            self._wakeups.wake()

    def get(self, timeout: float | None = None) -> T:
        """Return the next item.

        Parameters
        ----------
        timeout
            Seconds to wait; None waits until there is one.

        Raises
        ------
        TimeoutError
            When nothing came in time.
        EOFError
            When the stream is closed and empty.
        """
        until = None if timeout is None else monotonic() + timeout
        while True:
            left = None if until is None else max(0.0, until - monotonic())
            # Taken afterwards: a handler of a signal that raises at the end of the wait loses none.
            if not wait_for(self._changed, lambda: self._items or self._closed, left):
                raise TimeoutError(f"nothing was put on the stream within {timeout} s")
            with self._changed:
                if self._items:
                    return self._items.popleft()
                if self._closed:
                    raise EOFError("the stream is closed and has been read to its end")

    def subscribe(self, function: Callable[[T], object]) -> Stream[T]:
        """Have a function called with each item, in a thread of its own, and return the stream.

        An exception that it raises reaches the atomizer's error stream and the log; the next item
        follows.

        Examples
        --------
        ``atomizer.events().subscribe(print)``
        """
        if not callable(function):
            raise TypeError(f"expected a function of one item, got {function!r}")
        reader = threading.Thread(
            target=self._feed, args=(function,), name="atomizer-subscriber", daemon=True
        )
        reader.start()
        return self

    def _feed(self, function: Callable[[T], object]) -> None:
        own: BaseException | None = None
        for item in self:
            try:
                function(item)
            except BaseException as error:  # noqa: BLE001 - the user's function; the next item follows
                # One that fails on the report of its own failure would go on like that for ever.
                again = own is not None and getattr(item, "internal", None) is own
                own = error
                (log_problem if again else self._on_problem)("a subscriber raised", error)

    def close(self) -> None:
        """End the stream: readers get what is left, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._wakeups.wake()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        while True:
            try:
                yield self.get()
            except EOFError:
                return

    async def __aiter__(self) -> AsyncIterator[T]:
        while True:
            with self._changed:
                items = [self._items.popleft()] if self._items else []
                ended = self._closed
                woken = self._wakeups.future()
            for item in items:
                yield item
            if not items and ended:
                return
            if not items:
                await woken

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Stream {state}, {len(self):,} unread, {self.dropped:,} dropped>"

    @markup.safely
    def _repr_html_(self) -> markup.Html:
        with self._changed:  # looking takes nothing away
            newest = list(islice(reversed(self._items), _NEWEST))
        unread = len(self)
        lines = [[markup.value(item, 160)] for item in newest]
        more = f"and {unread - len(newest):,} older" if unread > len(newest) else ""
        state = markup.badge("closed") if self._closed else markup.badge("open", "good")
        dropped = f"{self.dropped:,} dropped" if self.dropped else ""
        return markup.card(
            "Stream",
            markup.table(["newest first"], lines, more) if lines else None,
            beside=[state, markup.muted(f"{unread:,} unread"), markup.text(dropped)],
        )


KEPT = 500


@offers("counts total")
class EventLog:
    """The newest events, and how many there were of each level.

    Parameters
    ----------
    kept
        How many events are kept.

    Examples
    --------
    >>> log = EventLog(kept=2)
    >>> for message in "abc":
    ...     log.note(Event(message))
    >>> [(number, event.message) for number, event in log.since(0)], log.total
    ([(1, 'b'), (2, 'c')], 3)
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._events: deque[Event] = deque(maxlen=kept)
        self._counts: Counter[str] = Counter()
        self._total = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._events)

    @property
    def total(self) -> int:
        """How many events there were."""
        return self._total

    @property
    def counts(self) -> dict[str, int]:
        """How many events there were of each level."""
        with self._lock:
            return dict(self._counts)

    def note(self, event: Event) -> None:
        """Add an event; from any thread."""
        with self._lock:
            self._events.append(event)
            self._counts[event.level] += 1
            self._total += 1

    def since(self, number: int) -> list[tuple[int, Event]]:
        """Return the kept events from this number on, each with its number; the first was 0."""
        with self._lock:
            first = self._total - len(self._events)
            skipped = max(0, number - first)
            events = list(self._events)[skipped:]
        return list(enumerate(events, start=first + skipped))
