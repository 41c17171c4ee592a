"""Atoms as they are registered, and whether a payload fits them."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from difflib import get_close_matches
from inspect import Parameter
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np

from atomizer_dask.atoms.base import Atom, card, marks_of, state_of
from atomizer_dask.atoms.context import EXECUTING, Context
from atomizer_dask.atoms.signature import (
    checked_options,
    id_of,
    parameters_of,
    shown_parameter,
    with_values,
)
from atomizer_dask.display import markup
from atomizer_dask.display.completion import offers
from atomizer_dask.display.text import brief, one_line
from atomizer_dask.errors import InvalidPayloadError, InvalidSweepError, RegistrationError
from atomizer_dask.sweeps import lazy_values

CONTEXT = "context"
P = ParamSpec("P")
R = TypeVar("R")
_ByKeyword = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


class Definition(ABC):
    """An atom as it is registered: what a conductor needs to know to execute it."""

    id: str
    vectorized: bool = False
    isolation: str = ""
    singleton: str = ""
    draws_from: frozenset[str] = frozenset()  # shared generators; see `global_generators`
    exempt: Any = None  # its parts that do not travel by value; see `pickling.Exempt`

    @property
    @abstractmethod
    def identity(self) -> tuple[Hashable, ...]:
        """Equal for two definitions of the same atom, as long as both exist.

        They are the same if they were made of the same objects, and execute in the same way.
        """

    @abstractmethod
    def check_fields(self, names: Iterable[str]) -> None:
        """Raise `InvalidPayloadError` where inputs of these names do not fit."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The defaults of parameters, by name."""
        return {}

    @abstractmethod
    def check_payload(self, payload: Any) -> None:
        """Raise `InvalidPayloadError` where this payload does not fit."""

    def check_copy_state(self, copy_state: bool) -> None:  # noqa: B027 - most have no say
        """Raise `RegistrationError` where an electron cannot get its instance this way."""

    def check_outputs(self, names: Iterable[str]) -> None:  # noqa: B027 - most declare none
        """Raise `InvalidSweepError` where a declared output has the name of an input."""

    @markup.safely
    def _repr_html_(self) -> markup.Html:
        return card(self, None)


