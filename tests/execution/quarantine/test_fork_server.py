import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from atomizer_dask.execution.quarantine import fork_server as module
from atomizer_dask.execution.quarantine.fork_server import Exit, ForkServer

SECONDS = 20

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def shared():
    nursery = ForkServer("fork_server_targets:serve", preload=("numpy",))
    yield nursery
    nursery.close()


@pytest.fixture
def nursery():
    nursery = ForkServer("fork_server_targets:serve")
    yield nursery
    nursery.close()


@pytest.fixture
def child(shared):
    child = shared.start()
    yield child
    child.close()


def ask(child, message):
    child.connection.send_bytes(message.encode())
    assert child.connection.poll(SECONDS)
    return child.connection.recv_bytes().decode()


def ended(child):
    assert child.connection.poll(SECONDS)
    with pytest.raises((EOFError, ConnectionResetError)):
        child.connection.recv_bytes()
    return True


def vanished(*pids):
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        # Whoever adopts a child may leave it a zombie, which is dead enough.
        alive = [one for one in processes if one.is_running() and not is_zombie(one)]
        if not alive:
            return True
        psutil.wait_procs(alive, timeout=0.05)
    return False


def is_zombie(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def zygote_of(child):
    return psutil.Process(child.pid).ppid()


def test_a_child_answers(child):
    assert ask(child, "hello there") == "hello there"


def test_owner_and_child_share_the_cursor(child):
    child.cursor[0] = 21.0
    ask(child, "double")
    assert child.cursor.tolist()[:4] == [21.0, 42.0, 0.0, 0.0]


def test_a_child_that_runs_has_no_exit(child):
    assert child.exit(0) is None
    assert child.exit(0.01) is None


def test_memory_is_resident_bytes_and_0_when_gone(child):
    assert child.memory() > 2**20
    child.kill()
    assert child.exit(SECONDS) == Exit(None, 9)
    assert child.memory() == 0


@pytest.mark.parametrize(
    ("message", "end", "text"),
    [
        ("exit 3", Exit(3, None), "exit code 3"),
        ("exit 0", Exit(0, None), "exit code 0"),
        ("raise", Exit(1, None), "exit code 1"),
        ("die", Exit(None, 11), "killed by signal 11 (SIGSEGV)"),
    ],
)
def test_an_exit_says_how_a_child_ended(child, message, end, text):
    child.connection.send_bytes(message.encode())
    assert child.exit(SECONDS) == end
    assert str(child.exit()) == text
    assert ended(child)


def test_an_exception_is_printed_to_stderr(capfd):
    nursery = ForkServer("fork_server_targets:serve")
    child = nursery.start()
    child.connection.send_bytes(b"raise")
    assert child.exit(SECONDS) == Exit(1, None)
    nursery.close()
    assert "ValueError: on purpose" in capfd.readouterr().err


def test_an_unusual_exit_has_words_too():
    assert str(Exit(None, 40)) == "killed by signal 40 (unnamed)"
    assert str(Exit(None, None)) == "unknown exit"
    assert pickle.loads(pickle.dumps(Exit(1, None))) == Exit(1, None)


def test_kill_is_idempotent_and_harmless_later(child):
    child.kill()
    child.kill()
    assert child.exit(SECONDS) == Exit(None, 9)
    child.kill()
    assert child.exit() == Exit(None, 9)


def test_the_end_of_a_child_is_seen_while_its_sibling_lives(shared):
    first, second, third = (shared.start() for _ in range(3))
    second.kill()
    assert ended(second)
    assert ask(first, "alive") == ask(third, "alive") == "alive"
    first.close()
    third.close()
    assert (first.exit(0), third.exit(0)) == (Exit(0, None), Exit(0, None))


def test_many_threads_have_a_child_each(shared):
    ends = {}

    def work(number):
        child = shared.start()
        assert ask(child, f"{number}") == f"{number}"
        child.connection.send_bytes(f"exit {number}".encode())
        ends[number] = child.exit(SECONDS)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert ends == {number: Exit(number, None) for number in range(20)}


def test_many_threads_wait_for_one_child(shared):
    child = shared.start()
    ends = []
    threads = [threading.Thread(target=lambda: ends.append(child.exit(SECONDS))) for _ in range(10)]
    for thread in threads:
        thread.start()
    child.connection.send_bytes(b"exit 7")
    for thread in threads:
        thread.join(SECONDS)
    assert ends == [Exit(7, None)] * 10


def test_close_lets_a_child_return(child):
    child.close()
    assert child.exit(0) == Exit(0, None)
    child.close()


def test_close_wakes_a_thread_that_receives(child):
    seen = []

    def receive():
        seen.append("receiving")
        try:
            child.connection.recv_bytes()
        except (EOFError, OSError) as error:
            seen.append(type(error))

    thread = threading.Thread(target=receive)
    thread.start()
    child.close()
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert len(seen) == 2


def test_close_kills_a_child_that_does_not_return():
    nursery = ForkServer("fork_server_targets:deaf")
    child = nursery.start()
    child.close()
    assert child.exit(SECONDS) == Exit(None, 9)
    nursery.close()


def test_a_child_that_nobody_refers_to_is_killed(shared):
    child = shared.start()
    pid = child.pid
    del child
    assert vanished(pid)


def test_closing_a_nursery_ends_everything():
    nursery = ForkServer("fork_server_targets:deaf")
    children = [nursery.start() for _ in range(3)]
    zygote = zygote_of(children[0])
    nursery.close()
    assert [child.exit(SECONDS) for child in children] == [Exit(None, 9)] * 3
    assert all(ended(child) for child in children)
    assert vanished(zygote, *(child.pid for child in children))
    nursery.close()
    with pytest.raises(RuntimeError, match="closed"):
        nursery.start()


def test_a_nursery_that_nobody_refers_to_ends():
    nursery = ForkServer("fork_server_targets:deaf")
    child = nursery.start()
    zygote = zygote_of(child)
    del nursery
    assert child.exit(SECONDS) == Exit(None, 9)
    assert vanished(zygote)


def test_a_killed_zygote_takes_its_children_along_and_is_replaced(nursery):
    children = [nursery.start() for _ in range(2)]
    zygote = zygote_of(children[0])
    os.kill(zygote, signal.SIGKILL)
    assert [child.exit(SECONDS) for child in children] == [Exit(None, 9)] * 2
    assert all(ended(child) for child in children)
    assert vanished(*(child.pid for child in children))
    again = nursery.start()
    assert ask(again, "hello") == "hello"
    assert zygote_of(again) != zygote


PARENT = """
import sys, threading
sys.path[:] = {path!r}
from atomizer_dask.execution.quarantine.fork_server import ForkServer
nursery = ForkServer("fork_server_targets:deaf")
children = [nursery.start() for _ in range(2)]
import psutil
print(psutil.Process(children[0].pid).ppid(), *(child.pid for child in children), flush=True)
{then}
"""


def parent(then):
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(path=sys.path, then=then)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    return process, [int(pid) for pid in process.stdout.readline().split()]


def test_a_killed_owner_leaves_nothing_behind():
    process, pids = parent("sys.stdin.read()")
    assert len(pids) == 3
    process.kill()
    assert vanished(*pids)
    process.communicate()


def test_an_owner_that_ends_leaves_nothing_behind():
    process, pids = parent("")
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert vanished(*pids)


def test_ctrl_c_reaches_the_owner_only():
    process, pids = parent("signal = __import__('signal'); sys.stdin.readline(); sys.exit(5)")
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert all(psutil.Process(pid).is_running() for pid in pids)
    process.communicate("\n", timeout=SECONDS)
    assert process.returncode == 5
    assert vanished(*pids)


@pytest.mark.parametrize(
    ("target", "preload", "message"),
    [
        ("no_such_module:serve", (), "no_such_module"),
        ("fork_server_targets:no_such_function", (), "no_such_function"),
        ("fork_server_targets", (), "module:function"),
        ("fork_server_targets:serve", ("no_such_module",), "no_such_module"),
    ],
)
def test_what_cannot_be_imported_is_named(target, preload, message):
    nursery = ForkServer(target, preload)
    for _ in range(2):
        with pytest.raises(ImportError, match=message):
            nursery.start()
    nursery.close()


def test_a_zygote_that_cannot_start_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "_BOOT", "raise SystemExit(3)")
    nursery = ForkServer("fork_server_targets:serve")
    with pytest.raises(ChildProcessError, match="died while it started"):
        nursery.start()
    nursery.close()


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_a_daemonic_process_may_have_children(method):
    import fork_server_targets

    context = multiprocessing.get_context(method)
    answers, theirs = context.Pipe()
    process = context.Process(target=fork_server_targets.own, args=(theirs,), daemon=True)
    process.start()
    assert answers.poll(SECONDS)
    pid, answer = answers.recv()
    assert answer == b"hello"
    process.join(SECONDS)
    assert process.exitcode == 0
    assert vanished(pid)


