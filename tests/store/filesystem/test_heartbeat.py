"""The lease of a store: who may take it over from another host, and when."""

import contextlib
import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime

import fsspec
import pytest
from patience import wait_until

from atomizer_dask import Atomizer, MemoryConductor, Run, atom, grid
from atomizer_dask.cli.commands import main
from atomizer_dask.errors import StoreChangedError, StoreError, StoreHeldError
from atomizer_dask.store.filesystem.folder import Folder
from atomizer_dask.store.filesystem.heartbeat import BEAT, batch_job
from atomizer_dask.store.filesystem.lock import LockHolder, acquire, read_holder
from atomizer_dask.store.layout import HOLDER

ELSEWHERE = {"host": "node-of-another-name", "machine": "another"}


@atom(id="tests.lease.waiting")
def waiting(x, path):
    while not os.path.exists(path):
        time.sleep(0.005)
    return x


@atom(id="tests.lease.same")
def same(x):
    return x


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    url = f"memory://{tmp_path}" if request.param == "memory" else tmp_path / "folder"
    folder = Folder(url)
    folder.make()
    yield folder
    if request.param == "memory":
        fsspec.filesystem("memory").rm(folder.path(), recursive=True)


def held_elsewhere(folder, silent=0.0, **facts):
    """Have a process of another host hold it, whose last sign of life is so many seconds old."""
    holder = replace(LockHolder.here(), **{**ELSEWHERE, **facts})
    folder.write(HOLDER, holder.dump())
    if folder.is_local:
        os.utime(folder.path(HOLDER), (time.time() - silent,) * 2)
    else:
        when = datetime.fromtimestamp(time.time() - silent, UTC)
        fsspec.filesystem("memory").store[folder.path(HOLDER)].modified = when
    return holder


@pytest.mark.parametrize("silent", [0, 50])
def test_holder_elsewhere_is_alive_while_its_lease_lasts(folder, silent):
    other = held_elsewhere(folder, silent)
    with pytest.raises(StoreHeldError, match=r"takeover=True.*sign of life \d+ s ago; 60 s after"):
        acquire(folder, LockHolder.here())
    assert read_holder(folder) == other


def test_holder_elsewhere_that_was_silent_for_too_long_is_dead(folder):
    held_elsewhere(folder, 61)
    me = LockHolder.here()
    acquire(folder, me)
    assert read_holder(folder) == me
    assert folder.names() == [HOLDER]


def test_lease_is_the_one_that_the_holder_gave(folder, configure):
    held_elsewhere(folder, 61, lease=600.0)
    with pytest.raises(StoreHeldError, match="600 s after"):
        acquire(folder, LockHolder.here())


def test_clock_of_this_host_does_not_matter(folder, monkeypatch):
    held_elsewhere(folder, 61)
    monkeypatch.setattr("atomizer_dask.store.filesystem.lock.time", lambda: 0.0)
    acquire(folder, LockHolder.here())


def test_holder_of_an_earlier_version_gives_no_sign_of_life(folder):
    other = held_elsewhere(folder)
    facts = json.loads(other.dump())
    for name in ("lease", "machine", "job", "restarts"):
        del facts[name]
    folder.write(HOLDER, json.dumps(facts).encode())
    if folder.is_local:
        os.utime(folder.path(HOLDER), (0, 0))
    with pytest.raises(StoreHeldError):
        acquire(folder, LockHolder.here())


def test_process_of_this_machine_is_alive_however_silent(tmp_path):
    folder = Folder(tmp_path)
    folder.write(HOLDER, LockHolder.here().dump())
    os.utime(tmp_path / HOLDER, (0, 0))
    with pytest.raises(StoreHeldError):
        acquire(folder, LockHolder.here())


def test_container_of_the_same_name_is_not_this_machine(folder):
    me = LockHolder.here()
    if not me.machine:
        pytest.skip("nothing tells containers apart here")
    held_elsewhere(folder, host=me.host, pid=2**22 + 1)  # a number that means nothing here
    with pytest.raises(StoreHeldError):
        acquire(folder, me)


