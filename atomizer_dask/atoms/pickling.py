"""Atoms, inputs and results as bytes that any process of this package can read.

One rule for all that is pickled: what is the user's own travels by value, under the name that makes
it one object where it arrives (see `namespaces`); what is installed travels by name, see
`own_modules`.
cloudpickle takes functions and classes apart; unlike its own pickler, this one needs no registry
of the process, keeps two versions of a class apart, and leaves the classes of the process that
receives a result as they are.
"""

from __future__ import annotations

import functools
import inspect
import io
import logging
import random
import re
import sys
import typing
import weakref
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from inspect import Parameter
from pathlib import PurePath
from pickle import PickleBuffer
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
from cloudpickle import cloudpickle

from atomizer_dask.atoms.cloudpickle_internals import globals_of, reduce_class
from atomizer_dask.atoms.code.changes import Watched
from atomizer_dask.atoms.code.own_modules import is_installed
from atomizer_dask.atoms.code.source_lines import lines_of
from atomizer_dask.atoms.code.values import closure_of, defaults_of
from atomizer_dask.atoms.culprits import culprit_of
from atomizer_dask.atoms.definition import ClassAtom, Definition, FunctionAtom
from atomizer_dask.atoms.global_generators import GENERATORS, drawn_from, is_generator
from atomizer_dask.atoms.namespaces import (
    HOME,
    arrive,
    arrive_function,
    arrive_module,
    fill_function,
    fill_module,
    have_arrived,
    loads,
    name_of,
    name_of_globals,
    recall,
    refer,
)
from atomizer_dask.atoms.reductions import (
    STATED,
    has_fixed_members,
    imported_by,
    is_by_reference,
    names_in,
    place_of,
    reduce_cached,
    reduce_cached_property,
    reduce_enum,
    reduce_global_generator,
    reduce_instance,
    reduce_sentinel,
    reduce_type_variable,
    reduce_weak_mapping,
)
from atomizer_dask.errors import RegistrationError, UnpicklableError
from atomizer_dask.interruptible import is_interrupt
from atomizer_dask.sweeps.lazy_values import is_dask_future

logger = logging.getLogger(__name__)

_FACTS = ("__name__", "__package__", "__path__", "__file__")  # by which functions import
_NOT_STATE = {"__builtins__", "__loader__", "__spec__", "__cached__"}  # of modules
_BY_NAME = {"globals", "eval", "exec"}  # functions that look up globals by name
_CACHED = type(lru_cache(len))

# Objects of these kinds do not change, or only in what the pickler asks about anyway.
_FIXED: tuple[type, ...] = (
    FunctionAtom, ClassAtom, Parameter, CodeType, CellType, BuiltinFunctionType, MethodType,
    _CACHED, Enum, property, classmethod, staticmethod, typing.TypeVar, np.generic, np.dtype,
    Decimal, Fraction, date, time, timedelta, tzinfo, PurePath, re.Pattern, range, UUID,
    logging.Logger,
)  # fmt: skip


