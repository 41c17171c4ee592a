"""What the tests with Slurm execute, as a module that a command can name."""

import os
import time
from pathlib import Path

from atomizer_dask import atom


@atom(id="tests.marking")
def marking(x, seconds, folder):
    """Say that it is begun, and in which job; take a while, but not once there is a gate."""
    with Path(folder, os.environ["SLURM_JOB_ID"]).open("a") as file:
        file.write(f"{x}\n")
    if not Path(folder, "gate").exists():
        time.sleep(seconds)
    return 2 * x