# -- batch jobs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ("", 0)),
        ({"SLURM_JOB_ID": "7"}, ("slurm 7", 0)),
        (
            {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2", "SLURM_CLUSTER_NAME": "big"},
            ("slurm big 7", 2),
        ),
        ({"PBS_JOBID": "8.server"}, ("pbs 8.server", 0)),
        ({"LSB_JOBID": "9", "LSB_RESTART": "Y"}, ("lsf 9", 1)),
        ({"JOB_ID": "5", "SGE_ROOT": "/sge", "RESTARTED": "1"}, ("sge 5", 1)),
        ({"JOB_ID": "5"}, ("", 0)),
    ],
)
def test_batch_job(monkeypatch, variables, expected):
    for name in list(os.environ):
        if name.startswith(("SLURM", "PBS", "LSB", "SGE", "JOB_ID", "RESTARTED")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert batch_job() == expected


def test_job_that_was_started_again_takes_its_store_over(folder):
    held_elsewhere(folder, job="slurm 7", restarts=0)
    with pytest.raises(StoreHeldError):  # another process of the same job
        acquire(folder, replace(LockHolder.here(), job="slurm 7", restarts=0))
    with pytest.raises(StoreHeldError):
        acquire(folder, replace(LockHolder.here(), job="slurm 8", restarts=1))
    acquire(folder, replace(LockHolder.here(), job="slurm 7", restarts=1))


# -- signs of life -----------------------------------------------------------------------------


def test_holder_gives_signs_of_life_while_all_its_threads_are_busy(local, tmp_path, configure):
    configure({"store.lease": "0.4s"})
    gate = tmp_path / "gate"
    run = local.map(waiting, grid(x=range(3), path=[str(gate)]), store=tmp_path / "store")
    path = tmp_path / "store" / HOLDER
    os.utime(path, (0, 0))
    wait_until(lambda: path.stat().st_mtime > time.time() - 60)
    gate.touch()
    run.wait(30)
    assert not path.exists()


def test_holder_at_a_url_writes_signs_of_life(local, tmp_path, configure):
    configure({"store.lease": "0.4s"})
    gate, folder = tmp_path / "gate", Folder(f"memory://{tmp_path}/store")
    run = local.map(waiting, grid(x=range(3), path=[str(gate)]), store=folder.url)
    name = BEAT + read_holder(folder).token
    wait_until(lambda: folder.exists(name))
    gate.touch()
    run.wait(30)
    assert not [name for name in folder.names() if name.startswith("holder")]


@pytest.fixture
def taken(local, tmp_path, configure):
    """A run, and another one that took its store over."""
    configure({"store.lease": "0.4s"})
    gate, store = tmp_path / "gate", tmp_path / "store"
    run = local.map(waiting, grid(x=range(9), path=[str(gate)]), store=store)
    wait_until(lambda: run.progress.running)
    with Atomizer(MemoryConductor(2), waiting) as other:
        yield run, other.attach(store, takeover=True), gate
        gate.touch()


def test_run_that_was_taken_over_ends_though_nothing_comes_back(taken):
    run, other, gate = taken
    with pytest.raises(StoreHeldError, match=f"no longer held by this .* process {os.getpid()}"):
        run.wait(10)
    assert run.state == "failed"
    assert run.progress.running == 0
    assert run.progress.eta is None
    gate.touch()
    assert other.wait(30).progress.done == 9
    assert Run.open(other.store).state == "finished"


def test_run_that_was_taken_over_and_finished_names_who_did(taken):
    run, other, gate = taken
    gate.touch()
    other.wait(30)
    assert run.join(10)
    assert run.state in ("failed", "finished")
    if run.state == "failed":
        assert isinstance(run.error, StoreHeldError)


def test_holder_that_wakes_up_after_its_lease_writes_nothing(local, tmp_path):
    gate, store = tmp_path / "gate", tmp_path / "store"
    run = local.map(waiting, grid(x=range(9), path=[str(gate)]), store=store)
    wait_until(lambda: run.progress.running)
    other = replace(read_holder(Folder(store)), token="another", **ELSEWHERE)
    (store / HOLDER).write_bytes(other.dump())
    before = (store / "run.json").read_bytes()
    gate.touch()
    with pytest.raises(StoreHeldError, match="node-of-another-name"):
        run.wait(30)
    assert (store / "run.json").read_bytes() == before
    assert not list((store / "properties").iterdir())
    assert (store / HOLDER).read_bytes() == other.dump()


def test_who_only_looks_says_that_nobody_holds_it_any_more(local, tmp_path):
    store = tmp_path / "store"
    local.map(same, grid(x=range(9)), store=store).wait(30)
    held_elsewhere(Folder(store), 50)
    assert ELSEWHERE["host"] in Run.open(store).provenance["holder"]
    held_elsewhere(Folder(store), 3600)
    assert Run.open(store).provenance["holder"] is None


# -- map ---------------------------------------------------------------------------------------


def test_map_takes_over(local, tmp_path):
    store = tmp_path / "store"
    local.map(same, grid(x=range(3)), store=store).wait(30)
    held_elsewhere(Folder(store))
    with pytest.raises(StoreHeldError, match="takeover=True, of map"):
        local.map(same, grid(x=range(5)), store=store)
    run = local.map(same, grid(x=range(5)), store=store, takeover=True).wait(30)
    assert run.progress.done == 5


def test_map_accepts_changes(local, tmp_path):
    @atom(id="tests.lease.same")
    def changed(x):
        return 10 * x

    store = tmp_path / "store"
    local.map(same, grid(x=range(3)), store=store).wait(30)
    with pytest.raises(StoreChangedError, match="accept_changes=True, of map"):
        local.map(changed, grid(x=range(5)), store=store)
    run = local.map(changed, grid(x=range(5)), store=store, accept_changes=True).wait(30)
    assert run.to_frame()["result"].tolist() == [0, 1, 2, 30, 40]
    assert run.to_frame(metadata=True)["code"].nunique() == 2


def test_command_takes_over_and_accepts_changes(tmp_path):
    sweep, code, store = tmp_path / "sweep.csv", tmp_path / "leased.py", tmp_path / "store"
    sweep.write_text("x\n1\n2\n")
    code.write_text("def f(x):\n    return x\n")
    command = ["map", f"{code}:f", "--sweep", str(sweep), "--store", str(store), "--workers", "1"]
    assert run_command([*command]) == 0
    held_elsewhere(Folder(store))
    code.write_text("def f(x):\n    return -x\n")
    assert run_command(command) == 1
    assert run_command([*command, "--takeover"]) == 1
    held_elsewhere(Folder(store))
    assert run_command([*command, "--takeover", "--accept-changes"]) == 0


def run_command(arguments):
    """Return the exit code of a command."""
    with contextlib.suppress(StoreError):
        try:
            main(arguments)
        except SystemExit as error:
            return error.code or 0
    return 0
