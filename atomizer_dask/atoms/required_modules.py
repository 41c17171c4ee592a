"""Which installed modules an atom needs where it is executed."""

from __future__ import annotations

import dis
import importlib.util
import pickletools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import numpy as np

from atomizer_dask.atoms.code.own_modules import file_of, home_of, is_installed
from atomizer_dask.atoms.code.references import References
from atomizer_dask.atoms.definition import Definition

# Not asked of workers: scripts travel by value, and each worker has this package and cloudpickle.
_GIVEN = frozenset({"__main__", "__mp_main__", "atomizer_dask", "cloudpickle"})


@dataclass(frozen=True, slots=True)
class RequiredModules:
    """Names of top-level modules.

    Attributes
    ----------
    certain
        Without these the atom cannot be read, or fails where it imports them.
    perhaps
        It imports these itself within ``try``, so it may do without them.
    """

    certain: frozenset[str] = frozenset()
    perhaps: frozenset[str] = frozenset()


def required_modules_of(definition: Definition, data: bytes) -> RequiredModules:
    """Return which modules an atom needs, of those that are here; `data` as `dump_atom` wrote it.

    These are the modules that its bytes refer to, and those that its own functions import when
    they are called.

    >>> from atomizer_dask.atoms.definition import FunctionAtom
    >>> from atomizer_dask.atoms.pickling import dump_atom
    >>> def increment(x):
    ...     import yaml
    ...     return np.add(x, 1)
    >>> import numpy as np
    >>> definition = FunctionAtom(increment)
    >>> sorted(required_modules_of(definition, dump_atom(definition)).certain)
    ['numpy', 'yaml']
    """
    walk = _Functions(home_of(definition))
    walk.fingerprint(definition)
    certain, perhaps = set(_referred_to(data)), set[str]()
    for function in walk.functions:
        package = function.__globals__.get("__package__") or ""
        for name, is_guarded in _imports(function.__code__, package):
            if not _travels(name):
                (perhaps if is_guarded else certain).add(name)
    certain = {one for one in map(_top, certain) if _counts(one)}
    perhaps = {one for one in map(_top, perhaps) if _counts(one)}
    return RequiredModules(frozenset(certain), frozenset(perhaps - certain))


class _Functions(References):
    """A walk over references that collects the user's own functions."""

    def __init__(self, home: str, depth: int = 0) -> None:
        super().__init__(home, depth)
        self.functions: list[FunctionType] = []

    def _digest_of(self, value: Any) -> str:
        if type(value) is np.ndarray and not value.dtype.hasobject:
            return "array"  # in which are no functions, and which may be large
        return super()._digest_of(value)

    def _function(self, function: FunctionType) -> str:
        self.functions.append(function)
        return super()._function(function)


def _travels(name: str) -> bool:
    """Return whether a module that a function imports is the user's own, and travels with it."""
    file = getattr(sys.modules.get(name), "__file__", None) or file_of(name)
    return file is not None and not is_installed(name, file)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _counts(name: str) -> bool:
    if not name or name in _GIVEN or name in sys.stdlib_module_names:
        return False
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _referred_to(data: bytes) -> Iterator[str]:
    """Yield the modules that unpickling imports, without unpickling anything.

    A global is two strings and STACK_GLOBAL; a module by itself is a call of cloudpickle's
    ``subimport`` with its name.
    """
    memo: list[Any] = []
    last: list[Any] = [None, None]  # the last two values that were pushed
    for operation, argument, _ in pickletools.genops(data):
        name = operation.name
        if name == "MEMOIZE":
            memo.append(last[-1])
            continue
        if name in ("BINGET", "LONG_BINGET"):
            pushed = memo[argument or 0]
        elif name == "STACK_GLOBAL":
            yield str(last[-2])
            pushed = ("global", last[-1])
        elif name in ("FRAME", "PROTO"):
            continue
        else:
            pushed = argument if name.endswith("UNICODE") else None
        if last[-1] == ("global", "subimport") and isinstance(pushed, str):
            yield pushed
        last = [last[-1], pushed]


def _imports(code: CodeType, package: str) -> Iterator[tuple[str, bool]]:
    """Yield the modules that a function imports, and whether it does so within ``try``."""
    listing = dis.Bytecode(code)
    caught = [(one.start, one.end) for one in getattr(listing, "exception_entries", ())]
    before: list[Any] = []
    for one in listing:
        if one.opname == "IMPORT_NAME":
            is_guarded = any(start <= one.offset < end for start, end in caught)
            yield (package if before[-2] else one.argval), is_guarded
        if one.opname != "EXTENDED_ARG":
            before.append(one.argval)
        if isinstance(one.argval, CodeType):
            yield from _imports(one.argval, package)
