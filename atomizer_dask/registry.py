"""Which atoms and conductors are known, by id."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np

from atomizer_dask.atoms.definition import Definition, as_definition, bind_fixed, fixed_of
from atomizer_dask.conductor import Conductor
from atomizer_dask.errors import RegistrationError
from atomizer_dask.sweeps import lazy_values
from atomizer_dask.sweeps.equality import same_bits


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


class _Bound(NamedTuple):
    """An atom with fixed values, as it was last sent."""

    definition: Definition
    given: Mapping[str, Any]
    bound: Definition

    def is_of(self, definition: Definition, fixed: Any) -> bool:
        """Return whether these values of an atom are the same objects, and have not changed."""
        return (
            definition.identity == self.definition.identity
            and isinstance(fixed, Mapping)
            and list(fixed) == list(self.given)
            and all(value is self.given[name] for name, value in fixed.items())
            and all(
                # A masked array, say, has more than its bits, and is bound anew.
                type(value) is np.ndarray and same_bits(value, fixed_of(self.bound)[name])
                for name, value in fixed.items()
                if isinstance(value, np.ndarray)
            )
        )


class AtomLookup:
    """Finds the atom that a user means: one of a registry, of all, or one that is not registered.

    Parameters
    ----------
    registry
        The registry that is searched first.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._last: _Bound | None = None  # of `resolve_for_send`

    def find(self, atom_id: str) -> Definition | None:
        """Return the atom that is registered under this id now; None where there is none."""
        return self._registry.atoms.get(atom_id) or registered.atoms.get(atom_id)

    def resolve(self, atom: Any) -> tuple[str, Definition | None]:
        """Return the id that an atom has, or is, and the atom; None for an id that is not known.

        Raises
        ------
        RegistrationError
            Where it is neither an atom nor an id.
        """
        if isinstance(atom, str):
            return atom, self.find(atom)
        definition = as_definition(atom)
        if definition is None:
            raise RegistrationError(
                "expected an atom, the id of one, or an Electron; got "
                f"{type(atom).__name__} {atom!r}"
            )
        # An atom that is registered under this very object keeps its version; see `version_of`.
        known = self.find(definition.id)
        same = known is not None and known.identity == definition.identity
        return definition.id, known if same else definition

    def resolve_for_send(
        self, atom: Any, fixed: Mapping[str, Any] | None
    ) -> tuple[str, Definition | None]:
        """Return what `resolve` does, with fixed values.

        It is the same atom as last time where the values are the same objects: its version, with
        all that is large in it, is known then.

        Raises
        ------
        RegistrationError
            Where the atom is not known here.
        TypeError, InvalidPayloadError
            Where the values do not fit it.
        """
        atom_id, definition = self.resolve(atom)
        if fixed is None:
            return atom_id, definition
        if definition is None:
            raise self.unknown(atom_id)
        last = self._last  # read once: another thread may send too
        if last is None or not last.is_of(definition, fixed):
            bound = bind_fixed(definition, fixed)
            lazy_values.check_payload(fixed)  # a Future of Dask is for `map`
            last = self._last = _Bound(definition, dict(fixed), bound)
        return atom_id, last.bound

    def forget(self) -> None:
        """Keep no fixed values of what was sent, nor their files in memory."""
        self._last = None

    def definition_of(self, atom: Any, fetch: Callable[[str], Definition | None]) -> Definition:
        """Return an atom, also one that another client of the same scheduler registered.

        Parameters
        ----------
        fetch
            Returns the atom of an id that is not registered here, None where there is none.

        Raises
        ------
        RegistrationError
            Where nobody knows it.
        """
        atom_id, definition = self.resolve(atom)
        definition = definition or fetch(atom_id)
        if definition is None:
            raise self.unknown(atom_id)
        return definition

    def unknown(self, atom_id: str) -> RegistrationError:
        """Return the error for an id that nobody knows, with a hint."""
        known = Registry()
        known.update(registered)
        known.update(self._registry)
        return RegistrationError(f"no atom {atom_id!r} is registered; {known.hint(atom_id)}")


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
