"""What is shown of a run is so: each test knows the truth and compares."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from patience import wait_until

from atomizer_dask import Atomizer, MemoryConductor, Run, StoreError, atom, grid, zipped
from atomizer_dask.cli.commands import main
from atomizer_dask.conductors.status import ConductorStatus
from atomizer_dask.runs.ledger import Ledger
from atomizer_dask.runs.progress import Progress
from atomizer_dask.runs.sources import stored_source
from atomizer_dask.store import stored_run
from atomizer_dask.widgets import preview as previews
from atomizer_dask.widgets.failures import failure_groups
from atomizer_dask.widgets.panels import panel_of
from atomizer_dask.widgets.preview import preview
from atomizer_dask.widgets.rate_history import RateHistory
from atomizer_dask.widgets.static_html import html_of
from atomizer_dask.widgets.summary import conductor_facts, run_facts
from atomizer_dask.widgets.workers import WorkerTable


@atom(id="tests.noise")
def noise(x):
    return {"value": float(np.sin(x * 7.3)), "label": f"n{x % 3}"}


@atom(id="tests.often_fails")
def often_fails(x):
    if x % 2:
        raise ValueError(f"odd {x}")
    if x % 10 == 0:
        raise KeyError("ten")
    return x


@pytest.fixture
def many_files(monkeypatch, configure):
    """Runs whose results come in many small files, none of which are merged."""
    configure({"batches.largest": 20 * 8})
    monkeypatch.setattr("atomizer_dask.store.writer.FLUSH_ROWS", 1)
    monkeypatch.setattr("atomizer_dask.store.writer.MERGE_AT", 10**6)
    monkeypatch.setattr(stored_source, "MERGE_AT_END", 10**6)
    monkeypatch.setattr(stored_source, "FLUSH_SECONDS", 0.0)


# -- the results --------------------------------------------------------------------------------


def assert_of_all(shown, frame):
    values = frame["value"]
    assert shown["rows"] == len(frame)
    assert not shown["some"]
    first, last = [str(i) for i in frame.index[:5]], [str(i) for i in frame.index[-5:]]
    assert [row[0] for row in shown["first"]] == first
    assert [row[0] for row in shown["last"]] == last
    chart = shown["chart"]
    assert chart["of"] == sum(chart["bars"]) == len(frame)
    assert chart["caption"] == f"all {len(frame):,} rows"
    assert float(chart["mean"]) == pytest.approx(values.mean(), rel=1e-5)
    assert float(chart["spread"]) == pytest.approx(values.std(ddof=0), rel=1e-5)
    assert [float(label) for label in chart["labels"]] == pytest.approx(
        [values.min(), values.max()], rel=1e-5
    )


def test_results_of_a_store_are_of_all_its_rows(local, many_files, tmp_path):
    run = local.map(noise, grid(x=np.arange(1000)), store=tmp_path / "s").wait()
    assert len(list((tmp_path / "s" / "properties").iterdir())) > previews.READ
    frame = run.to_frame()
    assert_of_all(preview(run), frame)
    assert_of_all(preview(Run.open(tmp_path / "s")), frame)


def test_results_of_an_extended_store_are_in_the_order_of_its_rows(local, many_files, tmp_path):
    local.map(noise, {"x": np.arange(500, 800)}, store=tmp_path / "s").wait()
    rows = pd.DataFrame({"x": np.arange(1000)}, index=[f"r{n}" for n in range(1000)])
    run = local.map(noise, rows, store=tmp_path / "s").wait()
    assert_of_all(preview(run), run.to_frame())


def test_results_that_are_not_all_there_yet_say_so(local, many_files, tmp_path, gate):
    @atom(id="tests.halts")
    def halts(x, path):
        while x >= 100 and not Path(path).exists():
            time.sleep(0.01)
        return {"value": float(x)}

    run = local.map(halts, grid(x=range(110), path=[gate.path]), store=tmp_path / "s")
    wait_until(lambda: run.progress.done == 100)
    shown = preview(run)
    assert (shown["rows"], shown["chart"]["caption"]) == (100, "all 100 rows so far")
    assert float(shown["chart"]["mean"]) == 49.5
    gate.open()
    assert preview(run.wait())["chart"]["caption"] == "all 110 rows"


def test_what_has_no_number_is_not_counted_as_drawn(local):
    run = local.map(often_fails, grid(x=range(100))).wait()
    shown = preview(run)
    assert (shown["rows"], shown["chart"]["of"]) == (100, 40)
    assert shown["chart"]["caption"] == "40 values in 100 rows"


def test_a_sample_says_that_it_is_one(local, monkeypatch, many_files, tmp_path):
    monkeypatch.setattr(previews, "ALL_ROWS", 500)
    run = local.map(noise, grid(x=np.arange(1000)), store=tmp_path / "s").wait()
    shown = preview(run)
    assert shown["some"]
    assert shown["rows"] == 1000
    looked_at = shown["chart"]["of"]
    assert looked_at < 1000
    assert shown["chart"]["caption"] == f"a sample of {looked_at:,} of 1,000 rows"


def test_results_named_like_inputs_are_shown(local):
    run = local.map(atom(lambda x: {"x": -x}, id="same_name"), grid(x=range(20))).wait()
    shown = preview(run)
    assert (shown["column"], shown["chart"]["mean"]) == ("result_x", "-9.5")


# -- whose process is gone ------------------------------------------------------------------------

DIES = """
import os, signal, sys, time
from atomizer_dask import Atomizer, MemoryConductor, atom, grid
from atomizer_dask.runs.sources import stored_source
stored_source.FLUSH_SECONDS = 0.0

