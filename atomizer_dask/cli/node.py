"""The command ``node``: serves atoms to clients that send electrons over RabbitMQ."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from queue import Empty, SimpleQueue
from time import monotonic
from types import FrameType
from typing import Any

import click

from atomizer_dask.atomizer import Atomizer
from atomizer_dask.atoms.definition import Definition
from atomizer_dask.cli.atoms import load_atom
from atomizer_dask.cli.clusters import ClusterOptions, cluster_options, conductor_at
from atomizer_dask.cli.ending import errors_as_text, leave
from atomizer_dask.cli.metrics import serve_metrics
from atomizer_dask.cli.node_log import NodeLog, logging_to_stderr
from atomizer_dask.cli.options import BrokerCommand, broker_options
from atomizer_dask.conductors.amqp.conductor import AmqpConductor
from atomizer_dask.conductors.dask.conductor import DaskConductor
from atomizer_dask.config import setting
from atomizer_dask.policy import seconds_of
from atomizer_dask.registry import registered

POLL_SECONDS = 0.2  # between two checks of the state of the scheduler
SWITCH_SECONDS = 0.001
COLLECT_AFTER = 50_000, 20, 100  # thresholds of the garbage collector; by default 700, 10, 10
TOGETHER_SECONDS = 0.5  # in which two signals count as one
LOST = 1  # exit code: the scheduler is gone


@click.command(cls=BrokerCommand)
@click.argument("targets", metavar="MODULE:ATOM...", nargs=-1, required=True)
@broker_options
@cluster_options
@click.option(
    "--grace",
    help="For running electrons to end, once the node is asked to; 30s unless configured.",
)
@click.option(
    "--max-in-flight",
    type=click.IntRange(1, 65_535),
    help="Electrons taken from the queue and not answered, at most; 10000 unless configured.",
)
@click.option("--metrics-port", type=click.IntRange(1, 65_535), help="Serve Prometheus there.")
@click.option(
    "--metrics-host",
    default="127.0.0.1",
    show_default=True,
    help="Where Prometheus comes in; 0.0.0.0 is anywhere.",
)
def node(
    targets: tuple[str, ...],
    amqp: str | None,
    queue: str | None,
    ca: str | None,
    place: ClusterOptions,
    grace: str | None,
    max_in_flight: int | None,
    metrics_port: int | None,
    metrics_host: str,
) -> None:
    """Serve atoms to whoever sends electrons over RabbitMQ, Go programs among them.

    Only the atoms named here are executed, on the workers of a local cluster unless an option
    says otherwise.
    SIGTERM and Ctrl-C drain it: it takes no more electrons, those that run end and are answered,
    the others return to the queue. Stderr has a line of JSON for whatever happens, and every ten
    seconds for how it is.

    \b
    Exit codes: 0 drained, 1 nothing to work with: no broker, or the scheduler is gone.
    """  # noqa: D301 - click wants it
    # Each electron and each answer passes several threads. With Python's switch interval of 5 ms it
    # would wait at each of them.
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
    with errors_as_text(), ExitStack() as stack:
        signals = stack.enter_context(_signals_to_end())
        seconds = seconds_of(grace, "--grace", least=0.0)
        seconds = setting("node.grace") if seconds is None else seconds
        atoms = [load_atom(target) for target in targets]
        registered.atoms.clear()  # the modules may register atoms that the command does not name
        log = stack.enter_context(logging_to_stderr())
        conductor = AmqpConductor(amqp, queue, ca_file=ca, max_in_flight=max_in_flight)
        stack.callback(conductor.close)
        with _deaf_to_ctrl_c():
            dask = stack.enter_context(conductor_at(place, log.line, wait=False))
            dask.shield_workers()
        if metrics_port is not None:
            stack.callback(serve_metrics(conductor, dask, metrics_host, metrics_port))
        gone = Node(conductor, dask, atoms, log).serve(signals, seconds)
    if gone:
        raise SystemExit(LOST)


class Node:
    """An atomizer that serves a queue until a signal asks it to end.

    Parameters
    ----------
    conductor
        Receives the electrons.
    dask
        Executes them.
    atoms
        The atoms that are served.
    log
        Gets events, errors and the state of the node.
    """

    def __init__(
        self, conductor: AmqpConductor, dask: DaskConductor, atoms: list[Definition], log: NodeLog
    ) -> None:
        self._conductor = conductor
        self._dask = dask
        self._log = log
        self._atoms = atoms
        self._pace = setting("node.health")
        self._atomizer = Atomizer(dask, conductor, *atoms)

    def serve(self, signals: SimpleQueue[int], grace: float) -> bool:
        """Serve until a signal, then drain for `grace` seconds; return False.

        Where the scheduler is gone, end at once, without grace, and return True.
        """
        self._atomizer.events().subscribe(self._log.event)
        self._atomizer.errors().subscribe(self._log.error)
        self._atomizer.exec()
        status = self._conductor.status()
        self._log.line(
            "serving",
            broker=status.address,
            queue=status.queue,
            atoms=[atom.id for atom in self._atoms],
            scheduler=self._dask.client.scheduler.address,
            threads=self._dask.threads,
            pid=os.getpid(),
        )
        _spare_the_collector()
        due = monotonic() + self._pace
        while not _holds(signals, POLL_SECONDS) and self._dask.state != "gone":
            if monotonic() >= due:
                due = monotonic() + self._pace
                self._log.health(self._conductor.status(), self._dask.threads)
        gone = self._dask.state == "gone"
        self._drain(0.0 if gone else grace)
        return gone

    def _drain(self, grace: float) -> None:
        """Let running electrons end, return the others to the queue, and close."""
        conductor = self._conductor
        self._log.line("draining", grace=grace, in_flight=conductor.status().in_flight)
        conductor.stop_receiving()
        if self._dask.state != "gone":
            self._dask.withdraw()
        until = monotonic() + grace
        while not conductor.join(max(0.0, min(self._pace, until - monotonic()))):
            if monotonic() >= until:
                break
            self._log.health(conductor.status(), self._dask.threads)
        left = conductor.status().in_flight
        conductor.close()  # which returns what is left
        self._log.health(conductor.status(), self._dask.threads)
        self._atomizer.close()
        self._log.line("ended", returned=conductor.status().given_back + left)


def _spare_the_collector() -> None:
    """Have the garbage collector run more rarely, and skip all objects that exist now.

    These objects live as long as the node. Each of the thousands of electrons in hand has some ten
    objects, none of them in a cycle; to traverse these took a quarter of a busy node's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Have processes that are started in this context ignore Ctrl-C.

    A terminal sends it to all processes of the node, and workers would end. Once they are there,
    `DaskConductor.shield_workers` shields them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _holds(signals: SimpleQueue[int], seconds: float) -> bool:
    try:
        signals.get(timeout=seconds)
    except Empty:
        return False
    return True


@contextmanager
def _signals_to_end() -> Iterator[SimpleQueue[int]]:
    """Give a queue that gets the first SIGTERM or SIGINT; a second signal ends the process at once.

    Two signals within half a second count as one: the command `timeout` signals the process, and
    then its process group, which includes the process.

    This is no `threading.Event`: the main thread, which waits for it, sometimes holds its lock. A
    signal handler that called `set` in this moment would wait for that lock for ever.
    """
    signals: SimpleQueue[int] = SimpleQueue()
    first = inf

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if monotonic() > first + TOGETHER_SECONDS:
            leave(128 + number)
        if first == inf:
            first = monotonic()
            signals.put(number)

    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before: dict[int, Any] = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
