import getpass
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from atomizer_dask.store.provenance import differences, surroundings


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with one commit, as the working directory."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").write_text("1")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in ("init -q -b trunk", "add file", "commit -q -m first"):
        subprocess.run(["git", *author, *command.split()], check=True)
    return tmp_path


def test_facts_can_be_written_as_json():
    facts = surroundings()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["pid"] == os.getpid()
    assert facts["directory"] == os.getcwd()
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["packages"]["numpy"] == np.__version__
    assert {"atomizer_dask", "dask", "distributed", "pandas", "pyarrow"} <= set(facts["packages"])


def test_packages_count_where_they_are_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    assert "scikit-learn" not in surroundings()["packages"]
    monkeypatch.setitem(sys.modules, "sklearn", os)
    assert "scikit-learn" in surroundings()["packages"]


def test_version_of_a_package_whose_distribution_has_another_name(monkeypatch):
    module = type(sys)("cupy")
    module.__version__ = "13.0"
    monkeypatch.setitem(sys.modules, "cupy", module)
    assert surroundings()["packages"]["cupy"] == "13.0"


def test_commit_and_whether_files_differ_from_it(repository):
    (repository / "results").write_text("not tracked")
    clean = surroundings()["git"]
    assert len(clean["commit"]) == 40
    assert clean["branch"] == "trunk"
    assert os.path.samefile(clean["root"], repository)
    assert clean["dirty"] is False
    (repository / "file").write_text("changed")
    assert surroundings()["git"] == {**clean, "dirty": True}


def test_detached_head_has_no_branch(repository):
    subprocess.run(["git", "checkout", "-q", "--detach"], check=True)
    facts = surroundings()["git"]
    assert facts["branch"] is None
    assert len(facts["commit"]) == 40


def test_repository_without_commits(tmp_path, repository):
    empty = tmp_path / "empty"
    subprocess.run(["git", "init", "-q", str(empty)], check=True)
    os.chdir(empty)
    assert surroundings()["git"]["commit"] is None


def test_outside_of_repositories_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert surroundings()["git"] is None


def test_nothing_is_raised_where_git_and_user_are_missing(tmp_path, monkeypatch):
    def nobody():
        raise OSError

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(getpass, "getuser", nobody)
    facts = surroundings()
    assert facts["git"] is None
    assert isinstance(facts["user"], str)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps the directory")
def test_nothing_is_raised_where_the_directory_is_gone(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert surroundings()["directory"] == ""


def test_versions_that_differ_are_told():
    before = {"python": "3.11.9", "packages": {"numpy": "2.3.1", "pandas": "2.2.0", "scipy": "1"}}
    now = {"python": "3.13.1", "packages": {"numpy": "2.4.0", "pandas": "2.2.0", "torch": "2"}}
    assert differences(before, now) == ["Python 3.11.9, now 3.13.1", "numpy 2.3.1, now 2.4.0"]
    assert differences(now, now) == []


def test_records_without_versions_differ_in_nothing():
    assert differences({}, surroundings()) == []
    assert differences(surroundings(), {"packages": None}) == []
