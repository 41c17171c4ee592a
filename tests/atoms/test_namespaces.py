"""What is one object for the user is one object wherever it travels."""

import importlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from atomizer_dask import Atomizer, MemoryConductor, Run, grid, zipped
from atomizer_dask.atoms.pickling import dumps

OWN = """
import abc, dataclasses, functools, typing
from enum import Enum, Flag, IntEnum, auto
import shared
from atomizer_dask import Electron

FACTOR = 10

class Kind(Enum):
    FERRO = 1
    PARA = 2
    ALIAS = 1

class Planet(Enum):
    EARTH = (1.0, 2.0)
    def __init__(self, mass, radius):
        self.mass, self.radius = mass, radius

class Access(Flag):
    READ = auto()
    WRITE = auto()
    BOTH = READ | WRITE

@dataclasses.dataclass(frozen=True)
class Config:
    size: int = 1
    kind: Kind = Kind.FERRO
    def scaled(self):
        return self.size * FACTOR

class Point(typing.NamedTuple):
    x: int
    y: int = 2

class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...

class Square(Shape):
    side = 2
    def area(self):
        return self.side**2

class Refused(Exception):
    def __init__(self, code):
        super().__init__(code)
        self.code = code

class Coord(bytes, Enum):
    def __new__(cls, value, label):
        made = bytes.__new__(cls, [value])
        made._value_, made.label = value, label
        return made
    X = (0, "x")
    Y = (3, "y")

class Cached:
    def __init__(self, x):
        self.x = x
    @functools.cached_property
    def double(self):
        return 2 * self.x

class _Named:
    def __reduce__(self):
        return "NAMED"

class _Bare:
    pass

MISSING, NAMED, BARE = object(), _Named(), _Bare()

@functools.lru_cache
def cached(x):
    return x + FACTOR

def double(x):
    return 2 * x

def triple(x):
    return 3 * x

TABLE = {double: "double", triple: "triple"}

def compared(kind, config, missing, named, bare, function, point, shape, planet, access, coord,
             cached_one, context):
    import shared as again
    import nest.inner.deep
    import nest.inner.deep as deep
    from mine import Kind as SameKind
    return {
        "coord": coord is Coord.Y and (coord.label, bytes(coord)) == ("y", b"\\3"),
        "cached_one": cached_one.double == 6,
        "nested": nest.inner.deep.CONSTANT + deep.CONSTANT == 14,
        "by name": globals()["dou" + "ble"](2) == 4 and eval("FACTOR") == 10,
        "enum": kind is Kind.FERRO and kind == Kind(1) and Kind.ALIAS is kind,
        "config": config == Config() and isinstance(config, Config) and config.scaled() == 10,
        "fields": [field.name for field in dataclasses.fields(config)] == ["size", "kind"],
        "missing": missing is MISSING,
        "named": named is NAMED,
        "bare": bare is BARE,
        "function": TABLE[function],
        "point": isinstance(point, Point) and point == Point(1),
        "shape": isinstance(shape, Shape) and shape.area() == 4,
        "planet": planet.mass + Planet.EARTH.radius,
        "access": access is Access.READ and bool(access & Access.BOTH),
        "cached": cached(1),
        "imported": SameKind is Kind and again is shared,
        "module": shared.CONSTANT,
    }

def refused(kind):
    raise Refused(7 if kind is Kind.PARA else 0)

def returned(kind):
    return {"kind": kind, "config": Config(3), "function": double, "cls": Config, "named": NAMED,
            "missing": MISSING, "error": Refused(3)}

def leaf(kind, config):
    if kind is not Kind.FERRO or not isinstance(config, Config):
        raise Refused(1)
    return Config(5, Kind.PARA)

def spawner(n, context):
    sent = [context.conductor.send(Electron("mine.leaf", {"kind": Kind.FERRO, "config": Config()}))
            for _ in range(n)]
    got = [one.result().value() for one in sent]
    bad = context.conductor.send(Electron("mine.refused", {"kind": Kind.PARA})).result()
    return {"children": all(isinstance(one, Config) and one.kind is Kind.PARA for one in got),
            "error": isinstance(bad.error.internal, Refused) and bad.error.internal.code}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's own, which no worker can import."""
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "shared.py").write_text("CONSTANT = 5\n")
    (tmp_path / "nest" / "inner").mkdir(parents=True)
    for name, text in (("", ""), ("inner/", ""), ("inner/deep.py", "CONSTANT = 7\n")):
        (tmp_path / "nest" / (name if text else f"{name}__init__.py")).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield importlib.import_module("mine")
    for name in ("mine", "shared", "nest", "nest.inner", "nest.inner.deep"):
        sys.modules.pop(name, None)


def inputs(mine):
    return zipped(
        kind=[mine.Kind.FERRO] * 2,
        config=[mine.Config()] * 2,
        missing=[mine.MISSING] * 2,
        named=[mine.NAMED] * 2,
        bare=[mine.BARE] * 2,
        function=[mine.double, mine.triple],
        point=[mine.Point(1)] * 2,
        shape=[mine.Square()] * 2,
        planet=[mine.Planet.EARTH] * 2,
        access=[mine.Access.READ] * 2,
        coord=[mine.Coord.Y] * 2,
        cached_one=[mine.Cached(3)] * 2,
    )


