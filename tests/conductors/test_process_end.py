"""What becomes of a run whose process ends first, or is forked."""

import json
import random
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import CancelledError

import pytest
from distributed.comm import CommClosedError
from patience import wait_until

from atomizer_dask import Atomizer, DaskConductor, MemoryConductor, Run, atom, grid
from atomizer_dask.conductors.dask.batch_tasks import is_trouble
from atomizer_dask.errors import ConductorError, RegistrationError
from atomizer_dask.store.signature import is_own, sign

SCRIPT = """
import os, sys, threading, time
from atomizer_dask import Atomizer, DaskConductor, MemoryConductor, grid

def slow(i):
    time.sleep({seconds})
    return i * i

if __name__ == "__main__":
    atomizer = Atomizer({conductor})
    run = atomizer.map(slow, grid(i=range({electrons})), seed=1, store={store!r})
    while run.progress.done < {until}:
        time.sleep(0.005)
{end}
"""


@pytest.fixture
def script(tmp_path):
    """A function that runs a script that ends before its run, and returns how that went."""

    def start(
        end="",
        *,
        conductor="MemoryConductor(2)",
        store=None,
        electrons=60,
        until=10,
        seconds=0.02,
        wait=True,
    ):
        store = str(tmp_path / "store") if store is None else store or None
        path = tmp_path / "script.py"
        path.write_text(
            SCRIPT.format(
                end=textwrap.indent(end, "    "),
                conductor=conductor,
                store=store,
                electrons=electrons,
                until=until,
                seconds=seconds,
            )
        )
        command = [sys.executable, str(path)]
        if wait:
            return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    return start


def check_goes_on(store, electrons=60):
    """Nothing failed, and what is missing is executed."""
    before = Run.open(store)
    assert before.errors.empty
    assert not (store / "holder.json").exists() or before.provenance["holder"] is None
    with Atomizer(MemoryConductor(2)) as atomizer:
        run = atomizer.attach(store).wait(60)
    assert run.state == "finished"
    assert run.to_frame()["result"].tolist() == [i * i for i in range(electrons)]
    return before


ENDS = {
    "it simply ends": ("", 0),
    "an exception": ("1 / 0", 1),
    "sys.exit": ("sys.exit(5)", 5),
    "an exception in the block": ("with atomizer:\n    1 / 0", 1),
    "closed": ("atomizer.close()", 0),
    "sys.exit in a thread": ("threading.Thread(target=sys.exit).start()", 0),
    "the handle is dropped": ("del run, atomizer", 0),
}


@pytest.mark.parametrize("end", ENDS)
def test_script_that_ends_before_its_run(script, tmp_path, end):
    text, code = ENDS[end]
    ended = script(text)
    assert ended.returncode == code
    before = check_goes_on(tmp_path / "store")
    assert before.state == "suspended"
    assert before.progress.done >= 10
    if end in ("it simply ends", "an exception", "the handle is dropped"):
        lines = [line for line in ended.stderr.splitlines() if "was suspended" in line]
        assert len(lines) == 1
        assert f"atomizer.attach({str(tmp_path / 'store')!r}) goes on" in lines[0]


@pytest.mark.dask
def test_script_on_dask_that_ends_before_its_run(script, tmp_path):
    ended = script(conductor="DaskConductor(workers=2)", seconds=0.05)
    assert ended.returncode == 0
    assert "was suspended" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert check_goes_on(tmp_path / "store").state == "suspended"


def test_script_without_a_store_says_so(script):
    ended = script(store="")
    assert ended.returncode == 0
    assert "ends with its process" in ended.stderr
    assert "give it a store" in ended.stderr


def test_thread_that_waits_for_a_run_is_waited_for(script, tmp_path):
    ended = script("threading.Thread(target=lambda: print(run.wait().state)).start()")
    assert ended.stdout == "finished\n"
    assert Run.open(tmp_path / "store").state == "finished"


def test_process_that_vanishes_leaves_a_store_that_goes_on(script, tmp_path):
    assert script("os._exit(3)").returncode == 3
    assert check_goes_on(tmp_path / "store").state == "suspended"


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
def test_process_that_ends_at_a_random_moment(script, tmp_path, seed):
    rng = random.Random(seed)
    until = rng.randrange(60)
    process = script(until=until, seconds=0.01, end=f"time.sleep({rng.random() * 0.2})", wait=False)
    if rng.random() < 0.5:
        wait_until(lambda: (tmp_path / "store" / "holder.json").exists())
        threading.Event().wait(rng.random() * 0.5)
        process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
    process.communicate(timeout=60)
    if (tmp_path / "store" / "run.json").exists():
        check_goes_on(tmp_path / "store")


FORKED = """
pid = os.fork()
if pid == 0:
    try:
        run.wait(10)
    except Exception as error:
        print(type(error).__name__, flush=True)
    {child}
os.waitpid(pid, 0)
print(run.wait(30).state, flush=True)
"""


