"""Runs over grids as labelled arrays: to the last bit what their frames say."""

import sys
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from atomizer_dask import Run, atom, grid, zipped

xr = pytest.importorskip("xarray")


@atom
def sums(a, b):
    return {"total": a + b, "ratio": a / (b + 1), "text": f"{a}", "even": a % 2 == 0}


@atom
def fails_at_three(a):
    if a == 3:
        raise ValueError("three")
    return {
        "number": a,
        "real": a / 7,
        "flag": a > 1,
        "text": f"t{a}",
        "when": datetime(2026, 1, 1 + a),
        "took": timedelta(seconds=a),
        "curve": np.arange(4) + a,
    }


def agrees(data, frame, names):
    """Whether every cell of some variables is what a frame says."""
    for name in names:
        flat = data[name].to_numpy().reshape(-1)
        np.testing.assert_array_equal(flat, frame[name].to_numpy())
        assert flat.dtype == frame[name].to_numpy().dtype


def test_axes_are_dimensions_and_outputs_are_variables(local):
    run = local.map(sums, grid(a=range(3), b=[0.5, 1.5]), seed=7).wait()
    data = run.to_xarray()
    assert dict(data.sizes) == {"a": 3, "b": 2}
    assert list(data.data_vars) == ["total", "ratio", "text", "even"]
    assert data["b"].to_numpy().tolist() == [0.5, 1.5]
    agrees(data, run.to_frame(), ["total", "ratio", "even"])
    assert data["text"].sel(a=2, b=0.5).item() == "2"
    assert data.attrs == {"run_id": run.id, "atom": sums.id, "seed": 7}


def test_integers_stay_integers_where_none_is_missing(local):
    data = local.map(sums, grid(a=range(3), b=[1])).wait().to_xarray()
    assert data["total"].dtype == np.int64
    assert data["even"].dtype == bool


def test_failed_electrons_are_missing_values(local):
    run = local.map(fails_at_three, grid(a=range(5))).wait()
    data = run.to_xarray()
    frame = run.to_frame()
    for name in ("number", "flag"):
        assert data[name].dtype == np.float64
        np.testing.assert_array_equal(data[name], frame[name].to_numpy(float, na_value=np.nan))
    np.testing.assert_array_equal(data["real"], frame["real"])
    assert data["text"].dropna("a").to_numpy().tolist() == ["t0", "t1", "t2", "t4"]
    assert np.isnan(data["text"][3].item())
    for name in ("when", "took"):
        assert data[name].dtype.kind == frame[name].dtype.kind
        assert np.isnat(data[name].to_numpy()).tolist() == [False] * 3 + [True, False]
        assert (pd.Series(data[name]).dropna() == frame[name].dropna()).all()
    assert data["curve"].dims == ("a", "curve_dim0")
    assert data["curve"].dtype == np.float64
    assert np.isnan(data["curve"][3]).all()
    assert data["curve"][4].to_numpy().tolist() == [4, 5, 6, 7]


def test_arrays_of_equal_shape_have_further_dimensions(local):
    @atom
    def matrix(n, k):
        return np.full((2, 3), n * k, dtype=np.float32)

    run = local.map(matrix, grid(n=range(3), k=range(4))).wait()
    data = run.to_xarray()["result"]
    assert data.dims == ("n", "k", "result_dim0", "result_dim1")
    assert data.dtype == np.float32
    expected = np.stack(run.to_frame()["result"].tolist()).reshape(3, 4, 2, 3)
    assert (data.to_numpy() == expected).all()


def test_arrays_of_other_shapes_stay_objects(local):
    @atom
    def ragged(n):
        return np.arange(n)

    data = local.map(ragged, grid(n=range(3))).wait().to_xarray()["result"]
    assert data.dtype == object
    assert [values.tolist() for values in data.to_numpy()] == [[], [0], [0, 1]]


def test_names_that_are_taken_are_made_unlike(local):
    @atom
    def clash(a):
        return {"a": a, "curve": np.arange(3), "curve_dim0": 1}

    data = local.map(clash, grid(a=range(2))).wait().to_xarray()
    assert set(data.data_vars) == {"result_a", "curve", "curve_dim0"}
    assert data["curve"].dims == ("a", "result_curve_dim0")


