"""The lease of a store: signs of life of who holds it, which others can judge from other hosts.

The clocks of two hosts differ, so only the file system's own is asked: a sign of life is as old as
a file that was written just now is younger.
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

BEAT = "holder-alive-"  # begins the names of files that are written anew as signs of life
PROBE = "holder-probe-"  # and of those whose time stamps are the time there
LONGEST_PAUSE = 3.0  # seconds between two signs of life

_ORDINALS = {
    "slurm": ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
    "pbs": ("PBS_JOBID", ""),
    "lsf": ("LSB_JOBID", "LSB_RESTART"),
    "sge": ("JOB_ID", "RESTARTED"),
}


def batch_job() -> tuple[str, int]:
    """Return the batch job that this process is in, and how often that was started again.

    An empty text outside of one. Jobs of different clusters have different names.
    """
    for system, (name, again) in _ORDINALS.items():
        if job := os.environ.get(name):
            if system == "sge" and "SGE_ROOT" not in os.environ:
                continue  # JOB_ID may be anybody's
            cluster = os.environ.get("SLURM_CLUSTER_NAME", "") if system == "slurm" else ""
            task = os.environ.get("SGE_TASK_ID", "") if system == "sge" else ""
            index = os.environ.get("LSB_JOBINDEX", "") if system == "lsf" else ""
            parts = [part for part in (system, cluster, job, task, index) if part]
            return " ".join(parts), _number(os.environ.get(again, ""))
    return "", 0


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else int(text in ("Y", "y"))


def age_of(folder: Folder, name: str, token: str) -> float | None:
    """Return how many seconds ago who holds a store last gave a sign of life.

    Parameters
    ----------
    name
        The file that names the holder.
    token
        The holder's.

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
    """Gives signs of life of who holds a store, as long as it does.

    A thread of its own, so that nothing that keeps the run busy looks like its death.

    Parameters
    ----------
    folder, name, token
        The store's; the file that names the holder, which is this process; its token.
    lease
        Seconds after which others take it for dead where no sign of life comes.
    is_held
        Returns whether this process still holds the store.
    on_lost
        Called, once, when it does not.
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
            except (OSError, StoreError):  # whoever writes results reports it
                logger.debug("no sign of life after %s s", monotonic() - began, exc_info=True)

    def _give_sign(self) -> None:
        if self._folder.is_local:
            self._folder.touch(self._name)
        else:  # the file that names the holder may be another's by now
            self._folder.write(f"{BEAT}{self._token}", self._token.encode())
