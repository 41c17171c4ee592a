"""Files in memory that all processes of a host share."""

import gc
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest

from atomizer_dask.atoms import shared_files
from atomizer_dask.atoms.shared_files import Incoming, Turn, find, held, share

DATA = bytes(range(256)) * 4096


@pytest.fixture
def folder(tmp_path, configure):
    configure({"large-values.folder": str(tmp_path)})
    return tmp_path / f"atomizer-{os.getuid()}"


def test_file_is_there_as_long_as_somebody_has_it(folder):
    first, again = share("digest", DATA), share("digest", DATA)
    assert again is first is find("digest", len(DATA)) is held("digest")
    assert [path.name for path in folder.iterdir()] == ["digest"]
    mapped = first.map()
    del first
    gc.collect()
    assert held("digest") is not None
    del again
    gc.collect()
    assert list(folder.iterdir()) == []
    assert find("digest", len(DATA)) is None
    assert mapped == DATA


def test_what_is_written_to_a_map_is_seen_by_nobody_else(folder):
    file = share("digest", DATA)
    mapped = file.map()
    mapped[0] = 7
    assert file.map() == DATA
    assert mapped[0] == 7


@pytest.mark.usefixtures("folder")
def test_other_process_finds_it_and_leaves_it_to_the_one_that_needs_it():
    code = (
        "import sys; from atomizer_dask.atoms.shared_files import find\n"
        f"print(bytes(find('digest', {len(DATA)}).map()[:3]))"
    )
    file = share("digest", DATA)
    parent = shared_files._folder_for(1).parent
    env = {**os.environ, "DASK_ATOMIZER__LARGE_VALUES__FOLDER": str(parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, timeout=60, check=True
    )
    assert done.stdout == b"b'\\x00\\x01\\x02'\n"
    assert file.map() == DATA
    assert find("digest", len(DATA)) is file


def test_forked_process_leaves_the_file_to_its_parent(folder):
    file = share("digest", DATA)
    child = multiprocessing.get_context("fork").Process(target=_collect)
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert [path.name for path in folder.iterdir()] == ["digest"]
    assert file.map() == DATA


def _collect():
    shared_files._held.clear()
    gc.collect()
    os._exit(0)


def test_what_killed_processes_left_is_removed(folder):
    code = (
        "import os, signal; from atomizer_dask.atoms.shared_files import share\n"
        f"kept = share('left', bytes({len(DATA)})); os.kill(os.getpid(), signal.SIGKILL)"
    )
    env = {**os.environ, "DASK_ATOMIZER__LARGE_VALUES__FOLDER": str(folder.parent)}
    subprocess.run([sys.executable, "-c", code], env=env, timeout=60, check=False)
    (folder / ".just-opened").touch()
    assert sorted(path.name for path in folder.iterdir()) == [".just-opened", "left"]
    assert find("other", 1) is None
    assert [path.name for path in folder.iterdir()] == [".just-opened"]


def test_incoming_file_has_no_name_until_it_is_complete(folder):
    with Incoming("digest", len(DATA)) as incoming:
        incoming.write(0, DATA[:100])
        assert find("digest", len(DATA)) is None
    assert list(folder.iterdir()) == []
    with Incoming("digest", len(DATA)) as incoming:
        incoming.write(100, DATA[100:])
        incoming.write(0, DATA[:100])
        file = incoming.done()
    assert find("digest", len(DATA)) is file
    assert file.map() == DATA


def test_only_one_process_has_its_turn(folder):
    with Turn("digest") as first, Turn("digest") as second:
        assert first.take()
        assert first.take()
        assert not second.take()
    assert list(folder.iterdir()) == []
    with Turn("digest") as third:
        assert third.take()


def test_folder_that_others_may_write_to_is_not_used(folder):
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with pytest.raises(OSError, match=r"no room for a value of 1 MiB .*only this user"):
        share("digest", DATA)


@pytest.mark.usefixtures("folder")
def test_no_room_is_an_error_that_says_what_to_do():
    with pytest.raises(OSError, match=r"atomizer\.large-values\.folder"):
        Incoming("digest", 2**60)


@pytest.mark.usefixtures("folder")
def test_many_threads_share_one_file():
    files = []
    threads = [
        threading.Thread(target=lambda: files.append(share("digest", DATA))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, files))) == 1


def test_link_of_somebody_else_is_not_followed(folder, tmp_path):
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (private / "letter").write_text("mine")
    folder.symlink_to(private)
    with pytest.raises(OSError, match="no room"):
        share("digest", DATA)
    assert (private / "letter").read_text() == "mine"
