"""The live panels in a real browser, as users see and use them."""

import re

import pytest
from browsing import NOTEBOOK
from serving import ROOT

pytestmark = pytest.mark.browser

PI = ROOT / "notebooks" / "02-monte-carlo-pi.ipynb"
PI_RUN, PI_LONG = 5, 16  # its cells that show a run
THEMES = ["light", "dark"]
SETUP = """
import time
from pathlib import Path
from atomizer_dask import Atomizer, MemoryConductor, atom, grid

GATE = Path({gate!r})

@atom
def measure(place, *, context):
    '''Return a signal and a colour.'''
    while place >= 40 and not GATE.exists() and not context.cancelled:
        time.sleep(0.005)
    if place % 10 == 0 or place in (3, 5):
        print("a lamp at", place, "burns with a steady light, as far as anybody can tell from here")
    if place in (3, 5) and context.attempt == 1:
        raise RuntimeError("no light, on purpose")
    if place % 10 == 0:
        context.emit("measured", place=place)
    if place == 7:
        context.emit("dim light", level="warning")
    return {{"signal": place / 2, "colour": "red" if place % 3 else "blue"}}

atomizer = Atomizer(MemoryConductor(2), measure)
"""
MAP = "run = atomizer.map(measure, grid(place=range(200)), seed=7, name='lamps')\nrun"
HOSTILE = """
from atomizer_dask import Atomizer, MemoryConductor, atom, zipped

EVIL = "<img src=x onerror=window.hacked=1>"

@atom(id=EVIL)
def evil(text, number, *, context):
    context.emit(EVIL, field=EVIL)
    print(EVIL)
    if number == 0:
        raise ValueError(EVIL)
    return {EVIL: number, "echo": EVIL}

atomizer = Atomizer(MemoryConductor(2), evil)
run = atomizer.map(evil, zipped(text=[EVIL] * 9, number=range(9))).wait()
run
"""
# Notes which values a progress bar has had.
WATCH_BAR = """bar => {
    window.seen = [];
    const note = () => window.seen.push(Number(bar.getAttribute("aria-valuenow")));
    note();
    new MutationObserver(note).observe(bar, {attributeFilter: ["aria-valuenow"]});
}"""
OVERFLOWING = """az => [az, ...az.querySelectorAll("*")].filter(
    element => element.checkVisibility() && element.clientWidth && !element.closest("svg")
        && getComputedStyle(element).overflowX === "visible"
        && getComputedStyle(element).display !== "inline"
        && element.scrollWidth > element.clientWidth + 1 && !element.closest(".scroll"))
    .map(element => `${element.tagName}.${element.className}`)"""
CONTRAST = """az => {
    const luminance = ([r, g, b]) => {
        const line = [r, g, b].map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * line[0] + 0.7152 * line[1] + 0.0722 * line[2];
    };
    const context = Object.assign(document.createElement("canvas"), {width: 1, height: 1})
        .getContext("2d", {willReadFrequently: true});
    const over = (colors) => {
        context.clearRect(0, 0, 1, 1);
        for (const color of colors) { context.fillStyle = color; context.fillRect(0, 0, 1, 1); }
        return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map(c => c / 255);
    };
    const bad = [];
    for (const element of az.querySelectorAll("*")) {
        const says = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!says || !element.checkVisibility()) continue;
        const behind = [];
        for (let up = element; up; up = up.parentElement) {
            behind.unshift(getComputedStyle(up).backgroundColor);
        }
        const back = luminance(over(behind));
        const front = luminance(over([...behind, getComputedStyle(element).color]));
        const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
        if (ratio < 4.5) bad.push(`${element.className || element.tagName}: ${ratio.toFixed(2)}`);
    }
    return bad;
}"""


@pytest.fixture
def setup(gate):
    """The cell that registers an atom, whose electrons from the 40th on wait at the gate."""
    return SETUP.format(gate=gate.path)


class Panel:
    """A live panel on a page."""

    def __init__(self, view, place=None, *, number=0):
        self.view = view
        self.az = (view.page if place is None else place).locator(".az").nth(number)
        self.az.wait_for()
        self.bar = self.az.get_by_role("progressbar")

    def press(self, name, **options):
        self.az.get_by_role("button", name=name, exact=True, **options).click()

    def open(self, name):
        self.az.get_by_role("tab", name=name).click()
        return self.az.get_by_role("tabpanel", name=name)

    def says(self, text):
        """Wait until some text is there; ``text`` may be a pattern."""
        self.az.get_by_text(text).locator("visible=true").first.wait_for()

    def is_at(self, value):
        self.az.locator(f"[role=progressbar][aria-valuenow='{value}']").wait_for()

    def picture(self, name):
        self.az.scroll_into_view_if_needed()
        self.view.screenshot(f"panel-{name}")


