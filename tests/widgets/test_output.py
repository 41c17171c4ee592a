"""What atoms print, in the panel of a run."""

import json

import pytest

from atomizer_dask import Run, atom, grid
from atomizer_dask.widgets.failures import failure_groups
from atomizer_dask.widgets.output import LINES, output_rows

IMG = "<img src=x onerror=alert(1)>"


@atom(id="shown.says")
def says(x):
    print("at", x)
    if x == 1:
        print("\u202e" + IMG)
        raise ValueError("one")
    return x


def test_the_newest_lines_come_first(atomizer):
    run = atomizer.map(says, grid(x=range(3))).wait()
    found = output_rows(run)
    json.dumps(found)
    assert found["total"] == run.printed_count == 4
    texts = [row[3] for row in found["rows"]]
    assert {"at 0", "at 1", "at 2"} < set(texts)
    times = [row[1] for row in found["rows"]]
    assert times == sorted(times, reverse=True)
    assert {tuple(row[4:]) for row in found["rows"]} == {("row", "0"), ("row", "1"), ("row", "2")}
    assert {row[2] for row in found["rows"]} == {"stdout"}


def test_there_are_not_too_many(atomizer):
    run = atomizer.map(says, grid(x=range(10, 1000))).wait()
    found = output_rows(run)
    assert len(found["rows"]) == LINES
    assert found["total"] == 990


@pytest.mark.parametrize("text", ["at 1", IMG])
def test_a_failure_has_the_last_lines_of_its_electron(atomizer, text):
    run = atomizer.map(says, grid(x=range(3))).wait()
    [group] = failure_groups(run)
    assert text in group["examples"][0]["printed"]
    assert "\u202e" not in group["examples"][0]["printed"]


def test_a_run_that_was_opened_shows_what_its_store_has(atomizer, tmp_path):
    atomizer.map(says, grid(x=range(3)), store=tmp_path / "run").wait()
    assert output_rows(Run.open(tmp_path / "run"))["total"] == 4
