"""A run in a store: what is written is what the run would have given without one."""

import os
import re
import time
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars
import pytest
from pandas.testing import assert_frame_equal

from atomizer_dask import Atomizer, Run, atom, grid, zipped
from atomizer_dask.errors import StoreError
from atomizer_dask.store import writer
from atomizer_dask.store.filesystem.folder import Folder
from atomizer_dask.store.store import Store
from atomizer_dask.store.writer import ResultWriter

# -- atoms -------------------------------------------------------------------------------------


@atom
def ints(x):
    return x


@atom
def ints_then_floats(x):
    return x if x < 15 else x / 2


@atom
def some_none(x):
    return None if x % 3 else x


@atom
def always_none(x):
    return None


@atom
def optional_keys(x):
    return {"a": x, "b": str(x)} if x % 3 else {"a": x / 2, "c": x > 5}


@atom
def none_or_dict(x):
    return {"a": x} if x % 4 else None


@atom
def empty_dicts(x):
    return {}


@atom
def texts(x):
    return {"t": "é" * x, "b": bytes([x]), "none": None if x % 2 else "even"}


@atom
def arrays(x):
    return {"same": np.arange(3) * x, "ragged": np.arange(x % 4) * 0.5, "square": np.eye(2) * x}


@atom
def arrays_or_none(x):
    return {"same": np.arange(3) * x, "c": 1j * x} if x % 3 else {"same": None}


@atom
def complexes(x):
    return {"c": complex(x, -x), "f": np.float32(x) / 3, "h": np.float16(x), "u": np.uint8(x)}


@atom
def times(x):
    return {
        "naive": datetime(2020, 1, 1) + timedelta(hours=x),
        "aware": datetime(2020, 1, 1, tzinfo=UTC) + timedelta(hours=x),
        "day": date(2020, 1, 1 + x % 20),
        "delta": timedelta(microseconds=x),
        "n": np.datetime64("2020-01-01", "D") + x,
        "s": np.timedelta64(x, "s"),
        "stamp": pd.Timestamp("2020-01-01", tz="Europe/Berlin") + pd.Timedelta(x, "h"),
    }


@atom
def nested(x):
    return {
        "lists": [[x], [], [None, x]],
        "dicts": {"k": x, "l": [1, {"m": "n"}]},
        "tuples": (x, "a"),
        "decimal": Decimal(x) / 4,
        "empty": [],
        "mixed": x if x % 2 else str(x),
        "big": 2**70 + x,
    }


@atom
def fails(x):
    if x % 5 == 1:
        raise ValueError(f"one in {x}")
    return {"i": x, "b": x > 3, "t": str(x), "a": np.arange(2), "d": date(2020, 1, 1)}


@atom
def all_fail(x):
    raise KeyError(x)


@atom
def clashes(start, worker, electron, error, result, attempts, code, end):
    return {
        "start": start + 1,
        "worker": worker * 2,
        "electron": electron,
        "error": None,
        "result": result,
        "input_start": 1,
        "result_start": 2,
    }


@atom(vectorized=True)
def columns_of(x):
    return {"f": x / 3, "i": x * 2, "b": x > 4, "m": np.stack([x, x], axis=1), "c": x * 1j}


@atom(vectorized=True)
def marks(x):
    return {"y": x * 2, "t": [str(v) for v in x]}, x % 4 == 1


@atom(vectorized=True)
def frames(x):
    return pd.DataFrame({"y": x, "when": pd.Timestamp(2020, 1, 1) + pd.to_timedelta(x, "h")})


@atom(vectorized=True)
def nullable(x):
    return pd.DataFrame(
        {"i": pd.array(x).astype("Int64"), "c": pd.Categorical(["a"] * len(x)), "s": "t"}
    )


@atom
def echo(**inputs):
    return {f"{name}_out": value for name, value in inputs.items()}


@atom
def kinds(x):
    return type(x).__name__


@atom(vectorized=True)
def thirds(x):
    return x / 3


@atom
def draw(x, *, context):
    return {"u": context.rng.random(), "x2": 2 * x}


@atom
def unstorable(x):
    return object() if x == 3 else x


X = grid(x=range(30))
OUTPUTS = [
    ints, ints_then_floats, some_none, always_none, optional_keys, none_or_dict, empty_dicts,
    texts, arrays, arrays_or_none, complexes, times, nested, fails, all_fail, columns_of, marks,
    frames, nullable, kinds,
]  # fmt: skip
CLASHES = {
    name: range(30)
    for name in ("start", "worker", "electron", "error", "result", "attempts", "code", "end")
}


