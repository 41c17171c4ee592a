"""The lease of a store: signs of life of its holder, whose age other hosts can measure.

The clocks of two hosts differ, so that only the clock of the file system counts: the age of a sign
of life is the difference between its time stamp and that of a probe, a file written just now.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from time import monotonic

from atomizer_dask.electron import new_id
from atomizer_dask.errors import StoreError
from atomizer_dask.store.filesystem.folder import Folder

logger = logging.getLogger(__name__)

BEAT = "holder-alive-"  # begins the names of files that holders rewrite as signs of life
PROBE = "holder-probe-"  # and of files whose time stamps are the time of the file system
LONGEST_PAUSE = 3.0  # seconds between two signs of life

_ORDINALS = {
    "slurm": ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
    "pbs": ("PBS_JOBID", ""),
    "lsf": ("LSB_JOBID", "LSB_RESTART"),
    "sge": ("JOB_ID", "RESTARTED"),
}


def batch_job() -> tuple[str, int]:
    """Return an id of the batch job that this process is in, and how often it was restarted.

    Empty and 0 outside of a job. The id contains the scheduler's name, and the cluster's for Slurm.
    """
    for system, (name, again) in _ORDINALS.items():
        if job := os.environ.get(name):
            if system == "sge" and "SGE_ROOT" not in os.environ:
                continue  # any program may set JOB_ID
            cluster = os.environ.get("SLURM_CLUSTER_NAME", "") if system == "slurm" else ""
            task = os.environ.get("SGE_TASK_ID", "") if system == "sge" else ""
            index = os.environ.get("LSB_JOBINDEX", "") if system == "lsf" else ""
            parts = [part for part in (system, cluster, job, task, index) if part]
            return " ".join(parts), _number(os.environ.get(again, ""))
    return "", 0


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else int(text in ("Y", "y"))


def age_of(folder: Folder, name: str, token: str) -> float | None:
    """Return the seconds since the holder of a store last gave a sign of life.

    Parameters
    ----------
    name
        The file that names the holder.
    token
        The token of the holder.

    Returns
    -------
    float or None
        None where the file system does not say when a file was written.
    """
    signs = [folder.modified(each) for each in (name, f"{BEAT}{token}") if folder.exists(each)]
    times = [sign for sign in signs if sign is not None]
    probe = f"{PROBE}{new_id()}"
    folder.write(probe, b"")
    try:
        now = folder.modified(probe)
    finally:
        folder.remove(probe)
    return None if now is None or not times else now - max(times)


class Heart:
    """Gives signs of life of this process, as long as it holds a store.

    In a thread of its own, so that a process that is busy does not look dead.

    Parameters
    ----------
    folder, name, token
        The folder of the store; the lock file; the token of this process in it.
    lease
        Seconds without a sign of life after which other hosts take this process for dead.
    is_held
        Returns whether this process still holds the store.
    on_lost
        Called once, in this thread, when it no longer does.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        token: str,
        lease: float,
        is_held: Callable[[], bool],
        on_lost: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._name = name
        self._token = token
        self._pause = min(LONGEST_PAUSE, lease / 4)
        self._is_held = is_held
        self._on_lost = on_lost
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="atomizer-lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give no more signs of life."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(self._pause)
        if not self._folder.is_local:
            self._folder.remove(f"{BEAT}{self._token}")

    def _beat(self) -> None:
        while not self._stopped.wait(self._pause):
            began = monotonic()
            try:
                if not self._is_held():
                    if not self._stopped.is_set():
                        self._on_lost()
                    return
                self._give_sign()
            except (OSError, StoreError):  # the writer of results reports it
                logger.debug("no sign of life after %s s", monotonic() - began, exc_info=True)

    def _give_sign(self) -> None:
        if self._folder.is_local:
            self._folder.touch(self._name)
        else:  # the lock file may be another process's by now
            self._folder.write(f"{BEAT}{self._token}", self._token.encode())
