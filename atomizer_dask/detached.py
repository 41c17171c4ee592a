"""The driver of a detached run: a task on a worker, while no client is there."""

from __future__ import annotations

import logging
from typing import Any

from atomizer_dask.atomizer import Atomizer
from atomizer_dask.atoms.namespaces import forget, inside, loads
from atomizer_dask.atoms.pickling import load_atom
from atomizer_dask.conductors.dask.conductor import DaskConductor
from atomizer_dask.errors import StoreHeldError
from atomizer_dask.policy import Policy

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # how often it looks whether somebody has attached


def drive(client: Any, url: str, atom: bytes, policy: bytes, task: str) -> str:
    """Go on with a run until it has ended or somebody has attached; return its state.

    Parameters
    ----------
    client
        A `distributed.Client` of the cluster.
    url
        The store.
    atom
        As `dump_atom` wrote it.
    policy
        What becomes of failures, pickled.
    task
        Names the task that this runs in.
    """
    # A space of its own: other versions of the atom's modules may be here.
    definition = load_atom(atom, space=task)
    decides: Policy = loads(policy, space=task)
    conductor = DaskConductor(client)
    conductor.space = task
    try:
        atomizer = Atomizer(conductor, definition)
        try:
            with inside(task):
                run = atomizer.go_on(url, definition, policy=decides, detached=task)
        except StoreHeldError as error:
            logger.info("not driven from here: %s", error)
            return "held"
        while not run.join(LOOK_SECONDS):
            run.check_held()
        return run.state
    finally:
        conductor.close()
        forget(task)
