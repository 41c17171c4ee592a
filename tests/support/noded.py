"""A node as its operator sees it: a process, its lines of JSON, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic

import psutil
from broker import GUARD

FOLDER = Path(__file__).parent
SECONDS = 90  # until it is given up to wait for a node
ATOMS = "node_atoms"
PI = ("atomizer_dask.montecarlopi:Toss", "atomizer_dask.montecarlopi:MonteCarlo")


class Node:
    """The command ``atomizer-dask node`` in a process of its own. Used in a `with`.

    Parameters
    ----------
    url : str
        Of the broker.
    queue : str
        That it serves.
    *targets : str
        Atoms, as ``MODULE:ATOM``; a name alone is one of `node_atoms`.
    options : sequence of str
        Further options of the command.
    command : sequence of str
        How the command is called.
    env : mapping, optional
        Environment of the process; that of the tests by default.

    Attributes
    ----------
    text : list of str
        What it wrote to stderr, line by line.
    """

    def __init__(
        self, url, queue, *targets, options=(), command=("atomizer-dask", "node"), env=None
    ):
        named = [target if ":" in target else f"{ATOMS}:{target}" for target in targets]
        where = ["--amqp", url] if url else []
        program = Path(sys.executable).with_name(command[0])
        self.text = []
        self._changed = threading.Condition()
        self._ended = False
        self._guard = subprocess.Popen(GUARD, stdin=subprocess.PIPE, process_group=0)
        self._process = subprocess.Popen(
            [program, *command[1:], *where, "--queue", queue, *options, *named],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=FOLDER,
            env=env,
            process_group=self._guard.pid,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """End it and whatever it left behind."""
        os.killpg(self._guard.pid, signal.SIGKILL)
        self._guard.communicate()
        self.wait()
        self._process.stderr.close()

    @property
    def lines(self):
        """Its lines as they were meant; what is no JSON is a failure."""
        return [json.loads(line) for line in list(self.text)]

    @property
    def output(self):
        """Everything it wrote to stderr."""
        return "\n".join(self.text)

    def events(self, name):
        """Return its lines about an event."""
        return [line for line in self.lines if line["event"] == name]

    def wait_for(self, event, count=1):
        """Wait until an event was told of so many times, and return its last line."""

        def told():
            if len(found := self.events(event)) >= count:
                return found[-1]
            if self._ended:
                raise AssertionError(f"the node ended before {event!r}:\n{self.output}")
            return None

        return self._wait(told, event)

    def serving(self):
        """Wait until it serves, and return itself."""
        self.wait_for("serving")
        return self

    def workers(self):
        """Return the processes that it has started and that live."""
        return psutil.Process(self.pid).children(recursive=True)

    def tell(self, number, *, all_of_it=False):
        """Send it a signal; with `all_of_it` to its workers too, as Ctrl-C in a terminal does."""
        if all_of_it:
            os.killpg(self._guard.pid, number)
        else:
            self._process.send_signal(number)

    def end(self, number=signal.SIGTERM):
        """Tell it to end, wait until it has, and return its exit code."""
        self.tell(number)
        return self.wait()

    def insist(self, number):
        """Tell it to end until it has, and return its exit code."""
        while self._process.poll() is None:
            self.tell(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)
        return self.wait()

    def wait(self):
        """Wait until it and all that it started have ended, and return its exit code."""
        code = self._process.wait(SECONDS)
        self._reader.join(SECONDS)  # to the end of what it and its workers wrote
        assert self._ended, f"somebody holds its stderr after it ended:\n{self.output}"
        return code

    def kill(self):
        """End it at once, if it has not ended, as a loss of power would."""
        if self._process.poll() is None:
            self._process.kill()
        self.wait()

    def _read(self):
        for line in self._process.stderr:
            with self._changed:
                self.text.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait(self, condition, what):
        until = monotonic() + SECONDS
        with self._changed:
            while not (found := condition()):
                if monotonic() > until:
                    raise TimeoutError(f"no {what!r} after {SECONDS} s:\n{self.output}")
                self._changed.wait(1)
        return found
