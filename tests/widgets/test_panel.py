import gc
import json
import os
import subprocess
import sys
import threading
from time import monotonic, sleep

import nbformat
import numpy as np
import pytest
from distributed import LocalCluster
from nbclient import NotebookClient
from patience import wait_until

from atomizer_dask import Atomizer, DaskConductor, Run, atom, grid
from atomizer_dask.widgets import panel_of
from atomizer_dask.widgets import run_panel as run_panel_module
from atomizer_dask.widgets.panel import BYTES_PER_SECOND, refresher

SECONDS = 30
TRAITS = ("state", "news", "failures", "output", "workers", "results")
TABS = ["events", "failures", "output", "workers", "results"]
IMG = "<img src=x onerror=alert(1)>"


@atom(id="shown.square")
def square(x):
    return x * x


@atom(id="shown.odd")
def odd(x):
    if x % 2 == 0:
        raise ValueError(IMG)
    return x


@atom(id="shown.wait")
def wait_for_gate(x, gate, *, context):
    while not os.path.exists(gate) and not context.cancelled:
        sleep(0.005)
    return x


class Page:
    """What a page does with a panel: it says things, and is sent updates."""

    def __init__(self, panel):
        self.panel, self.sent = panel, [{"news": panel.news}]
        panel.comm.send = lambda data=None, **kwargs: self.sent.append(data["state"])
        self.say(hello=True, views=1, tabs=TABS)

    def say(self, **message):
        self.panel._handle_custom_msg(message, [])

    def press(self, what, **more):
        """Press a button, and wait until what it stands for has been done."""
        before = set(threading.enumerate())
        self.say(do=what, **more)
        self.panel.update_saved_output()
        for thread in set(threading.enumerate()) - before:
            if thread.name == "atomizer-button":
                thread.join(SECONDS)
        self.panel.update_saved_output()

    @property
    def rows(self):
        """The events that the page has been sent, by number."""
        return {row[0]: row for state in self.sent for row in state.get("news", {}).get("rows", ())}


@pytest.fixture
def page():
    """Open pages, and close their panels in the end."""
    pages = []

    def page(thing):
        pages.append(Page(panel_of(thing)))
        pages[-1].panel.update_saved_output()
        return pages[-1]

    yield page
    for opened in pages:
        opened.panel.close()


def assert_sendable(panel):
    traits = {name: getattr(panel, name) for name in TRAITS}
    json.dumps(traits, allow_nan=False, ensure_ascii=False).encode()


# -- a run ---------------------------------------------------------------------------------------


def test_a_run_is_shown_from_its_beginning_to_its_end(atomizer, page, gate):
    run = atomizer.map(wait_for_gate, grid(x=range(4), gate=[gate.path]))
    opened = page(run)
    assert run.watch() is opened.panel
    state = opened.panel.state
    assert (state["kind"], state["atom"], state["id"]) == ("run", "wait", run.id)
    assert (state["state"], state["total"], state["done"]) == ("running", 4, 0)
    assert state["can"] == ["pause", "cancel"]
    gate.open()
    run.wait()
    state = opened.panel.state
    assert (state["state"], state["done"], state["eta"], state["can"]) == ("finished", 4, 0.0, [])
    assert opened.panel.results["columns"] == ["x", "gate", "result"]
    assert sum(row["electrons"] for row in opened.panel.workers) == 4
    assert "finished" in [row[3] for row in opened.rows.values()]
    assert_sendable(opened.panel)


def test_after_the_end_nothing_is_sent_any_more(local, page):
    opened = page(local.map(square, grid(x=range(10))).wait())
    opened.panel.update_saved_output()
    sent = len(opened.sent)
    for _ in range(3):
        opened.panel.update_saved_output()
    assert len(opened.sent) == sent
    assert opened.panel.refresh() is None


def test_nothing_is_sent_where_only_time_goes_on(local, page, gate):
    run = local.map(wait_for_gate, grid(x=[1], gate=[gate.path]))
    opened = page(run)
    wait_until(lambda: opened.panel.state["running"] == 1)
    opened.panel.update_saved_output()
    sent = len(opened.sent)
    opened.panel._status = None
    opened.say(tabs=["events"])
    opened.panel._due["crew"] = monotonic() + SECONDS
    for _ in range(5):
        opened.panel.refresh()
    assert len(opened.sent) - sent <= 1  # of who works on it
    gate.open()


