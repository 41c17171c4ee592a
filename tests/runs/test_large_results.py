"""Large results: counted in bytes, and not copied on their way into a frame."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from atomizer_dask import Atomizer, Run, atom, grid
from atomizer_dask.execution import lease
from atomizer_dask.store import table_files

SECONDS = 60
ITEMS = 200_000  # 1.6 MB of floats


@atom(id="tests.large")
def large(i):
    if i == 7:
        raise ValueError("seven")
    return {"a": np.full(ITEMS, float(i)), "m": float(i)}


@atom(id="tests.shapes")
def shapes(i):
    return np.full((ITEMS, 1 + i % 2), i, dtype="i4" if i < 2 else "f8")


def test_large_arrays_in_a_frame_are_those_of_the_run_and_read_only(atomizer):
    run = atomizer.map(large, grid(i=range(5))).wait(SECONDS)
    one, other = run.to_frame(), run.to_frame()
    assert [each[0] for each in one["a"]] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert all(np.shares_memory(a, b) for a, b in zip(one["a"], other["a"], strict=True))
    with pytest.raises(ValueError, match="read-only"):
        one["a"][0][0] = 1
    assert one["m"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_small_arrays_in_a_frame_are_copies(atomizer):
    small = atom(id="tests.small")(lambda i: np.full(10, i))
    run = atomizer.map(small, grid(i=range(5))).wait(SECONDS)
    frame = run.to_frame()
    frame["result"][0][0] = 99
    assert run.to_frame()["result"][0][0] == 0


def test_failed_electrons_have_none_in_place_of_an_array(atomizer):
    frame = atomizer.map(large, grid(i=range(10))).wait(SECONDS).to_frame()
    assert frame["a"][7] is None
    assert [each[-1] for n, each in enumerate(frame["a"]) if n != 7] == [
        float(i) for i in range(10) if i != 7
    ]


def test_arrays_of_several_shapes_and_types_stay_what_they_are(atomizer):
    frame = atomizer.map(shapes, grid(i=range(4))).wait(SECONDS).to_frame()
    assert [each.shape for each in frame["result"]] == [(ITEMS, 1), (ITEMS, 2)] * 2
    assert [each[0, 0] for each in frame["result"]] == [0, 1, 2, 3]


@pytest.fixture
def stored(local, tmp_path, configure):
    configure({"store.gather-bytes": "1 GiB", "store.gather-rows": 1000})
    run = local.map(large, grid(i=range(60)), store=tmp_path / "store").wait(SECONDS)
    return run, tmp_path / "store"


def groups_of(store):
    return [
        pq.ParquetFile(path).metadata.row_group(number).num_rows
        for path in sorted((store / "properties").glob("*.parquet"))
        if not path.name.startswith("failed")
        for number in range(pq.ParquetFile(path).num_row_groups)
    ]


def test_row_groups_are_cut_by_bytes(stored):
    _, store = stored
    groups = groups_of(store)
    assert sum(groups) == 59
    assert max(groups) * ITEMS * 8 <= 2**26


def test_filter_reads_only_what_it_asks_for(stored, monkeypatch):
    run, store = stored
    read = []
    read_row_group = table_files._read_row_group

    def noted(path, number, columns):
        table = read_row_group(path, number, columns)
        read.append(len(table))
        return table

    monkeypatch.setattr(table_files, "_read_row_group", noted)
    for each in (run, Run.open(store)):
        frame = each.to_frame(filters=[("i", "in", [3, 7, 40])])
        assert frame["i"].tolist() == [3, 7, 40]
        assert [None if a is None else a[5] for a in frame["a"]] == [3.0, None, 40.0]
    assert 2 <= len(read) <= 2 * 3
    before = len(read)
    assert run.to_frame(filters=[("m", ">", 1e9)]).empty
    assert len(read) == before


def test_large_files_are_not_merged(local, tmp_path, configure):
    configure({"store.gather-bytes": 1})
    store = tmp_path / "store"
    sweep = grid(i=range(40))
    wide = atom(id="tests.wide")(lambda i: np.full(2**20 + 1, float(i)))  # 8 MiB and a little
    run = local.map(wide, sweep, store=store).wait(SECONDS)
    assert [each[0] for each in run.to_frame()["result"]] == [float(i) for i in range(40)]
    sizes = [path.stat().st_size for path in (store / "properties").iterdir()]
    assert min(sizes) > 2**23
    assert not list((store / "merging").glob("*.parquet"))


@atom(id="tests.growing")
def growing(i):
    if i % 5 == 4:
        raise ValueError(i)
    return {"a": np.full(10 + 1000 * (i % 3), float(i)), "m": i} if i % 7 else None


@pytest.mark.parametrize("in_store", [False, True])
def test_a_result_that_fills_its_batch_loses_none(atomizer, tmp_path, monkeypatch, in_store):
    monkeypatch.setattr(lease, "FILLS_A_BATCH", 8000)
    store = tmp_path / "store" if in_store else None
    run = atomizer.map(growing, grid(i=range(200)), store=store).wait(SECONDS)
    frame = run.to_frame()
    for i, (a, m) in enumerate(zip(frame["a"], frame["m"], strict=True)):
        if i % 5 == 4 or i % 7 == 0:
            assert a is None
            assert pd.isna(m)
        else:
            assert a.tolist() == [float(i)] * (10 + 1000 * (i % 3))
            assert m == i
    assert run.progress.failed == 40
    assert len(run.errors) == 40


@pytest.mark.parametrize(
    "options", [{"isolation": "process"}, {"timeout": "60s"}, {"vectorized": True}]
)
def test_a_result_that_fills_its_batch_loses_none_in_a_child_process(
    atomizer, monkeypatch, options
):
    monkeypatch.setattr(lease, "FILLS_A_BATCH", 0)
    timeout = options.pop("timeout", None)
    rows = atom(id="tests.rows", **options)(lambda i: np.zeros(1000) + np.asarray(i)[..., None])
    run = atomizer.map(rows, grid(i=range(300)), timeout=timeout).wait(SECONDS)
    assert [each[0] for each in run.to_frame()["result"]] == list(range(300))


@pytest.mark.dask
def test_worker_writes_large_results_and_the_client_none(dask, tmp_path):
    with Atomizer(dask) as atomizer:
        run = atomizer.map(large, grid(i=range(12)), store=tmp_path / "store").wait(SECONDS)
        frame = run.to_frame(columns=["i", "m"])
    assert frame["m"].dropna().tolist() == [float(i) for i in range(12) if i != 7]


EXACT = 2**53 + 1  # which no float is


def arrays_of_two_dtypes(i):
    return np.full(3, EXACT) if i < 5 else np.full(3, 0.5)


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("in_store", [False, True])
def test_arrays_keep_their_dtype_however_they_were_cut_into_batches(
    atomizer, tmp_path, monkeypatch, size, in_store
):
    monkeypatch.setattr(lease, "FILLS_A_BATCH", 0 if size == 1 else 2**24)
    store = tmp_path / "store" if in_store else None
    two = atom(id="tests.two_dtypes")(arrays_of_two_dtypes)
    for count in (size, 10):  # which a store extends
        frame = atomizer.map(two, grid(i=range(count)), store=store).wait(SECONDS).to_frame()
    assert [str(each.dtype) for each in frame["result"]] == ["int64"] * 5 + ["float64"] * 5
    assert [each[0] for each in frame["result"]] == [EXACT] * 5 + [0.5] * 5


@atom(id="tests.uneven")
def uneven(i):
    if i == 7:
        raise ValueError("seven")
    return {"a": i, "e": i + 100} if i % 7 != 3 else {"a": i}


def test_filtered_frames_have_the_columns_of_the_whole_one(atomizer, tmp_path):
    store = tmp_path / "store"
    in_memory = atomizer.map(uneven, grid(i=range(30))).wait(SECONDS)
    stored = atomizer.map(uneven, grid(i=range(20)), store=store).wait(SECONDS)
    extended = atomizer.map(uneven, grid(i=range(30)), store=store).wait(SECONDS)
    for run in (in_memory, stored, extended, Run.open(store)):
        failed = run.to_frame(filters=[("i", "==", 7)])
        assert list(failed.columns) == ["i", "a", "e"]
        assert failed["i"].tolist() == [7]
        assert failed[["a", "e"]].isna().all(axis=None)
        nothing = run.to_frame(filters=[("e", "==", 110)])
        assert list(nothing.columns) == ["i", "a", "e"]
        assert nothing.empty
        only = run.to_frame(filters=[("i", "==", 7)], columns=["e"])
        assert only["e"].isna().tolist() == [True]
        assert run.to_frame(filters=[("e", "==", 111)])["a"].tolist() == [11]
        with pytest.raises(KeyError, match="no column 'f'"):
            run.to_frame(filters=[("f", "==", 1)])
