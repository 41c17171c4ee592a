"""The connection to a broker: how it fails, how it is cut, how it comes back and how it ends."""

import logging
import random
import socket
import threading
import traceback
import uuid
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from time import monotonic

import pytest
from patience import wait_until
from peers import TOSS, GoAgent, Peer

from atomizer_dask import AmqpConductor, ConductorError, Electron, Properties
from atomizer_dask.conductors.amqp import connection

pytestmark = pytest.mark.amqp

SECONDS = 30  # until it is given up to wait for what should happen at once
SECRET = "s3cr3t-passw0rd"


class Ears:
    """Somebody whom a conductor tells what happens."""

    threads = 1

    def __init__(self):
        self.events, self.errors = [], []
        self._told = threading.Condition()

    def note_waiting(self, electron_id):
        pass

    def find(self, atom_id):
        return None

    def emit(self, event):
        with self._told:
            self.events.append(event)
            self._told.notify_all()

    def report(self, error):
        with self._told:
            self.errors.append(error)
            self._told.notify_all()

    def wait_for(self, text, times=1):
        with self._told:
            heard = self._told.wait_for(
                lambda: sum(text in str(event) for event in self.events) >= times, SECONDS
            )
            assert heard, f"not told of {text!r}: {self.events}"


class Wire:
    """A line to a broker that a test may cut, or have say nothing."""

    def __init__(self, url):
        self._target = "127.0.0.1", int(url.rpartition(":")[2].rstrip("/"))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        self.is_silent = False  # it takes calls, and that is all
        self.is_deaf = False  # what the broker says is lost
        self.accepted = 0
        self._came = threading.Condition()
        self._sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._came:
                self.accepted += 1
                self._sockets.append(near)
                if not self.is_silent:
                    far = socket.create_connection(self._target)
                    self._sockets.append(far)
                    for ends in ((near, far), (far, near)):
                        threading.Thread(target=self._carry, args=ends, daemon=True).start()
                self._came.notify_all()

    def _carry(self, source, target):
        try:
            while data := source.recv(65536):
                if self.is_deaf and source.getpeername() == self._target:
                    continue
                target.sendall(data)
        except OSError:
            pass
        hang_up(source, target)

    def cut(self):
        with self._came:
            hang_up(*self._sockets)
            self._sockets.clear()

    def wait_for_calls(self, number):
        with self._came:
            assert self._came.wait_for(lambda: self.accepted >= number, SECONDS)

    def close(self):
        hang_up(self._listener)
        self.cut()


def hang_up(*sockets):
    for each in sockets:
        with suppress(OSError):  # it is cut already
            each.shutdown(socket.SHUT_RDWR)
        each.close()


@pytest.fixture
def wire(broker):
    wire = Wire(broker.url)
    yield wire
    wire.close()


@contextmanager
def connected(url, queue, **options):
    conductor = AmqpConductor(url, queue, **options)
    ears = Ears()
    conductor.attach(ears)
    try:
        yield conductor, ears
    finally:
        conductor.close()


@contextmanager
def answering(answer):
    """Serve something that is no broker, and say what it answers to whoever connects."""

    def serve():
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            kept.append(near)
            near.sendall(answer)

    kept = []
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    hang_up(listener, *kept)
    thread.join(SECONDS)


def links():
    """Return the threads of links that are alive."""
    return {thread for thread in threading.enumerate() if thread.name == "atomizer-amqp"}


# -- what is no broker, or lets us not in ---------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02", b"AMQP\x00\x01\x00\x00",
     random.Random(1).randbytes(100_000)],
    ids=["http", "tls", "amqp 1.0", "garbage"],
)  # fmt: skip
def test_what_is_no_broker_is_refused(answer, configure):
    configure({"amqp.connect-timeout": 0.5})
    before = links()
    with answering(answer) as port, pytest.raises(ConductorError, match="nobody serves AMQP at"):
        AmqpConductor(f"amqp://someone:{SECRET}@127.0.0.1:{port}/")
    wait_until(lambda: links() <= before, "the thread has ended")


def test_what_says_nothing_is_given_up(configure):
    configure({"amqp.connect-timeout": 0.5})
    before = links()
    with answering(b"") as port, pytest.raises(ConductorError, match="nobody serves AMQP at"):
        AmqpConductor(f"amqp://127.0.0.1:{port}/")
    wait_until(lambda: links() <= before, "the thread has ended")


