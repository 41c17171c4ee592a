"""A conductor of one's own: electrons travel as files in a folder that several machines share.

Who receives renames a file, which only one can do, and so owns the electron. The files are pickles:
share the folder with nobody whom you would not let run programs. Run the contract against it, or
against yours: see `atomizer_dask.testing`, and tests/test_examples.py.

    python examples/own_conductor.py
    python examples/own_conductor.py --scheduler tcp://host:8786 --electrons 1000
"""

import pickle
import tempfile
import threading
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import click

from atomizer_dask import (
    Atomizer,
    Conductor,
    ConductorError,
    DaskConductor,
    Electron,
    MemoryConductor,
    atom,
)
from atomizer_dask.conductor import check_electron


class FolderConductor(Conductor):
    """Sends and receives electrons through a folder."""

    shares_queue = True  # others may receive the same electrons

    def __init__(self, folder, id="folder"):
        self.id = id
        self._requests, self._taken, self._answers = (
            Path(folder, name) for name in ("requests", "taken", "answers")
        )
        for place in (self._requests, self._taken, self._answers):
            place.mkdir(parents=True, exist_ok=True)
        self._waiting, self._closed = {}, threading.Event()
        threading.Thread(target=self._collect, daemon=True).start()

    def send(self, electron):
        """Have an electron executed by whoever takes its file."""
        check_electron(electron)
        future = self._waiting[quote(electron.id, safe="")] = Future()
        if self._closed.is_set():
            raise ConductorError(f"the conductor {self.id} is closed")
        self._write(self._requests, electron.id, electron)
        return future

    def receive(self):
        """Yield electrons that others sent, until it is closed."""
        for file in self._files(self._requests):
            yield pickle.loads(file.read_bytes())  # noqa: S301 - of a folder that is ours

    def complete(self, properties):
        """Answer an electron that was received."""
        self._write(self._answers, properties.electron_id, properties)

    def close(self):
        """Wake whoever waits; nothing comes any more."""
        self._closed.set()
        while self._waiting:
            _, future = self._waiting.popitem()
            future.set_exception(ConductorError(f"the conductor {self.id} was closed"))

    def _collect(self):
        for file in self._files(self._answers, self._waiting.__contains__):
            if (future := self._waiting.pop(file.name, None)) is not None:
                future.set_result(pickle.loads(file.read_bytes()))  # noqa: S301

    def _files(self, place, is_wanted=lambda name: True):
        """Yield files that appear in a folder, each to one process only, until we are closed."""
        while not self._closed.wait(0.01):
            for file in (file for file in sorted(place.iterdir()) if is_wanted(file.name)):
                with suppress(FileNotFoundError):  # another one was faster
                    yield file.rename(self._taken / file.name)

    def _write(self, place, id, value):
        part = self._taken / f"{place.name} {quote(id, safe='')}"  # nobody sees half a file
        part.write_bytes(pickle.dumps(value))
        part.rename(place / quote(id, safe=""))


@atom(id="folder.toss")
def toss(tosses, *, context):
    """Count how many of some points in the unit square are within 1 of its corner."""
    x, y = context.rng.random((2, tosses))
    return int((x * x + y * y <= 1).sum())


@click.command(help=__doc__.partition("\n")[0])
@click.option("--electrons", default=100, show_default=True, help="Estimates of pi to make.")
@click.option("--tosses", default=100_000, show_default=True, help="Points for each of them.")
@click.option("--seed", default=7, show_default=True, help="Fixes the result to the last bit.")
@click.option("--scheduler", metavar="ADDRESS", help="Of Dask; by default in this process.")
def main(electrons, tosses, seed, scheduler):
    """Send electrons through a folder, and receive them in the same process."""
    with tempfile.TemporaryDirectory() as folder:
        executes = DaskConductor(scheduler) if scheduler else MemoryConductor()
        sender = FolderConductor(folder)
        with Atomizer(FolderConductor(folder), executes, toss).exec(), sender:
            # The random stream of an electron follows from its id.
            ids = [f"{seed}/{number}" for number in range(electrons)]
            sent = [sender.send(Electron(toss.id, {"tosses": tosses}, id=each)) for each in ids]
            inside = sum(future.result().result for future in sent)
    print(f"pi is about {4 * inside / (electrons * tosses):.6f}, of {electrons:,} electrons")


if __name__ == "__main__":
    main()
