"""The packages that workers have installed, compared with this process, in one table.

::

    2 workers on node7, node8 (and not on 4 others):
      Python         3.12      here 3.11     stops: ...
      numpy          2.1.0     here 2.3.1

`Client.get_versions` imports what it is asked about, waits for workers that do not answer, and
cannot say whether a module of the user's could be imported.
"""

from __future__ import annotations

import inspect
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

PACKAGES = "atomizer_dask", "cloudpickle", "dask", "distributed", "numpy", "pandas", "pyarrow"
_MISSING = "not installed"
_LISTED = 6  # hosts by name
_BOUND_TO_BE_EQUAL = frozenset({"Python", "atomizer_dask"})


def installed(packages: list[str], modules: list[str]) -> dict[str, object]:
    """Return what is installed in this process.

    The function travels as its source, to workers of any Python and without this package: so it
    uses the standard library alone, and imports it in its body.
    """
    import contextlib
    import importlib
    import importlib.metadata
    import importlib.util
    import platform
    import socket
    import sys

    versions = {}
    for name in packages:
        try:
            versions[name] = str(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    with contextlib.suppress(KeyError):  # another thread does the same just now
        importlib.invalidate_caches()
    missing = []
    for name in modules:
        try:
            there = name in sys.modules or importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            there = False
        if not there:
            missing.append(name)
    python = ".".join(platform.python_version_tuple()[:2])
    host = socket.gethostname()
    return {"host": host, "python": python, "packages": versions, "missing": missing}


def question(modules: Iterable[str]) -> tuple[Any, ...]:
    """Return function and arguments with which `ask_workers` has workers call `installed`."""
    source = f"from __future__ import annotations\n{inspect.getsource(installed)}"
    scope = {"source": source, "asked": (list(PACKAGES), sorted(modules))}
    return eval, "[exec(source, globals()), installed(*asked)][-1]", scope


class Difference(NamedTuple):
    """A package or module of which a worker has another version, or none.

    Attributes
    ----------
    name, there, here
        The name, and the versions on the worker and in this process; `here` is empty for a module.
    is_fatal
        Whether electrons would fail because of it.
    """

    name: str
    there: str
    here: str
    is_fatal: bool


@dataclass(frozen=True, slots=True)
class Environment:
    """The Python, packages and modules that a process has.

    Attributes
    ----------
    host
        The name of its machine.
    versions
        Versions by name, of Python and the packages; empty where one is not installed.
    missing
        Modules that the process was asked for and does not have.
    problem
        Why the process could not be looked at; else empty.
    """

    host: str
    versions: Mapping[str, str]
    missing: frozenset[str] = frozenset()
    problem: str = ""

    @classmethod
    def here(cls) -> Environment:
        """Return the environment of this process."""
        return cls.of(installed(list(PACKAGES), []))

    @classmethod
    def of(cls, answer: Any, address: str = "") -> Environment:
        """Return the environment of a worker from its answer, which may be an exception."""
        if isinstance(answer, BaseException):
            return cls(address, {}, problem=f"{type(answer).__name__}: {answer}")
        versions = {"Python": answer["python"], **answer["packages"]}
        return cls(answer["host"], versions, frozenset(answer["missing"]))

    def lacking(self, modules: Iterable[str]) -> Environment:
        """Return a copy with more missing modules."""
        return replace(self, missing=self.missing.union(modules))

    def differences(self, here: Environment) -> tuple[Difference, ...]:
        """Return the packages whose versions differ from those here, the worst first."""
        if self.problem:
            return (Difference("environment", f"cannot be looked at: {self.problem}", "", True),)
        found = [
            Difference(name, there or _MISSING, ours or _MISSING, name in _BOUND_TO_BE_EQUAL)
            for name, ours in here.versions.items()
            if (there := self.versions.get(name, "")) != ours
        ]
        return tuple(sorted(found, key=lambda one: not one.is_fatal))


class Group(NamedTuple):
    """Workers that differ in the same way."""

    differences: tuple[Difference, ...]
    workers: tuple[str, ...]
    hosts: tuple[str, ...]

    @property
    def is_fatal(self) -> bool:
        """Whether electrons would fail on them."""
        return any(one.is_fatal for one in self.differences)


def grouped(
    differing: Mapping[str, tuple[Difference, ...]], environments: Mapping[str, Environment]
) -> list[Group]:
    """Return workers grouped by their differences, the worst group first."""
    those: dict[tuple[Difference, ...], list[str]] = {}
    for worker, differences in sorted(differing.items()):
        if differences:
            those.setdefault(differences, []).append(worker)
    groups = [
        Group(how, tuple(workers), tuple(sorted({environments[one].host for one in workers})))
        for how, workers in those.items()
    ]
    return sorted(groups, key=lambda group: not group.is_fatal)


def table(groups: Iterable[Group], total: int, atom_id: str = "") -> str:
    """Return the differences as lines of text, with what to do about them."""
    groups = list(groups)
    rows = [one for group in groups for one in group.differences]
    widths = [
        max((len(getattr(one, what)) for one in rows), default=0) for what in ("name", "there")
    ]
    lines = []
    for group in groups:
        lines.append(f"{_count(len(group.workers))} of {total} on {_listed(group.hosts)}:")
        lines += [f"  {_row(one, widths)}" for one in group.differences]
    return "\n".join([*lines, *_what_to_do(rows, atom_id)])


def _row(one: Difference, widths: list[int]) -> str:
    here = f"here {one.here}" if one.here else ""
    fatal = "  (cannot work)" if one.is_fatal else ""
    return f"{one.name:<{widths[0]}}  {one.there:<{widths[1]}}  {here}{fatal}".rstrip()


def _count(number: int) -> str:
    return "1 worker" if number == 1 else f"{number:,} workers"


def _listed(hosts: tuple[str, ...]) -> str:
    more = f" and {len(hosts) - _LISTED:,} more hosts" if len(hosts) > _LISTED else ""
    return ", ".join(hosts[:_LISTED]) + more


def _what_to_do(rows: list[Difference], atom_id: str) -> list[str]:
    names = {one.name for one in rows}
    advice = []
    if names & {"Python", "environment"}:
        advice.append(
            "Code that is pickled by one Python cannot be run by another: start the workers with "
            f"the Python of this process, {sys.executable} (dask-jobqueue: python=...), or with "
            f"another {_minor()}."
        )
    if "atomizer_dask" in names:
        here = next(one.here for one in rows if one.name == "atomizer_dask")
        advice.append(f"Install atomizer_dask {here} where the workers run.")
    if modules := sorted({one.name.removeprefix("module ") for one in rows if not one.here}):
        modules = [one for one in modules if one != "environment"]
    if modules:
        advice.append(
            f"Install {', '.join(modules)} where the workers run, or have them find the files "
            f"(PYTHONPATH){f'; the atom {atom_id} imports them' if atom_id else ''}."
        )
    if any(not one.is_fatal and one.here for one in rows):
        advice.append(
            "Other versions of packages may give other results, or fail: use one environment on "
            "both sides."
        )
    return advice


def _minor() -> str:
    return "Python " + ".".join(platform.python_version_tuple()[:2])
