"""Which modules are the user's own, rather than something installed that has a version."""

from __future__ import annotations

import functools
import importlib.util
import sys
import sysconfig
from importlib.machinery import PathFinder
from typing import Any

from atomizer_dask.atom import Definition
from atomizer_dask.wrapped import attributes_of


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
    """Whether a module is the user's own, to whom all of `home` belongs."""
    top = module.partition(".")[0]
    if f"{module}.".startswith(f"{home}.") or top in ("__main__", "__mp_main__"):
        return True
    if top == "atomizer_dask" or top in sys.stdlib_module_names:
        return False
    for name in (module, top):
        file = file or getattr(sys.modules.get(name), "__file__", None)
    return not file or not _is_installed(file)


def _is_installed(file: str) -> bool:
    return file.startswith(_installed()) or "site-packages" in file or "dist-packages" in file


@functools.cache
def _installed() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return paths["purelib"], paths["platlib"], paths["stdlib"]


def file_of(module: str) -> str | None:
    """Return the file of a module without importing it, nor the packages it is in."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    for one in rest:
        if spec is None or not spec.submodule_search_locations:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{one}", spec.submodule_search_locations)
    return spec.origin if spec and spec.origin and spec.origin.endswith(".py") else None
