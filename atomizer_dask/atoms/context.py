"""What an atom may ask for by naming a parameter ``context``."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from operator import index as as_index
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from atomizer_dask.atoms.random_streams import Positioned, RandomStream, seed_of, uniform
from atomizer_dask.display import markup
from atomizer_dask.display.completion import offers
from atomizer_dask.display.text import one_line
from atomizer_dask.electron import Electron
from atomizer_dask.events import Event, Level

if TYPE_CHECKING:
    from atomizer_dask.errors import ElectronError
    from atomizer_dask.future import ElectronFuture

logger = logging.getLogger(__name__)


class _Executing(threading.local):
    """Within it, this thread executes electrons of a run; one may execute others meanwhile."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *error: object) -> None:
        self.depth -= 1


EXECUTING = _Executing()


class Surrounded(Protocol):
    """What a context reads of the batch that its electron is in."""

    @property
    def atom_id(self) -> str:
        """Id of the atom."""

    @property
    def run_id(self) -> str:
        """Id of the run; empty for electrons sent one by one."""

    @property
    def terms(self) -> Any:
        """Terms of this attempt."""

    def electron_id(self, offset: int) -> str:
        """Return the id of the electron at an offset."""

    def electron(self, offset: int) -> Electron:
        """Return the request at an offset."""

    def failures(self, offset: int) -> tuple[ElectronError, ...]:
        """Return what the earlier attempts of the electron at an offset failed with."""

    def address(self, offset: int) -> tuple[RandomStream, int]:
        """Return the random stream of an electron, and its index on it."""

    def addresses_of(self, start: int, count: int) -> tuple[RandomStream, Any]:
        """Return the random stream of a slice, and the indices of its electrons on it."""


class Surroundings(Protocol):
    """What a context asks of the lease that executes its electron."""

    rng: Positioned

    @property
    def making(self) -> AbstractContextManager[Any]:
        """The lock that is held while an electron's conductor is made."""

    @property
    def batch(self) -> Surrounded:
        """The batch that executes."""

    @property
    def watch(self) -> Any:
        """The watch over the electron's time; None where there is no timeout."""

    def is_cancelled(self, offset: int) -> bool:
        """Return whether the electron at an offset shall end."""

    def conductor(self, offset: int) -> ChildSender:
        """Return the conductor through which the electron at an offset sends others."""

    def emit(self, event: Event) -> None:
        """Put an event on the stream of the batch's sender."""


class ChildSender(Protocol):
    """The conductor that an atom is given, through which its electron sends others."""

    @property
    def shares_queue(self) -> bool:
        """Whether other programs may execute what it sends, each electron by itself."""

    def send(self, electron: Electron) -> ElectronFuture:
        """Have an electron executed, and return the future of its outcome."""


