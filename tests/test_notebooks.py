"""The notebooks run from top to bottom, and are committed as they should be."""

import re
import shutil
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parent.parent
PATHS = sorted(ROOT.glob("notebooks/*.ipynb"))
TEXTS = [ROOT / "README.md", *PATHS]


def needs_broker(path):
    return path.stem.endswith("rabbitmq")


each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
each_with_its_marks = pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.amqp] if needs_broker(path) else []) for path in PATHS],
    ids=lambda path: path.stem,
)


def cells_of(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def text_of(path):
    """Return what a file says to its reader, without code."""
    if path.suffix == ".md":
        return path.read_text()
    return "\n".join(cell.source for cell in cells_of(path, "markdown"))


def executed(path, folder):
    """Return the cells of code of a notebook, executed in a folder by this Python."""
    from nbclient import NotebookClient
    from traitlets.config import Config

    # With no folder to look for others in, the kernel is that of this interpreter.
    this_python = Config({"KernelSpecManager": {"kernel_dirs": []}})
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, config=this_python, resources=where, timeout=120).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.dask
@pytest.mark.timeout(300)
@each_with_its_marks
def test_notebook_runs_from_top_to_bottom_and_leaves_nothing_behind(
    path, tmp_path, request, monkeypatch
):
    if needs_broker(path):
        monkeypatch.setenv("ATOMIZER_AMQP_URL", request.getfixturevalue("broker").url)
    for module in ("nbclient", "ipykernel", "matplotlib", "xarray"):
        pytest.importorskip(module)
    copy = Path(shutil.copy(path, tmp_path))
    for cell in executed(copy, tmp_path):
        raised = any(output.output_type == "error" for output in cell.outputs)
        assert raised == ("raises-exception" in cell.metadata.get("tags", ())), cell.source
    assert list(tmp_path.iterdir()) == [copy]


@each_notebook
def test_notebook_is_committed_without_outputs(path):
    nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))
    for cell in cells_of(path, "code"):
        assert not cell.outputs
        assert cell.execution_count is None


@each_notebook
def test_notebook_says_at_once_what_one_can_do_afterwards(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith(f"# {int(path.stem[:2])}. ")
    assert "\n\nAfterwards you can " in first.source


def test_notebooks_are_numbered_without_gaps():
    numbers = [int(path.name.partition("-")[0]) for path in PATHS]
    assert numbers == list(range(1, len(PATHS) + 1))
    assert numbers


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text_of(path))
    broken = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert links
    assert not broken


def test_readme_lists_every_notebook():
    readme = text_of(ROOT / "README.md")
    assert not [path.name for path in PATHS if f"(notebooks/{path.name})" not in readme]
