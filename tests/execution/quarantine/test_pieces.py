"""Pieces of a batch in a child process are executed whole, whatever the electrons in them do."""

import pytest

from atomizer_dask import Electron, atom, grid

SECONDS = 60


@atom(id="tests.child")
def child(x):
    return x


def waits_from(threshold, isolation):
    @atom(id="tests.waits", isolation=isolation)
    def waits(x, context):
        if x < threshold:
            return x
        return context.conductor.send(Electron("tests.child", {"x": x})).result(30).value()

    return waits


# Quick electrons make pieces of several, of which the first that waits gives up its slot.
@pytest.mark.parametrize("threshold", [0, 1, 50])
@pytest.mark.parametrize("isolation", ["", "process"])
def test_electrons_that_wait_lose_none_of_their_piece(atomizer, threshold, isolation):
    atomizer.register(child)
    run = atomizer.map(waits_from(threshold, isolation), grid(x=range(100))).wait(SECONDS)
    assert run.to_frame()["result"].tolist() == list(range(100))
    assert not len(run.errors)
