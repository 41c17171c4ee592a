import math

import pytest

from atomizer_dask import Atom, Atomizer, MemoryConductor, RegistrationError, atom, register


def answer(x):
    return x


@atom(id="answer")
def one(x):
    return 1


@atom(id="answer")
def two(x):
    return 2


class Processing(Atom):
    def process(self, context, conductor, electron):
        return "processed"


@pytest.mark.parametrize("value", [answer, atom(answer), one, Processing, Processing()])
def test_atoms_can_be_registered_at_import_time(memory, value):
    register(value)
    atom_id = value.id if hasattr(value, "id") else f"{__name__}.answer"
    with Atomizer(memory) as atomizer:
        assert atomizer.send(atom_id, {"x": 5}).result(60).error is None


@pytest.mark.parametrize("value", [answer, atom(answer), one, Processing, Processing()])
def test_atoms_can_be_given_to_the_atomizer(memory, value):
    atom_id = value.id if hasattr(value, "id") else f"{__name__}.answer"
    with Atomizer(memory, value) as atomizer:
        assert atomizer.send(atom_id, {"x": 5}).result(60).error is None


@pytest.mark.parametrize("executing", [False, True])
def test_atoms_can_be_registered_before_and_after_exec(local, executing):
    if executing:
        local.exec()
    local.register(one)
    assert local.send("answer", {"x": 0}).result(60).value() == 1


def test_conductor_can_be_registered_at_import_time(memory):
    register(memory)
    atomizer = Atomizer(one)
    assert atomizer.send("answer", {"x": 0}).result(60).value() == 1
    atomizer.close()


@pytest.mark.parametrize("executing", [False, True])
def test_conductor_can_be_registered_before_and_after_exec(memory, executing):
    atomizer = Atomizer(one)
    if executing:
        atomizer.exec()
    atomizer.register(memory)
    assert atomizer.send("answer", {"x": 0}).result(60).value() == 1
    atomizer.close()


def test_same_id_at_import_time_overrides(local):
    register(one)
    register(two)
    assert local.send("answer", {"x": 0}).result(60).value() == 2


def test_same_id_in_one_atomizer_overrides(memory):
    with Atomizer(memory, one, two) as atomizer:
        assert atomizer.send("answer", {"x": 0}).result(60).value() == 2


def test_own_atom_of_an_atomizer_overrides_one_of_import_time(local):
    local.register(two)
    register(one)
    assert local.send("answer", {"x": 0}).result(60).value() == 2


def test_same_id_overrides_while_executing(local):
    local.register(one)
    assert local.send("answer", {"x": 0}).result(60).value() == 1
    local.register(two)
    assert local.send("answer", {"x": 0}).result(60).value() == 2
    assert local.map("answer", {"x": [0]}).wait(60).to_frame()["result"].tolist() == [2]


def test_conductor_of_the_same_id_overrides():
    first, second = MemoryConductor(1), MemoryConductor(1)
    with Atomizer(first, second, one) as atomizer:
        first.close()
        assert atomizer.send("answer", {"x": 0}).result(60).value() == 1


@pytest.mark.parametrize("value", [None, 3, "answer", [one], {"a": one}, int, MemoryConductor])
@pytest.mark.parametrize("how", [register, Atomizer, Atomizer().register])
def test_anything_else_is_a_clear_error(value, how):
    with pytest.raises(RegistrationError):
        how(value)


def test_error_says_what_was_given_and_what_is_expected():
    with pytest.raises(RegistrationError, match=r"cannot register 3 \(int\); expected an atom"):
        register(3)


@pytest.mark.parametrize("builtin", [math.sin, max, print])
def test_function_without_named_parameters_is_told_to_be_wrapped(builtin):
    with pytest.raises(RegistrationError, match="wrap it in a function"):
        register(builtin)


def test_unknown_id_is_told_the_nearest(local):
    register(one)
    with pytest.raises(RegistrationError, match="did you mean 'answer'"):
        local.map("anwser", {"x": [1]})
