"""Large buffers of atoms on their way to hosts that do not have them.

::

    worker                                             client, or another worker
    needs a buffer that its host does not have
    `BufferMissing` ── scheduler ──────────────────▶   has its file open: `provide`
    `BufferReceiver.take` ◀── in pieces, directly where that goes, else by way of the scheduler
    writes them into a file that its whole host maps

Of the workers of one host, one asks at a time; the others find the file.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple

from distributed import Client, Worker
from distributed.protocol.pickle import dumps

from atomizer_dask.atoms import shared_files
from atomizer_dask.atoms.atom_code import LargeBuffer
from atomizer_dask.atoms.shared_files import Incoming, SharedFile
from atomizer_dask.conductors.dask.ask_workers import ask_workers, result_of
from atomizer_dask.conductors.dask.messages import BufferMissing, as_event

LEAST_PIECE, MOST_PIECE = 2**18, 2**25  # bytes
PIECE_SECONDS = 0.5
ASK_AGAIN_SECONDS = 5.0  # while nothing comes
GIVE_UP_SECONDS = 60.0  # without a further piece
DIRECT_SECONDS = 3.0  # to reach a worker; then its pieces go by way of the scheduler
POLL_SECONDS = 0.02


class BufferPiece(NamedTuple):
    """A part of a large buffer on its way; an empty one asks whether the others are wanted.

    Parameters
    ----------
    buffer
        Digest and size of the whole.
    provider
        Who sends it.
    offset, data
        Where it begins, and its bytes.
    """

    buffer: LargeBuffer
    provider: str
    offset: int = 0
    data: bytes = b""


class _Receipt:
    """What has come of a buffer so far."""

    def __init__(self, provider: str, incoming: Incoming) -> None:
        self.provider = provider
        self.incoming = incoming
        self.offsets = set[int]()  # of pieces that have come: one may come twice
        self.received = 0
        self.at = monotonic()


class BufferReceiver:
    """Gets large buffers onto the host of a worker.

    Parameters
    ----------
    worker
        The worker.
    limit
        Bytes of memory that it may use; 0 for no limit.
    """

    def __init__(self, worker: Worker, limit: float) -> None:
        self._worker = worker
        self._limit = limit
        self._receipts: dict[str, _Receipt] = {}
        self._problems: dict[str, OSError] = {}
        self._wanted: Counter[str] = Counter()  # how many threads wait for each
        self._arrived: dict[str, SharedFile] = {}  # kept for these
        self._guard = threading.Lock()

    def obtain(self, buffers: Iterable[LargeBuffer]) -> list[SharedFile]:
        """Return the files of buffers, got from elsewhere where this host does not have them.

        Waits; not to be called on the worker's event loop.

        Raises
        ------
        OSError
            Where there is no room for one.
        TimeoutError
            Where nobody sends one that is missing.
        """
        buffers = list(buffers)
        needed = sum(buffer.nbytes * buffer.copies for buffer in buffers)
        if 0 < self._limit < needed:
            raise OSError(
                f"out of memory: an electron needs {' and '.join(map(str, buffers))}, and the "
                f"worker may use {self._limit / 2**20:,.0f} MiB, of which that would take "
                f"{needed / 2**20:,.0f}"
            )
        return [self._obtain(buffer) for buffer in buffers]

    def _obtain(self, buffer: LargeBuffer) -> SharedFile:
        digest = buffer.digest
        with self._guard:
            self._wanted[digest] += 1
        try:
            return self._wait_for(buffer)
        finally:
            with self._guard:
                self._wanted[digest] -= 1
                if not self._wanted[digest]:
                    del self._wanted[digest]
                    self._arrived.pop(digest, None)
                    self._problems.pop(digest, None)

    def _wait_for(self, buffer: LargeBuffer) -> SharedFile:
        if (file := buffer.find()) is not None:
            return file
        asked = heard = -float("inf")
        began = monotonic()
        with shared_files.Turn(buffer.digest) as turn:  # of the processes of this host
            while (file := buffer.find()) is None:
                with self._guard:
                    problem = self._problems.get(buffer.digest)
                    receipt = self._receipts.get(buffer.digest)
                if problem is not None:
                    raise problem
                now = monotonic()
                heard = began if receipt is None else receipt.at
                if not turn.take():
                    began = now  # another process asks, and gives up in time
                elif now - heard > GIVE_UP_SECONDS:
                    self._drop(buffer.digest)
                    raise TimeoutError(
                        f"{buffer} is not on this host, and "
                        f"nobody has sent it for {GIVE_UP_SECONDS:g} s"
                    )
                elif now - max(asked, heard if receipt else asked) > ASK_AGAIN_SECONDS:
                    asked = now
                    self._drop(buffer.digest)
                    message = BufferMissing(buffer.digest, buffer.nbytes, self._worker.address)
                    self._worker.log_event(**as_event(message))
                threading.Event().wait(POLL_SECONDS)
        return file

    def _drop(self, digest: str) -> None:
        """Forget what has come so far: its provider sends no more."""
        with self._guard:
            if (receipt := self._receipts.pop(digest, None)) is not None:
                receipt.incoming.__exit__()

    def take(self, piece: BufferPiece) -> bool:
        """Write a piece, and return whether more are wanted from its provider."""
        digest, nbytes = piece.buffer[:2]
        with self._guard:
            receipt = self._receipts.get(digest)
            if receipt is None:
                if piece.data or digest not in self._wanted or digest in self._arrived:
                    return False
                try:
                    receipt = _Receipt(piece.provider, Incoming(digest, nbytes))
                except OSError as error:
                    self._problems[digest] = error
                    return False
                self._receipts[digest] = receipt
            if receipt.provider != piece.provider:
                return False
            try:
                receipt.incoming.write(piece.offset, piece.data)
            except OSError as error:  # no room after all
                self._problems[digest] = error
                self._receipts.pop(digest).incoming.__exit__()
                return False
            receipt.at = monotonic()
            if piece.offset not in receipt.offsets:
                receipt.received += len(piece.data)
            if piece.data:
                receipt.offsets.add(piece.offset)
            if receipt.received < nbytes:
                return True
            self._arrived[digest] = receipt.incoming.done()
            del self._receipts[digest]
            return False


_providing: set[tuple[str, str]] = set()  # digests and workers


async def provide(client: Client, missing: BufferMissing, take: Any) -> None:
    """Send a buffer to a worker that asks for it, where this process has its file open.

    Parameters
    ----------
    client
        A client of the worker's scheduler.
    missing
        What the worker asks for.
    take
        The function that gives a piece to a worker's receiver.
    """
    file = shared_files.held(missing.digest)
    if file is None or (missing.digest, missing.worker) in _providing:
        return
    _providing.add((missing.digest, missing.worker))
    try:
        await _provide(client, LargeBuffer(*missing[:2]), file, missing.worker, take)
    except OSError:
        return  # the worker has gone, or asks again
    finally:
        _providing.discard((missing.digest, missing.worker))


async def _provide(
    client: Client, buffer: LargeBuffer, file: SharedFile, worker: str, take: Any
) -> None:
    view, route = file.map(), _Route(client, worker)
    wanted = await route.call(take, BufferPiece(buffer, client.id))
    offset, size = 0, LEAST_PIECE
    while wanted and offset < buffer.nbytes:
        data = bytes(view[offset : offset + size])
        before = monotonic()
        wanted = await route.call(take, BufferPiece(buffer, client.id, offset, data))
        offset += len(data)
        # A receiver whose pieces stay away asks again: each is to take about as long as it should.
        rate = len(data) / max(monotonic() - before, 1e-3)
        size = int(min(max(LEAST_PIECE, rate * PIECE_SECONDS), 2 * size, MOST_PIECE))


class _Route:
    """Calls functions on a worker: directly, or by way of the scheduler where that does not go."""

    def __init__(self, client: Client, worker: str) -> None:
        self._client = client
        self._worker = worker
        self._is_direct = True
        self._is_reached = False

    async def call(self, function: Any, *args: Any) -> Any:
        if self._is_direct:
            seconds = GIVE_UP_SECONDS if self._is_reached else DIRECT_SECONDS
            with suppress(OSError, TimeoutError):
                answer = await asyncio.wait_for(self._call(function, args), seconds)
                self._is_reached = True
                return answer
            self._is_direct = False
        answers = await ask_workers(self._client, function, *args, workers=[self._worker])
        answer = answers[self._worker]
        if isinstance(answer, Exception):
            raise OSError(f"worker {self._worker} took no piece") from answer
        return answer

    async def _call(self, function: Any, args: Any) -> Any:
        worker = self._client.rpc(self._worker)
        return result_of(await worker.run(function=dumps(function), args=dumps(args)))
