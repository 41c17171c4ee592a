"""Widgets in a real browser: the tests of the tests that look at what users see."""

import sys

import pytest
from conftest import need

import atomizer_dask

pytestmark = pytest.mark.browser

BAR = """
import threading
import ipywidgets
bar = ipywidgets.IntProgress(max=20)
label = ipywidgets.Label("running")

def fill():
    for value in range(21):
        bar.value = value
    label.value = "full"

threading.Thread(target=fill).start()
ipywidgets.VBox([bar, label])
"""
BUTTON = """
import ipywidgets
button, clicks = ipywidgets.Button(description="Press me"), ipywidgets.Label("no click")
button.on_click(lambda _: setattr(clicks, "value", "clicked"))
ipywidgets.VBox([button, clicks])
"""
COUNTER = """
import anywidget, traitlets

class Counter(anywidget.AnyWidget):
    _esm = '''
    function render({model, el}) {
        const button = document.createElement("button");
        const show = () => { button.textContent = `count ${model.get("value")}`; };
        button.onclick = () => {
            model.set("value", model.get("value") + 1);
            model.save_changes();
        };
        model.on("change:value", show);
        show();
        el.append(button);
    }
    export default {render};
    '''
    value = traitlets.Int(0).tag(sync=True)

Counter()
"""


def look_at_widgets(notebook):
    """Wait for the bar, press the buttons, and see what they do."""
    page = notebook.page
    page.get_by_text("full", exact=True).wait_for()
    page.locator(".progress-bar[style*='width: 100%']").wait_for()
    page.get_by_role("button", name="Press me").click()
    page.get_by_text("clicked", exact=True).wait_for()
    page.get_by_role("button", name="count 0").click()
    page.get_by_role("button", name="count 1").wait_for()
    assert notebook.errors == []
    assert notebook.outside == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_widgets_in_lab(open_notebook, theme):
    notebook = open_notebook([BAR, BUTTON, COUNTER], theme)
    notebook.run_all()
    look_at_widgets(notebook)
    notebook.screenshot(f"widgets-{theme}")


def test_widgets_in_notebook(open_notebook):
    notebook = open_notebook([BAR, BUTTON, COUNTER], "dark", app="notebook")
    notebook.run_all()
    look_at_widgets(notebook)


def test_widgets_in_voila(open_voila):
    look_at_widgets(open_voila([BAR, BUTTON, COUNTER]))


def test_click_reaches_a_cell_that_awaits(open_notebook):
    awaiting = "import asyncio\nwhile clicks.value == 'no click': await asyncio.sleep(0.05)"
    notebook = open_notebook([BUTTON, awaiting, "clicks.value"])
    notebook.run_all(wait=False)
    notebook.page.get_by_role("button", name="Press me").click()
    notebook.output(2).get_by_text("'clicked'").wait_for()


def test_cells_run_in_this_python_and_raise_here(open_notebook):
    cell = "import sys, atomizer_dask\nprint(sys.executable, atomizer_dask.__file__, sep='\\n')"
    notebook = open_notebook([cell, "1 / 0"])
    notebook.run_cell(0)
    assert notebook.output(0).inner_text().split() == [sys.executable, atomizer_dask.__file__]
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        notebook.run_cell(1)


def test_errors_of_scripts_and_requests_to_elsewhere_are_seen(open_notebook):
    script = "fetch('https://example.org/x').catch(() => console.error('oh no'))"
    notebook = open_notebook([f'import IPython\nIPython.display.Javascript("{script}")'])
    with notebook.page.expect_console_message(lambda message: message.text == "oh no"):
        notebook.run_all()
    assert notebook.outside == ["https://example.org/x"]
    assert any(error.startswith("oh no") for error in notebook.errors)


def test_widget_survives_a_reload_but_not_its_kernel(open_notebook):
    notebook = open_notebook([COUNTER])
    notebook.run_all()
    notebook.page.get_by_role("button", name="count 0").click()
    notebook.save()
    notebook.reload()
    notebook.page.get_by_role("button", name="count 1").wait_for()
    notebook.reopen()
    notebook.output(0).get_by_text("model not found").wait_for()


def test_missing_parts_skip_a_test_or_fail_it_where_required(monkeypatch):
    monkeypatch.delenv("ATOMIZER_REQUIRE", raising=False)
    need("browser", "")
    with pytest.raises(pytest.skip.Exception, match="browser tests lack Chromium"):
        need("browser", "Chromium")
    monkeypatch.setenv("ATOMIZER_REQUIRE", "rabbitmq,browser")
    with pytest.raises(pytest.fail.Exception, match="lack Chromium"):
        need("browser", "Chromium")