class Alone:
    """What surrounds an atom that its user calls: an electron by itself, in no run.

    It stands for the lease and for the batch in it.

    Parameters
    ----------
    seed
        Of the random stream; a new one where None.
    index
        Of the electron on it.
    """

    run_id = ""
    watch = None
    terms = SimpleNamespace(attempt=1)

    def __init__(self, seed: int | None, index: int) -> None:
        self.rng = Positioned()
        self.making = threading.Lock()
        self.atom_id = ""
        self._stream = RandomStream(seed_of(seed))
        self._index = as_index(index)
        self._payload: Mapping[str, Any] | None = None

    def within(self, atom_id: str, payload: Mapping[str, Any]) -> Alone:
        """Return the same for a call of an atom with these inputs; its stream begins anew."""
        called = copy.copy(self)
        called.rng = Positioned()
        called.atom_id, called._payload = atom_id, payload
        return called

    @property
    def batch(self) -> Alone:
        """Itself."""
        return self

    def electron_id(self, offset: int) -> str:
        """Return a text that says that there is no id."""
        return f"called-{self._index + offset}"

    def electron(self, offset: int) -> Electron:
        """Return a request with the inputs of the call."""
        payload = None if self._payload is None else dict(self._payload)
        return Electron(self.atom_id or "called", payload, id=self.electron_id(offset))

    def failures(self, offset: int) -> tuple[ElectronError, ...]:
        """Return nothing: there was no earlier attempt."""
        return ()

    def address(self, offset: int) -> tuple[RandomStream, int]:
        """Return the random stream, and the index of the electron on it."""
        return self._stream, self._index + offset

    def addresses_of(self, start: int, count: int) -> tuple[RandomStream, Any]:
        """Return the random stream, and the indices of the electrons of a slice on it."""
        first = self._index + start
        return self._stream, np.arange(first, first + count, dtype=np.uint64)

    def is_cancelled(self, offset: int) -> bool:
        """Return False: whoever calls a function may interrupt it."""
        return False

    def conductor(self, offset: int) -> ChildSender:
        """Raise: nothing carries electrons here."""
        raise AttributeError(
            f"{self.atom_id or 'an atom'} was called as a function, in no run, and there is no "
            "conductor to send electrons: Atomizer(MemoryConductor(), ...).send(atom, payload) "
            "executes it in this process, or give context= an object of your own with a conductor"
        )

    def emit(self, event: Event) -> None:
        """Log an event: there is no stream of a run."""
        logger.log(getattr(logging, event.level.upper()), "%s", event)


