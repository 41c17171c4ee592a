"""Which atoms and conductors are known, by id."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from atomizer_dask.atoms.definition import Definition, as_definition
from atomizer_dask.conductor import Conductor
from atomizer_dask.errors import RegistrationError


class Registry:
    """Atoms and conductors by id; one of the same id overrides."""

    def __init__(self) -> None:
        self.atoms: dict[str, Definition] = {}
        self.conductors: dict[str, Conductor] = {}

    def register(self, value: Any) -> Definition | Conductor:
        """Add an atom or a conductor, and return the `Definition` or the `Conductor`.

        Raises
        ------
        RegistrationError
            Where it is neither.
        """
        if isinstance(value, Conductor):
            self.conductors[value.id] = value
            return value
        definition = as_definition(value)
        if definition is None:
            raise RegistrationError(
                f"cannot register {value!r} ({type(value).__name__}); expected an atom (a "
                "function, an Atom subclass or an instance of one) or an instance of a Conductor"
            )
        self.atoms[definition.id] = definition
        return definition

    def update(self, other: Registry) -> None:
        """Add all that another registry holds."""
        self.atoms.update(other.atoms)
        self.conductors.update(other.conductors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.atoms)

    def hint(self, atom_id: str) -> str:
        """Return a hint for the message about an id that is not registered here."""
        nearest = get_close_matches(atom_id, self.atoms, n=1)
        if nearest:
            return f"did you mean {nearest[0]!r}?"
        return f"registered here: {', '.join(self.atoms) or 'none'}"


registered = Registry()


def register(*values: Any) -> None:
    """Register atoms and conductors for every atomizer made from now on.

    Parameters
    ----------
    *values
        Atoms (functions, `Atom` subclasses, instances of them) and conductors. One with the id
        of an earlier one overrides it.

    Raises
    ------
    RegistrationError
        Where a value is neither.
    """
    for value in values:
        registered.register(value)
