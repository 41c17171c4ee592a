"""A node that serves a queue, as its peers see it: what they send, what they are answered."""

import base64
import json
import random
import subprocess
import sys
import threading
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime
from time import sleep

import numpy as np
import pytest
from patience import wait_until
from peers import MONTE_CARLO, GoAgent, Peer

from atomizer_dask import (
    AmqpConductor,
    Atom,
    Atomizer,
    ConductorError,
    Electron,
    MemoryConductor,
    Properties,
    atom,
)
from atomizer_dask.execution.failure import Failure
from atomizer_dask.montecarlopi import MonteCarlo, Toss
from atomizer_dask.registry import registered

pytestmark = pytest.mark.amqp

SECONDS = 30  # until it is given up to wait for what should happen at once
# As the Go programs and a Python client of theirs wrote them; senders and ids are the test's own.
FROM_CONSOLE = (
    '{{"senderid":"{0}","id":"{1}","atomid":"montecarlopi.MonteCarlo","payload":{{"tosses":10}}}}'
)
FROM_AGENT = '{{"senderid":"{0}","id":"{1}","atomid":"montecarlopi.Toss"}}'
IN_BASE64 = (
    '{{"senderid":"{0}","id":"{1}","atomid":"montecarlopi.MonteCarlo",'
    '"payload":"eyJ0b3NzZXMiOiAxMDAwfQ=="}}'
)
# A node of its own process: it counts what it executes in a file.
NODE = """
import sys, time
from atomizer_dask import AmqpConductor, Atomizer, MemoryConductor, atom

@atom(id="slow")
def slow(number, wait):
    with open(sys.argv[3], "a") as executed:
        executed.write(f"{number}\\n")
    time.sleep(wait)
    return number

conductor = AmqpConductor(sys.argv[1], sys.argv[2])
Atomizer(MemoryConductor(2), conductor, slow).exec()
print("ready", flush=True)
time.sleep(600)
"""


@atom(id="echo")
def echo(x=None):
    return x


@atom(id="raises")
def raises(x=None):
    raise ValueError(f"not {x}")


class Counting:
    """An atom that counts what it executes, and waits where it is told to."""

    def __init__(self):
        self.executed = []
        self.gate = threading.Event()

        @atom(id="count")
        def count(number, wait=False):
            self.executed.append(number)
            if wait:
                self.gate.wait(SECONDS)
            return number

        self.atom = count


@pytest.fixture
def counting():
    counting = Counting()
    yield counting
    counting.gate.set()


@contextmanager
def serving(url, queue, *atoms, threads=2, **options):
    """An atomizer that serves a queue in this process, with its conductor as `amqp`."""
    conductor = AmqpConductor(url, queue, **options)
    atomizer = Atomizer(MemoryConductor(threads), conductor, *atoms)
    atomizer.exec()
    try:
        yield atomizer
    finally:
        atomizer.close()


def status(atomizer):
    return atomizer.conductors["amqp"].status()


def told(reply):
    """Return what the error of a reply says, an event or a plain text."""
    text = base64.b64decode(reply["error"]).decode()
    return json.loads(text)["event"]["message"] if text.startswith("{") else text


def declare(peer, name, **options):
    """Declare a queue on a connection of the peer that stays open."""
    channel = peer._connection.channel()
    channel.queue_declare(name, **options)
    return channel


@pytest.fixture
def peer(broker, queue):
    with Peer(broker.url, queue) as peer:
        yield peer


@pytest.fixture
def node(broker, queue, peer):
    with serving(broker.url, queue, echo, raises, MonteCarlo, Toss) as node:
        yield node


# -- what is answered -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", [FROM_CONSOLE, FROM_AGENT, IN_BASE64])
def test_what_go_programs_send_is_answered_in_their_form(node, peer, form):
    electron_id = str(uuid.uuid4())
    peer.send(form.format(peer.sender, electron_id).encode())
    (reply,) = peer.replies(1)
    assert reply["electronId"] == electron_id
    assert set(reply) == {"electronId", "atomId", "starttime", "endtime", "result"}
    for name in ("starttime", "endtime"):
        assert reply[name].endswith("Z")
        datetime.fromisoformat(reply[name])
    assert set(reply["result"]) in ({"value"}, {"in", "tosses", "errors", "pi"})