def test_failures_are_shown_and_a_group_of_them_can_be_tried_again(atomizer, page):
    run = atomizer.map(odd, grid(x=range(6)))
    opened = page(run)
    run.wait()
    assert opened.panel.state["label"] == "finished, 3 failed"
    [group] = opened.panel.failures
    assert (group["kind"], group["type"], group["count"]) == ("exception", "ValueError", 3)
    assert opened.panel.state["can"] == ["retry"]
    opened.press("retry", kind="exception", type="TypeError")
    assert (run.state, opened.panel.state["retried"]) == ("finished", 0)
    opened.press("retry", kind="exception", type="ValueError")
    run.wait()
    assert opened.panel.state["retried"] == 3
    assert opened.panel.failures[0]["examples"][0]["attempt"] == 2


def test_a_run_that_goes_on_after_its_end_is_alive_again(local, page):
    calls = []

    def once(x):
        calls.append(x)
        if len(calls) <= 4:
            raise ValueError(x)
        return x

    run = local.map(atom(once, id="once"), grid(x=range(4)))
    opened = page(run)
    run.wait()
    opened.press("retry")
    run.wait()
    assert opened.panel.state["label"] == "finished"
    assert (opened.panel.state["done"], opened.panel.failures) == (4, [])
    assert any("tried again" in row[3] for row in opened.rows.values())


def test_buttons_pause_resume_and_cancel(atomizer, page, gate):
    run = atomizer.map(wait_for_gate, grid(x=range(1000), gate=[gate.path]))
    opened = page(run)
    opened.press("pause")
    wait_until(lambda: run.state == "paused")
    opened.panel.update_saved_output()
    assert opened.panel.state["can"] == ["resume", "cancel"]
    opened.press("resume")
    wait_until(lambda: run.state == "running")
    opened.press("cancel")
    run.join(SECONDS)
    opened.panel.update_saved_output()
    state = opened.panel.state
    assert state["state"] == "cancelled"
    assert state["failed"] + state["done"] + state["cancelled"] == 1000
    assert "did not end" in state["label"]
    assert opened.panel.note == ""


def test_what_a_button_could_not_do_is_told(local, memory, page):
    run = local.map(odd, grid(x=range(2))).wait()
    opened = page(run)
    opened.press("<b>explode")
    assert "'<b>explode'" in opened.panel.state["note"]
    memory.close()
    opened.press("retry")
    assert opened.panel.state["note"].startswith("ConductorError: ")
    assert_sendable(opened.panel)


def test_a_tab_that_cannot_be_shown_costs_nothing_else(local, page, monkeypatch):
    def broken(run, column):
        raise ValueError("\ud800" + IMG)

    monkeypatch.setattr(run_panel_module, "preview", broken)
    run = local.map(odd, grid(x=range(6)))
    opened = page(run)
    run.wait()
    assert opened.panel.state["state"] == "finished"
    assert opened.panel.failures[0]["count"] == 3
    assert "the results cannot be shown: ValueError: " in opened.panel.state["note"]
    assert_sendable(opened.panel)
    monkeypatch.undo()
    opened.say(tabs=["results"])
    opened.panel.update_saved_output()
    assert opened.panel.state["note"] == ""
    assert opened.panel.results["columns"] == ["x", "result"]


def test_a_panel_that_fails_says_so_and_waiting_goes_on(local, page, monkeypatch):
    run = local.map(square, grid(x=range(6)))
    opened = page(run)

    def broken(run):
        raise ValueError("no facts")

    monkeypatch.setattr(run_panel_module, "run_facts", broken)
    assert run.wait() is run
    opened.panel.update_saved_output()
    assert "cannot be brought up to date: ValueError: no facts" in opened.panel.state["note"]
    monkeypatch.undo()
    opened.panel.update_saved_output()
    assert (opened.panel.state["state"], opened.panel.state["note"]) == ("finished", "")