class Exempt(NamedTuple):
    """Modules and attributes of the user's own that cannot travel by value.

    Parameters
    ----------
    modules
        These travel by name, as installed ones: workers import their own.
    attributes
        By module: these do not travel, for the atom does not use them.
    """

    modules: frozenset[str] = frozenset()
    attributes: Mapping[str, frozenset[str]] = {}


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles what is the user's own by value and under a name, everything else as it is.

    Attributes
    ----------
    watched
        The functions, classes and modules that it has pickled by value; see `Watched`.
    drawn_from
        The shared generators that its functions draw from; see `global_generators`.
    generators
        Other random generators that it has pickled.
    modules, names
        Names of the user's own modules that it has pickled, and names that functions refer to.
    classes, things
        Classes that it has pickled by value; classes and functions that it has.

    Parameters
    ----------
    file, buffer_callback
        As of `pickle.Pickler`.
    exempt
        What does not travel by value.
    known
        Classes that are referred to by number.
    references
        Gets the Futures of Dask that are pickled, to which the pickle then refers by number, as to
        classes: `loads` is to be given their values.
    by_name
        Whether functions that look up globals by name, as by `eval`, travel with all of them.
    """

    def __init__(
        self,
        file: Any,
        buffer_callback: Any = None,
        exempt: Exempt | None = None,
        known: Sequence[type] = (),
        by_name: bool = True,
        references: list[Any] | None = None,
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        self._exempt = exempt or Exempt()
        self._by_name = by_name
        self._references = references
        self._known = {id(cls): number for number, cls in enumerate(known)}
        self.classes: list[type] = []
        self.things: list[Any] = []
        self.modules, self.names = set[str](), set[str]()
        self.watched = Watched()
        self.drawn_from = set[str]()
        self.generators: list[Any] = []
        self._plain: set[type] = set()  # whose instances are pickled as they are
        self._own: set[type] = set()  # whose instances are looked at one by one
        self._reducers: dict[Any, Callable[[Any], Any]] = {
            FunctionType: self._function,
            ModuleType: self._module,
            BuiltinFunctionType: self._method,
            MethodType: self._method,
            functools.cached_property: reduce_cached_property,
            typing.TypeVar: reduce_type_variable,
            _CACHED: reduce_cached,
            weakref.WeakKeyDictionary: reduce_weak_mapping,
            weakref.WeakValueDictionary: reduce_weak_mapping,
            object: reduce_sentinel,
        }

    def reducer_override(self, thing: Any) -> Any:
        """Return how to pickle something that is no number, text or plain container."""
        kind = type(thing)
        if kind in self._plain:
            return NotImplemented
        if (reduce := self._reducers.get(kind)) is not None:
            return reduce(thing)
        if issubclass(kind, type):
            return self._class(thing)
        if kind not in self._own:
            if self._references is not None and is_dask_future(thing):
                self._reducers[kind] = self._future
                return self._future(thing)
            if is_generator(thing) or id(thing) in GENERATORS:
                return self._generator(thing)
            self.watched.is_fixed &= issubclass(kind, _FIXED) and has_fixed_members(kind)
            if issubclass(kind, Enum) or kind in self.dispatch_table or self._refers_to(kind):
                self._plain.add(kind)
                return NotImplemented
            self._own.add(kind)
        return reduce_instance(thing, kind)

    def _future(self, future: Any) -> Any:
        assert self._references is not None
        keys = [each.key for each in self._references]
        if future.key not in keys:
            self._references.append(future)
            keys.append(future.key)
        return recall, (keys.index(future.key),)

    def _generator(self, generator: Any) -> Any:
        """Reduce the generator behind `numpy.random.normal` and such; others are as they are."""
        module = GENERATORS.get(id(generator))
        if module is not None:  # every process has its own
            self._note_draws(module)
            return reduce_global_generator(module)
        self.generators.append(generator)
        return NotImplemented

    def _method(self, method: Any) -> Any:
        """Reduce `numpy.random.normal` and the like as functions of their modules."""
        module = GENERATORS.get(id(getattr(method, "__self__", None)))
        if module is None:
            return NotImplemented
        self._note_draws(module)
        return getattr, (module, method.__name__)

    def _note_draws(self, module: Any) -> None:
        self.drawn_from.add("random" if module is random else "numpy")

    def _refers_to(self, thing: Any) -> bool:
        """Return whether a function or a class travels by name."""
        return thing.__module__ in self._exempt.modules or is_by_reference(thing)

    def _function(self, function: FunctionType) -> Any:
        if self._refers_to(function):
            return NotImplemented
        self.things.append(function)
        self.modules.add(function.__module__)
        self.names.update(names_in(function.__code__))
        _, (code, facts, _, _, closure), state, *_ = self._dynamic_function_reduce(function)
        scope = function.__globals__
        source = lines_of(function.__code__, scope)
        state[1]["__source__"] = source and tuple(source)  # a store keeps it for other versions
        self.watched.add_function(function, globals_of(code))
        names = ChainMap(closure_of(function), defaults_of(function), scope)
        self.drawn_from |= drawn_from(code, names)
        if self._by_name and _BY_NAME.intersection(code.co_names):  # nobody can know which
            state[1]["__globals__"] |= {
                name: value
                for name, value in scope.items()
                if not name.startswith("__") and _may_go_along(value)
            }
        if not have_arrived(scope):
            for module in imported_by(code, str(scope.get("__package__") or "")):
                state[1]["_cloudpickle_submodules"].append(module)
                self.watched.add_import(module.__name__, module)
        named = name_of(function), place_of(function), (name_of_globals(scope), facts)
        return arrive_function, (*named, code, closure), (fill_function, state), *STATED

    def _class(self, cls: type) -> Any:
        if cls.__module__ == "builtins" or is_by_reference(cls):
            return super().reducer_override(cls)
        if cls.__module__ in self._exempt.modules:
            return NotImplemented
        if (number := self._known.get(id(cls))) is not None:
            return recall, (number,)
        self.classes.append(cls)
        self.things.append(cls)
        self.modules.add(cls.__module__)
        reduced = reduce_class(cls)
        maker, arguments, state, *_, setter = reduced
        *others, _, extra = arguments  # without the id that cloudpickle gives it
        state[0].pop("__slotnames__", None)  # which Python adds when it pickles an instance
        self.watched.add_mapping(vars(cls))
        for value in vars(cls).values():
            if value is random or value is np.random:
                self._note_draws(value)
        if issubclass(cls, Enum):
            maker, others[3], state, setter = reduce_enum(cls, maker, state, setter)
        named = name_of(cls), place_of(cls), maker, (*others, None, extra)
        return arrive, named, (setter, state), *STATED

    def _module(self, module: ModuleType) -> Any:
        name = module.__name__
        if name == "__main__" or is_installed(name, getattr(module, "__file__", None)):
            return NotImplemented
        if name in self._exempt.modules:
            return NotImplemented
        self.modules.add(name)
        given = vars(module)
        self.watched.add_mapping(given)
        facts = {fact: given[fact] for fact in _FACTS if fact in given}
        skipped = _NOT_STATE | self._exempt.attributes.get(name, frozenset())
        state = {key: value for key, value in given.items() if key not in skipped}
        scope = name_of_globals(given), facts
        return arrive_module, (name, scope), (fill_module, state), *STATED


def dumps(value: Any, *, buffer_callback: Any = None, known: Sequence[type] = ()) -> bytes:
    """Return a value as bytes; raises whatever its parts raise when they are pickled.

    Parameters
    ----------
    buffer_callback
        As in `pickle.dumps`.
    known
        Classes that are referred to by number; `loads` is to be given them too.
    """
    file = io.BytesIO()
    Pickler(file, buffer_callback, known=known).dump(value)
    return file.getvalue()


def classes_in(value: Any) -> list[type]:
    """Return the classes that travel by value with a value, as far as it can be pickled."""
    pickler = Pickler(io.BytesIO())
    try:
        pickler.dump(value)
    except BaseException as error:  # of a user's __reduce__: pickling the value reports it
        if is_interrupt(error):
            raise
    return pickler.classes


def dump_atom(definition: Definition) -> bytes:
    """Return an atom as bytes; see `dump_watched`."""
    return dump_watched(definition)[0]


def dump_watched(
    definition: Definition, apart: list[memoryview] | None = None, least: int = 0
) -> tuple[bytes, Watched]:
    """Return an atom as bytes, and a `Watched` that shows whether it has changed since.

    What the user wrote travels by value, so that workers need neither their files nor their
    notebook, and run it as it is now; installed packages go by reference.

    Parameters
    ----------
    apart
        Gets the buffers of at least `least` bytes, which are then not among the bytes.

    Raises
    ------
    UnpicklableError
        Where it uses something that cannot be pickled; the message names it.
    RegistrationError
        Where it draws from a generator that was made outside of it.
    """
    file, buffers = io.BytesIO(), list[memoryview]()

    def stays(buffer: PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes >= least:
            buffers.append(raw)
        return raw.nbytes < least

    pickler = Pickler(file, None if apart is None else stays, exempt=definition.exempt)
    try:
        _dump_watched(definition, pickler)
    except (UnpicklableError, RegistrationError) as error:
        is_fine = can_travel if isinstance(error, UnpicklableError) else _has_no_generator
        exempt = _exempted(definition, pickler, is_fine)
        if exempt == (definition.exempt or Exempt()):
            raise
        definition.exempt = exempt
        return dump_watched(definition, apart, least)
    if pickler.drawn_from != definition.draws_from:
        definition.draws_from = frozenset(pickler.drawn_from)
        return dump_watched(definition, apart, least)
    if apart is not None:
        apart += buffers
    return file.getvalue(), pickler.watched


def _exempted(definition: Definition, pickler: Pickler, is_fine: Callable[[Any], bool]) -> Exempt:
    """Return what must not travel by value: modules, or attributes of them that nobody uses.

    Never the atom's own module, nor the script or notebook: workers may not have these. A module
    with a generator is not exempt either: a worker that imports its own would have a copy, too.
    """
    before: Exempt = definition.exempt or Exempt()
    modules, attributes = set(before.modules), dict(before.attributes)
    for name in pickler.modules - {*_modules_of(definition), "__main__"}:
        given = vars(sys.modules[name]) if name in sys.modules else {}
        bad = {k for k, v in given.items() if k not in _NOT_STATE and not is_fine(v)}
        if not bad & pickler.names:
            attributes[name] = attributes.get(name, frozenset()) | bad
        elif is_fine is can_travel:
            modules.add(name)
    attributes = {name: those for name, those in attributes.items() if those}
    if modules - before.modules:
        logger.warning(
            "%s uses %s, which cannot travel by value: workers import their own, as it was when "
            "they first did",
            definition.id,
            ", ".join(sorted(modules)),
        )
    return Exempt(frozenset(modules), attributes)


def watched_by(definition: Definition) -> Watched:
    """Return a `Watched` that shows whether an atom has changed; the atom need not travel.

    Raises
    ------
    RegistrationError
        Where it draws from a generator that was made outside of it.
    """
    pickler = Pickler(io.BytesIO(), buffer_callback=lambda _: False)  # no copies of arrays
    with suppress(UnpicklableError):
        _dump_watched(definition, pickler)
    definition.draws_from = frozenset(pickler.drawn_from)
    return pickler.watched


def _dump_watched(definition: Definition, pickler: Pickler) -> None:
    try:
        pickler.dump(definition)
    except BaseException as error:
        if is_interrupt(error):
            raise
        culprit = culprit_of(definition, can_travel) or "something it refers to"
        raise UnpicklableError(
            f"{definition.id} cannot travel to a worker: {culprit} cannot be pickled; make it "
            "inside the atom, or once in each process by a function that the atom calls, as in "
            "@functools.cache def connection(): return connect(...)",
            error,
        ) from error
    if pickler.generators:
        raise _refusal_of_generator(definition, pickler.generators[0])


def _refusal_of_generator(definition: Definition, generator: Any) -> RegistrationError:
    culprit = culprit_of(definition, _has_no_generator) or "something it refers to"
    kind = type(generator).__name__
    return RegistrationError(
        f"{definition.id} draws from a random generator that was made outside of it ({culprit} is "
        f"or holds a {kind}): each worker would have a copy, and electrons the same numbers. Name "
        "a parameter context and draw from context.rng, which is each electron's own and follows "
        "seed="
    )


def _may_go_along(value: Any) -> bool:
    """Return whether a global that a function may look up by name can travel with it."""
    pickler = Pickler(io.BytesIO(), by_name=False)
    try:
        pickler.dump(value)
    except BaseException as error:  # then the function does without
        if is_interrupt(error):
            raise
        return False
    return not pickler.generators


def _has_no_generator(value: Any) -> bool:
    pickler = Pickler(io.BytesIO())
    try:
        pickler.dump(value)
    except BaseException as error:  # what cannot be pickled is an error elsewhere
        if is_interrupt(error):
            raise
    return not pickler.generators


def load_atom(data: Any, *, space: str = HOME, buffers: Sequence[Any] | None = None) -> Definition:
    """Return the atom that `dump_atom` wrote, unpickled into a space, with its buffers apart."""
    definition: Definition = loads(data, space=space, buffers=buffers)
    if definition.exempt is not None:
        refer(space, definition.exempt.modules)
    return definition


def _modules_of(definition: Definition) -> set[str]:
    target: Any = getattr(definition, "function", None) or getattr(definition, "cls", None)
    return {target.__module__, inspect.unwrap(target).__module__}


def can_travel(value: Any) -> bool:
    """Return whether a value can be pickled."""
    try:
        dumps(value)
    except BaseException as error:  # any failure is the answer
        if is_interrupt(error):
            raise
        return False
    return True
