"""The workers of a cluster that a conductor started: what they import, heed, may start, outlive."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing, contextmanager

import dask
import psutil
import pytest
from distributed.comm import CommClosedError

from atomizer_dask import Atomizer, DaskConductor, atom
from atomizer_dask.conductors.dask.cluster.local_cluster import is_news

pytestmark = pytest.mark.dask

PATIENCE = 100
HEAD = """
import multiprocessing, os, signal, subprocess, sys, time
from atomizer_dask import Atomizer, DaskConductor, Electron, atom, grid

def slow(i):
    time.sleep(0.02)
    return i

def endless(i):
    time.sleep(600)

def wait_for(run, number):
    while run.progress.done < number:
        time.sleep(0.02)
"""


@contextmanager
def script(tmp_path, body, *args, name="script.py", **options):
    """A program in a process group of its own, which is killed in the end."""
    path = tmp_path / name
    path.write_text(HEAD + textwrap.dedent(body))
    command = [sys.executable, str(path), *map(str, args)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    program = subprocess.Popen(command, text=True, start_new_session=True, **{**pipes, **options})
    try:
        yield program
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
            program.communicate()


def run_script(tmp_path, body, *args):
    with script(tmp_path, body, *args) as program:
        out, err = program.communicate(timeout=PATIENCE)
    return program.returncode, out, err


def alive(pids):
    left = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                left.append(pid)
        except psutil.NoSuchProcess:
            continue
    return left


def wait_until(condition, seconds=PATIENCE):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to that in time"
        time.sleep(0.05)


# -- the main module ---------------------------------------------------------------------------

FORMS = """
    import enum, dataclasses
    print("main", flush=True)

    class Kind(enum.Enum):
        FERRO = 1

    @dataclasses.dataclass
    class Config:
        shift: int

    class Wrong(Exception):
        pass

    def shifted(x, kind, config):
        if x == 3:
            raise Wrong
        return {"y": x + config.shift, "same": kind is Kind.FERRO and isinstance(config, Config)}

    with Atomizer(DaskConductor(workers=1)) as atomizer:
        run = atomizer.map(shifted, grid(x=[1, 2, 3], kind=[Kind.FERRO], config=[Config(1)]))
        df = run.wait(50).to_frame()
        print(df["y"].tolist()[:2], df["same"].tolist()[:2], run.errors["type"].tolist())
"""
SAYS = "main\n[2, 3] [True, True] ['Wrong']\n"


@pytest.mark.parametrize(
    ("configured", "variables", "expected"),
    [
        ({}, {}, {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "33554432"}),
        ({}, {"MALLOC_TRIM_THRESHOLD_": "9"}, {"MALLOC_TRIM_THRESHOLD_": "9"}),
        ({}, {"MALLOC_MMAP_THRESHOLD_": "9"}, {"MALLOC_TRIM_THRESHOLD_": "65536"}),
        ({"MALLOC_TRIM_THRESHOLD_": 7}, {}, {"MALLOC_TRIM_THRESHOLD_": "7"}),
        ({"MALLOC_TRIM_THRESHOLD_": None}, {}, {}),
    ],
)
def test_workers_keep_freed_memory_unless_the_user_says_otherwise(
    configured, variables, expected, monkeypatch
):
    names = "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"
    for name in names:  # Dask's nannies leave theirs in the environment of their process
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    key = "distributed.nanny.pre-spawn-environ"
    with (
        dask.config.set({key: {**dask.config.get(key), **configured}}),
        closing(DaskConductor(workers=1)) as conductor,
    ):
        (found,) = conductor.client.run(lambda: dict(os.environ)).values()
    assert {n: found[n] for n in names if n in found} == {**variables, **expected}


def test_a_script_needs_no_guard(tmp_path):
    code, out, _ = run_script(tmp_path, FORMS)
    assert (code, out) == (0, SAYS)


@pytest.mark.parametrize("how", ["module", "zip", "stdin"])
def test_a_program_needs_no_guard_however_it_is_started(how, tmp_path):
    text = HEAD + textwrap.dedent(FORMS)
    package = tmp_path / "study"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text(text)
    (package / "__main__.py").write_text(text)
    arguments = {
        "module": ["-m", "study.model"],
        "zip": [str(package)],  # a folder with __main__.py is started as a zip file is
        "stdin": ["-"],
    }[how]
    ended = subprocess.run(
        [sys.executable, *arguments],
        input=text if how == "stdin" else "",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=PATIENCE,
    )
    assert ended.stdout == SAYS, ended.stderr


def test_a_process_that_imports_the_main_module_is_told_what_it_lacks(tmp_path):
    body = """
        conductor = DaskConductor(workers=1) if __name__ != "__main__" else None
        spawn = multiprocessing.get_context("spawn")
        if __name__ == "__main__":
            process = spawn.Process(target=print)
            process.start()
            process.join()
    """
    _, _, err = run_script(tmp_path, body)
    assert "if __name__ == '__main__':" in err.splitlines()[-1]
    assert len(err.splitlines()) < 40


# -- SIGINT ------------------------------------------------------------------------------------

INTERRUPTED = """
    made = __import__("distributed").LocalCluster
    def main():
        options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
        cluster = made(**options) if sys.argv[1] == "theirs" else None
        conductor = DaskConductor(cluster) if cluster else DaskConductor(workers=2)
        with Atomizer(conductor) as atomizer:
            run = atomizer.map(slow, grid(i=range(200)))
            wait_for(run, 10)
            for number in range(3):
                try:
                    print("ready", flush=True)
                    time.sleep(60)
                except KeyboardInterrupt:
                    if number == 1:  # the next signal meets workers that start
                        for pid in conductor.client.run(os.getpid).values():
                            os.kill(pid, signal.SIGKILL)
            print(run.wait(40).progress.done)
            print(atomizer.map(slow, grid(i=range(20))).wait(20).progress.done)
    if __name__ == "__main__":
        main()
