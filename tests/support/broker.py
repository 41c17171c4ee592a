"""A real RabbitMQ on loopback, in a folder of its own, for tests that send electrons over AMQP."""

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import quote

# Where Debian keeps what its command of the same name, on PATH, starts as another user.
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
HOST = "127.0.0.1"
SECONDS = 60  # until it is given up to wait for a broker
# It ends when its input does, thus with the process that started it, however that one ends.
GUARD = ("sh", "-c", "read -r line; kill -KILL 0")
HEADER = b"AMQP\x00\x00\x09\x01"
GREETING = b"\x01\x00\x00"  # a frame of a method, of channel 0: a broker that is ready sends it
CONFIGURATION = """\
listeners.tcp.local = {host}:{port}
log.console = false
log.file.level = warning
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 50MB
"""
ENCRYPTION = """\
listeners.ssl.local = {host}:{tls_port}
ssl_options.cacertfile = {folder}/authority.pem
ssl_options.certfile = {folder}/certificate.pem
ssl_options.keyfile = {folder}/key.pem
ssl_options.verify = verify_none
"""
ON_LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"


def executable():
    """Return the path of the server's script on this machine, None where there is none."""
    found = str(SERVER) if SERVER.exists() else shutil.which("rabbitmq-server")
    return found and Path(found)


def missing():
    """Return the names of what tests with a broker need and this machine lacks."""
    modules = [name for name in ("pika",) if find_spec(name) is None]
    return [*modules, *([] if executable() else ["RabbitMQ"])]


