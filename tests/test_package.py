import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import atomizer_dask

HERE = Path(atomizer_dask.__file__).parent


def test_all_is_sorted_and_free_of_doubles():
    names = atomizer_dask.__all__
    assert names == sorted(set(names))


def test_all_is_what_can_be_imported():
    public = {
        name
        for name in dir(atomizer_dask)
        if not name.startswith("_") and not inspect.ismodule(getattr(atomizer_dask, name))
    }
    assert public == set(atomizer_dask.__all__)


@pytest.mark.parametrize("name", atomizer_dask.__all__)
def test_everything_public_says_what_it_is_for(name):
    documentation = inspect.getdoc(getattr(atomizer_dask, name))
    assert documentation
    assert documentation.splitlines()[0].endswith(".")


def loaded_after(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_loads_neither_widgets_nor_an_amqp_client():
    assert not loaded_after("import atomizer_dask") & {"ipywidgets", "pika", "aio_pika", "IPython"}
    code = "import sys, atomizer_dask; sys.exit('atomizer_dask.conductors.amqp' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


def test_a_name_that_there_is_not_is_an_error():
    with pytest.raises(AttributeError, match="no attribute 'AmqpConducter'"):
        atomizer_dask.AmqpConducter  # noqa: B018


def test_types_are_declared():
    assert (HERE / "py.typed").exists()


def test_version_is_the_installed_one():
    assert atomizer_dask.__version__ == version("atomizer_dask")


def test_every_module_says_what_it_is_for():
    silent = [
        path.name
        for path in HERE.rglob("*.py")
        if path.stat().st_size and not path.read_text().startswith(('"""', 'r"""'))
    ]
    assert silent == []
