import pytest

from atomizer_dask import (
    Atom,
    Electron,
    InvalidPayloadError,
    RegistrationError,
    atom,
    grid,
    register,
    zipped,
)
from atomizer_dask.atoms.definition import as_definition

IMG = "<img src=x onerror=alert(1)>"


@atom
def add(x, y=1, *, z=0):
    return x + y + z


@atom
def anything(x, **more):
    return {"x2": 2 * x, **{f"{name}_": value for name, value in more.items()}}


@atom
def context_first(context, x, y=2):
    return context.electron.payload["x"], x, y


@atom
def context_between(x, context, y=2):
    return context.electron.payload["x"], x, y


@atom
def context_by_keyword(x, y=2, *, context):
    return context.electron.payload["x"], x, y


class Counting(Atom):
    """Counts the electrons that one instance has seen, and keeps them in a list."""

    def __init__(self, start=0):
        self.count = start
        self.seen = []

    def process(self, context, conductor, electron):
        self.count += 1
        self.seen.append(electron.payload)
        return self.count, len(self.seen)


class Needy(Atom):
    def __init__(self, factor):
        self.factor = factor

    def process(self, context, conductor, electron):
        return self.factor * electron.payload


def test_atom_is_still_the_function():
    assert add(1) == 2
    assert add(1, y=2, z=3) == 6
    assert add.__name__ == "add"


def test_id_is_module_and_name_unless_given():
    assert add.id == f"{__name__}.add"
    assert Counting.id == f"{__name__}.Counting"
    assert atom(id="mine")(lambda x: x).id == "mine"


def test_repr_of_atom_shows_its_fields():
    assert repr(add) == f"<Atom {__name__}.add(x, y=1, z=0)>"
    assert "vectorised" in repr(atom(vectorized=True)(add.function))


def test_html_of_atom_is_escaped():
    assert "<img" not in atom(id=IMG)(lambda x: x)._repr_html_()


@pytest.mark.parametrize(
    ("payload", "result"),
    [({"x": 1}, 2), ({"x": 1, "y": 5}, 6), ({"z": 5, "x": 1}, 7), ({"x": 1, "y": 2, "z": 3}, 6)],
)
def test_payload_gives_the_parameters_by_name(local, payload, result):
    assert local.send(add, payload).result(60).value() == result


@pytest.mark.parametrize(
    ("columns", "result"),
    [
        ({"x": [1, 2]}, [2, 3]),
        ({"y": [5, 6], "x": [1, 2]}, [6, 8]),
        ({"z": [5, 6], "x": [1, 2]}, [7, 9]),
    ],
)
def test_sweep_gives_the_parameters_by_name(local, columns, result):
    frame = local.map(add, zipped(**columns)).wait(60).to_frame()
    assert frame["result"].tolist() == result


def test_further_keywords_take_any_field(local):
    frame = local.map(anything, zipped(x=[1], a=[5], b=[6])).wait(60).to_frame()
    assert frame.loc[0].to_dict() == {"x": 1, "a": 5, "b": 6, "x2": 2, "a_": 5, "b_": 6}
    assert local.send(anything, {"x": 1, "c": 7}).result(60).value() == {"x2": 2, "c_": 7}


@pytest.mark.parametrize("function", [context_first, context_between, context_by_keyword])
def test_context_may_stand_anywhere(local, function):
    assert local.send(function, {"x": 1}).result(60).value() == (1, 1, 2)
    assert local.send(function, {"y": 3, "x": 1}).result(60).value() == (1, 1, 3)
    frame = local.map(function, zipped(x=[1], y=[4])).wait(60).to_frame()
    assert tuple(frame["result"][0]) == (1, 1, 4)
    frame = local.map(function, zipped(x=[1])).wait(60).to_frame()
    assert tuple(frame["result"][0]) == (1, 1, 2)


def test_atom_without_fields_needs_no_payload(local):
    assert local.send(atom(id="nothing")(lambda: 5)).result(60).value() == 5


def test_positional_only_parameters_are_refused():
    def f(x, /, y):
        return x

    with pytest.raises(RegistrationError, match="takes x by position only"):
        atom(f)


def test_star_args_are_refused():
    def f(x, *rest):
        return x

    with pytest.raises(RegistrationError, match=r"\*rest"):
        register(f)


async def coroutine(x):
    return x


class CoroutineProcess(Atom):
    async def process(self, context, conductor, electron):
        return electron.payload


@pytest.mark.parametrize("value", [coroutine, CoroutineProcess, CoroutineProcess()])
def test_coroutine_functions_are_refused(value):
    with pytest.raises(RegistrationError, match="coroutine function"):
        register(value)


def test_decorator_of_a_class_says_what_to_do():
    class Plain:
        pass

    with pytest.raises(RegistrationError, match="subclass Atom"):
        atom(Plain)


def test_decorator_gives_an_atom_subclass_its_options():
    @atom(singleton="node", isolation="process", id="mine")
    class Mine(Atom):
        def process(self, context, conductor, electron):
            return None

    assert (Mine.singleton, Mine.isolation, Mine.id) == ("node", "process", "mine")


