import json

import numpy as np
import pandas as pd
import pytest

from atomizer_dask import atom, grid
from atomizer_dask.widgets.failures import EXAMPLES, GROUPS, INPUTS, failure_groups

IMG = "<img src=x onerror=alert(1)>"


class SilentError(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.fixture
def groups(atomizer):
    """Give the groups of failures of a function, with each conductor in turn."""

    def groups(function, sweep):
        found = failure_groups(atomizer.map(atom(function, id="failing"), sweep).wait())
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
        return found

    return groups


def test_failures_are_grouped_by_kind_and_exception_the_most_frequent_first(groups):
    def fail(x):
        if x % 5 == 0:
            raise KeyError(x)
        if x % 2:
            raise ValueError(f"bad {x}")
        return x

    first, second = groups(fail, grid(x=range(20)))
    assert [(g["kind"], g["type"], g["count"]) for g in (first, second)] == [
        ("exception", "ValueError", 8),
        ("exception", "KeyError", 4),
    ]
    assert first["message"].startswith("bad ")
    assert "ValueError: bad " in first["traceback"]  # a worker may not have the source lines
    assert len(first["examples"]) == EXAMPLES


def test_an_example_has_inputs_attempt_worker_and_the_line_that_replays_it(local):
    run = local.map(atom(lambda x: 1 // x, id="dividing"), grid(x=[1, 0])).wait()
    [group] = failure_groups(run)
    [example] = group["examples"]
    assert (example["inputs"], example["attempt"]) == ("x=0", 1)
    assert example["worker"]
    with pytest.raises(ZeroDivisionError):
        eval(example["replay"], {"run": run})


def test_each_electron_may_fail_with_a_message_of_its_own(local):
    @atom(vectorized=True, id="all")
    def every(x):
        raise ValueError(f"of {len(x)}: {x[0]}")

    run = local.map(every, grid(x=range(3000))).wait()
    [group] = failure_groups(run)
    assert (group["count"], run.progress.failed) == (3000, 3000)


def test_electrons_that_are_tried_again_are_in_no_group(local):
    seen = []

    def once(x):
        seen.append(x)
        if seen.count(x) == 1:
            raise ValueError(x)
        return x

    run = local.map(atom(once, id="once"), grid(x=range(6))).wait()
    assert failure_groups(run)[0]["count"] == 6
    run.retry(where=lambda error: error.message in ("0", "1")).wait()
    assert failure_groups(run)[0]["count"] == 4
    assert failure_groups(run.retry().wait()) == []


def test_of_many_types_of_exceptions_the_most_frequent_are_told(local):
    def fail(x):
        raise type(f"E{x}" + IMG * 100, (Exception,), {})("y" * 1_000_000)

    found = failure_groups(local.map(atom(fail, id="types"), grid(x=range(GROUPS + 5))).wait())
    assert len(found) == GROUPS
    assert len(json.dumps(found)) < GROUPS * 6000


def test_of_many_inputs_the_first_are_told(local):
    columns = {f"x{n}": ["\ud800" + "y" * 1000] for n in range(500)}
    run = local.map(atom(lambda **x: 1 // 0, id="wide"), pd.DataFrame(columns, dtype=object)).wait()
    [example] = failure_groups(run)[0]["examples"]
    assert len(example["inputs"]) <= INPUTS


def test_an_exception_without_a_text_is_told(local):
    def fail(x):
        raise SilentError

    [group] = failure_groups(local.map(atom(fail, id="silent"), grid(x=[1])).wait())
    assert (group["type"], group["count"]) == ("SilentError", 1)
    assert "raised" in group["message"]


def test_labels_of_any_index_can_be_replayed(local):
    frame = pd.DataFrame({"x": [0, 1]}, index=pd.MultiIndex.from_tuples([("a", IMG), ("b", "c")]))
    run = local.map(atom(lambda x: 1 // x, id="labels"), frame).wait()
    line = failure_groups(run)[0]["examples"][0]["replay"]
    with pytest.raises(ZeroDivisionError):
        eval(line, {"run": run})


def test_cancelled_electrons_are_a_group_of_their_own(local, gate):
    def waiting(x, *, context):
        while not context.cancelled:
            pass

    run = local.map(atom(waiting, id="waiting"), grid(x=np.arange(100_000)))
    run.cancel()
    run.join()
    [group] = failure_groups(run)
    assert (group["kind"], group["count"]) == ("cancelled", run.progress.failed)
    assert group["count"] > 99_000
