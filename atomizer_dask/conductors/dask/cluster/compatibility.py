"""Which workers of a cluster can execute which atoms, by what they have installed."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from atomizer_dask.atoms.required_modules import RequiredModules
from atomizer_dask.conductors.dask.ask_workers import ask_workers
from atomizer_dask.conductors.dask.cluster.environment import (
    PACKAGES,
    Difference,
    Environment,
    Group,
    grouped,
    question,
    table,
)
from atomizer_dask.errors import ConductorError
from atomizer_dask.events import Event

if TYPE_CHECKING:
    from distributed import Client


logger = logging.getLogger(__name__)


class Compatibility:
    """Looks at workers once, when they are first seen, and again only for other modules.

    Parameters
    ----------
    client
        The client through which workers are asked.
    id
        The id of the conductor.
    emit
        Called with each warning.
    """

    def __init__(self, client: Client, id: str, emit: Callable[[Event], None]) -> None:
        self._client, self._id, self._emit = client, id, emit
        self._here = Environment.here()
        self._workers: dict[str, Environment] = {}
        self._asked: dict[str, set[str]] = {}  # modules each worker was asked for
        self._needs: dict[str, RequiredModules] = {}  # by version of the atom
        self._looking = asyncio.Lock()
        self._warned: set[tuple[Difference, ...]] = set()
        self._unfit: dict[str, frozenset[str]] = {"": frozenset()}  # for all atoms, or by version
        self._guard = threading.Lock()
        self.found_unfit = 0  # how often a worker turned out to be unfit

    def check(self) -> None:
        """Look at the workers there are.

        Raises
        ------
        ConductorError
            Where electrons would fail on one of them.
        OSError
            Where the scheduler is gone.
        """
        self._note(self._client.sync(ask_workers, self._client, *question(())), set())
        self._judge("the environment of workers is not that of this process")

    def require(self, atom_id: str, version: str, needs: RequiredModules) -> None:
        """Check whether all workers have the modules that an atom needs.

        Raises
        ------
        ConductorError
            Where a worker lacks one.
        OSError
            Where the scheduler is gone.
        """
        names = needs.certain.union(needs.perhaps).difference(PACKAGES)
        if names:  # some workers may have joined a moment ago
            self._client.sync(self.welcome, self._client.nthreads())
        self._needs[version] = needs
        if not names:
            return
        to_ask = [worker for worker, asked in self._asked.items() if names - asked]
        if to_ask:
            ask = question(names)
            self._note(self._client.sync(ask_workers, self._client, *ask, workers=to_ask), names)
        with self._guard:
            self._weigh()
        try:
            self._judge(f"workers lack modules that {atom_id} imports", atom_id, version)
        except ConductorError:  # the atom is not registered, so nobody needs these
            del self._needs[version]
            raise

    async def welcome(self, workers: Iterable[str]) -> None:
        """Look at workers that have joined, and warn where they are not fit."""
        async with self._looking:  # another caller waits for the findings
            those = sorted(set(workers) - self._workers.keys())
            if not those or self._client.status != "running":  # it may have closed meanwhile
                return
            names: frozenset[str] | None = None
            try:
                while names != (now := self._names()):  # an atom may be registered meanwhile
                    ask, names = question(now), now
                    answers = await ask_workers(self._client, *ask, workers=those)
                    self._note(answers, names)
            except (OSError, RuntimeError):  # the client is closed; the conductor notices by itself
                return
        groups = self._new(grouped(self._differences(), self._workers))
        if groups:
            message = "workers joined whose environment is not that of this process"
            if any(group.is_fatal for group in groups):
                message += "; electrons are kept off those that cannot work"
            self._warn(message, groups)

    def _names(self) -> frozenset[str]:
        needs = list(self._needs.values())
        return frozenset[str]().union(*(one.certain | one.perhaps for one in needs))

    def forget(self, workers: Iterable[str]) -> None:
        """Forget workers that have left."""
        with self._guard:
            for worker in workers:
                self._workers.pop(worker, None)
                self._asked.pop(worker, None)

    def forget_atoms(self, versions: Iterable[str]) -> None:
        """Forget versions of atoms that nobody needs any more."""
        with self._guard:
            for version in versions:
                self._needs.pop(version, None)
                self._unfit.pop(version, None)

    def knows(self, worker: str) -> bool:
        """Return whether a worker has been looked at."""
        return worker in self._workers

    def unfit_for(self, version: str) -> frozenset[str]:
        """Return the workers on which electrons of an atom would fail."""
        return self._unfit[""] | self._unfit.get(version, frozenset())

    def _note(self, answers: Mapping[str, Any], names: Iterable[str]) -> None:
        with self._guard:
            for worker, answer in answers.items():
                if isinstance(answer, OSError):
                    continue  # it has just died
                environment = Environment.of(answer, worker)
                before = self._workers.get(worker)
                if before is not None and not environment.problem:
                    environment = environment.lacking(before.missing - set(names))
                self._workers[worker] = environment
                self._asked.setdefault(worker, set()).update(names)
            self._weigh()

    def _weigh(self) -> None:
        """Compute anew which workers are unfit for which atoms."""
        unfit = {
            "": self._those(lambda one: any(d.is_fatal for d in one.differences(self._here))),
            **{
                version: self._those(lambda one, needs=needs: bool(needs.certain & one.missing))  # type: ignore[misc]
                for version, needs in self._needs.items()
            },
        }
        before, self._unfit = self._unfit, unfit
        new = (unfit[one] - before.get(one, frozenset()) for one in unfit)
        self.found_unfit += sum(map(len, new))

    def _those(self, which: Callable[[Environment], bool]) -> frozenset[str]:
        return frozenset(worker for worker, one in self._workers.items() if which(one))

    def _differences(self, version: str = "") -> dict[str, tuple[Difference, ...]]:
        """Return the differences of each worker, with the modules of one atom or of all."""
        needs = [self._needs[version]] if version else list(self._needs.values())
        certain = frozenset[str]().union(*(one.certain for one in needs))
        asked = certain.union(*(one.perhaps for one in needs))
        return {
            worker: one.differences(self._here)
            + tuple(
                Difference(f"module {name}", "missing", "", name in certain)
                for name in sorted(one.missing & asked)
            )
            for worker, one in list(self._workers.items())
        }

    def _judge(self, message: str, atom_id: str = "", version: str = "") -> None:
        # A warning named workers that joined with another Python; they get no electrons anyway.
        passed = self._unfit[""] if version else frozenset()
        all_of_them = self._differences(version).items()
        differing = {worker: those for worker, those in all_of_them if worker not in passed}
        groups = grouped(differing, self._workers)
        if any(group.is_fatal for group in groups):
            text = f"{message}:\n{table(groups, len(self._workers), atom_id)}"
            event = Event(text, atom_id=atom_id, conductor_id=self._id, level="error")
            raise ConductorError(event)
        if new := self._new(groups):
            self._warn(message, new, atom_id)

    def _new(self, groups: list[Group]) -> list[Group]:
        new = [group for group in groups if group.differences not in self._warned]
        self._warned.update(group.differences for group in new)
        return new

    def _warn(self, message: str, groups: list[Group], atom_id: str = "") -> None:
        text = f"{message}:\n{table(groups, len(self._workers), atom_id)}"
        logger.warning("%s", text)
        self._emit(Event(text, atom_id=atom_id, conductor_id=self._id, level="warning"))
