"""The conductor that exchanges electrons over AMQP, also with the Go programs.

::

    send ─ publisher ──▶ queue (shared by all) ──▶ consumer ─ receive ▸ atomizer ▸ complete
      ▲                                                                              │
      └──── reply queue (ours alone) ◀── broker ◀── consumer ◀───────────────────────┘

Messages are sent, received and acknowledged on the one thread of the connection.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

from atomizer_dask.conductor import Conductor, Listener, check_electron
from atomizer_dask.conductors.amqp.address import Address, Tls
from atomizer_dask.conductors.amqp.consumer import Consumer
from atomizer_dask.conductors.amqp.messages import LONGEST_NAME
from atomizer_dask.conductors.amqp.publisher import Publisher
from atomizer_dask.conductors.amqp.replies import DEAD
from atomizer_dask.conductors.amqp.session import Session
from atomizer_dask.conductors.amqp.wire.message_members import Limits
from atomizer_dask.conductors.status import ConductorState, QueueStatus
from atomizer_dask.config import check, setting
from atomizer_dask.display import markup
from atomizer_dask.display.completion import offers
from atomizer_dask.electron import Electron
from atomizer_dask.errors import AtomizerError, ConductorError
from atomizer_dask.events import Event
from atomizer_dask.future import ElectronFuture
from atomizer_dask.interruptible import wait
from atomizer_dask.properties import Properties

CLOSE_SECONDS = 5.0  # for the broker to confirm messages
PATIENCE_SECONDS = 30.0  # of a worker: the broker may be away just when an atom first sends
MOST_IN_FLIGHT = 65_535  # by the protocol
STAYING = ("on_failure", "max_attempts", "backoff", "priority")  # options that do not travel


@dataclass(frozen=True)
class AmqpRoute:
    """How to reach a queue from another process; children of electrons from the queue go there."""

    address: Address
    queue: str
    limits: Limits

    def conductor(self) -> QueueConductor:
        """Return the conductor of this process that sends there, made when first asked for."""
        with _opening:
            known = _conductors.get(self)
            if known is None or known.state == "closed" or known.is_of_parent:
                known = _conductors[self] = QueueConductor(
                    self, "amqp", serve=False, max_in_flight=1, patience=PATIENCE_SECONDS
                )
            return known


_opening = threading.Lock()
_conductors: dict[AmqpRoute, QueueConductor] = {}  # the open conductors of this process


class QueueConductor(Conductor):
    """Carries electrons to the queue of a route, and from there where it serves.

    Parameters
    ----------
    route
        The broker and the queue.
    id, serve, max_in_flight
        As of `AmqpConductor`.
    patience
        Seconds for which connecting is tried.
    """

    shares_queue = True
    route: AmqpRoute

    def __init__(
        self, route: AmqpRoute, id: str, *, serve: bool, max_in_flight: int, patience: float = 0.0
    ) -> None:
        self.id = id
        self.queue = route.queue
        self.route = route
        self._serve = serve
        self._closed = False
        self._pid = os.getpid()
        self._session = Session(
            id,
            route.address,
            route.queue,
            route.limits,
            is_up=self._on_up,
            is_down=self._on_down,
            flush=self._flush,
        )
        self._publisher = Publisher(self._session)
        self._consumer = Consumer(self._session, max_in_flight)
        self._connection = self._session.connection
        self._connection.open(patience)
        _conductors.setdefault(route, self)
        atexit.register(self.close)

    @property
    def sender_id(self) -> str:
        """The id that peers see in our electrons: the name of our reply queue."""
        return self._publisher.sender_id

    @property
    def state(self) -> ConductorState:
        """Whether there is a connection: ``connected``, ``reconnecting``, ``closed``."""
        return self._connection.state

    def status(self) -> QueueStatus:
        """Return the state of the conductor, and its counts."""
        consumer = self._consumer
        return QueueStatus(
            state=self.state,
            address=str(self.route.address),
            queue=self.queue,
            sent=self._publisher.sent,
            replies=self._publisher.replies,
            in_flight=len(consumer.unanswered),
            waiting=consumer.unanswered.waiting,
            oldest=max(0.0, monotonic() - consumer.oldest),
            prefetch=consumer.prefetch,
            reconnects=max(self._connection.generation - 1, 0),
            seconds=consumer.seconds,
            blocked=self._connection.blocked,
            dead=consumer.dead,
            **consumer.counts,
        )

    def attach(self, listener: Listener) -> None:
        """Send `listener` events and errors."""
        if listener not in self._session.listeners:
            self._session.listeners.append(listener)

    def detach(self, listener: Listener) -> None:
        """Undo `attach`."""
        if listener in self._session.listeners:
            self._session.listeners.remove(listener)

    @property
    def is_of_parent(self) -> bool:
        """Whether this process is a fork of the one that made the conductor."""
        return os.getpid() != self._pid

    def check_open(self) -> None:
        """Raise `ConductorError` where nothing can be sent any more."""
        if self.is_of_parent:  # a fork does not have its thread: nothing would ever be sent
            what = "the conductor is that of the process this one was forked from; make another"
            raise ConductorError(Event(what, conductor_id=self.id, level="error"))
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> ConductorError:
        return ConductorError(Event("the conductor is closed", conductor_id=self.id))

    # -- sending ----------------------------------------------------------------------------

    def send(self, electron: Electron) -> ElectronFuture:
        """Have an electron executed by a peer that serves the queue.

        While the broker is away the electron waits here. Cancelling the future only stops waiting:
        an electron on the queue is executed all the same. The id and the timeout of the electron
        travel; `on_failure`, `max_attempts`, `backoff` and `priority` do not, and are refused.

        Callbacks of the future are called on the thread of the connection: one that waits for
        another electron waits for ever.

        Raises
        ------
        TypeError
            Where the electron has an option that does not travel.
        InvalidPayloadError
            Where its payload has no JSON form, or is too large.
        ConductorError
            Where the conductor is closed, or an electron of that id is under way.
        """
        return self.send_with(electron, ElectronFuture())

    def send_with(self, electron: Electron, future: ElectronFuture) -> ElectronFuture:
        """Do what `send` does, with a future that exists already."""
        check_electron(electron)
        _check_options(electron)
        self.check_open()
        self._publisher.send(electron, future)
        if self._closed:  # meanwhile: `close` may have missed this one
            self._publisher.fail(self._closed_error())
        return future

    # -- receiving --------------------------------------------------------------------------

    def receive(self) -> Iterator[Electron]:
        """Yield electrons from the queue until the conductor closes, or `stop_receiving` is called.

        A caller that stops iterating receives no more, and may receive again later.

        Raises
        ------
        ConductorError
            Where somebody receives already.
        """
        if not self._serve:
            return
        self.check_open()
        consumer = self._consumer
        if consumer.is_open:
            raise ConductorError(Event("somebody receives already", conductor_id=self.id))
        inbox = self._connection.ask(consumer.open)
        left: deque[Electron] = deque()
        try:
            while (electrons := inbox.get()) is not None:
                left.extend(electrons)
                while left:
                    electron = left.popleft()
                    if consumer.is_open:
                        yield electron
                    else:
                        self.give_back(electron.id)
        finally:  # what is not yielded goes back, for other receivers
            for electron in left:
                self.give_back(electron.id)
            if consumer.inbox is inbox:
                self.stop_receiving()

    def complete(self, properties: Properties) -> None:
        """Answer an electron that `receive` gave.

        Raises
        ------
        ConductorError
            Where no electron of that id is unanswered.
        """
        if properties.electron_id not in self._consumer.unanswered:
            raise ConductorError(
                Event(
                    "no electron of this id waits for an answer",
                    electron_id=properties.electron_id,
                    conductor_id=self.id,
                )
            )
        self._consumer.complete(properties)

    def text_of(self, error: BaseException) -> str:
        """Return the text of an error as programs in Go make it, which may compare it."""
        return error.go_text if isinstance(error, AtomizerError) else super().text_of(error)

    def give_back(self, electron_id: str) -> None:
        """Return an electron to the queue, for others."""
        self._connection.call(partial(self._consumer.give_back, electron_id))

    def note_waiting(self, electron_id: str) -> None:
        """Note that an electron waits for its children, so that more electrons can be received."""
        self._connection.call(partial(self._consumer.note_waiting, electron_id))

    def stop_receiving(self) -> None:
        """Take no more electrons, and return to the queue those that `receive` has not yielded."""
        if self._consumer.is_open:
            for electron in self._consumer.drain():
                self.give_back(electron.id)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until every electron received is answered or returned; return whether they are."""
        return wait(self._consumer.is_empty, timeout)

    # -- ending -----------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connection: electrons that we have not answered return to the queue."""
        if self._closed:
            return
        self._closed = True
        if self.is_of_parent:  # the parent has the connection, and goes on
            return
        atexit.unregister(self.close)
        with _opening:
            if _conductors.get(self.route) is self:
                del _conductors[self.route]
        self.stop_receiving()
        if self._connection.state == "connected" and not self._connection.is_current:
            flushed = threading.Event()
            self._connection.call(partial(self._wind_up, flushed, monotonic() + CLOSE_SECONDS))
            wait(flushed, CLOSE_SECONDS + 1)
        self._connection.abandon()
        self._publisher.fail(
            ConductorError(Event("the conductor was closed", conductor_id=self.id))
        )
        self._consumer.is_empty.set()

    def _wind_up(self, flushed: threading.Event, until: float) -> None:
        """Wait until the broker has all messages, delete our own queues, and set `flushed`."""
        self._flush()
        connection = self._connection
        open_ = connection.state == "connected" and not connection.blocked and monotonic() < until
        if open_ and (connection.outgoing or self._publisher.has_unsent):
            connection.call_later(0.01, partial(self._wind_up, flushed, until))
            return
        queues = self._publisher.queues()
        if open_ and queues:
            self._publisher.is_down()
            connection.delete(queues, flushed.set)
        else:
            flushed.set()

    # -- on the thread of the connection ----------------------------------------------------------

    def _flush(self) -> None:
        self._consumer.flush()
        self._publisher.flush()

    def _on_up(self) -> None:
        self._publisher.is_up()
        self._consumer.is_up()

    def _on_down(self) -> None:
        self._publisher.is_down()
        self._consumer.is_down()

    def __repr__(self) -> str:
        where = f"{self.route.address}, queue {self.queue}"
        return f"<{type(self).__name__} {self.id}: {where}, {self.state}>"

    @markup.safely
    def _repr_html_(self) -> markup.Html:
        status = self.status()
        tone: markup.Tone = "good" if status.state == "connected" else "warning"
        did = {
            "broker": markup.code(status.address),
            "queue": markup.code(status.queue),
            "sent": _numbers(("electrons", status.sent), ("answered", status.replies)),
        }
        if self._consumer.is_open or status.received:
            did["served"] = _numbers(
                ("received", status.received),
                ("answered", status.answered),
                ("of these failed", status.failed),
                ("in flight", status.in_flight),
            )
        if status.blocked:
            did["the broker takes nothing"] = markup.text(status.blocked)
        if status.dead:
            did["dead letters"] = markup.text(f"{status.dead:,}")
        return markup.card(
            type(self).__name__,
            markup.facts(did),
            beside=[markup.badge(status.state, tone), markup.code(self.id)],
        )