@offers("fixed function id isolation parameters singleton vectorized")
class FunctionAtom(Definition, Generic[P, R]):
    """A function as an atom; calling it calls the function.

    Parameters
    ----------
    function
        Its parameters are the fields of the payload. One named ``context`` is given the `Context`.
    id
        ``module.qualname`` unless given.
    vectorized
        The function is given each field as an array, one element per electron.

    Attributes
    ----------
    fixed
        The values of parameters that are the same for all electrons, by name; see `with_fixed`.
    copied
        Those of them of which each electron is given a copy of its own, as of an input.

    Raises
    ------
    RegistrationError
        Where a parameter cannot be given by name, or the function is a coroutine function.
    """

    fixed: Mapping[str, Any] = {}
    copied: frozenset[str] = frozenset()

    def __init__(
        self,
        function: Callable[P, R],
        *,
        id: str | None = None,
        vectorized: bool = False,
        isolation: str = "",
        singleton: str = "",
    ) -> None:
        self.function = function
        self.id = id or id_of(function)
        self.vectorized = vectorized
        self.isolation, self.singleton = checked_options(self.id, isolation, singleton)
        if inspect.iscoroutinefunction(function):
            raise RegistrationError(
                f"{self.id} is a coroutine function; an atom is a plain function"
            )
        if inspect.isgeneratorfunction(function):
            raise RegistrationError(
                f"{self.id} is a generator function; an atom returns its result"
            )
        self.parameters = parameters_of(function, self.id)
        self.takes_context = CONTEXT in self.parameters
        self.takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in self.parameters.values())
        self.fields = {
            name: parameter.default is Parameter.empty
            for name, parameter in self.parameters.items()
            if parameter.kind in _ByKeyword and name != CONTEXT
        }
        functools.update_wrapper(self, function, updated=())
        if self.__doc__ is None:  # or `help` would describe this class
            self.__doc__ = f"The atom {self.id}{self._signature()}; its function has no docstring."

    @property
    def identity(self) -> tuple[Hashable, ...]:  # noqa: D102
        fixed = tuple((name, id(value)) for name, value in self.fixed.items())
        return "function", id(self.function), self.vectorized, self.isolation, self.singleton, fixed

    def with_fixed(
        self, fixed: Mapping[str, Any], copied: Collection[str] = ()
    ) -> FunctionAtom[P, R]:
        """Return the atom with values for some parameters, which all electrons share.

        Parameters
        ----------
        copied
            Those of which each electron is given a copy.

        Raises
        ------
        InvalidPayloadError
            Where it has no such parameter, or one has a value already.
        """
        if not fixed:
            return self
        self._check_names([*fixed], "the fixed values")
        bound = copy.copy(self)
        bound.fixed = {**self.fixed, **fixed}
        bound.copied = self.copied | {*copied}
        bound.fields = {name: needed for name, needed in self.fields.items() if name not in fixed}
        return bound

    @property
    def called(self) -> Callable[..., R]:
        """The function, with the fixed values; an array among them is read-only."""
        if not self.fixed:
            return self.function
        return with_values(self.function, self.fixed, self.copied)

    def without_fixed(self, names: Iterable[str]) -> FunctionAtom[P, R]:
        """Return the atom without the values of some fixed parameters: they come by another way."""
        rest = copy.copy(self)
        rest.fixed = {name: value for name, value in self.fixed.items() if name not in names}
        return rest

    @property
    def defaults(self) -> Mapping[str, Any]:  # noqa: D102
        return {
            name: self.parameters[name].default
            for name, is_required in self.fields.items()
            if not is_required
        }

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function, here and now.

        Its context, where it takes one and none is given, is a `Context` of its own.
        """
        if not self.takes_context and not self.fixed:
            return self.function(*args, **kwargs)
        return self._called_by_hand(args, kwargs)

    def _called_by_hand(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        called = self.called
        if not self.takes_context:
            return called(*args, **kwargs)
        try:
            inputs = inspect.signature(called).bind_partial(*args, **kwargs).arguments
        except TypeError:
            return called(*args, **kwargs)  # Python's own error says what does not fit
        context = inputs.pop(CONTEXT, None)
        if context is None and EXECUTING.depth:  # or its random numbers would be new ones each time
            raise TypeError(
                f"{self.id} takes a context: an atom that calls it as a function gives its own, "
                f"{getattr(self, '__name__', 'f')}(..., context=context)"
            )
        context = Context() if context is None else context
        if isinstance(context, Context):
            context = context.for_call(self.id, inputs, self._rows_of(inputs))
        by_name = {name: value for name, value in kwargs.items() if name != CONTEXT}
        before = list(self.parameters).index(CONTEXT)
        # As the user called it, so that a missing argument is Python's own error.
        if len(args) > before:
            return called(*args[:before], context, *args[before + 1 :], **by_name)
        return called(*args, **by_name, context=context)

    def _rows_of(self, inputs: Mapping[str, Any]) -> int | None:
        """Return for how many electrons inputs of a vectorised atom are; None for other atoms."""
        if not self.vectorized:
            return None
        return max((len(value) for value in inputs.values() if np.ndim(value)), default=1)

    def check_fields(self, names: Iterable[str]) -> None:  # noqa: D102
        given = list(names)
        missing = [name for name, required in self.fields.items() if required and name not in given]
        self._check_names(given, "the inputs", [f"missing {name!r}" for name in missing])

    def _check_names(self, given: list[str], what: str, problems: Iterable[str] = ()) -> None:
        """Raise where values of these names do not fit, or for other problems with them."""
        problems = list(problems)
        if self.takes_context and CONTEXT in given:
            raise InvalidPayloadError(
                f"the parameter 'context' of {self.id} is filled in by atomizer_dask; "
                "rename the input"
            )
        for name in given:
            if name in self.fixed:
                problems.append(f"{name!r} is fixed, with a value for all electrons")
            elif name not in self.fields and not self.takes_any:
                nearest = get_close_matches(str(name), self.fields, n=1)
                hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
                problems.append(f"unknown {name!r}{hint}")
        if problems:
            raise InvalidPayloadError(
                f"{what} {given} do not fit {self.id}{self._signature()}: {', '.join(problems)}"
            )

    def check_payload(self, payload: Any) -> None:  # noqa: D102
        if payload is None:
            payload = {}
        if not isinstance(payload, Mapping):
            example = next(iter(self.fields), "name")
            raise InvalidPayloadError(
                f"the payload of {self.id} must be a mapping of its parameters' names to values, "
                f"as in {{{example!r}: ...}}; got {type(payload).__name__} {payload!r}"
            )
        self.check_fields(payload)

    def check_outputs(self, names: Iterable[str]) -> None:  # noqa: D102
        try:
            returned = typing.get_type_hints(self.function).get("return")
        except (NameError, TypeError, AttributeError):
            return  # annotations that cannot be evaluated declare nothing
        declared = getattr(returned, "__annotations__", {}) if typing.is_typeddict(returned) else {}
        clash = sorted(set(names) & set(declared))
        if clash:
            raise InvalidSweepError(
                f"{self.id} declares the outputs {clash}, which are also names of inputs; "
                "rename one of the two"
            )

    def arrange(self, names: Iterable[str]) -> tuple[list[str], list[str]]:
        """Return which inputs go by position and which by keyword, the context among them."""
        given = [*names, CONTEXT] if self.takes_context else list(names)
        by_position = []
        for name, parameter in self.parameters.items():
            if parameter.kind is not Parameter.POSITIONAL_OR_KEYWORD or name not in given:
                break
            by_position.append(name)
        return by_position, [name for name in given if name not in by_position]

    def _signature(self) -> str:
        hidden = {CONTEXT, *self.fixed}
        shown = (shown_parameter(p) for name, p in self.parameters.items() if name not in hidden)
        return f"({', '.join(shown)})"

    def __repr__(self) -> str:
        signature = one_line(self._signature(), 100)
        return f"<Atom {', '.join([one_line(self.id) + signature, *marks_of(self)])}>"

    @markup.safely
    def _repr_html_(self) -> markup.Html:
        name = getattr(self.function, "__name__", "")
        return card(self, self.function, f"{name}{self._signature()}")


@offers("cls id instance isolation singleton")
class ClassAtom(Definition):
    """An `Atom` subclass, or an instance of one, as it is registered."""

    def __init__(self, cls: type[Atom], instance: Atom | None = None) -> None:
        if inspect.isabstract(cls):
            raise RegistrationError(
                f"{cls.__qualname__} has no method process(context, conductor, electron)"
            )
        if inspect.iscoroutinefunction(cls.process):
            raise RegistrationError(
                f"{cls.__qualname__}.process is a coroutine function; it must be a plain one"
            )
        self.cls = cls
        self.instance = instance
        self.id = (cls if instance is None else instance).id
        self.isolation, self.singleton = checked_options(self.id, cls.isolation, cls.singleton)
        try:
            inspect.signature(cls).bind()
            self.needs: str | None = None
        except TypeError as error:
            self.needs = str(error)
        if self.needs and instance is None:
            raise RegistrationError(
                f"{cls.__qualname__} cannot be made without arguments ({self.needs}); give them "
                "defaults, or register an instance and send with copy_state=True"
            )

    @property
    def identity(self) -> tuple[Hashable, ...]:  # noqa: D102
        instance = None if self.instance is None else id(self.instance)
        return "class", id(self.cls), instance, self.isolation, self.singleton

    def check_fields(self, names: Iterable[str]) -> None:  # noqa: D102
        pass  # what a payload means is known to its process method alone

    def check_payload(self, payload: Any) -> None:  # noqa: D102
        pass

    def check_copy_state(self, copy_state: bool) -> None:  # noqa: D102
        if not copy_state and self.needs:
            raise RegistrationError(
                f"a fresh {self.cls.__qualname__} cannot be made for each electron "
                f"({self.needs}); send with copy_state=True to use copies of the registered one"
            )

    def instantiate(self, copy_state: bool) -> Atom:
        """Return the instance that shall process one electron."""
        if not copy_state:
            return self.cls()
        return self.cls() if self.instance is None else copy.deepcopy(self.instance)

    def __repr__(self) -> str:
        return f"<Atom {', '.join([one_line(self.id), *marks_of(self)])}>"

    @markup.safely
    def _repr_html_(self) -> markup.Html:
        return card(self, self.cls, state=state_of(self.instance) if self.instance else {})


def as_definition(value: Any) -> Definition | None:
    """Return the atom that `value` is or stands for; None where it is no atom."""
    if isinstance(value, Definition):
        return value
    if isinstance(value, Atom):
        return ClassAtom(type(value), value)
    if isinstance(value, type):
        return ClassAtom(value) if issubclass(value, Atom) else None
    if isinstance(value, functools.partial) and not hasattr(value, "__qualname__"):
        return _of_partial(value)
    return FunctionAtom(value) if callable(value) else None


def fixed_of(definition: Definition) -> Mapping[str, Any]:
    """Return the fixed values of an atom; none of one in class form."""
    return definition.fixed if isinstance(definition, FunctionAtom) else {}


def bind_fixed(definition: Definition, fixed: Mapping[str, Any] | None) -> Definition:
    """Return an atom with fixed values of a user; see `FunctionAtom.with_fixed`.

    Raises
    ------
    TypeError
        Where these are no mapping of names to values.
    InvalidPayloadError
        Where they do not fit the atom.
    """
    if fixed is None or (isinstance(fixed, Mapping) and not fixed):
        return definition
    if not isinstance(fixed, Mapping) or not all(isinstance(name, str) for name in fixed):
        raise TypeError(
            f"fixed must be a mapping of the atom's parameters to values, got {brief(fixed)}"
        )
    lazy_values.check_fixed(fixed)
    if not isinstance(definition, FunctionAtom):
        raise InvalidPayloadError(
            f"{definition.id} is an atom in class form, which has no parameters to fix: make them "
            "attributes of an instance, and register that"
        )
    return definition.with_fixed(_as_they_are_now(fixed))


def _as_they_are_now(fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Return fixed values with copies of arrays, which their user may change while a run goes on.

    An array that is read-only, and has its memory to itself, is not copied.
    """
    return {
        name: value.copy("K")
        if isinstance(value, np.ndarray) and (value.flags.writeable or value.base is not None)
        else value
        for name, value in fixed.items()
    }


