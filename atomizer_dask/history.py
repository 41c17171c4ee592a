"""What happened to a run before this process had it in hands, as far as its store tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from heapq import nlargest
from typing import Any

from atomizer_dask.events import KEPT, Event
from atomizer_dask.execution.failure import Failure, utc
from atomizer_dask.ledger import Ledger


def events_before(
    run_id: str, atom_id: str, sessions: Sequence[Mapping[str, Any]], ledger: Ledger
) -> list[Event]:
    """Return events of a run in the order of their time: who worked on it, and what failed.

    Parameters
    ----------
    run_id, atom_id
        Whose events they are.
    sessions
        Who worked on it, as its store tells.
    ledger
        What is known of its electrons.
    """
    told = [
        *_sessions(run_id, atom_id, sessions),
        *(
            failed(run_id, atom_id, failure, position, utc(end))
            for end, position, failure in nlargest(KEPT, _failures(ledger), key=lambda f: f[0])
        ),
    ]
    return sorted(told, key=lambda event: event.time)


def failed(
    run_id: str, atom_id: str, failure: Failure, position: int, time: datetime | None = None
) -> Event:
    """Return the event that an electron failed, now unless a time is given."""
    why = f"{failure.type}: {failure.message}" if failure.type else failure.message
    when = {} if time is None else {"time": time}
    return Event(
        f"failed: {why}",
        electron_id=f"{run_id}-{position}",
        atom_id=atom_id,
        level="error",
        run_id=run_id,
        **when,  # type: ignore[arg-type]
    )


def _sessions(run_id: str, atom_id: str, sessions: Sequence[Mapping[str, Any]]) -> Iterator[Event]:
    for session in sessions:
        who = f"process {session.get('pid', '?')} on {session.get('host', '?')}"
        for what, when in (("began to work on it", "start"), ("left it", "end")):
            if session[when] is not None:
                time = datetime.fromisoformat(session[when])
                yield Event(f"{who} {what}", atom_id=atom_id, run_id=run_id, time=time)


def _failures(ledger: Ledger) -> Iterator[tuple[int, int, Failure]]:
    for part in ledger.failed_parts():
        _, ends = part.outcome.times()
        positions = part.failed_positions().tolist()
        for position, offset, code in zip(
            positions, part.outcome.failed, part.outcome.codes, strict=True
        ):
            yield int(ends[offset]), position, part.outcome.failures[code]
