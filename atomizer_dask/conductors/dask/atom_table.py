"""The atoms that a scheduler keeps, by version, for all its clients."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from distributed import Client

from atomizer_dask.atoms.atom_code import AtomCode, DumpedAtom
from atomizer_dask.atoms.definition import Definition
from atomizer_dask.atoms.namespaces import forget
from atomizer_dask.atoms.required_modules import required_modules_of
from atomizer_dask.conductors.dask.atom_versions import AtomVersions, Version
from atomizer_dask.conductors.dask.messages import AtomsClaimed, as_event
from atomizer_dask.conductors.dask.placement import Placement
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import METADATA
from atomizer_dask.errors import RegistrationError


class AtomTable:
    """Atoms in the scheduler's metadata: the versions of this process, and those of others.

    Parameters
    ----------
    client
        A client connected to the scheduler.
    ask
        Calls a function that asks the scheduler; raises `ConductorError` where that is gone.
    placement
        Its `fitness` checks whether workers have the modules that each atom needs.
    """

    def __init__(self, client: Client, ask: Callable[..., Any], placement: Placement) -> None:
        self._client = client
        self._ask = ask
        self._placement = placement
        self._versions = AtomVersions(self._keep, self._name, self._release)

    def version_of(self, definition: Definition) -> Version:
        """Return the version that an atom has now, which the scheduler keeps as long as needed."""
        return self._versions.of(definition)

    def publish(self, definition: Definition) -> None:
        """Publish an atom to every client of the scheduler, and to children of its electrons."""
        self._versions.register(definition)

    @property
    def catalog(self) -> Mapping[str, str]:
        """The versions that descendants of an electron find, by atom id."""
        return self._versions.catalog

    def release_unneeded(self, *, is_idle: bool = True) -> None:
        """Release the versions that nobody here refers to any more."""
        self._versions.release_unneeded(is_idle=is_idle)

    def find_version(self, atom_id: str) -> str | None:
        """Return the version of an atom that another client of the scheduler published."""
        digest: str | None = self._ask(
            self._client.get_metadata, [METADATA, f"id:{atom_id}"], default=None
        )
        return digest

    def fetch(self, atom_id: str) -> Definition | None:
        """Return an atom that another client of the scheduler published."""
        version = self.find_version(atom_id)
        data = version and self._ask(self._client.get_metadata, [METADATA, version], default=None)
        # Not in the space `HOME`: modules of that client may have the names of other modules here.
        if not data:
            return None
        space = f"fetched {version}"
        try:
            definition = AtomCode.of(data).load(space=space)
        except FileNotFoundError as error:
            raise RegistrationError(
                f"the atom {atom_id!r} of another client uses large values, which are not on this "
                "host: send to it, or register it here, to map it"
            ) from error
        weakref.finalize(definition, forget, space).atexit = False
        return definition

    def code_of(self, version: str) -> bytes:
        """Return the bytes of a version."""
        code: bytes = self._ask(self._client.get_metadata, [METADATA, version])
        return code

    def _keep(self, digest: str, definition: Definition, dumped: DumpedAtom) -> None:
        fitness = self._placement.fitness
        if fitness is not None:
            required = required_modules_of(definition, dumped.pickled)
            self._ask(fitness.require, definition.id, digest, required)
        self._claim([digest], [])
        self._ask(self._client.set_metadata, [METADATA, digest], dumped.code.to_bytes())

    def _name(self, atom_id: str, version: str) -> None:
        self._ask(self._client.set_metadata, [METADATA, f"id:{atom_id}"], version)

    def _release(self, versions: list[str]) -> None:
        if self._placement.fitness is not None:
            self._placement.fitness.forget_atoms(versions)
        if self._client.status == "running":
            self._claim([], versions)

    def _claim(self, needed: list[str], unneeded: list[str]) -> None:
        """Have the scheduler keep versions for this client, and release others."""
        message = AtomsClaimed(self._client.id, needed, unneeded)
        ask = self._client.scheduler.log_event
        self._ask(self._client.sync, ask, **as_event(message))
