"""What Ctrl-C does while a script, or a notebook, waits for a run."""

import importlib
import io
import os
import pty
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from atomizer_dask import Atomizer, MemoryConductor, Run, atom, grid, interruptible
from atomizer_dask.events import Stream

SCRIPT = """
    import sys, time
    from atomizer_dask import Atomizer, DaskConductor, MemoryConductor, atom, grid

    @atom
    def slow(x):
        time.sleep(0.01)
        return x

    if __name__ == "__main__":
        conductor = MemoryConductor(2) if sys.argv[1] == "memory" else DaskConductor(workers=1)
        with Atomizer(conductor, slow) as atomizer:
            run = atomizer.map(slow, grid(x=range(int(sys.argv[2]))))
            next(iter(run))
            told = []

            def tell(progress):
                told.append(progress)
                if len(told) == 1:
                    print("running", flush=True)

            try:
                run.wait(progress=tell)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            frame = run.to_frame()
            print(run.state, len(frame), int(frame["result"].count()), flush=True)
"""


@pytest.fixture
def script(tmp_path):
    """Start the script above; what it was given for stdin is up to the test."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    started = []

    def start(*arguments, stdin):
        process = subprocess.Popen(
            [sys.executable, str(path), *map(str, arguments)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        started.append(process)
        assert process.stdout.readline() == "running\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def read_until(stream, text):
    lines = []
    while not any(text in line for line in lines):
        lines.append(stream.readline())
        assert lines[-1], f"ended before {text!r}: {lines}"
    return "".join(lines)


@pytest.mark.parametrize("conductor", ["memory", pytest.param("dask", marks=pytest.mark.dask)])
def test_first_interrupt_pauses_and_second_cancels(script, conductor):
    process = script(conductor, 3000, stdin=subprocess.DEVNULL)
    process.send_signal(signal.SIGINT)
    said = read_until(process.stderr, "again cancels")
    assert "is paused" in said
    assert "run.resume()" in said
    process.send_signal(signal.SIGINT)
    read_until(process.stderr, "is cancelled")
    assert process.stdout.readline() == "interrupted\n"
    state, rows, good = process.stdout.readline().split()
    assert (state, rows) == ("cancelled", "3000")
    assert 0 < int(good) < 3000
    assert process.wait(30) == 0


def test_enter_goes_on_in_a_terminal(script):
    leader, follower = pty.openpty()
    try:
        process = script("memory", 300, stdin=follower)
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, "Enter goes on")
        os.write(leader, b"\n")
        assert process.stdout.readline() == "finished 300 300\n"
    finally:
        os.close(leader)
        os.close(follower)


@pytest.fixture
def notebook(monkeypatch):
    """Make it look as if this were a notebook."""
    module = types.ModuleType("IPython")
    module.get_ipython = object
    monkeypatch.setitem(sys.modules, "IPython", module)


def interrupt_soon():
    """Interrupt the main thread as soon as it waits for a run."""
    main = threading.main_thread().ident

    def functions():
        frame = sys._current_frames()[main]
        while frame is not None:
            yield frame.f_code
            frame = frame.f_back

    def interrupt():
        while interruptible.wait_for.__code__ not in functions():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()


@pytest.mark.usefixtures("notebook")
def test_interrupted_cell_ends_and_leaves_the_run_paused(atomizer, capsys):
    run = atomizer.map(atom(lambda x: time.sleep(0.01)), grid(x=range(600)))
    interrupt_soon()
    with pytest.raises(KeyboardInterrupt, match=r"is paused; run\.resume\(\)"):
        run.wait(progress=False)
    assert run.state == "paused"
    assert "run.resume() goes on, run.cancel() ends it" in capsys.readouterr().err
    run.resume()
    assert run.wait(60, progress=False).progress.done == 600


@pytest.mark.usefixtures("notebook")
def test_interrupting_a_paused_run_cancels_it(atomizer):
    run = atomizer.map(atom(lambda x: time.sleep(0.01)), grid(x=range(600)))
    run.pause()
    interrupt_soon()
    with pytest.raises(KeyboardInterrupt, match="was cancelled"):
        run.wait(progress=False)
    assert run.state == "cancelled"
    assert len(run.to_frame()) == 600


@contextmanager
def interrupted_elsewhere():
    """Interrupt soon, in another thread than the main one, where Python runs the handler."""
    thread = threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    thread.join()


@pytest.mark.parametrize(
    "wait",
    [lambda run: run.join(), list, lambda run: interruptible.wait(threading.Event())],
    ids=["join", "iterate", "event"],
)
def test_an_interrupt_that_another_thread_got_ends_the_wait(wait):
    with Atomizer(MemoryConductor()) as atomizer:
        run = atomizer.map(atom(lambda x: x), grid(x=range(10)))
        run.pause()
        with interrupted_elsewhere():
            wait(run)
        run.cancel()


class Interrupted:
    """Presses Ctrl-C when so many instructions of Python have been executed."""

    def __init__(self, instructions):
        self.left = instructions

    def __call__(self, frame, event, argument):
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self

    def during(self, function):
        """Call a function; return whether it was interrupted."""
        sys.settrace(self)
        try:
            function()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return self.left <= 0  # pressed, and heard by nobody


def wait_for_condition():
    condition, answers = threading.Condition(), iter([False, True])
    free = lambda: condition.acquire(blocking=False)  # noqa: E731
    return lambda: interruptible.wait_for(condition, lambda: next(answers)), free


def wait_for_event():
    event = threading.Event()
    return lambda: interruptible.wait(event, 0.002), lambda: event.set() is None


@pytest.mark.parametrize("make", [wait_for_condition, wait_for_event])
def test_no_interrupt_breaks_a_wait_or_leaves_a_lock_held(make, monkeypatch):
    monkeypatch.setattr(interruptible, "SLICE_SECONDS", 1e-4)
    instructions = 0
    while True:
        instructions += 1
        press = Interrupted(instructions)
        wait, is_free = make()
        interrupted = press.during(wait)
        if press.left > 0:
            break
        assert interrupted
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(is_free).result(10)
    assert instructions > 100
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@contextmanager
def handled(number, handler):
    """Have a signal handled meanwhile."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_processes_forked_during_a_wait_heed_signals():
    """As a pool of processes does, which is ended by SIGTERM."""

    def forked():
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGTERM)
            os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with handled(signal.SIGTERM, lambda *_: os._exit(7)), interruptible.holding_signals():
        assert forked() == 7