@pytest.fixture(params=["small", "large"])
def atomizer(request, conductor, configure):
    """An atomizer whose workers leave results to the client, or write each of them."""
    most = 1 if request.param == "large" else 2**30
    configure({"store.gather-rows": most, "store.gather-bytes": most})
    with closing(Atomizer(conductor)) as atomizer:
        yield atomizer


def plain(run):
    """Properties without what differs from run to run."""
    rows = {}
    for p in run:
        error = p.error and (p.error.kind, p.error.type, p.error.message, p.error.attempt)
        result = p.result
        if isinstance(result, int):  # where a batch had but integers
            result = float(result)
        rows[int(p.electron_id.rpartition("-")[2])] = (
            re.sub(r"np.str_\((.*?)\)", r"\1", repr(result)),
            error,
            p.attempts,
        )
    return rows


def assert_same(run, other):
    frame = other.to_frame()
    assert_frame_equal(run.to_frame(), frame, check_freq=False)
    errors = ["kind", "type", "message", "attempts"]
    errors = [f"electron_{n}" if f"electron_{n}" in run.errors else n for n in errors]
    assert_frame_equal(run.errors[errors], other.errors[errors], check_freq=False)
    assert run.progress.done == other.progress.done
    assert run.progress.failed == other.progress.failed
    assert plain(run) == plain(other)


def check_same(atomizer, f, sweep, store, **options):
    """A run with a store, looked at and attached to, gives what one without gives."""
    atomizer.register(f)
    bare = atomizer.map(f, sweep, seed=1, **options).wait(60)
    run = atomizer.map(f, sweep, seed=1, store=store, **options).wait(60)
    assert_same(run, bare)
    opened = Run.open(store)
    assert_same(opened, bare)
    again = atomizer.attach(store).wait(60)
    assert_same(again, bare)
    assert again.state == "finished"
    rows = pd.read_parquet(Path(store, "properties"))
    assert sorted(rows["electron"]) == list(range(len(bare.to_frame())))
    readers = [
        duckdb.sql(f"select * from '{store}/properties/*.parquet'").fetchall(),
        polars.read_parquet(f"{store}/properties/*.parquet").rows(),
    ]
    assert [len(each) for each in readers] == [len(rows)] * 2
    frame = run.to_dask().compute().sort_index()
    expected = bare.to_frame().reset_index(drop=True)
    assert_frame_equal(frame, expected, check_index_type=False)


@pytest.mark.parametrize("f", OUTPUTS, ids=lambda f: f.__name__ if hasattr(f, "__name__") else f.id)
def test_frame_is_that_of_a_run_without_a_store(atomizer, tmp_path, f):
    check_same(atomizer, f, X, tmp_path / "store")


