import functools
import json
import math
import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats

from atomizer_dask import Atom, atom
from atomizer_dask.atoms.code.fingerprint import Code, code_of
from atomizer_dask.atoms.code.references import References
from atomizer_dask.atoms.definition import as_definition

EVERYTHING = """
import enum, functools, math, re
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
import numpy as np
import pandas as pd
from atomizer_dask import Atom, atom

NAMES = {"alpha", "beta", "gamma", "delta"}
NESTED = {("alpha", 1), ("beta", 2), frozenset({"gamma", "delta"})}
TABLE = pd.DataFrame({"x": [1.0, 2.0], "name": ["a", "b"]})
GRID = np.linspace(0, 1, 7)
WHERE = Path("data") / "x.csv"
PATTERN = re.compile("a+")

class Kind(enum.Enum):
    COLD = 1
    HOT = 2

@dataclass
class Model:
    rate: float
    kinds: set = field(default_factory=lambda: {Kind.COLD, Kind.HOT})

    @property
    def double(self):
        return 2 * self.rate

    @staticmethod
    def half(x):
        return x / 2

MODEL = Model(0.5)

def first(x): return x
def second(x): return x + 1
def third(x): return x + 2
STEPS = {first, second, third}

@lru_cache
def cached(n):
    return n if n < 2 else cached(n - 1) + cached(n - 2)

cube = partial(pow, exp=3)

def twice(function):
    @functools.wraps(function)
    def wrapper(x):
        return 2 * function(x)
    return wrapper

@twice
def decorated(x):
    return math.floor(x)

@atom
def other(x):
    return everything(x)

@atom
def everything(x, weights=frozenset({"a", "b", "c"})):
    class Local:
        "With a docstring."
        limit = 3
    if x in {"alpha", "beta", "gamma"} or x in NAMES or x in NESTED:
        return Local.limit
    inner = lambda y: [step(y) for step in STEPS if y not in {"p", "q", "r"}]
    return MODEL.double + decorated(cached(x)) + cube(x) + GRID.sum() + len(TABLE), inner, (
        other, Kind.HOT, WHERE, PATTERN)

class Base(Atom):
    factor = 3

class InClass(Base):
    id = "in.class"
    def __init__(self, kinds=("a", "b")):
        self.kinds = set(kinds)
    def process(self, context, conductor, electron):
        return self.factor * everything(electron.payload)
"""
SHOW = """
from atomizer_dask.atoms.definition import as_definition
from atomizer_dask.atoms.code.fingerprint import code_of
print([code_of(as_definition(a)).fingerprint for a in (everything, InClass, InClass("cd"))])
"""
FACTOR = 2
LOCK = threading.Lock()


def code(function):
    return code_of(as_definition(function))


def made_of(source, name="f", **variables):
    """Return the code of an atom that was defined by this source."""
    scope = {"__name__": "__main__", "atom": atom, "Atom": Atom, **variables}
    exec(compile(textwrap.dedent(source), "<cell>", "exec", dont_inherit=True), scope)
    return code(scope[name])


def scale(x):
    return FACTOR * helper(x)


def helper(x):
    return math.floor(x)


def test_code_is_the_same_in_scripts_notebooks_and_modules(tmp_path):
    pytest.importorskip("IPython")
    (tmp_path / "script.py").write_text(EVERYTHING + SHOW)
    (tmp_path / "moved.py").write_text("# A comment.\n" * 5 + EVERYTHING)
    notebook = (
        "import IPython\n"
        "shell = IPython.InteractiveShell.instance(history_length=0)\n"
        f"[shell.run_cell(cell, store_history=True) for cell in ['1', {EVERYTHING!r}, {SHOW!r}]]\n"
    )
    (tmp_path / "notebook.py").write_text(notebook)
    runs = [
        (["script.py"], "0"),
        (["script.py"], "1"),
        (["-c", "from moved import *" + SHOW], "2"),
        (["notebook.py"], "3"),
    ]
    started = [
        subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed, "IPYTHONDIR": str(tmp_path)},
        )
        for arguments, seed in runs
    ]
    said = [process.communicate(timeout=100)[0].strip().splitlines()[-1] for process in started]
    assert len(set(said)) == 1, said
    assert len(set(json.loads(said[0].replace("'", '"')))) == 3


