"""What `dask.annotate` asks for, which electrons would not get."""

from __future__ import annotations

import dask

_INSTEAD = {
    "priority": "priority= of map and send",
    "retries": "on_failure='requeue' and max_attempts= of map and send",
    "workers": "a DaskConductor of a cluster that has just these workers",
    "allow_other_workers": "a DaskConductor of a cluster that has just the workers wanted",
    "resources": "a DaskConductor of a cluster whose workers all have them",
}
_NOTHING = "nothing: leave it out"


def refuse_annotations() -> None:
    """Raise where electrons are sent within `dask.annotate`, which is for tasks of Dask's own.

    Raises
    ------
    TypeError
        Naming what is asked for, and what to use instead.
    """
    asked = dask.get_annotations()
    if asked:
        instead = "; ".join(f"{name}: {_INSTEAD.get(name, _NOTHING)}" for name in asked)
        raise TypeError(
            f"dask.annotate({', '.join(f'{k}={v!r}' for k, v in asked.items())}) has no effect on "
            f"electrons, so that they are not sent within it. Instead of {instead}"
        )
