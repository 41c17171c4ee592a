"""Who may reach a cluster: certificates, and what listens where."""

import gc
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import suppress
from importlib import resources

import dask
import psutil
import pytest
import yaml
from conftest import need
from distributed import Client
from distributed.security import Security
from local_jobs import cluster_of_jobs
from patience import wait_until

from atomizer_dask import Atom, Atomizer, ConductorError, DaskConductor, Electron, Run, atom, grid
from atomizer_dask.conductors.dask.cluster.credentials import as_client

SECONDS = 120  # to start processes on a machine that does much else

pytestmark = pytest.mark.timeout(3 * SECONDS)


@atom(id="tests.increment")
def increment(x):
    return x + 1


class Parent(Atom):
    id = "tests.Parent"

    def process(self, context, conductor, electron):
        futures = [conductor.send(Electron("tests.increment", {"x": x})) for x in range(5)]
        return sum(future.result().value() for future in futures)


@pytest.fixture(scope="module")
def secured():
    """A conductor on a local cluster of its own, with temporary certificates."""
    with DaskConductor(workers=1, security=True) as conductor:
        yield conductor


@pytest.fixture(scope="module")
def address(secured):
    """Where its scheduler is."""
    return secured.client.scheduler.address


def files_of(security, folder):
    """Write temporary credentials to files, as an authority would hand them out."""
    named = {}
    for name in ("tls_ca_file", "tls_client_cert", "tls_client_key"):
        path = folder / f"{name}.pem"
        path.write_text(getattr(security, name))
        named[name] = str(path)
    return named


# -- certificates ---------------------------------------------------------------------------------


@pytest.mark.dask
def test_local_cluster_with_temporary_certificates_carries_runs_and_children(secured, address):
    assert address.startswith("tls://127.0.0.1:")
    atomizer = Atomizer(secured, increment, Parent)
    assert (
        atomizer.map(increment, grid(x=range(20))).wait(SECONDS).to_frame()["result"].sum() == 210
    )
    assert atomizer.send(Parent).result(SECONDS).value() == 15


@pytest.mark.dask
def test_client_without_certificate_gets_nowhere(secured, address):
    with pytest.raises(ConductorError, match=r"nobody in without a certificate.*tls_client_cert"):
        DaskConductor(address)
    with pytest.raises(ConductorError, match=r"nobody answers .* protocol"):
        DaskConductor(address.replace("tls://", "tcp://"), timeout=1)
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    host, port = address.removeprefix("tls://").split(":")
    with (
        socket.create_connection((host, int(port)), SECONDS) as plain,
        pytest.raises(ssl.SSLError, match=r"(?i)certificate.required|handshake.failure"),
        trusting.wrap_socket(plain) as encrypted,
    ):
        encrypted.recv(1)


@pytest.mark.dask
def test_client_that_gets_nowhere_leaves_nothing_behind(address):
    def left():
        return {thread for thread in threading.enumerate() if thread.name == "IO loop"}

    before = left()
    for where in (address, address.replace("tls://", "tcp://"), "tls://127.0.0.1:1"):
        with pytest.raises(ConductorError):
            DaskConductor(where, timeout=1)
    clients = [thing for thing in gc.get_objects() if isinstance(thing, Client)]
    assert {client.status for client in clients} <= {"running", "closed"}
    assert left() == before


@pytest.mark.dask
@pytest.mark.parametrize("which", ["both", "authority", "client"])
def test_certificate_of_another_authority_is_told(secured, address, which):
    right, wrong = secured.client.security, Security.temporary()
    authority = right if which == "client" else wrong
    client = right if which == "authority" else wrong
    security = Security(
        require_encryption=True,
        tls_ca_file=authority.tls_ca_file,
        tls_client_cert=client.tls_client_cert,
        tls_client_key=client.tls_client_key,
    )
    with pytest.raises(ConductorError, match="do not accept each other's certificates: both must"):
        DaskConductor(address, security=security, timeout=5)


