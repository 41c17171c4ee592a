"""Panels as plain HTML, as they are at one moment."""

from html.parser import HTMLParser

import pytest

from atomizer_dask import Atomizer, MemoryConductor, atom, grid
from atomizer_dask.widgets.static_html import html_of

IMG = "<img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """Which elements there are, that those that are opened are closed, and what is read."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text = set(), [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in ("br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_run_that_has_ended_is_shown_with_its_failures(local):
    run = local.map(atom(lambda x: 1 // x, id="dividing"), grid(x=range(4))).wait()
    shown = Tags(html_of(run)).text
    for text in ("dividing", run.id, "finished, 1 failed", "3 of 4", "ZeroDivisionError", "x=0"):
        assert text in shown
    assert "as of" not in shown


def test_a_run_that_goes_on_says_when_that_was(local, gate):
    def waiting(x, *, context):
        while not context.cancelled:
            pass

    run = local.map(atom(waiting, id="waiting"), grid(x=range(4)))
    shown = Tags(html_of(run)).text
    assert "running" in shown
    assert "as of" in shown
    run.cancel()
    run.join()
    assert "did not end" in Tags(html_of(run)).text


def test_everything_that_comes_from_outside_is_escaped():
    def fail(x):
        raise type(IMG, (Exception,), {})(IMG)

    fail.__doc__ = IMG
    with Atomizer(MemoryConductor(1, id=IMG), atom(fail, id=IMG)) as atomizer:
        run = atomizer.map(IMG, grid(x=[IMG])).wait()
        for thing in (run, atomizer, *atomizer.conductors.values()):
            page = Tags(html_of(thing, live='"><img>'))
            assert not page.tags & {"img", "script"}
        assert IMG in Tags(html_of(run)).text


def test_an_atomizer_shows_its_runs_conductors_and_atoms(local):
    run = local.map(atom(lambda x: x, id="same"), grid(x=range(4))).wait()
    shown = Tags(html_of(local)).text
    for text in (run.id, "4 of 4", "MemoryConductor", "connected"):
        assert text in shown


def test_a_conductor_shows_its_state_and_workers(conductor):
    shown = Tags(html_of(conductor)).text
    assert "2 threads" in shown
    assert "connected" in shown
    conductor.close()
    assert "closed" in Tags(html_of(conductor)).text


@pytest.mark.parametrize("total", [1, 7])
def test_the_bar_is_full_when_all_have_ended(local, total):
    run = local.map(atom(lambda x: x, id="same"), grid(x=range(total))).wait()
    assert "width:100.00%" in html_of(run)