@offers("state status")
class AmqpConductor(QueueConductor):
    """Carries electrons over RabbitMQ, from and to any peer of the library *atomizer*.

    It sends electrons to the queue, and an atomizer with atoms serves the queue: `receive` takes
    electrons from there, `complete` answers their senders. An electron is executed at least once:
    it is acknowledged when the broker has confirmed its reply. A lost connection is made again,
    and work goes on.

    Parameters
    ----------
    url
        ``amqp://user:password@host:5672/vhost``, or encrypted ``amqps://``. What is missing is
        taken from ATOMIZER_AMQP_URL, ATOMIZER_AMQP_USER and ATOMIZER_AMQP_PASSWORD.
    queue
        The queue shared with the peers, ``atomizer`` unless configured; durable, as they declare
        it. Messages that cannot be answered go to the queue of this name and ``.dead``, with the
        reason.
    id
        The name of the conductor; an atomizer that has several needs one for each.
    serve
        Whether an atomizer that has this conductor takes electrons from the queue. It does so only
        if it has atoms, its own or of a module that registers some when it is imported.
    max_in_flight
        Most electrons taken from the queue and not answered, 10,000 unless configured; electrons
        that wait for their children are not counted. The actual number follows what can be executed
        in half a second.
    max_bytes, max_depth
        Largest size of a message, 16 MiB unless configured, and deepest nesting of its JSON, 64
        unless configured. Messages beyond are refused.
    ca_file, cert_file, key_file
        With ``amqps://``: the certificates of authorities to trust in place of this machine's; our
        own certificate and its key, for brokers that require one.
    verify
        Whether the broker's certificate and host name are checked.

    Raises
    ------
    ConductorError
        Where no broker answers there, or it refuses us.
    ValueError
        Where the URL, or a limit, makes no sense.

    Examples
    --------
    ``AmqpConductor("amqp://localhost").send(Electron("montecarlopi.Toss")).result().value()``
    """

    def __init__(
        self,
        url: str | None = None,
        queue: str | None = None,
        *,
        id: str = "amqp",
        serve: bool = True,
        max_in_flight: int | None = None,
        max_bytes: int | None = None,
        max_depth: int | None = None,
        ca_file: str | None = None,
        cert_file: str | None = None,
        key_file: str | None = None,
        verify: bool = True,
    ) -> None:
        check()
        queue = setting("amqp.queue") if queue is None else queue
        if max_in_flight is None:
            max_in_flight = setting("amqp.max-in-flight")
        max_bytes = setting("amqp.largest-message") if max_bytes is None else max_bytes
        max_depth = setting("amqp.deepest-message") if max_depth is None else max_depth
        address = Address.of(url, Tls(ca_file, cert_file, key_file, verify))
        _check(queue, max_in_flight, max_bytes, max_depth)
        route = AmqpRoute(address, queue, Limits(max_bytes, max_depth))
        super().__init__(route, id, serve=serve, max_in_flight=max_in_flight)


