"""The plan of a run, and the callbacks for what happens to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from atomizer_dask.atoms.code.fingerprint import Code
from atomizer_dask.atoms.definition import Definition, FunctionAtom
from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.console.recorder import Allowance
from atomizer_dask.errors import AtomizerError, ElectronError
from atomizer_dask.events import Event, Level
from atomizer_dask.execution.batch import AttemptTerms, Batch, Origin, Positions, StoreTarget
from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.options import MapOptions
from atomizer_dask.sweeps.columns import LARGE_BYTES, is_plain_array
from atomizer_dask.sweeps.lazy_values import is_dask_future
from atomizer_dask.sweeps.sweep import Sweep


@dataclass(frozen=True, slots=True)
class Plan:
    """The atom, the inputs and the options of a run.

    Parameters
    ----------
    run_id
        Id of the run.
    definition
        The atom.
    carried, version
        The atom with the constants, and what a site needs to find that.
    bare_version
        What finds the atom without the constants, for a process that has them in its store.
    promised
        Fixed values that are Futures of Dask, by name: they travel with each batch.
    constants
        Inputs that are the same large array for all electrons, by name: they travel with the atom,
        as its fixed values do, and not with each batch.
    sweep
        The inputs.
    sent
        The inputs that travel with batches: `sweep` without the constants.
    seed
        Seed of the random streams.
    origin
        `Origin` of its electrons.
    options
        The options of `Atomizer.map`.
    sink
        The store that workers may write to; None without a store.
    root
        Id by which its electrons are stopped; empty where that is `run_id`.
    """

    run_id: str
    definition: Definition
    carried: Definition
    version: Any
    bare_version: Any
    promised: Mapping[str, Any]
    constants: Mapping[str, Any]
    sweep: Sweep
    sent: Sweep
    seed: int
    origin: Origin
    options: MapOptions
    sink: StoreTarget | None = None
    root: str = ""

    @classmethod
    def of(
        cls,
        run_id: str,
        definition: Definition,
        version_of: Callable[[Definition], Any],
        sweep: Sweep,
        seed: int,
        origin: Origin,
        options: MapOptions,
        sink: StoreTarget | None,
    ) -> Plan:
        """Return the plan; large constants of the sweep travel with the atom."""
        constants, promised = dict[str, Any](), dict[str, Any]()
        sent = sweep
        if isinstance(definition, FunctionAtom) and not definition.vectorized:
            constants = sweep.constants(LARGE_BYTES)
            sent = sweep.without(constants)
        if isinstance(definition, FunctionAtom):
            promised = {n: v for n, v in definition.fixed.items() if is_dask_future(v)}
        if sink is not None:
            sink = sink._replace(constants=tuple(constants))
        carried = _carried(definition, promised, constants)
        version = version_of(carried)
        return cls(
            run_id,
            definition,
            carried,
            version,
            version_of(definition) if constants else version,
            promised,
            constants,
            sweep,
            sent,
            seed,
            origin,
            options,
            sink,
        )

    def as_of(self, definition: Definition) -> Definition:
        """Return the atom as it is now, with the constants."""
        if definition is self.definition:
            return self.carried
        return _carried(definition, self.promised, self.constants)

    def renewed(self, today: Today) -> Plan:
        """Return the plan with the atom as it is now."""
        origin = self.origin._replace(catalog=today.catalog)
        return replace(
            self,
            definition=today.definition,
            carried=self.as_of(today.definition),
            version=today.version,
            bare_version=today.bare_version,
            origin=origin,
        )

    def event(self, message: str, level: Level = "info", **fields: Any) -> Event:
        """Return an event about the run as a whole."""
        return Event(
            message,
            atom_id=self.definition.id,
            run_id=self.run_id,
            level=level,
            fields=fields,
        )

    def batch(
        self,
        key: str,
        positions: Positions,
        terms: AttemptTerms,
        seconds: float,
        stream: RandomStream,
        earlier: list[tuple[ElectronError, ...]] | None,
        epoch: int,
        root: str,
        allowance: Callable[[str], Allowance],
    ) -> Batch:
        """Return the electrons at `positions` as a batch; see `Batch` for the parameters.

        `allowance` returns how much is kept of what they print, by the option of `map`.
        """
        return Batch(
            key=key,
            atom_id=self.definition.id,
            version=self.version,
            inputs=self.sent.inputs_of(positions),
            positions=positions,
            stream=stream,
            origin=self.origin,
            terms=terms,
            earlier=earlier,
            epoch=epoch,
            run_id=self.run_id,
            root_id=root,
            copy_state=self.options.copy_state,
            seconds=seconds,
            sink=self.sink,
            shared=self.promised or None,
            allowance=allowance(self.options.output),
        )


def _carried(
    definition: Definition, promised: Mapping[str, Any], constants: Mapping[str, Any]
) -> Definition:
    """Return an atom with constants, and without the values that travel with batches."""
    if not isinstance(definition, FunctionAtom):
        return definition
    if promised:
        definition = definition.without_fixed(promised)
    # Those in `fixed` are shared; those of an axis are inputs, of which each electron has its own
    # unless it is an array, which is read-only in the atom.
    return definition.with_fixed(
        constants, [n for n, v in constants.items() if not is_plain_array(v)]
    )


@dataclass(frozen=True, slots=True)
class Today:
    """An atom as it is now; its code may have changed since the run began.

    Parameters
    ----------
    definition, version, bare_version
        As in `Plan`.
    catalog
        The version of each atom that its electrons may send to, by id.
    code
        The code of the atom.
    """

    definition: Definition
    version: Any
    bare_version: Any
    catalog: Mapping[str, Any]
    code: Code


@dataclass(frozen=True, slots=True)
class Listeners:
    """Callbacks of a source: it calls them for the run whose electrons it has.

    Parameters
    ----------
    on_event
        Called with every event of the run itself.
    on_failure
        Called with a `Failure` and a position when an electron has failed for good.
    on_problem
        Called with a message and an error when a function of the user, other than the atom, raised.
    on_end, on_reopen
        Called when the run ends, and when it goes on after that.
    """

    on_event: Callable[[Event], None]
    on_failure: Callable[[Failure, int], None]
    on_problem: Callable[[str, BaseException], None]
    on_end: Callable[[], None] = lambda: None
    on_reopen: Callable[[], None] = lambda: None


class Host(Protocol):
    """What a run calls when something happens: its atomizer, or the host of a detached run."""

    def add_run(self, run: Any) -> None:
        """Keep a run that is about to start, so that events find it."""

    def put_event(self, event: Event) -> None:
        """Put an event of the run on the streams."""

    def report_failure(self, error: Callable[[], AtomizerError]) -> None:
        """Report an electron that failed for good; its error is made if somebody listens."""

    def report_problem(self, message: str, error: BaseException) -> None:
        """Report that a function of the user, other than the atom, raised."""