"""


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_workers_go_on_at_sigint_to_the_group(whose, tmp_path):
    with script(tmp_path, INTERRUPTED, whose) as program:
        for _ in range(3):
            assert program.stdout.readline() == "ready\n"
            os.killpg(program.pid, signal.SIGINT)
        out, err = program.communicate(timeout=PATIENCE)
    assert out.split() == ["200", "20"], err


def test_ctrl_c_in_a_terminal_pauses_and_the_run_can_go_on(tmp_path):
    body = """
        conductor = DaskConductor(workers=2)
        atomizer = Atomizer(conductor)
        run = atomizer.map(slow, grid(i=range(400)))
        print("ready", flush=True)
        run.wait()
        print("done", run.progress.done, flush=True)
        atomizer.close()
    """
    master, terminal = os.openpty()
    path = tmp_path / "script.py"
    path.write_text(HEAD + textwrap.dedent(body))
    ours = "import os, pty, sys, fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    ours += "os.execv(sys.executable, [sys.executable, sys.argv[1]])"
    program = subprocess.Popen(
        [sys.executable, "-c", ours, str(path)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    shown = b""

    def read_until(text):
        nonlocal shown
        while text not in shown:
            shown += os.read(master, 4096)
        shown = shown.partition(text)[2]

    try:
        read_until(b"ready")
        read_until(b"[")  # the bar
        os.write(master, b"\x03")
        read_until(b"Enter goes on")
        os.write(master, b"\n")
        read_until(b"done 400")
    finally:
        program.kill()
        program.wait()
        os.close(master)


def test_ctrl_c_while_a_cluster_starts_leaves_nothing(tmp_path):
    body = """
        try:
            print("ready", flush=True)
            DaskConductor(workers=2)
        except KeyboardInterrupt:
            import psutil
            names = [" ".join(child.cmdline()) for child in psutil.Process().children()]
            print([name for name in names if "resource_tracker" not in name])
    """
    with script(tmp_path, body) as program:
        program.stdout.readline()
        wait_until(lambda: len(psutil.Process(program.pid).children()) > 1)
        os.killpg(program.pid, signal.SIGINT)
        out, err = program.communicate(timeout=PATIENCE)
    assert (out, err) == ("[]\n", "")


# -- processes that atoms start ----------------------------------------------------------------


@pytest.fixture(scope="module")
def own():
    """An atomizer on a cluster of one worker that its conductor started."""
    with closing(Atomizer(DaskConductor(workers=1))) as atomizer:
        yield atomizer


def square(x):
    return x * x


class Point:
    def __init__(self, x):
        self.x = x


def moved(point):
    return Point(point.x + 1)


for value in (square, Point, moved):  # as of a notebook: no worker can import them
    value.__module__ = "__main__"


def test_an_atom_has_a_pool_of_processes(own):
    def total(n):
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(2) as pool:
            return sum(pool.map(square, range(n)))

    total.__module__ = "__main__"
    for isolation in (None, "process"):
        run = own.map(atom(isolation=isolation)(total), {"n": [3, 4]}).wait(PATIENCE)
        assert run.to_frame()["result"].tolist() == [5, 14], run.errors["message"].tolist()


def test_objects_of_a_notebook_travel_to_a_pool_and_back(own):
    def there_and_back(x):
        import multiprocessing

        with multiprocessing.Pool(1) as pool:
            point = pool.apply(moved, (Point(x),))
        return point.x if isinstance(point, Point) else None

    there_and_back.__module__ = "__main__"
    run = own.map(there_and_back, {"x": [1]}).wait(PATIENCE)
    assert run.to_frame()["result"].tolist() == [2], run.errors["traceback"].tolist()


def test_a_process_with_a_queue_and_a_closure_of_a_notebook(own):
    def asked(x):
        import multiprocessing

        queue = multiprocessing.Queue()
        process = multiprocessing.Process(target=lambda: queue.put(x + 1))
        process.start()
        answer = queue.get(timeout=30)
        process.join()
        return answer

    asked.__module__ = "__main__"
    run = own.map(asked, {"x": [1]}).wait(PATIENCE)
    assert run.to_frame()["result"].tolist() == [2], run.errors["traceback"].tolist()


def test_joblib_has_as_many_processes_as_it_asks_for(own):
    pytest.importorskip("joblib")

    def jobs(n):
        from joblib import effective_n_jobs

        return effective_n_jobs(n)

    assert own.map(jobs, {"n": [2]}).wait(PATIENCE).to_frame()["result"].tolist() == [2]


def test_elsewhere_the_hint_says_what_to_set(dask):
    def forked(x):
        import multiprocessing

        multiprocessing.Process(target=print).start()

    run = Atomizer(dask).map(forked, {"x": [1]}).wait(PATIENCE)
    assert "DASK_DISTRIBUTED__WORKER__DAEMON=false" in run.failures["hint"].iloc[0]


ORPHANS = """
    from concurrent.futures import ProcessPoolExecutor

    def pooled(i):
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            return list(pool.map(endless, [1]))

    def program(i):
        return subprocess.run(["sleep", "600"])

    def hog(i):
        import ctypes
        ctypes.PyDLL(None).sleep(600)  # holds the interpreter lock

    how, what, isolation = sys.argv[1:]
    conductor = DaskConductor(workers=1)
    atomizer = Atomizer(conductor)
    run = atomizer.map(atom(isolation=isolation or None)(globals()[what]), grid(i=[1]))
    import psutil
    expected = {"hog": 2, "pooled": 3, "program": 3}[what] + bool(isolation) * 2
    def descendants():
        return [child.pid for child in psutil.Process().children(recursive=True)]
    while len(descendants()) < expected:
        time.sleep(0.05)
    if what == "hog":
        time.sleep(1)
    print("ready", *descendants(), flush=True)
    if how == "exit":
        os._exit(0)
    if how == "close":
        atomizer.close()
        sys.exit()
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("how", "what", "isolation"),
    [
        ("kill", "pooled", ""),
        ("kill", "program", "process"),
        ("kill", "hog", ""),
        ("exit", "pooled", "process"),
        ("close", "hog", ""),
    ],
)
def test_nothing_outlives_the_client(how, what, isolation, tmp_path):
    with script(tmp_path, ORPHANS, how, what, isolation) as program:
        pids = [int(pid) for pid in program.stdout.readline().split()[1:]]
        assert len(alive(pids)) >= 2
        if how == "kill":
            program.kill()
        program.communicate(timeout=PATIENCE)
        wait_until(lambda: not alive(pids), 10)


