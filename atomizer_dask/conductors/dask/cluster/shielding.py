"""Keeping SIGINT from workers that somebody else started in this process's group.

A terminal sends Ctrl-C to all processes of a group, and so does Jupyter with its interrupt: to
this process, which pauses a run, and to the workers of a LocalCluster that the user made, which
Dask then closes for good.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import Any

import psutil
from distributed import Client, Nanny, NannyPlugin, Worker, WorkerPlugin

from atomizer_dask.conductors.dask.ask_workers import ask_workers, install, successes
from atomizer_dask.conductors.dask.cluster.internals import nannies
from atomizer_dask.execution.quarantine.signals import heed_not


def shield(client: Client) -> None:
    """Have workers and nannies that descend from this process go on at SIGINT.

    Workers that nannies of this process start later are safe from their first instruction.
    """
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    if not children:
        return
    answers = client.sync(ask_workers, client, os.getpid)
    certain = successes(answers)
    if len(certain) == len(answers) and children.isdisjoint(certain.values()):
        return  # no worker descends from this process, and all have answered
    for nanny in nannies():
        nanny.loop.add_callback(_have_later_ones_start_safely)
    client.sync(install, client, _UninterruptedWorker())
    client.sync(install, client, _UninterruptedNanny())


def _have_later_ones_start_safely() -> None:
    """Block SIGINT in this thread, a nanny's event loop, and so in processes that it starts."""
    if threading.current_thread() is not threading.main_thread():  # it must get Ctrl-C
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


class _Uninterrupted:
    """Has a process ignore SIGINT where it descends from the process that made this object."""

    def __init__(self) -> None:
        self._ancestor = _identity(psutil.Process())
        self.name = f"atomizer-uninterrupted-{os.getpid()}"

    def heed_not(self) -> None:
        """Ignore SIGINT from now on."""
        if self._ancestor not in map(_identity, psutil.Process().parents()):
            return
        with suppress(ValueError):  # the worker is in a thread of somebody's process
            signal.signal(signal.SIGINT, heed_not)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


class _UninterruptedWorker(_Uninterrupted, WorkerPlugin):  # type: ignore[misc]
    """The plugin of workers."""

    def setup(self, worker: Worker) -> None:
        """Shield a worker's process."""
        self.heed_not()


class _UninterruptedNanny(_Uninterrupted, NannyPlugin):  # type: ignore[misc]
    """The plugin of nannies, of which some have a process of their own."""

    def setup(self, nanny: Nanny) -> None:
        """Shield a nanny's process, which is not that of the client."""
        self.heed_not()


def _identity(process: psutil.Process) -> tuple[int, Any]:
    """Return what identifies a process, here and on other machines."""
    with suppress(psutil.Error):
        return process.pid, process.create_time()
    return process.pid, None
