"""Real notebook servers on loopback, with folders of their own, for tests with a real browser."""

import json
import os
import random
import secrets
import socket
import subprocess
import sys
import urllib.request
from itertools import count
from pathlib import Path
from time import monotonic, sleep

ROOT = Path(__file__).parents[2]
KERNEL = "of-the-tests"  # a name of our own, which no kernel of the machine can shadow
PAGES = {"lab": "lab/tree/{}?reset&", "notebook": "notebooks/{}?"}
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
SECONDS = 60  # until it is given up to wait for a server
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class Server:
    """A process that serves the notebooks of a folder, to those who know its token."""

    def __init__(self, folder):
        self.folder = folder
        self.notebooks = folder / "notebooks"
        self.notebooks.mkdir(parents=True)
        self.token = secrets.token_hex(16)
        self.port = _free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._numbers = count(1)
        self._process = None
        _write_kernelspec(folder / "data")

    def add(self, source):
        """Put a notebook there, cells of code or the path of a notebook, and return its name."""
        import nbformat  # which machines without browser tests need not have

        if isinstance(source, Path):
            notebook = nbformat.read(source, 4)
        else:
            cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in source]
            notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata["kernelspec"] = {"name": KERNEL, "display_name": KERNEL}
        name = f"{next(self._numbers)}.ipynb"
        nbformat.write(notebook, self.notebooks / name)
        return name

    def stop(self):
        """End the process; it ends its kernels first."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log(self):
        """Return what the process had to say."""
        return (self.folder / "server.log").read_text(errors="replace")

    def ask(self, path, method="GET"):
        """Return what the REST interface answers to a request."""
        request = urllib.request.Request(
            f"http://{self.address}/{path}",
            method=method,
            headers={"Authorization": f"token {self.token}"},
        )
        with _open(request, timeout=SECONDS) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def _start(self, module, arguments, options):
        options = [f"--{name}={value}" for name, value in options.items()]
        with (self.folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                cwd=self.notebooks,
            )
        until = monotonic() + SECONDS
        while not self._listens():
            if self._process.poll() is not None or monotonic() > until:
                self.stop()
                raise RuntimeError(f"{module} does not start:\n{self.log()}")
            sleep(0.05)
        return self

    def _listens(self):
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", self.port)) == 0

    def _environment(self):
        folders = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "IPYTHONDIR": "ipython",
        }
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            **{name: str(self.folder / folder) for name, folder in folders.items()},
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }


def _free_port():
    """Return a free port that the system gives to nobody else while the server starts."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("a hundred ports, and none of them free")


def _write_kernelspec(data):
    folder = data / "kernels" / KERNEL
    folder.mkdir(parents=True)
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": KERNEL,
        "language": "python",
    }
    (folder / "kernel.json").write_text(json.dumps(spec))


class Jupyter(Server):
    """JupyterLab, and Notebook, which is the same server at other addresses."""

    def start(self):
        """Start it; it asks nobody for news, updates or extensions."""
        settings = self.folder / "settings"
        self._set("notification", {"fetchNews": "false", "checkForUpdates": False})
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": self.port,
            "ServerApp.port_retries": 0,
            "ServerApp.allow_root": True,
            "ServerApp.open_browser": False,
            "ServerApp.root_dir": self.notebooks,
            "IdentityProvider.token": self.token,
            "LabApp.user_settings_dir": settings,
            "LabApp.workspaces_dir": self.folder / "workspaces",
            "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
            "LabApp.extension_manager": "readonly",
            # Tests use commands, whose names are stable and which tell when they are done.
            "LabApp.expose_app_in_browser": True,
            "JupyterNotebookApp.expose_app_in_browser": True,
            "JupyterNotebookApp.user_settings_dir": settings,
        }
        return self._start("jupyterlab", [], options)

    def url(self, name, app):
        """Return where an app shows a notebook: "lab" or "notebook"."""
        return f"http://{self.address}/{PAGES[app].format(name)}token={self.token}"

    def set_theme(self, theme):
        """Have pages that are opened from now on in a theme: "light" or "dark"."""
        self._set("themes", {"theme": THEMES[theme]})

    def end_kernel(self, name):
        """End the kernel of a notebook."""
        for session in self.ask("api/sessions"):
            if session["path"] == name:
                self.ask(f"api/sessions/{session['id']}", "DELETE")

    def _set(self, plugin, values):
        folder = self.folder / "settings" / "@jupyterlab" / "apputils-extension"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{plugin}.jupyterlab-settings").write_text(json.dumps(values))


class Voila(Server):
    """One notebook as an application: it runs when its page is opened, and shows no code."""

    def start(self, source, theme):
        """Start it with cells of code or the path of a notebook."""
        options = {
            "Voila.ip": "127.0.0.1",
            "Voila.port": self.port,
            "Voila.port_retries": 0,
            "Voila.open_browser": False,
            "Voila.token": self.token,
            "VoilaConfiguration.theme": theme,
        }
        return self._start("voila", [self.add(source)], options)

    def url(self):
        """Return where it shows the notebook."""
        return f"http://{self.address}/?token={self.token}"