def test_nobody_there_is_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ConductorError, match=f"at amqp://127.0.0.1:{port}/: .*refused"):
        AmqpConductor(f"amqp://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("amqp://guest:{}@127.0.0.1:{}/", "ACCESS_REFUSED"),
        ("amqp://{}:wrong@127.0.0.1:{}/", "ACCESS_REFUSED"),
        ("amqp://guest:guest@127.0.0.1:{1}/missing-{0}", "missing"),
    ],
    ids=["password", "user", "vhost"],
)
def test_who_is_not_let_in_is_told_and_no_secret_is(broker, url, message, caplog):
    caplog.set_level(logging.DEBUG)
    port = broker.url.rpartition(":")[2].rstrip("/")
    with pytest.raises(ConductorError, match=message) as caught:
        AmqpConductor(url.format(SECRET, port))
    if "missing" in url:
        return
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert SECRET not in told
    assert SECRET not in caplog.text
    assert "127.0.0.1" in told


def test_no_secret_is_told_by_who_works(broker, wire, queue, caplog):
    caplog.set_level(logging.DEBUG)
    broker.add_user("someone-else", SECRET)
    with (
        connected(wire.url.replace("guest:guest", f"someone-else:{SECRET}"), queue) as known,
        GoAgent(broker.url, queue),
    ):
        conductor, ears = known
        conductor.send(Electron(TOSS)).result(SECONDS)
        wire.cut()
        ears.wait_for("again")
        shown = [repr(conductor), str(conductor), conductor._repr_html_(), conductor.status()]
        shown += [conductor.route, conductor.route.address, ears.events, ears.errors]
    broker.ctl("delete_user", "someone-else")
    assert SECRET not in str(shown) + caplog.text
    assert "someone-else" not in str(shown)


# -- being cut ------------------------------------------------------------------------------------


def test_a_cut_is_told_and_heals(wire, queue):
    with connected(wire.url, queue) as (conductor, ears):
        wire.cut()
        ears.wait_for("is gone")
        ears.wait_for("connected to the broker at amqp://127.0.0.1")
        ears.wait_for("again")
        assert conductor.state == "connected"
        assert conductor.status().reconnects == 1
    assert [type(error) for error in ears.errors] == [ConductorError]
    assert ears.errors[0].event.level == "error"


def test_what_is_sent_while_there_is_no_connection_waits_for_it(wire, queue, broker):
    with connected(wire.url, queue) as (conductor, ears), GoAgent(broker.url, queue):
        wire.is_silent = True
        wire.cut()
        ears.wait_for("is gone")
        futures = [conductor.send(Electron(TOSS)) for _ in range(10)]
        wire.wait_for_calls(2)
        wire.is_silent = False
        wire.cut()
        assert {future.result(SECONDS).value()["value"] for future in futures} <= {0, 1}


def test_cuts_in_the_middle_lose_nothing(wire, queue, broker):
    with connected(wire.url, queue) as (conductor, _), GoAgent(broker.url, queue) as agent:
        futures = []
        for _ in range(5):
            futures += [conductor.send(Electron(TOSS)) for _ in range(300)]
            wait_until(lambda: sum(f.done() for f in futures) > len(futures) - 200, "some are done")
            wire.cut()
        for future in futures:
            assert future.result(SECONDS).value()["value"] in (0, 1)
        assert conductor.status().replies == 1500
        assert len(set(agent.executed)) == 1500


def test_a_cut_right_after_a_cut_leaves_no_answer_unheard(broker, queue, monkeypatch):
    with connected(broker.url, queue) as (conductor, ears):
        future = conductor.send(Electron(TOSS))
        wait_until(lambda: conductor.status().sent == 1, "it is out")
        its = conductor._connection
        count = its.count

        def cut():
            its._connection._streams.transport._socket._sock.shutdown(socket.SHUT_RDWR)

        def count_and_be_cut(*what):
            monkeypatch.setattr(its, "count", count)
            count(*what)
            cut()

        monkeypatch.setattr(its, "count", count_and_be_cut)
        its.call(cut)
        ears.wait_for("is gone", times=2)
        with GoAgent(broker.url, queue):
            assert future.result(SECONDS).value()["value"] in (0, 1)


