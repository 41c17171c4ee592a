"""The atom in a store, and whether it is still the same."""

from __future__ import annotations

import inspect
import os
from typing import Any, Literal

from atomizer_dask.atoms.code.fingerprint import Code
from atomizer_dask.atoms.definition import Definition, fixed_of
from atomizer_dask.atoms.pickling import dump_atom
from atomizer_dask.errors import StoreChangedError
from atomizer_dask.store.layout import ATOM
from atomizer_dask.store.provenance import described_values, differences, versions
from atomizer_dask.store.signature import sign
from atomizer_dask.store.store import Store, now


def target_of(definition: Definition) -> str:
    """Return where an atom can be loaded from, ``FILE:NAME``; nothing where that is unknown."""
    made_of = getattr(definition, "function", None) or getattr(definition, "cls", None)
    name = getattr(made_of, "__qualname__", "")
    try:
        file = inspect.getsourcefile(inspect.unwrap(made_of)) if callable(made_of) else None
    except TypeError:
        file = None
    known = file is not None and os.path.exists(file) and "<" not in name
    return f"{os.path.abspath(file)}:{name}" if known and file is not None else ""


def keep_atom(store: Store, definition: Definition) -> None:
    """Write the atom into a store as a pickle, and its signature into the manifest."""
    data = dump_atom(definition)
    store.write_bytes(ATOM, data)
    atom = store.manifest.setdefault("atom", {})
    atom["signature"] = sign(data)
    atom["fixed"] = described_values(fixed_of(definition))


def code_entry(code: Code) -> dict[str, Any]:
    """Return the entry of a manifest for code that begins to run."""
    return {**code.to_json(), "since": now(), "versions": versions()}


def check_code(
    store: Store, code: Code, *, accept: bool
) -> Literal["none", "accepted"] | StoreChangedError:
    """Compare the atom and its environment with those that the store was made with.

    Returns ``"none"`` where nothing differs; ``"accepted"`` where something differs, `accept` is
    True, and the manifest has a new entry; and the error for `accept_environment` where only the
    environment differs.

    Raises
    ------
    StoreChangedError
        Where the atom differs, and `accept` is False; the message shows what changed.
    """
    last = store.manifest["codes"][-1]
    before = Code.from_json(last)
    is_same = code.has(before.fingerprint)
    changes = "" if is_same else before.changes_to(code)
    others = differences(last["versions"], versions())
    if is_same and not others:
        return "none"
    if accept:
        store.manifest["codes"].append(code_entry(code))
        return "accepted"
    what = "\n".join([*others, changes or ""]).strip() or "the code of the atom"
    error = StoreChangedError(
        f"{store.folder.url} was made with another {'environment' if is_same else 'atom'}:\n"
        f"{what}\n"
        "Results of both would stand side by side. Give another store, undo the change, or go on "
        "with accept_changes=True, of map and attach (--accept-changes): to_frame(metadata=True) "
        "then says in the column 'code' which electrons ran under which."
    )
    if is_same:
        return error
    raise error
