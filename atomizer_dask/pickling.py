"""Atoms as bytes that any worker can read, and who is to blame where they cannot be written."""

from __future__ import annotations

import inspect
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import cloudpickle

from atomizer_dask.atom import ClassAtom, Definition, FunctionAtom
from atomizer_dask.errors import UnpicklableError

_choosing = threading.RLock()  # again from within, where pickling an input pickles an atom


def dump_atom(definition: Definition) -> bytes:
    """Return an atom as bytes.

    What the user wrote travels by value, so that workers need neither their files nor their
    notebook, and run the version that was registered; installed packages go by reference.

    Raises
    ------
    UnpicklableError
        Where it uses something that cannot be pickled; the message names it.
    """
    try:
        with _own_code_by_value():
            return cloudpickle.dumps(definition)  # type: ignore[no-any-return]
    except Exception as error:
        culprit = _culprit(definition) or "something it refers to"
        raise UnpicklableError(
            f"{definition.id} cannot travel to a worker: {culprit} cannot be pickled; create it "
            "inside the atom, or pass it as an input",
            error,
        ) from error


def load_atom(data: bytes) -> Definition:
    """Return the atom that `dump_atom` wrote."""
    definition: Definition = cloudpickle.loads(data)
    return definition


@contextmanager
def _own_code_by_value() -> Iterator[None]:
    # What is pickled by value cloudpickle keeps for the whole process: a second thread would find
    # modules chosen that the first is about to take back.
    with _choosing:
        yield from _choose_own_code()


def _choose_own_code() -> Iterator[None]:
    by_value = cloudpickle.list_registry_pickle_by_value()
    paths = sysconfig.get_paths()
    installed = paths["purelib"], paths["platlib"], paths["stdlib"]
    ours = [
        module
        for name, module in list(sys.modules.items())
        if _is_own_code(module, installed) and name not in by_value
    ]
    for module in ours:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in ours:
            cloudpickle.unregister_pickle_by_value(module)


def _is_own_code(module: ModuleType | None, installed: tuple[str, ...]) -> bool:
    """Whether a module is the user's own file, rather than something that is installed."""
    file = getattr(module, "__file__", None)
    name = getattr(module, "__name__", "")
    if not file or name == "__main__" or sys.modules.get(name) is not module:
        return False
    if name.partition(".")[0] in ("atomizer_dask", "__mp_main__"):
        return False
    if name.partition(".")[0] in sys.stdlib_module_names:
        return False
    return not file.startswith(installed)


def _culprit(definition: Definition) -> str | None:
    """Return what of an atom cannot be pickled, in the user's words."""
    if isinstance(definition, ClassAtom) and definition.instance is not None:
        for name, value in vars(definition.instance).items():
            if not _can_travel(value):
                return f"its attribute {name!r} ({type(value).__name__})"
    if not isinstance(definition, FunctionAtom):
        return None
    function = inspect.unwrap(definition.function)
    if not inspect.isfunction(function):
        return None
    captured = inspect.getclosurevars(function)
    for where, values in (("the variable", captured.nonlocals), ("the global", captured.globals)):
        for name, value in values.items():
            if not _can_travel(value):
                return f"{where} {name!r} ({type(value).__name__}) it closes over"
    defaults = {
        name: parameter.default
        for name, parameter in definition.parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    for name, default in defaults.items():
        if not _can_travel(default):
            return f"the default of its parameter {name!r} ({type(default).__name__})"
    return None


def _can_travel(value: Any) -> bool:
    try:
        with _own_code_by_value():
            cloudpickle.dumps(value)
    except Exception:  # noqa: BLE001 - any failure is the answer
        return False
    return True
