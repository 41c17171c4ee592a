"""Whether an atom has changed since it was pickled: a check of a few microseconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from types import FunctionType
from typing import Any, NamedTuple

_ABSENT = object()
_CHANGEABLE = (list, dict, set, bytearray)
# What Python itself keeps in classes: of dataclasses, enums, generic and abstract ones.
_OF_PYTHON = {
    "__annotations__", "__dataclass_fields__", "__dataclass_params__", "__match_args__",
    "__slots__", "__dict__", "__weakref__", "__parameters__", "__orig_bases__",
    "__abstractmethods__", "_abc_impl", "__static_attributes__", "__doc__", "__members__",
    "_member_map_", "_member_names_", "_value2member_map_", "_hashable_values_",
    "_unhashable_values_", "_unhashable_values_map_", "_use_args_", "_fields", "_field_defaults",
    "__builtins__", "__spec__", "__loader__", "__path__", "__warningregistry__",
}  # fmt: skip
_ADDED = "__slotnames__"  # to a class, when an instance of it is pickled for the first time


class _Function(NamedTuple):
    """A function, with its code, defaults, globals and closure as they were."""

    function: FunctionType
    code: Any
    defaults: Any
    globals: tuple[tuple[str, Any], ...]
    cells: tuple[Any, ...]

    @classmethod
    def of(cls, function: FunctionType, names: tuple[str, ...]) -> _Function:
        scope = function.__globals__
        return cls(
            function,
            function.__code__,
            function.__defaults__,
            tuple([(name, scope.get(name, _ABSENT)) for name in names]),
            tuple(map(_content, function.__closure__ or ())),
        )

    def is_current(self) -> bool:
        function: Any = self.function  # loops below: this runs for each child that is sent
        if function.__code__ is not self.code or function.__defaults__ is not self.defaults:
            return False
        scope = function.__globals__
        for name, value in self.globals:
            if scope.get(name, _ABSENT) is not value:
                return False
        for cell, value in zip(function.__closure__ or (), self.cells, strict=True):
            if _content(cell) is not value:
                return False
        return True


class Watched:
    """The parts of a pickled atom as they were, to detect a change since.

    Attributes
    ----------
    is_fixed
        Whether nothing in it can change in place, as a list or an array can: then it has changed
        only where a name has been bound to something else.
    """

    def __init__(self) -> None:
        self.is_fixed = True
        self._functions: list[_Function] = []
        self._mappings: list[tuple[Mapping[str, Any], dict[str, Any]]] = []
        self._modules: dict[str, Any] = {}  # that functions import, by name

    def add_function(self, function: FunctionType, names: Iterable[str]) -> None:
        """Watch a function and the globals of these names."""
        watched = _Function.of(function, tuple(names))
        self._functions.append(watched)
        held_globals = (value for _, value in watched.globals)
        self.add_values((*held_globals, *watched.cells, *(watched.defaults or ())))
        for held in (function.__kwdefaults__, vars(function)):
            if held:
                self.add_mapping(held)

    def add_mapping(self, mapping: Mapping[str, Any]) -> None:
        """Watch the attributes of a class, a module or an object."""
        held = {name: value for name, value in mapping.items() if name != _ADDED}
        self._mappings.append((mapping, held))
        self.add_values(value for name, value in held.items() if name not in _OF_PYTHON)

    def add_import(self, name: str, module: Any) -> None:
        """Watch whether a name still leads to a module."""
        self._modules[name] = module

    def add_values(self, values: Iterable[Any]) -> None:
        """Note mutable containers among values; the pickler itself notes other mutable objects."""
        self.is_fixed = self.is_fixed and all(map(_is_fixed, values))

    def is_current(self) -> bool:
        """Return whether every name is still bound to what it was bound to."""
        for function in self._functions:
            if not function.is_current():
                return False
        for now, before in self._mappings:
            if not _is_the_same(now, before):
                return False
        return all(sys.modules.get(name) is module for name, module in self._modules.items())


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return _ABSENT


def _is_the_same(now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    return len(now) - (_ADDED in now) == len(before) and all(
        now.get(name, _ABSENT) is value for name, value in before.items()
    )


def _is_fixed(value: Any) -> bool:
    kind = type(value)
    if kind in (tuple, frozenset):
        return all(map(_is_fixed, value))
    return kind not in _CHANGEABLE
