"""Pictures of a run: what is drawn, and what is written beside it."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from atomizer_dask import Atomizer, DaskConductor, Run, atom, grid, zipped
from atomizer_dask.errors import ElectronError
from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.outcome import Outcome, RunPart
from atomizer_dask.runs.plots.schedule import durations_of, schedule, spans_of, spans_of_attempts

pytest.importorskip("matplotlib").use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@atom
def square(x):
    return x**2


@atom
def noisy(x, replica):
    return 10.0 * x + replica


@atom
def pair(a, b):
    return {"total": a + b, "difference": a - b, "label": "text"}


@atom
def odd_fails(x):
    if x % 2:
        raise ValueError("odd")
    return x


def heights(ax, number=0):
    return ax.lines[number].get_ydata()


def texts(ax):
    return [ax.get_title(), *(text.get_text() for text in ax.texts)]


def bars_of(ax):
    """The lengths of the error bars, from the mean to an end."""
    (segments,) = (c.get_segments() for c in ax.collections)
    return [(s[1][1] - s[0][1]) / 2 for s in segments]


# -- outputs against inputs -----------------------------------------------------------------------


def test_one_axis_is_a_line_with_its_labels(local):
    run = local.map(square, grid(x=[3, 1, 2])).wait()
    ax = run.plot()
    assert ax.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert heights(ax).tolist() == [1, 4, 9]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "result")
    assert texts(ax) == ["square", f"{run.id} · 3 electrons"]


def test_replicas_are_averaged_with_their_standard_error(local):
    run = local.map(noisy, grid(x=range(4), replica=range(5))).wait()
    ax = run.plot()
    expected = run.to_frame().groupby("x")["result"]
    assert heights(ax).tolist() == expected.mean().tolist()
    np.testing.assert_allclose(bars_of(ax), expected.sem())
    assert "mean ± standard error over replica" in texts(ax)[1]


def test_rows_that_come_twice_are_replicas_too(local):
    run = local.map(square, zipped(x=[1, 1, 2])).wait()
    assert heights(run.plot()).tolist() == [1, 4]


def test_over_averages_over_other_inputs(local):
    run = local.map(pair, grid(a=range(3), b=[10, 20])).wait()
    ax = run.plot("total", over="b")
    assert heights(ax).tolist() == [15, 16, 17]
    assert bars_of(ax) == pytest.approx([5, 5, 5])


def test_replicas_alone_are_what_is_drawn_along(local):
    run = local.map(noisy, grid(x=[1], replica=range(5))).wait()
    ax = run.plot()
    assert ax.get_xlabel() == "replica"
    assert heights(ax).tolist() == [10, 11, 12, 13, 14]


def test_two_axes_are_a_heat_map(local):
    run = local.map(pair, grid(a=range(4), b=[10, 20, 40])).wait()
    ax = run.plot("total")
    (mesh,) = ax.collections
    expected = run.to_frame().pivot(index="b", columns="a", values="total")
    assert mesh.get_array().tolist() == expected.to_numpy().tolist()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a", "b")
    assert mesh.colorbar.ax.get_ylabel() == "total"
    edges = mesh.get_coordinates()
    assert edges[0, :, 0].tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]
    assert edges[:, 0, 1].tolist() == [5, 15, 30, 50]


def test_failed_cells_stay_empty(local):
    @atom
    def corner_fails(a, b):
        if a == b == 1:
            raise ValueError("corner")
        return a + b

    run = local.map(corner_fails, grid(a=[0, 1], b=[0, 1])).wait()
    (mesh,) = run.plot().collections
    assert np.ma.getmaskarray(mesh.get_array()).tolist() == [[False, False], [False, True]]


def test_failed_electrons_are_gaps_of_a_line(local):
    ax = local.map(odd_fails, grid(x=range(5))).wait().plot()
    assert np.isnan(heights(ax)).tolist() == [False, True, False, True, False]
    assert "5 electrons, 2 failed" in texts(ax)[1]


def test_x_gives_a_line_for_each_value_of_the_other_input(local):
    run = local.map(pair, grid(a=range(4), b=[10, 20])).wait()
    ax = run.plot("total", x="a")
    assert [heights(ax, n).tolist() for n in (0, 1)] == [[10, 11, 12, 13], [20, 21, 22, 23]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["b = 10", "b = 20"]


def test_hue_alone_draws_along_the_other_input(local):
    run = local.map(pair, grid(a=[1, 2], b=range(30))).wait()
    ax = run.plot("total", hue="a")
    assert ax.get_xlabel() == "b"
    assert len(ax.lines) == 2


def test_three_inputs_ask_which_to_draw(local):
    @atom
    def three(a, b, c):
        return a + b + c

    run = local.map(three, grid(a=range(20), b=range(3), c=range(4))).wait()
    with pytest.raises(ValueError, match=r"a \(20 values\), b \(3 values\), c \(4 values\)"):
        run.plot()
    with pytest.raises(ValueError, match=r"run.plot\(x='a', hue='b', over=\['c'\]\)"):
        run.plot()
    ax = run.plot(x="a", hue="b", over=["c"])
    line, _, _ = ax.containers[1].lines
    assert line.get_ydata().tolist() == [a + 1 + 1.5 for a in range(20)]


def test_too_many_lines_are_refused(local):
    run = local.map(pair, grid(a=range(3), b=range(30))).wait()
    with pytest.raises(ValueError, match="hue='b' has 30 values"):
        run.plot("total", x="a", hue="b")


def test_several_outputs_are_a_figure_with_an_axes_each(local):
    run = local.map(pair, grid(a=range(4), b=[1])).wait()
    figure = run.plot()
    assert [ax.get_ylabel() for ax in figure.axes] == ["total", "difference"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "a"]
    assert figure.get_suptitle() == f"pair\n{run.id} · 4 electrons"


def test_several_outputs_share_an_axes_that_is_given(local):
    run = local.map(pair, grid(a=range(4), b=[1])).wait()
    ax = plt.figure().add_subplot()
    assert run.plot(ax=ax) is ax
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["total", "difference"]


def test_axes_may_be_given_for_each_output(local):
    run = local.map(pair, grid(a=range(4), b=range(2))).wait()
    figure, axes = plt.subplots(2)
    assert run.plot(["difference", "total"], ax=axes) is figure
    assert [len(ax.collections) for ax in axes] == [1, 1]
    with pytest.raises(ValueError, match="2 outputs cannot share one Axes"):
        run.plot(ax=axes[0])
    with pytest.raises(ValueError, match="ax has 2 Axes for 1 outputs"):
        run.plot("total", ax=axes)


def test_texts_are_categories_taken_as_they_are(local):
    @atom
    def length(name):
        return len(name)

    run = local.map(length, grid(name=["zeta", "$a^$", "_b"])).wait()
    ax = run.plot()
    ax.figure.canvas.draw()  # a text that were taken for a formula would raise
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["zeta", "$a^$", "_b"]
    assert heights(ax).tolist() == [4, 4, 2]
    assert ax.lines[0].get_linestyle() == "None"


def test_names_of_lines_are_taken_as_they_are(local):
    @atom
    def of(x, kind):
        return x

    run = local.map(of, grid(x=range(3), kind=["_hidden", "$a^$"])).wait()
    ax = run.plot(x="x")
    ax.figure.canvas.draw()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "kind = _hidden",
        "kind = $a^$",
    ]


def test_times_are_times(local):
    @atom
    def month(day):
        return day.month

    days = pd.date_range("2026-01-30", periods=4, tz="Europe/Berlin")
    ax = local.map(month, grid(day=days)).wait().plot()
    assert ax.lines[0].get_xdata().tolist() == days.tz_convert("UTC").tz_localize(None).tolist()
    assert ax.get_xlabel() == "day (UTC)"


def test_geometric_axes_are_logarithmic(local):
    ax = local.map(square, grid(x=np.geomspace(0.1, 100, 7))).wait().plot()
    assert ax.get_xscale() == "log"
    ax = local.map(square, grid(x=np.linspace(0.1, 100, 7))).wait().plot()
    assert ax.get_xscale() == "linear"


def test_scattered_inputs_are_dots(local):
    generator = np.random.default_rng(0)
    a, b = generator.uniform(size=(2, 50))
    run = local.map(pair, zipped(a=a, b=b)).wait()
    (dots,) = run.plot("total").collections
    drawn = {(x, y): c for (x, y), c in zip(dots.get_offsets(), dots.get_array(), strict=True)}
    assert drawn == {(x, y): x + y for x, y in zip(a, b, strict=True)}
    along = run.plot("total", x="a")
    assert along.lines[0].get_linestyle() == "None"  # neighbours have nothing to do with each other
    assert len(along.lines[0].get_xdata()) == 50


def test_columns_that_name_rows_are_no_axes(local):
    @atom
    def named(x, name):
        return 2 * x

    run = local.map(named, pd.DataFrame({"name": list("abc"), "x": [1.0, 2.0, 3.0]})).wait()
    ax = run.plot()
    assert ax.get_xlabel() == "x"
    assert ax.lines[0].get_linestyle() == "-"


def test_streamed_sweeps_are_drawn_along_what_varies(local):
    run = local.map(pair, ({"a": a, "b": 5} for a in range(6))).wait()
    ax = run.plot("total")
    assert ax.get_xlabel() == "a"
    assert heights(ax).tolist() == list(range(5, 11))


def test_booleans_are_shares_and_durations_are_seconds(local):
    @atom
    def both(x, trial):
        return {"hit": trial < 1, "took": timedelta(minutes=x)}

    run = local.map(both, grid(x=range(3), trial=range(4))).wait()
    assert heights(run.plot("hit")).tolist() == [0.25] * 3
    ax = run.plot("took")
    assert heights(ax).tolist() == [0, 60, 120]
    assert ax.get_ylabel() == "took (s)"
    assert run.plot("duration").get_ylabel() == "duration (s)"


def test_missing_inputs_are_told(local):
    @atom
    def one(x):
        return 1

    ax = local.map(one, pd.DataFrame({"x": [1.0, np.nan, 3.0]})).wait().plot()
    assert ax.lines[0].get_xdata().tolist() == [1, 3]
    assert "1 without x" in texts(ax)[1]


def test_inputs_that_cannot_be_hashed_are_categories(local):
    @atom
    def total(weights):
        return sum(weights)

    ax = local.map(total, grid(weights=[[1, 2], [3, 4]])).wait().plot()
    assert heights(ax).tolist() == [3, 7]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["[1, 2]", "[3, 4]"]


def test_what_cannot_be_drawn_is_named(local):
    @atom
    def wordy(x):
        return {"word": "w", "path": [x]}

    run = local.map(wordy, grid(x=range(3))).wait()
    with pytest.raises(ValueError, match=r"word \(str\), path \(list\): only numbers"):
        run.plot()
    with pytest.raises(ValueError, match=r"cannot draw word \(str\)"):
        run.plot("word")
    with pytest.raises(KeyError, match="there is no column 'energy'"):
        run.plot("energy")


def test_an_input_that_is_missing_everywhere_is_no_axis(local):
    @atom
    def one(x):
        return 1

    run = local.map(one, zipped(x=[None, None])).wait()
    with pytest.raises(ValueError, match="all values of x are missing"):
        run.plot()
    with pytest.raises(TypeError, match="y must be the name of an output or a list"):
        run.plot(3)


def test_an_input_is_there_and_has_one_role(local):
    run = local.map(pair, grid(a=range(3), b=range(3))).wait()
    with pytest.raises(KeyError, match="no input 'z', its inputs are a, b"):
        run.plot("total", x="z")
    with pytest.raises(ValueError, match="'a' can be only one of x, hue and over"):
        run.plot("total", x="a", over="a")
    with pytest.raises(ValueError, match="nothing left to draw along"):
        run.plot("total", over=["a", "b"])


def test_of_what_has_not_ended_well_there_is_no_plot(local, gate):
    @atom
    def waits(x, path):
        from pathlib import Path

        while not Path(path).exists():
            time.sleep(0.001)
        return x

    run = local.map(waits, grid(x=range(4), path=[gate.path]))
    for picture in (run.plot, run.timeline, run.durations):
        with pytest.raises(ValueError, match=r"no electron of .* has ended yet"):
            picture()
    gate.open()
    run.wait()
    failed = local.map(odd_fails, grid(x=[1, 3])).wait()
    with pytest.raises(ValueError, match=r"all 2 electrons of .* that have ended failed"):
        failed.plot()


def test_a_run_under_way_shows_what_has_ended(local, gate):
    @atom
    def last_waits(x, path):
        from pathlib import Path

        while x == 3 and not Path(path).exists():
            time.sleep(0.001)
        return x

    run = local.map(last_waits, grid(x=range(4), path=[gate.path]))
    for number, _ in enumerate(run, 1):
        if number == 3:
            break
    ax = run.plot()
    assert sorted(heights(ax)) == [0, 1, 2]
    assert "3 of 4 electrons" in texts(ax)[1]
    assert run.timeline().collections
    assert run.durations().patches
    gate.open()
    run.wait()


def test_a_stored_run_is_drawn_from_its_store(local, tmp_path):
    run = local.map(noisy, grid(x=range(4), replica=range(5)), store=tmp_path / "s").wait()
    opened = Run.open(tmp_path / "s")
    assert heights(opened.plot()).tolist() == heights(run.plot()).tolist()
    ours, theirs = run.timeline(), opened.timeline()
    assert len(ours.get_yticks()) == len(theirs.get_yticks())
    assert texts(ours) == texts(theirs)
    assert sum(p.get_height() for p in opened.durations().patches) == 20


def test_many_values_are_taken_together(local):
    @atom(vectorized=True)
    def same(x):
        return x * 1.0

    ax = local.map(same, zipped(x=np.arange(10_000))).wait().plot()
    assert len(heights(ax)) == 2000
    assert heights(ax)[0] == 2
    assert "10,000 values of x in 2,000 steps" in texts(ax)[1]


def test_many_cells_are_taken_together(local):
    @atom(vectorized=True)
    def plane(a, b):
        return a + 0.0 * b

    ax = local.map(plane, grid(a=range(1000), b=range(3))).wait().plot()
    (mesh,) = ax.collections
    assert mesh.get_array().shape == (3, 500)
    assert mesh.get_array()[0, 0] == 0.5


def test_many_categories_are_refused(local):
    run = local.map(square_of_text, grid(x=[f"n{n}" for n in range(300)])).wait()
    with pytest.raises(ValueError, match="x has 300 different values that are no numbers"):
        run.plot()


@atom
def square_of_text(x):
    return int(x[1:]) ** 2


def test_pictures_leave_pyplot_one_figure_each(local):
    run = local.map(pair, grid(a=range(4), b=range(3))).wait()
    run.plot(), run.plot("total"), run.timeline(), run.durations()
    assert len(plt.get_fignums()) == 4


def test_importing_loads_neither_matplotlib_nor_xarray():
    code = "import sys, atomizer_dask; print(*{'matplotlib', 'xarray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("picture", ["plot", "timeline", "durations"])
def test_without_matplotlib_the_way_to_it_is_told(local, monkeypatch, picture):
    run = local.map(square, grid(x=[1, 2])).wait()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=rf"run.{picture} needs .*'atomizer_dask\[plot\]'"):
        getattr(run, picture)()


# -- when and how long ----------------------------------------------------------------------------


def part(worker, starts, ends, failed=(), kind="exception"):
    """Electrons that ran from and to these seconds."""
    outcome = Outcome(
        stop=len(starts),
        results={},
        failed=list(failed),
        codes=[0] * len(failed),
        failures=[Failure(kind, "E", "message")],
        start_ns=10**18,
        starts=np.array(starts, dtype=float),
        ends=np.array(ends, dtype=float),
        counts=None,
        worker=worker,
    )
    return RunPart(range(len(starts)), outcome)


def test_electrons_one_after_the_other_are_one_span():
    plan = schedule([spans_of(part("w", [0, 1, 2, 8], [1, 2, 3, 9]))])
    (lane,) = plan.lanes
    assert (lane.starts.tolist(), lane.ends.tolist()) == ([0, 8], [3, 9])


def test_electrons_at_once_have_a_lane_each():
    parts = [part("w", [0, 5], [5, 10]), part("w", [2, 6], [6, 8]), part("v", [1], [3])]
    plan = schedule([spans_of(each) for each in parts])
    assert [lane.worker for lane in plan.lanes] == ["w", "w", "v"]
    assert sum(float((lane.ends - lane.starts).sum()) for lane in plan.lanes) == 10 + 6 + 2


def test_a_failure_between_others_needs_no_lane():
    good = part("w", [0, 1.001], [1, 60])
    bad = part("w", [1], [1.001], failed=[0])
    plan = schedule([spans_of(good), spans_of(bad)])
    assert len(plan.lanes) == 1
    assert plan.failed["w"].tolist() == pytest.approx([1.001])


def test_a_million_spans_are_drawn_as_some_thousands():
    starts = np.arange(1_000_000) * 1e-3
    plan = schedule([spans_of(part("w", starts, starts + 0.5e-3, failed=range(1_000_000)))])
    assert sum(len(lane.starts) for lane in plan.lanes) <= 4_001
    assert len(plan.failed["w"]) <= 4_001


def test_earlier_attempts_are_seen_where_they_ran():
    first = datetime(2026, 1, 1, tzinfo=UTC)
    seconds = timedelta(seconds=1)
    died = ElectronError("died", kind="killed", worker="w", start=first, end=first + seconds)
    refused = ElectronError("refused", kind="rejected")
    plan = schedule(spans_of_attempts([died, refused]))
    assert plan.killed["w"].tolist() == [1]
    assert plan.failed["w"].tolist() == []


def test_electrons_of_one_call_have_one_duration():
    found = durations_of(part("w", [0, 0, 0, 2, 2], [2, 2, 2, 3, 3]))
    assert found.good.tolist() == [2e9, 1e9]
    assert found.electrons == 5


def test_timeline_marks_failures_and_retries(local):
    @atom
    def second_time(x, context):
        if context.attempt == 1 and x == 3:
            raise OSError("once")
        if x == 5:
            raise ValueError("always")
        return x

    ax = local.map(second_time, grid(x=range(8)), on_failure="retry", max_attempts=2).wait()
    ax = ax.timeline()
    marks = [c for c in ax.collections if c.get_label() != "" and len(c.get_paths())]
    assert marks
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["failed"]
    assert ax.get_xlabel().startswith("seconds since ")
    assert "8 electrons, 1 failed" in texts(ax)[1]


@pytest.mark.dask
def test_timeline_marks_workers_that_were_lost(gate):
    path = gate.path

    @atom
    def waits(x):
        while x >= 4 and not os.path.exists(path):
            time.sleep(0.01)
        return os.getpid()

    with Atomizer(DaskConductor(workers=2), waits) as atomizer:
        run = atomizer.map(waits, grid(x=range(8)))
        first = next(iter(run)).value()
        os.kill(first, signal.SIGKILL)
        while not any(
            "worker" in e.fields and e.level == "warning" for _, e in run.recent.since(0)
        ):
            time.sleep(0.05)
        gate.open()
        ax = run.wait().timeline()
    assert "worker lost" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_durations_tell_median_and_the_failed_apart(local):
    run = local.map(odd_fails, grid(x=range(40))).wait()
    ax = run.durations()
    labels = [text.get_text().partition(":")[0] for text in ax.get_legend().get_texts()]
    assert sorted(labels) == ["95 %", "ended well", "failed", "median"]
    seconds = run.to_frame(metadata=True)["duration"].dt.total_seconds()[::2]
    drawn = [line.get_xdata()[0] for line in ax.lines]
    assert drawn == pytest.approx([seconds.quantile(0.5), seconds.quantile(0.95)])
    assert sum(p.get_height() for p in ax.patches) == 40
    assert ax.get_ylabel() == "electrons"


def test_durations_of_a_vectorised_atom_are_those_of_its_calls(local):
    @atom(vectorized=True)
    def twice(x):
        return 2 * x

    ax = local.map(twice, grid(x=range(1000))).wait().durations()
    assert ax.get_ylabel() == "calls"
    assert "executed in" in texts(ax)[1]
    assert sum(p.get_height() for p in ax.patches) < 1000


def test_only_failures_have_durations_and_a_timeline(local):
    run = local.map(odd_fails, grid(x=[1, 3, 5])).wait()
    assert sum(p.get_height() for p in run.durations().patches) == 3
    assert run.timeline().get_legend() is not None


def test_what_was_cancelled_before_it_ran_has_no_lane(local, gate):
    @atom
    def waits_for(x, path, context):
        while not context.cancelled:
            time.sleep(0.001)

    run = local.map(waits_for, grid(x=range(500), path=[gate.path]))
    while not run.progress.running:
        run.join(0.01)
    run.cancel()
    run.wait()
    ran = (run.to_frame(metadata=True)["worker"].astype(str) != "").sum()
    if ran:
        drawn = sum(p.get_height() for p in run.durations().patches)
        assert drawn == ran
    else:
        with pytest.raises(ValueError, match="has run on a worker"):
            run.durations()


@pytest.mark.dask
def test_a_process_that_died_is_marked_in_the_lane_of_its_worker(dask):
    from atomizer_dask import Atomizer

    @atom(isolation="process")
    def deadly(x):
        import os

        if x == 3:
            os._exit(1)
        return x

    with Atomizer(dask, deadly) as atomizer:
        run = atomizer.map(deadly, grid(x=range(6))).wait(60)
        ax = run.timeline()
    assert run.errors["kind"].tolist() == ["killed"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["process died"]
    worker = run.errors["worker"].iloc[0].removeprefix("tcp://")
    assert worker in [tick.get_text() for tick in ax.get_yticklabels()]
