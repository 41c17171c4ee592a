"""The RabbitMQ of the tests, and the peers that tests talk to there."""

import base64
import json
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import broker as rabbitmq
import certificates as x509
import pytest
from peers import MONTE_CARLO, TOSS, GoAgent, Peer

pytestmark = pytest.mark.amqp

SECONDS = 30
WRONG = {
    "expired": "certificate has expired",
    "elsewhere": "IP address mismatch",
    "untrusted": "unable to get local issuer certificate|self.signed certificate",
}
# Another interpreter that starts a broker and tells where it is, as one that tests run in.
STARTS = """
import sys, time
from pathlib import Path
from broker import Broker
broker = Broker(Path(sys.argv[1])).start()
print(broker.url, flush=True)
time.sleep(600)
"""


def connect(url):
    import pika

    return pika.BlockingConnection(pika.URLParameters(url))


def trusting(authority):
    return ssl.create_default_context(cafile=authority)


def send_persistent(url, queue, body):
    import pika

    with connect(url) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2))


def wait_until_closed(url):
    """Wait until nobody takes connections there."""
    port = int(url.rpartition(":")[2].rstrip("/"))
    until = monotonic() + SECONDS
    while monotonic() < until:
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)):
                return
        sleep(0.05)
    raise TimeoutError(f"{url} still takes connections after {SECONDS} s")


def test_takes_connections_once_started(broker):
    with connect(broker.url) as connection:
        assert connection.is_open


def test_is_after_a_restart_what_it_was(own_broker):
    send_persistent(own_broker.url, "kept", b"kept")
    url = own_broker.add_user("someone", "-f:/@ %?")
    own_broker.restart()
    with Peer(url, "kept") as peer:
        assert peer.get("kept").body == b"kept"


def test_keeps_persistent_messages_when_it_is_killed(own_broker):
    send_persistent(own_broker.url, "kept", b"kept")
    # The message is on disk once it is confirmed; that there is such a queue, a moment later.
    assert own_broker.ctl("eval", "mnesia:sync_log().").strip() == "ok"
    own_broker.kill()
    wait_until_closed(own_broker.url)
    own_broker.start()
    with Peer(own_broker.url, "kept") as peer:
        assert peer.get("kept").body == b"kept"


def test_two_brokers_know_nothing_of_each_other(broker, own_broker, queue):
    with Peer(broker.url, queue) as peer:
        peer.send(b"here")
        assert peer.depth(queue) == 1
        assert queue not in own_broker.ctl("list_queues", "name")
        own_broker.stop()
        own_broker.stop()
        wait_until_closed(own_broker.url)
        with pytest.raises(RuntimeError, match="does not run, start it first"):
            own_broker.ctl("status")
        assert peer.get(queue).body == b"here"


def test_ends_with_the_process_that_started_it(broker, tmp_path):
    starting = subprocess.Popen(
        [sys.executable, "-c", STARTS, str(tmp_path / "broker")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2] / "support",
    )
    with starting:
        url = starting.stdout.readline().strip()
        with connect(url) as connection:
            assert connection.is_open
        starting.send_signal(signal.SIGKILL)
        wait_until_closed(url)


def test_says_why_it_does_not_start(broker, tmp_path):
    other = rabbitmq.Broker(tmp_path / "broker")
    (other.folder / "rabbitmq.conf").write_text("no.such = setting\n")
    with pytest.raises(RuntimeError, match=r"(?s)RabbitMQ ends .*no\.such"):
        other.start()


def test_says_what_rabbitmqctl_complains_of(broker):
    with pytest.raises(RuntimeError, match=r"(?s)rabbitmqctl delete_user fails: .*nobody"):
        broker.ctl("delete_user", "nobody")


def test_encrypts_for_those_who_trust_its_authority(tls_broker, certificates):
    with Peer(tls_broker.tls_url, "work", tls=trusting(certificates.authority)) as peer:
        peer.send(b"secret")
        assert peer.get("work").body == b"secret"


def test_is_not_trusted_by_others(tls_broker, certificates):
    with pytest.raises(Exception, match=WRONG["untrusted"]):
        Peer(tls_broker.tls_url, "work", tls=trusting(certificates.stranger))


