"""A real browser, and what it shows: notebooks as their users see them."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

SCREENSHOTS = Path(__file__).parents[1] / "screenshots"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MODULES = ("ipykernel", "ipywidgets", "jupyterlab", "nbformat", "notebook", "playwright", "voila")
SECONDS = 60  # until it is given up to wait for something on a page
# Chromium resolves no name, whoever asks, so that nothing can leave this machine.
ARGUMENTS = [
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
# What Notebook and Voila complain of, or ask for, whatever notebook they show.
OF_THE_APPS = re.compile(
    r"reading 'schema'|'filebrowser:open-path' not registered"
    r"|/voila/labextensions/@jupyter-notebook/|/npm/@fortawesome/fontawesome-free@"
)
NOTEBOOK = "window.jupyterapp.shell.currentWidget"
READY = f"""theme => {{
    const kernel = window.jupyterapp && {NOTEBOOK}?.sessionContext?.session?.kernel;
    return kernel?.connectionStatus === "connected" && kernel.status === "idle"
        && document.body.dataset.jpThemeLight === String(theme === "light");
}}"""
EXECUTE = """([command, cell, wait]) => {
    if (cell !== null) NOTEBOOK.content.activeCellIndex = cell;
    const done = window.jupyterapp.commands.execute(command);
    return wait ? done.then(() => null) : null;
}""".replace("NOTEBOOK", NOTEBOOK)
TRACEBACKS = f"""() => {NOTEBOOK}.content.model.sharedModel.cells.flatMap(
    cell => (cell.outputs ?? []).filter(output => output.output_type === "error")
        .map(output => output.traceback.join("\\n")))"""


def executable():
    """Return the path of the Chromium of this machine, None where there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def missing():
    """Return the names of what tests with a browser need and this machine lacks."""
    modules = [name for name in MODULES if find_spec(name) is None]
    return [*modules, *([] if executable() else ["Chromium"])]


class Chromium:
    """The browser of this machine, without a window; pages share what it keeps of JupyterLab."""

    def __init__(self, playwright):
        self._browser = playwright.chromium.launch(executable_path=executable(), args=ARGUMENTS)
        self._contexts = {}

    def page(self, theme, width, height, *, scale=1):
        """Return an empty page for people who like a theme, on a screen of some pixel ratio."""
        page = self._context(scale).new_page()
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=theme)
        return page

    def close(self):
        """End it."""
        self._browser.close()

    def _context(self, scale):
        if scale not in self._contexts:
            self._contexts[scale] = self._browser.new_context(device_scale_factor=scale)
            self._contexts[scale].set_default_timeout(1000 * SECONDS)
        return self._contexts[scale]


class View:
    """A page, and what went wrong in it.

    Attributes
    ----------
    page : playwright.sync_api.Page
        The page itself.
    errors : list of str
        What its scripts threw, or logged as an error; without what the apps do by themselves.
    outside : list of str
        The addresses other than its server that it asked for, in vain; again without theirs.
    """

    def __init__(self, page, server):
        self.page = page
        self.errors = []
        self.outside = []
        self._server = server
        self._own = re.compile(f"(http|ws)://{re.escape(server.address)}/|data:|blob:|about:")
        page.on("pageerror", lambda error: _note(str(error), self.errors))
        page.on("console", self._hear)
        page.on("request", self._check)
        page.on("websocket", self._check)
        page.on("dialog", lambda dialog: dialog.accept())

    def screenshot(self, name):
        """Keep a picture of the page in tests/screenshots."""
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")

    def close(self):
        """Close the page."""
        self.page.close()

    def _check(self, request):
        if not self._own.match(request.url):
            _note(request.url, self.outside)

    def _hear(self, message):
        if message.type == "error":
            _note(f"{message.text} ({message.location['url']})", self.errors)


def _note(text, texts):
    if not OF_THE_APPS.search(text):
        texts.append(text)


class Notebook(View):
    """A notebook with a kernel of its own, open in JupyterLab or Notebook.

    Attributes
    ----------
    name : str
        Its path on the server.
    """

    def __init__(self, page, server, source, theme, app):
        super().__init__(page, server)
        self.name = server.add(source)
        self._theme = theme
        self._app = app
        self._open()

    def run_all(self, wait=True):
        """Execute all cells; without waiting where one of them takes long."""
        self._execute("notebook:run-all-cells", None, wait)

    def run_cell(self, number, wait=True):
        """Execute a cell; without waiting where it takes long."""
        self._execute("notebook:run-cell", number, wait)

    def output(self, number):
        """Return the locator of what a cell shows below its code."""
        cell = self.page.locator(".jp-Notebook .jp-Cell").nth(number)
        return cell.locator(".jp-Cell-outputArea")

    def save(self):
        """Save the notebook with what it shows."""
        self._execute("docmanager:save", None, wait=True)

    def reload(self):
        """Open the page again; the kernel goes on."""
        self._open()

    def reopen(self):
        """Open the page again with another kernel, as on the next day."""
        self.page.goto("about:blank")
        self._server.end_kernel(self.name)
        self._open()

    def close(self):
        """Close the page and end its kernel."""
        super().close()
        self._server.end_kernel(self.name)

    def _open(self):
        self._server.set_theme(self._theme)
        self.page.goto(self._server.url(self.name, self._app))
        self.page.wait_for_function(READY, arg=self._theme)
        self.page.evaluate("window.jupyterapp.shell.collapseLeft()")  # more room for the cells

    def _execute(self, command, cell, wait):
        self.page.evaluate(EXECUTE, [command, cell, wait])
        if wait and (tracebacks := self.page.evaluate(TRACEBACKS)):
            raise AssertionError("\n\n".join(tracebacks))
