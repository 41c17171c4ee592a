"""Which modules are the user's own, and which are installed: the one rule for what travels.

Code of the user's own modules travels by value, as it is now, and counts in fingerprints.
Installed modules travel by name: a worker imports its own copy, and their versions are recorded.
A module is installed where it belongs to the standard library or to this package, is compiled,
or lies

- in ``site-packages`` or ``dist-packages``: of this environment, of the user, of the system, or of
  an environment module on ``PYTHONPATH``; links are followed;
- beside the ``*.dist-info`` of a distribution that names it;
- in a package with compiled modules that is not below the working directory or the script.

Everything else is the user's own: scripts, notebooks, modules beside them, editable installs.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import ModuleType
from typing import Any

from atomizer_dask.atoms.code.values import attributes_of
from atomizer_dask.atoms.definition import Definition

_PACKAGES = {"site-packages", "dist-packages"}
_COMPILED = tuple(EXTENSION_SUFFIXES)
_MAIN = ("__main__", "__mp_main__")


def home_of(definition: Definition) -> str:
    """Return the package that an atom lives in: its own code even where it is installed."""
    target: Any = getattr(definition, "function", None) or getattr(definition, "cls", None)
    while "__wrapped__" in (attributes := attributes_of(target)):
        target = attributes["__wrapped__"]
    module = str(getattr(target, "__module__", ""))
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return ""
    return module if top == "atomizer_dask" else top


def is_own(module: str, home: str, file: str | None = None) -> bool:
    """Return whether a module is the user's own; all modules of the package `home` are."""
    if f"{module}.".startswith(f"{home}."):
        return True
    return not is_installed(module, file)


def is_installed(module: str, file: str | None = None) -> bool:
    """Return whether a module is installed rather than the user's own.

    Parameters
    ----------
    module
        Its name.
    file
        Where it lies; looked up among the imported modules unless given.
    """
    top = module.partition(".")[0]
    if top in _MAIN:
        return False
    if top == "atomizer_dask":
        return True
    for name in (module, top):
        file = file or _file(sys.modules.get(name))
    if file:
        return _lies_installed(top, file)
    # A module without a file was made by a program, unless it is compiled into the interpreter.
    return top in sys.stdlib_module_names


def _file(module: ModuleType | None) -> str | None:
    """Return where a module lies; of a namespace package the first of its folders."""
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return file
    try:
        first = next(iter(getattr(module, "__path__", ())), None)
    except Exception:  # noqa: BLE001 - modules may be objects of any kind
        return None
    return first if isinstance(first, str) else None


@functools.lru_cache(maxsize=4096)
def _lies_installed(top: str, file: str) -> bool:
    if file.endswith(_COMPILED):
        return True
    path = Path(file)
    for where in {path, path.resolve()}:
        if _PACKAGES.intersection(where.parts) or _is_of_python(where):
            return True
    if _is_of_distribution(top, path):
        return True
    return _has_compiled_modules(top) and not _is_of_project(path)


def _is_of_project(path: Path) -> bool:
    """Return whether a module lies beside the script, or below the working directory."""
    folders = {os.getcwd(), os.path.abspath(sys.path[0] if sys.path else "")}
    return any(path.is_relative_to(folder) for folder in folders)


def _is_of_python(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in _folders_of_python())


@functools.cache
def _folders_of_python() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple(Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def _is_of_distribution(top: str, path: Path) -> bool:
    """Return whether a distribution whose metadata lie beside a module names it.

    The metadata of an editable install lie in ``site-packages``, away from the module.
    """
    folders = [parent.parent for parent in (path, *path.parents) if parent.stem == top]
    return any(top in _names_in(str(folder)) for folder in folders)


@functools.cache
def _names_in(folder: str) -> frozenset[str]:
    """Return the top-level modules of the distributions whose metadata lie in a folder."""
    if not any(Path(folder).glob("*.dist-info")):
        return frozenset()
    return frozenset(name for one in distributions(path=[folder]) for name in _top_levels(one))


def _top_levels(distribution: Distribution) -> set[str]:
    listed = (distribution.read_text("top_level.txt") or "").split()
    return {*listed, *(file.parts[0].partition(".")[0] for file in distribution.files or ())}


def _has_compiled_modules(top: str) -> bool:
    within = f"{top}."
    return any(
        name.startswith(within) and str(getattr(module, "__file__", "")).endswith(_COMPILED)
        for name, module in list(sys.modules.items())
    )


def file_of(module: str) -> str | None:
    """Return the file of a module without importing it, nor the packages it is in."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    for one in rest:
        if spec is None or not spec.submodule_search_locations:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{one}", spec.submodule_search_locations)
    return spec.origin if spec and spec.origin and spec.origin.endswith(".py") else None