def test_a_sweep_of_unknown_length_has_no_total_until_it_ends(local, page, gate):
    def rows():
        yield {"x": 1, "gate": gate.path}
        while not os.path.exists(gate.path):
            yield {"x": 1, "gate": os.devnull}

    run = local.map(wait_for_gate, rows())
    opened = page(run)
    assert (opened.panel.state["total"], opened.panel.state["eta"]) == (None, None)
    gate.open()
    run.wait()
    assert opened.panel.state["total"] == opened.panel.state["done"]


def test_a_huge_grid_is_shown(local, page):
    @atom(vectorized=True, id="vectorised")
    def vectorised(x, y):
        return {"sum": x + 1.0 * y}

    run = local.map(vectorised, grid(x=np.arange(5000), y=np.arange(1000)))
    opened = page(run)
    run.wait()
    assert opened.panel.state["done"] == 5_000_000
    assert opened.panel.results["last"][-1] == ["4999999", "4999", "999", "5998"]
    assert_sendable(opened.panel)


def test_events_reach_the_page_the_newest_first_and_within_bounds(local, page):
    @atom(id="talking")
    def talking(x, *, context):
        context.emit(IMG * 1000 + "\ud800", huge="y" * 100_000)
        return x

    run = local.map(talking, grid(x=range(2000)))
    opened = page(run)
    run.wait()
    sizes = [len(json.dumps(state)) for state in opened.sent]
    assert max(sizes) < BYTES_PER_SECOND
    assert opened.panel.news["total"] == run.recent.total >= 2000
    assert max(opened.rows) == run.recent.total - 1
    assert_sendable(opened.panel)


def test_a_page_that_comes_later_gets_all_events(local, page):
    run = local.map(odd, grid(x=range(6)))
    opened = page(run)
    run.wait()
    known = set(opened.rows)
    opened.say(hello=True)
    opened.panel.update_saved_output()
    later = Page(opened.panel)  # has the state as it is, and what is sent from then on
    later.panel.update_saved_output()
    assert set(later.rows) == known


def test_an_output_is_chosen(local, page):
    run = local.map(atom(lambda x: {IMG: x, "b": "t"}, id="two"), grid(x=range(6))).wait()
    opened = page(run)
    assert opened.panel.results["column"] == IMG
    opened.say(column="b")
    opened.panel.update_saved_output()
    assert opened.panel.results["chart"]["labels"] == ["t"]


def test_a_run_has_one_panel_until_that_is_closed(local):
    run = local.map(square, grid(x=range(3))).wait()
    panel = run.watch()
    assert run.watch() is panel
    panel.close()
    assert panel.refresh() is None
    again = run.watch()
    assert again is not panel
    assert again.state["state"] == "finished"
    again.close()


def test_a_panel_that_no_page_shows_keeps_no_run_alive(local, page, tmp_path):
    local.map(square, grid(x=range(3)), store=tmp_path / "run").wait()
    opened = page(Run.open(tmp_path / "run"))
    opened.say(views=0)
    opened.panel.update_saved_output()
    wait_until(lambda: gc.collect() is not None and opened.panel.thing is None)
    opened.panel.update_saved_output()
    assert opened.panel.state["can"] == []
    assert opened.panel.state["note"].startswith("no variable holds this")
    assert "no variable holds this" in opened.panel._repr_mimebundle_()["text/html"]


def test_a_page_that_shows_a_panel_keeps_its_run_alive(local, page):
    opened = page(local.map(odd, grid(x=range(4))).wait())
    gc.collect()
    assert opened.panel.thing is not None
    opened.press("retry")
    assert opened.panel.state["retried"] == 2


def test_many_runs_are_shown_at_once_and_no_thread_is_left(local, page):
    runs = [local.map(odd, grid(x=range(50))) for _ in range(20)]
    opened = [page(run) for run in runs]
    for run in runs:
        run.wait()
    assert {page.panel.state["label"] for page in opened} == {"finished, 25 failed"}
    wait_until(lambda: refresher._thread is None)


