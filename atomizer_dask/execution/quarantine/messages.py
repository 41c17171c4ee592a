"""The messages between a worker's thread and the child process that executes for it.

::

    worker thread (`parent`)  ── `ToChild`  ──▶  child process (`child`)
                              ◀── `ToParent` ──

They travel pickled. What is the user's, as electrons and outcomes, is pickled within them: each
side unpickles it in the space of its atom, where it can fail alone.
"""

from __future__ import annotations

from typing import NamedTuple

from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.execution.batch import Origin
from atomizer_dask.execution.packing import Packed


class Piece(NamedTuple):
    """A piece of a batch is to be executed.

    Parameters
    ----------
    space
        The space of the batch's atom.
    batch
        The piece, packed, in bytes.
    code
        The pickled atom; None where the child has it.
    worker
        The name of the worker, for the outcome.
    folders
        Settings of the worker that say where large values lie.
    """

    space: str
    batch: bytes
    code: bytes | None
    worker: str
    folders: dict[str, str | None]


class PieceCancelled(NamedTuple):
    """The electron at an offset of the piece is cancelled; all of them where it is None."""

    offset: int | None


class AtomsForgotten(NamedTuple):
    """The child needs the atoms of some spaces no more."""

    spaces: list[str]


class ElectronSettled(NamedTuple):
    """An electron that the child sent has ended; `properties` are pickled."""

    token: int
    properties: bytes


class ElectronLost(NamedTuple):
    """An electron that the child sent has no result; `error` is pickled."""

    token: int
    error: bytes


class PieceDone(NamedTuple):
    """The piece has ended."""

    outcome: Packed


class PieceRejected(NamedTuple):
    """The piece could not be executed at all."""

    why: str


class EventEmitted(NamedTuple):
    """An electron emitted an event, which is pickled."""

    event: bytes


class ElectronWaiting(NamedTuple):
    """The running electron is about to wait for others that it sent."""


class ElectronSent(NamedTuple):
    """The running electron sends another.

    Parameters
    ----------
    token
        By which the parent names the electron.
    electron
        The electron, pickled.
    origin, root, stream
        From where it comes; see `Site.children`.
    """

    token: int
    electron: bytes
    origin: Origin
    root: str
    stream: RandomStream


class ElectronCancelled(NamedTuple):
    """An electron that the child sent is cancelled."""

    token: int


ToChild = Piece | PieceCancelled | AtomsForgotten | ElectronSettled | ElectronLost
ToParent = (
    PieceDone | PieceRejected | EventEmitted | ElectronWaiting | ElectronSent | ElectronCancelled
)
