"""The AMQP conductor as who sends with it sees it, and beside other conductors."""

import json
import os
import pickle
import subprocess
import sys
import threading
from contextlib import contextmanager
from time import sleep

import pytest
from patience import wait_until
from peers import TOSS, GoAgent, Peer

from atomizer_dask import (
    AmqpConductor,
    Atomizer,
    ConductorError,
    Electron,
    ElectronError,
    InvalidPayloadError,
    MemoryConductor,
    atom,
)

SECONDS = 30  # until it is given up to wait for what should happen at once
amqp = pytest.mark.amqp


@atom(id="double")
def double(x):
    return 2 * x


@pytest.fixture
def sender(broker, queue):
    """A conductor that sends."""
    conductor = AmqpConductor(broker.url, queue, id="sender")
    yield conductor
    conductor.close()


@contextmanager
def serving(url, queue, *atoms, threads=2, **options):
    conductor = AmqpConductor(url, queue, **options)
    atomizer = Atomizer(MemoryConductor(threads), conductor, *atoms).exec()
    try:
        yield atomizer
    finally:
        atomizer.close()


def queues(broker):
    return set(broker.ctl("list_queues", "name").splitlines()[1:])


# -- what makes no sense --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"on_failure": "retry"}, {"backoff": 1.0}, {"priority": 3}], ids=str
)
@amqp
def test_options_that_do_not_travel_are_refused(options, sender):
    with pytest.raises(TypeError, match=f"{next(iter(options))}.* of x would not travel"):
        sender.send(Electron("double", {"x": 1}, id="x", **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue": ""}, "queue must be a name"),
        ({"queue": "q" * 251}, "queue must be a name"),
        ({"queue": "ü" * 126}, "queue must be a name"),
        ({"queue": 5}, "queue must be a name"),
        ({"queue": "amq.work"}, "names that begin with amq"),
        ({"max_in_flight": 0}, "max_in_flight must be"),
        ({"max_in_flight": True}, "max_in_flight must be"),
        ({"max_in_flight": 65_536}, "at most 65535"),
        ({"max_bytes": -1}, "max_bytes must be"),
        ({"max_depth": 2.5}, "max_depth must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AmqpConductor("amqp://127.0.0.1:1/", **options)


# -- sending --------------------------------------------------------------------------------------


@amqp
def test_sends_to_a_go_agent(broker, queue, sender):
    with GoAgent(broker.url, queue) as agent:
        electron = Electron(TOSS)
        properties = sender.send(electron).result(SECONDS)
        assert properties.electron_id == electron.id
        assert properties.value()["value"] in (0, 1)
        assert agent.executed == [electron.id]


@amqp
def test_what_failed_elsewhere_is_told_as_if_it_had_failed_here(broker, queue, sender):
    @atom(id="breaks")
    def breaks():
        raise KeyError("x")

    with serving(broker.url, queue, breaks, double):
        failed = sender.send(Electron("breaks")).result(SECONDS)
        assert (failed.error.kind, failed.error.type) == ("exception", "KeyError")
        assert "raise KeyError" in failed.error.traceback
        with pytest.raises(ElectronError, match="KeyError"):
            failed.value()
        unknown = sender.send(Electron("missing")).result(SECONDS)
        assert unknown.error.kind == "unknown_atom"
        assert sender.send(Electron("double", {"x": 4})).result(SECONDS).value() == 8


@amqp
def test_what_cannot_be_sent_is_refused_at_once(sender):
    with pytest.raises(InvalidPayloadError):
        sender.send(Electron("double", {"x": object()}))
    with pytest.raises(TypeError, match="expected an Electron"):
        sender.send("double")
    electron = Electron("double", {"x": 1})
    first = sender.send(electron)
    with pytest.raises(ConductorError, match="under way already"):
        sender.send(electron)
    assert not first.done()


@amqp
def test_many_threads_may_send_at_once(broker, queue, sender):
    with serving(broker.url, queue, double):
        found = {}

        def send(start):
            futures = {
                n: sender.send(Electron("double", {"x": n})) for n in range(start, start + 200)
            }
            found.update((n, future.result(SECONDS).value()) for n, future in futures.items())

        threads = [threading.Thread(target=send, args=(start,)) for start in range(0, 1000, 200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * SECONDS)
    assert found == {n: 2 * n for n in range(1000)}


@amqp
def test_a_cancelled_electron_that_is_not_out_never_goes_out(own_broker):
    with AmqpClosing(own_broker.url, "work") as conductor:
        own_broker.stop()
        wait_until(lambda: conductor.state == "reconnecting", "it noticed")
        cancelled, kept = (conductor.send(Electron("double", {"x": n})) for n in (1, 2))
        assert cancelled.cancel()
        own_broker.start()
        with serving(own_broker.url, "work", double) as node:
            assert kept.result(SECONDS).value() == 4
            assert node.conductors["amqp"].status().received == 1


class AmqpClosing:
    """A conductor in a `with`."""

    def __init__(self, *given, **options):
        self._conductor = AmqpConductor(*given, **options)

    def __enter__(self):
        return self._conductor

    def __exit__(self, *_):
        self._conductor.close()


@amqp
def test_garbage_in_the_reply_queue_is_told_and_keeps_no_reply_back(broker, queue, sender):
    with serving(broker.url, queue, double), Peer(broker.url, queue) as peer:
        sender.send(Electron("double", {"x": 1})).result(SECONDS)
        for number in range(5200):  # more than may be unacknowledged
            peer._channel.basic_publish("", sender.sender_id, b"garbage %d" % number)
        peer._channel.queue_declare(queue, passive=True)  # when this is answered, they are there
        assert sender.send(Electron("double", {"x": 3})).result(SECONDS).value() == 6


@amqp
@pytest.mark.parametrize(
    "reply",
    [
        b'{"electronId":"%s","atomId":"some.Atom","starttime":"noon","endtime":"noon","result":1}',
        b'{"electronId":"%s","atomId":"some.Atom","result":',
    ],
    ids=["times", "cut off"],
)
def test_an_answer_that_cannot_be_read_is_a_failure_and_no_silence(broker, queue, sender, reply):
    future = sender.send(Electron("some.Atom", id="e1"))
    with Peer(broker.url, sender.sender_id) as peer:
        peer.send(reply % b"e1")
        error = future.result(SECONDS).error
    assert (error.kind, error.event.electron_id) == ("rejected", "e1")
    assert "cannot be read" in error.message


@amqp
def test_goes_on_where_its_reply_queue_is_deleted(broker, queue, sender):
    gate = threading.Event()

    @atom(id="gated")
    def gated(x):
        gate.wait(SECONDS)
        return x

    with serving(broker.url, queue, gated, double, threads=8) as node:
        assert sender.send(Electron("double", {"x": 1})).result(SECONDS).value() == 2
        futures = [sender.send(Electron("gated", {"x": n})) for n in range(5)]
        wait_until(lambda: node.conductors["amqp"].status().in_flight == 5, "they are in hand")
        broker.delete(sender.sender_id)
        wait_until(lambda: sender.sender_id in queues(broker), "it is declared again")
        gate.set()
        assert [future.result(SECONDS).value() for future in futures] == list(range(5))
        assert sender.status().reconnects == 0


@amqp
def test_two_conductors_have_replies_of_their_own(broker, queue):
    with (
        serving(broker.url, queue, double),
        AmqpClosing(broker.url, queue) as one,
        AmqpClosing(broker.url, queue) as other,
    ):
        futures = [each.send(Electron("double", {"x": n}, id=f"e{n}"))
                   for n in range(50) for each in (one, other)]  # fmt: skip
        assert [f.result(SECONDS).value() for f in futures] == [
            2 * n for n in range(50) for _ in "ab"
        ]
        assert (one.status().replies, other.status().replies) == (50, 50)


# -- brokers that come and go ---------------------------------------------------------------------


@amqp
@pytest.mark.timeout(180)
def test_every_electron_is_answered_though_the_broker_is_restarted_and_killed(own_broker):
    executed, finished = [], []

    @atom(id="square")
    def square(x):
        executed.append(x)
        sleep(0.001)
        return x * x

    with serving(own_broker.url, "work", square), AmqpClosing(own_broker.url, "work") as conductor:
        futures = []
        for x in range(2000):
            future = conductor.send(Electron("square", {"x": x}))
            future.add_done_callback(lambda _, x=x: finished.append(x))
            futures.append(future)
        wait_until(lambda: len(finished) > 100, "some are answered")
        own_broker.restart()
        wait_until(lambda: len(finished) > 600, "some more are answered")
        own_broker.kill()
        own_broker.start()
        assert [f.result(2 * SECONDS).value() for f in futures] == [x * x for x in range(2000)]
    assert sorted(finished) == list(range(2000))  # each once
    assert sorted(executed) == list(range(2000))


@amqp
def test_a_broker_that_is_away_costs_only_its_own_conductor(own_broker):
    conductor = AmqpConductor(own_broker.url, "work")
    with Atomizer(MemoryConductor(2), conductor, double) as atomizer:
        errors, events = atomizer.errors(), atomizer.events()
        own_broker.stop()
        error = next(iter(errors))
        assert isinstance(error, ConductorError)
        assert "is gone" in str(error)
        assert error.event.conductor_id == "amqp"
        frame = atomizer.map(double, {"x": range(100)}).wait(SECONDS).to_frame()
        assert frame["result"].sum() == 9900
        assert atomizer.send(double, {"x": 4}).result(SECONDS).value() == 8
        own_broker.start()
        wait_until(lambda: conductor.state == "connected", "it is there again")
        with AmqpClosing(own_broker.url, "work") as sender:
            assert sender.send(Electron("double", {"x": 5})).result(SECONDS).value() == 10
        told = []
        for event in events:
            told.append(str(event))
            if "again" in told[-1]:
                break
    assert any("is gone" in text for text in told)


@amqp
def test_an_atomizer_sends_over_amqp_where_it_has_nothing_else(broker, queue):
    only_sends = AmqpConductor(broker.url, queue, serve=False)
    with serving(broker.url, queue, double), Atomizer(only_sends) as atomizer:
        assert atomizer.send("double", {"x": 6}).result(SECONDS).value() == 12
        with pytest.raises(ConductorError, match="no conductor that can run a sweep"):
            atomizer.map(double, {"x": [1]})


@amqp
@pytest.mark.dask
def test_dask_executes_what_comes_over_amqp_beside_a_sweep(broker, queue, dask, sender):
    with Atomizer(dask, AmqpConductor(broker.url, queue), double) as atomizer:
        run = atomizer.map(double, {"x": range(1000)})
        futures = [sender.send(Electron("double", {"x": n})) for n in range(500)]
        assert [f.result(SECONDS).value() for f in futures] == [2 * n for n in range(500)]
        assert run.wait(SECONDS).to_frame()["result"].sum() == 999_000


# -- closing --------------------------------------------------------------------------------------


@amqp
def test_closing_leaves_nothing_of_ours(own_broker):
    with serving(own_broker.url, "work", double), AmqpClosing(own_broker.url, "work") as conductor:
        conductor.send(Electron("double", {"x": 1})).result(SECONDS)
        assert conductor.sender_id in queues(own_broker)
    assert queues(own_broker) == {"work", "work.dead"}
    assert own_broker.ctl("list_connections", "pid").splitlines()[1:] == []


@amqp
def test_closing_ends_what_is_unanswered_with_an_error(broker, queue):
    conductor = AmqpConductor(broker.url, queue)
    future = conductor.send(Electron("double", {"x": 1}))
    conductor.close()
    with pytest.raises(ConductorError, match="closed"):
        future.result(SECONDS)
    with Peer(broker.url, queue) as peer:  # it was sent all the same, before
        assert json.loads(peer.get(queue).body)["atomid"] == "double"


@amqp
def test_what_is_sent_while_it_closes_does_not_wait_for_ever(broker, queue, monkeypatch):
    conductor = AmqpConductor(broker.url, queue)
    checked = conductor.check_open

    def check_and_be_overtaken():
        checked()
        monkeypatch.undo()
        conductor.close()

    monkeypatch.setattr(conductor, "check_open", check_and_be_overtaken)
    with pytest.raises(ConductorError, match="closed"):
        conductor.send(Electron("double", {"x": 1})).result(SECONDS)


@amqp
def test_a_program_that_does_not_close_it_ends_and_leaves_nothing(broker, queue):
    program = (
        "import sys; from atomizer_dask import *\n"
        "conductor = AmqpConductor(sys.argv[1], sys.argv[2])\n"
        "print(conductor.send(Electron('double', {'x': 4})).result(30).value())\n"
        "print(conductor.sender_id)\n"
    )
    with serving(broker.url, queue, double):
        done = subprocess.run(
            [sys.executable, "-c", program, broker.url, queue],
            capture_output=True, text=True, timeout=2 * SECONDS, check=True,
        )  # fmt: skip
        result, sender_id = done.stdout.split()
        assert result == "8"
        assert done.stderr == ""
        assert not [name for name in queues(broker) if name.startswith(sender_id)]


@amqp
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_a_forked_process_is_told_to_make_its_own_and_harms_not_that_of_its_parent(broker, queue):
    program = (
        "import os, sys; from atomizer_dask import *\n"
        "conductor = AmqpConductor(sys.argv[1], sys.argv[2])\n"
        "ask = lambda: print(conductor.send(Electron('double', {'x': 4})).result(30).value())\n"
        "ask()\n"
        "if not (child := os.fork()):\n"
        "    try: ask()\n"
        "    except ConductorError as error: print(error)\n"
        "    sys.stdout.flush()\n"
        "    sys.exit()\n"
        "os.waitpid(child, 0)\n"
        "ask()\n"
    )
    with serving(broker.url, queue, double):
        done = subprocess.run(
            [sys.executable, "-u", "-W", "ignore", "-c", program, broker.url, queue],
            capture_output=True, text=True, timeout=2 * SECONDS, check=True,
        )  # fmt: skip
    before, told, after = done.stdout.splitlines()
    assert (before, after) == ("8", "8")
    assert "make another" in told


# -- what it shows, and what travels --------------------------------------------------------------


@amqp
def test_says_how_it_is(broker, queue, sender):
    with serving(broker.url, queue, double) as node:
        for n in range(3):
            sender.send(Electron("double", {"x": n})).result(SECONDS)
        sender.send(Electron("missing")).result(SECONDS)
        wait_until(lambda: node.conductors["amqp"].status().answered == 4, "confirmed")
        sent, served = sender.status(), node.conductors["amqp"].status()
        shown = node.conductors["amqp"]._repr_html_()
    assert (sent.sent, sent.replies, sent.reconnects) == (4, 4, 0)
    assert (served.received, served.answered, served.failed, served.in_flight) == (4, 4, 1, 0)
    assert queue in shown
    assert "4 answered" in shown
    assert "guest" not in shown + repr(sender) + str(sent)


@amqp
def test_a_route_leads_back_from_another_process_and_tells_no_secret(broker, queue, sender):
    with serving(broker.url, queue, double):
        route = pickle.loads(pickle.dumps(sender.route))
        assert route.conductor() is sender
        assert "guest" not in repr(route)
        sender.close()
        another = route.conductor()
        assert another is route.conductor()
        assert another.send(Electron("double", {"x": 2})).result(SECONDS).value() == 4
        another.close()