@pytest.fixture(params=["memory", "memory child", "dask", "dask child"])
def place(request):
    """A conductor, and options that have it execute in the worker or in its child process."""
    if request.param.startswith("dask"):
        conductor = request.getfixturevalue("dask")
    else:
        conductor = MemoryConductor(2)
    yield conductor, {"timeout": "60s"} if request.param.endswith("child") else {}
    if request.param.startswith("memory"):
        conductor.close()


@pytest.mark.dask
def test_inputs_are_those_that_the_atom_knows(mine, place):
    conductor, options = place
    atomizer = Atomizer(conductor)
    rows = [p.value() for p in atomizer.map(mine.compared, inputs(mine), **options).wait(60)]
    assert sorted(row.pop("function") for row in rows) == ["double", "triple"]
    expected = dict.fromkeys(rows[0], True) | {"planet": 3.0, "cached": 11, "module": 5}
    assert rows == [expected] * 2


@pytest.mark.dask
def test_errors_are_those_that_the_client_knows(mine, place):
    conductor, options = place
    run = Atomizer(conductor).map(mine.refused, {"kind": [mine.Kind.PARA]}, **options).wait(60)
    (properties,) = run
    assert isinstance(properties.error.internal, mine.Refused)
    assert properties.error.internal.code == 7


@pytest.mark.dask
def test_results_are_those_that_the_client_knows(mine, place):
    conductor, options = place
    scaled = mine.Config.scaled
    run = Atomizer(conductor).map(mine.returned, {"kind": [mine.Kind.PARA]}, **options).wait(60)
    (row,) = [properties.value() for properties in run]
    assert row["kind"] is mine.Kind.PARA
    assert type(row["config"]) is mine.Config
    assert (row["function"], row["cls"]) == (mine.double, mine.Config)
    assert row["named"] is mine.NAMED
    assert row["missing"] is mine.MISSING
    assert type(row["error"]) is mine.Refused
    assert mine.Config.scaled is scaled, "the client's own class was changed by what came back"


@pytest.mark.dask
def test_electrons_that_electrons_send_and_their_answers_are_of_the_same_classes(mine, place):
    conductor, options = place
    atomizer = Atomizer(conductor, mine.leaf, mine.refused, mine.spawner)
    run = atomizer.map(mine.spawner, grid(n=[1, 3]), **options).wait(60)
    assert [p.value() for p in run] == [{"children": True, "error": 7}] * 2


@pytest.mark.dask
def test_two_versions_of_a_module_run_side_by_side(tmp_path, monkeypatch, dask):
    source = """
    import time
    from enum import Enum
    class Kind(Enum):
        FERRO = {value}
    def energy(kind, n):
        time.sleep(0.02)
        return Kind.FERRO.value if kind is Kind.FERRO else None
    """
    path = tmp_path / "versioned.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    atomizer, runs = Atomizer(dask), []
    for value in (1, 2):
        path.write_text(textwrap.dedent(source).format(value=value))
        importlib.invalidate_caches()
        old = sys.modules.get("versioned")
        module = importlib.import_module("versioned") if old is None else importlib.reload(old)
        runs.append(atomizer.map(module.energy, grid(kind=list(module.Kind), n=range(40))))
    found = [run.wait(60).to_frame()["result"].tolist() for run in runs]
    del sys.modules["versioned"]
    assert found == [[1] * 40, [2] * 40]


@pytest.mark.dask
def test_a_store_gives_another_process_the_classes_that_it_has(mine, tmp_path, dask):
    store = tmp_path / "store"
    kinds = grid(kind=[mine.Kind.PARA])
    Atomizer(dask).map(mine.returned, kinds, store=store, allow_pickle=True).wait(60)
    code = (
        "import sys; from atomizer_dask import Run; "
        "row = Run.open(sys.argv[1], allow_pickle=True).to_frame().iloc[0]; import mine; "
        "print(row['result_kind'] is mine.Kind.PARA, type(row['config']) is mine.Config)"
    )
    command = [sys.executable, "-c", code, str(store)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout.split() == ["True", "True"], done.stderr
    (tmp_path / "mine.py").unlink()  # and where there is no such module, classes of its own
    done = subprocess.run(
        [*command[:2], "import sys; from atomizer_dask import Run; print(Run.open(sys.argv[1], "
         "allow_pickle=True).to_frame().iloc[0]['config'].scaled())", str(store)],
        capture_output=True, text=True, timeout=60, cwd="/",
    )  # fmt: skip
    assert done.stdout.strip() == "30", done.stderr
    assert Run.open(store, allow_pickle=True).to_frame()["result_kind"][0] is mine.Kind.PARA


def test_functions_of_the_global_generators_stay_those_of_each_process():
    code = (
        "import pickle, sys; import numpy as np; from random import gauss; "
        "normal, rand = pickle.loads(sys.stdin.buffer.read()); "
        "print(normal.__self__ is np.random.mtrand._rand, rand.__self__ is gauss.__self__)"
    )
    from random import gauss

    data = dumps((np.random.normal, gauss))
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, timeout=60)
    assert done.stdout.split() == [b"True", b"True"], done.stderr
