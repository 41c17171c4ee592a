"""What is installed travels by name, what is the user's own by value."""

import importlib
import importlib.util
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import ModuleType

import cloudpickle
import pytest

from atomizer_dask import Atomizer, grid
from atomizer_dask.atoms.code.own_modules import is_installed
from atomizer_dask.atoms.definition import as_definition
from atomizer_dask.atoms.pickling import dump_atom, load_atom

SOURCE = "FACTOR = 3\n\n\ndef scaled(x):\n    return FACTOR * x\n"
LOCKED = """
import threading
LOCK = threading.Lock()

def scaled(x):
    with LOCK:
        return 3 * x
"""
UNUSED_LOCK = "import threading\nUNUSED = threading.Lock()\n" + SOURCE


@pytest.fixture
def imported(monkeypatch):
    """A function that imports modules from a folder, until the test ends."""
    before = set(sys.modules)

    def imports(name, folder):
        monkeypatch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield imports
    for name in set(sys.modules) - before:
        if name.startswith("of_"):
            del sys.modules[name]


def package(folder: Path, name: str, source: str = SOURCE) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(source)
    return folder


def described(folder: Path, name: str) -> Path:
    """Write the metadata of a distribution that consists of a package."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{name}/__init__.py,,\n{name}-1.0.dist-info/METADATA,,\n")
    return folder


@pytest.mark.parametrize(
    ("name", "installed"),
    [
        ("numpy", True),
        ("numpy.random.mtrand", True),
        ("click.core", True),
        ("json.decoder", True),
        ("builtins", True),
        ("atomizer_dask.cli", True),
        ("__main__", False),
        (__name__, False),
        ("not_a_module", False),
    ],
)
def test_modules_of_this_process(name, installed):
    importlib.import_module("json.decoder")
    assert is_installed(name) is installed


def test_packages_of_environment_modules_are_installed(tmp_path, imported):
    """As sites provide them on PYTHONPATH: as links, in site-packages, beside their metadata."""
    purelib = Path(sysconfig.get_paths()["purelib"])
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "of_link").symlink_to(purelib / "click")
    assert is_installed("of_link", str(tmp_path / "linked" / "of_link" / "core.py"))
    for folder in ("lib/python3.11/site-packages", "lib/python3/dist-packages"):
        name = f"of_{folder.rpartition('/')[2].replace('-', '_')}"
        imported(name, package(tmp_path / folder, name))
        assert is_installed(name)
    imported("of_dist", described(package(tmp_path / "modules", "of_dist"), "of_dist"))
    imported("of_nobody", package(tmp_path / "modules", "of_nobody"))
    assert (is_installed("of_dist"), is_installed("of_nobody")) == (True, False)


def test_packages_with_compiled_modules_are_installed(tmp_path, imported, monkeypatch):
    imported("of_compiled", package(tmp_path, "of_compiled"))
    assert not is_installed("of_compiled")
    compiled = ModuleType("of_other._speedups")
    compiled.__file__ = f"{tmp_path}/of_other/_speedups{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    monkeypatch.setitem(sys.modules, compiled.__name__, compiled)
    imported("of_other", package(tmp_path, "of_other"))
    monkeypatch.syspath_prepend(str(tmp_path / "of the script"))
    assert is_installed("of_other"), "what is not below the script may be of an environment module"


def of_namespace(tmp_path, imported):
    (tmp_path / "of_space").mkdir()
    (tmp_path / "of_space" / "part.py").write_text(SOURCE)
    return imported("of_space.part", tmp_path)


def of_zip(tmp_path, imported):
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        archive.writestr("of_zip.py", SOURCE)
    return imported("of_zip", tmp_path / "own.zip")


def of_two_names(tmp_path, imported):
    (tmp_path / "of_twice.py").write_text(SOURCE)
    imported("of_twice", tmp_path)
    spec = importlib.util.spec_from_file_location("of_alias", tmp_path / "of_twice.py")
    module = sys.modules["of_alias"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_editable(tmp_path, imported):
    (tmp_path / "of_editable.egg-info").mkdir()
    return imported("of_editable", package(tmp_path, "of_editable"))


def of_a_program(tmp_path, imported):
    module = sys.modules["of_program"] = ModuleType("of_program")
    exec(SOURCE, vars(module))
    return module


def with_unused_lock(tmp_path, imported):
    return imported("of_unused_lock", package(tmp_path, "of_unused_lock", UNUSED_LOCK))


def with_lock(tmp_path, imported):
    return imported("of_lock", package(tmp_path, "of_lock", LOCKED))


@pytest.mark.parametrize(
    "make",
    [of_namespace, of_zip, of_two_names, of_editable, of_a_program, with_unused_lock],
)
def test_own_modules_travel_to_workers_that_lack_them(make, tmp_path, imported, dask):
    module = make(tmp_path, imported)

    def uses_module(x):
        return module.scaled(x)

    for atom in (uses_module, module.scaled):
        run = Atomizer(dask).map(atom, grid(x=[1, 2])).wait(60)
        assert run.to_frame()["result"].tolist() == [3, 6]


def test_what_cannot_travel_by_value_travels_by_name(tmp_path, imported, caplog):
    module = with_lock(tmp_path, imported)

    def uses_module(x):
        return module.scaled(x)

    again = load_atom(dump_atom(as_definition(uses_module)), space="worker")
    assert again.function.__closure__[0].cell_contents is module
    assert "workers import their own" in caplog.text


def test_a_refusal_leaves_the_registry_of_cloudpickle_as_it_was(dask):
    import threading

    lock = threading.Lock()

    def refused(x):
        return lock

    before = cloudpickle.list_registry_pickle_by_value()
    with pytest.raises(TypeError, match=r"the variable 'lock' \(lock\)"):
        Atomizer(dask).map(refused, grid(x=[1]))
    assert cloudpickle.list_registry_pickle_by_value() == before