def test_a_forked_copy_of_the_owner_leaves_its_zygote_alone(nursery):
    import fork_server_targets

    child = nursery.start()
    context = multiprocessing.get_context("fork")
    answers, theirs = context.Pipe()
    process = context.Process(target=fork_server_targets.forked, args=(nursery, child, theirs))
    process.start()
    assert answers.poll(SECONDS)
    assert answers.recv() == ("unknown exit", b"copy")
    process.join(SECONDS)
    assert process.exitcode == 0
    assert ask(child, "still here") == "still here"
    assert ask(nursery.start(), "again") == "again"


def test_a_forked_copy_keeps_no_child_alive(nursery):
    child = nursery.start()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=signal.pause)
    process.start()
    nursery.close()
    assert ended(child)
    assert child.exit(SECONDS) == Exit(None, 9)
    process.kill()
    process.join(SECONDS)


@linux
def test_a_child_holds_no_handles_but_its_own(shared):
    children = [shared.start() for _ in range(4)]
    handles = [ask(child, "handles").split() for child in children]
    sockets = [{one for one in kinds if one.startswith("socket")} for kinds in handles]
    assert [len(one) for one in sockets] == [1] * 4
    assert len(set.union(*sockets)) == 4
    for child in children:
        child.close()


@linux
def test_no_handle_is_left_in_owner_or_zygote(nursery):
    def count():
        first = nursery.start()
        counts = psutil.Process().num_fds(), psutil.Process(zygote_of(first)).num_fds()
        first.close()
        return counts

    gc.collect()  # children of other tests, which raised errors hold in cycles
    before = count()
    for _ in range(40):
        nursery.start().close()
    gc.collect()
    # Not the very number: the cluster of other tests is in this process, and has connections.
    assert all(now < then + 10 for now, then in zip(count(), before, strict=True))


