"""An atom that is named on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from atomizer_dask.atoms.definition import Definition, as_definition


def load_atom(target: str) -> Definition:
    """Return the atom that is named as ``MODULE:ATOM``.

    Raises
    ------
    click.UsageError
        Where there is no such module or atom; the message names the nearest name.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise click.UsageError(
            f"expected MODULE:ATOM, as in examples/ising.py:ising, got {target!r}"
        )
    module = _import(place)
    value = getattr(module, name, None)
    definition = None if value is None else as_definition(value)
    if definition is None:
        nearest = get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        what = "nothing" if value is None else f"no atom but {type(value).__name__}"
        raise click.UsageError(f"{place} has {what} of the name {name!r}{hint}")
    return definition


def _import(place: str) -> Any:
    if not place.endswith(".py"):
        sys.path.insert(0, "")
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise click.UsageError(f"cannot import {place!r}: {error}") from error
    path = Path(place)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        raise click.UsageError(f"there is no file {place}")
    module = importlib.util.module_from_spec(spec)
    # In sys.modules, where `atoms/code/own_modules.py` finds it to be the user's own code.
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module
