import json
import sys
import threading
from concurrent.futures import Future
from datetime import UTC, datetime

import ipywidgets
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from atomizer_dask import (
    Atom,
    InvalidPayloadError,
    InvalidSweepError,
    Properties,
    RegistrationError,
    atom,
)
from atomizer_dask.widgets.explore import tried
from atomizer_dask.widgets.explore.latest_request import Latest
from atomizer_dask.widgets.explore.render import render

SECONDS = 30
IMG = "<img src=x onerror=alert(1)>"


@atom(id="explored.area")
def area(width, height=2, *, context):
    if width == 13:
        raise ValueError(IMG)
    return {"area": width * height, "narrow": width < height}


@atom(id="explored.echo")
def echo(**values):
    return values.get("value")


@pytest.fixture
def explore(atomizer):
    """Explore with each conductor in turn."""
    yield from _explore(atomizer)


@pytest.fixture
def look(local):
    """Explore in this process."""
    yield from _explore(local)


def _explore(atomizer):
    explorers = []

    def explore(*args, **ranges):
        explorers.append(atomizer.explore(*args, **ranges))
        return explorers[-1]

    yield explore
    for explorer in explorers:
        explorer.close()


def shown(explorer):
    """What a reader of the result sees, as text and as HTML."""
    return "".join(json.dumps(output["data"]) for output in explorer._output.outputs)


def _within(widget):
    parts = [widget]
    for child in getattr(widget, "children", ()):
        parts += _within(child)
    return parts


# -- electrons ----------------------------------------------------------------------------------


def test_each_change_sends_an_electron_and_shows_its_result(explore):
    explorer = explore(area, width=(1, 5)).wait(SECONDS)
    assert explorer.result == {"area": 6, "narrow": False}
    explorer.controls["width"].value = 4
    explorer.wait(SECONDS)
    explorer.controls["height"].value = 5
    explorer.wait(SECONDS)
    assert explorer.result == {"area": 20, "narrow": True}
    assert ">20<" in shown(explorer)
    frame = explorer.frame
    assert frame[["width", "height", "area"]].values.tolist() == [[3, 2, 6], [4, 2, 8], [4, 5, 20]]
    assert frame["narrow"].tolist() == [False, False, True]
    assert frame["area"].dtype == np.int64
    assert frame["error_kind"].isna().all()
    assert frame.index.tolist() == [0, 1, 2]


def test_a_failure_is_told_beside_the_last_good_result(explore):
    explorer = explore(area, width=(1, 20)).wait(SECONDS)
    before = explorer.result, explorer._output.outputs
    explorer.controls["width"].value = 13
    explorer.wait(SECONDS)
    assert (explorer.result, explorer._output.outputs) == before
    assert explorer.error.type == "ValueError"
    assert "<details>" in explorer._failure.value
    assert IMG not in explorer._failure.value
    assert "&lt;img" in explorer._failure.value
    frame = explorer.frame
    assert frame["error_kind"].tolist()[1:] == ["exception"]
    assert frame["error_message"].tolist()[1:] == [IMG]
    assert frame["area"].isna().tolist() == [False, True]
    explorer.controls["width"].value = 2
    explorer.wait(SECONDS)
    assert explorer._failure.value == ""
    assert explorer.error is None
    assert explorer.result["area"] == 4


def test_a_single_value_reaches_a_vectorised_atom_as_an_array(explore):
    @atom(vectorized=True)
    def squares(x):
        return {"square": x**2, "count": np.full(len(x), len(x))}

    assert explore(squares, x=(1, 5)).wait(SECONDS).result == {"square": 9, "count": 1}


def test_ranges_alone_are_the_payload_of_a_class(explore):
    class Sum(Atom):
        def process(self, context, conductor, electron):
            return sum(electron.payload.values())

    explorer = explore(Sum, a=(0, 4), anything=ipywidgets.fixed(10))
    assert explorer.wait(SECONDS).result == 12


def test_an_atom_is_explored_by_its_id(local):
    local.register(area)
    explorer = local.explore("explored.area", width=[3, 4])
    assert explorer.wait(SECONDS).result["area"] == 6
    explorer.close()
    with pytest.raises(RegistrationError, match=r"did you mean|is registered"):
        local.explore("explored.aera", width=[3, 4])