def test_axes_of_any_kind_are_coordinates(local):
    @atom
    def one(name, day, zone, number, kind):
        return 1

    days = pd.date_range("2026-01-01", periods=2)
    axes = {
        "name": ["x", "y"],
        "day": days,
        "zone": days.tz_localize("Europe/Berlin"),
        "number": pd.array([1, 2], dtype="Int64"),
        "kind": pd.Categorical(["low", "high"]),
    }
    data = local.map(one, grid(**axes)).wait().to_xarray()
    assert data["result"].sel(name="y", kind="high").sum() == 8
    assert data["day"].to_numpy().tolist() == days.to_numpy().tolist()
    assert data["zone"].to_index()[0] == pd.Timestamp("2025-12-31 23:00")
    assert data["number"].dtype == np.int64


def test_an_axis_of_arrays_has_its_values_beside_it(local):
    @atom
    def norm(v):
        return float((v**2).sum())

    data = local.map(norm, grid(v=np.arange(6.0).reshape(3, 2))).wait().to_xarray()
    assert data["result"].to_numpy().tolist() == [1, 13, 41]
    assert data["v_values"].dims == ("v", "v_dim0")


def test_a_value_twice_on_an_axis_stays_twice(local):
    data = local.map(sums, grid(a=[1, 1, 2], b=[0])).wait().to_xarray()
    assert data["total"].sel(a=1).shape == (2, 1)


def test_grids_in_stores_are_read(local, tmp_path):
    axes = grid(a=range(6), b=[0.5, 1.5])
    run = local.map(sums, axes, seed=3, store=tmp_path / "s").wait()
    opened = Run.open(tmp_path / "s").to_xarray()
    assert opened.attrs["store"] == str(tmp_path / "s") or opened.attrs["store"] == run.store
    assert opened.identical(run.to_xarray())
    agrees(opened, run.to_frame(), ["total", "ratio", "even"])


def test_grids_of_extended_stores_are_those_of_the_last_map(local, tmp_path):
    local.map(fails_at_three, grid(a=[4, 3]), seed=1, store=tmp_path / "s").wait()
    run = local.map(fails_at_three, grid(a=range(6)), seed=1, store=tmp_path / "s").wait()
    for each in (run, Run.open(tmp_path / "s")):
        data = each.to_xarray()
        assert data["number"].to_numpy()[[0, 1, 2, 4, 5]].tolist() == [0, 1, 2, 4, 5]
        assert np.isnan(data["number"][3])
        assert data["curve"].shape == (6, 4)


def test_cells_that_have_not_ended_are_missing(local, gate):
    @atom
    def last_waits(a, path):
        import time
        from pathlib import Path

        while a == 3 and not Path(path).exists():
            time.sleep(0.001)
        return a

    run = local.map(last_waits, grid(a=range(4), path=[gate.path]))
    for number, _ in enumerate(run, 1):
        if number == 3:
            break
    values = run.to_xarray()["result"].to_numpy().ravel()
    assert values[:3].tolist() == [0, 1, 2]
    assert np.isnan(values[3])
    gate.open()
    assert run.wait().to_xarray()["result"].dtype == np.int64


def test_without_outputs_there_are_axes_alone(local):
    @atom
    def never(a):
        raise ValueError("never")

    data = local.map(never, grid(a=range(3))).wait().to_xarray()
    assert dict(data.sizes) == {"a": 3}
    assert not data.data_vars


def test_long_seeds_are_texts(local):
    run = local.map(sums, grid(a=[1], b=[1]), seed=2**100).wait()
    assert run.to_xarray().attrs["seed"] == str(2**100)


@pytest.mark.parametrize(
    "sweep", [zipped(a=[1, 2], b=[3, 4]), pd.DataFrame({"a": [1, 2], "b": [3, 4]})]
)
def test_what_is_no_grid_says_what_to_do(local, sweep):
    run = local.map(sums, sweep).wait()
    with pytest.raises(ValueError, match=r"2 electrons of a, b.*run.to_frame\(\).to_xarray\(\)"):
        run.to_xarray()
    assert run.to_frame().set_index(["a", "b"]).to_xarray()["total"].shape == (2, 2)


def test_without_xarray_the_way_to_it_is_told(local, monkeypatch):
    run = local.map(sums, grid(a=[1], b=[1])).wait()
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"run.to_xarray needs .*'atomizer_dask\[xarray\]'"):
        run.to_xarray()
