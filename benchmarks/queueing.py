"""Figure 16: electrons over RabbitMQ, to one node on the same machine and broker.

The broker is that of the tests, with nothing set but where it is. Where ATOMIZER_GO_AGENT names the
program of the Go agent (go.atomizer.io/test-agent), that serves the same client and broker too.
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from atomizer_dask import AmqpConductor, Electron
from benchmarks.fresh import ROOT, Sample
from benchmarks.work import WORKERS, scaled, seconds

sys.path.append(str(ROOT / "tests" / "support"))

QUEUE = "benchmark"
ANSWER_SECONDS = 300
KILL_SECONDS = 2.0
TOSS = "montecarlopi.Toss"


def rate(scale: float, repeats: int) -> Iterator[Sample]:
    """Toss electrons sent and answered, in a second; those of the Go agent in the same run."""
    count = scaled(30_000, scale, least=1000)
    agent = os.environ.get("ATOMIZER_GO_AGENT")
    with _broker() as broker:
        for _ in range(repeats):
            sample = {"value": _rate_of(_node(broker.url), broker.url, count)}
            if agent:
                sample["the Go agent's"] = _rate_of(_agent(agent, broker.url), broker.url, count)
            yield sample


def _rate_of(server: AbstractContextManager[None], url: str, count: int) -> float:
    with server, _client(url) as client:
        _answered(client, max(100, count // 3))
        return count / seconds(_answered, client, count)


def latency(scale: float, repeats: int) -> Iterator[Sample]:
    """p50 of one electron at a time, in ms."""
    count = scaled(300, scale, least=30)
    with _broker() as broker, _node(broker.url), _client(broker.url) as client:
        _answered(client, 30)
        for _ in range(repeats):
            yield {"value": 1e3 * median(seconds(_answered, client, 1) for _ in range(count))}


def estimate(scale: float, repeats: int) -> Iterator[Sample]:
    """Seconds of a MonteCarlo whose tosses go through the queue one by one."""
    tosses = scaled(100_000, scale, least=1000)
    with _broker() as broker, _node(broker.url), _client(broker.url) as client:
        _estimated(client, scaled(10_000, scale, least=100))
        for _ in range(repeats):
            yield {"value": seconds(_estimated, client, tosses)}


def killed(scale: float, repeats: int) -> Iterator[Sample]:
    """Electrons without the right answer, where the node is killed every two seconds."""
    count = scaled(20_000, scale, least=1000)
    with _broker() as broker, _client(broker.url) as client:
        for _ in range(repeats):
            with _killing(broker.url) as kills:
                start = monotonic()
                wrong = _wrong(_sent(client, count))
                yield {"value": wrong, "kills": len(kills), "s": monotonic() - start}


def restarted(scale: float, repeats: int) -> Iterator[Sample]:
    """Electrons without the right answer, where the broker restarts in the middle."""
    count = scaled(20_000, scale, least=1000)
    with _broker() as broker, _node(broker.url), _client(broker.url) as client:
        for _ in range(repeats):
            start = monotonic()
            futures = _sent(client, count)
            futures[count // 5].result(ANSWER_SECONDS)
            broker.restart()
            yield {"value": _wrong(futures), "s": monotonic() - start}


@contextmanager
def _broker() -> Iterator[Any]:
    from broker import Broker

    with tempfile.TemporaryDirectory(prefix="broker-") as folder:
        broker = Broker(Path(folder))
        broker.start()
        try:
            yield broker
        finally:
            broker.stop()


@contextmanager
def _client(url: str) -> Iterator[AmqpConductor]:
    client = AmqpConductor(url, QUEUE)
    try:
        yield client
    finally:
        client.close()


def _start(url: str) -> subprocess.Popen:
    """Start a node, and wait until it serves."""
    atoms = [f"atomizer_dask.montecarlopi:{name}" for name in ("MonteCarlo", "Toss")]
    work = f"{ROOT / 'benchmarks' / 'work.py'}:slow_increment"
    program = str(Path(sys.executable).with_name("atomizer-dask"))
    options = ["--amqp", url, "--queue", QUEUE, "--workers", str(WORKERS)]
    process = subprocess.Popen(
        [program, "node", *options, *atoms, work],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if '"serving"' in line:
            # It goes on writing, and must not wait for a reader.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process
    raise RuntimeError(f"the node did not start: exit code {process.wait()}")


@contextmanager
def _node(url: str) -> Iterator[None]:
    process = _start(url)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _agent(program: str, url: str) -> Iterator[None]:
    environment = {**os.environ, "CONNECTIONSTRING": url, "QUEUE": QUEUE, "LOGLEVEL": ""}
    process = subprocess.Popen([program], env=environment, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _killing(url: str) -> Iterator[list[float]]:
    """Run node after node, each killed two seconds after it began to serve."""
    kills: list[float] = []
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            process = _start(url)
            if over.wait(KILL_SECONDS):
                process.terminate()
            else:
                process.kill()
                kills.append(monotonic())
            process.wait()

    with ExitStack() as stack:
        thread = threading.Thread(target=run)
        stack.callback(thread.join)
        stack.callback(over.set)
        thread.start()
        yield kills


def _answered(client: AmqpConductor, count: int) -> None:
    futures = [client.send(Electron(TOSS, {"tosses": 1})) for _ in range(count)]
    for future in futures:
        future.result(ANSWER_SECONDS).value()


def _estimated(client: AmqpConductor, tosses: int) -> None:
    electron = Electron("montecarlopi.MonteCarlo", {"tosses": tosses})
    value = client.send(electron).result(ANSWER_SECONDS).value()
    if value["tosses"] != tosses or value["errors"]:
        raise RuntimeError(f"a wrong estimate: {value}")


def _sent(client: AmqpConductor, count: int) -> list[Any]:
    return [client.send(Electron("work.slow_increment", {"x": x})) for x in range(count)]


def _wrong(futures: list[Any]) -> int:
    answers = [future.result(ANSWER_SECONDS) for future in futures]
    return sum(a.error is not None or a.result != x + 1 for x, a in enumerate(answers))