@offers("attempt cancelled conductor deadline electron emit failures random rng")
class Context:
    """The surroundings of one electron, or in a vectorised atom of one slice of them.

    A run gives each of its electrons one. An atom that is called as the function it is has one too,
    whose random stream differs each time; with ``context=Context(seed=7)`` it is that of the
    first electron of a run with that seed.

    Parameters
    ----------
    lease, offset, count
        Given within runs.
    seed
        Of an atom that is called: the random numbers of runs with that seed; new ones where None.
    electron
        Which electron of such a run has these, from 0; in a vectorised atom the first of the slice.

    Raises
    ------
    TypeError, ValueError
        Where the seed is not an integer from 0 to 2**128 - 1.

    Examples
    --------
    >>> Context(seed=7).rng.random() == Context(seed=7).rng.random()
    True

    Attributes
    ----------
    attempt
        Which attempt this is, from 1.
    """

    __slots__ = ("_children", "_count", "_drawn", "_lease", "_offset")

    def __init__(
        self,
        lease: Surroundings | None = None,
        offset: int = 0,
        count: int | None = None,
        *,
        seed: int | None = None,
        electron: int = 0,
    ) -> None:
        self._lease: Surroundings = Alone(seed, electron) if lease is None else lease
        self._offset = offset
        self._count = count  # of the slice; None for a single electron
        self._drawn = 0
        self._children: ChildSender | None = None

    def for_call(self, atom_id: str, payload: Mapping[str, Any], count: int | None) -> Context:
        """Return the context for a call of an atom by its user.

        Parameters
        ----------
        count
            Electrons in a call of a vectorised atom; None in one of an atom that is not.
        """
        if not isinstance(self._lease, Alone):
            return self  # an atom that calls another one, and shares its own
        return Context(self._lease.within(atom_id, payload), self._offset, count)

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        attempt: int = self._lease.batch.terms.attempt
        return attempt

    @property
    def failures(self) -> tuple[ElectronError, ...]:
        """What the earlier attempts failed with, the first one first; each has its ``kind``.

        In a vectorised atom one tuple for each electron of the slice.
        """
        batch = self._lease.batch
        if self._count is None:
            return batch.failures(self._offset)
        offsets = range(self._offset, self._offset + self._count)
        return tuple(map(batch.failures, offsets))  # type: ignore[arg-type]

    @property
    def deadline(self) -> datetime | None:
        """When the electron's time is up (UTC, timezone-aware); None where it has no timeout."""
        watch = self._lease.watch
        left = None if watch is None else watch.left()
        return None if left is None else datetime.now(UTC) + timedelta(seconds=left)

    @property
    def electron(self) -> Electron:
        """The request itself."""
        self._need_single("electron", "its inputs are the arrays the atom is given")
        return self._lease.batch.electron(self._offset)

    @property
    def rng(self) -> np.random.Generator:
        """The electron's own generator, at the start of its stream when first asked for.

        The same seed gives the same bits, wherever the electron runs and whatever runs beside it.
        """
        self._need_single("rng", "use context.random(shape), a row per electron")
        if self._drawn:
            return self._lease.rng.generator
        self._drawn = 1
        return self._lease.rng.at(*self._lease.batch.address(self._offset))

    def random(self, shape: int | tuple[int, ...] = ()) -> Any:
        """Return uniform numbers in [0, 1).

        In a vectorised atom a row per electron, shape ``(electrons, *shape)``; row i depends only
        on the seed and on which electron it is, and has the bits ``context.rng.random(shape)``
        has for that electron in an atom that is not vectorised.

        Parameters
        ----------
        shape
            How many for each electron.
        """
        if self._count is None:
            return self.rng.random(shape or None)
        wanted = (shape,) if isinstance(shape, int) else tuple(shape)
        draws = int(np.prod(wanted, dtype=int))
        stream, indices = self._lease.batch.addresses_of(self._offset, self._count)
        numbers = uniform(stream, indices, self._drawn, draws)
        self._drawn += draws
        return numbers.reshape(self._count, *wanted)

    @property
    def cancelled(self) -> bool:
        """Whether this electron shall stop: its time is up, or somebody cancelled it.

        Look at it in long loops.
        """
        return self._lease.is_cancelled(self._offset)

    @property
    def conductor(self) -> ChildSender:
        """Sends further electrons: ``conductor.send(Electron(...))`` gives a future."""
        self._need_single("conductor", "only an atom that is not vectorised can send electrons")
        if self._children is None:
            with self._lease.making:  # threads of an atom share the one, which counts what it sends
                if self._children is None:
                    self._children = self._lease.conductor(self._offset)
        return self._children

    def emit(self, message: str, *, level: Level = "info", **fields: Any) -> None:
        """Put an event on the run's and the atomizer's event stream.

        Parameters
        ----------
        message
            What happened.
        level
            How much it matters.
        **fields
            Further facts: numbers, texts and the like.
        """
        batch = self._lease.batch
        electron_id = batch.electron_id(self._offset) if self._count is None else ""
        self._lease.emit(
            Event(
                str(message),
                electron_id=electron_id,
                atom_id=batch.atom_id,
                level=level,
                run_id=batch.run_id,
                fields=fields,
            )
        )

    def _need_single(self, name: str, instead: str) -> None:
        if self._count is not None:
            raise AttributeError(f"context.{name} has no meaning in a vectorised atom: {instead}")

    def __repr__(self) -> str:
        batch = self._lease.batch
        if self._count is None:
            return f"<Context of electron {one_line(self._id())} for {one_line(batch.atom_id)}>"
        return f"<Context of {self._count:,} electrons for {one_line(batch.atom_id)}>"

    def _id(self) -> str:
        return self._lease.batch.electron_id(self._offset)

    @markup.safely
    def _repr_html_(self) -> markup.Html:
        single = self._count is None
        failures = self.failures if self._count is None else ()
        rows = {
            "atom": markup.code(self._lease.batch.atom_id),
            "electron": markup.code(self._id()) if single else None,
            "electrons": None if single else markup.text(f"{self._count:,}, from {self._id()}"),
            "attempt": markup.text(str(self.attempt)),
            "deadline": markup.time(self.deadline),
        }
        earlier = [
            [markup.text(str(failure.attempt)), markup.text(failure.event.message)]
            for failure in failures
        ]
        return markup.card(
            "Context",
            markup.facts(rows),
            markup.table(["attempt", "failed with"], earlier) if earlier else None,
            beside=[markup.badge("cancelled", "warning") if self.cancelled else None],
        )
