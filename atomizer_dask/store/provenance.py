"""Where something ran: the machine, the versions, the commit."""

from __future__ import annotations

import getpass
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from math import isfinite
from typing import Any

from atomizer_dask.display.text import brief

_PACKAGES = "atomizer_dask", "dask", "distributed", "numpy", "pandas", "pyarrow"
_CARRIERS = {"dask", "distributed"}  # they carry electrons, and compute nothing
# Heavy modules: where they have not been imported, no result depends on them.
_WHERE_IMPORTED = {
    "scipy": "scipy",
    "numba": "numba",
    "torch": "torch",
    "jax": "jax",
    "scikit-learn": "sklearn",
    "xarray": "xarray",
    "cupy": "cupy",
}
_SHORT = 200  # characters
_PATIENCE = 2  # seconds for git, which may be on a slow file system


def described_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values ready for JSON: a text in place of what is no number and no short text.

    >>> described_values({"k": 3, "model": [1.5]})
    {'k': 3, 'model': '[1.5]'}
    """
    return {name: _described(value) for name, value in values.items()}


def _described(value: Any) -> Any:
    if value is None or type(value) in (bool, int):
        return value
    is_short = type(value) is str and len(value) <= _SHORT
    return value if is_short or (type(value) is float and isfinite(value)) else brief(value, _SHORT)


def surroundings() -> dict[str, Any]:
    """Return the facts about this process that its results may depend on, ready for JSON.

    ``git`` is None outside a repository, without git, and where git takes more than two seconds.
    Files that git does not track leave it clean.
    """
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": _user(),
        "platform": platform.platform(),
        **versions(),
        "git": _git(),
        "directory": _directory(),
        "argv": [str(argument) for argument in sys.argv],
    }


def versions() -> dict[str, Any]:
    """Return the versions of Python and of packages, which decide the bits of results."""
    return {"python": platform.python_version(), "packages": _packages()}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the versions that have changed and may change the bits of a result, a line each.

    Only Python and packages whose versions are known at both times are compared. Packages that only
    carry electrons are left out, and so are patch releases of Python.

    >>> before = {"python": "3.11.9", "packages": {"numpy": "2.3.1", "scipy": "1.15.0"}}
    >>> differences(before, {"python": "3.13.1", "packages": {"numpy": "2.4.0"}})
    ['Python 3.11.9, now 3.13.1', 'numpy 2.3.1, now 2.4.0']
    """
    was, is_now = (
        {"Python": of.get("python"), **(of.get("packages") or {})} for of in (before, now)
    )
    return [
        f"{name} {version}, now {is_now[name]}"
        for name, version in was.items()
        if version and is_now.get(name) and name not in _CARRIERS
        if _what_decides(name, version) != _what_decides(name, is_now[name])
    ]


def _what_decides(name: str, version: str) -> str:
    """Return the part of a version that may change results: of Python the first two numbers."""
    return ".".join(version.split(".")[:2]) if name == "Python" else version


def _packages() -> dict[str, str]:
    imported = {name: of for name, of in _WHERE_IMPORTED.items() if of in sys.modules}
    found = {
        name: _version(name, module)
        for name, module in {**{name: name for name in _PACKAGES}, **imported}.items()
    }
    return {name: version for name, version in found.items() if version}


def _version(distribution: str, module: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # cupy is installed as cupy-cuda12x and the like
        version = getattr(sys.modules.get(module), "__version__", None)
        return None if version is None else str(version)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # in a container, whose user has no name
        return str(os.getuid()) if hasattr(os, "getuid") else ""


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been deleted
        return ""


def _git() -> dict[str, Any] | None:
    root = _ask_git("rev-parse", "--show-toplevel")
    status = root and _ask_git("status", "--porcelain=v2", "--branch", "--untracked-files=no")
    if not root or not status:
        return None
    lines = status.splitlines()
    facts = dict(line.split(" ", 2)[1:] for line in lines if line.startswith("# branch."))
    commit, branch = facts.get("branch.oid", ""), facts.get("branch.head", "")
    return {
        "commit": None if commit == "(initial)" else commit,
        "branch": None if branch == "(detached)" else branch,
        "dirty": any(not line.startswith("#") for line in lines),
        "root": root.rstrip("\n"),
    }


def _ask_git(*arguments: str) -> str | None:
    """Return the output of git; None where git is missing, fails or takes too long."""
    # A repository can name a program as its file system monitor, which status would start.
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and nothing that users have typed
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_PATIENCE,
            env=environment,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
