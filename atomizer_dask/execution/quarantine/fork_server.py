"""Child processes that may die alone.

A process that wants children has a `Nursery`. It starts one helper, the zygote: a single-threaded
process that imports what children need once and forks a child in milliseconds whenever it is asked
(what ``multiprocessing`` calls a fork server; ours also serves daemonic processes, and never
imports the user's ``__main__``). Who holds what::

    owner  --control-->  zygote         one byte and three descriptors ask for a child
    owner  <--life---->  zygote         one per child: its pid, then its exit; hanging up kills it
    owner  <--connection, cursor--> child

The zygote reaps, so only it knows whether a pid is still the child's: only it kills. When the
owner dies, control ends and the zygote kills the children; when the zygote dies, the kernel does.
Each child leads a process group of its own, so that what it has started is killed with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import mmap
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import psutil

if TYPE_CHECKING:
    Link = Connection[Any, Any]


_CURSOR_BYTES = 32  # four doubles
_CHILD_SECONDS = 1.0  # for a child to return once its connection is closed
_ZYGOTE_SECONDS = 5.0  # for the zygote to reap its children
_LOOK_SECONDS = 1.0  # how often the zygote looks whether its owner is still its parent
_PR_SET_PDEATHSIG = 1
_BOOT = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from atomizer_dask.execution.quarantine.fork_server import run_zygote; "
    "run_zygote(*sys.argv[1:4])"
)


class Exit(NamedTuple):
    """How a child ended; both are None where nobody can know.

    >>> str(Exit(1, None)), str(Exit(None, 11))
    ('exit code 1', 'killed by signal 11 (SIGSEGV)')
    """

    code: int | None
    signal: int | None

    def __str__(self) -> str:
        if self.signal is None:
            return "unknown exit" if self.code is None else f"exit code {self.code}"
        names = {one.value: one.name for one in signal.Signals}
        return f"killed by signal {self.signal} ({names.get(self.signal, 'unnamed')})"


class Child:
    """A child process; it is killed when nobody refers to this any more.

    Attributes
    ----------
    pid
        Its process id.
    connection
        To the main function of the child. It ends (`EOFError`) when the child dies.
    cursor
        Four doubles in memory that the child shares.
    """

    def __init__(self, pid: int, connection: Link, cursor: memoryview[float], life: Link) -> None:
        self.pid = pid
        self.connection = connection
        self.cursor = cursor
        self._life = life
        self._exit: Exit | None = None
        self._lock = threading.Lock()

    def memory(self) -> int:
        """Return the resident bytes of the child now, 0 when it is gone."""
        if self.exit(0) is not None:
            return 0
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    def kill(self) -> None:
        """Have the child killed (SIGKILL), without waiting; a child that is gone stays gone."""
        if self._exit is None:
            _hang_up(self._life, socket.SHUT_WR)

    def exit(self, timeout: float | None = None) -> Exit | None:
        """Wait for the child to end, for `timeout` seconds at most; None where it still runs."""
        if self._exit is None and self._life.poll(timeout):
            with self._lock:
                # Of many waiting threads one gets the message, the others woke by the end of file.
                if self._exit is None:
                    self._exit = self._receive_exit()
        return self._exit

    def close(self) -> None:
        """Close the connection, which tells the child to return; kill it after a second."""
        if not self.connection.closed:
            # A plain close would neither wake a thread that is receiving, nor reach the child.
            _hang_up(self.connection, socket.SHUT_RDWR)
            self.connection.close()
        if self.exit(_CHILD_SECONDS) is None:
            self.kill()

    def _receive_exit(self) -> Exit:
        try:
            code = self._life.recv()
        except (EOFError, ConnectionResetError):  # the zygote was killed, and its children with it
            return Exit(None, int(signal.SIGKILL))
        return Exit(None, -code) if code < 0 else Exit(code, None)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._exit = self._exit or Exit(None, None)
        self.connection.close()
        self._life.close()


class Nursery:
    """Starts child processes of one kind; thread-safe, and nothing of it outlives its process.

    Children see the environment, working directory and ``sys.path`` of the first `start`.

    Parameters
    ----------
    target
        The main function of a child, as ``"module:function"``. It is called with the child's end
        of the connection and of the cursor, and should return when the connection ends.
    preload
        Modules to import before the first child, besides the one of `target`.
    """

    def __init__(self, target: str, preload: Iterable[str] = ()) -> None:
        self.target = target
        self.preload = tuple(preload)
        self._lock = threading.RLock()
        self._zygote: _Zygote | None = None
        self._end = weakref.finalize(self, _nothing)  # ends the zygote, once
        self._closed = False
        # A fork (by multiprocessing, by users) must not copy descriptors of a half-started child:
        # while the copy lives, neither side would see the other's end. So it waits for the lock.
        nursery = weakref.ref(self)
        os.register_at_fork(
            before=lambda: _with(nursery, lambda self: self._lock.acquire()),
            after_in_parent=lambda: _with(nursery, lambda self: self._lock.release()),
            after_in_child=lambda: _with(nursery, Nursery._forget),
        )

    def start(self) -> Child:
        """Start a child; the first also starts the zygote, which takes as long as the imports.

        Raises
        ------
        ImportError
            Where the target or a module to preload cannot be imported.
        ChildProcessError
            Where the zygote dies while it starts.
        RuntimeError
            Where the nursery is closed.
        OSError
            Where the system is out of processes, memory or descriptors.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("this nursery is closed; make a new one")
            child = self._zygote.start() if self._zygote is not None else None
            if child is None:  # there is no zygote yet, or it was killed
                self._end()
                self._zygote = _Zygote(self.target, self.preload)
                self._end = weakref.finalize(self, self._zygote.close)
                child = self._zygote.start()
            if child is None:
                raise ChildProcessError(
                    f"the process that should fork children for {self.target!r} died while it "
                    "started; its stderr says why"
                )
            return child

    def close(self) -> None:
        """Kill all children and end the zygote."""
        with self._lock:
            self._closed = True
            self._end()

    def _forget(self) -> None:
        self._lock = threading.RLock()
        if self._zygote is not None:
            self._end.detach()
            self._zygote.forget()
            self._zygote = None


