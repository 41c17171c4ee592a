import dataclasses
import multiprocessing
import pickle

import pytest

from atomizer_dask import Electron

IMG = "<img src=x onerror=alert(1)>"


def test_electron_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Electron("A").payload = 1


def test_electron_survives_pickle():
    electron = Electron(
        "A", {"x": 1}, id="E", sender_id="S", timeout="3s", on_failure="retry", max_attempts=3
    )
    again = pickle.loads(pickle.dumps(electron))
    assert again == electron
    assert dataclasses.asdict(again) == dataclasses.asdict(electron)


def test_defaults_of_electron():
    electron = Electron("A")
    assert electron.payload is None
    assert electron.timeout is None
    assert electron.copy_state is False
    assert (electron.on_failure, electron.max_attempts, electron.backoff) == ("fail", 1, 0.0)


def test_ids_are_made_where_not_given_and_differ():
    electrons = [Electron("A") for _ in range(1000)]
    assert len({electron.id for electron in electrons}) == 1000
    assert len({electron.sender_id for electron in electrons}) == 1
    assert electrons[0].sender_id


def test_given_ids_are_kept():
    electron = Electron("A", id="E", sender_id="S")
    assert (electron.id, electron.sender_id) == ("E", "S")


def test_ids_of_a_forked_process_differ():
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    child = fork.Process(target=lambda: there.send(Electron("A").id.rpartition("-")[0]))
    child.start()
    prefix = here.recv()
    child.join()
    assert prefix != Electron("A").id.rpartition("-")[0]


def test_electron_can_be_replaced_in_part():
    electron = dataclasses.replace(Electron("A", {"x": 1}, id="E"), payload={"x": 2})
    assert (electron.atom_id, electron.payload, electron.id) == ("A", {"x": 2}, "E")


@pytest.mark.parametrize("atom_id", ["", None, 3, b"A"])
def test_atom_id_must_be_a_text(atom_id):
    with pytest.raises(TypeError, match="atom_id must be a non-empty string"):
        Electron(atom_id)


def test_unknown_option_is_named_with_those_there_are():
    with pytest.raises(TypeError, match=r"no option retries; it has .*max_attempts"):
        Electron("A", retries=3)


def test_options_are_by_keyword_only():
    with pytest.raises(TypeError):
        Electron("A", None, "E")


def test_repr_of_electron_is_short():
    electron = Electron("A", list(range(10_000)), id="E")
    assert repr(electron).startswith("<Electron E for A: [0, 1, 2")
    assert len(repr(electron)) < 120


def test_html_of_electron_is_escaped():
    html = Electron(IMG, {"x": IMG}, id=IMG)._repr_html_()
    assert "<img" not in html
    assert html.count("&lt;img") == 3
