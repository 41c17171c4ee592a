import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from records_shown import electron_error, records

from atomizer_dask import Electron, Progress, Properties, atom, grid, zipped
from atomizer_dask.display.markup import details, safely

IMG = "<img src=x onerror=alert(1)>"
QUOTES = "' onmouseover='alert(1)' \" onmouseover=\"alert(1)\" </pre></summary><b>"
TAGS = {
    "b", "code", "details", "div", "pre", "span", "summary", "table", "tbody", "td", "th", "thead",
    "tr",
}  # fmt: skip


class Reader(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = set(), set(), [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


class Raising:
    def __repr__(self):
        raise RuntimeError("no repr")


class Long:
    def __repr__(self):
        return "long\n" * 10**6


def endless():
    ring = [1]
    ring.append(ring)
    return ring


def deep():
    value = {}
    for _ in range(100_000):
        value = {"deeper": value}
    return value


ODD = {
    "raises": Raising(),
    "long repr": Long(),
    "long text": "x" * 10**7,
    "long bytes": bytes(10**7),
    "long list": list(range(10**6)),
    "large number": 1 << 10**6,
    "ring": endless(),
    "deep": deep(),
    "array": np.zeros((1000, 1000)),
    "objects": np.array([Raising(), None], dtype=object),
    "frame": pd.DataFrame({"x": range(10**6), 3: 1}),
    "series": pd.Series([pd.NA, pd.Timestamp(0)]),
    "surrogate": "half \ud800 a pair",
    "terminal": "\x1b[31mred\x00 \u202e",
    "nested": {"a": {"b": {"c": [1, {2, 3}, (4,), frozenset()]}}},
    "keys": {1: 2, None: 3, (4, 5): Raising(), "\ud800": 1},
    "nan": float("nan"),
    "type": dict,
}


@pytest.mark.parametrize("text", [IMG, QUOTES], ids=["tag", "quotes"])
@pytest.mark.parametrize("name", records("x", 1))
def test_what_users_give_stays_text(name, text):
    html = records(text, {text: text})[name]._repr_html_()
    shown = Reader(html)
    assert shown.tags <= TAGS
    assert shown.attributes <= {"style", "open"}
    assert shown.open == []
    assert "cannot be shown" not in html


@pytest.mark.parametrize("name", [n for n in records("x", 1) if "progress" not in n])
def test_what_users_give_can_be_read(name):
    if name != "pending future":
        assert "molybdenum" in Reader(records("molybdenum", 1)[name]._repr_html_()).text


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", records("x", 1))
def test_odd_values_are_shown_shortly(name, odd):
    record = records("x", ODD[odd])[name]
    html = record._repr_html_()
    assert "cannot be shown" not in html
    assert len(html) < 20_000
    json.dumps(html).encode()
    html.encode()
    line = repr(record)
    line.encode()
    assert len(line) < 400
    assert "\n" not in line
    assert line.endswith(">")


@pytest.mark.parametrize("text", ["a\ud800b", "two\nlines \x1b[0m", "x" * 10**6])
@pytest.mark.parametrize("name", records("x", 1))
def test_odd_texts_are_shown_shortly(name, text):
    record = records(text, text)[name]
    html = record._repr_html_()
    assert "cannot be shown" not in html
    assert len(html) < 40_000
    html.encode()
    line = repr(record)
    line.encode()
    assert len(line) < 600
    assert "\n" not in line
    assert line.endswith(">")


def test_payload_is_shown_field_by_field():
    shown = Reader(Electron("A", {"temperature": 2.5, "size": 64})._repr_html_()).text
    assert "temperature2.5size64" in shown.replace("\n", "")


def test_fields_beyond_those_shown_are_counted():
    assert "and 980 more" in Electron("A", {f"x{n}": n for n in range(1000)})._repr_html_()


def test_arrays_and_tables_are_summarised():
    payload = {"path": np.zeros((1000, 3)), "table": pd.DataFrame({"a": [1], "b": [2]})}
    shown = Reader(Electron("A", payload)._repr_html_()).text
    assert "ndarray float64 (1000, 3), 24 kB" in shown
    assert "DataFrame (1, 2): a, b" in shown


def test_options_that_are_as_usual_are_not_shown():
    assert "backoff" not in Electron("A")._repr_html_()
    assert "backoff" in Electron("A", on_failure="retry", backoff="2s")._repr_html_()


def test_traceback_of_a_failed_electron_is_there_to_be_unfolded():
    error = electron_error("bad")
    failed = Properties("E", "A", error.start, error.end, error)
    for record in (error, failed):
        html = record._repr_html_()
        assert "<details" in html
        assert "TB\n  bad" in html


def test_long_traceback_keeps_its_beginning_and_its_end():
    html = details("traceback", "begin" + "x" * 10**6 + "end")
    assert len(html) < 15_000
    assert "begin" in html
    assert "end</pre>" in html
    assert "988,008 letters" in html


def test_grid_shows_axes_and_head_without_being_made():
    html = grid(a=range(10**6), b=np.linspace(1, 4, 10**3), c=["x", "y"])._repr_html_()
    shown = Reader(html).text
    assert "2,000,000,000 electrons" in shown
    assert "1,000,000 x 1,000 x 2" in shown
    assert "999999" in shown
    assert "and 1,999,999,995 more electrons" in shown


def test_many_columns_are_counted_rather_than_shown():
    html = zipped(**{f"x{n}": [1, 2] for n in range(1000)})._repr_html_()
    assert "and 994 more columns" in html
    assert "and 988 more" in html
    assert len(html) < 30_000


def test_stream_without_end_shows_what_was_drawn():
    shown = Reader(records("x", 1)["stream"]._repr_html_()).text
    assert "of unknown length" in shown
    assert "2 drawn so far" in shown


def test_looking_at_a_stream_takes_nothing_away():
    stream = records("x", 1)["events"]
    stream._repr_html_()
    assert len(stream) == 3


def test_what_is_special_about_an_atom_is_shown():
    shown = Reader(records("x", 1)["function atom"]._repr_html_()).text
    for part in ("simulate(x, y='x')", "x in words.", "vectorised", "isolation process"):
        assert part in shown
    assert "More." not in shown


def test_atom_with_a_large_default_has_a_short_repr():
    array, raising = np.zeros(10**6), Raising()
    f = atom(id="f")(lambda x, y=array, z=raising: x)
    assert repr(f).startswith("<Atom f(x, y=ndarray float64 (1000000,), 8 MB, z=<Raising: show")
    assert len(repr(f)) < 150


def test_progress_is_read_at_a_glance():
    progress = Progress(1000, 700, 12, 100, 188, 59_812.0, 4.3)
    assert repr(progress) == (
        "<Progress: 700 of 1,000 done, 12 failed, 100 running, 188 pending, 59.8 k / s, 4.3 s left>"
    )
    shown = Reader(progress._repr_html_()).text
    assert "71.2 %" in shown
    assert "700 of 1,000 electrons" in shown


def test_progress_of_nothing_can_be_shown():
    assert repr(Progress(0, 0, 0, 0, 0, 0.0, None)) == "<Progress: 0 of 0 done>"
    assert "cannot be shown" not in Progress(0, 0, 0, 0, 0, 0.0, None)._repr_html_()


def test_pending_and_finished_futures_say_so():
    found = records("x", 1)
    assert repr(found["pending future"]) == "<ElectronFuture: pending>"
    assert repr(found["finished future"]).startswith("<ElectronFuture: finished, <Properties of x")
    assert repr(found["future that raised"]).startswith("<ElectronFuture: failed, <ConductorError")
    assert "done" in found["finished future"]._repr_html_()


def test_record_that_cannot_be_shown_says_why():
    class Odd:
        @safely
        def _repr_html_(self):
            raise ValueError(IMG)

    html = Odd()._repr_html_()
    assert "Odd, which cannot be shown" in html
    assert "<img" not in html


def test_hints_of_the_summary_of_failures_are_shown_whole(local):
    @atom(id="tests.markup.failing")
    def failing(x):
        raise ValueError(IMG)

    failures = local.map(failing, grid(x=range(3))).wait(60).failures
    html = failures._repr_html_()
    assert type(failures) is pd.DataFrame
    assert failures["hint"].iloc[0] in html
    assert "<img" not in html