def test_parameters_may_be_named_as_those_of_explore(look):
    @atom
    def named(self, atom):
        return self + atom

    assert look(named, self=[1], atom=[2]).wait(SECONDS).result == 3


def test_a_stale_electron_is_told_and_is_no_row(look):
    begun, heeded, given_up = threading.Event(), threading.Event(), threading.Event()

    @atom
    def slow(x, *, context):
        if x == 1:
            begun.set()
            while not (context.cancelled or given_up.wait(0.001)):
                pass
            heeded.set()
        return x

    explorer = look(slow, x=[0, 1, 2]).wait(SECONDS)
    explorer.controls["x"].value = 1
    assert begun.wait(SECONDS)
    assert explorer.result == 0
    assert "computing" in explorer._status.value
    explorer.controls["x"].value = 2
    assert heeded.wait(SECONDS)
    assert explorer.wait(SECONDS).result == 2
    assert explorer.frame["x"].tolist() == [0, 2]
    given_up.set()


def test_closing_cancels_the_electron_under_way(look):
    begun, heeded, given_up = threading.Event(), threading.Event(), threading.Event()

    @atom
    def endless(*, context):
        begun.set()
        while not (context.cancelled or given_up.wait(0.001)):
            pass
        heeded.set()

    explorer = look(endless)
    assert begun.wait(SECONDS)
    with pytest.raises(TimeoutError, match="goes on"):
        explorer.wait(0)
    explorer.close()
    assert heeded.wait(SECONDS)
    explorer._latest._thread.join(SECONDS)
    assert not explorer._latest._thread.is_alive()
    explorer.close()
    given_up.set()


def test_closing_closes_all_that_was_made_and_nothing_of_the_user(look):
    mine = ipywidgets.IntSlider(3, 1, 5)
    explorer = look(area, width=mine).wait(SECONDS)
    made = [widget for widget in _within(explorer) if widget is not mine]
    explorer.close()
    assert [widget for widget in made if widget.comm is not None] == []
    assert mine.comm is not None
    mine.value = 4
    assert len(explorer.frame) == 1


def test_a_closed_atomizer_is_told_of_in_the_panel(local):
    explorer = local.explore(area, width=(1, 5)).wait(SECONDS)
    local.close()
    explorer.controls["width"].value = 1
    explorer.wait(SECONDS)
    assert "closed" in explorer._failure.value
    assert explorer.result["area"] == 6
    explorer.close()


def test_only_the_last_of_the_frames_are_kept(look, monkeypatch):
    monkeypatch.setattr(tried, "MOST_TRIED", 2)
    explorer = look(area, width=(1, 5)).wait(SECONDS)
    for width in (4, 5):
        explorer.controls["width"].value = width
        explorer.wait(SECONDS)
    assert explorer.frame["width"].tolist() == [4, 5]
    assert explorer.frame.index.tolist() == [0, 1]


def test_the_frame_is_there_before_any_electron_has_ended(look):
    gate = threading.Event()

    @atom
    def gated(x):
        gate.wait(SECONDS)

    explorer = look(gated, x=(0, 2))
    assert explorer.frame.empty
    assert explorer.frame.columns[0] == "x"
    assert explorer.result is None
    gate.set()


def test_objects_stay_objects_in_the_frame(look):
    @atom
    def table(rows):
        return pd.DataFrame({"row": range(rows)})

    explorer = look(table, rows=[1, 2]).wait(SECONDS)
    explorer.controls["rows"].value = 2
    assert explorer.wait(SECONDS).frame["result"].map(len).tolist() == [1, 2]


def test_outputs_named_as_inputs_or_errors_are_renamed(look):
    @atom
    def clashing(x):
        return {"x": 1, "error_kind": "mine"}

    frame = look(clashing, x=[5]).wait(SECONDS).frame
    assert frame.loc[0, ["x", "result_x", "error_kind"]].tolist() == [5, 1, "mine"]
    assert "electron_error_kind" in frame


# -- the last of many requests ------------------------------------------------------------------


def _properties(result):
    now = datetime.now(UTC)
    return Properties("e", "a", now, now, result=result)


