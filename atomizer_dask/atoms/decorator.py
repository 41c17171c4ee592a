"""The decorator that makes a function an atom."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, overload

from atomizer_dask.atoms.base import Atom
from atomizer_dask.atoms.definition import FunctionAtom, P, R
from atomizer_dask.atoms.signature import checked_options
from atomizer_dask.errors import RegistrationError

C = TypeVar("C", bound=type[Atom])


class _Decorator(Protocol):
    """What ``atom`` with options is: a decorator of functions, and of subclasses of `Atom`."""

    @overload
    def __call__(self, function: C, /) -> C: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[P, R], /) -> FunctionAtom[P, R]: ...


@overload
def atom(function: C, /) -> C: ...  # type: ignore[overload-overlap]
@overload
def atom(function: Callable[P, R], /) -> FunctionAtom[P, R]: ...
@overload
def atom(
    *,
    id: str | None = None,
    vectorized: bool = False,
    isolation: str | None = None,
    singleton: str | None = None,
) -> _Decorator: ...


def atom(
    function: Any = None,
    /,
    *,
    id: str | None = None,
    vectorized: bool = False,
    isolation: str | None = None,
    singleton: str | None = None,
) -> Any:
    """Make a function an atom, as a decorator with or without options.

    Parameters
    ----------
    function
        Its parameters are the fields of the payload. It returns a scalar, an array, or a dict
        whose entries become columns. One parameter may be named ``context``: see `Context`.
        A subclass of `Atom` gets the options as class attributes.
    id
        ``module.qualname`` unless given.
    vectorized
        Hand each field over as a NumPy array with one element per electron; the function returns
        an array, a dict of arrays or a DataFrame of that length, or a pair of these and of an
        array that says which rows have failed: booleans, texts that are empty where all is well,
        or None and exceptions. How many electrons are handed over at once varies: the result for
        one must not depend on the others. A few are executed again in smaller slices, and where
        their numbers differ electrons fail with `DependentRowsError`.
    isolation
        ``"process"``: execute electrons in a child process of the worker, where a crash harms
        nothing else. Electrons with a timeout run in one anyway.
    singleton
        ``"node"``: never two electrons at once in one worker process. ``"cluster"``: never two at
        once anywhere. The instance of a class is kept between electrons.

    Raises
    ------
    RegistrationError
        Where a parameter cannot be given by name, or an option makes no sense.

    Examples
    --------
    >>> @atom
    ... def add(x, y=1):
    ...     return x + y
    >>> add
    <Atom atomizer_dask.atoms.decorator.add(x, y=1)>
    >>> add(2)
    3
    """
    given = {"isolation": isolation, "singleton": singleton}
    options = {name: value for name, value in given.items() if value is not None}
    if function is None:
        return functools.partial(_atom, id=id, vectorized=vectorized, options=options)
    return _atom(function, id=id, vectorized=vectorized, options=options)


def _atom(function: Any, *, id: str | None, vectorized: bool, options: dict[str, str]) -> Any:
    if isinstance(function, type) and issubclass(function, Atom) and not vectorized:
        checked_options(
            id or function.id, options.get("isolation", ""), options.get("singleton", "")
        )
        for name, value in {**({"id": id} if id else {}), **options}.items():
            setattr(function, name, value)
        return function
    if isinstance(function, type) or not callable(function):
        raise RegistrationError(
            f"@atom makes an atom of a function, got {function!r}; in class form subclass Atom "
            "and set its id as a class attribute"
        )
    return FunctionAtom(function, id=id, vectorized=vectorized, **options)