def test_consumers_that_are_done_are_forgotten(broker, queue):
    with connected(broker.url, queue) as (conductor, _):
        next_electron = threading.Thread(target=lambda: list(conductor.receive()), daemon=True)
        next_electron.start()
        wait_until(lambda: conductor.status().prefetch, "it receives")
        consumer = conductor._consumer
        for count in range(1, 20):
            conductor._connection.ask(lambda count=count: consumer._consume(count))
        channel = consumer._channel
        wait_until(
            lambda: len(channel.consumer_tags) == 1 and not channel._cancelled, "one is left"
        )


def test_waits_longer_after_each_failure_but_not_for_ever(monkeypatch):
    waited = []
    it = connection.BrokerConnection(
        None, "test", is_up=None, is_down=None, is_blocked=None, on_problem=None
    )
    monkeypatch.setattr(it, "call_later", lambda seconds, _: waited.append(seconds))
    for _ in range(2000):
        it._retry()
    assert waited[0] <= 0.1
    assert max(waited) <= 5
    assert min(waited[20:]) >= 2.5
    assert len(set(waited[20:])) > 1000  # else all who lost the same broker return at once


def test_a_broker_that_lets_nobody_consume_is_not_asked_without_end(broker, queue, monkeypatch):
    url = broker.add_user("no-reader", "secret")
    broker.ctl("set_permissions", "no-reader", ".*", ".*", "^$")
    waited = []
    try:
        with connected(url, queue) as (conductor, ears):
            call_later = conductor._connection.call_later

            def later(seconds, function):
                if function == conductor._connection._connect:
                    waited.append(seconds)
                    seconds = 0
                call_later(seconds, function)

            monkeypatch.setattr(conductor._connection, "call_later", later)
            receiving = threading.Thread(target=lambda: list(conductor.receive()), daemon=True)
            receiving.start()
            wait_until(lambda: len(waited) >= 6, "six attempts")
            conductor.close()
            receiving.join(SECONDS)
    finally:
        broker.ctl("delete_user", "no-reader")
    assert waited[5] > 1
    assert "ACCESS_REFUSED" in str(ears.errors[0])


def test_who_may_have_no_queue_for_replies_does_not_wait_for_ever(broker, queue):
    url = broker.add_user("no-configurer", "secret")
    broker.ctl("set_permissions", "no-configurer", "^$", ".*", ".*")
    try:
        with connected(url, queue) as (conductor, _):
            for _ in range(2):
                future = conductor.send(Electron(TOSS))
                with pytest.raises(ConductorError, match=r"no queue for replies.*set_permissions"):
                    future.result(SECONDS)
            broker.ctl("set_permissions", "no-configurer", ".*", ".*", ".*")
            with GoAgent(broker.url, queue):
                assert conductor.send(Electron(TOSS)).result(SECONDS).value()["value"] in (0, 1)
    finally:
        broker.ctl("delete_user", "no-configurer")


def test_a_cut_while_answering_an_unknown_sender_is_no_dead_letter(wire, queue, broker):
    never = f"never-{uuid.uuid4()}"
    with connected(wire.url, queue) as (conductor, ears), Peer(broker.url, queue) as peer:
        peer.send({**peer.electron("by hand"), "senderid": never})
        electron = next(conductor.receive())
        now = datetime.now(UTC)
        wire.is_deaf = True  # to what the broker says of the answer
        conductor.complete(Properties(electron.id, electron.atom_id, now, now, result=5))
        wait_until(lambda: conductor._connection.outgoing._unconfirmed, "it is on its way")
        wire.is_deaf = False
        wire.cut()
        ears.wait_for("again")
        wait_until(lambda: conductor.status().answered == 1, "it is answered")
        assert b'"result":5' in peer.get(never).body
    broker.delete(never)


# -- closing --------------------------------------------------------------------------------------


def test_closing_twice_does_no_harm(broker, queue):
    with connected(broker.url, queue) as (conductor, _):
        conductor.close()
        conductor.close()
        assert conductor.state == "closed"
        with pytest.raises(ConductorError, match="closed"):
            conductor.send(Electron(TOSS))


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_closes_quickly_while_the_broker_is_away(broker, queue, how):
    wire = Wire(broker.url)
    before = links()
    with connected(wire.url, queue) as (conductor, ears):
        future = conductor.send(Electron(TOSS))
        wait_until(lambda: conductor.status().sent == 1, "it is sent")
        wire.is_silent = True
        if how == "refused":
            wire.close()
        else:
            wire.cut()
            wire.wait_for_calls(2)
        ears.wait_for("is gone")
        began = monotonic()
        conductor.close()
        assert monotonic() - began < 8
        with pytest.raises(ConductorError, match="closed"):
            future.result(SECONDS)
    assert links() <= before
    wire.close()


