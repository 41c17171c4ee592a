"""Tracebacks have the lines of the source, wherever it is and whoever executed it."""

import linecache
import subprocess
import sys
import textwrap
import traceback

import pytest

from atomizer_dask import Electron, Run, atom, grid
from atomizer_dask.atoms.code.source_lines import SourceLines, lines_of, with_lines

SECONDS = 60
CELL = """
def helper(x):
    # a comment
    return 1 / x


class Model:
    def divide(self, x):
        return helper(x)


def divides(x):
    numbers = [Model().divide(each) for each in [x]]
    return sum(numbers)


def nested(x):
    def inner():
        return helper(x)  # of inner

    return inner()
"""


@pytest.fixture
def cell():
    """What a cell of a notebook defines: its file's name leads nowhere."""
    name = "/tmp/ipykernel_0/1234.py"
    linecache.cache[name] = (len(CELL), None, CELL.splitlines(keepends=True), name)
    scope = {"__name__": "__main__"}
    exec(compile(CELL, name, "exec"), scope)
    yield scope
    del linecache.cache[name]


@pytest.mark.parametrize("options", [{}, {"isolation": "process"}, {"timeout": "60s"}])
def test_tracebacks_of_a_cell_have_its_lines(atomizer, cell, options, tmp_path):
    timeout = options.pop("timeout", None)
    divides = atom(id="tests.divides", **options)(cell["divides"])
    run = atomizer.map(divides, grid(x=[1, 0]), timeout=timeout, store=tmp_path / "s").wait(SECONDS)
    for found in (run, Run.open(tmp_path / "s")):
        text = found.errors["traceback"].iloc[0]
        for line in (
            "numbers = [Model().divide(each) for each in [x]]",
            "return helper(x)",
            "return 1 / x",
            'File "/tmp/ipykernel_0/1234.py", line 4, in helper',
        ):
            assert line in text
        assert "atomizer_dask" not in text.replace(str(tmp_path), "")
        assert "dynamic-code" not in text


def test_functions_within_functions_have_theirs(atomizer, cell):
    nested = atom(id="tests.nested")(cell["nested"])
    run = atomizer.map(nested, grid(x=[0])).wait(SECONDS)
    assert "return helper(x)  # of inner" in run.errors["traceback"].iloc[0]


def test_electrons_sent_by_electrons_have_them_too(atomizer, cell):
    @atom(id="tests.sends")
    def sends(x, context):
        answer = context.conductor.send(Electron("tests.divides", {"x": x})).result(SECONDS)
        return answer.error.traceback

    atomizer.register(atom(id="tests.divides")(cell["divides"]))
    frame = atomizer.map(sends, grid(x=[0])).wait(SECONDS).to_frame()
    assert "return 1 / x" in frame["result"][0]


def test_an_edited_cell_has_its_own_lines(atomizer, cell):
    atomizer.map(atom(id="tests.divides")(cell["divides"]), grid(x=[0])).wait(SECONDS)
    edited, name = CELL.replace("1 / x", "2 / x"), "/tmp/ipykernel_0/5678.py"
    linecache.cache[name] = (len(edited), None, edited.splitlines(keepends=True), name)
    scope = {"__name__": "__main__"}
    exec(compile(edited, name, "exec"), scope)
    later = atom(id="tests.divides")(scope["divides"])
    text = atomizer.map(later, grid(x=[0])).wait(SECONDS).errors["traceback"].iloc[0]
    assert "return 2 / x" in text
    assert "return 1 / x" not in text


def test_replay_stands_in_the_frame_of_the_atom(atomizer, cell):
    run = atomizer.map(atom(id="tests.divides")(cell["divides"]), grid(x=[0])).wait(SECONDS)
    with pytest.raises(ZeroDivisionError) as caught:
        run.replay(0)
    frames = traceback.extract_tb(caught.tb)
    ours = [each for each in frames if "/atomizer_dask/" in each.filename]
    assert len(ours) <= 1
    assert [each.name for each in frames][-2:] == ["divide", "helper"]
    assert frames[-1].line == "return 1 / x"


def test_a_fault_that_is_not_the_atoms_has_its_frames(local):
    run = local.map(atom(id="tests.fine")(lambda x: x), grid(x=[0])).wait(SECONDS)
    with pytest.raises(KeyError, match="no electron"):
        run.replay(17)


def test_lines_are_put_beside_those_that_are_known():
    name = "/tmp/ipykernel_0/lines.py"
    text = "def one():\n    return 1\n\n\ndef two():\n    return 2\n"
    scope = {}
    exec(compile(text, name, "exec"), scope)
    one, two = scope["one"].__code__, scope["two"].__code__
    assert lines_of(one, scope) is None
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    known = [lines_of(one, scope), lines_of(two, scope)]
    assert known[1] == SourceLines(name, 5, "def two():\n    return 2\n")
    del linecache.cache[name]
    bare = two.replace(co_filename="<dynamic-code>")
    assert with_lines(bare, known[1]).co_filename == name
    with_lines(one, known[0])
    linecache.checkcache(name)
    assert linecache.getlines(name) == text.splitlines(keepends=True)


SCRIPT = """
from atomizer_dask import Atomizer, DaskConductor, grid

def broken(x):
    return 1 / x  # here

if __name__ == "__main__":
    with Atomizer(DaskConductor(workers=1)) as atomizer:
        print(atomizer.map(broken, grid(x=[0])).wait(50).errors["traceback"].iloc[0])
"""


@pytest.mark.dask
def test_tracebacks_of_a_script_have_its_lines(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=100)
    assert f'File "{path}", line 5, in broken' in done.stdout
    assert "return 1 / x  # here" in done.stdout