def test_replies_have_the_keys_in_the_order_of_go(node, peer, broker):
    name = f"raw-{uuid.uuid4()}"
    peer.send({**peer.electron("echo", payload={"x": 1}), "senderid": name})
    body = peer.get(name).body
    broker.delete(name)
    assert list(json.loads(body)) == ["electronId", "atomId", "starttime", "endtime", "result"]
    assert b'"result":1}' in body


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"atomid": "missing"}, "no atom 'missing' is registered"),
        ({"atomid": 5}, "atomid must be a non-empty text"),
        ({"id": None}, "id must be a non-empty text"),
        ({"timeout": "2s"}, "timeout must be a whole number"),
        ({"timeout": 0}, "time was up"),
        ({"timeout": -5}, "time was up"),
        ({"payload": {"y": 1}}, "y"),
        ({"payload": 7}, "payload"),
        ({"copystate": "yes"}, "copystate must be true or false"),
    ],
)
def test_what_is_wrong_is_answered_with_the_reason(node, peer, fields, message):
    peer.send(json.dumps({**peer.electron("echo"), **fields}).encode())
    (reply,) = peer.replies(1)
    assert message in told(reply)
    assert reply["result"] is None
    assert peer.ask("echo", payload={"x": 1})["result"] == 1


@pytest.mark.parametrize("cut", [-1, -5, 110])
def test_broken_json_with_a_sender_is_answered(node, peer, cut):
    peer.send(json.dumps(peer.electron("echo", payload={"x": 1})).encode()[:cut])
    assert "cannot be read" in told(peer.replies(1)[0])


def test_an_exception_is_answered_with_its_text(node, peer):
    reply = peer.ask("raises", payload={"x": 5})
    assert base64.b64decode(reply["error"]) == b"not 5"


def test_an_electron_whose_time_is_up_is_answered(broker, queue, peer):
    @atom(id="endless")
    def endless(context):
        while not context.cancelled:
            sleep(0.01)
        raise TimeoutError("heeded")

    with serving(broker.url, queue, endless):
        peer.send({**peer.electron("endless"), "timeout": 100_000_000})
        assert "not done within 0.1 s" in told(peer.replies(1)[0])


@pytest.mark.parametrize(
    "make", [lambda: object(), lambda: {1, 2}.__iter__(), lambda: "x" * 5000, lambda: deep(100)],
    ids=["object", "iterator", "too large", "too deep"],
)  # fmt: skip
def test_a_result_that_cannot_be_sent_is_answered_with_the_reason(broker, queue, peer, make):
    @atom(id="makes")
    def makes():
        return make()

    with serving(broker.url, queue, makes, echo, max_bytes=4000):
        assert "result" in told(peer.ask("makes"))
        assert peer.ask("echo", payload={"x": 1})["result"] == 1


def deep(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


def test_numbers_of_numpy_and_what_is_no_number_go_as_json(broker, queue, peer):
    @atom(id="numbers")
    def numbers():
        return {"a": np.float32(0.5), "b": np.arange(3), "nan": float("nan")}

    with serving(broker.url, queue, numbers):
        result = peer.ask("numbers")["result"]
    assert result["a"] == 0.5
    assert "NaN" not in json.dumps(result).replace('"NaN"', "")


# -- dead letters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"\x00\xff", b"null", b"[]", b"{}", b'{"id":"e1","atomid":"echo"}', b'{"senderid":5}',
     b'{"senderid":""}', b"x" * 100_000,
     b'{"senderid":"%s","id":"e1","atomid":"echo"}' % (b"n" * 300)],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_answered_is_kept_with_the_reason(node, peer, queue, body):
    peer.send(body)
    dead = peer.get(f"{queue}.dead")
    assert dead.body == body
    assert dead.properties.delivery_mode == 2
    assert dead.properties.headers["atomizer-queue"] == queue
    assert dead.properties.headers["atomizer-reason"]
    assert peer.ask("echo", payload={"x": 1})["result"] == 1


def test_an_answer_too_large_for_the_limit_goes_to_the_dead_letters(broker, queue, peer):
    with serving(broker.url, queue, echo, max_bytes=2000):
        peer.send({"senderid": peer.sender, "id": "i" * 1870, "atomid": "missing"})
        dead = peer.get(f"{queue}.dead")
        assert "cannot be answered" in dead.properties.headers["atomizer-reason"]
        assert peer.ask("echo", payload={"x": 1})["result"] == 1


