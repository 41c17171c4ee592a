"""Main functions of the children that test_fork_server.py starts."""

import ctypes
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

from atomizer_dask.execution.quarantine.fork_server import ForkServer


def serve(connection, cursor):
    """Do what each message says, until the connection ends."""
    while True:
        try:
            word, *rest = connection.recv_bytes().decode().split()
        except EOFError:
            return
        if word == "die":
            ctypes.string_at(0)
        if word == "exit":
            sys.exit(int(rest[0]))
        if word == "raise":
            raise ValueError("on purpose")
        connection.send_bytes(_answer(word, rest, cursor).encode())


def _answer(word, rest, cursor):
    if word == "double":
        cursor[1] = 2 * cursor[0]
    if word == "handles":
        kinds = [os.readlink(f"/proc/self/fd/{fd}") for fd in _handles()]
        return " ".join(sorted(kind for kind in kinds if kind.startswith(("socket", "pipe"))))
    if word == "state":
        import numpy as np

        return f"{random.random()} {np.random.random()}"
    if word == "signals":
        return f"{signal.getsignal(signal.SIGINT).name} {signal.getsignal(signal.SIGTERM).name}"
    if word == "terminates":
        process = multiprocessing.get_context("fork").Process(target=signal.pause)
        process.start()
        process.terminate()
        process.join(10)
        return str(process.exitcode)
    if word == "oom":
        return Path("/proc/self/oom_score_adj").read_text().strip()
    if word == "where":
        return os.getcwd()
    return " ".join([word, *rest])


def _handles():
    return [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2 and _is_open(name)]


def _is_open(name):
    return os.path.lexists(f"/proc/self/fd/{name}")


def deaf(connection, cursor):
    """Never look at the connection."""
    while True:
        signal.pause()


def own(answers):
    """Have a child, in a process that may not have children by multiprocessing's rules."""
    nursery = ForkServer("fork_server_targets:serve")
    child = nursery.start()
    child.connection.send_bytes(b"hello")
    answers.send((child.pid, child.connection.recv_bytes()))
    nursery.close()


def forked(nursery, child, answers):
    """Be a forked copy of the owner of a nursery."""
    before = str(child.exit(0))
    again = nursery.start()
    again.connection.send_bytes(b"copy")
    answers.send((before, again.connection.recv_bytes()))
    nursery.close()
