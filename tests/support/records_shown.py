"""One of each record, all of whose texts are given: for the tests of what notebooks show."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pandas as pd

from atomizer_dask import (
    Atom,
    AtomizerError,
    ConductorError,
    Electron,
    ElectronError,
    Event,
    Progress,
    Properties,
    Stream,
    atom,
    grid,
    zipped,
)
from atomizer_dask.atoms.context import Context
from atomizer_dask.atoms.definition import as_definition
from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.execution.batch import FIRST, Batch, Origin
from atomizer_dask.future import ElectronFuture
from atomizer_dask.sweeps.inputs import Rows
from atomizer_dask.sweeps.make import as_sweep

START = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)
END = START + timedelta(seconds=1.5)


@dataclass
class Lease:
    """As much of a lease as a context shows."""

    batch: Batch
    cancelled: bool = True
    watch: None = None

    def is_cancelled(self, offset):
        return self.cancelled


def electron_error(text, **more):
    event = Event(f"{text}: {text}", text, text, level="error")
    facts = {"worker": text, "start": START, "end": END, "tier": text, **more}
    return ElectronError(event, ValueError(text), "exception", text, text, f"TB\n  {text}", **facts)


def stream_of(*items):
    stream = Stream()
    for item in items:
        stream.put(item)
    return stream


def finished(properties):
    future = ElectronFuture()
    ElectronFuture.finish_all([future], [properties])
    return future


def raised(error):
    future = ElectronFuture()
    future.set_exception(error)
    return future


def drawn(rows):
    sweep = as_sweep(iter(rows))
    list(sweep.draw())
    return sweep


def named_function(text):
    def simulate(x, y=text):
        return x + y

    simulate.__doc__ = f"{text} in words.\n\nMore."
    return atom(id=text, vectorized=True, isolation="process", singleton="node")(simulate)


def class_of(text):
    class Counting(Atom):
        id = text
        # Python itself refuses half a surrogate pair there.
        __doc__ = f"{text.encode(errors='replace').decode()} in words."

        def __init__(self):
            self.state = text

        def process(self, context, conductor, electron):
            return None

    return Counting


def records(text, value):
    """Return records by name, with one text for all of their texts and one value for the rest."""
    event = Event(text, text, text, text, START, "warning", text, {text: value})
    error = electron_error(text)
    done = Properties(text, text, START, END, result={text: value}, worker=text)
    earlier = (electron_error(text), AtomizerError(event))
    failed = Properties(text, text, START, END, error, None, text, 3, earlier)
    counting = class_of(text)
    batch = Batch(
        "",
        text,
        0,
        Rows([value]),
        range(1),
        RandomStream(0),
        Origin(),
        FIRST._replace(attempt=2),
        ids=[text],
        earlier=[(error,)],
    )
    sendable = text.encode(errors="replace").decode()  # Arrow, and so pandas, takes no other
    frame = pd.DataFrame({sendable: [sendable, "b"]}, index=[sendable, 2])
    return {
        "electron": Electron(text, {text: value}, id=text, sender_id=text, timeout=3),
        "electron of a value": Electron(text, value, id=text),
        "properties": done,
        "failed properties": failed,
        "event": event,
        "error": AtomizerError(event, ValueError(text)),
        "electron error": error,
        "function atom": named_function(text),
        "class atom": as_definition(counting),
        "registered instance": as_definition(counting()),
        "atom": counting(),
        "grid": grid(**{text: [text, value], "y": range(10)}),
        "zipped": zipped(**{text: [text, value] * 10}),
        "frame": as_sweep(frame),
        "rows": as_sweep([{text: value, "y": text}]),
        "stream": drawn([{text: value}, {text: text}]),
        "context": Context(Lease(batch), 0),
        "context of a slice": Context(Lease(batch), 0, 1),
        "progress": Progress(100, 70, 5, 5, 20, 59_812.0, 3.2),
        "progress of a stream": Progress(None, 70, 0, 5, 20, 0.0, None),
        "events": stream_of(event, error, value),
        "pending future": ElectronFuture(),
        "finished future": finished(done),
        "failed future": finished(failed),
        "future that raised": raised(ConductorError(text)),
    }
