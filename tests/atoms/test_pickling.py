import importlib.util
import math
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import pytest

from atomizer_dask import Atom, UnpicklableError, atom
from atomizer_dask.atoms.definition import as_definition
from atomizer_dask.atoms.pickling import dump_atom, load_atom

LOCK = threading.Lock()
FACTOR = 3


def scale(x):
    return FACTOR * math.floor(x)


class Scale(Atom):
    def __init__(self, factor=2):
        self.factor = factor

    def process(self, context, conductor, electron):
        return self.factor * electron.payload


def uses_global(x):
    return LOCK


def uses_closure():
    handle = threading.Lock()
    return lambda x: handle


def uses_default(x, guard=LOCK):
    return x


def uses_keyword_default(x, *, guard=LOCK):
    return x


def locked_instance():
    instance = Scale()
    instance.guard = LOCK
    return instance


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (uses_global, r"the global 'LOCK' \(lock\)"),
        (atom(id="closure")(uses_closure()), r"the variable 'handle' \(lock\)"),
        (uses_default, r"the default of its parameter 'guard' \(lock\)"),
        (uses_keyword_default, r"the default of its parameter 'guard' \(lock\)"),
        (locked_instance(), r"its attribute 'guard' \(lock\)"),
    ],
    ids=["global", "closure", "default", "keyword", "attribute"],
)
def test_what_cannot_be_pickled_is_named(value, says):
    definition = as_definition(value)
    with pytest.raises(UnpicklableError, match=says) as caught:
        dump_atom(definition)
    text = str(caught.value)
    assert definition.id in text
    assert "make it inside the atom, or once in each process" in text
    assert isinstance(caught.value.internal, TypeError)


def test_error_about_what_cannot_be_pickled_can_be_pickled():
    with pytest.raises(UnpicklableError) as caught:
        dump_atom(as_definition(uses_global))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_atom_comes_back_as_it_was():
    again = load_atom(dump_atom(as_definition(scale)))
    assert again.id == f"{__name__}.scale"
    assert again(2.5) == 6
    assert again.fields == {"x": True}


def test_instance_comes_back_with_its_state():
    again = load_atom(dump_atom(as_definition(Scale(5))))
    assert again.instance.factor == 5
    assert again.id == f"{__name__}.Scale"


def test_own_code_travels_by_value(tmp_path):
    """A process that has neither the user's file nor its modules can run the atom."""
    (tmp_path / "mine.py").write_text("from other import K\ndef f(x):\n    return K * helper(x)\n"
                                      "def helper(x):\n    return x + 1\n")  # fmt: skip
    (tmp_path / "other.py").write_text("K = 10\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import mine

        (tmp_path / "atom").write_bytes(dump_atom(as_definition(mine.f)))
    finally:
        sys.path.remove(str(tmp_path))
        for name in ("mine", "other"):
            sys.modules.pop(name, None)
            (tmp_path / f"{name}.py").unlink()
    code = (
        "import sys; from atomizer_dask.atoms.pickling import load_atom; "
        "print(load_atom(open(sys.argv[1], 'rb').read())(2))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "atom")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.stdout.strip() == "30", done.stderr


def test_installed_packages_travel_by_reference():
    @atom
    def uses_pandas(x):
        import pandas as pd

        return pd.DataFrame({"x": [math.floor(x)]})

    assert len(dump_atom(uses_pandas)) < 10_000


def test_pickling_leaves_the_registry_of_cloudpickle_as_it_was():
    before = cloudpickle.list_registry_pickle_by_value()
    dump_atom(as_definition(scale))
    with pytest.raises(UnpicklableError):
        dump_atom(as_definition(uses_global))
    assert cloudpickle.list_registry_pickle_by_value() == before


def test_modules_the_user_chose_to_pickle_by_value_stay_chosen():
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        dump_atom(as_definition(scale))
        assert __name__ in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_broken_modules_do_no_harm(monkeypatch):
    spec = importlib.util.spec_from_loader("broken", None)
    broken = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "broken", broken)
    monkeypatch.setitem(sys.modules, "absent", None)
    assert load_atom(dump_atom(as_definition(scale)))(1) == 3


def test_threads_that_write_atoms_at_once_do_not_disturb_each_other():
    definition = as_definition(scale)
    alone = dump_atom(definition)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda _: dump_atom(definition), range(200)))
    assert set(together) == {alone}
