import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from atomizer_dask import atom, grid, zipped
from atomizer_dask.widgets.preview import SAMPLED, preview

IMG = "<img src=x onerror=alert(1)>"


class Silent:
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class Nothing:
    def __getattr__(self, name):
        raise RuntimeError(name)


KINDS = {
    "no text": Silent(),
    "no attributes": Nothing(),
    "huge": 10**5000,
    "half a pair": "\ud800",
    "bytes": b"\xff",
    "set": {1},
    "type": int,
    "missing": pd.NA,
}


@pytest.fixture
def previewed(local):
    """Give the preview of results of a function of x."""

    def previewed(function, xs=range(20), column=""):
        run = local.map(atom(function, id="previewed"), zipped(x=list(xs))).wait()
        shown = preview(run, column)
        json.dumps(shown, allow_nan=False, ensure_ascii=False).encode()
        return shown

    return previewed


def test_nothing_is_shown_before_anything_has_ended(local, gate):
    def waiting(x):
        while not __import__("os").path.exists(gate.path):
            pass
        return x

    run = local.map(atom(waiting, id="waiting"), grid(x=[1]))
    assert preview(run) == {}
    gate.open()
    assert preview(run.wait())["first"] == [["0", "1", "1"]]


def test_first_and_last_rows_and_the_first_output_of_numbers(previewed):
    shown = previewed(lambda x: {"name": f"n{x}", "value": x / 2})
    assert shown["columns"] == ["x", "name", "value"]
    assert [row[0] for row in shown["first"] + shown["last"]] == [
        *"01234",
        *map(str, range(15, 20)),
    ]
    assert shown["column"] == "value"
    assert shown["chart"]["of"] == sum(shown["chart"]["bars"]) == 20
    assert shown["chart"]["labels"] == ["0", "9.5"]
    assert (shown["chart"]["mean"], shown["chart"]["spread"]) == ("4.75", "2.88314")


def test_an_output_is_chosen_by_its_name_on_the_page(previewed):
    names = {IMG: 1.0, "b\x07": "text"}
    assert previewed(lambda x: names, column="b\\x07")["chart"]["labels"] == ["text"]
    assert previewed(lambda x: names, column=IMG)["column"] == IMG
    assert previewed(lambda x: names, column="none of them")["column"] == IMG


@pytest.mark.parametrize(
    ("low", "high", "mean"),
    [
        (1.0, np.nextafter(1, 2), "1"),
        (0.0, 5e-324, "4.94066e-324"),
        (-1e308, 1e308, "0"),
        (7, 7, "7"),
        (-(2**63), 2**63 - 1, "0"),
    ],
)
def test_numbers_almost_alike_or_at_the_ends_of_what_there_is_are_drawn(previewed, low, high, mean):
    chart = previewed(lambda x: high if x % 2 else low)["chart"]
    assert sum(chart["bars"]) == 20
    assert float(chart["mean"]) == pytest.approx(float(mean), abs=1e-323)


def test_what_is_no_finite_number_is_left_out(previewed):
    chart = previewed(lambda x: [float("nan"), float("inf"), -float("inf"), 1.0][x % 4])["chart"]
    assert (chart["of"], chart["labels"]) == (5, ["1", "1"])
    assert previewed(lambda x: float("nan"))["chart"] is None


@pytest.mark.parametrize(
    "value",
    [None, [[1], [1, 2]], [[]], np.zeros((2, 3)), (1, 2), {}],
    ids=["None", "ragged", "nested", "array", "tuple", "no-output"],
)
def test_nothing_is_drawn_of_what_is_no_single_value(previewed, value):
    assert previewed(lambda x: value)["chart"] is None


def test_the_most_frequent_values_are_counted_where_they_are_no_numbers(previewed):
    chart = previewed(lambda x: "even" if x % 2 == 0 or x > 15 else "odd")["chart"]
    assert (chart["labels"], chart["bars"], chart["of"]) == (["even", "odd"], [12, 8], 20)


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_any_kind_are_shown(previewed, kind):
    shown = previewed(lambda x: {"a": KINDS[kind], "b": 1})
    assert len(shown["first"]) == 5


def test_values_are_shown_as_people_write_them(previewed):
    moment = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    shown = previewed(lambda x: {"t": moment, "d": timedelta(1), "n": np.int64(3), "o": [1]}, [0])
    assert shown["first"][0][2][:19] == "2026-01-02 03:04:00"
    assert shown["first"][0][4:] == ["3", "[1]"]


def test_integers_stay_integers_where_electrons_failed(previewed):
    def odd(x):
        return x if x % 2 else 1 // 0

    rows = previewed(odd, [0, 1, 2, 3])["first"]
    assert [row[2] for row in rows] in (["", "1", "", "3"], ["<NA>", "1", "<NA>", "3"])


def test_a_long_run_is_sampled_and_its_ends_are_shown(local):
    @atom(vectorized=True, id="long")
    def long(x):
        return x * 2.0

    run = local.map(long, grid(x=np.arange(1_000_000))).wait()
    shown = preview(run)
    assert (shown["first"][0][0], shown["last"][-1][0]) == ("0", "999999")
    assert shown["chart"]["of"] < 2 * SAMPLED


@pytest.mark.parametrize(
    ("index", "first"),
    [
        (pd.date_range("2026", periods=3), "2026-01-01 00:00:00"),
        (pd.MultiIndex.from_tuples([("a", 0), ("a", 1), ("b", 0)]), "('a', 0)"),
        (pd.Index([IMG, IMG, "c"]), IMG[:21] + "..."),
    ],
)
def test_rows_have_the_labels_of_the_frame_that_was_swept_over(local, index, first):
    run = local.map(
        atom(lambda x: x, id="same"), pd.DataFrame({"x": [1, 2, 3]}, index=index)
    ).wait()
    assert preview(run)["first"][0][0] == first


def test_many_columns_are_counted(previewed):
    shown = previewed(lambda x: {f"c{n}": n for n in range(50)})
    assert len(shown["columns"]) == 12
    assert shown["hidden"] == 39
    assert len(shown["outputs"]) == 50
