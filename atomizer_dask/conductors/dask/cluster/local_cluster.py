"""The local cluster that a conductor starts: processes that live and die with this one.

Dask's own nannies start workers as `multiprocessing` starts any process, which has three effects
that users of a local cluster meet: a worker imports the user's ``__main__``, so that a script
without a guard starts a cluster in each worker; it belongs to the terminal's process group, so
that Ctrl-C ends it; and it is daemonic, so that an atom cannot start processes. Here a worker

- imports what an electron needs, and never ``__main__``, whose functions travel by value;
- leads a process group of its own and goes on at SIGINT, from its first instruction;
- may have children, which are killed with it, however it ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from multiprocessing import context, popen_spawn_posix, reduction, resource_tracker, spawn, util
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any, ClassVar

import dask
from distributed import LocalCluster, Nanny
from distributed.comm import CommClosedError
from distributed.deploy import Cluster
from distributed.nanny import WorkerProcess
from distributed.process import AsyncProcess

from atomizer_dask.execution.quarantine.signals import blocked, end_group, heed_not
from atomizer_dask.interruptible import result_of

GRACE = 0.6  # of the time that Dask gives a worker to end; Dask warns after 0.8 of it
QUIET_SECONDS = 5.0  # after a cluster has closed, in which its connections log that they end
TRIM, MMAP = "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"
DASKS_TRIM_BYTES = "65536"  # of which Dask's allocator keeps no more
KEPT_BYTES = 2**28
MMAP_BYTES = 2**25  # the most that the C library takes; larger arrays have pages of their own
POLL_SECONDS = 1.0  # how often a worker looks whether this process is still its parent


def check_main_is_done() -> None:
    """Raise where this process is a child that imports its parent's main module while starting.

    Raises
    ------
    RuntimeError
        Naming the guard that the main module lacks.
    """
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):
        main = sys.modules.get("__mp_main__", sys.modules["__main__"])
        where = getattr(main, "__file__", None) or "the main module"
        raise RuntimeError(
            f"{process.name!r} imports {where} while it starts, and thereby comes to "
            "DaskConductor(): put what shall happen once under `if __name__ == '__main__':`. "
            "Processes that multiprocessing or a LocalCluster of your own starts import it; those "
            "that DaskConductor() starts do not"
        )


def start_cluster(**options: Any) -> OwnCluster:
    """Start a cluster, in a thread of its own: else Ctrl-C would leave half a cluster behind."""
    with ThreadPoolExecutor(1, "atomizer-start") as thread:
        starting = thread.submit(OwnCluster, **options)
        try:
            return result_of(starting)
        except BaseException:
            if starting.exception() is None:
                starting.result().close()
            raise


class OwnCluster(LocalCluster):  # type: ignore[misc]
    """A LocalCluster of `OwnNanny`, which restart their workers however often these die.

    Dask's own gives up a worker that happens to be away 15 seconds after any of its deaths.
    """

    def __init__(self, **options: Any) -> None:
        _Quiet.begin(self)
        super().__init__(worker_class=OwnNanny, **options)

    def _update_worker_status(self, op: str, msg: Any) -> None:
        Cluster._update_worker_status(self, op, msg)


class _Quiet(logging.Filter):
    """Drops log records of clusters below warnings, as Dask does while there is a cluster.

    Dask changes the level of handlers for that. Of two clusters the first to close changes it
    back, and some records come after the last has closed.
    """

    _filter: ClassVar[_Quiet | None] = None

    def __init__(self) -> None:
        super().__init__()
        self._clusters: weakref.WeakSet[OwnCluster] = weakref.WeakSet()
        self._until = 0.0

    @classmethod
    def begin(cls, cluster: OwnCluster) -> None:
        """Drop such records until a cluster has closed, and for `QUIET_SECONDS` after that."""
        cls._filter = cls._filter or cls()
        cls._filter._clusters.add(cluster)
        for handler in logging.getLogger("distributed").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.addFilter(cls._filter)  # adds it only once

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is a warning, or there is no cluster of ours.

        Two warnings are dropped: of a nanny that was cancelled, as it closed while its worker ended
        by itself, and of a scheduler that got a heartbeat of a worker that had left.
        """
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, asyncio.CancelledError):
            return False
        late = "Received heartbeat from unregistered worker"
        if record.levelno >= logging.WARNING and not str(record.msg).startswith(late):
            return True
        closed = "closed", "failed"
        if any(getattr(cluster.status, "name", "") not in closed for cluster in self._clusters):
            self._until = monotonic() + QUIET_SECONDS
        return monotonic() > self._until


class OwnNanny(Nanny):  # type: ignore[misc]
    """A nanny that starts its worker as an `_OwnWorkerProcess`, wherever Dask makes one.

    The worker keeps freed memory for the next array, up to `KEPT_BYTES`. As Dask sets the
    allocator, each array has new pages from the kernel, which takes longer than to fill them.
    """

    def __init__(self, *args: Any, env: dict[str, str] | None = None, **options: Any) -> None:
        super().__init__(*args, env={**_allocator(), **(env or {})}, **options)

    @property
    def process(self) -> WorkerProcess | None:
        """The worker's process."""
        return self._process

    @process.setter
    def process(self, process: WorkerProcess | None) -> None:
        if process is not None:
            process.__class__ = _OwnWorkerProcess
        self._process = process


def _allocator() -> dict[str, str]:
    """Return settings of the C library's allocator, where the user has made none."""
    configured = dask.config.get("distributed.nanny.pre-spawn-environ")
    theirs = {**configured, **os.environ}
    if str(theirs.get(TRIM)) != DASKS_TRIM_BYTES or MMAP in theirs:
        return {}
    return {TRIM: str(KEPT_BYTES), MMAP: str(MMAP_BYTES)}


