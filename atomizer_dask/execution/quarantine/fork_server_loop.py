"""The process that forks children for a `ForkServer`: single-threaded, it reaps and kills them."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import selectors
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NoReturn

from atomizer_dask.execution.quarantine.fork_server import mapped_cursor
from atomizer_dask.execution.quarantine.signals import end_group, heed_not

if TYPE_CHECKING:
    Link = Connection[Any, Any]

_POLL_SECONDS = 1.0  # how often the server looks whether its owner is still its parent
_PR_SET_PDEATHSIG = 1


class _ForkServerLoop:
    """The server's loop: it forks children, kills those that the owner hangs up on, and reaps."""

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
        # A process that a killed owner had forked may still hold the owner's end of control.
        while self._open and os.getppid() == owner:
            for key, _ in self._selector.select(_POLL_SECONDS):
                key.data()
        for pid in self._lives:
            end_group(pid)
        for pid, life in self._lives.items():
            _send(life, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
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
        _send(life, reply)
        if isinstance(reply, int):
            with contextlib.suppress(OSError):  # the child has done so itself, or is gone
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
                end_group(pid)  # processes that the child started and did not wait for
                life = self._lives.pop(pid)
                if life in self._selector.get_map():
                    self._selector.unregister(life)
                _send(life, os.waitstatus_to_exitcode(status))
                life.close()

    def _live(self, connection: Link, life: Link, memory: int) -> NoReturn:
        code = 1
        try:
            self._leave(life)
            cursor = mapped_cursor(memory)
            os.close(memory)
            self._target(connection, cursor)
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:  # noqa: BLE001 - nothing may unwind into the server's loop
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code & 0xFF)

    def _leave(self, life: Link) -> None:
        """Become a process of its own: drop what belongs to the server and to siblings."""
        os.setpgid(0, 0)
        self._die_with_server()
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
        if "numpy.random" in sys.modules:  # os.fork gives a new state to `random`, but not to NumPy
            sys.modules["numpy.random"].seed()

    def _die_with_server(self) -> None:
        if hasattr(self._libc, "prctl"):
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        else:
            threading.Thread(target=_die_at_end_of, args=self._lifeline[:1], daemon=True).start()
        if os.getppid() != self._pid:  # the server died before prctl
            os._exit(1)


def run_server(control: str, target: str, preload: str) -> NoReturn:
    """Be a server: the main function of the process that a `ForkServer` starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or a terminal might stop it for printing
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    if signal.SIGTERM in mask:  # the owner handles it; a service manager signals all processes
        signal.signal(signal.SIGTERM, heed_not)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    del sys.argv[1:]
    owner = socket.socket(fileno=int(control))
    owner.set_inheritable(False)
    try:
        for name in filter(None, preload.split(",")):
            importlib.import_module(name)
        function = _imported(target)
    except Exception:  # noqa: BLE001 - whatever an import raises, the owner has it
        _refuse(owner, f"cannot import {target!r} for child processes:\n{traceback.format_exc()}")
    else:
        # Threads of OpenBLAS know about forks, and Python has none here.
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        _ForkServerLoop(owner, function).serve()
    os._exit(0)


def _have_forks_heed_sigterm() -> None:
    """Have processes forked from here end at SIGTERM, by which multiprocessing terminates them."""
    signals = [signal.SIGTERM]

    def heed() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, signals),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, signals),
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
        _send(Connection(request[1]), ImportError(reason))


def _receive_handles(control: socket.socket) -> list[int] | None:
    message, handles, _, _ = socket.recv_fds(control, 1, 3)
    for handle in handles:
        os.set_inheritable(handle, False)
    return handles if message else None


def _send(life: Link, value: object) -> None:
    # An owner that has dropped its child has closed the connection.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        life.send(value)


def _die_at_end_of(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGKILL)
