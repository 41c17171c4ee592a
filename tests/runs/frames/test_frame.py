from datetime import UTC, date, datetime, timedelta
from typing import TypedDict

import numpy as np
import pandas as pd
import pytest

from atomizer_dask import InvalidSweepError, atom, grid, zipped


@pytest.fixture
def frame_of(local):
    """Run a function over a sweep in this process and give the frame."""

    def run(function, sweep, **options):
        local_atom = atom(id="tested", **options)(function)
        return local.map(local_atom, sweep).wait(60).to_frame()

    return run


def failing_at(bad, value):
    """An atom's function that fails for some x and gives `value(x)` for the others."""

    def function(x):
        if x in bad:
            raise ValueError(x)
        return value(x)

    return function


# -- rows and index ------------------------------------------------------------------------------


def test_rows_are_in_sweep_order_with_the_inputs_first(frame_of):
    frame = frame_of(lambda y, x: {"sum": x + y}, grid(x=range(30), y=range(20)))
    assert list(frame.columns) == ["x", "y", "sum"]
    assert list(zip(frame["x"], frame["y"], strict=True)) == [
        (x, y) for x in range(30) for y in range(20)
    ]
    assert frame["sum"].equals(frame["x"] + frame["y"])
    assert frame.index.equals(pd.RangeIndex(600))


def test_index_and_dtypes_of_the_users_frame_come_back(frame_of):
    given = pd.DataFrame(
        {
            "single": np.array([1.5, 2.5, 3.5], "f4"),
            "kind": pd.Categorical(["a", "b", "a"], categories=["b", "a"], ordered=True),
            "when": pd.date_range("2026-01-01", periods=3, tz="Europe/Berlin"),
            "maybe": pd.array([1, None, 3], dtype="Int64"),
            "text": ["x", "y", "z"],
        },
        index=pd.MultiIndex.from_tuples([("p", 1), ("q", 2), ("q", 2)], names=["who", "n"]),
    )
    frame = frame_of(lambda single, **others: single * 2, given)
    pd.testing.assert_frame_equal(frame[list(given.columns)], given)
    assert frame["result"].tolist() == [3.0, 5.0, 7.0]


def test_frame_and_errors_share_the_users_index(local):
    given = pd.DataFrame({"x": range(5)}, index=pd.Index(list("abcde"), name="letter"))
    run = local.map(atom(failing_at([1, 3], lambda x: x)), given).wait(60)
    assert run.errors.index.tolist() == ["b", "d"]
    assert run.errors.index.name == "letter"
    assert run.to_frame().loc[run.errors.index, "result"].isna().all()


def test_what_is_unfinished_is_no_row(local, gate):
    @atom
    def wait(x, path):
        import os
        import time

        while x > 10 and not os.path.exists(path):
            time.sleep(0.005)
        return x

    run = local.map(wait, grid(x=range(40), path=[gate.path]))
    next(iter(run))
    frame = run.to_frame()
    assert 0 < len(frame) < 40
    assert frame["x"].tolist() == frame["result"].tolist() == frame.index.tolist()
    gate.open()
    assert len(run.wait(60).to_frame()) == 40


def test_changing_a_frame_changes_no_other(local):
    values = np.arange(5.0)
    run = local.map(atom(id="same", vectorized=True)(lambda x: x), zipped(x=values)).wait(60)
    frame = run.to_frame()
    frame.loc[:, :] = -1.0
    assert run.to_frame()["x"].tolist() == run.to_frame()["result"].tolist() == [0, 1, 2, 3, 4]
    assert values.tolist() == [0, 1, 2, 3, 4]


# -- outputs -------------------------------------------------------------------------------------

MOMENT = datetime(2026, 1, 1, 12, tzinfo=UTC)
RESULTS = {
    "int": (lambda x: x, "int64"),
    "float": (lambda x: x / 2, "float64"),
    "mixed": (lambda x: x if x % 2 else x / 2, "float64"),
    "bool": (lambda x: x > 2, "bool"),
    "complex": (lambda x: x * 1j, "complex128"),
    "str": (lambda x: f"text {x}", "str"),
    "float32": (lambda x: np.float32(x), "float32"),
    "datetime": (lambda x: MOMENT + timedelta(days=x), "datetime64[us, UTC]"),
    "timedelta": (lambda x: timedelta(days=x), "timedelta64[us]"),
    "date": (lambda x: date(2026, 1, 1), "object"),
    "list": (lambda x: [x] * x, "object"),
    "bool_or_int": (lambda x: x if x % 2 else True, "object"),
    "huge": (lambda x: 2**70 + x, "object"),
}