def test_of_many_quick_changes_only_the_last_is_sent():
    sent, told, sending, go_on = [], [], threading.Event(), threading.Event()

    def send(inputs):
        sent.append(inputs["x"])
        sending.set()
        assert go_on.wait(SECONDS)
        future = Future()
        future.set_result(_properties(inputs["x"]))
        return future

    latest = Latest("test", send, lambda request, outcome, fate: told.append((outcome, fate)))
    latest.ask({"x": 0}, at_once=True)
    assert sending.wait(SECONDS)
    for x in range(1, 100):
        latest.ask({"x": x})
    go_on.set()
    assert latest.wait(SECONDS)
    latest.close()
    assert sent == [0, 99]
    assert [(outcome.result, fate) for outcome, fate in told] == [(0, "earlier"), (99, "last")]


def test_a_late_answer_to_an_earlier_change_is_not_the_last():
    futures, told, both_sent = [], [], threading.Semaphore(0)

    def send(inputs):
        futures.append(Future())
        futures[-1].set_running_or_notify_cancel()  # cancel() comes too late
        both_sent.release()
        return futures[-1]

    def on_outcome(request, outcome, fate):
        told.append((outcome.result, fate))
        if len(told) == 2:
            both_sent.release()

    latest = Latest("test", send, on_outcome)
    for x in (1, 2):
        latest.ask({"x": x}, at_once=True)
        assert both_sent.acquire(timeout=SECONDS)
    futures[1].set_result(_properties("new"))
    assert latest.wait(SECONDS)
    futures[0].set_result(_properties("old"))
    assert both_sent.acquire(timeout=SECONDS)
    latest.close()
    assert told == [("new", "last"), ("old", "cancelled")]


# -- controls -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kind", "values"),
    [
        ((1, 4), ipywidgets.IntSlider, [1, 2, 3, 4]),
        ((1, 8, 3), ipywidgets.IntSlider, [1, 4, 7]),
        ((1.0, 2.0, 0.25), ipywidgets.FloatSlider, [1.0, 1.25, 1.5, 1.75, 2.0]),
        ((1.0, 1.15, 0.05), ipywidgets.FloatSlider, [1.0, 1.05, 1.1, 1.15]),
        ((0.0, 1.0), ipywidgets.FloatSlider, [x / 10 for x in range(11)]),
        ((0, 0.01), ipywidgets.FloatSlider, [x / 10_000 for x in range(101)]),
        (2, ipywidgets.IntSlider, [-2, -1, 0, 1, 2, 3, 4, 5, 6]),
        (True, ipywidgets.Checkbox, [False, True]),
        ("text", ipywidgets.Text, ["text"]),
        (["a", "b"], ipywidgets.Dropdown, ["a", "b"]),
        (np.array([1, 2]), ipywidgets.Dropdown, [1, 2]),
        (range(3), ipywidgets.Dropdown, [0, 1, 2]),
        ({"one": 1, "two": 2}, ipywidgets.Dropdown, [1, 2]),
        ([("one", 1), ("two", 2)], ipywidgets.Dropdown, [1, 2]),
        (ipywidgets.fixed({"any": "thing"}), ipywidgets.fixed, [{"any": "thing"}]),
        (ipywidgets.IntText(7), ipywidgets.IntText, [7]),
        (ipywidgets.BoundedIntText(7, min=6, max=8), ipywidgets.BoundedIntText, [6, 7, 8]),
        (ipywidgets.SelectionSlider(options="xyz"), ipywidgets.SelectionSlider, ["x", "y", "z"]),
        (ipywidgets.SelectMultiple(options=[1, 2]), ipywidgets.SelectMultiple, [()]),
        (ipywidgets.IntRangeSlider(value=(1, 2)), ipywidgets.IntRangeSlider, [(1, 2)]),
        (
            ipywidgets.FloatLogSlider(min=0, max=2, step=1),
            ipywidgets.FloatLogSlider,
            [1.0, 10.0, 100.0],
        ),
    ],
)
def test_a_range_makes_a_control_and_an_axis(look, given, kind, values):
    explorer = look(echo, value=given)
    assert isinstance(explorer.controls["value"], kind)
    assert explorer.controls["value"].description == "value"
    axis = explorer.sweep().axes["value"]
    assert list(axis) == values
    count = f"{len(values)} electron{'' if len(values) == 1 else 's'}"
    assert explorer.button.description == f"Map {count}"