def test_closes_quickly_where_the_broker_takes_nothing(own_broker):
    before = links()
    with connected(own_broker.url, "work") as (conductor, _):
        given = []
        receiving = threading.Thread(target=lambda: given.extend(conductor.receive()), daemon=True)
        receiving.start()
        with Peer(own_broker.url, "work") as peer:
            peer.send(peer.electron(TOSS))
            wait_until(lambda: given or conductor.status().in_flight, "it is received")
        own_broker.ctl("set_vm_memory_high_watermark", "0.0000001")
        future = conductor.send(Electron(TOSS))
        wait_until(lambda: conductor.status().blocked, "it is blocked")
        began = monotonic()
        conductor.close()
        assert monotonic() - began < 15
        assert not future.cancelled()
        with pytest.raises(ConductorError, match="closed"):
            future.result(SECONDS)
        wait_until(lambda: links() <= before, "the thread has ended")
        own_broker.ctl("set_vm_memory_high_watermark", "0.4")
        with Peer(own_broker.url, "work") as peer:  # what was in hand is there again
            assert TOSS.encode() in peer.get("work").body


def test_a_broker_without_memory_is_waited_for(own_broker):
    with (
        connected(own_broker.url, "work") as (conductor, _),
        GoAgent(own_broker.url, "work"),
    ):
        own_broker.ctl("set_vm_memory_high_watermark", "0.0000001")
        futures = [conductor.send(Electron(TOSS)) for _ in range(50)]
        wait_until(lambda: conductor.status().blocked, "it is blocked")
        own_broker.ctl("set_vm_memory_high_watermark", "0.4")
        for future in futures:
            future.result(SECONDS).value()
        assert not conductor.status().blocked


def test_goes_on_after_an_error_of_its_own(broker, queue):
    with connected(broker.url, queue) as (conductor, ears), GoAgent(broker.url, queue):

        def fail():
            raise ValueError("mine")

        conductor._connection._loop.add_callback_threadsafe(fail)  # not by `call`, which guards
        ears.wait_for("again")
        assert "mine" in str(ears.errors[0].internal)
        conductor.send(Electron(TOSS)).result(SECONDS).value()


# -- TLS ------------------------------------------------------------------------------------------


def test_encrypts_where_the_url_says_so(tls_broker, certificates):
    url = tls_broker.tls_url
    with (
        connected(url, "work", ca_file=str(certificates.authority)) as (conductor, _),
        GoAgent(tls_broker.url, "work"),
    ):
        assert str(conductor.route.address).startswith("amqps://")
        conductor.send(Electron(TOSS)).result(SECONDS).value()


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ("expired", "expired"),
        ("elsewhere", "not valid for '127.0.0.1'|mismatch"),
        ("untrusted", "unable to get local issuer|self.signed"),
    ],
)
def test_a_wrong_certificate_is_refused(tls_broker, certificates, shown, message):
    url, authority = tls_broker.tls_url, str(certificates.authority)
    with tls_broker.showing(getattr(certificates, shown)):
        with pytest.raises(ConductorError, match=message) as caught:
            AmqpConductor(url, "work", ca_file=authority)
        assert "guest" not in str(caught.value)
        AmqpConductor(url, "work", ca_file=authority, verify=False).close()


def test_an_authority_that_this_machine_does_not_know_is_refused(tls_broker):
    with pytest.raises(ConductorError, match="certificate verify failed"):
        AmqpConductor(tls_broker.tls_url, "work")


def test_wrong_ways_to_speak_tls_are_told(tls_broker, tmp_path):
    with pytest.raises(ConductorError, match="nobody serves AMQP at amqps://"):
        AmqpConductor(tls_broker.url.replace("amqp:", "amqps:"), "work")
    with pytest.raises(ConductorError, match="nobody serves AMQP at amqp://"):
        AmqpConductor(tls_broker.tls_url.replace("amqps:", "amqp:"), "work")
    with pytest.raises(ConductorError, match="No such file"):
        AmqpConductor(tls_broker.tls_url, "work", ca_file=str(tmp_path / "missing.pem"))
    (tmp_path / "empty.pem").touch()
    with pytest.raises(ConductorError, match=r"certificate|PEM|crl"):
        AmqpConductor(tls_broker.tls_url, "work", ca_file=str(tmp_path / "empty.pem"))
