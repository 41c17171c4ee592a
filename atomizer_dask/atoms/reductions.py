"""How things of the user's own are taken apart for a pickle, and put together from one."""

from __future__ import annotations

import functools
import importlib
import sys
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from importlib.util import resolve_name
from types import CodeType, FunctionType, ModuleType
from typing import Any

from atomizer_dask.atoms.cloudpickle_internals import (
    is_registered_by_value,
    lookup,
    make_type_variable,
    parts_of_type_variable,
)
from atomizer_dask.atoms.code.bytecode import imports_of
from atomizer_dask.atoms.code.own_modules import file_of, is_installed
from atomizer_dask.atoms.global_generators import generator_of
from atomizer_dask.atoms.namespaces import Place, arrive, complete, name_of
from atomizer_dask.sweeps.copies import is_sentinel

STATED = None, None, complete  # ends what pickle calls a reduce value: items, pairs, state setter
_ENUMS_OWN = {"_value_", "_name_", "__objclass__", "_sort_order_"}  # of members, by their class


# -- what travels how --------------------------------------------------------------------------


def is_by_reference(thing: Any) -> bool:
    """Return whether a function or a class can be imported by name from an installed module."""
    found = lookup(thing)
    if found is None:
        return False
    module, _ = found
    if is_registered_by_value(module):  # by the user, who wants it so
        return False
    return is_installed(module.__name__, getattr(module, "__file__", None))


def place_of(thing: Any) -> Place:
    """Return module and name of a thing where these may lead to it in another process."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or "<" in name:
        return None
    return module, name


def names_in(code: CodeType) -> Iterator[str]:
    """Yield the names that code refers to, and those that functions within it do."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


def imported_by(code: CodeType, package: str) -> Iterator[ModuleType]:
    """Yield the modules of the user's own that a function imports when it is called."""
    for name in imports_of(code):
        try:
            full = resolve_name(name, package)
            module = sys.modules.get(full)
            file = getattr(module, "__file__", None) or file_of(full)
            if file and not is_installed(full, file):
                module = module or importlib.import_module(full)
                parents = full.split(".")[:-1]
                for end in range(len(parents)):
                    yield sys.modules[".".join(parents[: end + 1])]
                yield module
        except Exception:  # noqa: BLE001, S112 - the function may be prepared to do without
            continue


def has_fixed_members(kind: Any) -> bool:
    """Return whether an enum's members have no attributes of their own; True for other classes."""
    is_own = issubclass(kind, Enum) and not is_by_reference(kind)
    return not is_own or not any(map(_state_of_member, kind))


def reduce_cached_property(found: Any) -> Any:
    """Reduce a cached property without the lock that some versions of Python put into it."""
    return _cached_property_anew, (found.func, found.attrname, found.__doc__)


def _cached_property_anew(function: Any, name: str | None, documentation: str | None) -> Any:
    made = functools.cached_property(function)
    made.attrname, made.__doc__ = name, documentation
    return made


def reduce_global_generator(module: ModuleType) -> Any:
    """Reduce the generator of a module, of which each process has its own."""
    return _global_generator, (module.__name__,)


def _global_generator(module: str) -> Any:
    return generator_of(importlib.import_module(module))


def reduce_cached(function: Any) -> Any:
    """Reduce what `functools.lru_cache` gave, which pickles by reference."""
    wrapped = function.__wrapped__
    if not isinstance(wrapped, FunctionType) or is_by_reference(wrapped):
        return NotImplemented
    options = function.cache_parameters()
    return arrive, (name_of(function), None, _cached_anew, (wrapped, options))


def reduce_instance(thing: Any, kind: type) -> Any:
    """Reduce an instance of a class of the user's own."""
    reduces: Any = (kind.__reduce_ex__, kind.__reduce__)
    if reduces == (object.__reduce_ex__, object.__reduce__):
        return reduce_sentinel(thing) if is_sentinel(thing) else NotImplemented
    reduced = thing.__reduce_ex__(5)
    if not isinstance(reduced, str):
        return reduced
    # It says that it is a global variable, of which each process has one.
    module = str(getattr(thing, "__module__", kind.__module__))
    if is_installed(module):
        return NotImplemented
    state = thing.__getstate__()
    named = name_of(thing), (module, reduced), object.__new__, (kind,)
    return (arrive, named) if state is None else (arrive, named, (_fill_instance, state), *STATED)


def reduce_type_variable(variable: typing.TypeVar) -> Any:
    """Reduce a type variable of the user's own by its parts."""
    if lookup(variable, name=variable.__name__) is None:
        return NotImplemented
    if is_installed(str(variable.__module__)):
        return NotImplemented
    return make_type_variable, parts_of_type_variable(variable)


def reduce_weak_mapping(mapping: Any) -> Any:
    """Reduce a mapping of weak references: its items travel."""
    return type(mapping), (dict(mapping.items()),)


def reduce_sentinel(thing: Any) -> Any:
    """Reduce a thing that is known by its identity alone."""
    return arrive, (name_of(thing), None, object.__new__, (type(thing),))


def reduce_enum(cls: Any, maker: Any, state: Any, setter: Any) -> tuple[Any, Any, Any, Any]:
    """Return how to make an enum: its maker, its members, its state and the function to set it."""
    made = {name: member.value for name, member in cls.__members__.items()}
    if isinstance(getattr(cls, "_new_member_", None), FunctionType):
        maker = _enum_made_by_itself
        made = {name: _as_made(member) for name, member in cls.__members__.items()}
    for name in cls.__members__:
        state[0].pop(name, None)
    members = {member.name: _state_of_member(member) for member in cls}
    return maker, made, (setter, state, members), _fill_enum


def _as_made(member: Any) -> tuple[Any, Any]:
    """Return a member as an object of its mixed-in type, if any, and the value its class made."""
    base = type(member)._member_type_
    return (None if base is object else base(member)), member.value


def _enum_made_by_itself(
    bases: tuple[type, ...], name: str, qualname: str, members: dict[str, Any], *others: Any
) -> Any:
    """Return an enum with a `__new__` of its own, which must not make its values once more."""
    kind: Any = next((base for base in bases if not issubclass(base, Enum)), None)

    def of_made(cls: Any, base: Any, value: Any) -> Any:
        made = object.__new__(cls) if kind is None else kind.__new__(cls, base)
        made._value_ = value
        return made

    enum_base = bases[-1]
    metaclass: Any = type(enum_base)
    namespace = metaclass.__prepare__(name, bases)
    namespace["__new__"] = of_made
    for member, pair in members.items():
        namespace[member] = pair
    made = metaclass.__new__(metaclass, name, bases, namespace)
    made.__module__, made.__qualname__ = others[0], qualname
    return made


def _cached_anew(function: Any, options: Mapping[str, Any]) -> Any:
    return functools.lru_cache(**options)(function)


def _state_of_member(member: Enum) -> dict[str, Any]:
    return {name: value for name, value in vars(member).items() if name not in _ENUMS_OWN}


def _fill_enum(cls: Any, state: tuple[Any, Any, Mapping[str, dict[str, Any]]]) -> None:
    setter, of_class, members = state
    setter(cls, of_class)
    for name, attributes in members.items():
        vars(cls[name]).update(attributes)


def _fill_instance(thing: Any, state: Any) -> None:
    if hasattr(thing, "__setstate__"):
        thing.__setstate__(state)
        return
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    vars(thing).update(attributes or {})
    for name, value in (slots or {}).items():
        setattr(thing, name, value)