def test_children_draw_different_random_numbers(shared):
    children = [shared.start() for _ in range(3)]
    states = [ask(child, "state").split() for child in children]
    assert all(len(set(numbers)) == 3 for numbers in zip(*states, strict=True))
    for child in children:
        child.close()


def test_children_of_who_heeds_sigterm_leave_it_to_that_when_to_end(nursery):
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        child = nursery.start()
    finally:
        signal.signal(signal.SIGTERM, before)
    os.kill(child.pid, signal.SIGTERM)
    os.kill(zygote_of(child), signal.SIGTERM)
    assert ask(child, "hello") == "hello"
    assert ask(child, "terminates") == str(-signal.SIGTERM)  # what is forked from it is ended by it


def test_a_child_ignores_ctrl_c_and_heeds_sigterm(child):
    assert ask(child, "signals") == "SIG_IGN SIG_DFL"
    os.kill(child.pid, signal.SIGTERM)
    assert child.exit(SECONDS) == Exit(None, 15)


@linux
def test_a_child_is_the_first_that_the_kernel_takes(child):
    assert ask(child, "oom") == "1000"


def test_a_child_works_where_its_owner_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nursery = ForkServer("fork_server_targets:serve")
    assert ask(nursery.start(), "where") == str(tmp_path.resolve())
    nursery.close()
