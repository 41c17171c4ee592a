import socket
from types import SimpleNamespace
from urllib.request import urlopen

import pytest

from atomizer_dask.cli.metrics import serve_metrics
from atomizer_dask.conductors.status import QueueStatus
from atomizer_dask.errors import ConductorError

pytest.importorskip("prometheus_client")

HOST = "127.0.0.1"


@pytest.fixture
def port():
    with socket.socket() as trial:
        trial.bind((HOST, 0))
        return trial.getsockname()[1]


def conductor(**counts):
    status = QueueStatus(counts.pop("state", "connected"), "amqp://host/", "a queue", **counts)
    return SimpleNamespace(status=lambda: status)


def read(port):
    from prometheus_client.parser import text_string_to_metric_families

    with urlopen(f"http://{HOST}:{port}/metrics") as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return {one.name: one for family in families for one in family.samples}


def test_every_count_is_there_under_the_name_of_its_queue(port):
    counts = {"received": 7, "answered": 5, "failed": 2, "in_flight": 2, "seconds": 1.5}
    end = serve_metrics(conductor(**counts), SimpleNamespace(threads=3), HOST, port)
    samples = read(port)
    end()
    for name in ("received", "answered", "failed"):
        assert samples[f"atomizer_{name}_total"].value == counts[name]
    assert samples["atomizer_in_flight"].labels == {"queue": "a queue"}
    assert samples["atomizer_seconds_sum"].value == 1.5
    assert samples["atomizer_seconds_count"].value == 5
    assert samples["atomizer_threads"].value == 3
    assert samples["atomizer_connected"].value == 1


def test_a_lost_connection_is_seen(port):
    end = serve_metrics(conductor(state="reconnecting"), SimpleNamespace(threads=1), HOST, port)
    assert read(port)["atomizer_connected"].value == 0
    end()


def test_a_port_that_is_taken_is_an_error_that_says_so_and_it_is_free_afterwards(port):
    end = serve_metrics(conductor(), SimpleNamespace(threads=1), HOST, port)
    with pytest.raises(ConductorError, match=f"{HOST}:{port}.*another --metrics-port"):
        serve_metrics(conductor(), SimpleNamespace(threads=1), HOST, port)
    end()
    serve_metrics(conductor(), SimpleNamespace(threads=1), HOST, port)()
