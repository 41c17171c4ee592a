"""The keys of tasks, by which Dask's dashboard and our scheduler plugins know them."""

from __future__ import annotations

import re
from typing import Any

from atomizer_dask.conductors.dask.plugins.scheduler_plugin import OF_RUN, ONCE
from atomizer_dask.execution.batch import Batch

LONGEST_NAME = 24  # of a run or an atom


def key_of(batch: Batch) -> Any:
    """Return the key of the task of a batch; `BatchTasksPlugin` keeps those of three parts."""
    if batch.sink is not None:
        return key_of_run(batch.atom_id, batch.key, batch.run_id)
    return (f"{_label(batch.atom_id, batch.run_id)}-{batch.key}", ONCE)


def key_of_run(atom_id: str, key: str, run_id: str) -> Any:
    """Return the key of the task of a batch of a run that has a store."""
    return (f"{_label(atom_id, run_id)}-{key}", run_id, ONCE)


def _label(atom_id: str, run_id: str) -> str:
    """Return the name under which Dask's dashboard shows tasks, and Dask learns how long they take.

    That name ends at the first hyphen, see `dask.utils.key_split`: what follows makes every task
    a group of its own. Electrons sent one by one belong to no run: their `run_id` is empty.

    Examples
    --------
    >>> _label("model.ising", "ising-0a1b2c3d4e5f6789-1f")
    'ising·0a1b.1f'
    >>> _label("model.ising", "cold start-0a1b2c3d4e5f6789-1f")
    'ising·cold_start·0a1b.1f'
    >>> _label("model.ising", "")
    'ising·sent'
    """
    atom = _in_label(atom_id.rpartition(".")[2])
    if not run_id:
        return f"{atom}{OF_RUN}sent"
    name, *made = run_id.rsplit("-", 2)  # see `new_id`
    short = ".".join([part[:4] for part in made[:1]] + made[1:])
    parts = [atom, short] if _in_label(name) == atom else [atom, _in_label(name), short]
    return OF_RUN.join(filter(None, parts))


def _in_label(text: str) -> str:
    return re.sub(r"\W+", "_", text)[:LONGEST_NAME].strip("_")
