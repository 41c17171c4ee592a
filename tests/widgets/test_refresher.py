import logging
import threading

from atomizer_dask.widgets import refresher as module
from atomizer_dask.widgets.refresher import Refresher

SECONDS = 30


class Panel:
    """What is refreshed as often as there are answers, of which exceptions are raised."""

    def __init__(self, *answers):
        self.answers = [*answers]
        self.times, self.threads, self.ended = 0, set(), threading.Event()

    def refresh(self):
        self.times += 1
        self.threads.add(threading.current_thread())
        answer = self.answers.pop(0)
        if not self.answers:
            self.ended.set()
        if isinstance(answer, Exception):
            raise answer
        return answer


def wait_for(*panels):
    for panel in panels:
        assert panel.ended.wait(SECONDS)
    for thread in set().union(*(panel.threads for panel in panels)):
        thread.join(SECONDS)
        assert not thread.is_alive()


def test_a_panel_is_looked_at_until_nothing_changes_any_more_and_then_the_thread_ends():
    refresher, panel = Refresher(), Panel(0.0, 0.0, None)
    refresher.schedule(panel)
    wait_for(panel)
    assert panel.times == 3


def test_one_thread_works_for_all_and_begins_again():
    refresher, panels = Refresher(), [Panel(0.01, 0.01, None) for _ in range(5)]
    for panel in panels:
        refresher.schedule(panel)
    wait_for(*panels)
    again = Panel(None)
    refresher.schedule(again)
    wait_for(again)


def test_a_panel_that_fails_is_tried_again_and_costs_no_other(monkeypatch, caplog):
    monkeypatch.setattr(module, "LONGEST", 0.0)
    refresher, other = Refresher(), Panel(0.0, None)
    broken = Panel(RuntimeError("one"), RuntimeError("two"), None)
    with caplog.at_level(logging.WARNING):
        refresher.schedule(broken)
        refresher.schedule(other)
        wait_for(broken, other)
    assert broken.times == 3
    assert len(caplog.records) == 1  # not again at each attempt


def test_what_is_forgotten_is_looked_at_no_more():
    refresher, panel, other = Refresher(), Panel(None), Panel(0.0, None)
    refresher.schedule(panel, 60)
    refresher.forget(panel)
    refresher.schedule(other)
    wait_for(other)
    assert panel.times == 0


def test_a_process_that_lost_the_thread_starts_another():
    refresher, panel = Refresher(), Panel(None)
    refresher._thread = threading.Thread()  # as it is after a fork: not alive
    refresher.schedule(panel)
    wait_for(panel)
