"""What code an atom consists of: the same on every machine for the same source.

A function counts by its bytecode, so comments, docstrings and its place do not matter, and neither
does the name of its module. What it refers to is followed as far as it is the user's own; installed
packages count by name, their versions are in `provenance`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import unified_diff
from functools import partial
from typing import Any

from atomizer_dask.atoms.code.own_modules import home_of
from atomizer_dask.atoms.code.references import References
from atomizer_dask.atoms.definition import Definition


@dataclass(frozen=True, slots=True)
class Code:
    """The code of an atom: a digest, and the sources by name, to show what changed.

    Attributes
    ----------
    fingerprint
        16 hex digits, which depend neither on the id of the atom nor on the names of modules.
    parts
        ``module.qualname`` of each function, class and value, to the digest of it alone.
    sources
        The same names, to the source or a short text of the value, at most 2000 characters.
    in_full
        Returns the fingerprint in the form that it had until version 0.2, which is slow for large
        buffers; None where it is the same.
    """

    fingerprint: str
    parts: dict[str, str]
    sources: dict[str, str]
    in_full: Callable[[], str] | None = field(default=None, compare=False, repr=False)

    def has(self, fingerprint: str) -> bool:
        """Return whether this is the code of a fingerprint, which may be of an earlier version."""
        if self.fingerprint == fingerprint:
            return True
        return self.in_full is not None and self.in_full() == fingerprint

    def to_json(self) -> dict[str, Any]:
        """Return it as plain dicts and strings."""
        return {
            "fingerprint": self.fingerprint,
            "parts": self.parts,
            "sources": self.sources,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Code:
        """Return what `to_json` wrote."""
        return cls(data["fingerprint"], dict(data["parts"]), dict(data["sources"]))

    def changes_to(self, other: Code) -> str:
        """Return the differences of `other` as a text for people; empty where there are none."""
        if self.fingerprint == other.fingerprint:
            return ""
        lines = [
            _change(name, self.sources.get(name, ""), other.sources.get(name, ""))
            for name in self.parts.keys() & other.parts.keys()
            if self.parts[name] != other.parts[name]
        ]
        for kind, here, there in (
            ("gone", self.parts, other.parts),
            ("new", other.parts, self.parts),
        ):
            elsewhere = set(there.values())  # it only moved
            lines += [f"{kind}: {n}" for n in here.keys() - there if here[n] not in elsewhere]
        return "\n".join(sorted(lines)) or "the same parts refer to each other in another way"


def _change(name: str, before: str, now: str) -> str:
    if before == now:
        return f"{name}: changed, but not in what is kept of its source"
    if "\n" not in before + now:
        return f"{name}: {before} -> {now}"
    sides = before.splitlines(), now.splitlines()
    return "\n".join(unified_diff(*sides, f"{name} before", f"{name} now", lineterm=""))


def code_of(definition: Definition) -> Code:
    """Return what code an atom consists of.

    Values count as they are now, apart from globals that the atom's code assigns itself. What is
    imported within functions counts as a whole file where it is the user's own. Objects that
    cannot be pickled count by their type.

    >>> from atomizer_dask.atoms.definition import FunctionAtom
    >>> def double(x):
    ...     return FACTOR * x
    >>> FACTOR = 2
    >>> before = code_of(FunctionAtom(double))
    >>> FACTOR = 3
    >>> print(before.changes_to(code_of(FunctionAtom(double))))
    atomizer_dask.atoms.code.fingerprint.FACTOR: 2 -> 3
    """
    walk = References(home_of(definition))
    fingerprint = walk.fingerprint(definition)
    parts, sources = dict[str, str](), dict[str, str]()
    for part in walk.parts:
        name, count = part.name, 1
        while name in parts:
            count += 1
            name = f"{part.name}#{count}"
        parts[name], sources[name] = part.digest, part.text()
    in_full = partial(_fingerprint_in_full, definition) if walk.has_digests else None
    return Code(fingerprint, parts, sources, in_full)


def _fingerprint_in_full(definition: Definition) -> str:
    return References(home_of(definition), in_full=True).fingerprint(definition)
