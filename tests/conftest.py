"""Fixtures: what tests run on, from a Dask cluster for all of them to a real browser."""

import os
import signal
import uuid
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import broker as rabbitmq
import browsing
import certificates as x509
import pytest
import serving
import slurm as batch
from dask import config as dask_config
from distributed import LocalCluster
from hypothesis import settings

from atomizer_dask import Atomizer, DaskConductor, MemoryConductor
from atomizer_dask.registry import registered

# Signals mean to what tests start what they mean to what a user starts: a shell has its background
# jobs ignore Ctrl-C, and nohup a terminal that is closed, and so would all that they start. And
# whoever imports dask-jobqueue first has Ctrl-C raise SystemExit in this process.
with suppress(ImportError):
    import dask_jobqueue  # noqa: F401
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)  # here it stays without effect

settings.register_profile("atomizer", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("atomizer")


def need(what, missing):
    """Skip a test for which something is missing, or fail it where ATOMIZER_REQUIRE names it."""
    if not missing:
        return
    if what in os.environ.get("ATOMIZER_REQUIRE", "").split(","):
        pytest.fail(f"{what} tests must run here (ATOMIZER_REQUIRE), and lack {missing}")
    pytest.skip(f"{what} tests lack {missing}")


@pytest.fixture(scope="session")
def cluster():
    """A Dask cluster of two worker processes with a thread each."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.fixture
def configure():
    """A function that changes settings until the test ends."""
    with ExitStack() as stack:
        yield lambda given: stack.enter_context(
            dask_config.set({f"atomizer.{name}": value for name, value in given.items()})
        )


@pytest.fixture
def empty():
    """A Dask cluster of processes that has no workers yet."""
    with LocalCluster(
        n_workers=0, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.fixture
def memory():
    """A MemoryConductor of two threads."""
    conductor = MemoryConductor(2)
    yield conductor
    conductor.close()


@pytest.fixture
def dask(cluster):
    """A DaskConductor on the cluster of the session."""
    conductor = DaskConductor(cluster.scheduler_address)
    yield conductor
    conductor.close()


@pytest.fixture(params=["memory", pytest.param("dask", marks=pytest.mark.dask)])
def conductor(request):
    """Each conductor in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def atomizer(conductor):
    """An atomizer with each conductor in turn, and no atoms."""
    atomizer = Atomizer(conductor)
    yield atomizer
    atomizer.close()


@pytest.fixture
def local(memory):
    """An atomizer in this process, and no atoms."""
    atomizer = Atomizer(memory)
    yield atomizer
    atomizer.close()


@pytest.fixture(autouse=True)
def _clean_registry():
    """What a test registers at import time is forgotten after it."""
    atoms, conductors = dict(registered.atoms), dict(registered.conductors)
    yield
    registered.atoms, registered.conductors = atoms, conductors


class Gate:
    """A file that electrons wait for, in whichever process they are."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "gate")

    def open(self) -> None:
        Path(self.path).touch()


@pytest.fixture
def gate(tmp_path):
    """A gate that electrons wait at until the test opens it."""
    gate = Gate(tmp_path)
    yield gate
    gate.open()


PAGES = pytest.StashKey[list]()


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory):
    """A JupyterLab server, which serves Notebook too."""
    need("browser", ", ".join(browsing.missing()))
    server = serving.Jupyter(tmp_path_factory.mktemp("jupyter")).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def chromium():
    """A browser; for a module only, since its thread has a running event loop until it ends."""
    need("browser", ", ".join(browsing.missing()))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = browsing.Chromium(playwright)
        yield browser
        browser.close()


@pytest.fixture
def pages(request):
    """The pages of a test; a picture is kept of those of a test that fails."""
    pages = request.node.stash.setdefault(PAGES, [])
    yield pages
    for page in pages:
        page.close()


@pytest.fixture
def open_notebook(jupyter, chromium, pages):
    """Open cells, or the notebook of a path, in JupyterLab or Notebook, with a kernel."""

    def open_notebook(source, theme="light", *, width=1200, height=1000, app="lab"):
        page = chromium.page(theme, width, height)
        pages.append(browsing.Notebook(page, jupyter, source, theme, app))
        return pages[-1]

    return open_notebook


@pytest.fixture
def open_voila(chromium, pages, tmp_path_factory):
    """Open cells, or the notebook of a path, as an application of Voila."""
    servers = []

    def open_voila(source, theme="light", *, width=1200, height=1000):
        servers.append(serving.Voila(tmp_path_factory.mktemp("voila")).start(source, theme))
        pages.append(browsing.View(chromium.page(theme, width, height), servers[-1]))
        pages[-1].page.goto(servers[-1].url())
        return pages[-1]

    yield open_voila
    for server in servers:
        server.stop()


@contextmanager
def running(folder, **options):
    """A RabbitMQ in a folder, which ends at once, for nobody needs its data any more."""
    need("rabbitmq", ", ".join(rabbitmq.missing()))
    broker = rabbitmq.Broker(folder, **options)
    try:
        yield broker.start()
    finally:
        broker.kill()


@pytest.fixture(scope="session")
def broker(tmp_path_factory):
    """A RabbitMQ for all tests, each with a `queue` of its own."""
    with running(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture
def own_broker(tmp_path):
    """A RabbitMQ that a test may stop, restart and kill; it takes some seconds to start."""
    with running(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """Certificates of the host of the tests, and others that are wrong."""
    need("rabbitmq", ", ".join(x509.missing()))
    return x509.Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def tls_broker(certificates, tmp_path_factory):
    """A RabbitMQ for all tests that encrypt what they say."""
    with running(tmp_path_factory.mktemp("tls_broker"), tls=certificates) as broker:
        yield broker


@pytest.fixture
def queue(broker):
    """The name of a work queue; it and its dead letters are deleted from `broker` afterwards."""
    name = f"queue-{uuid.uuid4()}"
    yield name
    broker.delete(name, f"{name}.dead")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A Slurm of two nodes, each of which is this machine."""
    need("slurm", ", ".join(batch.missing()))
    slurm = batch.Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        yield slurm.start()
    finally:
        slurm.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Keep a picture of what a test that fails was looking at."""
    report = yield
    if report.when == "call" and report.failed:
        for number, page in enumerate(item.stash.get(PAGES, [])):
            page.screenshot(f"failed-{item.name}-{number}")
    return report
