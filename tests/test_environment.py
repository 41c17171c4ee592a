"""The conda environment has what the package needs, and nothing else."""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {
    "dask": "dask-core",
    "duckdb": "python-duckdb",
    "matplotlib": "matplotlib-base",
    "playwright": "playwright-python",  # playwright is what it drives, of Node.js
}
CONDA_ALONE = {"pip"}  # it installs this package itself


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def environment():
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def bounds_by_name(requirements):
    """Return the version bounds by conda name; in each form a name is there once."""
    parsed = [Requirement(text) for text in requirements]
    names = [canonicalize_name(requirement.name) for requirement in parsed]
    assert sorted(set(names)) == sorted(names)
    return {
        CONDA_NAMES.get(name, name): requirement.specifier
        for name, requirement in zip(names, parsed, strict=True)
    }


def wanted():
    extras = project()["optional-dependencies"].values()
    own = project()["name"]
    requirements = dict.fromkeys(
        [*project()["dependencies"], *(text for extra in extras for text in extra)]
    )
    others = [text for text in requirements if Requirement(text).name != own]
    return bounds_by_name([*others, f"python{project()['requires-python']}"])


def given():
    return bounds_by_name(text for text in environment()["dependencies"] if isinstance(text, str))


def test_same_packages():
    assert given().keys() - CONDA_ALONE == wanted().keys()


@pytest.mark.parametrize("name", wanted())
def test_same_version_bounds(name):
    assert given()[name] == wanted()[name]


def test_all_from_conda_forge():
    assert environment()["channels"] == ["conda-forge"]
    assert all(isinstance(text, str) for text in environment()["dependencies"])


def test_named_as_the_package():
    assert environment()["name"] == project()["name"]