def _of_partial(partial: functools.partial[Any]) -> Definition | None:
    """Return the atom of a `functools.partial`: that of its function, with fixed values."""
    definition = as_definition(partial.func)
    if not isinstance(definition, FunctionAtom):
        raise RegistrationError(
            f"a partial of {brief(partial.func)} is no atom: only the parameters of a function can "
            "be fixed; register an instance of an atom in class form"
        )
    by_position = [
        name
        for name, parameter in definition.parameters.items()
        if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD and name not in definition.fixed
    ]
    names = by_position[: len(partial.args)]
    if len(names) < len(partial.args) or CONTEXT in names:
        raise RegistrationError(
            f"the partial of {definition.id} gives {len(partial.args)} values by position, which "
            f"do not fit {definition.id}{definition._signature()}: give them by name"
        )
    values = dict(zip(names, partial.args, strict=True)) | partial.keywords
    lazy_values.check_fixed(values)
    return definition.with_fixed(_as_they_are_now(values))


def as_it_is_now(definition: Definition) -> Definition:
    """Return the atom that its module has under the same name and id today.

    It is another one after a cell was edited or a module reloaded; else the definition itself.
    """
    made_of: Any = getattr(definition, "function", None) or getattr(definition, "cls", None)
    made_of = inspect.unwrap(made_of) if callable(made_of) else made_of
    found: Any = sys.modules.get(getattr(made_of, "__module__", None) or "")
    name = getattr(made_of, "__qualname__", "<>")
    for part in () if "<" in name else name.split("."):
        found = getattr(found, part, None)
    if "<" in name or found is made_of or getattr(definition, "instance", None) is not None:
        return definition
    today = as_definition(found) if _is_alike(found, definition) else None
    if today is None or today.id != definition.id:
        return definition
    fixed = fixed_of(definition)
    if fixed and getattr(today, "function", None) is getattr(definition, "function", None):
        return definition
    return bind_fixed(today, fixed)


def _is_alike(found: Any, definition: Definition) -> bool:
    """Return whether an object found in a module may replace an atom."""
    if isinstance(found, Definition):
        return type(found) is type(definition) and found.vectorized == definition.vectorized
    if isinstance(definition, ClassAtom):
        return isinstance(found, type) and issubclass(found, Atom)
    return inspect.isfunction(found) and not definition.vectorized
