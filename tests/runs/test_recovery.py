"""What a run that is attached to, or opened, tells of the time before."""

from datetime import datetime

from atomizer_dask import Atomizer, MemoryConductor, Run, atom, grid


@atom
def fails_at_three(x):
    if x == 3:
        raise ValueError("three")
    return x


def told(run):
    return [event.message for _, event in run.recent.since(0)]


def test_opened_run_tells_who_worked_on_it_and_what_failed(local, tmp_path):
    local.map(fails_at_three, grid(x=range(5)), store=tmp_path / "run").wait()
    run = Run.open(tmp_path / "run")
    began, failed, left = told(run)
    assert began.endswith("began to work on it")
    assert failed == "failed: ValueError: three"
    assert left.endswith("left it")
    assert run.recent.since(0)[1][1].electron_id == f"{run.id}-3"
    times = [event.time for _, event in run.recent.since(0)]
    assert times == sorted(times)


def test_attached_run_tells_of_earlier_sessions_before_its_own(tmp_path):
    with Atomizer(MemoryConductor(1), fails_at_three) as atomizer:
        first = atomizer.map(fails_at_three, grid(x=range(5)), store=tmp_path / "run").wait()
    with Atomizer(MemoryConductor(1), fails_at_three) as atomizer:
        run = atomizer.attach(tmp_path / "run").wait()
    began, failed, left, started, *_ = told(run)
    assert began.endswith("began to work on it")
    assert failed == "failed: ValueError: three"
    assert left.endswith("left it")
    assert started == "started"
    session = first.provenance["sessions"][0]
    worked = datetime.fromisoformat(session["end"]) - datetime.fromisoformat(session["start"])
    assert run.seconds >= worked.total_seconds()