@pytest.mark.parametrize("option", [{"singleton": "host"}, {"isolation": "thread"}])
def test_options_that_make_no_sense_are_refused(option):
    with pytest.raises(RegistrationError, match=next(iter(option))):
        atom(**option)(lambda x: x)


def test_callable_without_name_must_be_given_one():
    class Callable:
        def __call__(self, x):
            return x

    with pytest.raises(RegistrationError, match="has no name of its own"):
        atom(Callable())
    assert atom(id="named")(Callable()).id == "named"


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ({}, "missing 'x'"),
        (None, "missing 'x'"),
        ({"x": 1, "temperature": 2}, "unknown 'temperature'"),
        ({"x": 1, "context": 2}, "unknown 'context'"),
    ],
)
def test_misfit_payload_is_refused_before_it_is_sent(local, payload, says):
    with pytest.raises(InvalidPayloadError, match=says):
        local.send(add, payload)


def test_misnamed_field_is_told_the_nearest():
    @atom
    def ising(temperature, size):
        return temperature

    with pytest.raises(InvalidPayloadError) as caught:
        ising.check_payload({"temprature": 1, "size": 2})
    text = str(caught.value)
    assert "missing 'temperature'" in text
    assert "unknown 'temprature' (did you mean 'temperature'?)" in text
    assert "ising(temperature, size)" in text


def test_misnamed_column_is_refused_before_it_is_sent(local):
    with pytest.raises(InvalidPayloadError, match=r"unknown 'xx'.*did you mean 'x'"):
        local.map(add, grid(xx=range(3)))


@pytest.mark.parametrize("sweep", [{"x": [1], "context": [2]}, {"context": [2]}])
def test_context_cannot_be_an_input(local, sweep):
    with pytest.raises(InvalidPayloadError, match="filled in by atomizer_dask"):
        local.map(context_first, sweep)


@pytest.mark.parametrize("payload", [3, "text", [1, 2], [("x", 1)]])
def test_payload_of_a_function_must_be_a_mapping(local, payload):
    with pytest.raises(InvalidPayloadError, match=r"must be a mapping.*\{'x': \.\.\.\}"):
        local.send(add, payload)


def test_class_gets_a_fresh_instance_for_each_electron(local):
    results = [local.send(Counting, n).result(60).value() for n in range(3)]
    assert results == [(1, 1)] * 3


def test_registered_instance_still_means_fresh_ones(local):
    local.register(Counting(10))
    assert local.send(Counting.id, "p").result(60).value() == (1, 1)


def test_copy_state_copies_the_registered_instance_deeply(local):
    registered = Counting(10)
    registered.seen.append("before")
    local.register(registered)
    results = [local.send(Counting.id, "p", copy_state=True).result(60).value() for _ in range(3)]
    assert results == [(11, 2)] * 3
    assert (registered.count, registered.seen) == (10, ["before"])


def test_copy_state_works_for_a_sweep(local):
    local.register(Counting(10))
    frame = local.map(Counting.id, {"x": range(3)}, copy_state=True).wait(60).to_frame()
    assert [tuple(result) for result in frame["result"]] == [(11, 1)] * 3


def test_class_in_a_sweep_gets_its_row_as_payload(local):
    class Row(Atom):
        def process(self, context, conductor, electron):
            return {"sum": electron.payload["a"] + electron.payload["b"]}

    frame = local.map(Row, grid(a=[1, 2], b=[10, 20])).wait(60).to_frame()
    assert frame["sum"].tolist() == [11, 21, 12, 22]


def test_class_that_needs_arguments_is_refused_with_a_way_out():
    with pytest.raises(RegistrationError, match=r"Needy.*factor.*copy_state=True"):
        register(Needy)


def test_instance_of_a_class_that_needs_arguments_must_be_copied(local):
    local.register(Needy(3))
    assert local.send(Needy.id, 5, copy_state=True).result(60).value() == 15
    with pytest.raises(RegistrationError, match="copy_state=True"):
        local.send(Needy.id, 5)
    with pytest.raises(RegistrationError, match="copy_state=True"):
        local.map(Needy.id, {"x": [1]})


def test_class_without_process_is_refused():
    class Empty(Atom):
        pass

    with pytest.raises(RegistrationError, match="has no method process"):
        register(Empty)


def test_class_may_give_its_own_id():
    class Double(Atom):
        id = "doc.Double"

        def process(self, context, conductor, electron):
            return 2 * electron.payload

    assert as_definition(Double).id == "doc.Double"
    assert as_definition(Double()).id == "doc.Double"


def test_payload_of_a_class_may_be_anything(local):
    class Echo(Atom):
        def process(self, context, conductor, electron):
            return electron.payload

    for payload in (None, 3, [1, 2], {"a": 1}):
        assert local.send(Electron(Echo.id, payload)).result(60).error.kind == "unknown_atom"
    local.register(Echo)
    for payload in (None, 3, [1, 2], {"a": 1}):
        assert local.send(Electron(Echo.id, payload)).result(60).value() == payload