BEFORE = """
    def f(x, y=1):
        z = [x, y, 1.5]
        def inner(a):
            return a in {"p", "q"}
        class Local:
            x = 1
        return inner(z), None
"""
DOCUMENTED = """
    # Another line.

    def f(x: int, y: float = 1) -> tuple:
        "What it does."
        z = [x, y, 1.5]  # why

        def inner(a):
            '''More.'''
            return a in {"q", "p"}

        class Local:
            "Even here."
            x = 1
        return inner(z), None
"""


def test_comments_docstrings_annotations_and_place_do_not_matter():
    before, now = made_of(BEFORE), made_of(DOCUMENTED)
    assert before.fingerprint == now.fingerprint
    assert before.changes_to(now) == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1.5", "2.5"),
        ("1.5", "'1.5'"),
        ("x = 1", "x = True"),
        ("y=1", "y=2"),
        ("y=1", "y=1.0"),
        ("[x, y", "[y, x"),
        ('"q"', '"r"'),
        ("in {", "not in {"),
        ("(x, y=1)", "(x, *, y=1)"),
        ("inner(z)", "x.inner(z)"),
    ],
)
def test_what_changes_behaviour_changes_the_code(old, new):
    before, now = made_of(BEFORE), made_of(BEFORE.replace(old, new, 1))
    assert before.fingerprint != now.fingerprint
    assert before.changes_to(now)


USES = """
    def f(x):
        return g(x) + K
    def g(x):
        return h(x)
    def h(x):
        return {}
    K = {}
"""


def test_functions_that_are_called_count():
    before, now = made_of(USES.format(1, 1)), made_of(USES.format(2, 1))
    assert before.fingerprint != now.fingerprint
    assert before.parts["__main__.f"] == now.parts["__main__.f"]
    assert before.parts["__main__.h"] != now.parts["__main__.h"]


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ("1", "2"),
        ("'a'", "b'a'"),
        ("(1, 2)", "[1, 2]"),
        ("{'a': 1}", "{'a': 2}"),
        ("{1, 2}", "{1, 3}"),
        ("np.arange(3)", "np.arange(3.0)"),
        ("np.arange(6)", "np.arange(6).reshape(2, 3)"),
        ("pd.DataFrame({'x': [1]})", "pd.DataFrame({'x': [2]})"),
        ("pd.DataFrame({'x': [1]})", "pd.DataFrame({'y': [1]})"),
        ("pd.Series(['a'])", "pd.Series(['b'])"),
        ("functools.partial(h, x=1)", "functools.partial(h, x=2)"),
        ("math.sin", "math.cos"),
        ("10 ** 5000", "10 ** 5001"),
        ("f", "h"),
    ],
)
def test_values_of_globals_count(one, another):
    names = {"np": np, "pd": pd, "math": math, "functools": functools}
    before, again = (made_of(USES.format(1, one), **names) for _ in range(2))
    now = made_of(USES.format(1, another), **names)
    assert before == again
    assert before.fingerprint != now.fingerprint
    assert before.changes_to(now)


def test_changes_are_told_for_people():
    before = made_of(USES.format(1, 1))
    now = made_of(USES.format(1, 2).replace("g(x) + K", "K + new(x)") + "\n    new = lambda x: x")
    told = before.changes_to(now)
    assert "__main__.K: 1 -> 2" in told
    assert "new: __main__.<lambda>" in told
    assert "gone: __main__.g\ngone: __main__.h" in told
    changed = Code("2", {"m.f": "2"}, {"m.f": "def f(x):\n    return 2\n"})
    assert Code("1", {"m.f": "1"}, {"m.f": "def f(x):\n    return 1\n"}).changes_to(changed) == (
        "--- m.f before\n+++ m.f now\n@@ -1,2 +1,2 @@\n def f(x):\n-    return 1\n+    return 2"
    )


