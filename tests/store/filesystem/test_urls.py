"""Where a store is: half URLs, buckets that are not made, and file systems that go away."""

import os
import shutil
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from patience import wait_until

from atomizer_dask import Atomizer, MemoryConductor, Run, atom, grid
from atomizer_dask.errors import StoreCorruptedError, StoreError
from atomizer_dask.store.filesystem.folder import Folder


@atom(id="tests.urls.same")
def same(x):
    return x


@atom(id="tests.urls.waiting")
def waiting(x, path):
    while x >= 20 and not os.path.exists(path):
        os.stat(".")
    return x


# -- what was meant ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("s3:/bucket/x", "did you mean 's3://bucket/x'"),
        ("s3:bucket/x", "did you mean 's3://bucket/x'"),
        (Path("s3://bucket/x"), "did you mean 's3://bucket/x'"),
        ("s3//bucket/x", "did you mean 's3://bucket/x'"),
        ("S3://bucket/x", "did you mean 's3://bucket/x'"),
        ("s4://bucket/x", "did you mean"),
        ("gs:/bucket/x", "did you mean 'gs://bucket/x'"),
        ("gs:\\\\bucket\\x", "did you mean 'gs://bucket"),
        ("s3:///bucket/x", "names no bucket: did you mean 's3://bucket/x'"),
        ("s3://", "lacks a path"),
        ("memory:///", "lacks a path"),
        ("file:/tmp/x", "did you mean 'file:///tmp/x'"),
        ("file://tmp/x", "did you mean 'file:///tmp/x', or the path 'tmp/x'"),
        ("C:\\runs\\x", "a path of Windows"),
        ("C:/runs/x", "a path of Windows"),
        ("node7:/scratch/x", "did you mean 'sftp://node7/scratch/x'"),
        ("$SCRATCH/x", "names a variable"),
        ("~nobody-of-that-name/x", "there is no user 'nobody-of-that-name'"),
        (" runs/x", "white space"),
        ("runs/x\n", "white space"),
        ("", "a folder's path or a URL"),
    ],
)
def test_half_urls_are_told_with_what_was_meant(given, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Atomizer(MemoryConductor(2)) as atomizer, pytest.raises(StoreError) as told:
        atomizer.map(same, grid(x=range(3)), store=given)
    assert meant in str(told.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["run:1", "a/b:c", "./s3:", "./$x", "temperature=1", "s3"])
def test_names_of_folders_may_have_colons(local, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert local.map(same, grid(x=range(3)), store=name).wait(30).progress.done == 3
    assert Run.open(tmp_path / name).progress.done == 3


# -- what is made, and what is not ---------------------------------------------------------------


class TroubleError(Exception):
    """What a library of an object store raises: no OSError."""


class Buckets(MemoryFileSystem):
    """An object store in memory, which counts what is made and may go away."""

    protocol = ("buckets",)
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]
    made: ClassVar = []
    away = None

    def _check(self):
        if Buckets.away is not None:
            Buckets.away()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("buckets://", "memory://", 1))

    def mkdir(self, path, create_parents=True, **kwargs):
        self._check()
        bucket = path.strip("/").split("/")[0]
        if "/" not in path.strip("/") or create_parents:
            Buckets.made.append(bucket)
        if f"/{bucket}" not in self.pseudo_dirs:
            raise FileNotFoundError(f"no bucket {bucket}")

    def makedirs(self, path, exist_ok=False):
        self.mkdir(path, create_parents=True)

    def exists(self, path, **kwargs):
        self._check()
        return super().exists(path, **kwargs)

    def ls(self, path, detail=True, **kwargs):
        self._check()
        return super().ls(path, detail=detail, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        self._check()
        return super().cat_file(path, start=start, end=end, **kwargs)

    def _open(self, path, mode="rb", **kwargs):
        self._check()
        if "r" not in mode and f"/{path.strip('/').split('/')[0]}" not in self.pseudo_dirs:
            raise FileNotFoundError(path)
        return super()._open(path, mode, **kwargs)


@pytest.fixture
def buckets():
    """An object store with the bucket ``mine``."""
    fsspec.register_implementation("buckets", Buckets, clobber=True)
    Buckets.store, Buckets.pseudo_dirs = {}, ["", "/mine"]
    Buckets.made, Buckets.away = [], None
    yield Buckets
    Buckets.away = None
    Buckets.store.clear()


def test_store_in_a_bucket(local, buckets):
    run = local.map(same, grid(x=range(30)), store="buckets://mine/a/b/c").wait(30)
    assert run.progress.done == 30
    assert Run.open("buckets://mine/a/b/c").to_frame()["result"].tolist() == list(range(30))
    assert buckets.made == []


@pytest.mark.parametrize("url", ["buckets://mien/runs/x", "buckets://mien"])
def test_no_bucket_is_made(local, buckets, url):
    with pytest.raises(StoreError, match="no bucket"):
        local.map(same, grid(x=range(3)), store=url)
    assert buckets.made == []
    assert buckets.store == {}


def test_parents_of_a_local_store_are_made(local, tmp_path):
    local.map(same, grid(x=range(3)), store=tmp_path / "a" / "b").wait(30)


# -- what goes away ------------------------------------------------------------------------------


def trouble():
    raise TroubleError("Could not connect to the endpoint URL")


@pytest.mark.parametrize(
    "error", [TroubleError("no credentials"), PermissionError("403"), OSError(5)]
)
def test_what_cannot_be_reached_is_one_clear_error(local, buckets, error):
    def away():
        raise error

    buckets.away = away
    for call in (
        lambda: local.map(same, grid(x=range(3)), store="buckets://mine/x"),
        lambda: local.attach("buckets://mine/x"),
        lambda: Run.open("buckets://mine/x"),
    ):
        with pytest.raises(StoreError, match=r"cannot be reached: .*endpoint.*credentials") as told:
            call()
        assert not isinstance(told.value, StoreCorruptedError)


def test_what_does_not_answer_is_told_soon(buckets, configure, gate):
    configure({"store.connect-timeout": "0.2s"})
    buckets.away = lambda: wait_until(lambda: os.path.exists(gate.path))
    with pytest.raises(StoreError, match=r"no answer within 0\.2 s"):
        Run.open("buckets://mine/x")


def test_store_that_goes_away_ends_its_run_and_comes_back(local, buckets, gate):
    url = "buckets://mine/x"
    run = local.map(waiting, grid(x=range(60), path=[gate.path]), store=url)
    wait_until(lambda: len(Folder(url).files("properties")))
    buckets.away = trouble
    gate.open()
    with pytest.raises(StoreError, match=r"cannot be reached: TroubleError: Could not connect"):
        run.wait(30)
    assert run.state == "failed"
    buckets.away = None
    with Atomizer(MemoryConductor(2), waiting) as other:
        after = other.attach(url, takeover=True).wait(30)
    assert after.errors.empty
    assert after.to_frame()["result"].tolist() == list(range(60))


def test_files_that_cannot_be_reached_are_not_damaged(local, buckets):
    url = "buckets://mine/x"
    local.map(same, grid(x=range(30)), store=url).wait(30)
    run, opened = Run.open(url), buckets._open
    try:
        buckets._open = lambda *args, **kwargs: trouble()
        with pytest.raises(StoreError, match="cannot be reached") as told:
            run.to_frame()
    finally:
        buckets._open = opened
    assert not isinstance(told.value, StoreCorruptedError)
    assert len(run.to_frame()) == 30


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read_are_not_damaged(local, tmp_path):
    local.map(same, grid(x=range(30)), store=tmp_path / "x").wait(30)
    (file,) = (tmp_path / "x" / "properties").iterdir()
    file.chmod(0)
    with pytest.raises(StoreError, match="cannot read properties") as told:
        Run.open(tmp_path / "x")
    assert not isinstance(told.value, StoreCorruptedError)


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_folder_that_disappears_ends_its_run(local, tmp_path, gate, how):
    store = tmp_path / "store"
    run = local.map(waiting, grid(x=range(60), path=[gate.path]), store=store)
    wait_until(lambda: Folder(store).files("properties"))
    if how == "removed":
        shutil.rmtree(store)
    else:
        store.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError):  # though nothing comes back from any electron
        run.wait(30)
    gate.open()
    assert run.state == "failed"
    assert not store.exists()
    if how == "renamed":
        with Atomizer(MemoryConductor(2), waiting) as other:
            after = other.attach(tmp_path / "elsewhere", takeover=True).wait(30)
        assert after.errors.empty
        assert after.to_frame()["result"].tolist() == list(range(60))