@pytest.mark.dask
@pytest.mark.parametrize("how", ["argument", "no protocol", "configuration", "scheduler file"])
def test_certificates_from_files_open_the_door(secured, address, tmp_path, how):
    files = files_of(secured.client.security, tmp_path)
    target = {"no protocol": address.removeprefix("tls://")}.get(how, address)
    if how == "scheduler file":
        target = tmp_path / "scheduler.json"
        scheduler = secured.client.scheduler_info()["id"]
        target.write_text(json.dumps({"id": scheduler, "address": address}))
    in_configuration = {
        "distributed.comm.tls.ca-file": files["tls_ca_file"],
        "distributed.comm.tls.client.cert": files["tls_client_cert"],
        "distributed.comm.tls.client.key": files["tls_client_key"],
    }
    by_configuration = how == "configuration"
    security = None if by_configuration else Security(require_encryption=True, **files)
    with (
        dask.config.set(in_configuration if by_configuration else {}),
        DaskConductor(target, security=security) as conductor,
        Atomizer(conductor, increment) as atomizer,
    ):
        assert atomizer.send(increment, {"x": 1}).result(SECONDS).value() == 2


def test_file_that_is_missing_is_told(tmp_path):
    missing = str(tmp_path / "ca.pem")
    security = Security(require_encryption=True, tls_ca_file=missing)
    with pytest.raises(ConductorError, match=r"there is no file .*ca.pem.* as tls_ca_file"):
        DaskConductor("tls://127.0.0.1:1", security=security)


def test_encryption_that_the_scheduler_has_not_is_told(cluster):
    with pytest.raises(ConductorError, match="encryption is required, and 'tcp://"):
        DaskConductor(cluster.scheduler_address, security=Security.temporary())


def test_encryption_towards_a_scheduler_without_is_told(cluster):
    address = cluster.scheduler_address.replace("tcp://", "tls://")
    with pytest.raises(ConductorError, match="does not encrypt: start the scheduler with"):
        DaskConductor(address, security=Security.temporary(), timeout=2)


@pytest.mark.parametrize("how", ["argument", "configuration"])
@pytest.mark.parametrize("wrong", ["tls_client_cert", "tls_client_key"])
def test_credentials_that_cannot_be_used_are_told_whoever_they_are_for(tmp_path, how, wrong):
    files = files_of(Security.temporary(), tmp_path)
    (tmp_path / f"{wrong}.pem").write_text("no certificate\n")
    in_configuration = {
        "distributed.comm.tls.ca-file": files["tls_ca_file"],
        "distributed.comm.tls.client.cert": files["tls_client_cert"],
        "distributed.comm.tls.client.key": files["tls_client_key"],
    }
    security = Security(require_encryption=True, **files) if how == "argument" else None
    with (
        dask.config.set(in_configuration if security is None else {}),
        pytest.raises(ConductorError, match="credentials of this process cannot be used"),
    ):
        DaskConductor("tls://127.0.0.1:1", security=security, timeout=1)


def test_security_that_cannot_be_meant_is_refused(cluster):
    with pytest.raises(TypeError, match=r"must be a distributed.Security, or True"):
        DaskConductor(security="tls")
    with pytest.raises(TypeError, match="nobody else knows"):
        DaskConductor("tls://127.0.0.1:1", security=True)
    with pytest.raises(TypeError, match="which has its own"):
        DaskConductor(cluster, security=Security.temporary())
    with Client(cluster), pytest.raises(TypeError, match="which has its own"):
        DaskConductor(security=True)  # the current client has none


def test_what_temporary_certificates_need_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs cryptography: pip install 'atomizer_d"):
        DaskConductor(security=True)


def test_certificate_of_a_worker_serves_its_clients():
    temporary = Security.temporary()
    of_worker = Security(
        require_encryption=True,
        tls_ca_file=temporary.tls_ca_file,
        tls_worker_cert=temporary.tls_worker_cert,
        tls_worker_key=temporary.tls_worker_key,
    )
    assert as_client(of_worker).get_connection_args("client")["ssl_context"] is not None
    assert of_worker.tls_client_cert is None
    assert as_client(temporary) is temporary


