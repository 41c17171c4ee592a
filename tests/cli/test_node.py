"""The command ``node``, as whoever sends it electrons and whoever operates it see it."""

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from click.testing import CliRunner
from noded import PI, SECONDS, Node
from patience import wait_until
from peers import MONTE_CARLO, TOSS, GoAgent, Peer

from atomizer_dask import AmqpConductor, Atomizer, DaskConductor, Electron, atom
from atomizer_dask.cli.commands import main
from atomizer_dask.montecarlopi import Toss

pytestmark = [pytest.mark.amqp, pytest.mark.dask]


@atom(id="theirs.published")
def published():
    return "theirs"


NAMED = (
    *("add", "squares", "drawn", "apart", "Count", "fail", "leave", "crash", "endless", "begin"),
    *("Parent", "ParentApart", *PI),
)


@pytest.fixture(scope="module")
def served(broker):
    """A node of two workers that serves many atoms, and its queue."""
    queue = f"node-{uuid.uuid4()}"
    with Node(broker.url, queue, *NAMED, options=["--workers", "2"]) as node:
        node.queue = queue
        yield node.serving()
        assert node.end() == 0
        assert node.events("ended")
    broker.delete(queue, f"{queue}.dead")


@pytest.fixture
def start(broker, queue):
    """Start nodes that serve the queue of a test; they end with it."""
    with nodes_of(broker.url, queue) as start:
        yield start


@contextmanager
def nodes_of(url, queue):
    nodes = []

    def start(*targets, workers=1, **more):
        options = [*more.pop("options", ()), *(["--workers", str(workers)] if workers else [])]
        nodes.append(Node(more.pop("url", url), queue, *targets, options=options, **more))
        return nodes[-1]

    try:
        yield start
    finally:
        for node in nodes:
            node.__exit__()


@pytest.fixture
def peer(broker, queue):
    """A peer that sends to the queue of a test."""
    with Peer(broker.url, queue) as peer:
        yield peer


@pytest.fixture
def ask(broker, served):
    """Ask the node of the module, and return the properties."""
    conductor = AmqpConductor(broker.url, served.queue, serve=False)

    def ask(atom_id, payload=None, **options):
        return conductor.send(Electron(atom_id, payload, **options)).result(SECONDS)

    yield ask
    conductor.close()


