"""What can happen to the files of a store: each is a clear error, and nothing is lost."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pandas.testing import assert_frame_equal

from atomizer_dask import Run, atom, grid, zipped
from atomizer_dask.errors import StoreCorruptedError, StoreError
from atomizer_dask.store.filesystem.folder import Folder


@atom(id="tests.some_fail")
def some_fail(x, *, context):
    if x % 10 == 3:
        raise ValueError(f"three in {x}")
    return {"u": context.rng.random(), "t": str(x)}


@atom(id="tests.large")
def large(x):
    time.sleep(0.01)
    return np.full(20_000, x)


@pytest.fixture(params=["memory", "file"])
def folder(request, tmp_path):
    """A folder on a local disk, and one that fsspec reaches."""
    folder = Folder(f"memory://{tmp_path}" if request.param == "memory" else tmp_path / "folder")
    folder.make()
    return folder


# -- files -------------------------------------------------------------------------------------


def test_file_is_written_read_moved_and_removed(folder):
    folder.make("a")
    folder.write("a/one", b"1")
    folder.write("a/one", b"11")
    assert folder.read("a/one") == b"11"
    assert folder.size("a/one") == 2
    folder.move("a/one", "a/two")
    assert folder.names("a") == ["two"]
    assert not folder.exists("a/one")
    folder.remove("a/two")
    folder.remove("a/two")
    assert folder.names("a") == []
    for call in (folder.read, lambda name: folder.move(name, "there")):
        with pytest.raises(FileNotFoundError):
            call("a/two")
    assert folder.names("nowhere") == []


def test_file_that_is_not_written_to_the_end_is_absent(tmp_path):
    folder = Folder(tmp_path)
    folder.write("one", b"before")

    def put(where):
        Path(where).write_bytes(b"half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        folder.write_with("one", put)
    assert folder.read("one") == b"before"
    assert os.listdir(tmp_path) == ["one"]


def test_file_is_created_once(folder):
    assert folder.create("one", b"1")
    assert not folder.create("one", b"2")
    assert folder.read("one") == b"1"


def test_path_may_be_relative_or_of_the_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("runs/x", "~/runs/x", Path("runs/x"), f"file://{tmp_path}/runs/x"):
        assert Folder(given).url == f"{tmp_path}/runs/x"


# -- folders that are no stores ----------------------------------------------------------------


def test_folder_of_somebody_else_is_left_alone(local, tmp_path):
    (tmp_path / "thesis.tex").touch()
    before = sorted(tmp_path.rglob("*"))
    for call in (lambda: local.map(some_fail, grid(x=[1]), store=tmp_path),
                 lambda: local.attach(tmp_path), lambda: Run.open(tmp_path)):  # fmt: skip
        with pytest.raises(StoreError, match=r"is not a store but holds other files \(thesis\.tex"):
            call()
    assert sorted(tmp_path.rglob("*")) == before


def test_json_of_somebody_else_is_left_alone(local, tmp_path):
    for content in ("[]", '{"a": 1}', '"x"'):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(StoreError, match=r"run\.json is not that of a store: nothing was tou"):
            local.map(some_fail, grid(x=[1]), store=tmp_path)
        assert (tmp_path / "run.json").read_text() == content
        assert os.listdir(tmp_path) == ["run.json"]


def test_store_that_is_not_there(local, tmp_path):
    for call in (local.attach, Run.open):
        with pytest.raises(StoreError, match=r"there is no store at .*nowhere"):
            call(tmp_path / "nowhere")
    assert os.listdir(tmp_path) == []


def test_file_is_no_store(local, tmp_path):
    (tmp_path / "file").write_text("x")
    for call in (
        lambda: local.map(some_fail, grid(x=[1]), store=tmp_path / "file"),
        lambda: local.attach(tmp_path / "file"),
        lambda: Run.open(tmp_path / "file"),
    ):
        with pytest.raises(StoreError, match="is a file; a store is a folder"):
            call()
    with pytest.raises(StoreError):
        local.map(some_fail, grid(x=[1]), store=tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "x"


def test_store_of_a_later_version(local, store):
    manifest = json.loads((store / "run.json").read_text())
    (store / "run.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(StoreError, match=r"a later version of atomizer_dask \(format 99, this"):
        Run.open(store)


# -- damaged files -----------------------------------------------------------------------------


@pytest.fixture
def store(local, tmp_path):
    """A finished run of 30 electrons, of which 3 failed."""
    local.register(some_fail)
    run = local.map(some_fail, zipped(x=np.arange(30)), seed=1, store=tmp_path / "store").wait(60)
    run.frame = run.to_frame()
    return tmp_path / "store"


@pytest.fixture
def expected(local):
    return local.map(some_fail, zipped(x=np.arange(30)), seed=1).wait(60).to_frame()


def flip(path):
    data = bytearray(path.read_bytes())
    where = 4 + (len(data) // 4)
    if path.suffix == ".parquet":  # the middle of a column chunk
        group = pq.ParquetFile(path).metadata.row_group(0)
        names = [group.column(n).path_in_schema for n in range(group.num_columns)]
        wanted = ("error",) if "failed-" in path.name else ("u", "message")
        column = next((n for n in wanted if n in names), names[0])
        chunk = group.column(names.index(column))
        first = chunk.dictionary_page_offset or chunk.data_page_offset
        where = first + chunk.total_compressed_size - 3
    data[where] ^= 0xFF
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(os.urandom(path.stat().st_size))


DAMAGES = [flip, truncate, empty, garbage]


def file_in(store, kind):
    names = sorted((store / kind).glob("*.parquet"))
    wanted = [name for name in names if not name.name.startswith("failed-")]
    return wanted[0]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["properties", "failed", "failures"])
def test_damaged_file_can_be_dropped_and_computed_again(local, store, expected, kind, damage):
    if kind == "failed":
        file = next((store / "properties").glob("failed-*"))
    else:
        file = file_in(store, kind)
    damage(file)
    name = re.escape(f"{file.parent.name}/{file.name}")
    for call in (
        lambda: Run.open(store).to_frame(),
        lambda: local.attach(store).wait(60).to_frame(),
    ):
        with pytest.raises(StoreCorruptedError, match=rf"{name} is damaged .* drop_corrupted=True"):
            call()
    run = local.attach(store, drop_corrupted=True).wait(60)
    assert run.state == "finished"
    for each in (run, Run.open(store)):
        assert_frame_equal(each.to_frame(), expected)
        assert each.errors["x"].tolist() == [3, 13, 23]
        assert each.errors["message"].tolist() == ["three in 3", "three in 13", "three in 23"]
    assert_frame_equal(local.attach(store).wait(60).to_frame(), expected)
    assert file.name in " ".join(map(str, store.rglob("*")))  # put aside rather than removed
    rows = pd.read_parquet(store / "properties")  # by who knows nothing of us
    assert sorted(rows["electron"]) == list(range(30))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_sweep_is_told(local, store, damage):
    file = file_in(store, "sweep")
    damage(file)
    before = sorted(store.rglob("*"))
    for call in (
        lambda: Run.open(store).to_frame(),
        lambda: local.attach(store),
        lambda: local.attach(store, drop_corrupted=True),
        lambda: local.map(some_fail, zipped(x=np.arange(30)), store=store),
    ):
        with pytest.raises(StoreCorruptedError, match=rf"sweep/{file.name} is damaged") as told:
            call()
        assert "drop_corrupted" not in str(told.value)  # which would not help
    assert sorted(store.rglob("*")) == before


def test_sweep_that_is_missing_is_told(local, store):
    file_in(store, "sweep").unlink()
    for call in (Run.open, local.attach):
        with pytest.raises(StoreError, match="lacks a file of its sweep"):
            call(store)


@pytest.mark.parametrize("damage", [truncate, empty, garbage])
def test_damaged_manifest_is_told(local, store, damage):
    damage(store / "run.json")
    before = (store / "run.json").read_bytes()
    for call in (
        lambda: Run.open(store),
        lambda: local.attach(store),
        lambda: local.map(some_fail, zipped(x=np.arange(30)), store=store),
    ):
        with pytest.raises(StoreCorruptedError, match=r"run\.json cannot be read"):
            call()
    assert (store / "run.json").read_bytes() == before
    assert "holder.json" not in os.listdir(store)


@pytest.mark.parametrize("key", ["atom", "seed", "sweeps", "options", "codes", "sessions", "run"])
def test_manifest_that_lacks_something_is_told(local, store, key):
    manifest = json.loads((store / "run.json").read_text())
    del manifest[key]
    (store / "run.json").write_text(json.dumps(manifest))
    for call in (lambda: Run.open(store), lambda: local.attach(store),
                 lambda: local.map(some_fail, zipped(x=np.arange(30)), store=store)):  # fmt: skip
        with pytest.raises(StoreError, match=r"run\.json"):
            call()
    assert "holder.json" not in os.listdir(store)


def test_file_that_is_damaged_while_the_run_is_looked_at(local, store):
    run = Run.open(store)
    truncate(file_in(store, "properties"))
    for call in (run.to_frame, lambda: [*run], lambda: run.to_dask().compute(scheduler="sync")):
        with pytest.raises(StoreCorruptedError, match="is damaged"):
            call()


def test_damaged_file_in_the_middle_of_a_run(local, tmp_path, gate, configure):
    configure({"store.gather-rows": 1})
    local.register(gated)
    store = tmp_path / "store"
    run = local.map(gated, grid(x=range(40), path=[gate.path]), store=store)
    while run.progress.done < 20:
        time.sleep(0.005)
    truncate(file_in(store, "properties"))
    gate.open()
    with contextlib.suppress(StoreCorruptedError):  # where the file would have been merged
        run.wait(30)
    again = local.attach(store, drop_corrupted=True).wait(30)
    assert again.to_frame()["result"].tolist() == list(range(40))


@atom(id="tests.gated")
def gated(x, path):
    while x >= 20 and not os.path.exists(path):
        time.sleep(0.005)
    return x


def test_foreign_file_among_the_properties(local, store, expected):
    (store / "properties" / "notes.txt").write_text("mine")
    assert_frame_equal(Run.open(store).to_frame(), expected)
    assert_frame_equal(local.attach(store).wait(60).to_frame(), expected)
    assert (store / "properties" / "notes.txt").read_text() == "mine"


def test_foreign_table_among_the_properties(local, store):
    pd.DataFrame({"a": [1]}).to_parquet(store / "properties" / "a.parquet")
    for call in (lambda: Run.open(store).to_frame(), lambda: local.attach(store)):
        with pytest.raises(StoreError, match=r"properties/a\.parquet"):
            call()
    assert (store / "properties" / "a.parquet").exists()


# -- disks -------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MB of its own; a function changes its options."""
    path = tmp_path / "disk"
    path.mkdir()

    def mount(options, *more):
        return subprocess.run(
            ["mount", "-t", "tmpfs", *more, "-o", options, "none", str(path)],
            check=False, capture_output=True,
        ).returncode  # fmt: skip

    if os.geteuid() or not shutil.which("mount") or mount("size=4m"):
        pytest.skip("needs root, and a kernel that lets it mount a tmpfs")
    yield path, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", "-l", str(path)], check=False)