def test_what_a_handler_puts_in_place_of_another_stays():
    def theirs(*_):
        pass

    with handled(signal.SIGALRM, signal.default_int_handler):
        with interruptible.holding_signals():
            signal.signal(signal.SIGALRM, theirs)
        assert signal.getsignal(signal.SIGALRM) is theirs


def test_a_handler_that_raises_at_the_end_of_a_wait_loses_nothing_of_a_stream():
    class LateError(Exception):
        pass

    def late(*_):
        raise LateError

    stream, seen = Stream(10), []
    stream.put("item")
    stream._changed = Raising(stream._changed)
    with handled(signal.SIGALRM, late):
        while not seen:
            with suppress(LateError):
                seen.append(stream.get(1))
    assert seen == ["item"]


class Raising:
    """A condition, during whose first use an alarm goes off."""

    def __init__(self, condition):
        self.condition, self.is_first = condition, True

    def __enter__(self):
        if self.is_first:
            self.is_first = False
            signal.raise_signal(signal.SIGALRM)
        return self.condition.__enter__()

    def __exit__(self, *error):
        return self.condition.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self.condition, name)


class Terminal(io.TextIOWrapper):
    """Where nobody ever types a line, but presses Ctrl-C as soon as one is waited for."""

    def isatty(self):
        return True

    def readline(self):
        with interrupted_elsewhere():
            super().readline()
        raise KeyboardInterrupt


def test_an_interrupt_that_another_thread_got_cancels_a_paused_run(local, monkeypatch, capsys):
    nobody, writes = os.pipe()
    with open(writes, "w"), Terminal(open(nobody, "rb")) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        run = local.map(atom(lambda x: time.sleep(0.01)), grid(x=range(600)))
        interrupt_soon()
        with pytest.raises(KeyboardInterrupt, match="was cancelled"):
            run.wait(progress=False)
    assert "Enter goes on, Ctrl-C again cancels" in capsys.readouterr().err
    assert run.state == "cancelled"
    assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL


@pytest.mark.usefixtures("notebook")
def test_an_interrupt_pauses_the_run_although_dask_jobqueue_is_imported(local):
    before = signal.getsignal(signal.SIGINT)
    try:
        sys.modules.pop("dask_jobqueue.runner", None)
        importlib.import_module("dask_jobqueue.runner")
        exiting = signal.getsignal(signal.SIGINT)
        assert exiting is not before
        run = local.map(atom(lambda x: time.sleep(0.01)), grid(x=range(600)))
        interrupt_soon()
        with pytest.raises(KeyboardInterrupt, match="is paused"):
            run.wait(progress=False)
        assert signal.getsignal(signal.SIGINT) is exiting
        run.cancel()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_callback_that_raises_does_not_end_the_wait_for_a_run_that_is_only_looked_at(
    local, tmp_path, caplog
):
    local.map(atom(lambda x: x), grid(x=range(3)), store=tmp_path / "run").wait(60)

    def broken(progress):
        raise ValueError("no terminal")

    assert Run.open(tmp_path / "run").wait(60, progress=broken).progress.done == 3
    assert "a progress callback raised" in caplog.text
