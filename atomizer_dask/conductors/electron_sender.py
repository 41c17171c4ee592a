"""Electrons that are sent one by one: collected in an outbox, and handed to sources in bundles."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from itertools import groupby
from typing import Any, Protocol

from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.conductor import Route
from atomizer_dask.conductors.dispatcher import as_error
from atomizer_dask.conductors.driver import Driver, Source
from atomizer_dask.conductors.electron_source import (
    ElectronSource,
    Handed,
    Sent,
    give_up,
    with_own_payload,
)
from atomizer_dask.electron import Electron
from atomizer_dask.errors import AtomizerError, ConductorError
from atomizer_dask.execution.batch import FIRST, Batch, Origin
from atomizer_dask.execution.failure import Failure
from atomizer_dask.future import ElectronFuture
from atomizer_dask.registry import registered

MANY_SOURCES = 100  # above which idle ones are dropped


class SenderOwner(Protocol):
    """The conductor through which electrons are sent."""

    channel: str
    space: str

    def catalog(self) -> Mapping[str, Any]:
        """Return the versions that descendants of an electron find, by atom id."""

    def check_open(self) -> None:
        """Raise where nothing can be sent any more."""

    def drive(self, source: Source) -> Driver:
        """Return a driver that carries the electrons of a source."""

    def post(self, action: Callable[[], Any]) -> None:
        """Have an action called on the dispatcher's thread."""

    def cancel_electron(self, electron_id: str) -> None:
        """Cancel an electron, and what it sent."""

    def report(self, channel: str, error: AtomizerError) -> None:
        """Report a failure that is final."""