@pytest.mark.parametrize("small", [1, 2**40], ids=["worker_writes", "client_writes"])
def test_full_disk(local, disk, configure, small):
    configure({"store.gather-rows": small, "store.gather-bytes": small})
    path, remount = disk
    local.register(large)
    run = local.map(large, grid(x=range(100)), store=path / "store")
    with pytest.raises(StoreError, match="No space left on device") as told:
        run.wait(60)
    assert "once that is mended, atomizer.attach(store) goes on" in str(told.value)
    assert run.state == "failed"
    for each in (run, Run.open(path / "store")):
        frame = each.to_frame()
        results = frame.get("result", [])
        assert all((row == x).all() for x, row in zip(frame["x"], results, strict=True))
    kept = len(Run.open(path / "store").to_frame())
    assert kept < 100
    with pytest.raises(StoreError, match="No space left on device"):
        local.attach(path / "store").wait(60)
    remount("size=64m")
    again = local.attach(path / "store")
    assert again.progress.done >= kept
    frame = again.wait(60).to_frame()
    assert [row[0] for row in frame["result"]] == list(range(100))
    rows = pd.read_parquet(path / "store" / "properties", columns=["electron"])
    assert sorted(rows["electron"]) == list(range(100))
    assert not [p for p in (path / "store").rglob("*") if "unfinished" in p.name]


