"""Electrons that are sent one by one, bundled into batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import InvalidStateError
from contextlib import suppress
from dataclasses import replace
from itertools import compress
from math import inf
from typing import Any, NamedTuple

from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.conductors.batch_size import Size
from atomizer_dask.conductors.driver import Driver
from atomizer_dask.electron import Electron
from atomizer_dask.errors import AtomizerError, ElectronError
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import FIRST, AttemptTerms, Batch, Origin
from atomizer_dask.execution.failure import CANCELLED
from atomizer_dask.execution.outcome import BatchOutcome, Outcome
from atomizer_dask.future import ElectronFuture
from atomizer_dask.policy import Judge, seconds_of
from atomizer_dask.sweeps.copies import own_payload
from atomizer_dask.sweeps.inputs import Rows


class Sent(NamedTuple):
    """An electron on its way, with its future and the terms of its attempt."""

    electron: Electron
    future: ElectronFuture
    address: tuple[RandomStream, int] | None  # None: it follows from the electron's id
    version: Any
    origin: Origin
    root: str = ""
    terms: AttemptTerms = FIRST
    earlier: tuple[ElectronError, ...] = ()

    def group(self) -> Hashable:
        """Return what electrons of one batch must have in common."""
        electron, origin = self.electron, self.origin
        return (
            electron.atom_id,
            self.version,
            electron.copy_state,
            electron.timeout,
            origin.channel,
            origin.depth,
            origin.route,
            origin.priority,
            origin.space,
        )

    def without_future(self) -> Sent:
        """Return a copy without the future, as it travels to another process."""
        return self._replace(future=None)  # type: ignore[arg-type]

    def is_of(self, root: str) -> bool:
        """Return whether it is `root`, or descends from it."""
        return root in (self.electron.id, self.root)


class Handed(NamedTuple):
    """Electrons under way that are handed over to another process, with their batch.

    Parameters
    ----------
    key
        The key of the batch.
    electrons
        All electrons of the batch, without their futures.
    awaited
        For each electron, whether the one that sent it waits for it, and will send it again.
    start, stop
        Offsets of the first electron whose outcome is not known, and after the last.
    ran
        Seconds of the running electron, when its worker's wall time was about to end.
    longest
        Most seconds that an electron of their source has lately taken.
    """

    key: str
    electrons: list[Sent]
    awaited: list[bool]
    start: int
    stop: int
    ran: float
    longest: float


def with_own_payload(electron: Electron) -> Electron:
    """Return a copy with its own payload: the sender may change theirs for the next electron."""
    own = object.__new__(type(electron))
    fields = own.__dict__
    fields.update(electron.__dict__)
    fields["payload"] = own_payload(electron.payload)
    return own


class ElectronSource:
    """The source of one group of electrons.

    Parameters
    ----------
    example
        Any electron of the group.
    report
        Called with each failure that is final.

    Attributes
    ----------
    driver
        The driver of these electrons.
    """

    driver: Driver
    grows = True

    def __init__(self, example: Sent, report: Callable[[AtomizerError], None]) -> None:
        self._example = example
        self._report = report
        timeout = seconds_of(example.electron.timeout, "timeout")
        self._first = FIRST if timeout is None else FIRST._replace(timeout=timeout)
        self._waiting: deque[Sent] = deque()
        self._under_way: dict[str, list[Sent]] = {}
        self._delayed: dict[str, Sent] = {}
        self._cancelled: set[str] = set()
        self._withdrawn: AtomizerError | None = None
        self._judge = Judge(self._report_problem)

    def _report_problem(self, message: str, error: BaseException) -> None:
        self._report(AtomizerError(Event(message, level="error"), error))

    @property
    def idle(self) -> bool:
        """Whether it has nothing left to do."""
        return not self.unfinished

    @property
    def channel(self) -> str:
        """The channel of the conductor through which the electrons were sent."""
        return self._example.origin.channel

    @property
    def unfinished(self) -> int:
        """How many electrons are not done."""
        under_way = sum(map(len, self._under_way.values()))
        return len(self._waiting) + under_way + len(self._delayed)

    def add(self, sent: list[Sent]) -> None:
        """Queue more electrons."""
        if self._withdrawn is not None:
            give_up(sent, self._withdrawn)
            return
        if self._first is not FIRST:
            sent = [one._replace(terms=self._first) for one in sent]
        self._waiting += self._without_cancelled(sent)

    def waiting(self) -> int:  # noqa: D102
        return len(self._waiting)

    def take(self, size: Size, key: str) -> Batch | None:  # noqa: D102
        taken = self._under_way[key] = self._next(min(size.electrons, len(self._waiting)))
        if taken[0].terms.attempt == 1 and not taken[0].terms.deaths:
            started = ElectronFuture.start_all([sent.future for sent in taken])
            taken = self._under_way[key] = list(compress(taken, started))
        if not taken:
            del self._under_way[key]
            return None
        return self._batch(key, taken, size.seconds)

    def _batch(self, key: str, taken: list[Sent], seconds: float) -> Batch:
        example = self._example.electron
        terms = taken[0].terms
        return Batch(
            key=key,
            atom_id=example.atom_id,
            version=self._example.version,
            inputs=Rows([sent.electron.payload for sent in taken]),
            positions=range(len(taken)),
            stream=_addresses_of(taken),
            origin=taken[0].origin,
            terms=terms,
            roots=[sent.root for sent in taken] if taken[0].origin.depth else None,
            earlier=[sent.earlier for sent in taken] if terms.attempt > 1 else None,
            ids=[sent.electron.id for sent in taken],
            sender_ids=[sent.electron.sender_id for sent in taken],
            copy_state=example.copy_state,
            seconds=seconds,
        )

    def _next(self, count: int) -> list[Sent]:
        """Take up to `count` electrons, as long as they have the same terms."""
        waiting = self._waiting
        taken = [waiting.popleft() for _ in range(count)]
        terms = taken[0].terms
        same = next((n for n, one in enumerate(taken) if one.terms is not terms), count)
        waiting.extendleft(reversed(taken[same:]))
        return taken[:same]

    def give_back(self, batch: Batch, start: int, stop: int, terms: AttemptTerms) -> None:  # noqa: D102
        # Electrons answered meanwhile, as cancelled, are not executed again.
        back = [sent for sent in self._under_way[batch.key][start:stop] if not sent.future.done()]
        if self._withdrawn is not None:
            give_up(back, self._withdrawn)
            return
        if terms is not batch.terms:
            back = [sent._replace(terms=terms) for sent in back]
        self._waiting.extendleft(reversed(self._without_cancelled(back)))

    def deliver(  # noqa: D102
        self, batch: Batch, outcome: BatchOutcome, *, last: bool
    ) -> None:
        assert isinstance(outcome, Outcome)  # electrons sent one by one have no store
        taken = self._under_way[batch.key]
        those = taken[outcome.first : outcome.stop]
        properties = list(outcome.properties(batch))
        if len(outcome.failed):
            done = [True] * len(those)
            for failed in map(int, outcome.failed):
                error = properties[failed].error
                assert isinstance(error, ElectronError)
                if self._is_tried_again(those[failed], error):
                    done[failed] = False
                else:
                    self._report(error)
            those, properties = list(compress(those, done)), list(compress(properties, done))
        ElectronFuture.finish_all([sent.future for sent in those], properties)
        if last:  # not before: if something raises, `give_up` must find them here
            del self._under_way[batch.key]

    def _is_tried_again(self, sent: Sent, error: ElectronError) -> bool:
        if sent.future.done() or self._withdrawn is not None:
            return False
        if any(map(sent.is_of, self._cancelled)):
            return False
        try:
            again = self._judge.again(sent.electron.policy, [error], sent.terms.attempt)
        except BaseException as broken:  # noqa: BLE001 - it is the policy of this electron alone
            self._report_problem("on_failure means to end the program", broken)
            return False
        if not again:
            return False
        terms = sent.terms.again(error.worker, elsewhere=again[0].elsewhere)
        electron_id = sent.electron.id
        self._delayed[electron_id] = sent._replace(
            terms=terms, earlier=(*sent.earlier, error.bare())
        )

        def send() -> None:
            if (ready := self._delayed.pop(electron_id, None)) is not None:
                self._waiting.append(ready)
                self.driver.pump()

        self.driver.post_later(again[0].seconds, send)
        return True

    def cancel(self, root: str) -> None:
        """Answer `root` and its descendants as cancelled that have not begun, or are given back."""
        self._cancelled.add(root)
        delayed = list(self._delayed.values())
        self._delayed = {sent.electron.id: sent for sent in self._without_cancelled(delayed)}
        self._waiting = deque(self._without_cancelled(list(self._waiting)))

    def leave_behind(self, root: str) -> None:
        """Answer `root` and its descendants as cancelled that have begun, though they still run."""
        under_way = (sent for those in self._under_way.values() for sent in those)
        _answer_cancelled([sent for sent in under_way if sent.is_of(root)])

    def _without_cancelled(self, those: list[Sent]) -> list[Sent]:
        if not self._cancelled:
            return those
        lost = [any(map(sent.is_of, self._cancelled)) for sent in those]
        _answer_cancelled(list(compress(those, lost)))
        return [sent for sent, gone in zip(those, lost, strict=True) if not gone]

    def salvage(self, batch: Batch) -> None:
        """Do nothing: electrons that were sent one by one are kept nowhere."""

    def fail(self, error: AtomizerError) -> None:  # noqa: D102
        self.give_up(error)
        self._waiting.clear()
        self._delayed.clear()
        self._under_way.clear()

    def give_up(self, error: AtomizerError) -> None:  # noqa: D102
        under_way = (sent for group in list(self._under_way.values()) for sent in group)
        give_up([*self._waiting, *self._delayed.values(), *under_way], error)

    def leave(self) -> None:
        """Return None: the futures are in this process, so that no other can take over."""

    def disown(self, error: AtomizerError) -> None:
        """Do nothing: the futures are those of the parent's threads."""

    def orphans(self) -> list[Sent]:
        """Remove and return electrons that are not under way and that no electron here awaits."""
        those = [*self._waiting, *self._delayed.values()]
        self._waiting = deque(sent for sent in self._waiting if sent.future.is_awaited)
        self._delayed = {k: sent for k, sent in self._delayed.items() if sent.future.is_awaited}
        return [sent for sent in those if not (sent.future.is_awaited or sent.future.done())]

    def hand_over(self, batch: Batch, start: int, stop: int, ran: float) -> Handed:
        """Remove a batch under way, and return its electrons for another process."""
        those = self._under_way.pop(batch.key)
        awaited = [sent.future.is_awaited for sent in those]
        bare = [sent.without_future() for sent in those]
        return Handed(batch.key, bare, awaited, start, stop, ran, self.driver.sizing.longest)

    def adopt(self, handed: Handed) -> Batch:
        """Return the batch of electrons that another process has handed over."""
        electrons = [sent._replace(future=ElectronFuture()) for sent in handed.electrons]
        for sent in compress(electrons, handed.awaited):
            sent.future.cancel()
        ElectronFuture.start_all([sent.future for sent in electrons])
        self._under_way[handed.key] = electrons
        return replace(self._batch(handed.key, electrons, inf), longest=handed.longest)

    def withdraw(self, error: AtomizerError) -> None:
        """End with `error` the electrons not begun, now and whenever workers give some back."""
        self._withdrawn = error
        those = [*self._waiting, *self._delayed.values()]
        self._waiting.clear()
        self._delayed.clear()
        give_up(those, error)


def give_up(those: list[Sent], error: AtomizerError) -> None:
    """End with an error the futures of electrons that have not ended; from any thread."""
    for sent in those:
        with suppress(InvalidStateError):  # it has ended, or was cancelled
            sent.future.set_exception(error)


def _addresses_of(those: list[Sent]) -> list[tuple[RandomStream, int]] | None:
    """Return the addresses of their random streams; None where these follow from their ids.

    All of one batch have the same depth: either all were sent by electrons, or none.
    """
    return [sent.address for sent in those if sent.address is not None] or None


def _answer_cancelled(those: list[Sent]) -> None:
    answers = [
        CANCELLED.properties(sent.electron, sent.terms.attempt, sent.earlier) for sent in those
    ]
    ElectronFuture.finish_all([sent.future for sent in those], answers)
