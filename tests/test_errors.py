import copy
import inspect
import pickle

import pytest

from atomizer_dask import (
    AtomizerError,
    ConductorError,
    ElectronError,
    Event,
    InvalidPayloadError,
    InvalidSweepError,
    RegistrationError,
    UnpicklableError,
    errors,
)

CLASSES = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, Exception)
]
IMG = "<img src=x onerror=alert(1)>"


def test_text_of_error_with_an_exception_behind_it():
    event = Event("lost", electron_id="E", atom_id="A", conductor_id="C")
    error = AtomizerError(event, ValueError("no route"))
    assert str(error) == "lost: no route [cid:C | aid:A | eid:E]"
    assert error.go_text == ("atomizer error [cid:C | aid:A | eid:E] lost | internal: (no route)")


def test_text_of_error_with_nothing_behind_it():
    assert str(AtomizerError(Event("lost", conductor_id="C"))) == "lost [cid:C]"


def test_plain_message_is_made_into_an_event_of_level_error():
    error = AtomizerError("lost")
    assert error.event == Event("lost", level="error")
    assert str(error) == "lost"


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_an_atomizer_error(cls):
    assert issubclass(cls, AtomizerError)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("event", [Event("lost", "E", "A", "C"), "lost"], ids=["event", "text"])
@pytest.mark.parametrize("internal", [None, ValueError("no route")], ids=["alone", "behind"])
def test_every_error_survives_pickle(cls, event, internal):
    error = cls(event, internal)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error)
    assert again.event == error.event
    assert repr(again.internal) == repr(error.internal)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_keeps_its_time_through_pickle(cls):
    error = cls("lost")
    assert pickle.loads(pickle.dumps(error)).event.time == error.event.time


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_can_be_copied(cls):
    assert str(copy.copy(cls(Event("lost", "E")))) == str(cls(Event("lost", "E")))


def test_electron_error_keeps_its_facts_through_pickle():
    event = Event("ValueError: bad", "E", "A")
    error = ElectronError(event, ValueError("bad"), "timeout", "ValueError", "bad", "Traceback")
    again = pickle.loads(pickle.dumps(error))
    facts = (again.kind, again.type, again.message, again.traceback)
    assert facts == ("timeout", "ValueError", "bad", "Traceback")


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (RegistrationError, TypeError),
        (InvalidPayloadError, ValueError),
        (InvalidSweepError, ValueError),
        (UnpicklableError, TypeError),
        (ConductorError, RuntimeError),
    ],
)
def test_errors_can_be_caught_as_python_would_name_them(cls, builtin):
    with pytest.raises(builtin, match="what was given"):
        raise cls("what was given")


def test_html_of_error_is_escaped():
    html = AtomizerError(Event(IMG, atom_id=IMG), ValueError(IMG))._repr_html_()
    assert "<img" not in html
    assert "&lt;img" in html


def test_repr_of_error_is_short():
    assert len(repr(AtomizerError(Event("x" * 10_000), ValueError("y" * 10_000)))) < 500


def test_tree_drawn_in_the_module_names_every_class():
    assert [cls.__name__ for cls in CLASSES if cls.__name__ not in errors.__doc__] == []
