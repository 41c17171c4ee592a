"""Child processes that may die alone.

A process that wants children has a `ForkServer`. It starts one helper, the server: a process of a
single thread that imports what children need once, and forks a child in milliseconds when asked
(what ``multiprocessing`` calls a fork server; ours also serves daemonic processes, and never
imports the user's ``__main__``). Who holds what::

    owner  --control-->  server         one byte and three descriptors ask for a child
    owner  <--life---->  server         one per child: its pid, then its exit; hanging up kills it
    owner  <--connection, cursor--> child

The server reaps, so only it knows whether a pid is still the child's: only it kills. When the
owner dies, control ends and the server kills the children; when the server dies, the kernel does.
Each child leads a process group of its own, so that what it has started is killed with it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from atomizer_dask.execution.quarantine.signals import blocked

if TYPE_CHECKING:
    Link = Connection[Any, Any]


_CURSOR_BYTES = 2**14  # a few doubles, and a text: see `last_words`
_CHILD_SECONDS = 1.0  # for a child to return once its connection is closed
_SERVER_SECONDS = 5.0  # for the server to reap its children
_BOOT = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from atomizer_dask.execution.quarantine.fork_server_loop import run_server; "
    "run_server(*sys.argv[1:4])"
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


class ChildProcess:
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
                # One of many waiting threads gets the message; the end of file wakes the others.
                if self._exit is None:
                    self._exit = self._receive_exit()
        return self._exit

    def close(self) -> None:
        """Close the connection, upon which the child returns; kill it after a second."""
        if not self.connection.closed:
            # A plain close would neither wake a thread that is receiving, nor reach the child.
            _hang_up(self.connection, socket.SHUT_RDWR)
            self.connection.close()
        if self.exit(_CHILD_SECONDS) is None:
            self.kill()

    def _receive_exit(self) -> Exit:
        try:
            code = self._life.recv()
        except (EOFError, ConnectionResetError):  # the server was killed, and its children with it
            return Exit(None, int(signal.SIGKILL))
        return Exit(None, -code) if code < 0 else Exit(code, None)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._exit = self._exit or Exit(None, None)
        self.connection.close()
        self._life.close()


class ForkServer:
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
        self._server: _ServerProcess | None = None
        self._end = weakref.finalize(self, _nothing)  # ends the server, once
        self._closed = False
        # A fork (by multiprocessing, by users) must not copy descriptors of a half-started child:
        # while the copy lives, neither side would see the other's end. So it waits for the lock.
        server = weakref.ref(self)
        os.register_at_fork(
            before=lambda: _with(server, lambda self: self._lock.acquire()),
            after_in_parent=lambda: _with(server, lambda self: self._lock.release()),
            after_in_child=lambda: _with(server, ForkServer._forget),
        )

    def start(self) -> ChildProcess:
        """Start a child; the first also starts the server, which takes as long as the imports.

        Raises
        ------
        ImportError
            Where the target or a module to preload cannot be imported.
        ChildProcessError
            Where the server dies while it starts.
        RuntimeError
            Where it is closed.
        OSError
            Where the system is out of processes, memory or descriptors.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("this fork server is closed; make a new one")
            child = self._server.start() if self._server is not None else None
            if child is None:  # there is no server yet, or it was killed
                self._end()
                self._server = _ServerProcess(self.target, self.preload)
                self._end = weakref.finalize(self, self._server.close)
                child = self._server.start()
            if child is None:
                raise ChildProcessError(
                    f"the process that should fork children for {self.target!r} died while it "
                    "started; its stderr says why"
                )
            return child

    def close(self) -> None:
        """Kill all children and end the server."""
        with self._lock:
            self._closed = True
            self._end()

    def _forget(self) -> None:
        self._lock = threading.RLock()
        if self._server is not None:
            self._end.detach()
            self._server.forget()
            self._server = None


class _ServerProcess:
    """The owner's handle of the process that forks."""

    def __init__(self, target: str, preload: tuple[str, ...]) -> None:
        self._children: weakref.WeakSet[ChildProcess] = weakref.WeakSet()
        self._control, theirs = socket.socketpair()
        path = [str(entry) for entry in sys.path]
        arguments = [str(theirs.fileno()), target, ",".join(preload), *path]
        # The new process inherits the mask of this thread: Ctrl-C cannot hit it before it is able
        # to ignore it. No PR_SET_PDEATHSIG here: it would fire when the starting *thread* ends.
        heeded = [signal.SIGINT]
        if signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None):
            heeded.append(signal.SIGTERM)  # this process handles it, and ends its children in time
        with theirs, blocked(*heeded):
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                close_fds=True,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )

    def start(self) -> ChildProcess | None:
        """Return a new child, or None where the server is dead."""
        connection, theirs = Pipe()
        life, servers = Pipe()
        memory = _shared_memory()
        try:
            cursor = mapped_cursor(memory)
            handles = [theirs.fileno(), servers.fileno(), memory]
            socket.send_fds(self._control, [b"+"], handles)
            theirs.close()
            servers.close()  # or a server that dies would leave us waiting
            reply = life.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return None
        finally:
            os.close(memory)
        if isinstance(reply, Exception):
            raise reply
        child = ChildProcess(reply, connection, cursor, life)
        self._children.add(child)
        return child

    def close(self) -> None:
        """End the process and its children."""
        _hang_up(self._control, socket.SHUT_RDWR)
        self._control.close()
        try:
            self._process.wait(_SERVER_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """Drop the handles in a forked process: server and children belong to its parent."""
        self._control.close()
        self._process.returncode = 0  # so that Popen does not wait: it is no child of ours
        for child in list(self._children):
            child._forget()


def _hang_up(link: Link | socket.socket, how: int) -> None:
    # Some systems raise OSError where the other end is gone already.
    with socket.socket(fileno=os.dup(link.fileno())) as end, contextlib.suppress(OSError):
        end.shutdown(how)


def _shared_memory() -> int:
    if sys.platform == "linux":
        handle = os.memfd_create("cursor")
    else:
        handle, path = tempfile.mkstemp()
        os.unlink(path)
    os.ftruncate(handle, _CURSOR_BYTES)
    return handle


def mapped_cursor(handle: int) -> memoryview[float]:
    """Return the doubles that a child and its owner share."""
    return memoryview(mmap.mmap(handle, _CURSOR_BYTES)).cast("d")


def _nothing() -> None:
    pass


def _with(server: weakref.ref[ForkServer], action: Callable[[ForkServer], object]) -> None:
    owner = server()
    if owner is not None:
        action(owner)
