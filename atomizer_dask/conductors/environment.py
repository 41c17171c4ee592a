"""Whether code pickled here would run on the workers."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from atomizer_dask.errors import ConductorError
from atomizer_dask.events import Event


def check_versions(run: Callable[..., dict[str, Any]], id: str) -> None:
    """Raise where code pickled here would not run there; `run` is that of a client."""
    here = {
        "Python": _minor(platform.python_version()),
        "atomizer_dask": version("atomizer_dask"),
    }
    # Functions of the standard library alone, so that they run where this package is missing.
    pythons = run(platform.python_version, on_error="return")
    packages = run(version, "atomizer_dask", on_error="return")
    rows = []
    for worker, python in pythons.items():
        package = packages.get(worker)
        if package is None or isinstance(python, OSError) or isinstance(package, OSError):
            continue  # it has just died
        there = {
            "Python": _minor(python) if isinstance(python, str) else repr(python),
            "atomizer_dask": package if isinstance(package, str) else "not installed",
        }
        rows += [
            f"  {worker}: {name} {there[name]}, here {here[name]}"
            for name in here
            if there[name] != here[name]
        ]
    if rows:
        listed = "\n".join(rows)
        raise ConductorError(
            Event(
                f"workers have other versions than this process:\n{listed}\n"
                "install the same ones on both sides",
                conductor_id=id,
                level="error",
            )
        )


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])