@pytest.mark.parametrize(
    "child", ["os._exit(0)", "sys.exit(0)", "atomizer.close(); sys.exit(0)", "run.store; 1 / 0"]
)
def test_forked_process_leaves_the_run_to_its_parent(script, tmp_path, child):
    ended = script(FORKED.format(child=child))
    assert ended.stdout.splitlines() == ["ConductorError", "finished"]
    assert Run.open(tmp_path / "store").progress.done == 60
    manifest = json.loads((tmp_path / "store" / "run.json").read_text())
    assert [session["end"] is not None for session in manifest["sessions"]] == [True]


# -- with blocks and close -----------------------------------------------------------------------


@atom(id="tests.exiting.slow")
def slow(x):
    threading.Event().wait(0.02)
    return x


def test_leaving_a_block_by_an_exception_suspends(conductor, tmp_path):
    store = tmp_path / "store"

    def fail():
        with Atomizer(conductor, slow) as atomizer:
            atomizer.map(slow, grid(x=range(300)), store=store)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert Run.open(store).state == "suspended"
    with Atomizer(MemoryConductor(2), slow) as atomizer:
        assert atomizer.attach(store).wait(60).progress.done == 300


def test_conductor_that_is_closed_under_a_run_fails_no_electron(tmp_path):
    store, conductor = tmp_path / "store", MemoryConductor(2)
    run = Atomizer(conductor, slow).map(slow, grid(x=range(100)), store=store)
    wait_until(lambda: run.progress.done)
    conductor.close()
    with pytest.raises(ConductorError):
        run.wait(30)
    assert Run.open(store).errors.empty
    with Atomizer(MemoryConductor(2), slow) as atomizer:
        assert atomizer.attach(store).wait(60).progress.done == 100


@pytest.mark.dask
def test_client_that_is_closed_under_a_run_fails_no_electron(cluster, tmp_path):
    store = tmp_path / "store"
    conductor = DaskConductor(cluster.scheduler_address)
    run = Atomizer(conductor, slow).map(slow, grid(x=range(300)), store=store)
    wait_until(lambda: run.progress.done)
    conductor.client.close()
    with pytest.raises(ConductorError):
        run.wait(30)
    assert Run.open(store).errors.empty
    with Atomizer(DaskConductor(cluster.scheduler_address), slow) as atomizer:
        assert atomizer.attach(store).wait(60).progress.done == 300


# -- trouble is no outcome ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("cannot schedule new futures after shutdown"), True),
        (RuntimeError("can't create new thread at interpreter shutdown"), True),
        (RuntimeError("Event loop is closed"), True),
        (BrokenPipeError(), True),
        (ConnectionResetError(), True),
        (CommClosedError("in <TCP>"), True),
        (TimeoutError(), True),
        (ValueError("No worker found"), True),
        (ModuleNotFoundError("No module named 'x'"), False),
        (FileNotFoundError("model.bin"), False),
        (RuntimeError("singular matrix"), False),
        (ValueError("x must be positive"), False),
    ],
)
def test_trouble_is_told_from_what_atoms_and_inputs_raise(error, expected):
    assert is_trouble(error) is expected
    assert not is_trouble(CancelledError())


@pytest.mark.dask
@pytest.mark.parametrize("times", [2, 100])
def test_trouble_with_a_batch_is_no_outcome(dask, tmp_path, monkeypatch, times):
    """It is executed again, or the run ends where that is in vain."""
    left, submit = [times], dask._tasks._submit

    async def troubled(batch):
        if left[0]:
            left[0] -= 1
            raise RuntimeError("cannot schedule new futures after shutdown")
        return await submit(batch)

    monkeypatch.setattr(dask._tasks, "_submit", troubled)
    with Atomizer(dask, slow) as atomizer:
        run = atomizer.map(slow, grid(x=range(20)), store=tmp_path / "store")
        if times == 2:
            assert run.wait(30).progress.done == 20
        else:
            with pytest.raises(ConductorError, match="cannot schedule new futures"):
                run.wait(30)
    assert Run.open(tmp_path / "store").errors.empty


# -- the atom of a script -------------------------------------------------------------------------


def test_atom_of_a_script_of_ours_is_read_from_its_store(script, tmp_path, monkeypatch):
    script()
    check_goes_on(tmp_path / "store")
    kept = tmp_path / "store" / "atom.pickle"
    data = kept.read_bytes()
    with Atomizer(MemoryConductor(2)) as atomizer:
        kept.write_bytes(data + b"x")  # by anybody else
        with pytest.raises(RegistrationError, match=r"allow_pickle=True"):
            atomizer.attach(tmp_path / "store")
        kept.write_bytes(data)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of somebody else"))
        with pytest.raises(RegistrationError, match=r"allow_pickle=True"):
            atomizer.attach(tmp_path / "store")


def test_signature_is_that_of_this_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    signature = sign(b"content")
    assert is_own(b"content", signature)
    assert not is_own(b"another", signature)
    assert not is_own(b"content", "")
    key = tmp_path / "atomizer_dask" / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert not is_own(b"content", signature)


def test_without_a_place_for_a_key_nothing_is_signed(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert sign(b"content") == ""
    assert not is_own(b"content", "")