def test_buttons_and_waiting_from_many_threads(local, page):
    run = local.map(odd, grid(x=range(20_000)))
    opened = page(run)

    def press(what):
        for _ in range(10):
            opened.say(do=what)
            opened.panel.update_saved_output()

    threads = [threading.Thread(target=press, args=(w,)) for w in ("pause", "resume", "retry")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    for thread in threading.enumerate():
        if thread.name == "atomizer-button":
            thread.join(SECONDS)
    run.resume()
    run.wait()
    opened.panel.update_saved_output()
    state = opened.panel.state
    assert (state["state"], state["done"], state["failed"]) == ("finished", 10_000, 10_000)


# -- a run in a store ----------------------------------------------------------------------------


def test_a_run_in_a_store_is_shown_and_so_is_what_is_opened(atomizer, page, tmp_path):
    run = atomizer.map(odd, grid(x=range(8)), store=tmp_path / "run")
    opened = page(run)
    run.wait()
    assert opened.panel.state["store"] == run.store
    later = page(Run.open(tmp_path / "run"))
    for panel in (opened.panel, later.panel):
        assert panel.state["label"] == "finished, 4 failed"
        assert panel.failures[0]["count"] == 4
        assert panel.results["columns"] == ["x", "result"]
        assert_sendable(panel)
    assert later.panel.state["can"] == []


def test_a_run_that_is_under_way_elsewhere_is_followed(local, page, tmp_path, gate):
    run = local.map(wait_for_gate, grid(x=range(4), gate=[gate.path]), store=tmp_path / "run")
    opened = page(Run.open(tmp_path / "run"))
    assert (opened.panel.state["state"], opened.panel.state["can"]) == ("running", [])
    gate.open()
    run.wait()
    opened.panel.update_saved_output()
    assert (opened.panel.state["state"], opened.panel.state["done"]) == ("finished", 4)
    opened.press("cancel")
    assert "atomizer.attach" in opened.panel.state["note"]


def test_a_run_that_was_suspended_says_so_and_its_history_is_shown_when_attached(
    local, page, tmp_path, gate
):
    run = local.map(wait_for_gate, grid(x=range(40), gate=[gate.path]), store=tmp_path / "run")
    opened = page(run)
    run.suspend()
    opened.panel.update_saved_output()
    assert (opened.panel.state["state"], opened.panel.state["can"]) == ("suspended", [])
    gate.open()
    local.register(wait_for_gate)
    attached = local.attach(tmp_path / "run").wait()
    later = page(attached)
    assert (later.panel.state["state"], later.panel.state["done"]) == ("finished", 40)


# -- an atomizer and a conductor -----------------------------------------------------------------


def test_an_atomizer_shows_its_runs_atoms_conductors_and_events(atomizer, page):
    opened = page(atomizer)
    atomizer.register(square, odd)
    run = atomizer.map(odd, grid(x=range(4))).wait()
    opened.panel.update_saved_output()
    state = opened.panel.state
    assert (state["state"], state["run_count"]) == ("open", 1)
    assert (state["runs"][0]["id"], state["runs"][0]["label"]) == (run.id, "finished, 2 failed")
    assert {"shown.square", "shown.odd"} <= {row["id"] for row in state["atoms"]}
    assert state["conductors"][0]["state"] == "connected"
    assert opened.rows
    assert_sendable(opened.panel)
    atomizer.close()
    opened.panel.update_saved_output()
    assert opened.panel.state["state"] == "closed"
    assert opened.panel.pace is None


def test_runs_are_paused_from_the_panel_of_their_atomizer(local, page, gate):
    run = local.map(wait_for_gate, grid(x=range(100), gate=[gate.path]))
    opened = page(local)
    opened.press("pause", run=run.id)
    wait_until(lambda: run.state == "paused")
    opened.press("resume", run=run.id)
    wait_until(lambda: run.state == "running")
    opened.press("pause", run="another")
    assert "no variable holds that run" in opened.panel.state["note"]
    opened.press("_reopen", run=run.id)
    assert "does not know" in opened.panel.state["note"]
    gate.open()


def test_a_conductor_shows_its_workers_until_it_is_closed(conductor, page):
    Atomizer(conductor).map(square, grid(x=range(4))).wait()
    opened = page(conductor)
    state = opened.panel.state
    assert (state["type"], state["state"]) == (type(conductor).__name__, "connected")
    assert state["threads"] == sum(row["threads"] for row in opened.panel.workers) == 2
    assert_sendable(opened.panel)
    conductor.close()
    opened.panel.update_saved_output()
    assert opened.panel.state["state"] == "closed"
    assert opened.panel.pace is None


@pytest.mark.dask
def test_a_cluster_that_is_gone_is_told(page, gate):
    with LocalCluster(n_workers=1, dashboard_address=":0") as cluster:
        conductor = DaskConductor(cluster.scheduler_address)
        run = Atomizer(conductor).map(wait_for_gate, grid(x=range(4), gate=[gate.path]))
        shown, watched = page(conductor), page(run)
        wait_until(lambda: run.progress.running)
    wait_until(lambda: run.state == "failed")
    wait_until(lambda: conductor.state == "gone")
    for opened in (shown, watched):
        opened.panel.update_saved_output()
    assert shown.panel.state["state"] == "gone"
    assert (watched.panel.state["state"], watched.panel.state["can"]) == ("failed", [])
    assert watched.panel.state["error"]
    conductor.close()


# -- where there is no page ----------------------------------------------------------------------


def test_outside_a_kernel_the_state_is_shown_as_html_and_text(local):
    run = local.map(odd, grid(x=range(4))).wait()
    for thing in (run, local, *local.conductors.values()):
        with pytest.raises(NotImplementedError):
            thing._ipython_display_()
        bundle = panel_of(thing)._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "text/html"}
        assert bundle["text/html"] == thing._repr_html_() or "<div" in bundle["text/html"]
        assert "<img" not in bundle["text/html"]
    panel_of(run).close()


