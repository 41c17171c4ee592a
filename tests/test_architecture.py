"""The plan of the code: what the page about it says is so, and nothing outgrows it."""

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import atomizer_dask

HERE = Path(atomizer_dask.__file__).parent
PAGE = HERE.parent / "docs" / "architecture.md"
TEXT = PAGE.read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)

REFERENCES = sorted(set(re.findall(r"\b([\w/]+\.py)(?:: ([\w.]+))?", TEXT)))
ELSEWHERE = ("examples/", "tests/")

MODULE_LINES, CLASS_LINES, FUNCTION_LINES, NAMES = 400, 300, 40, 16


@pytest.mark.parametrize(("path", "name"), REFERENCES, ids=" ".join)
def test_what_the_page_names_is_there(path, name):
    if path.startswith(ELSEWHERE):
        assert (HERE.parent / path).exists()
        return
    assert (HERE / path).exists()
    found = importlib.import_module("atomizer_dask." + path.removesuffix(".py").replace("/", "."))
    for part in name.split(".") if name else ():
        found = getattr(found, part)


def test_the_page_names_every_room():
    rooms = {f"{path.parent.name}/" for path in HERE.glob("*/__init__.py")}
    modules = {path.name for path in HERE.glob("*.py")} - {"__init__.py"}
    assert {each for each in rooms | modules if f"`{each}`" not in TEXT} == set()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1][:40])
def test_what_the_page_shows_works(block, tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(PAGE), "exec"), {"__name__": "page"})


def test_the_contract_of_the_page_is_run_by_pytest(tmp_path):
    (block,) = (block for block in BLOCKS if "ConductorContract" in block)
    (tmp_path / "test_mine.py").write_text(block)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "9 passed" in done.stdout


def test_each_class_name_means_one_thing():
    names = Counter(
        node.name
        for path in HERE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in names.items() if count > 1} == set()


def test_no_constant_of_a_module_is_given_a_second_value():
    twice = []
    for path in HERE.rglob("*.py"):
        targets = [
            target.id
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        ]
        twice += [(path.name, name) for name, count in Counter(targets).items() if count > 1]
    assert twice == []


def documented(node):
    """Return how many lines of a node are docstrings."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    first = [each.body[0] for each in ast.walk(node) if isinstance(each, kinds) and each.body]
    texts = [
        each
        for each in first
        if isinstance(each, ast.Expr)
        and isinstance(each.value, ast.Constant)
        and isinstance(each.value.value, str)
    ]
    return sum(each.end_lineno - each.lineno + 1 for each in texts)


def sizes():
    """Yield the path, name, size and limit of each module, class and function."""
    for path in sorted(HERE.rglob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        yield path.name, path.name, len(text.splitlines()) - documented(tree), MODULE_LINES
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                limit = CLASS_LINES
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                limit = FUNCTION_LINES
            else:
                continue
            size = node.end_lineno - node.lineno + 1 - documented(node)
            yield path.name, node.name, size, limit


def test_nothing_is_too_large_to_be_read():
    assert [(path, name, size) for path, name, size, limit in sizes() if size > limit] == []


def test_no_folder_shows_too_many_names():
    hidden = {"__init__.py", "__pycache__"}
    crowded = {
        str(folder.relative_to(HERE)): len(names)
        for folder in HERE.rglob("*")
        if folder.is_dir()
        and len(names := [each for each in folder.iterdir() if each.name not in hidden]) > NAMES
    }
    assert crowded == {}


def test_tests_stand_in_the_rooms_of_what_they_test():
    rooms = {path.parent.relative_to(HERE) for path in HERE.rglob("__init__.py")}
    tests = HERE.parent / "tests"
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}
    assert folders <= rooms