@pytest.mark.parametrize(("value", "dtype"), RESULTS.values(), ids=RESULTS)
def test_results_have_the_dtype_of_their_values(frame_of, value, dtype):
    frame = frame_of(value, grid(x=range(10)))
    assert frame["result"].dtype == dtype
    assert frame["result"].tolist() == [value(x) for x in range(10)]


MISSING = {
    "int": (lambda x: 2**60 + x, "Int64"),
    "bool": (lambda x: x > 2, "boolean"),
    "float": (lambda x: x / 2, "float64"),
    "float32": (lambda x: np.float32(x), "float32"),
    "int8": (lambda x: np.int8(x), "Int8"),
    "str": (lambda x: f"text {x}", "str"),
    "datetime": (lambda x: MOMENT + timedelta(days=x), "datetime64[us, UTC]"),
    "numpy_datetime": (lambda x: np.datetime64("2026-01-01", "ns") + x, "datetime64[ns]"),
    "list": (lambda x: [x] * x, "object"),
    "array": (lambda x: np.arange(3) + x, "object"),
}


@pytest.mark.parametrize(("value", "dtype"), MISSING.values(), ids=MISSING)
@pytest.mark.parametrize("how", ["failed", "none"])
def test_missing_results_keep_the_dtype(frame_of, value, dtype, how):
    bad = (0, 4, 9)
    function = failing_at(bad, value)
    if how == "none":

        def function(x):
            return None if x in bad else value(x)

    frame = frame_of(function, grid(x=range(10)))
    assert frame["result"].dtype == dtype
    assert frame["result"].isna().tolist() == [x in bad for x in range(10)]
    good = [x for x in range(10) if x not in bad]
    assert repr(frame["result"][good].tolist()) == repr([value(x) for x in good]) or (
        frame["result"][good].tolist() == [value(x) for x in good]
    )


def test_array_results_are_one_per_row(frame_of):
    frame = frame_of(lambda x: np.full(3, x), grid(x=range(5)))
    assert [type(row) for row in frame["result"]] == [np.ndarray] * 5
    assert frame["result"][4].tolist() == [4, 4, 4]


def test_array_results_of_any_shape_are_one_per_row(frame_of):
    frame = frame_of(lambda x: np.zeros((x % 3, 2)), grid(x=range(6)))
    assert [row.shape for row in frame["result"]] == [(x % 3, 2) for x in range(6)]


def test_two_dimensional_vectorised_result_is_an_array_per_row(frame_of):
    frame = frame_of(lambda x: np.stack([x, x + 1], axis=1), grid(x=range(5)), vectorized=True)
    assert [row.tolist() for row in frame["result"]] == [[x, x + 1] for x in range(5)]


def test_dict_results_are_columns(frame_of):
    frame = frame_of(lambda x: {"half": x / 2, "name": f"n{x}", "big": x > 2}, grid(x=range(5)))
    assert list(frame.columns) == ["x", "half", "name", "big"]
    assert [str(d) for d in frame.dtypes] == ["int64", "float64", "str", "bool"]


def test_dicts_of_different_fields_leave_the_others_missing(frame_of):
    def function(x):
        return {"odd": x} if x % 2 else {"even": x, "text": "t"}

    frame = frame_of(function, grid(x=range(10)))
    assert frame["odd"].dtype == frame["even"].dtype == "Int64"
    assert frame["odd"].isna().tolist() == [x % 2 == 0 for x in range(10)]
    assert frame["even"].dropna().tolist() == [0, 2, 4, 6, 8]
    assert frame["text"].isna().sum() == 5


def test_dicts_among_other_results_go_both_ways(frame_of):
    frame = frame_of(lambda x: {"y": x} if x % 2 else x, grid(x=range(4)))
    assert frame["y"].isna().tolist() == [True, False, True, False]
    assert frame["result"].dropna().tolist() == [0, 2]