INPUTS = {
    "ints": zipped(x=[3, 1, 2]),
    "floats": zipped(x=[3.5, np.nan, 2.0]),
    "bools": zipped(x=[True, False]),
    "texts": zipped(x=["a", "", "é"]),
    "bytes": zipped(x=[b"a", b""]),
    "none": zipped(x=[None, None]),
    "mixed": zipped(x=[1, "a", None, 2.5]),
    "arrays": zipped(x=np.arange(12.0).reshape(3, 2, 2)),
    "ragged": zipped(x=[np.arange(2), np.arange(3)]),
    "lists": zipped(x=[[1, 2], [], ["a"]]),
    "tuples": zipped(x=[(1, 2), (3, 4)]),
    "dicts": zipped(x=[{"a": 1}, {}]),
    "complex": zipped(x=[1j, 2.0 + 0j]),
    "float32": zipped(x=np.arange(3, dtype="f4")),
    "uint8": zipped(x=np.arange(3, dtype="u1")),
    "days": zipped(x=np.array(["2020-01-01", "2020-01-02"], "M8[D]")),
    "deltas": zipped(x=np.array([1, 2], "m8[s]")),
    "datetimes": zipped(x=[datetime(2020, 1, 1), datetime(2021, 1, 1)]),
    "dates": zipped(x=[date(2020, 1, 1), date(2021, 1, 1)]),
    "decimals": zipped(x=[Decimal("0.1"), Decimal(2)]),
    "grid": grid(x=["a", "b"], y=range(2, 10, 3), z=np.linspace(0, 1, 3)),
    "mappings": [{"x": 1, "y": "a"}, {"x": 2, "y": "b"}],
    "columns": {"x": [1, 2], "y": [None, 3]},
}
FRAMES = {
    "labels": pd.DataFrame({"x": [1, 2, 3]}, index=["a", "b", "c"]),
    "names": pd.DataFrame({"x": [1, 2]}, index=pd.Index([5, 3], name="x")),
    "multi": pd.DataFrame(
        {"x": range(4)}, index=pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["p", None])
    ),
    "times": pd.DataFrame({"x": [1, 2]}, index=pd.to_datetime(["2020-01-01", "2021-01-01"])),
    "zones": pd.DataFrame(
        {"x": pd.date_range("2020", periods=3, tz="Europe/Berlin")},
        index=pd.date_range("2020", periods=3, tz="UTC"),
    ),
    "duplicates": pd.DataFrame({"x": [1, 1, 2]}, index=[7, 7, 7]),
    "steps": pd.DataFrame({"x": [1, 2]}, index=pd.RangeIndex(10, 14, 2, name="r")),
    "extension": pd.DataFrame(
        {
            "i": pd.array([1, None], "Int64"),
            "b": pd.array([True, None], "boolean"),
            "s": pd.array(["a", None], "string"),
            "c": pd.Categorical(["a", "b"], ["b", "a"], ordered=True),
            "p": pd.period_range("2020", periods=2, freq="M"),
            "o": [1, "a"],
            "f": pd.array([0.5, None], "Float32"),
        }
    ),
    "categories": pd.DataFrame({"x": [1, 2]}, index=pd.CategoricalIndex(["a", "b"])),
    "periods": pd.DataFrame({"x": [1, 2]}, index=pd.period_range("2020", periods=2, freq="Y")),
    "floats": pd.DataFrame({"x": [1, 2]}, index=[0.5, np.nan]),
}


@pytest.mark.parametrize("sweep", INPUTS.values(), ids=INPUTS.keys())
def test_inputs_come_back(local, tmp_path, sweep):
    check_same(local, echo, sweep, tmp_path / "store")


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
def test_inputs_of_a_dataframe_come_back_on_its_index(local, tmp_path, frame):
    check_same(local, echo, frame, tmp_path / "store")


def test_names_that_clash_with_columns_of_the_store(atomizer, tmp_path):
    check_same(atomizer, clashes, zipped(**CLASHES), tmp_path / "store")


# -- who writes --------------------------------------------------------------------------------


def files_of(store):
    return sorted(os.listdir(Path(store, "properties")))


@pytest.mark.parametrize("url", ["memory://{}/store", "file://{}/store", "{}/store"])
def test_urls_that_fsspec_understands(atomizer, tmp_path, url):
    url = url.format(tmp_path)
    atomizer.register(draw)
    bare = atomizer.map(draw, X, seed=3).wait(60)
    run = atomizer.map(draw, X, seed=3, store=url).wait(60)
    assert run.store == url.removeprefix("file://")
    for each in (run, Run.open(url), atomizer.attach(url).wait(60)):
        assert_frame_equal(each.to_frame(), bare.to_frame())
    assert_frame_equal(
        run.to_dask().compute(scheduler="sync").sort_index(),
        bare.to_frame(),
        check_index_type=False,
    )
    more = atomizer.map(draw, grid(x=range(40)), store=url).wait(60)
    assert_frame_equal(more.to_frame()[:30], bare.to_frame(), check_index_type=False)
    assert "holder.json" not in Folder(url).names()


def test_workers_that_see_the_store_write_and_others_do_not(dask, tmp_path, monkeypatch):
    written, frames = [], []
    original = Store.write

    def spy(self, name, table):
        if name.startswith("properties/"):
            written.append(self.folder.is_local)
        return original(self, name, table)

    monkeypatch.setattr(Store, "write", spy)
    with Atomizer(dask) as atomizer:
        for url in (tmp_path / "store", f"memory://{tmp_path}"):
            run = atomizer.map(thirds, grid(x=range(200_000)), store=url).wait(60)
            frames.append(run.to_frame())
    assert_frame_equal(*frames)
    assert written.count(True) < written.count(False)  # the client writes but the small ones


def test_unknown_url_is_told(local):
    with pytest.raises(StoreError, match="cannot open the store 'nope://x'"):
        local.map(ints, X, store="nope://x")


# -- some columns, some rows -------------------------------------------------------------------