def test_what_an_electron_started_ends_with_its_timeout(local, tmp_path):
    def hang(path):
        import subprocess
        from pathlib import Path

        process = subprocess.Popen(["sleep", "600"])
        Path(path).write_text(str(process.pid))
        process.wait()

    path = tmp_path / "pid"
    run = local.map(hang, {"path": [str(path)]}, timeout=1).wait(PATIENCE)
    assert run.errors["kind"].tolist() == ["timeout"]
    wait_until(lambda: not alive([int(path.read_text())]), 10)


def test_what_a_worker_started_ends_with_it(own):
    def leave_one(x):
        import subprocess

        return subprocess.Popen(["sleep", "600"]).pid

    pid = own.map(leave_one, {"x": [1]}).wait(PATIENCE).to_frame()["result"].tolist()[0]
    client = next(iter(own.conductors.values())).client
    assert alive([pid])
    client.restart()
    wait_until(lambda: not alive([pid]), 10)


# -- what is printed ---------------------------------------------------------------------------

QUIET = {
    "paused": "wait_for(run, 10); run.pause(); atomizer.close()",
    "cancelled": "wait_for(run, 10); run.cancel(); run.wait(); atomizer.close()",
    "endless": "run.wait(); atomizer.map(endless, grid(i=[1])); time.sleep(1); atomizer.close()",
    "two": "other = DaskConductor(workers=1); atomizer.close(); other.close()",
}


