"""How a store is laid out: the names of its folders and files, and the states in its manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

MANIFEST = "run.json"
CORRUPTED = "corrupted"
PROPERTIES, FAILURES, MERGING, SWEEP = "properties", "failures", "merging", "sweep"
FAILED = "failed-"  # begins the name of a file of properties in which all electrons failed

HOLDER = "holder.json"
LOCK_FILES = "holder-"  # begins the names of claims, signs of life and probes
CLAIM = "holder-after-"  # begins the names of files by which processes claim the lock

ATOM = "atom.pickle"

ROWS = "rows-"  # begins the names of files with rows of a streamed sweep

INCOMING = "incoming"
OUTPUT = "output"

if TYPE_CHECKING:
    State: TypeAlias = Literal[
        "running", "paused", "finished", "cancelled", "failed", "suspended", "detached"
    ]
else:
    State = str  # jedi cannot complete a name after `run.` where a property returns a Literal
GOING: tuple[State, ...] = ("running", "paused")