@pytest.mark.dask
def test_dask_jobqueue_with_certificates_carries_runs_children_and_detached_runs(tmp_path):
    with cluster_of_jobs(tmp_path, security=True, shared_temp_directory=str(tmp_path)) as cluster:
        assert cluster.scheduler_address.startswith("tls://")
        cluster.scale(jobs=1)
        store = tmp_path / "store"
        with Atomizer(DaskConductor(cluster), increment, Parent) as atomizer:
            assert atomizer.send(Parent).result(SECONDS).value() == 15
            atomizer.map(increment, grid(x=range(20)), store=store, detached=True)
        wait_until(lambda: Run.open(store).state == "finished")
        assert Run.open(store).to_frame()["result"].sum() == 210
        keys = list(tmp_path.glob(".dask-jobqueue.worker.key.*"))
        assert [key.stat().st_mode & 0o077 for key in keys] == [0]  # the user's alone


# -- the recipe with files ------------------------------------------------------------------------


def blocks_of_page(language, folder):
    """Return the code blocks of the page on security in a language, for another folder."""
    text = (resources.files("atomizer_dask") / "docs/security.md").read_text(encoding="utf-8")
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return [re.sub(r"(/home/me|~)/.dask-tls", str(folder), block) for block in found]


def commands_of_page(folder):
    lines = "".join(blocks_of_page("console", folder)).splitlines()
    return [line.removeprefix("$ ") for line in lines]


@pytest.mark.dask
def test_recipe_of_the_page_works_as_it_stands(tmp_path):
    need("tls", "" if shutil.which("openssl") else "openssl")
    folder = tmp_path / "tls"
    *making, scheduler, worker = commands_of_page(folder)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["sh", "-ec", "\n".join(making)], check=True, timeout=SECONDS, **quiet)
    (settings,) = blocks_of_page("yaml", folder)
    (folder / "tls.yaml").write_text(settings)
    environment = {**os.environ, "DASK_CONFIG": str(folder / "tls.yaml")}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", *command.split(), "--no-dashboard", *more],
            env=environment,
            cwd=tmp_path,
            **quiet,
        )
        for command, more in (
            (scheduler, ["--host", "127.0.0.1", "--port", "0"]),
            (worker.replace("auto", "1"), ["--no-nanny"]),
        )
    ]
    try:
        file = str(folder / "scheduler.json")
        merged = dask.config.merge(dask.config.config, yaml.safe_load(settings))
        with dask.config.set({"distributed.comm": merged["distributed"]["comm"]}):
            with Atomizer(DaskConductor(file, timeout=SECONDS), increment, Parent) as atomizer:
                assert "scheduler.json tls://" in repr(atomizer.conductors["dask"])
                assert atomizer.send(Parent).result(SECONDS).value() == 15
            with DaskConductor(workers=1) as conductor:
                assert "tls://127.0.0.1" in repr(conductor)
        with pytest.raises(ConductorError, match="nobody in without a certificate"):
            DaskConductor(file, timeout=SECONDS)
    finally:
        for process in started:
            process.kill()
            process.wait()


# -- what listens where ---------------------------------------------------------------------------


def listening():
    """Return which addresses this process and those it started listen at."""
    this, found = psutil.Process(os.getpid()), set()
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # those of a test before may be ending
            found.update(
                (process.pid, *connection.laddr)
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            )
    return found


@pytest.mark.dask
@pytest.mark.parametrize("security", [None, True])
def test_local_cluster_listens_to_this_machine_alone(security):
    before = listening()
    with DaskConductor(workers=1, security=security) as conductor:
        opened = listening() - before
        ports = {port for _, _, port in opened}
        scheduler = int(conductor.client.scheduler.address.rpartition(":")[2])
        dashboard = int(conductor.client.dashboard_link.split(":")[2].partition("/")[0])
        (worker,) = conductor.status().workers
        assert {scheduler, dashboard, int(worker.address.rpartition(":")[2])} <= ports
        assert {host for _, host, _ in opened} == {"127.0.0.1"}
