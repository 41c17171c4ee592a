"""A second client of a scheduler, a process of its own: ``python second_notebook.py ADDRESS DEED``.

It says on stdout, a line of JSON each time, what has come about.
"""

import json
import sys
import time

from atomizer_dask import Atomizer, DaskConductor, atom, grid

LONG = 10**6  # electrons of 10 ms, which nobody waits for


@atom(id="tests.second.nap")
def nap(x):
    import time

    time.sleep(0.01)
    return x


def say(**facts):
    print(json.dumps(facts), flush=True)


def small(atomizer):
    began = time.perf_counter()
    run = atomizer.map(nap, grid(x=range(100)), name="small")
    results = iter(run)
    next(results)
    first = time.perf_counter() - began
    frame = run.wait().to_frame()
    say(
        first=first,
        end=time.perf_counter() - began,
        right=bool(frame["result"].eq(frame["x"]).all()),
    )


def small_by_hand(atomizer):
    futures = [atomizer.send(nap, {"x": x}) for x in range(100)]
    say(right=[future.result(60).value() for future in futures] == list(range(100)))


def long(atomizer):
    run = atomizer.map(nap, grid(x=range(LONG)), name="long")
    next(iter(run))
    say(run=run.id)
    return run


def cancel(atomizer):
    run = long(atomizer)
    input()
    run.cancel()
    run.wait()
    say(state=run.state)


def hang(atomizer):
    long(atomizer)
    input()


if __name__ == "__main__":
    address, deed = sys.argv[1:]
    atomizer = Atomizer(DaskConductor(address), nap)
    globals()[deed](atomizer)
    atomizer.close()