# -- reply queues ---------------------------------------------------------------------------------


def test_a_sender_that_never_declared_its_queue_is_answered(node, peer, broker):
    names = [f"never-{uuid.uuid4()}" for _ in range(3)]
    sent = [
        peer.send({**peer.electron("echo", payload={"x": n}), "senderid": name})
        for name in names for n in range(50)
    ]  # fmt: skip
    wait_until(lambda: status(node).answered == len(sent), "all are answered")
    assert [peer.depth(name) for name in names] == [50, 50, 50]
    broker.delete(*names)


@pytest.mark.parametrize(
    "options",
    [{"exclusive": True}, {"auto_delete": True},
     {"durable": True, "arguments": {"x-expires": 60_000}}],
    ids=["exclusive", "auto-delete", "expires"],
)  # fmt: skip
def test_a_sender_with_another_kind_of_queue_is_answered(node, peer, options):
    name = f"own-{uuid.uuid4()}"
    channel = declare(peer, name, **options)
    peer.send({**peer.electron("echo", payload={"x": 5}), "senderid": name})
    wait_until(lambda: status(node).answered == 1, "it is answered")
    _, _, body = channel.basic_get(name, auto_ack=True)
    assert json.loads(body)["result"] == 5
    channel.queue_delete(name)
    assert status(node).reconnects == 0


def test_what_a_sender_that_has_gone_asked_goes_to_the_dead_letters(broker, queue, peer, counting):
    with serving(broker.url, queue, counting.atom) as node:
        with Peer(broker.url, queue) as gone:
            gone.ask("count", payload={"number": 0})
            gone.send(gone.electron("count", payload={"number": 1, "wait": True}))
            wait_until(lambda: counting.executed == [0, 1], "it is executed")
        counting.gate.set()
        dead = peer.get(f"{queue}.dead")
        assert "its sender is gone" in dead.properties.headers["atomizer-reason"]
        assert peer.ask("count", payload={"number": 2})["result"] == 2
        assert counting.executed == [0, 1, 2]
        wait_until(lambda: status(node).in_flight == 0, "nothing is left")


def test_a_sender_of_ours_that_has_gone_before_it_was_ever_answered_leaves_no_queue(
    broker, queue, peer, counting
):
    with serving(broker.url, queue, counting.atom) as node:
        with AmqpConductor(broker.url, queue, id="gone") as gone:
            gone.send(Electron("count", {"number": 1, "wait": True}))
            wait_until(lambda: counting.executed == [1], "it is executed")
        counting.gate.set()
        dead = peer.get(f"{queue}.dead")
        assert "its sender is gone" in dead.properties.headers["atomizer-reason"]
        wait_until(lambda: status(node).in_flight == 0, "nothing is left")
    assert gone.sender_id not in broker.ctl("list_queues", "name")


def test_a_sender_whose_name_no_queue_can_have_is_no_loop(node, peer, queue):
    peer.send({**peer.electron("echo"), "senderid": "amq.x"})
    dead = peer.get(f"{queue}.dead")
    assert "ACCESS_REFUSED" in dead.properties.headers["atomizer-reason"]
    assert peer.ask("echo", payload={"x": 1})["result"] == 1
    assert status(node).reconnects == 0


def test_a_sender_that_is_the_work_queue_is_no_loop(node, peer, queue):
    peer.send({**peer.electron("echo", payload={"x": {"senderid": queue}}), "senderid": queue})
    dead = peer.get(f"{queue}.dead")
    assert json.loads(dead.body)["result"] == {"senderid": queue}
    assert peer.ask("echo", payload={"x": 1})["result"] == 1


def test_a_sender_that_is_the_queue_of_the_dead_is_answered_there(node, peer, queue):
    electron_id = peer.send({**peer.electron("echo"), "senderid": f"{queue}.dead"})
    assert json.loads(peer.get(f"{queue}.dead").body)["electronId"] == electron_id


# -- once -----------------------------------------------------------------------------------------


def test_the_same_id_of_two_senders_is_two_electrons(broker, queue, peer, counting):
    with Peer(broker.url, queue) as other, serving(broker.url, queue, counting.atom):
        for number, sender in enumerate((peer, other)):
            sender.send({"senderid": sender.sender, "id": "same", "atomid": "count",
                         "payload": {"number": number}})  # fmt: skip
        assert peer.replies(1)[0]["result"] == 0
        assert other.replies(1)[0]["result"] == 1
    assert sorted(counting.executed) == [0, 1]