@pytest.mark.parametrize("wrong", WRONG)
def test_shows_wrong_certificates_for_a_while(tls_broker, certificates, wrong):
    trust = trusting(certificates.authority)
    shown = getattr(certificates, wrong)
    with tls_broker.showing(shown), pytest.raises(Exception, match=WRONG[wrong]):
        Peer(tls_broker.tls_url, "work", tls=trust)
    with Peer(tls_broker.tls_url, "work", tls=trust) as peer:
        assert peer.depth("work") == 0


@pytest.mark.parametrize(("module", "lacks"), [(rabbitmq, "pika"), (x509, "trustme")])
def test_missing_modules_are_told(monkeypatch, module, lacks):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == lacks else sys)
    assert lacks in module.missing()


def test_a_missing_server_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(rabbitmq, "SERVER", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "RabbitMQ" in rabbitmq.missing()


def test_a_peer_sends_its_bytes_as_the_go_console_does(broker, queue):
    with Peer(broker.url, queue) as peer:
        peer.send(b'{"bytes": as they are')
        body, properties, redelivered = peer.get(queue)
    assert (body, redelivered) == (b'{"bytes": as they are', False)
    said = {name: value for name, value in vars(properties).items() if value is not None}
    assert said == {"content_type": "application/json"}


def test_a_peer_takes_one_message_and_leaves_the_others(broker, queue):
    with Peer(broker.url, queue) as peer:
        for body in (b"1", b"2", b"3"):
            peer.send(body)
        taken = [peer.get(queue) for _ in range(3)]
        assert [message.body for message in taken] == [b"1", b"2", b"3"]
        assert not any(message.redelivered for message in taken)
        assert peer.depth(queue) == 0


def test_a_peer_gives_up_to_wait(broker, queue):
    with Peer(broker.url, queue) as peer:
        with pytest.raises(TimeoutError, match="no reply to"):
            peer.ask("nobody.Serves", timeout=0.1)
        peer.get(queue)
        with pytest.raises(TimeoutError, match=f"no message in {queue}"):
            peer.get(queue, timeout=0.1)


def test_the_model_of_the_agent_answers_as_captured(broker, queue):
    with GoAgent(broker.url, queue), Peer(broker.url, queue) as peer:
        reply = peer.ask(TOSS)
        assert list(reply) == ["electronId", "atomId", "starttime", "endtime", "result"]
        assert [len(reply[name]) for name in ("starttime", "endtime")] == [30, 30]
        assert reply["result"] in ({"value": 0}, {"value": 1})
        estimate = peer.ask(MONTE_CARLO, payload={"tosses": 1000})["result"]
        assert list(estimate) == ["in", "tosses", "errors", "pi"]
        assert estimate["pi"] == 4 * estimate["in"] / 1000
        assert (estimate["tosses"], estimate["errors"]) == (1000, 0)


def test_the_model_of_the_agent_reads_what_the_agent_does(broker, queue):
    encoded = base64.b64encode(b'{"tosses": 10}').decode()
    with GoAgent(broker.url, queue), Peer(broker.url, queue) as peer:
        assert peer.ask(MONTE_CARLO, payload=encoded)["result"]["tosses"] == 10
        electron = {"SenderID": peer.sender, "ID": "of mine", "AtomID": TOSS, "else": 1}
        peer.send(json.dumps(electron).encode())
        assert peer.replies(1)[0]["electronId"] == "of mine"


def test_errors_of_the_model_of_the_agent(broker, queue):
    with GoAgent(broker.url, queue), Peer(broker.url, queue) as peer:
        failed = peer.ask(MONTE_CARLO, payload={"tosses": 0})
        assert base64.b64decode(failed["error"]) == b"0 is not a valid toss"
        assert failed["result"] is None
        invalid = peer.ask("")
        event = json.loads(base64.b64decode(invalid["error"]))["event"]
        assert event["message"] == "invalid electron"
        assert event["electronID"] == invalid["electronId"]


def test_what_the_model_of_the_agent_never_answers(broker, queue):
    with GoAgent(broker.url, queue) as agent, Peer(broker.url, queue) as peer:
        peer.send(peer.electron("nobody.Serves"))
        peer.send(b"{")
        peer.send(peer.electron(TOSS, timeout="1s"))
        peer.send(peer.electron(TOSS, timeout=1))
        last = peer.send(peer.electron(TOSS))
        assert [reply["electronId"] for reply in peer.replies(1)] == [last]
        assert agent.executed[-1] == last
        assert peer.depth(queue) == 0
