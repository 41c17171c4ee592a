"""Starting runs: a new one, one from a store, and one that a worker drives."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from atomizer_dask.atoms.atom_code import AtomCode
from atomizer_dask.atoms.definition import Definition, fixed_of
from atomizer_dask.atoms.namespaces import forget, inside, loads
from atomizer_dask.atoms.random_streams import seed_of
from atomizer_dask.conductors.batch_conductor import BatchConductor
from atomizer_dask.conductors.dask.conductor import DaskConductor
from atomizer_dask.config import setting
from atomizer_dask.electron import new_id
from atomizer_dask.errors import AtomizerError, StoreHeldError
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Origin, StoreTarget
from atomizer_dask.execution.input_checks import check_generators, check_no_futures
from atomizer_dask.execution.options import MapOptions
from atomizer_dask.policy import OnFailure, Policy
from atomizer_dask.registry import registered
from atomizer_dask.runs.ledger import Ledger
from atomizer_dask.runs.plan import Host, Plan
from atomizer_dask.runs.recovery import recover
from atomizer_dask.runs.run import Run
from atomizer_dask.store.code_check import check_code
from atomizer_dask.store.inputs.row_map import RowMap
from atomizer_dask.store.provenance import surroundings
from atomizer_dask.store.stored_run import (
    StoredRun,
    accept_environment,
    begin,
    drop,
    resume,
    stored_atom,
    with_stored_values,
)
from atomizer_dask.sweeps.make import as_sweep
from atomizer_dask.sweeps.stream import Streamed
from atomizer_dask.sweeps.sweep import Sweep

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # how often a detached driver looks whether somebody has attached


def _check_inputs(
    sweep: Sweep, definition: Definition, conductor: BatchConductor, options: MapOptions
) -> None:
    """Raise where a sweep can never be executed by an atom, or sent by a conductor.

    Raises
    ------
    InvalidSweepError, InvalidPayloadError, UnpicklableError, RegistrationError
        The message says what to do.
    """
    sweep.check_values()
    check_generators(sweep)
    conductor.check_inputs(sweep, fixed_of(definition))
    if not isinstance(sweep, Streamed):
        definition.check_fields(sweep.names)
        definition.check_outputs(sweep.names)
    definition.check_copy_state(options.copy_state)


class Storing(NamedTuple):
    """The options of `Atomizer.map` for the store of a run.

    Parameters
    ----------
    store
        A folder, or a URL; None for a run in this process alone.
    takeover, accept_changes, detached
        As in `Atomizer.map`.
    """

    store: Any
    takeover: bool = False
    accept_changes: bool = False
    detached: bool = False


def start(
    host: Host,
    conductor: BatchConductor,
    definition: Definition,
    given: Any,
    seed: int | None,
    options: MapOptions,
    storing: Storing,
    name: str | None,
) -> Run:
    """Start a run: what `Atomizer.map` does.

    Parameters
    ----------
    given
        A sweep, or anything that `as_sweep` makes one of.
    name
        Beginning of the id of the run; None for the name of the atom.
    """
    sweep = as_sweep(given)
    _check_inputs(sweep, definition, conductor, options)
    if storing.store is not None:
        check_no_futures(sweep, fixed_of(definition), "which a store cannot keep")
    run_id = f"{name or definition.id.rpartition('.')[2]}-{new_id()}"
    if storing.store is not None:
        sweep = sweep.for_store()
        return _start_in_store(host, conductor, run_id, definition, sweep, seed, options, storing)
    if definition.vectorized:
        sweep = sweep.as_arrays()
    plan = _plan(run_id, definition, conductor, sweep, seed_of(seed), options)
    run = Run.begin(plan, conductor, host, RowMap(sweep), Ledger(run_id, definition.id))
    host.add_run(run)
    run.start(range(0 if sweep.length is None else sweep.length))
    return run


def _start_in_store(
    host: Host,
    conductor: BatchConductor,
    run_id: str,
    definition: Definition,
    sweep: Sweep,
    seed: int | None,
    options: MapOptions,
    storing: Storing,
) -> Run:
    """Start a run in a store, or go on with the one that the store has."""
    stored = begin(
        storing.store,
        run_id,
        definition,
        conductor.code_of(definition),
        sweep,
        seed,
        options,
        takeover=storing.takeover,
        accept_changes=storing.accept_changes,
    )
    run = start_stored(host, conductor, stored, definition, options)
    if not storing.detached:
        return run
    try:
        return run.detach()
    except AtomizerError:  # the caller has no handle of the run, with which to suspend it
        run.suspend()
        raise


def go_on(
    host: Host,
    conductor: BatchConductor,
    store: Any,
    find: Callable[[str], Definition | None],
    *,
    takeover: bool,
    accept_changes: bool,
    drop_corrupted: bool,
    allow_pickle: bool,
    on_failure: OnFailure | None,
    priority: int | None,
) -> Run:
    """Go on with a run that a store keeps; see `Atomizer.attach`.

    Parameters
    ----------
    find
        Returns the atom of an id, None where there is none here.
    """
    stored = resume(store, takeover=takeover, allow_pickle=allow_pickle)
    try:
        definition = find(stored.atom_id)
        if definition is None:
            definition = stored_atom(stored, allow_pickle=allow_pickle)
        definition = with_stored_values(stored, definition, allow_pickle=allow_pickle)
        verdict = check_code(stored.store, conductor.code_of(definition), accept=accept_changes)
        if drop_corrupted:
            for name in drop(stored.store):
                logger.warning("%s is damaged: its electrons are executed again", name)
        stored = accept_environment(stored, definition, verdict)
        options = stored.options_with(on_failure).with_priority(priority)
        if priority is not None:
            stored.store.manifest["options"]["priority"] = priority
    except BaseException:
        stored.store.release()
        raise
    return start_stored(host, conductor, stored, definition, options)


def start_stored(
    host: Host,
    conductor: BatchConductor,
    stored: StoredRun,
    definition: Definition,
    options: MapOptions,
) -> Run:
    """Start, or go on with, the run of a store that this process holds."""
    store, run_id = stored.store, stored.run_id
    try:
        assert store.holder is not None
        universe = stored.universe.as_arrays() if definition.vectorized else stored.universe
        sink = StoreTarget(
            store.folder.url,
            store.holder.token,
            stored.code,
            options.allow_pickle,
            setting("store.gather-rows"),
            setting("store.gather-bytes"),
        )
        plan = _plan(run_id, definition, conductor, universe, stored.seed, options, sink)
        ledger = Ledger(run_id, stored.atom_id)
        # Before the store is read: a batch that ends in between has written its results there.
        in_flight = conductor.in_flight(run_id)
        journal = stored.journal(plan.sent, plan.constants)
        seconds = stored.seconds_before  # before files are moved and written
        recover(store, ledger, journal, stored.view.mask())
        ledger.begin(seconds)
        store.begin_session({**surroundings(), "conductor": conductor.whereabouts()})
        run = Run.begin(plan, conductor, host, stored.view, ledger, journal, in_flight, drive)
        host.add_run(run)
        run.start(stored.to_do(journal))
    except BaseException:
        store.release()
        raise
    return run


def _plan(
    run_id: str,
    definition: Definition,
    conductor: BatchConductor,
    sweep: Sweep,
    seed: int,
    options: MapOptions,
    sink: StoreTarget | None = None,
) -> Plan:
    origin = Origin(
        conductor.channel,
        conductor.catalog(),
        priority=options.priority,
        space=conductor.space,
    )
    return Plan.of(run_id, definition, conductor.version_of, sweep, seed, origin, options, sink)


def drive(client: Any, url: str, atom: bytes, policy: bytes, task: str) -> str:
    """Drive a detached run on a worker, until it has ended or another process has attached to it.

    `Run.detach` hands this function to the conductor, which has a worker call it.

    Parameters
    ----------
    client
        A `distributed.Client` of the cluster.
    url
        The store.
    atom
        The atom, as `dump_atom` wrote it.
    policy
        The `Policy` for failed electrons, pickled.
    task
        Name of the Dask task that calls this function; also the space for the atom's modules.

    Returns
    -------
    str
        The state of the run; ``held`` where another process holds its store.
    """
    # A space of its own: the worker may have other versions of the atom's modules.
    definition = AtomCode.of(atom).load(space=task)
    decides: Policy = loads(policy, space=task)
    conductor = DaskConductor(client)
    conductor.space = task
    try:
        conductor.attach(host := _DetachedHost(conductor, definition))
        for each in (*registered.atoms.values(), definition):  # which its electrons may send to
            conductor.publish(each)
        try:
            with inside(task):
                stored = resume(url, detached=task)
                options = replace(stored.options_with("fail"), policy=decides)
                run = start_stored(host, conductor, stored, definition, options)
        except StoreHeldError as error:
            logger.info("not driven from here: %s", error)
            return "held"
        while not run.join(POLL_SECONDS):
            run.check_held()
        return run.state
    finally:
        conductor.close()
        forget(task)


class _DetachedHost:
    """The host of a detached run, and the listener of its conductor: errors go to the log."""

    def __init__(self, conductor: DaskConductor, definition: Definition) -> None:
        self._conductor = conductor
        self._definition = definition
        self._run: Run | None = None

    def add_run(self, run: Run) -> None:
        """Note the run."""
        self._run = run

    def put_event(self, event: Event) -> None:
        """Do nothing: the run has noted it."""

    def report_failure(self, error: Callable[[], AtomizerError]) -> None:
        """Do nothing: the store has the failure."""

    def report_problem(self, message: str, error: BaseException) -> None:
        """Log what went wrong in a function of the user that is not an atom."""
        logger.warning("%s", message, exc_info=error)

    @property
    def threads(self) -> int:
        """How many electrons the cluster executes at a time."""
        return self._conductor.threads

    def find(self, atom_id: str) -> Definition | None:
        """Return the atom of the run, or one that is registered for all."""
        if atom_id == self._definition.id:
            return self._definition
        return registered.atoms.get(atom_id)

    def note_waiting(self, electron_id: str) -> None:
        """Do nothing: it receives no electrons."""

    def emit(self, event: Event) -> None:
        """Note an event of the run, or of the cluster that carries it."""
        if self._run is not None and event.run_id == self._run.id:
            self._run.note(event)
        elif self._run is not None and event.conductor_id and not event.run_id:
            self._run.overhear(event)

    def report(self, error: AtomizerError) -> None:
        """Log an error."""
        logger.info("%s", error)