def test_the_same_message_again_is_answered_but_not_executed_again(broker, queue, peer, counting):
    with serving(broker.url, queue, counting.atom) as node:
        electron = peer.electron("count", payload={"number": 1})
        peer.send(electron)
        first = peer.replies(1)
        peer.send(electron)
        assert peer.replies(1) == first
        waiting = peer.electron("count", payload={"number": 2, "wait": True})
        peer.send(waiting)
        peer.send(waiting)
        wait_until(lambda: status(node).repeated == 2, "it came twice")
        counting.gate.set()
        assert peer.replies(1)[0]["result"] == 2
        peer.ask("count", payload={"number": 3})
    assert counting.executed == [1, 2, 3]


def close_connections(broker):
    """Close all connections but those of peers, as an operator would."""
    listed = broker.ctl("list_connections", "pid", "client_properties")
    for line in listed.splitlines():
        if "atomizer_dask" in line:
            broker.ctl("close_connection", line.split("\t")[0], "a test")


def cut_socket(node):
    node.conductors["amqp"]._connection._connection._streams.transport._socket._sock.shutdown(2)


@pytest.mark.parametrize("how", ["socket", "operator"])
def test_what_comes_again_after_a_cut_is_not_executed_again(broker, queue, peer, counting, how):
    with serving(broker.url, queue, counting.atom, threads=4) as node:
        for number in range(8):
            peer.send(peer.electron("count", payload={"number": number, "wait": True}))
        wait_until(lambda: len(counting.executed) == 4, "four are begun")
        cut_socket(node) if how == "socket" else close_connections(broker)
        wait_until(lambda: status(node).reconnects == 1, "it is there again")
        wait_until(lambda: status(node).repeated >= 8, "they came again")
        counting.gate.set()
        assert sorted(reply["result"] for reply in peer.replies(8)) == list(range(8))
        wait_until(lambda: status(node).in_flight == 0, "nothing is left")
        assert peer.ask("count", payload={"number": 8})["result"] == 8
        assert peer.depth(queue) == 0
    assert sorted(counting.executed) == list(range(9))


def test_an_error_that_comes_up_while_it_takes_leave_of_the_broker_is_told_later(
    broker, queue, peer
):
    with AmqpConductor(broker.url, queue) as conductor:
        peer.send(peer.electron("any"))
        electrons = conductor.receive()
        failed = Failure("exception", "ValueError", "not now").properties(next(electrons))

        def answer_while_leaving():
            conductor._connection._close_connection(
                "a test: as where the broker has closed a channel"
            )
            conductor._consumer.complete(failed)
            conductor._flush()

        conductor._connection.ask(answer_while_leaving)
        (reply,) = peer.replies(1)
        assert told(reply) == "not now"
        assert conductor.join(SECONDS)
        assert conductor.status().in_flight == 0


def test_replies_that_a_cut_kept_from_going_out_go_out_later(broker, queue, peer, counting):
    with serving(broker.url, queue, counting.atom, threads=8) as node:
        for number in range(8):
            peer.send(peer.electron("count", payload={"number": number, "wait": True}))
        wait_until(lambda: len(counting.executed) == 8, "they are begun")
        counting.gate.set()
        cut_socket(node)
        found = {}
        while len(found) < 8:  # some may come twice
            found.update((reply["electronId"], reply["result"]) for reply in peer.replies(1))
        assert sorted(found.values()) == list(range(8))
    assert sorted(counting.executed) == list(range(8))


def test_a_restart_of_the_broker_executes_nothing_again(own_broker, counting):
    sender = str(uuid.uuid4())
    with serving(own_broker.url, "work", counting.atom) as node:
        send_lasting(own_broker.url, "work", sender, 6)
        wait_until(lambda: len(counting.executed) == 2, "two are begun")
        own_broker.restart()
        wait_until(lambda: status(node).reconnects == 1, "it is there again")
        counting.gate.set()
        wait_until(lambda: status(node).answered == 6, "all are answered")
        with Peer(own_broker.url, "work") as peer:
            replies = set()
            while len(replies) < 6:  # what is delivered again is answered again, from memory
                replies.add(json.loads(peer.get(sender).body)["result"])
            wait_until(lambda: messages(own_broker, "work") == 0, "all are acknowledged")
    assert replies == set(range(6))
    assert sorted(counting.executed) == list(range(6))


