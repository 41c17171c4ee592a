"""The site that executes electrons on a Dask worker."""

import pickle
import sys
import threading
from types import SimpleNamespace

import pytest

from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.conductors.dask import worker
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import FORGET, UNLOAD
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Origin


@pytest.fixture
def site():
    """A site on a worker that does nothing but take down what it is to send."""
    sent = []
    interval = sys.getswitchinterval()
    yield worker.DaskSite(
        SimpleNamespace(
            address="tcp://nowhere",
            scheduler=SimpleNamespace(address="tcp://nowhere"),
            security=None,
            batched_stream=SimpleNamespace(interval=0.002),
            stream_handlers={},
            memory_manager=SimpleNamespace(memory_limit=None),
            loop=SimpleNamespace(add_callback=lambda *_: None, call_later=None),
            log_event=lambda *event: sent.append(event),
            sent=sent,
        )
    )
    sys.setswitchinterval(interval)


def test_events_are_sent_while_the_client_of_a_spawner_is_made(site, monkeypatch):
    flushed = threading.Event()

    def make_client(*_, **__):
        """Need the event loop, which has just begun to send events."""
        loop = threading.Thread(target=lambda: (site._flush(), flushed.set()), daemon=True)
        loop.start()
        assert flushed.wait(10), "the event loop waits for whoever waits for it"

    monkeypatch.setattr(worker, "Client", make_client)
    monkeypatch.setattr(worker, "WorkerConductor", lambda *_: SimpleNamespace())
    monkeypatch.setattr(worker, "ChildConductor", lambda *_: "children")
    site.emit("channel", Event("tossed"))
    assert site.children(Origin(), "root", RandomStream(0), None) == "children"
    assert [what for _, (what, _) in site._worker.sent] == ["EventsEmitted"]


def test_what_the_scheduler_names_in_bytes_is_there():
    assert pickle.loads(UNLOAD) is worker.unload
    assert pickle.loads(FORGET) is worker.forget
