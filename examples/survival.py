"""A sweep that outlives its process: begun, killed in the middle, gone on with, and extended.

How long does a random walk take to leave an interval? On average, from the middle of one of half
width h in steps of one, h squared steps (the gambler's ruin, Feller, *An Introduction to
Probability Theory and Its Applications* I, chapter XIV). A child process begins the sweep and is
killed without warning when a third is done; this one attaches to what it left behind, verifies a
sample of it, and then adds as many replicas again, of which only the new ones are computed.

    python examples/survival.py
    python examples/survival.py --store runs/walks --scheduler tcp://host:8786
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from atomizer_dask import Atomizer, DaskConductor, Run, atom, grid


@atom(id="survival.steps_to_leave")
def steps_to_leave(half_width, replica, *, context):
    """Count the steps of a walk from 0 until it is as far away as `half_width`."""
    position, steps = 0, 0
    while abs(position) < half_width:
        path = position + np.cumsum(context.rng.choice([-1, 1], size=half_width**2))
        out = np.flatnonzero(np.abs(path) >= half_width)
        steps += int(out[0]) + 1 if len(out) else len(path)
        position = int(path[out[0]] if len(out) else path[-1])
    return steps


def walks(replicas):
    """Return the sweep."""
    return grid(half_width=[10, 20, 40], replica=range(replicas))


@click.command(help=__doc__.partition("\n")[0])
@click.option("--replicas", default=6000, help="Of each width, at first.")
@click.option(
    "--store", type=click.Path(path_type=Path), help="By default one that is thrown away."
)
@click.option("--seed", default=7, help="Fixes the result to the last bit.")
@click.option("--scheduler", metavar="ADDRESS", help="By default a local cluster is started.")
@click.option("--die-at", type=float, hidden=True, help="Of the work, where this process dies.")
def main(replicas, store, seed, scheduler, die_at):
    """Begin in a child process, and go on in this one."""
    if die_at is not None:
        begin_and_die(replicas, store, seed, scheduler, die_at)
    conductor = DaskConductor(scheduler)
    with tempfile.TemporaryDirectory() as folder, Atomizer(conductor, steps_to_leave) as atomizer:
        store = store or Path(folder) / "walks"
        where = conductor.client.scheduler.address
        child = [sys.executable, __file__, f"--replicas={replicas}", f"--store={store}"]
        child += [f"--seed={seed}", f"--scheduler={where}", "--die-at=0.33"]
        died = subprocess.run(child, check=False).returncode  # noqa: S603
        print(f"the process that began it died of signal {-died}")
        show(Run.open(store), "in its store are")

        run = atomizer.attach(store).wait(progress=False)
        show(run, "then")
        print("executed again, elsewhere:")
        print(run.verify(50).to_string())
        more = atomizer.map(steps_to_leave, walks(2 * replicas), store=store)
        known = more.progress.done
        frame = more.wait(progress=False).to_frame()
        print(f"extended: {known:,} of {len(frame):,} walks were known")
        mean = frame.groupby("half_width")["result"].mean()
        print("\nhalf width  mean steps  exact")
        for half_width, steps in mean.items():
            print(f"{half_width:10}  {steps:10.1f}  {half_width**2:5}")


def begin_and_die(replicas, store, seed, scheduler, share):
    """Begin the sweep, and die without warning when some of it is in the store."""
    atomizer = Atomizer(DaskConductor(scheduler), steps_to_leave)
    run = atomizer.map(steps_to_leave, walks(replicas), seed=seed, store=store)
    while Run.open(store).progress.done < share * run.progress.total:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


def show(run, when):
    """Print how far a run is."""
    p = run.progress
    print(f"{when} {p.done:,} of {p.total:,} walks ({run.state})")


if __name__ == "__main__":
    main()