def test_dict_that_names_no_columns_is_a_result_itself(frame_of):
    frame = frame_of(lambda x: {x: 1}, grid(x=range(3)))
    assert frame["result"].tolist() == [{0: 1}, {1: 1}, {2: 1}]


def test_no_results_at_all_are_a_column_of_missing_values(frame_of):
    frame = frame_of(lambda x: None, grid(x=range(3)))
    assert frame["result"].isna().all()


def test_all_failed_is_a_frame_of_inputs(local):
    run = local.map(atom(failing_at(range(10), int)), grid(x=range(10))).wait(60)
    assert run.to_frame()["x"].tolist() == list(range(10))
    assert len(run.errors) == 10


def test_vectorised_frame_keeps_its_columns(frame_of):
    frame = frame_of(
        lambda x: pd.DataFrame({"twice": 2 * x, "text": [f"n{n}" for n in x]}),
        grid(x=range(2000)),
        vectorized=True,
    )
    assert frame["twice"].tolist() == [2 * x for x in range(2000)]
    assert frame["text"].tolist() == [f"n{x}" for x in range(2000)]


# -- names that clash ----------------------------------------------------------------------------


def test_output_with_the_name_of_an_input_gets_a_prefix(frame_of):
    frame = frame_of(lambda x: {"x": -x, "y": x}, grid(x=range(1, 4)))
    assert list(frame.columns) == ["x", "result_x", "y"]
    assert frame["result_x"].tolist() == [-1, -2, -3]


def test_prefixed_output_displaces_no_other_column(frame_of):
    frame = frame_of(lambda x, result_x: {"x": -x}, zipped(x=[1, 2], result_x=[5, 6]))
    assert frame["result_x"].tolist() == [5, 6]
    assert frame.shape == (2, 3)


def test_prefixed_output_displaces_no_other_output(frame_of):
    frame = frame_of(lambda x: {"x": -x, "result_x": 9}, zipped(x=[1, 2]))
    assert frame.shape == (2, 3)


def test_metadata_with_the_name_of_a_column_gets_a_prefix(local):
    run = local.map(atom(lambda **inputs: {"worker": inputs["id"]}), {"id": [1, 2]}).wait(60)
    frame = run.to_frame(metadata=True)
    assert frame["id"].tolist() == frame["worker"].tolist() == [1, 2]
    assert frame["electron_id"].tolist() == [f"{run.id}-0", f"{run.id}-1"]
    assert "electron_worker" in frame


class Outputs(TypedDict):
    x: int
    energy: float


def test_declared_output_with_the_name_of_an_input_is_refused_before_the_run(local):
    def declares(x) -> Outputs:
        return {"x": 1, "energy": 2.0}

    with pytest.raises(InvalidSweepError, match=r"declares the outputs \['x'\]"):
        local.map(atom(declares), {"x": [1]})


def test_declared_outputs_of_other_names_are_fine(local):
    def declares(y) -> Outputs:
        return {"x": y, "energy": 2.0}

    assert local.map(atom(declares), {"y": [1]}).wait(60).to_frame()["x"].tolist() == [1]


# -- metadata and errors -------------------------------------------------------------------------


def test_metadata_tells_who_when_and_where(atomizer):
    before = pd.Timestamp.now(tz="UTC")
    run = atomizer.map(atom(failing_at([7], lambda x: x)), grid(x=range(50))).wait(60)
    frame = run.to_frame(metadata=True)
    assert list(frame.columns)[2:] == ["id", "start", "end", "duration", "worker", "attempts"]
    assert frame["id"].tolist() == [f"{run.id}-{n}" for n in range(50)]
    for name in ("start", "end"):
        assert str(frame[name].dt.tz) == "UTC"
        # Clocks of one machine, read to a microsecond.
        assert (frame[name] >= before - pd.Timedelta(1, "ms")).all()
        assert (frame[name] <= pd.Timestamp.now(tz="UTC") + pd.Timedelta(1, "ms")).all()
    assert frame["duration"].equals(frame["end"] - frame["start"])
    assert (frame["duration"] >= pd.Timedelta(0)).all()
    assert set(frame["attempts"]) == {1}
    assert frame["worker"].notna().all()
    properties = {p.electron_id: p for p in run}
    row = frame.iloc[7]
    assert properties[row["id"]].worker == row["worker"]
    assert abs(properties[row["id"]].end - row["end"]) < timedelta(microseconds=2)


