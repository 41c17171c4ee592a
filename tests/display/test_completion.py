"""What completion offers in IPython, with jedi and without."""

import inspect

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

from atomizer_dask import (
    AmqpConductor,
    Atomizer,
    Conductor,
    Context,
    DaskConductor,
    Electron,
    MemoryConductor,
    Run,
    atom,
    grid,
)

# What nobody needs after a dot, and our other modules do.
INTERNAL = {"begin", "lose", "put_event", "submit", "post", "frame_of", "note_waiting", "demand"}


@pytest.fixture
def shell():
    shell = InteractiveShell.instance()
    yield shell
    InteractiveShell.clear_instance()


@pytest.fixture
def shown(local):
    f = atom(id="tests.f")(lambda x: x)
    run = local.map(f, grid(x=range(3))).wait(60)
    future = local.send(f, {"x": 1})
    return {
        "run": run,
        "atomizer": local,
        "memory": local.conductors["memory"],
        "dask": object.__new__(DaskConductor),
        "amqp": object.__new__(AmqpConductor),
        "f": f,
        "sweep": run.sweep,
        "future": future,
        "properties": future.result(60),
        "stream": run.events,
        "progress": run.progress,
        "context": Context(seed=1),
        "electron": Electron("tests.f"),
        "grid": grid,
    }


EXPECTED = {
    "run": {"wait", "to_frame", "errors", "state", "progress", "cancel", "watch", "retry", "id"},
    "atomizer": {"map", "send", "attach", "register", "explore", "state", "close", "events"},
    "memory": {"close", "id", "send", "state", "status", "watch", "receive", "complete"},
    "dask": {"client", "close", "id", "send", "state", "status", "watch", "receive", "complete"},
    "amqp": {"close", "id", "send", "state", "status", "receive", "complete"},
    "f": {"id", "fixed", "function", "vectorized"},
    "sweep": {"axes", "length", "names"},
    "future": {"result", "done", "cancel", "exception"},
    "properties": {"result", "error", "value", "duration"},
    "stream": {"get", "subscribe", "close"},
    "progress": {"done", "eta", "rate", "total"},
    "context": {"rng", "random", "emit", "deadline"},
    "electron": {"id", "payload", "timeout"},
}


@pytest.mark.parametrize("use_jedi", [True, False])
@pytest.mark.parametrize("name", EXPECTED)
def test_completion_offers_what_a_user_needs(name, use_jedi, shell, shown):
    shell.push({"thing": shown[name]})
    shell.Completer.use_jedi = use_jedi
    text = "thing."
    with provisionalcompleter():
        found = {
            each.text.removeprefix(".") for each in shell.Completer.completions(text, len(text))
        }
    assert found >= EXPECTED[name]
    assert not use_jedi or not found & INTERNAL  # without jedi, IPython adds what the class has


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_offered_is_there_and_documented(name, shown):
    kind = type(shown[name])
    names = {each for each in dir(shown[name]) if not each.startswith("_")}
    for each in names & set(dir(kind)):
        member = inspect.getattr_static(kind, each)
        is_code = inspect.isroutine(member) or isinstance(member, property | classmethod)
        assert not is_code or inspect.getdoc(getattr(kind, each)) or inspect.getdoc(member)
    described = inspect.getdoc(kind) or ""
    for each in names - set(dir(kind)):
        assert each in described, f"{each} is not described in {kind.__name__}"


def test_conductors_offer_about_ten_names(shown):
    for name in ("memory", "dask", "amqp"):
        assert len([each for each in dir(shown[name]) if not each.startswith("_")]) <= 11


def test_parameters_complete_within_a_call(shell, shown):
    shell.push(shown)
    shell.Completer.use_jedi = True
    for text, expected in {
        "atomizer.map(": {"seed=", "store=", "timeout=", "fixed="},
        "run.to_frame(": {"metadata=", "columns=", "filters="},
        "f(": {"x="},
    }.items():
        with provisionalcompleter():
            found = {each.text for each in shell.Completer.completions(text, len(text))}
        assert found >= expected


def test_grid_shows_its_signature_and_completes_names_within(shell):
    shell.push({"grid": grid, "temperatures": [1, 2]})
    shell.Completer.use_jedi = True
    with provisionalcompleter():
        text = "grid(t=temper"
        found = {each.text for each in shell.Completer.completions(text, len(text))}
    assert "temperatures" in found
    assert "axes" in str(inspect.signature(grid))


def test_a_subclass_of_a_user_offers_its_own_names_too():
    class Mine(MemoryConductor):
        queue_name = "mine"

        def __init__(self):
            super().__init__()
            self.tries = 0

        def look(self):
            """Look."""

    class Bare(Conductor):
        id = "bare"

        def receive(self):
            """Receive nothing."""

        def complete(self, properties):
            """Complete nothing."""

        def send(self, electron):
            """Send nothing."""

        def close(self):
            """Close nothing."""

        def reconnect(self):
            """Reconnect."""

    mine = Mine()
    assert {"queue_name", "look", "tries", "status"} <= set(dir(mine))
    assert not INTERNAL & set(dir(mine))
    assert "reconnect" in dir(Bare())
    mine.close()


def test_names_that_are_not_offered_are_there():
    assert callable(Run.frame_of)
    assert callable(Atomizer(MemoryConductor()).put_event)