def test_an_interpreter_with_live_panels_ends():
    code = (
        "from atomizer_dask import *\n"
        "from atomizer_dask import atom\n"
        "def slow(x, *, context):\n"
        "    import time\n"
        "    while not context.cancelled: time.sleep(0.01)\n"
        "atomizer = Atomizer(MemoryConductor(2), atom(slow, id='slow'))\n"
        "panels = [atomizer.map('slow', grid(x=range(100))).watch() for _ in range(5)]\n"
        "panels += [atomizer.watch()]\n"
        "print(panels[0].state['state'])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "running\n"
    assert "Traceback" not in ended.stderr


def test_a_saved_notebook_keeps_the_last_state_of_what_was_shown(tmp_path):
    cells = [
        "from atomizer_dask import Atomizer, MemoryConductor, atom, grid\n"
        "gate = __import__('threading').Event()\n"
        "def wait(x):\n    gate.wait()\n    return 1 // x\n"
        "atomizer = Atomizer(MemoryConductor(2))\n"
        "run = atomizer.map(atom(wait, id='wait'), grid(x=range(4)))\nrun",
        "run",
        "gate.set()\nrun.wait();",
        "atomizer.close()\natomizer",
        "run.watch()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    client = NotebookClient(
        notebook,
        timeout=60,
        resources={"metadata": {"path": str(tmp_path)}},
        store_widget_state=False,
    )
    client.execute()
    for cell in notebook.cells[:2]:
        still, live = cell.outputs
        assert "finished, 1 failed" in still["data"]["text/html"]
        assert "ZeroDivisionError" in still["data"]["text/html"]
        assert "finished" in still["data"]["text/plain"]
        model = live["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
        assert model in still["data"]["text/html"]
    assert "closed" in notebook.cells[3].outputs[0]["data"]["text/html"]
    watched = notebook.cells[4].outputs[0]["data"]
    assert "finished, 1 failed" in watched["text/html"]
    assert watched["application/vnd.jupyter.widget-view+json"]["model_id"] == model


def test_a_panel_is_made_from_any_thread_once(local):
    run = local.map(square, grid(x=range(4))).wait()
    found = []
    threads = [threading.Thread(target=lambda: found.append(panel_of(run))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len({id(panel) for panel in found}) == 1
    found[0].close()
