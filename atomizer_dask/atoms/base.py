"""Atoms in class form."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from atomizer_dask.display import markup
from atomizer_dask.display.text import one_line
from atomizer_dask.electron import Electron

if TYPE_CHECKING:
    from atomizer_dask.atoms.context import ChildSender, Context


class Atom(ABC):
    """Business logic in class form: subclass it and give `process`.

    Every electron gets a fresh instance, made by calling the class without arguments, unless it
    asks for a copy of the registered one (`Electron.copy_state`).

    Attributes
    ----------
    id
        ``module.QualName`` unless the class says otherwise.
    isolation, singleton
        As in `atom`. A singleton's one instance is kept between electrons.

    Examples
    --------
    >>> class Double(Atom):
    ...     id = "doc.Double"
    ...
    ...     def process(self, context, conductor, electron):
    ...         return 2 * electron.payload
    """

    id: ClassVar[str]
    isolation: ClassVar[str] = ""
    singleton: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "id" not in cls.__dict__:
            cls.id = f"{cls.__module__}.{cls.__qualname__}"

    @abstractmethod
    def process(self, context: Context, conductor: ChildSender, electron: Electron) -> Any:
        """Return the result for one electron; whatever it raises becomes the electron's error.

        Parameters
        ----------
        context
            The electron's random stream, events and more.
        conductor
            Sends further electrons: ``conductor.send(Electron(...))`` gives a future.
        electron
            The request, with its payload.
        """

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, an instance of the atom {one_line(self.id)}>"

    @markup.safely
    def _repr_html_(self) -> markup.Html:
        return card(self, type(self), state=state_of(self))


def marks_of(of: Any) -> list[str]:
    """Return the options of an atom that are not their defaults, as short texts."""
    vectorised = ["vectorised"] if getattr(of, "vectorized", False) else []
    options = ("isolation", of.isolation), ("singleton", of.singleton)
    return vectorised + [f"{name} {one_line(chosen)}" for name, chosen in options if chosen]


def state_of(instance: Any) -> dict[str, Any]:
    """Return the attributes that an instance has of its own."""
    return dict(getattr(instance, "__dict__", {}))


def card(
    of: Any, source: Any, signature: str = "", state: Mapping[str, Any] | None = None
) -> markup.Html:
    """Return what a notebook shows of an atom, or of its definition.

    Parameters
    ----------
    of
        The atom, with its id, isolation and singleton.
    source
        The function or class whose docstring is shown.
    signature
        How it is called.
    state
        The attributes of the registered instance.
    """
    documentation = getattr(source, "__doc__", None) or ""
    first = next(iter(inspect.cleandoc(documentation[:2000]).splitlines()), "")
    call = {"signature": markup.code(signature, 200) if signature else None}
    kept = markup.fields(state, "state") if state else {}
    return markup.card(
        "Atom",
        markup.Html(f"<div>{markup.text(first, 300)}</div>") if first else None,
        markup.facts(call | kept),
        beside=[markup.code(of.id), *map(markup.badge, marks_of(of))],
    )