@atom(id="tests.slowly")
def slowly(x):
    while x >= 60:
        time.sleep(1)
    return x

atomizer = Atomizer(MemoryConductor(2), slowly)
run = atomizer.map(slowly, grid(x=range(80)), store=sys.argv[1])
while run.progress.done < 60 or not os.listdir(sys.argv[1] + "/properties"):
    time.sleep(0.01)
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A store in the middle of whose run the process died."""
    store = tmp_path_factory.mktemp("left") / "store"
    subprocess.run([sys.executable, "-c", DIES, store], timeout=60, check=False)
    return store


def test_run_whose_process_died_stands_still(left):
    run = Run.open(left)
    assert run.state == "suspended"
    assert run.progress.done == 60
    assert run.progress.pending == 20
    assert run.progress.eta is None
    before = run.seconds
    assert 0 < before < 30
    assert run.progress.rate == pytest.approx(60 / before)
    time.sleep(0.05)
    assert run.seconds == Run.open(left).seconds == before
    assert "is gone, and had not ended it: atomizer.attach(" in run.interruption
    with pytest.raises(StoreError, match=r"is suspended: atomizer\.attach"):
        run.wait(1)
    assert ": suspended, 60 of 80 done" in repr(run)


def test_panel_of_a_run_whose_process_died_says_so(left):
    run = Run.open(left)
    panel = panel_of(run)
    facts = panel.state
    assert (facts["state"], facts["can"], facts["eta"]) == ("suspended", [], None)
    assert "is gone" in facts["error"]
    assert "atomizer.attach" in facts["error"]
    assert facts["elapsed"] == run.seconds
    assert "is gone" in html_of(run)
    assert panel.pace > 1  # somebody may go on with it
    panel.close()


def test_status_of_a_run_whose_process_died_says_so(left):
    result = CliRunner().invoke(main, ["status", str(left)])
    assert result.exit_code == 4
    assert "suspended: 60 of 80 electrons (75.0%)" in result.output
    assert "nobody works on it" in result.output
    assert "left" not in result.output.split("electrons (75.0%)")[1].splitlines()[0]
    assert Run.open(left).provenance["state"] == "suspended"
    assert Run.open(left).provenance["holder"] is None


def test_run_that_ends_as_it_is_opened_has_not_been_left(local, tmp_path, monkeypatch):
    run = local.map(noise, grid(x=range(10)), store=tmp_path / "s").wait()
    opened = Run.open(tmp_path / "s")
    opened._store.manifest["state"] = "running"  # as it was read a moment ago
    assert stored_run.state_of(opened._store) == run.state == "finished"


def test_run_that_goes_on_elsewhere_is_running(local, tmp_path, gate):
    @atom(id="tests.gated")
    def gated(x, path):
        while not os.path.exists(path):
            time.sleep(0.01)

    run = local.map(gated, grid(x=[1], path=[gate.path]), store=tmp_path / "s")
    opened = Run.open(tmp_path / "s")
    assert (opened.state, opened.interruption) == ("running", "")
    first = opened.seconds
    opened.look_again()
    assert opened.seconds > first
    gate.open()
    run.wait()


def test_time_of_who_died_counts_for_who_goes_on(left, tmp_path):
    before = Run.open(left).seconds

    @atom(id="tests.slowly")
    def slowly(x):
        return x

    with Atomizer(MemoryConductor(2), slowly) as atomizer:
        run = atomizer.attach(left, accept_changes=True).wait(60)
        assert run.progress.done == 80
        assert before < run.seconds < before + 30
    assert Run.open(left).seconds == pytest.approx(run.seconds, abs=1)
    assert Run.open(left).state == "finished"


# -- rates and counts -----------------------------------------------------------------------------


class Clock:
    """Time as a test wants it."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("atomizer_dask.runs.ledger.monotonic", clock)
    return clock


@pytest.fixture
def known(local):
    """Parts of a run of 100 electrons, 60 of which failed, as they came."""
    run = local.map(often_fails, grid(x=range(100))).wait()
    return run.parts_since(0)


def test_rate_after_a_pause_is_that_of_the_work(clock, known):
    ledger = Ledger("run", "atom")
    clock.now += 10
    for part in known:
        ledger.add(part)
    assert ledger.rate() == pytest.approx(10)
    ledger.set_state("paused")
    clock.now += 1000
    ledger.set_state("running")
    assert ledger.rate() == 0  # nothing is known of now yet
    clock.now += 10
    for part in known:
        ledger.add(part)
    assert ledger.rate() == pytest.approx(10)
    ledger.set_state("finished", ended=True)
    assert ledger.seconds == 1020
    assert ledger.rate() == pytest.approx(200 / 20)


