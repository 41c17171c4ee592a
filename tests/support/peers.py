"""Peers as the Go programs are on the wire: a raw one for tests to steer, and a model of the agent.

Everything here speaks AMQP and JSON by itself, so that a mistake of the package is no mistake here.
"""

import base64
import json
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic, time_ns
from typing import Any, NamedTuple

SECONDS = 90  # until it is given up to wait for a message
TOSS = "montecarlopi.Toss"
MONTE_CARLO = "montecarlopi.MonteCarlo"


class Message(NamedTuple):
    """What came out of a queue."""

    body: bytes
    properties: Any
    redelivered: bool


class Peer:
    """A client that sends what a test says, byte for byte, and keeps the replies. Used in a `with`.

    Parameters
    ----------
    url : str
        Of the broker.
    queue : str
        The work queue, where it sends to.
    tls : ssl.SSLContext, optional
        Whom it trusts where the URL is of amqps.

    Attributes
    ----------
    sender : str
        The name of its own queue, for replies: the senderid of its electrons.
    """

    def __init__(self, url, queue, *, tls=None):
        self.queue = queue
        self.sender = str(uuid.uuid4())
        self._connection = _connect(url, tls)
        self._channel = self._connection.channel()
        self._replies = []
        for name in (queue, self.sender):
            _declare(self._channel, name)
        self._channel.basic_consume(self.sender, self._keep, auto_ack=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def electron(self, atomid, **fields):
        """Return an electron of its own with an id; other fields go as they are."""
        return {"senderid": self.sender, "id": str(uuid.uuid4()), "atomid": atomid, **fields}

    def send(self, body):
        """Send bytes as they are, or an electron as JSON, and return its id."""
        raw = body if isinstance(body, bytes) else _encode(body)
        _publish(self._channel, self.queue, raw)
        return None if isinstance(body, bytes) else body["id"]

    def ask(self, atomid, *, timeout=SECONDS, **fields):
        """Send an electron, and return its reply; the timeout is that of the peer, in seconds."""
        asked = self.send(self.electron(atomid, **fields))

        def answers():
            return [reply for reply in self._replies if reply["electronId"] == asked]

        self._wait(answers, timeout, f"no reply to {asked}")
        reply = answers()[0]
        self._replies.remove(reply)
        return reply

    def replies(self, number, timeout=SECONDS):
        """Return the next replies, in the order in which they came."""
        self._wait(lambda: len(self._replies) >= number, timeout, f"not {number} replies")
        taken, self._replies = self._replies[:number], self._replies[number:]
        return taken

    def get(self, queue, timeout=SECONDS):
        """Take one message from a queue, and leave the others."""
        found = []
        with self._second_channel() as channel:
            _declare(channel, queue)
            channel.basic_qos(prefetch_count=1)
            tag = channel.basic_consume(queue, lambda *arrived: found.append(arrived))
            self._wait(lambda: found, timeout, f"no message in {queue}")
            channel.basic_cancel(tag)
            _, method, properties, body = found[0]
            channel.basic_ack(method.delivery_tag)
        return Message(body, properties, method.redelivered)

    def depth(self, queue):
        """Return how many messages wait in a queue, which must exist."""
        with self._second_channel() as channel:
            return channel.queue_declare(queue, passive=True).method.message_count

    def close(self):
        """Delete its own queue, and leave."""
        self._channel.queue_delete(self.sender)
        self._connection.close()

    def _keep(self, channel, method, properties, body):
        self._replies.append(json.loads(body))

    def _wait(self, condition, timeout, otherwise):
        until = monotonic() + timeout
        while not condition():
            if (left := until - monotonic()) <= 0:
                raise TimeoutError(f"{otherwise} after {timeout} s; unread: {self._replies[:9]}")
            self._connection.process_data_events(time_limit=left)

    @contextmanager
    def _second_channel(self):
        """Open a channel for something that may go wrong, which closes a channel."""
        channel = self._connection.channel()
        try:
            yield channel
        finally:
            if channel.is_open:
                channel.close()


class GoAgent:
    """A model of the Go agent: a node that serves the pi application, with the faults it has.

    It acknowledges on delivery, so that what it has when it ends is lost. It answers nothing that
    it cannot parse, of an atom that it does not know, or whose time is up. Used in a `with`.

    Parameters
    ----------
    url : str
        Of the broker.
    queue : str
        The work queue, which it serves and where it sends its own electrons to.

    Attributes
    ----------
    executed : list of str
        The ids of the electrons that it executed.
    """

    def __init__(self, url, queue):
        self.executed = []
        self._queue = queue
        self._sender = str(uuid.uuid4())
        self._waiting = {}  # the estimates in progress, by the ids of their tosses
        self._connection = _connect(url)
        self._channel = self._connection.channel()
        for name in (queue, self._sender):
            _declare(self._channel, name)
        self._channel.basic_consume(queue, self._receive, auto_ack=True)
        self._channel.basic_consume(self._sender, self._count, auto_ack=True)
        self._thread = ThreadPoolExecutor(1, "go-agent")
        self._served = self._thread.submit(self._channel.start_consuming)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """End it; what ended it before is raised here."""
        if not self._served.done():
            self._connection.add_callback_threadsafe(self._channel.stop_consuming)
        self._thread.shutdown()
        self._served.result()
        self._channel.queue_delete(self._sender)
        self._connection.close()

    def _receive(self, channel, method, properties, body):
        if (electron := _parse(body)) is None:
            return
        if not electron["atomid"] or not electron["id"]:
            self._reply(electron, error=_invalid(electron))
        elif electron["atomid"] in (TOSS, MONTE_CARLO):
            self.executed.append(electron["id"])
            self._toss(electron) if electron["atomid"] == TOSS else self._estimate(electron)

    def _toss(self, electron):
        inside = random.random() ** 2 + random.random() ** 2 <= 1
        self._reply(electron, {"value": int(inside)})

    def _estimate(self, electron):
        try:
            tosses = _tosses(electron["payload"])
        except ValueError as error:
            self._reply(electron, error=str(error))
            return
        estimate = Estimate(electron, tosses)
        for _ in range(tosses):
            child = {"senderid": self._sender, "id": str(uuid.uuid4()), "atomid": TOSS}
            self._waiting[child["id"]] = estimate
            _publish(self._channel, self._queue, _encode(child))

    def _count(self, channel, method, properties, body):
        reply = json.loads(body)
        if estimate := self._waiting.pop(reply["electronId"], None):
            estimate.add(reply)
            if estimate.complete:
                self._reply(estimate.electron, estimate.result())

    def _reply(self, electron, result=None, error=None):
        if not electron["senderid"] or time_ns() > electron["deadline"]:
            return
        properties = {
            "electronId": electron["id"],
            "atomId": electron["atomid"],
            "starttime": _timestamp(electron["start"]),
            "endtime": _timestamp(time_ns()),
            **({} if error is None else {"error": base64.b64encode(error.encode()).decode()}),
            "result": result,
        }
        _publish(self._channel, electron["senderid"], _encode(properties))


class Estimate:
    """An estimate of pi that waits for its tosses."""

    def __init__(self, electron, tosses):
        self.electron = electron
        self._tosses = tosses
        self._inside = self._errors = self._came = 0

    @property
    def complete(self):
        return self._came == self._tosses

    def add(self, reply):
        """Count a toss that was answered."""
        self._came += 1
        if reply.get("error"):
            self._errors += 1
        else:
            self._inside += reply["result"]["value"]

    def result(self):
        """Return what the Go application does."""
        good = self._tosses - self._errors
        pi = 4 * self._inside / good if good else 0
        return {"in": self._inside, "tosses": self._tosses, "errors": self._errors, "pi": pi}


def _connect(url, tls=None):
    import pika  # which machines without these tests need not have

    parameters = pika.URLParameters(url)
    parameters.heartbeat = 0  # tests do other things between what they ask of a peer
    if tls:
        parameters.ssl_options = pika.SSLOptions(tls, parameters.host)
    return pika.BlockingConnection(parameters)


def _declare(channel, queue):
    channel.queue_declare(queue, durable=True, exclusive=False, auto_delete=False)


def _publish(channel, queue, body):
    import pika

    # Nothing else is said of a message, which is transient then.
    content = pika.BasicProperties(content_type="application/json")
    channel.basic_publish("", queue, body, content)


def _encode(fields):
    return json.dumps(fields, separators=(",", ":")).encode()


def _parse(body):
    """Return the electron of a message as Go sees it, None where Go sees none."""
    try:
        given = {name.lower(): value for name, value in json.loads(body).items()}
        names = [given.get(name) or "" for name in ("senderid", "id", "atomid")]
        payload = _bytes(given["payload"]) if given.get("payload") is not None else b""
    except (ValueError, AttributeError):
        return None
    timeout = given.get("timeout")
    if not all(isinstance(name, str) for name in names) or type(timeout) not in (int, type(None)):
        return None
    start = time_ns()
    deadline = float("inf") if timeout is None else start + timeout
    electron = dict(zip(("senderid", "id", "atomid"), names, strict=True))
    return {**electron, "payload": payload, "start": start, "deadline": deadline}


def _bytes(payload):
    """Return what a payload holds; a text or a number is taken for base64, whatever it is."""
    if isinstance(payload, dict | list | bool):
        return _encode(payload)
    return base64.b64decode(str(payload), validate=True)


def _tosses(payload):
    fields = json.loads(payload)
    tosses = fields.get("tosses", 0) if isinstance(fields, dict) else fields
    if type(tosses) is not int:
        raise ValueError(f"json: cannot unmarshal {tosses!r} as tosses")
    if tosses < 1:
        raise ValueError(f"{tosses} is not a valid toss")
    return tosses


def _invalid(electron):
    event = {
        "message": "invalid electron",
        "electronID": electron["id"],
        "atomID": electron["atomid"],
        "conductorID": "amqp.rabbitmq",
    }
    return _encode({"event": event, "internal": None}).decode()


def _timestamp(nanoseconds):
    """Return a time as RFC 3339 in UTC, with nine decimals.

    >>> _timestamp(1_796_191_068_318_439_203)
    '2026-12-02T05:57:48.318439203Z'
    """
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