def events(panel):
    """Return what the rows of events, or lines, that are shown say."""
    return panel.az.locator(".ev .what").locator("visible=true").all_inner_texts()


def check(view):
    """See that nothing went wrong in a page, and that all can be read."""
    assert view.errors == []
    assert view.outside == []
    for az in view.page.locator(".az").all():
        assert az.evaluate(CONTRAST) == []


@pytest.mark.timeout(300)  # a whole notebook, which a busy machine may take long for
@pytest.mark.parametrize("theme", THEMES)
def test_the_notebook_of_pi(open_notebook, theme):
    notebook = open_notebook(PI, theme)
    page = notebook.page
    notebook.run_all(wait=False)
    panel = Panel(notebook, notebook.output(PI_RUN))
    panel.bar.evaluate(WATCH_BAR)
    panel.says("running")
    page.wait_for_function("window.seen.some(ended => ended > 0 && ended < 300)")
    panel.says(re.compile(r"tossed\s+replica="))
    panel.says("running")  # so that the events came while it did
    panel.picture(f"pi-running-{theme}")
    panel.is_at(300)
    seen = page.evaluate("window.seen")
    assert len({ended for ended in seen if 0 < ended < 300}) >= 3
    page.wait_for_function(f"{NOTEBOOK}.sessionContext.session.kernel.status === 'idle'")
    panel.says("finished")
    panel.says(re.compile("failed, 1 retried"))
    panel.picture(f"pi-finished-{theme}")
    long = Panel(notebook, notebook.output(PI_LONG))
    long.says(re.compile("cancelled, .* did not end"))
    long.picture(f"pi-cancelled-{theme}")
    check(notebook)


@pytest.mark.parametrize("theme", THEMES)
def test_a_run_is_watched_and_steered(open_notebook, setup, gate, theme):
    notebook = open_notebook([setup, MAP], theme)
    page = notebook.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    notebook.run_all()
    panel = Panel(notebook)
    panel.is_at(40)
    steer(panel)
    filter_events(panel)
    look_at_failures(panel, theme)
    gate.open()
    panel.says("finished")
    panel.is_at(200)
    look_at_output(panel, theme)
    look_at_results(panel, theme)
    check(notebook)


def steer(panel):
    panel.press("Pause")
    panel.says("paused")
    panel.press("Resume")
    panel.says("running")


def filter_events(panel):
    panel.says("dim light")
    search = panel.az.get_by_role("searchbox")
    search.fill("MEASURED")
    assert events(panel)
    assert all(text.startswith("measured") for text in events(panel))
    search.fill("")
    panel.az.get_by_role("combobox").select_option("warning")
    assert "dim light" in events(panel)
    assert not any(text.startswith("measured") for text in events(panel))
    panel.az.get_by_role("combobox").select_option("")
    panel.press("Hold")
    before = events(panel)
    steer(panel)  # which are events too
    panel.az.get_by_role("button", name=re.compile("Follow, .* new")).wait_for()
    assert events(panel) == before
    panel.az.get_by_role("button", name="Follow").click()
    assert len(events(panel)) > len(before)


def look_at_failures(panel, theme):
    shown = panel.open("Failures")
    shown.get_by_text("no light, on purpose").first.click()
    shown.locator("pre", has_text="Traceback").wait_for()
    assert "RuntimeError: no light, on purpose" in shown.locator("pre").first.inner_text()
    shown.locator("pre", has_text="a lamp at 3 burns").wait_for()
    assert "place=3" in shown.inner_text()
    line = shown.locator("code").first.inner_text()
    assert re.fullmatch(r"run\.replay\('lamps-.*-3'\)", line)
    shown.get_by_role("button", name=f"Copy {line}").click()
    shown.get_by_text("Copied").wait_for()
    assert panel.view.page.evaluate("navigator.clipboard.readText()") == line
    check(panel.view)
    panel.picture(f"failures-{theme}")
    shown.get_by_role("button", name="Retry exception RuntimeError").click()
    panel.says("failed, 2 retried")


def look_at_output(panel, theme):
    shown = panel.open("Output")
    shown.get_by_text("a lamp at 30 burns").wait_for()
    lines = events(panel)
    assert len(lines) == 24  # of electrons that were tried again, of both attempts
    shown.get_by_role("searchbox").fill("at 30 ")
    assert len(events(panel)) == 1
    panel.picture(f"output-{theme}")
    check(panel.view)
    shown.get_by_role("searchbox").fill("")


