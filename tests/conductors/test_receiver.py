"""What a receiver answers where nothing can be executed."""

from types import SimpleNamespace

import pytest

from atomizer_dask import AmqpConductor, Conductor, Electron, RegistrationError
from atomizer_dask.conductors.receiver import Receiver


class OneElectron(Conductor):
    def __init__(self):
        self.answers = []

    def receive(self):
        yield Electron("tests.any", id="e1")

    def complete(self, properties):
        self.answers.append(properties)

    def send(self, electron):
        raise NotImplementedError

    def close(self):
        """It has nothing."""


class OneElectronFromGo(OneElectron):
    text_of = AmqpConductor.text_of


@pytest.mark.parametrize(
    ("conductor", "expected"),
    [(OneElectron(), "no such thing"), (OneElectronFromGo(), "atomizer error no such thing")],
)
def test_an_error_is_answered_with_its_own_text_and_to_go_programs_with_theirs(conductor, expected):
    def execute(electron, route):
        raise RegistrationError("no such thing")

    reported = []
    executor = SimpleNamespace(execute=execute, report=reported.append)
    Receiver(conductor, executor, set()).run()
    (answer,) = conductor.answers
    assert (answer.error.kind, answer.error.message) == ("rejected", expected)
    assert len(reported) == 1
