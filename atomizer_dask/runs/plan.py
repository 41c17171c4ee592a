"""What is to be done in a run, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from atomizer_dask.atoms.code.fingerprint import Code
from atomizer_dask.atoms.definition import Definition
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Origin, Sink
from atomizer_dask.execution.failure import Failure
from atomizer_dask.policy import Policy
from atomizer_dask.sweeps.sweep import Sweep


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done in a run, and how.

    Parameters
    ----------
    run_id
        Names it.
    definition, version
        The atom, and what a site needs to find it.
    sweep
        The inputs.
    seed
        Of the random streams.
    origin
        Whom the electrons descend from.
    copy_state, policy, timeout
        The options of `Atomizer.map`.
    sink
        The store that workers may write to.
    root
        By what its electrons can be stopped, where not by the name of the run.
    """

    run_id: str
    definition: Definition
    version: Any
    sweep: Sweep
    seed: int
    origin: Origin
    copy_state: bool
    policy: Policy
    timeout: float | None
    sink: Sink | None = None
    root: str = ""


@dataclass(frozen=True, slots=True)
class Today:
    """An atom as it is now, which may be another than the one that a run began with.

    Parameters
    ----------
    definition, version
        As in `Plan`.
    catalog
        What its electrons shall find.
    code
        Of it.
    """

    definition: Definition
    version: Any
    catalog: Mapping[str, Any]
    code: Code


@dataclass(frozen=True, slots=True)
class Listeners:
    """Whom a run tells what happens.

    Parameters
    ----------
    on_event
        Of every event of the run itself.
    on_failure
        Of an electron that failed for good: a `Failure` and its position.
    on_problem
        Of a function of the user, other than the atom, that raised.
    on_end, on_reopen
        When nothing more will come, and when it goes on after all.
    """

    on_event: Callable[[Event], None]
    on_failure: Callable[[Failure, int], None]
    on_problem: Callable[[str, BaseException], None]
    on_end: Callable[[], None] = lambda: None
    on_reopen: Callable[[], None] = lambda: None