def test_change_of_who_calls_whom_is_told():
    source = "def f(x): return op(a, b)\ndef a(x): return 1\ndef b(x): return 2\nop = {}"
    before, now = made_of(source.format("a")), made_of(source.format("b"))
    assert before.parts == now.parts
    assert before.changes_to(now)


def test_sources_are_kept():
    kept = code(scale).sources
    assert kept[f"{__name__}.scale"] == "def scale(x):\n    return FACTOR * helper(x)\n"
    assert kept[f"{__name__}.helper"] == "def helper(x):\n    return math.floor(x)\n"
    assert kept[f"{__name__}.FACTOR"] == "2"
    assert set(kept) == set(code(scale).parts)


def test_source_of_a_class_is_kept():
    class Local(Atom):
        factor = FACTOR

        def process(self, context, conductor, electron):
            return electron.payload

    (name,) = (name for name in code(Local).parts if name.endswith("Local"))
    assert code(Local).sources[name].startswith("class Local(Atom):\n    factor = FACTOR\n\n")


def test_code_survives_json():
    before = code(scale)
    assert Code.from_json(json.loads(json.dumps(before.to_json()))) == before


CLASSES = """
    class Base(Atom):
        factor = {factor}
        def help(self):
            return {helps}

    class f(Base):
        def __init__(self, size=1):
            self.size = size
        def process(self, context, conductor, electron):
            return super().help() + self.size
"""


@pytest.mark.parametrize("change", [{"factor": 2}, {"helps": 2}])
def test_base_classes_count(change):
    same = {"factor": 1, "helps": 1}
    before, now = made_of(CLASSES.format(**same)), made_of(CLASSES.format(**{**same, **change}))
    assert before.fingerprint != now.fingerprint
    assert before.changes_to(now)


def test_state_of_a_registered_instance_counts():
    made = [
        made_of(CLASSES.format(factor=1, helps=1) + f"\n    i = f({n})", "i") for n in (5, 6, 5)
    ]
    assert made[0].changes_to(made[1]) == "__main__.f().size: 5 -> 6"
    assert made[0] == made[2]


def test_closures_count():
    def make(factor):
        return atom(id="closure")(lambda x: factor * x)

    assert code(make(2)).fingerprint == code(make(2)).fingerprint
    assert "factor: 2 -> 3" in code(make(2)).changes_to(code(make(3)))


def test_what_a_decorator_wraps_counts():
    source = "@decorate\ndef f(x): return {}"
    for decorate in (functools.cache, functools.lru_cache(5), functools.singledispatch):
        one, two = (made_of(source.format(n), decorate=decorate) for n in (1, 2))
        assert one.fingerprint != two.fingerprint


def test_vectorized_counts():
    assert "(vectorized)" in code(scale).changes_to(code(atom(vectorized=True)(scale)))


def test_id_isolation_and_singleton_do_not_matter():
    other = atom(id="another", isolation="process", singleton="node")(scale)
    assert code(scale).fingerprint == code(other).fingerprint


