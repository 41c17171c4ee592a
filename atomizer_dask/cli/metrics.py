"""The counts of a node, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from atomizer_dask.conductors.amqp.conductor import AmqpConductor
from atomizer_dask.conductors.batch_conductor import BatchConductor
from atomizer_dask.errors import ConductorError

_COUNTERS = {
    "received": "Electrons taken from the queue, each counted once.",
    "answered": "Electrons whose answer the broker has confirmed.",
    "failed": "Answers that report a failure.",
    "repeated": "Deliveries of electrons that were in hand or answered already.",
    "given_back": "Electrons returned to the queue.",
    "dead": "Messages gone to the dead-letter queue.",
    "sent": "Electrons sent.",
    "replies": "Electrons sent and answered.",
    "reconnects": "How often the connection to the broker came back.",
}
_GAUGES = {
    "in_flight": "Electrons in hand.",
    "waiting": "Electrons in hand that wait for others which they sent.",
    "oldest": "Seconds since the oldest electron in hand was received.",
    "prefetch": "Electrons that the broker may leave here.",
}


class Collector:
    """Reads the counts when Prometheus asks for them."""

    def __init__(self, conductor: AmqpConductor, executing: BatchConductor) -> None:
        self._conductor = conductor
        self._executing = executing

    def collect(self) -> Iterable[Any]:
        """Yield the metrics."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            SummaryMetricFamily,
        )

        status = self._conductor.status()

        def labelled(family: Any, value: float) -> Any:
            family.add_metric([status.queue], value)
            return family

        for name, text in _COUNTERS.items():
            counter = CounterMetricFamily(f"atomizer_{name}", text, labels=["queue"])
            yield labelled(counter, getattr(status, name))
        for name, text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"atomizer_{name}", text, labels=["queue"])
            yield labelled(gauge, getattr(status, name))
        connected = "Whether there is a connection to the broker."
        yield labelled(
            GaugeMetricFamily("atomizer_connected", connected, labels=["queue"]),
            float(status.state == "connected"),
        )
        seconds = SummaryMetricFamily(
            "atomizer_seconds", "From receiving an electron to its answer.", labels=["queue"]
        )
        seconds.add_metric([status.queue], count_value=status.answered, sum_value=status.seconds)
        yield seconds
        yield GaugeMetricFamily(
            "atomizer_threads", "How many electrons can run.", value=self._executing.threads
        )


def serve_metrics(
    conductor: AmqpConductor, executing: BatchConductor, host: str, port: int
) -> Callable[[], None]:
    """Serve the metrics over HTTP, and return a function that ends the server.

    Raises
    ------
    ConductorError
        Where the port is taken, or `prometheus_client` is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ModuleNotFoundError as error:
        raise ConductorError(
            "--metrics-port needs prometheus-client: pip install 'atomizer_dask[amqp]'"
        ) from error
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(conductor, executing))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ConductorError(
            f"metrics cannot be served at {host}:{port}: {error.strerror}; give another "
            "--metrics-port"
        ) from error

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end