def test_disk_that_is_full_from_the_start(local, disk):
    path, _ = disk
    with contextlib.suppress(OSError):
        (path / "ballast").write_bytes(b"x" * 2**23)
    with pytest.raises(StoreError, match="No space left on device"):
        local.map(some_fail, grid(x=range(3)), store=path / "store")
    (path / "ballast").unlink()
    run = local.map(some_fail, grid(x=range(3)), store=path / "store").wait(60)
    assert run.progress.done == 3


def test_read_only_disk(local, disk):
    path, remount = disk
    local.register(some_fail)
    run = local.map(some_fail, grid(x=range(30)), store=path / "store").wait(60)
    frame = run.to_frame()
    remount("ro")
    for call in (
        lambda: local.map(some_fail, grid(x=range(3)), store=path / "new"),
        lambda: local.map(some_fail, grid(x=range(30)), store=path / "store"),
        lambda: local.attach(path / "store"),
    ):
        with pytest.raises(StoreError, match="Read-only file system"):
            call()
    assert_frame_equal(Run.open(path / "store").to_frame(), frame)
    assert len(Run.open(path / "store").errors) == 3
    assert len(run.to_dask()) == 30
    with pytest.raises(StoreError, match="Read-only file system"):
        run.retry()
    assert len(run.errors) == 3


def test_disk_that_becomes_read_only(local, disk, gate):
    path, remount = disk
    local.register(gated)
    run = local.map(gated, grid(x=range(40), path=[gate.path]), store=path / "store")
    while run.progress.done < 20:
        time.sleep(0.005)
    time.sleep(0.6)
    remount("ro")
    gate.open()
    with pytest.raises(StoreError, match="Read-only file system"):
        run.wait(30)
    assert len(Run.open(path / "store").to_frame()) >= 20
    remount("rw")
    again = local.attach(path / "store", takeover=True).wait(30)
    assert again.to_frame()["result"].tolist() == list(range(40))