def test_own_modules_count_and_installed_ones_do_not(tmp_path, monkeypatch):
    """Both where they are imported at the top, and where the function imports them."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "top_level.py").write_text(
        "import math\nN = 1\ndef g(x):\n    return N\nUNUSED = 1"
    )
    (tmp_path / "within.py").write_text("import beyond\nN = 1\n")
    (tmp_path / "beyond.py").write_text("N = 1\n")
    import top_level

    source = "def f(x):\n    from within import N\n    return m.g(x) + np.sin(x) + N"
    before = made_of(source, m=top_level, np=np)
    assert set(before.parts) == {"__main__.f", "top_level.g", "top_level.N", "within", "beyond"}
    assert "within" not in sys.modules
    monkeypatch.setattr(top_level, "UNUSED", 2)
    assert made_of(source, m=top_level, np=np) == before
    monkeypatch.setattr(top_level, "N", 2)
    now = made_of(source, m=top_level, np=np)
    assert before.changes_to(now) == "top_level.N: 1 -> 2"
    (tmp_path / "beyond.py").write_text('"""Documented."""\nN = 2\n')
    assert made_of(source, m=top_level, np=np).parts["beyond"] != before.parts["beyond"]


def test_counters_that_an_atom_keeps_do_not_matter():
    source = "def f(x):\n    global n\n    n += 1\nn = {}"
    assert made_of(source.format(1)) == made_of(source.format(2))


def test_line_breaks_do_not_matter():
    source = "def f(x, y):\n    if x:\n        pass\n    return [x, y, max(x, y)]"
    broken = source.replace(", ", ",\n ").replace("pass", "\n        pass")
    assert made_of(source).fingerprint == made_of(broken).fingerprint


def test_code_may_be_spread_over_the_cells_of_a_notebook():
    """Where the import is in another cell, Python compiles calls to its functions otherwise."""
    source = """
    def f(x):
        for i in range(x):
            try:
                x += math.floor(x) + math.sin(sum(j for j in x))
            except ValueError:
                x -= math.ceil(x)
        return x
    """
    apart = made_of(source, math=math)
    assert made_of("import math\n" + textwrap.dedent(source)).fingerprint == apart.fingerprint


def test_running_leaves_the_code_as_it_was():
    source = """
    import copy, functools
    from dataclasses import dataclass
    @dataclass
    class Model:
        rate: float
        @functools.cached_property
        def double(self):
            return 2 * self.rate
    MODEL = Model(1.0)
    @functools.cache
    def cached(x):
        return copy.copy(MODEL).double + MODEL.double + x
    @atom
    def f(x):
        return cached(x)
    """
    scope = {"__name__": "__main__", "atom": atom}
    exec(textwrap.dedent(source), scope)
    before = code(scope["f"])
    assert scope["f"](1) == 5
    assert code(scope["f"]) == before


def test_recursion_and_cycles_end():
    source = """
    def f(x):
        return g(x), CYCLE, NODE
    def g(x):
        return f(x - 1)
    class Node:
        pass
    NODE = Node()
    NODE.next = NODE
    NODE.among = {NODE, 1}
    CYCLE = [NODE]
    CYCLE.append({"again": CYCLE})
    """
    assert made_of(source) == made_of(source)


class Hostile:
    """Whatever one does to it raises."""

    def __getattribute__(self, name):
        raise RuntimeError(name)

    def __repr__(self):
        raise RuntimeError("repr")


class Random:
    def __repr__(self):
        return f"<Random at {id(self):#x}>"


def test_weird_objects_do_no_harm():
    weird = [LOCK, Hostile(), Hostile, sys.stdout, iter([1]), (n for n in [1]), sys, object()]
    deep = []
    for _ in range(10_000):
        deep = [deep]
    for value in [*weird, weird, deep, {LOCK: LOCK}, {LOCK, sys}, Random(), threading.local()]:
        assert made_of("def f(x): return V", V=value).fingerprint


def test_addresses_do_not_count():
    for make in (Random, threading.Lock, object, lambda: [Random(), threading.Lock()]):
        assert made_of("def f(x): return V", V=make()) == made_of("def f(x): return V", V=make())


def test_functions_without_bytecode_are_atoms_too():
    assert code(np.sum).fingerprint != code(np.prod).fingerprint
    assert code(atom(id="a")(functools.partial(scale, x=1))).parts[f"{__name__}.scale"]


BIG = 100_000  # items, so that a value of them counts by the digest of its buffers


LARGE = {
    "array": lambda one: np.arange(BIG) * one,
    "times": lambda one: np.arange(BIG).astype("M8[s]") + one,
    "structured": lambda one: np.full(BIG, one, dtype=[("a", "i4"), ("b", "f8")]),
    "transposed": lambda one: np.asfortranarray(np.full((100, BIG // 100), one)),
    "strided": lambda one: (np.arange(2 * BIG) * one)[::2],
    "frame": lambda one: pd.DataFrame({"a": np.arange(BIG) * one, "b": "x"}),
    "named": lambda one: pd.DataFrame({f"a{one}": np.arange(BIG)}),
    "index": lambda one: pd.Series(np.arange(BIG), index=np.arange(BIG) * one),
    "objects": lambda one: pd.Series([one, "x"] * BIG, dtype=object),
    "integers": lambda one: pd.Series([2**100 + one] * BIG, dtype=object),
    "mixed": lambda one: pd.Series([1 if one == 1 else 1.0, 2.5] * BIG, dtype=object),
    "many columns": lambda one: pd.DataFrame(np.full((1000, 10), float(one))),
    "nullable": lambda one: pd.Series(np.arange(BIG) * one, dtype="Int64"),
    "zone": lambda one: pd.Series(pd.date_range("2020", periods=BIG, tz="UTC")[::one]),
    "categories": lambda one: pd.Series(["a", "b" * one] * BIG, dtype="category"),
    "table": lambda one: pa.table({"a": np.arange(BIG) * one}),
    "chunks": lambda one: pa.chunked_array([[one] * BIG, [1] * BIG]),
    "bytes": lambda one: bytes([one]) * BIG,
    "text": lambda one: chr(one) * BIG,
    "surrogates": lambda one: chr(0xD800 + one) * BIG,
    "list": lambda one: [1, b"x" * BIG, chr(one) * BIG],
    "masked": lambda one: np.ma.masked_array(np.arange(BIG), np.arange(BIG) == one),
    "set": lambda one: frozenset({"y", (1, chr(one) * BIG)}),
    "own": lambda one: Holder(np.arange(BIG) * one),
}


class Holder:
    def __init__(self, held):
        self.held = held


@pytest.mark.parametrize("kind", LARGE)
def test_large_values_count_by_their_contents(kind):
    first, again, other = map(LARGE[kind], (1, 1, 2))
    if kind == "structured":
        other["b"][-1] = 3
    one, same, another = (code_using(value) for value in (first, again, other))
    assert one.fingerprint == same.fingerprint
    assert one.fingerprint != another.fingerprint
    assert one.in_full is not None


def test_layout_and_chunks_of_large_values_do_not_matter():
    table = np.arange(3.0 * BIG).reshape(3, BIG)
    assert code_using(table).has(code_using(np.asfortranarray(table)).fingerprint)
    arrow = pa.table({"a": table[0]})
    parts = pa.concat_tables([arrow.slice(0, 7), arrow.slice(7)])
    assert code_using(arrow).has(code_using(parts).fingerprint)


@pytest.mark.parametrize(
    ("value", "before"),
    [
        (np.arange(100_000.0), "daa0431f29eb1c17"),
        (pd.DataFrame({"a": np.arange(100_000)}), "5742d2236308eddd"),
        (b"x" * 100_000, "25cdeb2ee27f7590"),
        ("x" * 100_000, "dae67e0f08954826"),
        ([b"x" * 100_000], "a2c914a833f13d4a"),
        ({"a": np.arange(100_000.0)}, "46e2eb952cc599c8"),
        (pd.DataFrame(np.zeros((1000, 10))), "b22d13e3f2c1ff98"),
    ],
)
def test_large_values_have_the_digest_that_they_had_before(value, before):
    assert References("mine", in_full=True).fingerprint(value) == before
    assert References("mine").fingerprint(value) != before


def test_code_is_recognised_by_its_fingerprint_of_earlier_versions():
    now = code_using(np.arange(BIG))
    assert now.has(now.fingerprint)
    assert now.has(now.in_full())
    assert now.fingerprint != now.in_full()
    assert not now.has(code_using(np.arange(BIG) + 1).in_full())
    assert code_using(np.arange(3)).in_full is None


def code_using(value):
    def use():
        return value

    return code(use)


def test_it_is_quick():
    code(scale)
    begin = time.perf_counter()
    for _ in range(20):
        code(scale)
    assert (time.perf_counter() - begin) / 20 < 0.02


MEMO = {}
SEEN, COUNTS = [], {"calls": 0}


def remembers(x):
    if x not in MEMO:
        MEMO[x] = x + 1
    SEEN.append(x)
    COUNTS["calls"] += 1
    return MEMO[x]


def remembers_in_its_default(x, memo={}):  # noqa: B006
    return memo.setdefault(x, x + 1)


def remembers_in_an_attribute(x):
    remembers_in_an_attribute.memo[(x, 1)] = x
    return x


remembers_in_an_attribute.memo = {}


def remembering():
    memo = {}

    def remembers_in_its_closure(x):
        memo[x] = 2 * x if x > 1 else x
        return memo[x]

    return remembers_in_its_closure


@functools.lru_cache
def cached(x):
    return x + 1


def uses_cached(x):
    return cached(x)


class Model:
    @functools.cached_property
    def table(self):
        return list(range(3))

    def __init__(self):
        self._cache = {}

    def __call__(self, x):
        self._cache[x] = self.table[0]
        return x


MODEL = Model()


def uses_model(x):
    return MODEL(x)


PRIOR = stats.norm(0, 1)


def uses_prior(x):
    return PRIOR.pdf(x) + PRIOR.rvs()


@pytest.mark.parametrize(
    "function",
    [
        remembers,
        remembers_in_its_default,
        remembers_in_an_attribute,
        remembering(),
        uses_cached,
        uses_model,
        uses_prior,
    ],
)
def test_what_has_been_computed_so_far_does_not_count(function):
    before = code_of(as_definition(function))
    function(3)
    function(4)
    np.random.seed()
    assert code_of(as_definition(function)) == before


def test_a_table_that_is_only_read_counts():
    before = made_of("TABLE = {'a': 1}\ndef f(x):\n    return TABLE['a'] + x\n")
    now = made_of("TABLE = {'a': 2}\ndef f(x):\n    return TABLE['a'] + x\n")
    assert before.fingerprint != now.fingerprint


@pytest.mark.parametrize(
    "source",
    [
        "CFG = {{'tol': {}}}\ndef f(x):\n    CFG['x'] = x\n    return CFG['tol'] * x\n",
        "CFG = {{'tol': {}}}\ndef f(x):\n    CFG.setdefault('m', x)\n    return CFG['tol'] * x\n",
        "CFG = {{'tol': {}}}\ndef f(x):\n    CFG[x] = x\n    return CFG['tol'] * x\n",
        "K = [{}]\ndef f(x):\n    return K.pop() if x < 0 else K[0]\n",
        "K = {{'t': {}}}\ndef f(x):\n    def g(K):\n        K['t'] = x\n    return K['t']\n",
        "def f(x, opts={{'k': {}}}):\n    opts['x'] = x\n    return opts['k']\n",
        "class C:\n    _cache_k = {}\nK = C()\nK._cache_k = {}\ndef f(x):\n    return K._cache_k\n",
    ],
)
def test_what_is_read_of_a_container_that_is_filled_counts(source):
    before, again, now = (made_of(source.format(k, k)) for k in (1, 1, 100))
    assert before == again
    assert before.fingerprint != now.fingerprint


def test_distributions_of_other_parameters_count():
    one, another = (made_of(f"K = stats.norm({mean}, 1)\ndef f(x):\n    return K.pdf(x)\n",
                            stats=stats) for mean in (0, 5))  # fmt: skip
    assert one.fingerprint != another.fingerprint