class _Zygote:
    """The owner's handle of the process that forks."""

    def __init__(self, target: str, preload: tuple[str, ...]) -> None:
        self._children: weakref.WeakSet[Child] = weakref.WeakSet()
        self._control, theirs = socket.socketpair()
        path = [str(entry) for entry in sys.path]
        arguments = [str(theirs.fileno()), target, ",".join(preload), *path]
        # The new process inherits the mask of this thread: Ctrl-C cannot hit it before it is able
        # to ignore it. No PR_SET_PDEATHSIG here: it would fire when the starting *thread* ends.
        heeded = [signal.SIGINT]
        if signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None):
            heeded.append(signal.SIGTERM)  # by us, who see to it that children end when it is time
        with theirs, blocked(*heeded):
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                close_fds=True,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )

    def start(self) -> Child | None:
        """Return a new child, or None where the zygote is dead."""
        connection, theirs = Pipe()
        life, zygotes = Pipe()
        memory = _shared_memory()
        try:
            cursor = _mapped(memory)
            handles = [theirs.fileno(), zygotes.fileno(), memory]
            socket.send_fds(self._control, [b"+"], handles)
            theirs.close()
            zygotes.close()  # or a zygote that dies would leave us waiting
            reply = life.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return None
        finally:
            os.close(memory)
        if isinstance(reply, Exception):
            raise reply
        child = Child(reply, connection, cursor, life)
        self._children.add(child)
        return child

    def close(self) -> None:
        """End the process and its children."""
        _hang_up(self._control, socket.SHUT_RDWR)
        self._control.close()
        try:
            self._process.wait(_ZYGOTE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """Give up what is another process's, in a forked copy of that process."""
        self._control.close()
        self._process.returncode = 0  # to Popen: not ours to wait for
        for child in list(self._children):
            child._forget()


class _Brood:
    """The children, in the zygote."""

    def __init__(self, control: socket.socket, target: Callable[..., object]) -> None:
        self._control = control
        self._target = target
        self._open = True
        self._pid = os.getpid()
        self._lives: dict[int, Link] = {}
        self._libc = ctypes.CDLL(None)
        self._lifeline = os.pipe()
        self._wake, wakes = os.pipe()
        self._own = [self._wake, wakes, self._lifeline[1]]
        os.set_blocking(wakes, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        # Not epoll: a set of it would be shared with every fork.
        self._selector = selectors.PollSelector()
        self._selector.register(control, selectors.EVENT_READ, self._receive)
        self._selector.register(self._wake, selectors.EVENT_READ, self._reap)

    def serve(self) -> None:
        """Fork, kill and reap until the owner is gone."""
        owner = os.getppid()
        # What an owner that was killed had forked may still hold its end of control.
        while self._open and os.getppid() == owner:
            for key, _ in self._selector.select(_LOOK_SECONDS):
                key.data()
        for pid in self._lives:
            end_group(pid)
        for pid, life in self._lives.items():
            _tell(life, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            end_group(pid)

    def _receive(self) -> None:
        request = _receive_handles(self._control)
        if request is None:
            self._open = False
            return
        connection, life, memory = Connection(request[0]), Connection(request[1]), request[2]
        try:
            reply: int | OSError = os.fork()
        except OSError as error:
            reply = error
        if reply == 0:
            self._live(connection, life, memory)
        connection.close()
        os.close(memory)
        _tell(life, reply)
        if isinstance(reply, int):
            with contextlib.suppress(OSError):  # it has done so itself, or is gone
                os.setpgid(reply, reply)
            self._lives[reply] = life
            self._selector.register(life, selectors.EVENT_READ, partial(self._kill, reply))
        else:
            life.close()

    def _kill(self, pid: int) -> None:
        if pid in self._lives:  # not reaped in this very round
            self._selector.unregister(self._lives[pid])
            end_group(pid)

    def _reap(self) -> None:
        os.read(self._wake, 4096)
        for pid in list(self._lives):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                end_group(pid)  # what it had started and did not wait for
                life = self._lives.pop(pid)
                if life in self._selector.get_map():
                    self._selector.unregister(life)
                _tell(life, os.waitstatus_to_exitcode(status))
                life.close()

    def _live(self, connection: Link, life: Link, memory: int) -> NoReturn:
        code = 1
        try:
            self._leave(life)
            cursor = _mapped(memory)
            os.close(memory)
            self._target(connection, cursor)
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:  # noqa: BLE001 - nothing may unwind into the zygote's loop
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code & 0xFF)

    def _leave(self, life: Link) -> None:
        """Become a process of its own: nothing of the zygote, nothing of siblings."""
        os.setpgid(0, 0)
        self._die_with_zygote()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if signal.getsignal(signal.SIGTERM) is heed_not:
            _have_forks_heed_sigterm()
        else:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._selector.close()
        self._control.close()
        for other in (life, *self._lives.values()):
            other.close()
        for handle in self._own:
            os.close(handle)
        # So that the kernel, out of memory, takes a child and not its owner.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
        if "numpy.random" in sys.modules:  # os.fork gives the stdlib's random a new state, not this
            sys.modules["numpy.random"].seed()

    def _die_with_zygote(self) -> None:
        if hasattr(self._libc, "prctl"):
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        else:
            threading.Thread(target=_die_at_end_of, args=self._lifeline[:1], daemon=True).start()
        if os.getppid() != self._pid:  # it died before we asked to be told
            os._exit(1)


def run_zygote(control: str, target: str, preload: str) -> NoReturn:
    """Be a zygote: the main function of the process that a `Nursery` starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or a terminal might stop it for printing
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    if signal.SIGTERM in mask:  # which its owner heeds: whoever stops a service tells all of it
        signal.signal(signal.SIGTERM, heed_not)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    del sys.argv[1:]
    owner = socket.socket(fileno=int(control))
    owner.set_inheritable(False)
    try:
        for name in filter(None, preload.split(",")):
            importlib.import_module(name)
        function = _imported(target)
    except Exception:  # noqa: BLE001 - whatever an import raises, the owner is told
        _refuse(owner, f"cannot import {target!r} for child processes:\n{traceback.format_exc()}")
    else:
        # Threads of OpenBLAS know about forks, and Python has none here.
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        _Brood(owner, function).serve()
    os._exit(0)


def heed_not(number: int, frame: object) -> None:
    """Do nothing at a signal; unlike ignoring it, programs that are started from here heed it."""


@contextlib.contextmanager
def blocked(*numbers: int) -> Iterator[None]:
    """Block signals in this thread, and so in a process that it starts, until that is ready."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def end_group(leader: int) -> None:
    """Kill a process group, where there is still somebody in it."""
    # The latter error is macOS's for a group of zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _have_forks_heed_sigterm() -> None:
    """Have what is forked from here end where it is told, as multiprocessing does in the end."""
    told = [signal.SIGTERM]

    def heed() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, told)

    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, told),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, told),
        after_in_child=heed,
    )