def _numbers(*pairs: tuple[str, int]) -> markup.Html:
    return markup.text(", ".join(f"{count:,} {name}" for name, count in pairs))


def _check(queue: Any, max_in_flight: Any, max_bytes: Any, max_depth: Any) -> None:
    """Raise where an option makes no sense."""
    if not isinstance(queue, str) or not queue or len(queue.encode()) > LONGEST_NAME - len(DEAD):
        raise ValueError(f"queue must be a name of 1 to 250 bytes, got {queue!r}")
    if queue.startswith("amq."):
        raise ValueError(f"the broker keeps names that begin with amq. for itself, got {queue!r}")
    numbers = {"max_in_flight": max_in_flight, "max_bytes": max_bytes, "max_depth": max_depth}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}")
    if max_in_flight > MOST_IN_FLIGHT:
        raise ValueError(
            f"max_in_flight is at most {MOST_IN_FLIGHT} by the protocol, got {max_in_flight}"
        )


def _check_options(electron: Electron) -> None:
    """Raise where an electron has options that messages have no place for."""
    asked = [name for name in STAYING if getattr(electron, name) != getattr(Electron, name)]
    if asked:
        raise TypeError(
            f"{', '.join(asked)} of {electron.id} would not travel over AMQP, where an electron "
            "is tried once and waits its turn: leave it out, and send the electron again where it "
            "failed"
        )
