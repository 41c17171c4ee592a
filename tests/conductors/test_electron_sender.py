"""What has been sent one by one, and has not been handed to a driver."""

from types import SimpleNamespace

from atomizer_dask import Electron
from atomizer_dask.conductors.electron_sender import ElectronSender
from atomizer_dask.execution.batch import Origin
from atomizer_dask.future import ElectronFuture


class Spawner:
    """An electron that waits for what it has sent, or not."""

    def __init__(self, waits):
        self.waits = waits

    def about_to_wait(self):
        """Give up its slot."""


def test_what_an_electron_waits_for_is_no_orphan():
    owner = SimpleNamespace(check_open=lambda: None, post=lambda _: None)
    sender = ElectronSender(owner)
    for waits in (True, False):
        future = ElectronFuture(about_to_wait=Spawner(waits).about_to_wait)
        electron = Electron("tests.any", id=f"child of one that waits: {waits}")
        sender.send_child(electron, future, (None, 0), Origin(), "root", None)
    (orphan,) = sender.orphans()
    (awaited,) = sender.empty()
    assert orphan.electron.id.endswith("False")
    assert awaited.electron.id.endswith("True")