class ElectronSender:
    """The electrons sent one by one through a conductor that are not done.

    `send` and `send_child` are for any thread; everything else runs on the dispatcher's.
    """

    def __init__(self, owner: SenderOwner) -> None:
        self._owner = owner
        self._outbox: deque[Sent] = deque()
        self._is_flushing = False
        self._origin = Origin()
        self._sources: dict[Any, tuple[ElectronSource, Driver]] = {}
        self._many_sources = MANY_SOURCES
        self.count = 0  # electrons that have ever been sent

    # -- sending ---------------------------------------------------------------------------------

    def send(self, electron: Electron, version: Any, route: Route | None = None) -> ElectronFuture:
        """Have an electron executed by this version of its atom, bundled with others."""
        future = ElectronFuture()
        future.stop_with(self._owner.cancel_electron, electron.id)
        origin = _prioritised(self._origin_now(route), electron)
        return self._enqueue(electron, future, None, origin, version)

    def send_child(
        self,
        electron: Electron,
        future: ElectronFuture,
        address: tuple[RandomStream, int],
        origin: Origin,
        root: str,
        version: Any,
    ) -> ElectronFuture:
        """Have an electron executed that another one sent, which descends from `root`."""
        origin = _prioritised(origin, electron)
        return self._enqueue(electron, future, address, origin, version, root)

    def send_again(self, sent: Sent) -> None:
        """Send a child again that an electron on a leaving worker had sent."""
        future, terms = ElectronFuture(), FIRST
        if sent.terms != FIRST:
            ElectronFuture.start_all([future])
            terms = sent.terms
        self._outbox.append(sent._replace(future=future, terms=terms))
        self._owner.post(self._flush)

    def _origin_now(self, route: Route | None) -> Origin:
        """Return the origin of electrons without a parent; the same object until it changes."""
        owner, origin, catalog = self._owner, self._origin, self._owner.catalog()
        same = origin.catalog is catalog and origin.route is route
        if not (same and origin.channel == owner.channel):
            origin = Origin(owner.channel, catalog, route=route, space=owner.space)
            self._origin = origin
        return origin

    def _enqueue(
        self,
        electron: Electron,
        future: ElectronFuture,
        address: tuple[RandomStream, int] | None,
        origin: Origin,
        version: Any,
        root: str = "",
    ) -> ElectronFuture:
        self._owner.check_open()
        self._outbox.append(
            Sent(with_own_payload(electron), future, address, version, origin, root)
        )
        # One flush takes all that has been sent until it runs: no lock, at worst an empty flush.
        if not self._is_flushing:
            self._is_flushing = True
            self._owner.post(self._flush)
        return future

    # -- handing out -----------------------------------------------------------------------------

    def _flush(self) -> None:
        self._is_flushing = False
        taken = self.empty()
        self.count += len(taken)
        handed = 0
        try:
            for group, several in groupby(taken, Sent.group):
                those = list(several)
                self._hand_out(group, those)
                handed += len(those)
        except BaseException as error:  # noqa: BLE001 - of an option that cannot be compared, say
            give_up(taken[handed:], as_error(error))

    def _hand_out(self, group: Hashable, those: list[Sent]) -> None:
        if those[0].version is None:
            for sent in those:
                self._answer_unknown(sent)
            return
        source, driver = self._source_for(group, those[0])
        try:
            source.add(those)
        except BaseException as error:  # noqa: BLE001 - the source does not have them
            give_up(those, as_error(error))
        self._owner.post(driver.pump)  # once the other groups have been handed out

    def _source_for(self, key: Hashable, sent: Sent) -> tuple[ElectronSource, Driver]:
        known = self._sources.get(key)
        if known is None or known[1].has_failed:  # electrons that follow need a new source
            if len(self._sources) > self._many_sources:
                self._sources = {k: v for k, v in self._sources.items() if not v[0].idle}
                # Each electron may have a source of its own, as by its timeout: to look at all
                # sources for each electron took most of the time.
                self._many_sources = max(MANY_SOURCES, 2 * len(self._sources))
            report = partial(self._owner.report, sent.origin.channel)
            source = ElectronSource(sent, report)
            driver = self._owner.drive(source)
            source.driver = driver
            known = self._sources[key] = source, driver
        return known

    def _answer_unknown(self, sent: Sent) -> None:
        electron = sent.electron
        if not sent.future.set_running_or_notify_cancel():
            return
        atom_id = electron.atom_id
        message = f"no atom {atom_id!r} is registered; {registered.hint(atom_id)}"
        failure = Failure("unknown_atom", "RegistrationError", message)
        properties = failure.properties(electron)
        sent.future.set_result(properties)
        assert properties.error is not None
        self._owner.report(sent.origin.channel, properties.error)

    # -- what is under way -----------------------------------------------------------------------

    def unfinished(self, channel: str) -> int:
        """Return how many electrons of a channel are not done."""
        waiting = sum(sent.origin.channel == channel for sent in self._outbox)
        sources = (source for source, _ in self._sources.values() if source.channel == channel)
        return waiting + sum(source.unfinished for source in sources)

    def note_waiting(self, electron_id: str) -> None:
        """Note that an electron waits for others that it sent."""
        for _, driver in list(self._sources.values()):
            driver.note_waiting(electron_id)

    def cancel(self, root: str) -> None:
        """Answer `root` and its descendants as cancelled that have not begun, or are given back."""
        for source, driver in list(self._sources.values()):
            driver.act(source.cancel, root)

    def leave_behind(self, root: str) -> None:
        """Answer `root` and its descendants as cancelled that have begun, though they still run."""
        for source, driver in list(self._sources.values()):
            driver.act(source.leave_behind, root)

    def withdraw(self, error: ConductorError) -> None:
        """End with an error the electrons not begun, now and whenever workers give some back."""
        for source, driver in list(self._sources.values()):
            driver.act(source.withdraw, error)

    def orphans(self) -> list[Sent]:
        """Remove and return electrons that are not under way, and that no electron here awaits."""
        orphans = []
        for sent in self.empty():
            if sent.future.is_awaited:
                self._outbox.append(sent)
            elif not sent.future.done():
                orphans.append(sent)
        for source, _ in self._sources.values():
            orphans += source.orphans()
        return orphans

    def hand_over(self) -> list[tuple[Batch, Handed]]:
        """Remove and return the batches under way: another process will wait for them."""
        return [
            (batch, source.hand_over(batch, start, stop, ran))
            for source, driver in self._sources.values()
            for batch, start, stop, ran in driver.hand_over()
        ]

    def adopt(self, handed: Handed) -> None:
        """Wait for a batch of children that electrons on a leaving worker had sent."""
        example = handed.electrons[0]
        source, driver = self._source_for(example.group(), example)
        self.count += len(handed.electrons)
        driver.act(self._adopt, source, driver, handed)

    @staticmethod
    def _adopt(source: ElectronSource, driver: Driver, handed: Handed) -> None:
        driver.adopt(source.adopt(handed), handed.start, handed.stop, handed.ran)

    def empty(self) -> list[Sent]:
        """Take everything out of the outbox."""
        return [self._outbox.popleft() for _ in range(len(self._outbox))]

    def fail(self, error: AtomizerError) -> None:
        """Fail the electrons in the outbox; the drivers of sources fail the rest."""
        self._sources.clear()
        give_up(self.empty(), error)

    def give_up(self, error: AtomizerError) -> None:
        """End with an error the futures of electrons in the outbox; from any thread."""
        give_up([*self._outbox.copy()], error)


def _prioritised(origin: Origin, electron: Electron) -> Origin:
    """Return the origin with the priority of the electron, where it has one of its own."""
    return origin._replace(priority=electron.priority) if electron.priority else origin