def test_defaults_make_controls_and_stay_where_they_cannot(look):
    @atom
    def many(n=3, rate=0.5, flag=True, text="t", nothing=None, limits=(0, 1), names=("a", "b")):
        return {"nothing": nothing is None, "limits": limits == (0, 1), "names": names}

    explorer = look(many, n=(0, 3)).wait(SECONDS)
    assert explorer.inputs == {"n": 3, "rate": 0.5, "flag": True, "text": "t"}
    assert explorer.result == {"nothing": True, "limits": True, "names": ("a", "b")}


def test_parameters_without_a_range_are_swept_at_the_value_they_have(look):
    explorer = look(area, width=(1, 5))
    explorer.controls["height"].value = 4
    assert explorer.sweep().axes["height"].tolist() == [4]
    assert explorer.button.description == "Map 5 electrons"


def test_the_button_follows_the_ranges(look):
    explorer = look(area, width=(1, 5), height=(0.0, 1.0, 0.001))
    assert explorer.button.description == "Map 5,005 electrons"
    explorer.controls["width"].max = 7
    assert explorer.button.description == "Map 7,007 electrons"
    explorer.controls["width"].max = 10_000
    assert explorer.button.disabled
    assert "1,000,000" in explorer._note.value
    explorer.controls["width"].max = 1
    assert not explorer.button.disabled
    assert explorer._note.value == ""


def test_what_has_no_range_is_named_with_an_example(look):
    with pytest.raises(InvalidPayloadError, match=r"no default for 'width'.*width=\(0, 10\)"):
        look(area)


def test_a_misspelt_range_is_named_with_the_nearest(look):
    with pytest.raises(InvalidPayloadError, match=r"'widht'.*did you mean 'width'"):
        look(area, widht=(1, 2))
    with pytest.raises(InvalidPayloadError, match="no parameter 'context'"):
        look(area, width=(1, 2), context=1)


@pytest.mark.parametrize(
    "given", [("a", "b"), [], {}, (3, 1), (0, 1, -1), None, ipywidgets.Button(), object()]
)
def test_a_range_that_makes_no_control_is_refused(look, given):
    with pytest.raises(InvalidSweepError, match=r"no control can be made of width=.*\(min, max\)"):
        look(area, width=given)


# -- mapping ------------------------------------------------------------------------------------


def test_the_button_maps_the_current_ranges(explore):
    explorer = explore(area, width=(1, 3), height=[2, 3])
    seen = []
    explorer._show_run = seen.append
    explorer.button.click()
    frame = explorer.run.wait(SECONDS).to_frame()
    assert seen == [explorer.run]
    assert frame["area"].tolist() == [2, 3, 4, 6, 6, 9]


def test_options_of_map_are_handed_on(look, tmp_path):
    explorer = look(area, width=(1, 3))
    explorer._show_run = lambda run: None
    run = explorer.map(seed=7, store=tmp_path / "store", name="mine").wait(SECONDS)
    assert (run.seed, run.id[:4]) == (7, "mine")


def test_a_second_click_does_not_map_again(look):
    gate = threading.Event()

    @atom
    def gated(x):
        gate.wait(SECONDS)

    explorer = look(gated, x=(0, 2))
    explorer._show_run = lambda run: None
    explorer.button.click()
    first = explorer.run
    explorer.button.click()
    assert explorer.run is first
    assert "under way" in explorer._failure.value
    gate.set()
    first.wait(SECONDS)
    explorer.button.click()
    assert explorer.run is not first


def test_the_panel_of_the_run_is_shown_below(look, monkeypatch):
    panel = ipywidgets.HTML("the run")
    explorer = look(area, width=(1, 3))
    monkeypatch.setattr("atomizer_dask.runs.run.Run.watch", lambda run: panel, raising=False)
    explorer.map()
    assert explorer.children[-1].children == (panel,)


# -- results ------------------------------------------------------------------------------------


def html_of(result):
    return "".join(output["data"].get("text/html", "") for output in render(result))