def look_at_results(panel, theme):
    shown = panel.open("Workers")
    shown.get_by_role("columnheader", name="electrons").wait_for()
    assert shown.get_by_role("row").count() == 2
    panel.picture(f"workers-{theme}")
    check(panel.view)
    shown = panel.open("Results")
    shown.get_by_role("img", name=re.compile("histogram of signal")).wait_for()
    assert shown.locator("svg rect").count() > 5
    panel.picture(f"results-{theme}")
    check(panel.view)
    shown.get_by_role("combobox").select_option("colour")
    shown.get_by_role("img", name=re.compile("counts of colour")).wait_for()
    assert shown.locator(".counts .what").all_inner_texts() == ["red", "blue"]
    panel.picture(f"counts-{theme}")


def test_cancel_asks_once_also_while_a_cell_is_executed(open_notebook, setup):
    notebook = open_notebook([setup, MAP, "run.wait().state"])
    notebook.run_cell(0)
    notebook.run_cell(1)
    notebook.run_cell(2, wait=False)
    panel = Panel(notebook)
    panel.is_at(40)
    steer(panel)
    panel.press("Cancel")
    panel.press("Keep running")
    panel.press("Cancel")
    panel.press("Yes, cancel")
    panel.says(re.compile("cancelled, 2 failed, .* did not end"))
    notebook.output(2).get_by_text("'cancelled'").wait_for()
    assert panel.az.get_by_role("button", name="Cancel").count() == 0
    panel.picture("cancelled")
    check(notebook)


def test_two_views_and_two_runs(open_notebook, setup, gate):
    other = """another = Atomizer(MemoryConductor(2), measure)
other = another.map(measure, grid(place=range(10)), name='sun')
other"""
    notebook = open_notebook([setup, MAP, "run", other])
    notebook.run_all()
    first, second, sun = (Panel(notebook, number=number) for number in range(3))
    sun.says(re.compile("finished, 2 failed"))
    for panel in (first, second):
        panel.is_at(40)
        panel.says("running")
    first.press("Pause")
    second.says("paused")
    second.open("Results").get_by_role("table").wait_for()
    assert first.az.get_by_role("tab", name="Events").get_attribute("aria-selected") == "true"
    second.press("Resume")
    gate.open()
    first.says(re.compile("finished"))
    second.says(re.compile("finished"))
    assert "sun" in sun.az.inner_text()
    assert "lamps" not in sun.az.inner_text()
    check(notebook)


def test_a_page_comes_back_and_a_kernel_does_not(open_notebook, setup, gate):
    notebook = open_notebook([setup, MAP])
    notebook.run_all()
    Panel(notebook).is_at(40)
    notebook.save()
    notebook.reload()
    panel = Panel(notebook)
    panel.is_at(40)
    panel.says("dim light")
    steer(panel)
    assert notebook.page.locator("[data-atomizer-still]:visible").count() == 0
    gate.open()
    panel.says("finished")
    check(notebook)


def test_a_panel_whose_kernel_is_restarted_says_so(open_notebook, setup):
    notebook = open_notebook([setup, MAP])
    notebook.run_all()
    panel = Panel(notebook)
    panel.is_at(40)
    notebook.page.evaluate(f"{NOTEBOOK}.sessionContext.session.kernel.restart()")
    panel.says("the kernel is gone")
    assert panel.az.locator(".actions button").count() == 0
    elapsed = panel.az.locator(".elapsed")
    before = elapsed.inner_text()
    notebook.page.wait_for_function(f"{NOTEBOOK}.sessionContext.session.kernel.status === 'idle'")
    assert elapsed.inner_text() == before
    panel.open("Failures").get_by_text("had not been asked for it").wait_for()
    panel.picture("kernel-gone")
    check(notebook)


@pytest.mark.parametrize("theme", THEMES)
def test_a_saved_notebook_has_a_picture_of_the_run(open_notebook, setup, gate, theme):
    gate.open()
    notebook = open_notebook([setup, MAP, "run.wait().state", "atomizer"], theme)
    notebook.run_all()
    Panel(notebook).says(re.compile("finished"))
    notebook.save()
    notebook.reopen()
    still = notebook.output(1).locator("[data-atomizer-still]")
    still.get_by_text("of 200 electrons").wait_for()
    still.locator("summary").first.click()
    still.get_by_text("Traceback").wait_for()
    notebook.output(1).get_by_text("model not found").wait_for(state="hidden")
    assert notebook.output(1).get_by_text("lamps").count() > 0
    notebook.screenshot(f"panel-still-{theme}")


