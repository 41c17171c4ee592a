"""A kernel as a notebook has one, and what it tells whoever looks at it."""

from __future__ import annotations

import json
from ast import literal_eval
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty
from time import monotonic
from typing import Any, Self

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

SECONDS = 300  # for what hangs
TABS = ("events", "failures", "workers", "results")


@dataclass(frozen=True)
class Message:
    """What arrived: when, of which kind, and how many bytes that took."""

    time: float
    kind: str
    size: int


@dataclass
class Traffic:
    """What the kernel sent to the page for its widgets in some time."""

    seconds: float = 0.0
    messages: list[Message] = field(default_factory=list)

    @property
    def updates(self) -> list[Message]:
        """What changed something that the page had already."""
        return [m for m in self.messages if m.kind in ("comm_msg", "update_display_data")]

    def most_updates(self) -> int:
        """How many there were in the second that had the most."""
        return most_in_a_second([(m.time, 1) for m in self.updates])

    def most_kilobytes(self) -> float:
        """How many there were of them in the second that had the most."""
        return most_in_a_second([(m.time, m.size) for m in self.updates]) / 1000

    def rate(self) -> float:
        """How many there were per second."""
        return len(self.updates) / max(self.seconds, 1.0)

    def kilobytes(self) -> float:
        """How many there were per second."""
        return sum(m.size for m in self.updates) / max(self.seconds, 1.0) / 1000


def most_in_a_second(noted: Sequence[tuple[float, int]]) -> int:
    """Return the largest sum of the numbers that were noted within one second.

    >>> most_in_a_second([(0.0, 1), (0.5, 1), (0.99, 1), (1.2, 1), (3.0, 1)])
    3
    """
    first = most = now = 0
    for time, number in noted:
        now += number
        while noted[first][0] <= time - 1:
            now -= noted[first][1]
            first += 1
        most = max(most, now)
    return most


class Kernel:
    """A kernel with somebody who executes cells in it and gets all that a page would get."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self._client = client
        self._panel = ""
        self._noted = Traffic()

    @classmethod
    @contextmanager
    def started(cls) -> Iterator[Self]:
        manager, client = start_new_kernel()
        try:
            yield cls(client)
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)

    def execute(self, code: str) -> Any:
        """Execute a cell, and return what its last line says, a literal."""
        request = self._client.execute(code)
        result = None
        for kind, message in self._read(SECONDS):
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            if kind == "error":
                raise RuntimeError(f"{content['ename']}: {content['evalue']}")
            if kind == "execute_result":
                result = literal_eval(content["data"]["text/plain"])
            if kind == "status" and content["execution_state"] == "idle":
                return result
        raise TimeoutError(f"a cell took longer than {SECONDS} s")

    def look(self, tabs: Sequence[str] = TABS) -> None:
        """Say what a page says that has just shown the panel displayed last."""
        self._say({"hello": True})
        self._say({"views": 1, "tabs": list(tabs)})

    def listen(self, seconds: float) -> None:
        """Take note of what comes in some seconds."""
        for _ in self._read(seconds):
            pass

    def traffic(self) -> Traffic:
        """Return what has come since this was asked last."""
        noted, self._noted = self._noted, Traffic()
        return noted

    def _say(self, content: dict[str, Any]) -> None:
        data = {"method": "custom", "content": content}
        message = self._client.session.msg("comm_msg", {"comm_id": self._panel, "data": data})
        self._client.shell_channel.send(message)

    def _read(self, seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
        began = monotonic()
        try:
            while (left := began + seconds - monotonic()) > 0:
                try:
                    message = self._client.get_iopub_msg(timeout=left)
                except Empty:
                    return
                kind = message["msg_type"]
                self._note(kind, message)
                yield kind, message
        finally:
            self._noted.seconds += monotonic() - began

    def _note(self, kind: str, message: dict[str, Any]) -> None:
        if kind.startswith("comm_") or kind.endswith("display_data"):
            # As the server writes it on the websocket.
            size = len(json.dumps(message, default=str)) + sum(map(len, message["buffers"]))
            self._noted.messages.append(Message(monotonic(), kind, size))
        if kind == "comm_open" and "news" in message["content"]["data"].get("state", {}):
            self._panel = message["content"]["comm_id"]
