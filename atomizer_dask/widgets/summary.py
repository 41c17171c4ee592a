"""The facts that a panel shows of a run, an atomizer or a conductor, as JSON, without widgets."""

from __future__ import annotations

import inspect
from typing import Any

from dask.utils import format_bytes

from atomizer_dask.atomizer import Atomizer
from atomizer_dask.atoms.definition import Definition
from atomizer_dask.conductors.amqp.conductor import AmqpConductor
from atomizer_dask.conductors.batch_conductor import BatchConductor
from atomizer_dask.conductors.status import ConductorStatus
from atomizer_dask.display.text import counted, plain
from atomizer_dask.errors import AtomizerError
from atomizer_dask.events import Event
from atomizer_dask.runs.run import Run
from atomizer_dask.store.layout import GOING
from atomizer_dask.widgets.format import cell, count_text, rounded

MESSAGE = 240  # characters
TROUBLE = 400
UNKNOWN_CREW = "its workers are not known while it is not connected"
RUNS = 50


def run_facts(run: Run) -> dict[str, Any]:
    """Return the facts for the upper part of a run's panel, above its tabs.

    ``elapsed`` is in seconds; ``failed`` does not include ``cancelled`` electrons.
    """
    state = run.state  # read first: where it says that the run has ended, the numbers are final
    progress = run.progress
    cancelled = min(run.cancelled_count, progress.failed)
    failed = progress.failed - cancelled
    idle = state == "paused" and not progress.running
    elapsed = run.seconds
    return {
        "kind": "run",
        "id": plain(run.id),
        "atom": plain(run.atom_id.rpartition(".")[2]),
        "atom_id": plain(run.atom_id),
        "state": state,
        "label": _label(state, failed, cancelled, progress.standstill),
        "elapsed": elapsed,
        "total": progress.total,
        "done": progress.done,
        "failed": failed,
        "cancelled": cancelled,
        "running": progress.running,
        "pending": progress.pending,
        "retried": run.retried,
        "printed": run.printed_count,
        "rate": 0.0 if idle else rounded(progress.rate),
        "eta": None if idle or progress.eta is None else rounded(progress.eta),
        "store": run.store and plain(run.store),
        "error": _trouble(run),
        "can": _can(run, progress.failed),
    }


def _trouble(run: Run) -> str | None:
    text = str(run.error.event.message) if run.error is not None else run.interruption
    if not text and run.conductor is not None and run.state in GOING:
        text = run.conductor.obstacle
    return cell(text, TROUBLE) if text else None


def _label(state: str, failed: int, cancelled: int, standstill: str) -> str:
    parts = [state]
    if failed and state not in GOING:
        parts.append(f"{count_text(failed)} failed")
    if cancelled:
        parts.append(f"{count_text(cancelled)} did not end")
    if standstill:
        parts.append(cell(standstill, MESSAGE))
    return ", ".join(parts)


def _can(run: Run, failed: int) -> list[str]:
    if not run.is_driven:
        return []
    if run.state == "running":
        return ["pause", "cancel", *(["retry"] if failed else [])]
    if run.state == "paused":
        return ["resume", "cancel"]
    return ["retry"] if failed and run.state in ("finished", "cancelled") else []


def event_row(number: int, event: Event) -> list[Any]:
    """Return an event as a row: number, time in milliseconds, level, message, atom, electron."""
    message = event.message
    if event.fields:
        fields = {name: cell(value) for name, value in event.fields.items()}
        message += "".join(f"  {name}={v}" for name, v in fields.items() if v not in message)
    electron = event.electron_id.removeprefix(f"{event.run_id}-") if event.run_id else ""
    if not electron and event.electron_id:
        electron = event.electron_id
    atom = event.atom_id.rpartition(".")[2]
    return [
        number,
        round(event.time.timestamp() * 1000),
        event.level,
        cell(message, MESSAGE),
        cell(atom, 40),
        cell(_with_commas(electron), 40),
    ]


def _with_commas(electron: str) -> str:
    return f"{int(electron):,}" if len(electron) < 20 and electron.isdecimal() else electron


def status_of(conductor: BatchConductor) -> ConductorStatus:
    """Return the status of a conductor; ``reconnecting`` where the scheduler does not answer."""
    try:
        return conductor.status()
    except AtomizerError:
        return ConductorStatus("reconnecting", "")


def conductor_facts(conductor: BatchConductor, status: ConductorStatus) -> dict[str, Any]:
    """Return the facts for the head of a conductor's panel."""
    threads = sum(worker.threads for worker in status.workers)
    memory = format_bytes(sum(worker.memory for worker in status.workers))
    is_known = status.state == "connected"
    return {
        "kind": "conductor",
        "id": plain(conductor.id),
        "type": type(conductor).__name__,
        "state": status.state,
        "address": plain(status.address),
        "dashboard": plain(status.dashboard),
        "threads": threads,
        "memory": memory,
        "crew": f"{counted(threads, 'thread')}, {memory}" if is_known else UNKNOWN_CREW,
    }


def atomizer_facts(atomizer: Atomizer) -> dict[str, Any]:
    """Return the facts for the panel of an atomizer."""
    return {
        "kind": "atomizer",
        "state": atomizer.state,
        "runs": [_run_row(run) for run in reversed(atomizer.runs[-RUNS:])],
        "run_count": len(atomizer.runs),
        "atoms": [_atom_row(definition) for definition in atomizer.atoms.values()],
        "conductors": [_conductor_row(c) for c in atomizer.conductors.values()],
    }


def _run_row(run: Run) -> dict[str, Any]:
    facts = run_facts(run)
    wanted = ("id", "atom", "state", "label", "total", "done", "failed", "cancelled", "running")
    return {name: facts[name] for name in wanted}


def _atom_row(definition: Definition) -> dict[str, Any]:
    code = getattr(definition, "function", None) or getattr(definition, "cls", None)
    doc = inspect.getdoc(code) or ""
    text = repr(definition).removeprefix("<Atom ").removesuffix(">")
    return {
        "id": plain(definition.id),
        "text": cell(text, 120),
        "doc": cell(doc.partition("\n")[0], 120),
    }


def _conductor_row(conductor: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"id": plain(str(conductor.id)), "type": type(conductor).__name__}
    if isinstance(conductor, BatchConductor):
        row |= {"state": conductor.state, "threads": conductor.threads}
    elif isinstance(conductor, AmqpConductor):
        row |= {"state": conductor.state}
    return row
