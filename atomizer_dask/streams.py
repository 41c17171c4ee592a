"""The streams of an atomizer, to which all events and errors go."""

from __future__ import annotations

import logging

from atomizer_dask.config import setting
from atomizer_dask.errors import AtomizerError
from atomizer_dask.events import Event, EventLog, Stream

logger = logging.getLogger(__name__)


class Streams:
    """The streams that an atomizer has given out, and the log of its newest events.

    Attributes
    ----------
    recent
        The newest events; reading removes none.
    """

    def __init__(self) -> None:
        self.recent = EventLog()
        self._events: list[Stream[Event]] = []
        self._errors: list[Stream[AtomizerError]] = []

    def events(self, buffer: int | None) -> Stream[Event]:
        """Return a stream of the events from now on; without a `buffer`, as large as configured."""
        stream: Stream[Event] = Stream(_size(buffer), self.report_problem)
        self._events.append(stream)
        return stream

    def errors(self, buffer: int | None) -> Stream[AtomizerError]:
        """Return a stream of the errors from now on; without a `buffer`, as large as configured."""
        stream: Stream[AtomizerError] = Stream(_size(buffer), self.report_problem)
        self._errors.append(stream)
        return stream

    @property
    def has_error_streams(self) -> bool:
        """Whether anybody has asked for errors."""
        return bool(self._errors)

    def put(self, event: Event) -> None:
        """Put an event on all streams."""
        self.recent.note(event)
        for stream in self._events:
            stream.put(event)

    def report(self, error: AtomizerError) -> None:
        """Put an error on all streams, and into the log where nobody listens."""
        for stream in self._errors:
            stream.put(error)
        if not self._errors:
            logger.info("%s", error)

    def report_problem(self, message: str, error: BaseException) -> None:
        """Report what went wrong in a function of the user that is not an atom."""
        logger.warning("%s", message, exc_info=error)
        self.report(AtomizerError(Event(message, level="error"), error))

    def close(self) -> None:
        """Close all streams: iteration over them ends."""
        for events in self._events:
            events.close()
        for errors in self._errors:
            errors.close()


def _size(buffer: int | None) -> int:
    return int(setting("events.buffer")) if buffer is None else buffer