@pytest.mark.parametrize(
    ("error", "is_told"), [(CommClosedError("in <TCP>: closed"), False), (OSError("disk"), True)]
)
def test_a_heartbeat_that_meets_a_closed_scheduler_is_no_news(error, is_told):
    message = "Failed to communicate with scheduler during heartbeat."
    record = logging.LogRecord(
        "distributed.worker", logging.ERROR, "", 1, message, (), (type(error), error, None)
    )
    assert is_news(record) is is_told


def test_an_ordinary_end_prints_nothing(tmp_path):
    body = """
        for text in sys.argv[1:]:
            atomizer = Atomizer(DaskConductor(workers=1))
            run = atomizer.map(slow, grid(i=range(50)))
            exec(text)
    """
    code, _, err = run_script(tmp_path, body, *QUIET.values())
    assert (code, err) == (0, "")


def test_an_end_prints_nothing_however_long_connections_take_to_close(tmp_path):
    body = """
        def child(i):
            return i

        def spawn(context):
            import asyncio
            from distributed import get_worker

            value = context.conductor.send(Electron("__main__.child", {"i": 1})).result().value()
            pool = get_worker().extensions["atomizer"]._conductor.client.rpc

            async def close(close=pool.close):
                await asyncio.sleep(1)
                await close()

            pool.close = close
            return value

        with Atomizer(DaskConductor(workers=1), atom(child), atom(spawn)) as atomizer:
            print(atomizer.send("__main__.spawn", {}).result().value())
    """
    assert run_script(tmp_path, body) == (0, "1\n", "")


# -- in a kernel -------------------------------------------------------------------------------


@pytest.fixture
def kernel(tmp_path):
    """A function that executes a cell in a kernel, and its manager, as JupyterLab has them."""
    manager = pytest.importorskip("jupyter_client").KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path), stderr=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(PATIENCE)

    def execute(cell, interrupted_by=None):
        shown = []

        def note(message):
            if message["msg_type"] == "stream":
                shown.append(message["content"]["text"])
                if interrupted_by is not None and interrupted_by in shown[-1]:
                    manager.interrupt_kernel()

        reply = client.execute_interactive(cell, timeout=PATIENCE, output_hook=note)
        return reply["content"].get("ename", ""), "".join(shown)

    yield execute
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_the_stop_button_of_a_cell_leaves_runs_and_workers_alone(kernel):
    head = HEAD + "atomizer = Atomizer(DaskConductor(workers=2))\n"
    assert kernel(head + "run = atomizer.map(slow, grid(i=range(300)))\nwait_for(run, 10)")[0] == ""
    for _ in range(2):
        told = kernel("print('begun', flush=True); time.sleep(60)", interrupted_by="begun")
        assert told[0] == "KeyboardInterrupt"
    _, shown = kernel("print(run.wait(50).progress.done, run.state)")
    assert "300 finished" in shown
    _, shown = kernel("print(len(atomizer.map(slow, grid(i=range(7))).wait(50).to_frame()))")
    assert "7" in shown
    kernel("atomizer.close()")