def test_start_of_an_electron_is_the_end_of_the_one_before(local):
    run = local.map(atom(lambda x: x), grid(x=range(100))).wait(60)
    for part in run._ledger.parts:
        times = run.to_frame(metadata=True).iloc[part.positions]
        assert times["start"].iloc[1:].tolist() == times["end"].iloc[:-1].tolist()


def test_errors_have_these_columns(atomizer):
    run = atomizer.map(atom(failing_at([3, 8], lambda x: x)), grid(x=range(10))).wait(60)
    errors = run.errors
    assert list(errors.columns) == [
        "x",
        "kind",
        "type",
        "message",
        "traceback",
        "attempts",
        "worker",
        "tier",
        "seconds",
        "printed",
        "history",
    ]
    assert errors.index.tolist() == errors["x"].tolist() == [3, 8]
    assert errors["type"].tolist() == ["ValueError"] * 2
    assert errors["message"].tolist() == ["3", "8"]
    assert errors["attempts"].tolist() == [1, 1]
    assert errors["traceback"].str.endswith("ValueError: 3\n").tolist() == [True, False]
    assert errors["worker"].str.len().gt(0).all()


def test_errors_of_a_good_run_are_an_empty_frame_of_the_same_columns(local):
    run = local.map(atom(lambda x: x), grid(x=range(10))).wait(60)
    assert len(run.errors) == 0
    assert list(run.errors.columns)[:3] == ["x", "kind", "type"]
    assert run.errors["x"].dtype == run.to_frame()["x"].dtype


def test_error_column_with_the_name_of_an_input_gets_a_prefix(local):
    def fails(kind):
        raise ValueError(kind)

    errors = local.map(atom(fails), {"kind": ["input"]}).wait(60).errors
    assert errors["kind"].tolist() == ["input"]
    assert errors["electron_kind"].tolist() == ["exception"]


# -- batches make no difference ------------------------------------------------------------------

MIXED = {
    "int_float": lambda x: x if x < 50 else x / 2,
    "bool_int": lambda x: True if x < 50 else x,
    "int_str": lambda x: x if x < 50 else str(x),
    "none_int": lambda x: None if x < 50 else x,
    "dict_later": lambda x: x if x < 50 else {"y": x},
    "ragged": lambda x: np.zeros(2 if x < 50 else 3),
    "huge": lambda x: 2**70 if x < 50 else 0.5,
    "numpy_bool": lambda x: np.float32(0.1) if x < 50 else "text",
}


@pytest.mark.parametrize("value", MIXED.values(), ids=MIXED)
def test_dtype_does_not_depend_on_batches(frame_of, configure, value):
    configure({"batches.prefetch": 0.5})  # all in one batch
    whole = frame_of(value, grid(x=range(100)))
    configure({"batches.prefetch": 25})  # in many
    cut = frame_of(value, grid(x=range(100)))
    assert [str(dtype) for dtype in cut.dtypes] == [str(dtype) for dtype in whole.dtypes]
    for name in whole:
        assert [(type(v), repr(v)) for v in cut[name]] == [(type(v), repr(v)) for v in whole[name]]


# -- inputs that are arrays ---------------------------------------------------------------------


@atom
def at(i, table):
    return table[i]


def sweeps_with_tables():
    tables = np.arange(6.0).reshape(2, 3)
    yield grid(i=range(3), table=tables)
    yield grid(table=list(tables), i=range(3))


@pytest.mark.parametrize("sweep", [*sweeps_with_tables()])
def test_rows_of_the_same_array_share_one(local, tmp_path, sweep):
    for store in (None, tmp_path / "run"):
        run = local.map(at, sweep, store=store).wait()
        for frame in (run.to_frame(), run.to_frame(filters=[("i", ">", 0)])):
            assert list(frame.columns) == [*sweep.names, "result"]
            assert [table[i] for table, i in zip(frame.table, frame.i, strict=True)] == [
                *frame.result
            ]
            assert len({id(table) for table in frame.table}) == 2
        frame.table.iloc[0][:] = -1  # of the frame alone
        assert run.to_frame().table.map(min).min() == 0