def test_hostile_texts_stay_texts(open_notebook):
    notebook = open_notebook([HOSTILE, "atomizer"])
    notebook.run_all()
    run, atomizer = Panel(notebook), Panel(notebook, number=1)
    run.says(re.compile("finished, 1 failed"))
    for panel, tabs in (
        (run, ["Events", "Failures", "Output", "Workers", "Results"]),
        (atomizer, ["Runs", "Events", "Atoms", "Conductors"]),
    ):
        for tab in tabs:
            panel.open(tab)
            if tab in ("Events", "Failures", "Output", "Results", "Atoms"):
                panel.says(re.compile("<img src=x"))
    run.open("Failures").locator("summary").first.click()
    run.open("Results").get_by_role("combobox").select_option("echo")
    run.az.get_by_role("img", name=re.compile("counts of echo")).wait_for()
    run.picture("hostile")
    notebook.save()
    notebook.reopen()
    notebook.output(0).locator("[data-atomizer-still]").wait_for()
    assert notebook.page.evaluate("window.hacked") is None
    assert notebook.output(0).locator("img").count() == 0


@pytest.mark.parametrize("theme", THEMES)
def test_nothing_overflows_a_narrow_cell(open_notebook, setup, theme):
    notebook = open_notebook([setup, MAP], theme, width=480)
    notebook.run_all()
    panel = Panel(notebook)
    panel.is_at(40)
    for tab in ("Events", "Failures", "Output", "Workers", "Results"):
        shown = panel.open(tab)
        if tab == "Failures":
            shown.locator("summary").first.click()
        shown.locator(".ev, pre, table").first.wait_for()
        assert panel.az.evaluate(OVERFLOWING) == []
        panel.picture(f"narrow-{tab.lower()}-{theme}")
    panel.press("Cancel")
    panel.press("Yes, cancel")
    panel.says(re.compile("did not end"))
    assert panel.az.evaluate(OVERFLOWING) == []
    check(notebook)


def test_all_can_be_done_with_the_keyboard(open_notebook, setup):
    notebook = open_notebook([setup, MAP])
    page = notebook.page
    notebook.run_all()
    panel = Panel(notebook)
    panel.is_at(40)
    tab_to(page, "button", "Pause")
    page.keyboard.press("Enter")
    panel.says("paused")
    tab_to(page, "tab", "Events")
    page.keyboard.press("ArrowRight")
    assert focused(page)["name"].startswith("Failures")
    assert panel.az.get_by_role("tabpanel", name="Failures").is_visible()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert focused(page)["name"].startswith("Results")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    panel.az.locator("summary").first.wait_for()
    tab_to(page, "summary", "exception")
    page.keyboard.press("Enter")
    panel.says(re.compile("Traceback"))
    tab_to(page, "button", "Copy")
    panel.picture("focus")


def tab_to(page, kind, name):
    """Press the tabulator until something in a panel has the focus, visibly."""
    if not page.evaluate("Boolean(document.activeElement.closest('.az'))"):
        page.locator(".az .events, .az .stats").first.evaluate(
            "e => { e.tabIndex = 0; e.closest('.az').querySelector('button').focus(); }"
        )
    for _ in range(20):
        now = focused(page)
        if now["kind"] == kind and now["name"].startswith(name):
            assert now["outline"] == "solid"
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"no way to {kind} {name}; the focus is at {now}")


def focused(page):
    """Return what has the focus."""
    return page.evaluate("""() => {
        const element = document.activeElement;
        return {kind: element.getAttribute("role") ?? element.tagName.toLowerCase(),
            name: element.textContent, outline: getComputedStyle(element).outlineStyle};
    }""")


def test_a_panel_tells_screen_readers_what_it_is(open_notebook, setup):
    notebook = open_notebook([setup, MAP])
    notebook.run_all()
    panel = Panel(notebook)
    panel.is_at(40)
    assert panel.bar.get_attribute("aria-valuemin") == "0"
    assert panel.bar.get_attribute("aria-valuemax") == "200"
    assert panel.bar.get_attribute("aria-valuetext") == "40 of 200 electrons ended, 2 failed"
    assert panel.bar.get_attribute("aria-label") == "progress of measure"
    for tab in panel.az.get_by_role("tab").all():
        tab.click()
        shown = panel.az.locator(f"#{tab.get_attribute('aria-controls')}")
        assert shown.is_visible()
        assert shown.get_attribute("aria-labelledby") == tab.get_attribute("id")
        assert tab.get_attribute("aria-selected") == "true"
        assert panel.az.get_by_role("tabpanel").count() == 1
    for control in panel.az.locator("input, select, svg[role=img]").all():
        assert control.get_attribute("aria-label")