class Broker:
    """A RabbitMQ that nothing else uses; it keeps its ports and its data until the folder goes.

    Parameters
    ----------
    folder : pathlib.Path
        Where it keeps everything.
    tls : certificates.Certificates, optional
        What it shows to those who connect to `tls_url`.

    Attributes
    ----------
    url, tls_url : str
        Where to connect as guest; the second is None without `tls`.
    """

    def __init__(self, folder, *, tls=None):
        self.folder = folder
        self._tls = tls
        self._port, self._tls_port, self._distribution_port, self._epmd_port = _free_ports(4)
        self.url = f"amqp://guest:guest@{HOST}:{self._port}/"
        self.tls_url = tls and f"amqps://guest:guest@{HOST}:{self._tls_port}/"
        self._name = f"atomizer-{secrets.token_hex(4)}@localhost"
        self._guard = self._epmd = self._server = None
        self._write_configuration()

    def start(self):
        """Start it, wait until it takes connections, and return it."""
        if self._guard:
            raise RuntimeError(f"{self.url} runs already: stop it first, or restart it")
        self._guard = subprocess.Popen(GUARD, stdin=subprocess.PIPE, process_group=0)
        try:
            # The server would start one itself, which would outlive it.
            self._epmd = self._spawn("epmd", "-address", HOST, "-port", str(self._epmd_port))
            self._wait_until("epmd", self._epmd, lambda: _answers(self._epmd_port, b"\x00\x01n", 1))
            self._server = self._spawn(executable())
            self._wait_until("RabbitMQ", self._server, self._greets)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self):
        """End it in order, as for maintenance, and wait until it has ended."""
        if self._server:
            self._server.terminate()
            with suppress(subprocess.TimeoutExpired):  # then it ends as the rest does
                self._server.wait(SECONDS)
        self.kill()

    def restart(self):
        """Stop it and start it again, with the same ports and data."""
        self.stop()
        self.start()

    def kill(self):
        """End it at once, as a loss of power would; a broker that does not run stays as it is."""
        if self._guard:
            os.killpg(self._guard.pid, signal.SIGKILL)
            self._guard.stdin.close()
        for process in filter(None, (self._guard, self._epmd, self._server)):
            process.wait()
        self._guard = self._epmd = self._server = None

    def add_user(self, name, password):
        """Let a user do everything, and return the URL to connect as that user."""
        self.ctl("add_user", "--", name, password)
        self.ctl("set_permissions", name, ".*", ".*", ".*")
        return f"amqp://{quote(name, safe='')}:{quote(password, safe='')}@{HOST}:{self._port}/"

    def delete(self, *queues):
        """Delete queues, if they are there, and what is in them."""
        import pika  # which machines without these tests need not have

        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            channel = connection.channel()
            for queue in queues:
                channel.queue_delete(queue)

    def ctl(self, *arguments):
        """Return what rabbitmqctl says to some arguments; it takes up to a second or two."""
        if not self._guard:  # it would start an epmd, which would stay
            raise RuntimeError(
                f"rabbitmqctl {arguments[0]}: {self.url} does not run, start it first"
            )
        done = subprocess.run(
            [executable().with_name("rabbitmqctl"), "--quiet", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._environment(),
            cwd=self.folder,
            timeout=SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {arguments[0]} fails: {done.stdout}{done.stderr}")
        return done.stdout

    @contextmanager
    def showing(self, identity):
        """Show another certificate for a while: an `Identity` of the certificates."""
        self._show(identity)
        try:
            yield
        finally:
            self._show(self._tls.valid)

    def log(self):
        """Return the end of what it had to say."""
        logs = (self.folder / name for name in ("output.log", "rabbit.log"))
        lines = [line for path in logs if path.exists() for line in _lines(path)[-80:]]
        return "\n".join(lines)

    def _show(self, identity):
        self._copy(identity)
        self.ctl("eval", "ssl:clear_pem_cache().")  # it would read the files again in two minutes

    def _copy(self, identity):
        shutil.copy(identity.certificate, self.folder / "certificate.pem")
        shutil.copy(identity.key, self.folder / "key.pem")

    def _write_configuration(self):
        (self.folder / "home").mkdir(parents=True)
        text = CONFIGURATION
        if self._tls:
            text += ENCRYPTION
            self._copy(self._tls.valid)
            shutil.copy(self._tls.authority, self.folder / "authority.pem")
        ports = {"port": self._port, "tls_port": self._tls_port}
        configuration = text.format(host=HOST, folder=self.folder, **ports)
        (self.folder / "rabbitmq.conf").write_text(configuration)
        for name in ("advanced.config", "enabled_plugins"):
            (self.folder / name).write_text("[].\n")
        self._link_plugins()

    def _link_plugins(self):
        """Have no plugin there but itself: it reads them all at start, which doubles the time."""
        (self.folder / "plugins").mkdir()
        installed = executable().resolve().parent.parent / "plugins"
        for itself in (*installed.glob("rabbit-*"), *installed.glob("rabbit_common-*")):
            (self.folder / "plugins" / itself.name).symlink_to(itself)

    def _environment(self):
        """Return what keeps it to its folder and loopback, whatever is set for other brokers."""
        foreign = ("RABBITMQ_", "ERL_", "NOTIFY_SOCKET")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {
            **kept,
            "HOME": str(self.folder / "home"),  # of the cookie
            "LC_ALL": "C.UTF-8",
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_PLUGINS_DIR": str(self.folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": str(self.folder / "rabbit.log"),
            "RABBITMQ_PID_FILE": str(self.folder / "rabbit.pid"),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ON_LOOPBACK,
            "RABBITMQ_CTL_ERL_ARGS": ON_LOOPBACK,
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_CRASH_DUMP": str(self.folder / "crash.dump"),
            # The script then becomes the server, so that what it is sent reaches the server.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _spawn(self, *command):
        with (self.folder / "output.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                cwd=self.folder,
                process_group=self._guard.pid,
            )

    def _wait_until(self, name, process, condition):
        until = monotonic() + SECONDS
        while not condition():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ends ({process.returncode}) at start:\n{self.log()}")
            if monotonic() > until:
                raise RuntimeError(f"{name} is not there after {SECONDS} s:\n{self.log()}")
            sleep(0.05)

    def _greets(self):
        return _answers(self._port, HEADER, len(GREETING)) == GREETING


def _answers(port, question, length):
    """Return the first bytes that a port answers, none where it does not."""
    try:
        with socket.create_connection((HOST, port), timeout=5) as connection:
            connection.sendall(question)
            return connection.recv(length)
    except OSError:
        return b""


def _free_ports(number):
    """Return free ports that the system gives to nobody else while the broker is down."""
    ports = []
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as trial:
            try:
                trial.bind((HOST, port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == number:
            return ports
    raise RuntimeError(f"a hundred ports, and fewer than {number} of them free")


def _lines(path):
    return path.read_text(errors="replace").splitlines()