def test_rate_is_never_negative_where_failures_are_tried_again(clock, known):
    ledger = Ledger("run", "atom")
    clock.now += 10
    for part in known:
        ledger.add(part)
    for part in known:
        ledger.strike_out(part, np.ones(len(part.failed_positions()), dtype=bool))
    clock.now += 1
    assert ledger.rate() >= 0
    assert (ledger.done, ledger.failed) == (40, 0)


def test_rate_of_a_store_that_took_no_time_is_none(clock):
    ledger = Ledger("run", "atom")
    ledger.set_stored("suspended", 0.0)
    ledger.done = 100
    assert ledger.rate() == 0


def test_retry_of_one_kind_leaves_cancelled_ones_cancelled(local, gate):
    @atom(id="tests.fails_or_waits")
    def fails_or_waits(x, path, *, context):
        if x < 2 and context.attempt == 1:
            raise ValueError(x)
        while x >= 2 and not context.cancelled:
            time.sleep(0.005)
        return x

    run = local.map(fails_or_waits, grid(x=range(200), path=[gate.path]))
    wait_until(lambda: run.progress.failed == 2)
    run.cancel()
    run.join(20)
    ended = run_facts(run)
    assert (ended["failed"], ended["cancelled"] + ended["done"]) == (2, 198)
    assert ended["rate"] < 100  # of those that ran
    run.retry(where=lambda e: e.kind == "exception").wait(20)
    facts = run_facts(run)
    assert facts["failed"] == 0
    assert facts["done"] == ended["done"] + 2
    assert facts["cancelled"] == ended["cancelled"]
    assert facts["label"] == f"finished, {facts['cancelled']} did not end"


def test_numbers_of_a_store_are_those_of_its_run(local, tmp_path):
    run = local.map(often_fails, grid(x=range(100)), store=tmp_path / "s").wait()
    for one in (run, Run.open(tmp_path / "s")):
        p, facts = one.progress, run_facts(one)
        assert (p.total, p.done, p.failed, p.running, p.pending) == (100, 40, 60, 0, 0)
        assert (facts["done"], facts["failed"], facts["cancelled"]) == (40, 60, 0)
        assert p.rate * one.seconds == pytest.approx(100, rel=0.05)


def test_progress_adds_up_at_any_moment(local):
    run = local.map(often_fails, grid(x=range(8_000)), on_failure="retry", backoff=0.001)
    while run.state == "running":
        p = run.progress
        assert p.done + p.failed + p.running + p.pending == p.total
        assert min(p.done, p.failed, p.running, p.pending) >= 0


@pytest.mark.parametrize("kept", [False, True])
def test_electrons_of_workers_add_up_although_some_are_tried_again(atomizer, tmp_path, kept):
    store = tmp_path / "run" if kept else None
    options = {"on_failure": "retry", "max_attempts": 3, "store": store}
    run = atomizer.map(often_fails, grid(x=range(100)), **options).wait(60)
    crew = WorkerTable()
    crew._electrons["a worker of another run"] = 1
    crew.count(run)
    assert sum(crew._electrons.values()) == 100
    run.retry().wait(60)
    crew.count(run)
    assert sum(crew._electrons.values()) == 100
    assert sum(work["electrons"] for work in run.work().values()) == 100


def test_group_of_failures_says_that_their_messages_differ(local):
    run = local.map(often_fails, grid(x=range(100))).wait()
    odd, ten = failure_groups(run)
    assert odd["count"] == 50
    assert re.fullmatch(r"odd \d+ \(and other messages\)", odd["message"])
    assert (ten["count"], ten["message"]) == (10, "'ten'")


def test_nothing_is_at_100_percent_before_it_is_all_there():
    almost = Progress(100_000, 99_999, 0, 1, 0, 1.0, 1.0)
    assert "99.9 %" in almost._repr_html_()
    assert "100 %" in Progress(100_000, 99_999, 1, 0, 0, 1.0, 0.0)._repr_html_()


def test_curve_of_a_panel_that_came_late_begins_with_what_had_been():
    course = RateHistory()
    course.note(100.0, 5000)
    course.note(102.0, 5400)
    assert course.rates() == [[100.0, 50.0], [102.0, 200.0]]


def test_quantiles_say_whose_they_are(local):
    pytest.importorskip("matplotlib").use("Agg")
    run = local.map(often_fails, grid(x=range(100))).wait()
    texts = [text.get_text() for text in run.durations().get_legend().get_texts()]
    assert [text.endswith(" of what ended well") for text in texts].count(True) == 2
    whole = local.map(noise, grid(x=range(100))).wait()
    texts = [text.get_text() for text in whole.durations().get_legend().get_texts()]
    assert not any("of what" in text for text in texts)


def test_types_in_a_column_are_those_of_all_values():
    assert "int, str" in zipped(x=[*range(500), "a"])._repr_html_()


def test_workers_are_not_none_because_the_scheduler_does_not_answer():
    facts = conductor_facts(MemoryConductor(2), ConductorStatus("reconnecting", ""))
    assert facts["crew"] == "its workers are not known while it is not connected"