class _OwnWorkerProcess(WorkerProcess):  # type: ignore[misc]
    """A worker's process, which `_Launch` starts instead of multiprocessing."""

    @property
    def process(self) -> AsyncProcess | None:
        return self.__dict__["process"]

    @process.setter
    def process(self, process: AsyncProcess | None) -> None:
        if process is not None:
            starting = process._process
            starting._Popen = partial(_Launch, self.env)
            starting._target = _OwnProcess._run
        self.__dict__["process"] = process

    async def kill(self, timeout: float = 5, *args: Any, **options: Any) -> None:
        """End the process; kill it where an electron takes longer, before Dask warns of that."""
        group = None if self.process is None else self.process.pid
        end = asyncio.get_running_loop().call_later(timeout * GRACE, _end, group)
        try:
            await super().kill(timeout, *args, **options)
        finally:
            end.cancel()


def _end(group: int | None) -> None:
    if group is not None:
        end_group(group)


class _Launch(popen_spawn_posix.Popen):
    """Starts a process as multiprocessing's ``spawn`` does, except as this module promises.

    Parameters
    ----------
    env
        Environment variables of the new process, besides those of this one.
    process
        The process object to start, whose attribute `_Popen` makes this object.
    """

    def __init__(self, env: dict[str, str], process: Any) -> None:
        self._env = env
        super().__init__(process)

    def _launch(self, process: Any) -> None:
        del process._Popen  # the new process does not need it, and could not unpickle it
        payload = self._pickled(process)
        self.sentinel, theirs = os.pipe()
        source, sink = os.pipe()
        tracker = resource_tracker.getfd()
        handles = [*self._fds, tracker, source, theirs]  # type: ignore[attr-defined]
        command = spawn.get_command_line(tracker_fd=tracker, pipe_handle=source)
        try:
            with blocked(signal.SIGINT):
                started = subprocess.Popen(  # noqa: S603 - our own interpreter
                    command, pass_fds=handles, process_group=0, env={**os.environ, **self._env}
                )
        finally:
            os.close(source)
            os.close(theirs)
            ends = self.sentinel, sink
            self.finalizer = util.Finalize(self, util.close_fds, ends)  # type: ignore[attr-defined]
        self.pid = started.pid
        started.returncode = 0  # so that `started` does not wait for the process
        with open(sink, "wb", closefd=False) as file:
            file.write(payload)

    def _pickled(self, process: Any) -> memoryview:
        preparation = spawn.get_preparation_data(process.name)
        for name in ("init_main_from_name", "init_main_from_path"):
            preparation.pop(name, None)
        payload = BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(preparation, payload)
            reduction.dump(process, payload)
        finally:
            context.set_spawning_popen(None)
        return payload.getbuffer()

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Return the exit code where the process has ended, and end its group."""
        if self.returncode is None and super().poll(flag) is not None:
            end_group(self.pid)
        return self.returncode


class _OwnProcess(AsyncProcess):  # type: ignore[misc]
    """The code that the new process executes before Dask's own."""

    @classmethod
    def _run(cls, *args: Any) -> None:
        for name in ("distributed", "tornado.application"):
            for handler in logging.getLogger(name).handlers:
                handler.addFilter(is_news)
        multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
        signal.signal(signal.SIGINT, heed_not)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or a terminal might stop it for printing
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        try:
            super()._run(*args)
        finally:
            for child in multiprocessing.active_children():  # or multiprocessing would join them
                if child.pid is not None:  # not child.kill(): joblib's children lack it
                    os.kill(child.pid, signal.SIGKILL)

    @classmethod
    def _immediate_exit_when_closed(cls, parent_alive_pipe: Connection) -> None:
        """Have the process group end with the parent, even if an atom holds the interpreter."""
        if hasattr(fcntl, "F_SETSIG"):  # the kernel itself kills the group
            handle = parent_alive_pipe.fileno()
            fcntl.fcntl(handle, fcntl.F_SETOWN, -os.getpgrp())
            fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGKILL)
            flags = fcntl.fcntl(handle, fcntl.F_GETFL)
            fcntl.fcntl(handle, fcntl.F_SETFL, flags | os.O_ASYNC)
        watch = partial(_end_with, multiprocessing.parent_process(), parent_alive_pipe)
        threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def is_news(record: logging.LogRecord) -> bool:
    """Return whether a record of a worker's log says more than that the worker closes.

    A worker may learn that twice at once: from its nanny, and from a connection that ends.
    """
    error = record.exc_info[1] if record.exc_info else None
    if record.levelno < logging.WARNING or str(error) == "ConnectionPool is closed":
        return False
    message = record.getMessage()
    if message.startswith("Failed to communicate with scheduler during heartbeat"):
        return not isinstance(error, CommClosedError)  # the client closes, with the scheduler in it
    if message.startswith("Async instruction for <Task cancelled"):
        return not message.endswith("ended with CancelledError")
    return message not in (
        "Invalid Worker.status transition: Status.closing -> Status.closing_gracefully",
        "Scheduler was unaware of this worker; shutting down.",
    )


def _end_with(parent: Any, pipe: Connection) -> None:
    """Kill this process group once its parent is gone.

    The pipe alone does not show that: a fork of the parent has a copy that keeps it open.
    """
    while os.getppid() == parent.pid and not pipe.poll(POLL_SECONDS):
        pass
    os.killpg(0, signal.SIGKILL)