@pytest.fixture(params=["bare", "stored", "opened"])
def run(request, local, tmp_path):
    """A run with failures, without a store, with one, and looked at in one."""
    store = None if request.param == "bare" else tmp_path / "store"
    run = local.map(fails, X, store=store).wait(60)
    return Run.open(store) if request.param == "opened" else run


def test_some_columns(run):
    frame = run.to_frame()
    for columns in (["i"], ["x"], ["t", "x"], ["a", "i"]):
        assert_frame_equal(run.to_frame(columns=columns), frame[columns])
    assert run.to_frame(columns=["attempts", "i"]).columns.tolist() == ["attempts", "i"]
    assert run.to_frame(columns=["id"])["id"].iloc[2] == f"{run.id}-2"
    with pytest.raises(KeyError, match="there is no column 'nope'"):
        run.to_frame(columns=["nope"])
    with pytest.raises(TypeError, match=r"a list of names, as in \['i'\]"):
        run.to_frame(columns="i")


def test_some_rows(run):
    frame = run.to_frame()
    assert_frame_equal(run.to_frame(filters=[("x", ">", 20)]), frame[frame.x > 20])
    assert run.to_frame(filters=[("i", "<=", 3)]).x.tolist() == [0, 2, 3]
    assert run.to_frame(filters=[("b", "==", True), ("x", "<", 6)]).x.tolist() == [4, 5]
    assert run.to_frame(filters=[("t", "in", ["2", "7"])], columns=["i"])["i"].tolist() == [2, 7]
    assert run.to_frame(filters=[("x", "not in", range(28))]).x.tolist() == [28, 29]
    assert run.to_frame(filters=[("attempts", "==", 1), ("x", "==", 2)]).x.tolist() == [2]
    assert len(run.to_frame(filters=[("x", "<", 0)])) == 0
    for bad in ([("x", "~", 1)], ["x > 1"], ("x", ">", 1)):
        with pytest.raises(ValueError, match="a filter is a column, one of"):
            run.to_frame(filters=bad)
    with pytest.raises(KeyError, match="there is no column 'nope'"):
        run.to_frame(filters=[("nope", "==", 1)])


@pytest.mark.parametrize("stored", [False, True])
def test_some_columns_whose_names_clash(local, tmp_path, stored):
    sweep = zipped(x=[1, 2], result_x=[3, 4], start=[5, 6])
    run = local.map(clashing, sweep, store=tmp_path / "store" if stored else None).wait(60)
    frame = run.to_frame(metadata=True)
    for name in frame.columns:
        assert_frame_equal(run.to_frame(columns=[name], metadata=True), frame[[name]])


@atom
def clashing(x, result_x, start):
    return {"x": -x, "worker": start}


def test_columns_that_are_not_asked_for_are_not_read(local, tmp_path):
    run = local.map(fails, X, store=tmp_path / "store", allow_pickle=True).wait(60)
    read, original = [], run._store.read

    def spy(name, columns=None):
        read.append(columns)
        return original(name, columns)

    run._store.read = spy
    run.to_frame(columns=["x", "i"])
    assert all(columns == ["electron", "i"] for columns in read)


# -- few files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("atomizer", ["large"], indirect=True)
def test_files_are_few_at_the_end(atomizer, tmp_path):
    run = atomizer.map(slow, grid(x=range(300)), store=tmp_path / "store").wait(60)
    assert len(files_of(tmp_path / "store")) <= 10
    assert run.to_frame()["result"].tolist() == list(range(300))
    for folder in ("incoming", "merging"):
        assert os.listdir(tmp_path / "store" / folder) == []


@atom
def slow(x):
    time.sleep(0.005)
    return x


def test_run_ends_although_merging_takes_its_time(local, tmp_path, configure, monkeypatch):
    configure({"store.gather-rows": 1})
    merge = ResultWriter._merge

    def slow_merge(self, names):
        time.sleep(1.2)
        return merge(self, names)

    monkeypatch.setattr(ResultWriter, "_merge", slow_merge)
    run = local.map(slow, grid(x=range(300)), store=tmp_path / "store").wait(20)
    assert run.to_frame()["result"].tolist() == list(range(300))


def test_run_fails_where_merging_does(local, tmp_path, configure, monkeypatch):
    configure({"store.gather-rows": 1})
    monkeypatch.setattr(writer, "MERGE_AT", 4)

    def full(self, names):
        raise StoreError("no space left")

    monkeypatch.setattr(ResultWriter, "_merge", full)
    with pytest.raises(StoreError, match="no space left"):
        local.map(slow, grid(x=range(1000)), store=tmp_path / "store").wait(20)