def test_nothing_is_sent_while_nothing_changes(open_notebook, setup, gate):
    gate.open()
    frames = []
    notebook = open_notebook([setup, MAP, "import time\ntime.sleep(1.5)"])
    notebook.page.on(
        "websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(frame))
    )
    notebook.reload()
    notebook.run_cell(0)
    notebook.run_cell(1)
    panel = Panel(notebook)
    panel.says(re.compile("finished"))
    notebook.run_cell(2)  # what is still under way arrives before that is done
    assert any(b'"comm_msg"' in _bytes(frame) for frame in frames)
    frames.clear()
    notebook.run_cell(2)
    assert any(b'"status"' in _bytes(frame) for frame in frames)
    assert not any(b'"comm_msg"' in _bytes(frame) for frame in frames)


def _bytes(frame):
    return frame.encode() if isinstance(frame, str) else frame


LEFT = """
import json
from pathlib import Path
from atomizer_dask import Atomizer, MemoryConductor, Run, atom, grid

@atom
def noise(x):
    return {{"value": x / 4}}

STORE = Path({store!r})
with Atomizer(MemoryConductor(2), noise) as atomizer:
    atomizer.map(noise, grid(x=range(1000)), store=STORE).wait()
manifest = json.loads((STORE / "run.json").read_text())
manifest["state"], manifest["sessions"][-1]["end"] = "running", None  # as a crash leaves it
(STORE / "run.json").write_text(json.dumps(manifest))
Run.open(STORE)
"""


def test_a_run_that_was_left_stands_still_and_says_what_its_results_are_of(open_notebook, tmp_path):
    notebook = open_notebook([LEFT.format(store=str(tmp_path / "store"))])
    notebook.run_all()
    panel = Panel(notebook)
    panel.says("suspended")
    panel.says(re.compile(r"is gone, and had not ended it: atomizer\.attach\("))
    elapsed = panel.az.locator(".elapsed")
    before = elapsed.inner_text()
    results = panel.open("Results")
    results.get_by_text("first and last of 1,000 rows").wait_for()
    told = "0 to 249.75; mean 124.875, standard deviation 72.1687 of all 1,000 rows"
    results.get_by_text(told, exact=True).wait_for()
    notebook.page.wait_for_timeout(1500)
    assert elapsed.inner_text() == before
    panel.picture("left")
    check(notebook)


def test_notebook_shows_it_live(open_notebook, setup, gate):
    notebook = open_notebook([setup, MAP], app="notebook")
    notebook.run_all()
    panel = Panel(notebook)
    panel.is_at(40)
    steer(panel)
    gate.open()
    panel.says(re.compile("finished"))
    notebook.screenshot("panel-notebook")
    check(notebook)


def test_voila_shows_it_live(open_voila, setup, gate):
    view = open_voila([setup, MAP], "dark")
    panel = Panel(view)
    panel.is_at(40)
    steer(panel)
    gate.open()
    panel.says(re.compile("finished"))
    assert view.page.locator("[data-atomizer-still]:visible").count() == 0
    view.screenshot("panel-voila")
    assert view.errors == []
    assert view.outside == []


CONDUCTORS = """
from dataclasses import replace

class Board(MemoryConductor):
    address = "http://127.0.0.1:8787/status"
    def status(self):
        return replace(super().status(), dashboard=self.address)

board = Board(2)
board
"""
SCRIPT = """
script = Board(2)
script.address = "javascript:window.hacked=1"
script
"""


def test_atomizers_and_conductors(open_notebook, setup, gate):
    notebook = open_notebook([setup, MAP, "atomizer", CONDUCTORS, SCRIPT])
    notebook.run_all()
    atomizer, board, script = (Panel(notebook, number=number) for number in (1, 2, 3))
    atomizer.says("running")
    atomizer.az.get_by_role("button", name=re.compile("Pause lamps")).click()
    atomizer.says("paused")
    Panel(notebook).says("paused")
    atomizer.az.get_by_role("button", name=re.compile("Resume lamps")).click()
    gate.open()
    atomizer.says(re.compile("finished"))
    for tab in ("Events", "Atoms", "Conductors"):
        atomizer.open(tab)
    atomizer.says("MemoryConductor")
    link = board.az.get_by_role("link", name="Dask dashboard")
    assert link.get_attribute("href") == "http://127.0.0.1:8787/status"
    assert link.get_attribute("rel") == "noopener noreferrer"
    script.says(re.compile("connected"))
    assert script.az.get_by_role("link").count() == 0
    atomizer.picture("atomizer")
    board.picture("conductor")
    check(notebook)