def test_texts_are_escaped_wherever_they_come_from():
    for result in (IMG, {IMG: 1}, {"a": IMG}, {"a": IMG, IMG: [1]}, pd.DataFrame({IMG: [IMG]})):
        assert IMG not in html_of(result)
        assert "&lt;img" in html_of(result)


def test_numbers_are_large_and_dicts_are_tables():
    assert ">1,234,567<" in html_of(1234567)
    assert ">0.333333<" in html_of(np.float64(1 / 3))
    assert html_of({"a": 1, "b": True}).count("<tr>") == 2
    assert html_of({"b": True, "table": pd.DataFrame({"a": [1]})}).count("<table") == 2


def test_an_array_is_a_line():
    assert "100 values from -1 to 1" in html_of(np.linspace(-1, 1, 100))
    assert "nan" not in html_of(np.array([1.0, np.nan, 3.0]))
    assert html_of(np.array([])) == html_of(np.full(3, np.nan)) == ""
    assert len(html_of(np.random.default_rng(1).random(10**6))) < 30_000


def test_anything_else_is_shown_as_a_notebook_does():
    class Rich:
        def _repr_html_(self):
            return "<i>mine</i>"

        def _ipython_display_(self):
            raise AssertionError("it would show itself elsewhere")

    assert html_of(Rich()) == "<i>mine</i>"
    assert render([1, 2])[0]["data"] == {"text/plain": "[1, 2]"}
    assert render(None)[0]["data"]["text/plain"] == "None"


def test_formatters_of_the_session_are_used():
    class Mine:
        pass

    shell = InteractiveShell.instance()
    try:
        shell.display_formatter.format_types  # noqa: B018 - there is one
        shell.display_formatter.formatters["text/html"].for_type(Mine, lambda mine: "<i>ours</i>")
        assert html_of(Mine()) == "<i>ours</i>"
    finally:
        InteractiveShell.clear_instance()


def test_a_result_that_cannot_be_shown_is_told(look):
    explorer = look(echo, value=[1, 2]).wait(SECONDS)
    assert explorer.error is None

    class Awkward:
        def _repr_mimebundle_(self, **options):
            return {"text/plain": "fine", "application/json": {1, 2}}

        def __len__(self):
            return 1

    explorer._output.observe(lambda change: json.dumps(change["new"]), "outputs")
    explorer.controls["value"].options = {"awkward": Awkward()}
    explorer.wait(SECONDS)
    assert "not JSON serializable" in explorer._failure.value
    assert isinstance(explorer.result, Awkward)
    explorer.controls["value"].options = [IMG]
    assert "&lt;img" in shown(explorer.wait(SECONDS))


def test_a_hostile_result_does_not_end_the_panel(look):
    explorer = look(echo, value=[1, 2]).wait(SECONDS)

    class Hostile:
        @property
        def __class__(self):
            raise RuntimeError("never ask")

    explorer.controls["value"].options = {"hostile": Hostile()}
    explorer.wait(SECONDS)
    explorer.controls["value"].options = [7]
    assert ">7<" in shown(explorer.wait(SECONDS))


def test_a_figure_from_a_worker_shows_once_and_as_an_image(explore):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.close("all")

    @atom
    def plot(n, kind="pyplot"):
        import matplotlib.pyplot as plt
        from matplotlib.figure import Figure

        figure = plt.figure() if kind == "pyplot" else Figure()
        figure.add_subplot().plot(range(n))
        return figure if kind == "pyplot" else {"n": n, "plot": figure}

    explorer = explore(plot, n=(2, 5), kind=["pyplot", "plain"]).wait(SECONDS)
    assert plt.get_fignums() == []
    (output,) = explorer._output.outputs
    assert output["data"]["image/png"].startswith("iVBOR")
    assert 100 < output["metadata"]["image/png"]["width"] < 2000
    explorer.controls["kind"].value = "plain"
    explorer.wait(SECONDS)
    assert [next(iter(o["data"])) for o in explorer._output.outputs] == [
        "text/html", "text/html", "image/png",
    ]  # fmt: skip
    assert len(explorer.frame) == 2
    assert "matplotlib.figure" in sys.modules