def send_lasting(url, queue, sender, number):
    """Send electrons that outlive the broker's process, from a sender whose queue does too."""
    import pika

    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for name in (queue, sender):
            channel.queue_declare(name, durable=True)
        for n in range(number):
            electron = {"senderid": sender, "id": f"e{n}", "atomid": "count",
                        "payload": {"number": n, "wait": True}}  # fmt: skip
            lasting = pika.BasicProperties(delivery_mode=2)
            channel.basic_publish("", queue, json.dumps(electron).encode(), lasting)


def test_killing_a_node_loses_nothing(broker, queue, peer, tmp_path):
    executed = tmp_path / "executed"
    executed.touch()

    def start():
        node = subprocess.Popen(
            [sys.executable, "-c", NODE, broker.url, queue, str(executed)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert node.stdout.readline() == "ready\n"
        return node

    node = start()
    for number in range(60):
        peer.send(peer.electron("slow", payload={"number": number, "wait": 0.02}))
    answered = [reply["result"] for reply in peer.replies(15)]
    node.kill()
    node.communicate()
    node = start()
    try:
        while len(set(answered)) < 60:
            answered += [reply["result"] for reply in peer.replies(1)]
    finally:
        node.kill()
        node.communicate()
    counts = [executed.read_text().split().count(str(number)) for number in range(60)]
    assert max(counts) <= 2
    assert max(answered.count(number) for number in range(60)) <= 2


def test_nothing_is_acknowledged_before_the_reply_is_confirmed(broker, queue, peer, counting):
    with serving(broker.url, queue, counting.atom) as node:
        connection = node.conductors["amqp"]._connection
        peer.ask("count", payload={"number": 0})
        outgoing = connection.outgoing
        connection.ask(lambda: setattr(outgoing, "_can_send", lambda: False))  # replies stay here
        peer.send(peer.electron("count", payload={"number": 1}))
        wait_until(lambda: counting.executed == [0, 1], "it is executed")
        wait_until(lambda: len(outgoing) == 1, "its reply waits")
        assert messages(broker, queue) == 1
        connection.ask(lambda: setattr(outgoing, "_can_send", connection._can_send))
        connection.call(outgoing.drain)
        assert peer.replies(1)[0]["result"] == 1
        wait_until(lambda: messages(broker, queue) == 0, "it is acknowledged")


# -- spawners -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spawners", "threads", "limit"), [(2, 1, 10_000), (2, 1, 1), (50, 2, 10_000)]
)
def test_spawners_that_wait_do_not_block_each_other(broker, queue, peer, spawners, threads, limit):
    with serving(broker.url, queue, MonteCarlo, Toss, threads=threads, max_in_flight=limit) as node:
        for _ in range(spawners):
            peer.send(peer.electron(MONTE_CARLO, payload={"tosses": 20}))
        for reply in peer.replies(spawners):
            assert reply["result"]["tosses"] == 20
            assert reply["result"]["errors"] == 0
        assert status(node).sent == 20 * spawners


class Tree(Atom):
    id = "tree"

    def process(self, context, conductor, electron):
        if not electron.payload:
            return 1
        futures = [conductor.send(Electron("tree", electron.payload - 1)) for _ in range(2)]
        return sum(future.result().value() for future in futures)


def test_spawners_that_send_to_themselves_do_not_block_each_other(broker, queue, peer):
    with serving(broker.url, queue, Tree):
        assert peer.ask("tree", payload=5)["result"] == 32


def test_a_go_agent_beside_it_takes_its_share(broker, queue, peer):
    with serving(broker.url, queue, MonteCarlo, Toss), GoAgent(broker.url, queue) as agent:
        for _ in range(6):
            peer.send(peer.electron(MONTE_CARLO, payload={"tosses": 200}))
        for reply in peer.replies(6):
            assert reply["result"]["tosses"] == 200
            assert reply["result"]["errors"] == 0
            assert 2 < reply["result"]["pi"] <= 4
    assert agent.executed


# -- receiving by hand, and not -------------------------------------------------------------------


def test_receives_and_completes_by_hand(broker, queue, peer):
    conductor = AmqpConductor(broker.url, queue)
    for number in range(5):
        peer.send(peer.electron("by hand", payload=number))
    for electron in conductor.receive():
        now = datetime.now(UTC)
        conductor.complete(
            Properties(electron.id, electron.atom_id, now, now, result=electron.payload + 10)
        )
        if electron.payload == 4:
            break
    assert [reply["result"] for reply in peer.replies(5)] == [10, 11, 12, 13, 14]
    with pytest.raises(ConductorError, match="no electron of this id"):
        conductor.complete(Properties("unknown", "by hand", now, now))
    conductor.close()
    assert peer.depth(queue) == 0


def test_receives_one_and_leaves_the_others(broker, queue, peer):
    conductor = AmqpConductor(broker.url, queue)
    for number in range(4):
        peer.send(peer.electron("by hand", payload=number))
    for _ in range(2):
        electron = next(conductor.receive())
        now = datetime.now(UTC)
        conductor.complete(Properties(electron.id, electron.atom_id, now, now, result=1))
    peer.replies(2)
    wait_until(lambda: peer.depth(queue) == 2, "two are there for others")
    assert conductor.join(SECONDS)
    conductor.close()


def test_what_arrives_while_it_stops_receiving_goes_back(broker, queue, peer):
    conductor = AmqpConductor(broker.url, queue)
    for attempt in range(5):
        for number in range(1000):
            peer.send(peer.electron("by hand", payload=number))
        taken = 0
        for electron in conductor.receive():
            now = datetime.now(UTC)
            conductor.complete(Properties(electron.id, electron.atom_id, now, now))
            taken += 1
            if taken == 300:
                conductor.stop_receiving()  # what is on its way now arrives later
        assert conductor.join(SECONDS), f"it has {conductor.status().in_flight} left, {attempt=}"
        peer.replies(taken)
        wait_until(lambda n=taken: peer.depth(queue) == 1000 - n, "the rest is there for others")
        peer._channel.queue_purge(queue)
    assert conductor.status().reconnects == 0
    conductor.close()


def test_only_one_receives(broker, queue, peer):
    conductor = AmqpConductor(broker.url, queue)
    peer.send(peer.electron("by hand"))
    receiving = conductor.receive()
    electron = next(receiving)
    with pytest.raises(ConductorError, match="somebody receives already"):
        next(conductor.receive())
    conductor.give_back(electron.id)
    assert next(receiving).id == electron.id
    conductor.close()
    assert list(receiving) == []
    wait_until(lambda: peer.depth(queue) == 1, "it is there for others")


def test_times_without_a_zone_are_answered_with_the_reason(broker, queue, peer):
    conductor = AmqpConductor(broker.url, queue)
    peer.send(peer.electron("by hand"))
    electron = next(conductor.receive())
    naive = datetime.now()
    conductor.complete(Properties(electron.id, electron.atom_id, naive, naive))
    assert "time zone" in told(peer.replies(1)[0])
    conductor.close()


def test_an_atomizer_without_atoms_takes_nothing_until_it_has_one(broker, queue, peer, monkeypatch):
    monkeypatch.setattr(registered, "atoms", {})  # those of the application, for one
    with serving(broker.url, queue) as node:
        electron_id = peer.send(peer.electron("echo", payload={"x": 1}))
        with GoAgent(broker.url, queue):  # takes it, and knows no such atom: nobody answers
            wait_until(lambda: peer.depth(queue) == 0, "the agent took it")
        electron_id = peer.send(peer.electron("echo", payload={"x": 2}))
        assert status(node).received == 0
        node.register(echo)
        assert peer.replies(1)[0]["electronId"] == electron_id


def test_one_that_does_not_serve_takes_nothing(broker, queue, peer):
    with serving(broker.url, queue, echo, serve=False), serving(broker.url, queue, echo) as other:
        for number in range(20):
            peer.send(peer.electron("echo", payload={"x": number}))
        peer.replies(20)
        wait_until(lambda: status(other).answered == 20, "the other has answered them all")


# -- what happens to queues -----------------------------------------------------------------------


def test_goes_on_where_the_queue_is_deleted_under_it(node, peer, broker, queue):
    assert peer.ask("echo", payload={"x": 1})["result"] == 1
    for number in range(3):
        broker.delete(queue, f"{queue}.dead")
        wait_until(lambda n=number: exists(peer, queue), "it is declared again")
        assert peer.ask("echo", payload={"x": number})["result"] == number
    peer.send(b"garbage")
    assert peer.get(f"{queue}.dead").body == b"garbage"
    assert status(node).reconnects == 0


def exists(peer, name):
    import pika.exceptions

    try:
        peer.depth(name)
    except pika.exceptions.ChannelClosedByBroker:
        return False
    return True


@pytest.mark.parametrize("arguments", [{"x-queue-type": "quorum"}, {"x-max-length": 10_000}])
def test_serves_a_queue_that_others_declared_otherwise(broker, peer, arguments):
    name = f"other-{uuid.uuid4()}"
    declare(peer, name, durable=True, arguments=arguments)
    with serving(broker.url, name, echo) as node:
        electron = peer.electron("echo", payload={"x": 1})
        peer._channel.basic_publish("", name, json.dumps(electron).encode())
        assert peer.replies(1)[0]["result"] == 1
        assert status(node).reconnects == 0
    broker.delete(name, f"{name}.dead")


@pytest.mark.parametrize("memory_first", [True, False])
def test_closing_returns_what_is_not_answered(broker, queue, peer, counting, memory_first, caplog):
    conductor = AmqpConductor(broker.url, queue)
    both = [MemoryConductor(2), conductor]
    atomizer = Atomizer(*(both if memory_first else reversed(both)), counting.atom).exec()
    for number in range(10):
        peer.send(peer.electron("count", payload={"number": number, "wait": True}))
    wait_until(lambda: len(counting.executed) == 2, "two are begun")
    atomizer.close()
    wait_until(lambda: peer.depth(queue) == 10, "all are there again")
    counting.gate.set()
    assert "exception calling callback" not in caplog.text


# -- anything at all ------------------------------------------------------------------------------


def mutated(source, rng):
    body = bytearray(source)
    for _ in range(rng.randint(1, 6)):
        where = rng.randrange(len(body)) if body else 0
        what = rng.random()
        if what < 0.35 and body:
            body[where] = rng.randrange(256)
        elif what < 0.55:
            body[where:where] = rng.choice(
                [b'"', b"{", b"}", b"\\", b"null", b"1e999", b"[" * 200, b"\\ud800", b"\x00", b","]
            )
        elif what < 0.75:
            del body[where : where + rng.randint(1, 12)]
        elif what < 0.9:
            body += body[where : where + 30]
        else:
            del body[where:]
    return bytes(body)


def test_properties_that_nobody_can_read_stop_no_node(node, peer, queue):
    from pika import BasicProperties

    class Unreadable(BasicProperties):
        def encode(self):  # a header that is a date which Python has not
            table = b"\x04whenT" + (2**62).to_bytes(8)
            return [b"\x20\x00", len(table).to_bytes(4) + table]

    body = FROM_AGENT.format(peer.sender, "e1").encode()
    peer._channel.basic_publish("", queue, body, Unreadable())
    (reply,) = peer.replies(1)
    assert (reply["electronId"], "error" in reply) == ("e1", False)
    assert status(node).reconnects == 0


def test_no_message_stops_a_node(broker, queue, peer):
    rng = random.Random(7)
    forms = [FROM_CONSOLE, FROM_AGENT, IN_BASE64]
    with serving(broker.url, queue, MonteCarlo, Toss, echo) as node:
        for number in range(3000):
            source = forms[number % 3].replace('":10', '":1').replace("MDAw", "")
            peer.send(mutated(source.format(peer.sender, uuid.UUID(int=number)).encode(), rng))
        assert peer.ask("echo", payload={"x": 1})["result"] == 1
        wait_until(lambda: status(node).in_flight == 0, "all are answered")
        wait_until(lambda: messages(broker, queue) == 0, "all are acknowledged")
        assert status(node).reconnects == 0
        assert status(node).dead > 100
        assert status(node).answered > 500


def messages(broker, queue):
    """Return how many messages are in a queue, or were sent to somebody and not acknowledged."""
    for line in broker.ctl("list_queues", "name", "messages").splitlines():
        name, _, count = line.partition("\t")
        if name == queue:
            return int(count)
    raise AssertionError(f"no queue {queue}")
