import json

import pytest

from atomizer_dask import Event, atom, grid
from atomizer_dask.conductors.status import ConductorStatus, WorkerStatus
from atomizer_dask.widgets.summary import MESSAGE, event_row, run_facts
from atomizer_dask.widgets.workers import WorkerTable


@pytest.mark.parametrize(
    ("event", "message", "whom"),
    [
        (Event("bonded", electron_id="run-1234", run_id="run", atom_id="m.f"), "bonded", "1,234"),
        (Event("sent", electron_id="mine"), "sent", "mine"),
        (Event("x", electron_id="9" * 5000), "x", "9" * 37 + "..."),
        (Event("half\ud800"), "half\\ud800", ""),
        (Event("at", fields={"n": 3, "t": "a\nb"}), "at n=3 t=a b", ""),
    ],
)
def test_an_event_is_a_row_of_texts(event, message, whom):
    row = event_row(7, event)
    assert (row[0], row[3], row[5]) == (7, message, whom)
    json.dumps(row, allow_nan=False, ensure_ascii=False).encode()


def test_an_event_of_any_length_is_a_short_row():
    fields = {f"f{number}": "y" * 10_000 for number in range(1000)}
    row = event_row(0, Event("x" * 10**6, atom_id="a" * 10_000, fields=fields))
    assert len(row[3]) == MESSAGE
    assert len(json.dumps(row)) < 500


def test_what_was_cancelled_has_not_failed(local):
    def failing(x, *, context):
        while not context.cancelled:
            if x == 0:
                raise ValueError(x)

    run = local.map(atom(failing, id="failing"), grid(x=range(1000)))
    next(iter(run))
    run.cancel()
    run.join()
    facts = run_facts(run)
    assert (facts["failed"], facts["done"] + facts["cancelled"]) == (1, 999)
    assert facts["label"] == f"cancelled, 1 failed, {facts['cancelled']} did not end"
    assert facts["can"] == ["retry"]


def test_of_very_many_workers_the_first_are_sent():
    crew = WorkerTable()
    some = [WorkerStatus(f"tcp://w:{n}", "w", 1, 1, 10**8) for n in range(1000)]
    status = ConductorStatus("connected", "tcp://s", tuple(some))
    crew.note(status)
    assert [row["address"] for row in crew.rows(status)] == [w.address for w in some[:100]]
    assert crew.busy(status.workers) == 1.0