@contextmanager
def own_cluster():
    """Give the process of a cluster that a test may kill, and the address of its scheduler."""
    code = (
        "import sys\n"
        "from distributed import LocalCluster\n"
        "if __name__ == '__main__':\n"
        "    options = {'n_workers': 1, 'threads_per_worker': 1, 'processes': False}\n"
        "    cluster = LocalCluster(protocol='tcp', dashboard_address=None, **options)\n"
        "    print(cluster.scheduler_address, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:
        yield process, process.stdout.readline().strip()
        process.kill()


def alive(processes):
    """Return those of some processes that have not ended, whether or not anybody knows it."""
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def began(folder):
    """Return who has begun, each with the number of times."""
    return Counter(path.name.split("-")[1] for path in Path(folder).glob("began-*"))


# -- what is served ----------------------------------------------------------------------------


def test_functions_classes_and_vectorised_atoms_are_served(ask):
    assert ask("add", {"x": 1}).value() == 2
    assert ask("add", {"x": 1, "y": 5}).value() == 6
    assert ask("squares", {"x": 7}).value() == 49
    assert ask("parent", {"children": 5}).value() == 15


def test_an_atom_has_its_context_and_the_same_numbers_for_the_same_id(ask):
    first, again = (ask("drawn", id="the-same") for _ in range(2))
    assert first.value() == again.value()
    assert first.value()["id"] == "the-same"


def test_an_atom_of_its_own_process_runs_in_one(ask, served):
    value = ask("apart", {"x": 1}).value()
    assert value["pid"] not in {served.pid, *(worker.pid for worker in served.workers()[:1])}
    assert value["x"] == 1


def test_a_singleton_keeps_its_state_between_electrons(ask):
    seen = [ask("count").value() for _ in range(5)]
    assert seen == list(range(seen[0], seen[0] + 5))


@pytest.mark.parametrize(
    ("electron", "kind"),
    [
        (Electron("unnamed"), "unknown_atom"),  # its module registers it, but nobody named it
        (Electron("add", {"z": 1}), "invalid_payload"),
        (Electron("fail", {"x": 3}), "exception"),
        (Electron("leave"), "killed"),
        (Electron("crash"), "killed"),
        (Electron("endless", timeout=0.3), "timeout"),
    ],
    ids=lambda value: value.atom_id if isinstance(value, Electron) else "",
)
def test_what_fails_is_answered_with_its_kind_and_the_node_goes_on(ask, electron, kind):
    answer = ask(electron.atom_id, electron.payload, timeout=electron.timeout)
    assert answer.error.kind == kind
    assert ask("add", {"x": 1}).value() == 2


def test_an_answer_tells_nothing_of_where_the_node_is(broker, served):
    with Peer(broker.url, served.queue) as peer:
        reply = peer.ask("fail", payload={"x": 3})
    assert list(reply) == ["electronId", "atomId", "starttime", "endtime", "error", "result"]


def test_atoms_of_a_file_are_served_and_their_neighbours_are_not(start, peer, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from atomizer_dask import register\n"
        "def double(x):\n    return 2 * x\n"
        "def hidden():\n    return 1\n"
        "register(double, hidden)\n"
    )
    start(f"{tmp_path}/mine.py:double").serving()
    assert peer.ask("mine.double", payload={"x": 4})["result"] == 8
    for atom_id in ("mine.hidden", TOSS, MONTE_CARLO):
        reply = peer.ask(atom_id)
        assert "error" in reply
        assert reply["result"] is None


def test_atoms_that_others_published_on_the_scheduler_are_not_served(
    start, broker, queue, cluster, dask
):
    with Atomizer(dask) as other:
        other.register(published)
        assert other.send(published).result(SECONDS).value() == "theirs"
        node = start(
            "add", options=["--scheduler", cluster.scheduler_address], workers=None
        ).serving()
        sender = AmqpConductor(broker.url, queue, serve=False)
        answer = sender.send(Electron("theirs.published")).result(SECONDS)
        assert answer.error.kind == "unknown_atom"
        assert sender.send(Electron("add", {"x": 1})).result(SECONDS).value() == 2
        sender.close()
    assert node.end() == 0


# -- many ---------------------------------------------------------------------------------------


def test_ten_thousand_tosses_are_few_tasks_and_each_is_answered(broker, queue, cluster):
    dask = DaskConductor(cluster.scheduler_address)
    tasks, submit = [], dask.submit

    def counted(batch, post):
        tasks.append(batch.key)
        submit(batch, post)

    dask.submit = counted
    senders = [AmqpConductor(broker.url, queue, serve=False, id=f"sender-{n}") for n in range(4)]
    futures = [sender.send(Electron(Toss.id)) for _ in range(2500) for sender in senders]
    with Atomizer(dask, AmqpConductor(broker.url, queue), Toss) as atomizer:
        atomizer.exec()
        answers = [future.result(SECONDS) for future in futures]
        for sender in senders:
            sender.close()
        atomizer.close()
    assert {answer.value()["value"] for answer in answers} == {0, 1}
    assert len(answers) == 10_000
    assert len(tasks) < 150


@pytest.mark.parametrize(("spawners", "timeout"), [(2, None), (10, None), (3, "40s")])
def test_spawners_that_wait_for_the_queue_do_not_block_one_worker(
    start, broker, queue, spawners, timeout
):
    node = start(*PI, "Parent", "ParentApart", "add")
    sender = AmqpConductor(broker.url, queue, serve=False)
    node.serving()
    monte = [
        sender.send(Electron(MONTE_CARLO, {"tosses": 200}, timeout=timeout))
        for _ in range(spawners)
    ]
    apart = [sender.send(Electron("parent-apart", {"children": 9})) for _ in range(2)]
    assert [future.result(SECONDS).value()["tosses"] for future in monte] == [200] * spawners
    assert [future.result(SECONDS).value() for future in apart] == [45, 45]
    sender.close()
    assert node.end() == 0
    # The children went through the queue, each as an electron of its own.
    last = node.events("health")[-1]
    assert last["received"] == spawners * 201 + 2 * 10
    assert last["answered"] == last["received"]


# -- being told to end --------------------------------------------------------------------------


def test_told_to_end_it_answers_what_runs_and_returns_the_rest(start, peer, queue, tmp_path):
    node = start("begin", workers=2).serving()
    workers = node.workers()
    sent = [
        peer.send(peer.electron("begin", payload={"folder": str(tmp_path), "name": str(n)}))
        for n in range(40)
    ]
    wait_until(lambda: len(began(tmp_path)) >= 2, "begun")
    node.tell(signal.SIGTERM)
    node.wait_for("draining")
    # What has not begun comes back before what runs has ended: another node could have it.
    wait_until(lambda: peer.depth(queue) >= 36, "returned")
    (tmp_path / "gate").touch()
    assert node.wait() == 0
    left = peer.depth(queue)
    answers = peer.replies(len(sent) - left)
    assert 2 <= len(answers) <= 4
    assert {reply["result"] for reply in answers} == set(began(tmp_path))
    wait_until(lambda: not alive(workers), "gone")
    assert node.events("ended")


def test_what_runs_longer_than_the_grace_returns_to_the_queue(start, peer, queue, tmp_path):
    node = start("begin", options=["--grace", "0.5s"]).serving()
    workers = node.workers()
    payload = {"folder": str(tmp_path), "name": "long"}
    peer.send(peer.electron("begin", payload=payload))
    wait_until(lambda: began(tmp_path), "begun")
    assert node.end(signal.SIGINT) == 0
    assert peer.depth(queue) == 1
    assert node.wait_for("ended")["returned"] == 1
    wait_until(lambda: not alive(workers), "gone")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_twice_it_ends_at_once(start, peer, queue, tmp_path, number):
    node = start("begin", options=["--grace", "10m"]).serving()
    workers = node.workers()
    peer.send(peer.electron("begin", payload={"folder": str(tmp_path), "name": "long"}))
    wait_until(lambda: began(tmp_path), "begun")
    node.tell(number)
    node.wait_for("draining")
    assert node.insist(number) == 128 + number
    wait_until(lambda: peer.depth(queue) == 1, "returned by the broker")
    wait_until(lambda: not alive(workers), "gone")


@pytest.mark.parametrize("timeout", [None, 600 * 10**9], ids=["", "in a child process"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_ends_it_reaches_its_workers_too_and_what_runs_is_answered(
    start, peer, tmp_path, number, timeout
):
    node = start("begin", "leave").serving()
    assert peer.ask("leave")["error"]  # the worker that is there by now is not the first one
    payload = {"folder": str(tmp_path), "name": "one"}
    asked = peer.send(peer.electron("begin", payload=payload, timeout=timeout))
    wait_until(lambda: began(tmp_path), "begun")
    # As a service manager, a batch system or `timeout` does it: to each, and to all again.
    node.tell(number)
    node.tell(number, all_of_it=True)
    node.wait_for("draining")
    (tmp_path / "gate").touch()
    assert node.wait() == 0
    assert node.events("ended")[-1]["returned"] == 0, node.output
    (reply,) = peer.replies(1)
    assert (reply["electronId"], reply["result"]) == (asked, "one")


def test_told_to_end_before_it_serves_it_ends(start):
    node = start(*PI)
    wait_until(lambda: _handles_sigterm(node.pid), "heeding signals")
    assert node.end() == 0
    assert node.events("ended")


def _handles_sigterm(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return int(mask, 16) >> (signal.SIGTERM - 1) & 1


def test_told_to_end_among_ten_thousand_it_loses_and_doubles_none(start, broker, peer, queue):
    for _ in range(10_000):
        peer.send(peer.electron(TOSS))
    node = start(*PI, workers=2).serving()
    wait_until(lambda: peer.depth(queue) < 9_000, "under way")
    assert node.end() == 0
    left = peer.depth(queue)
    answered = [reply["electronId"] for reply in peer.replies(10_000 - left)]
    assert len(set(answered)) == len(answered)
    last = node.events("health")[-1]
    assert last["answered"] == len(answered)
    assert last["in_flight"] == 0
    start(*PI).serving()
    answered += [reply["electronId"] for reply in peer.replies(left)]
    assert len(set(answered)) == 10_000


# -- being killed -------------------------------------------------------------------------------


def test_nodes_killed_again_and_again_lose_nothing(start, broker, queue):
    sender = AmqpConductor(broker.url, queue, serve=False)
    futures = [sender.send(Electron("squares", {"x": x})) for x in range(2000)]
    for done in (200, 700, 1200):
        node = start("squares").serving()
        wait_until(lambda done=done: sum(f.done() for f in futures) >= done, f"{done} done")
        workers = node.workers()
        node.kill()
        wait_until(lambda workers=workers: not alive(workers), "gone")
    start("squares").serving()
    assert [f.result(SECONDS).value() for f in futures] == [x * x for x in range(2000)]
    sender.close()


def test_a_worker_killed_in_the_middle_costs_no_electron(start, broker, queue, tmp_path):
    node = start("begin", workers=2).serving()
    sender = AmqpConductor(broker.url, queue, serve=False)
    futures = [
        sender.send(Electron("begin", {"folder": str(tmp_path), "name": str(n)})) for n in range(6)
    ]
    first = wait_until(lambda: sorted(tmp_path.glob("began-*")), "begun")[0]
    os.kill(int(first.name.split("-")[2]), signal.SIGKILL)
    (tmp_path / "gate").touch()
    assert [future.result(SECONDS).value() for future in futures] == list("012345")
    sender.close()
    assert node.end() == 0
    assert [line for line in node.lines if "died" in line["event"]]


# -- what may be missing ------------------------------------------------------------------------


def test_without_a_broker_it_says_so_in_a_line_and_not_who_it_is(start):
    node = start(*PI, url="amqp://somebody:hunter2@127.0.0.1:1/")
    assert node.wait() == 1
    (line,) = node.text
    assert line.startswith("Error: ")
    assert "127.0.0.1:1" in line
    assert "hunter2" not in line


def test_with_a_wrong_password_it_says_so_and_tells_no_password(start, broker):
    url = broker.url.replace("guest:guest", "guest:hunter2")
    node = start(*PI, url=url)
    assert node.wait() == 1
    (line,) = node.text
    assert "hunter2" not in line


def test_without_a_scheduler_it_says_so(start):
    node = start(*PI, options=["--scheduler", "tcp://127.0.0.1:1"], workers=None)
    assert node.wait() == 1
    assert "tcp://127.0.0.1:1" in node.output
    assert "Traceback" not in node.output


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nothing_there:Toss", "cannot import 'nothing_there'"),
        ("nothing.py:Toss", "there is no file nothing.py"),
        ("atomizer_dask.montecarlopi:Tos", "did you mean 'Toss'"),
        ("atomizer_dask.montecarlopi:TOSSES_PER_ELECTRON", "no atom but int"),
        ("atomizer_dask.montecarlopi:", "expected MODULE:ATOM"),
    ],
)
def test_a_wrong_target_is_explained_before_anything_is_started(start, target, says):
    node = start(target, url="amqp://127.0.0.1:1/")
    assert node.wait() == 2
    assert says in node.output
    assert "Traceback" not in node.output


def test_a_scheduler_that_dies_ends_it_and_its_electrons_return(start, peer, queue, tmp_path):
    with own_cluster() as (process, address):
        node = start("begin", options=["--scheduler", address], workers=None).serving()
        payload = {"folder": str(tmp_path), "name": "one"}
        for _ in range(5):
            peer.send(peer.electron("begin", payload=payload))
        wait_until(lambda: began(tmp_path), "begun")
        process.kill()
        assert node.wait() == 1
    assert peer.depth(queue) == 5
    assert all(node.lines)


def test_a_broker_that_restarts_is_found_again_and_nothing_is_lost(own_broker):
    secret = "hunter2-recognisable"
    url = own_broker.add_user("operator", secret)
    with Node(url, "atomizer", *PI, options=["--workers", "1"]) as node:
        node.serving()
        sender = AmqpConductor(own_broker.url, serve=False)
        futures = [sender.send(Electron(TOSS)) for _ in range(2000)]
        own_broker.restart()
        futures += [sender.send(Electron(TOSS)) for _ in range(100)]
        assert {future.result(SECONDS).value()["value"] for future in futures} == {0, 1}
        sender.close()
        assert node.end() == 0
        assert node.events("health")[-1]["reconnects"] >= 1
        assert all(node.lines)
        assert secret not in node.output


# -- how it is operated -------------------------------------------------------------------------


def test_a_flood_of_failures_does_not_flood_the_log(start, broker, queue):
    node = start("fail").serving()
    sender = AmqpConductor(broker.url, queue, serve=False)
    futures = [sender.send(Electron("fail", {"x": x})) for x in range(3000)]
    answers = [future.result(SECONDS) for future in futures]
    assert {answer.error.kind for answer in answers} == {"exception"}
    sender.close()
    assert node.end() == 0
    told = [line for line in node.lines if line["level"] == "error"]
    assert told
    assert {line["kind"] for line in told} == {"exception"}
    health = node.events("health")
    assert health[-1]["failed"] == 3000
    assert len(told) + sum(line.get("suppressed", 0) for line in health) == 3000


def test_what_atoms_and_libraries_write_to_stderr_is_json_too(start, peer, tmp_path):
    (tmp_path / "loud.py").write_text(
        "import os, sys, warnings\n"
        "def loud(text):\n"
        "    print(text, file=sys.stderr, flush=True)\n"
        "    os.write(2, b'from below\\n')\n"
    )
    node = start(f"{tmp_path}/loud.py:loud").serving()
    peer.ask("loud.loud", payload={"text": 'not "JSON"'})
    assert node.end() == 0
    assert {line["message"] for line in node.events("stderr")} >= {'not "JSON"', "from below"}
    assert all({"time", "level", "event"} <= set(line) for line in node.lines)


def test_prometheus_reads_what_it_has_done(start, peer):
    from prometheus_client.parser import text_string_to_metric_families

    port = _free_port()
    node = start("add", "fail", options=["--metrics-port", str(port)]).serving()
    for x in range(3):
        peer.ask("add", payload={"x": x})
    peer.ask("fail", payload={"x": 1})

    def read():
        with urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            families = list(text_string_to_metric_families(page.read().decode()))
        return {one.name: one.value for family in families for one in family.samples}

    values = wait_until(lambda: (v := read())["atomizer_answered_total"] == 4 and v, "counted")
    assert values["atomizer_received_total"] == 4
    assert values["atomizer_failed_total"] == 1
    assert values["atomizer_seconds_count"] == 4
    assert values["atomizer_seconds_sum"] > 0
    assert values["atomizer_in_flight"] == 0
    assert values["atomizer_connected"] == 1
    assert values["atomizer_threads"] == 1
    second = start("add", options=["--metrics-port", str(port)])
    assert second.wait() == 1
    assert f"127.0.0.1:{port}" in second.output
    assert "--metrics-port" in second.output
    assert "Traceback" not in second.output
    assert node.end() == 0


def _free_port():
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def test_two_nodes_share_a_queue(start, broker, queue):
    for node in [start("pid") for _ in range(2)]:
        node.serving()
    sender = AmqpConductor(broker.url, queue, serve=False)
    futures = [sender.send(Electron("pid")) for _ in range(3000)]
    assert len({future.result(SECONDS).value() for future in futures}) == 2
    sender.close()


def test_a_node_and_a_go_agent_toss_for_each_other(start, broker, queue):
    node = start(*PI).serving()
    with GoAgent(broker.url, queue) as agent:
        sender = AmqpConductor(broker.url, queue, serve=False)
        futures = [sender.send(Electron(MONTE_CARLO, {"tosses": 2000})) for _ in range(4)]
        estimates = [future.result(SECONDS).value() for future in futures]
        assert all(estimate["tosses"] == 2000 for estimate in estimates)
        assert not any(estimate["errors"] for estimate in estimates)
        sender.close()
        assert node.end() == 0
        answered = node.events("health")[-1]["answered"]
        assert answered + len(agent.executed) == 4 * 2001
        assert answered
        assert agent.executed


def test_it_is_a_command_of_dask_too_and_finds_the_broker_in_the_environment(broker, queue):
    env = {**os.environ, "ATOMIZER_AMQP_URL": broker.url}
    command = ("dask", "atomizer", "node")
    with Node(None, queue, *PI, options=["--workers", "1"], command=command, env=env) as node:
        assert node.wait_for("serving")["queue"] == queue
        assert node.end() == 0


def test_help_tells_what_an_operator_needs():
    result = CliRunner().invoke(main, ["node", "--help"])
    assert result.exit_code == 0
    for word in ("MODULE:ATOM", "--grace", "--metrics-port", "SIGTERM", "Exit codes"):
        assert word in result.output
