"""A process of its own for every figure, so that none disturbs another.

``python -m benchmarks.fresh MODULE:FUNCTION ARGUMENTS FILE`` is what that process runs. It imports
nothing that the figure does not ask for: the workers of a cluster import it too.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parent.parent
LIMIT = 3600  # seconds, for what hangs

Sample = dict[str, float]
"""One repetition: the figure under ``value``, and what else is worth knowing beside it."""


def measure(function: Callable[..., Iterator[Sample]], **arguments: Any) -> list[Sample]:
    """Return what `function` yields in a fresh process.

    Raises
    ------
    RuntimeError
        Where that process fails, with the last line it wrote to stderr.
    """
    # In a folder of its own, for peers leave files in the current one.
    with TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as folder:
        name = f"{function.__module__}:{function.__name__}"
        samples, log = Path(folder, "samples.json"), Path(folder, "log.txt")
        command = [sys.executable, "-m", "benchmarks.fresh", name, json.dumps(arguments)]
        # Into a file: grandchildren that outlive the process would keep a pipe open.
        with log.open("w") as out:
            code = _run([*command, str(samples)], folder, out)
        if code != 0:
            raise RuntimeError(_last_line(log.read_text(errors="replace")) or f"exit code {code}")
        return json.loads(samples.read_text())


def _run(command: list[str], folder: str, out: Any) -> int | str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        # Peers look for their own scripts there, also where no environment is activated.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True
    )
    try:
        return process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        return f"none within {LIMIT} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _last_line(text: str) -> str:
    """Return the line that names the exception, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception"))]
    return (named or lines or [""])[-1][:120]


def main(name: str, arguments: str, file: str) -> None:
    module, _, function = name.partition(":")
    samples = list(getattr(import_module(module), function)(**json.loads(arguments)))
    Path(file).write_text(json.dumps(samples))


if __name__ == "__main__":
    main(*sys.argv[1:])