def _imported(target: str) -> Callable[..., object]:
    module, _, name = target.partition(":")
    function: Callable[..., object] | None = getattr(importlib.import_module(module), name, None)
    if function is None:
        raise ImportError(f"expected 'module:function', but {module!r} has no function {name!r}")
    return function


def _refuse(owner: socket.socket, reason: str) -> None:
    request = _receive_handles(owner)
    if request is not None:
        _tell(Connection(request[1]), ImportError(reason))


def _receive_handles(control: socket.socket) -> list[int] | None:
    message, handles, _, _ = socket.recv_fds(control, 1, 3)
    for handle in handles:
        os.set_inheritable(handle, False)
    return handles if message else None


def _tell(life: Link, value: object) -> None:
    # An owner that has dropped its child does not listen.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        life.send(value)


def _hang_up(link: Link | socket.socket, how: int) -> None:
    # Some systems object where the other end is gone already.
    with socket.socket(fileno=os.dup(link.fileno())) as end, contextlib.suppress(OSError):
        end.shutdown(how)


def _die_at_end_of(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _shared_memory() -> int:
    if sys.platform == "linux":
        handle = os.memfd_create("cursor")
    else:
        handle, path = tempfile.mkstemp()
        os.unlink(path)
    os.ftruncate(handle, _CURSOR_BYTES)
    return handle


def _mapped(handle: int) -> memoryview[float]:
    return memoryview(mmap.mmap(handle, _CURSOR_BYTES)).cast("d")


def _nothing() -> None:
    pass


def _with(nursery: weakref.ref[Nursery], action: Callable[[Nursery], object]) -> None:
    owner = nursery()
    if owner is not None:
        action(owner)
