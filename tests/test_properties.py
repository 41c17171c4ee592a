import pickle
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta

import pytest

from atomizer_dask import ElectronError, Event, Properties

IMG = "<img src=x onerror=alert(1)>"
START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + timedelta(seconds=1.5)


def good(**more):
    return Properties("E", "A", START, END, **more)


def failed(text="bad"):
    event = Event(f"ValueError: {text}", "E", "A", level="error")
    cause = ValueError(text)
    return good(error=ElectronError(event, cause, "exception", "ValueError", text, f"TB {text}"))


def test_value_is_the_result():
    assert good(result=3).value() == 3


def test_value_of_a_failed_electron_raises_its_error_from_the_cause():
    properties = failed()
    with pytest.raises(ElectronError, match="ValueError: bad") as caught:
        properties.value()
    assert caught.value is properties.error
    assert caught.value.__cause__ is properties.error.internal


def test_duration_is_from_start_to_end():
    assert good().duration == timedelta(seconds=1.5)


def test_defaults_of_properties():
    assert (good().worker, good().attempts, good().error, good().result) == ("", 1, None, None)


def test_properties_are_frozen():
    with pytest.raises(FrozenInstanceError):
        good().result = 1


@pytest.mark.parametrize("properties", [good(result={"a": 1}, worker="w", attempts=2)])
def test_properties_survive_pickle(properties):
    again = pickle.loads(pickle.dumps(properties))
    assert again == properties


def test_failed_properties_survive_pickle():
    again = pickle.loads(pickle.dumps(failed()))
    assert str(again.error) == str(failed().error)
    assert again.error.kind == "exception"
    assert repr(again.error.internal) == "ValueError('bad')"


def test_properties_made_fast_equal_those_made_plainly():
    fast = Properties.of("E", "A", START, END, None, 3, "w")
    assert fast == good(result=3, worker="w")
    assert pickle.loads(pickle.dumps(fast)).attempts == 1


def test_repr_of_properties_is_short():
    assert repr(good(result=3)) == "<Properties of E (A): 3 in 1.5 s>"
    assert len(repr(good(result="x" * 10_000))) < 120
    assert len(repr(failed("x" * 10_000))) < 120


def test_repr_of_failed_properties_says_so():
    assert repr(failed()) == "<Properties of E (A): failed, ValueError: bad in 1.5 s>"


def test_html_of_properties_is_escaped():
    for properties in (
        Properties(IMG, IMG, START, END, result=IMG, worker=IMG),
        failed(IMG),
    ):
        html = properties._repr_html_()
        assert "<img" not in html
        assert "&lt;img" in html
