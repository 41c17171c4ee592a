"""What it costs that prints of atoms are kept, as a multiple of the time in which they are not."""

from collections.abc import Iterator

from atomizer_dask import Atomizer, atom, grid
from atomizer_dask.atoms.definition import Definition
from benchmarks.fresh import Sample
from benchmarks.work import increment, scaled, seconds, two_workers


@atom
def say(x):
    print("electron", x)
    return x + 1


def silent(scale: float, repeats: int) -> Iterator[Sample]:
    """Electrons that print nothing."""
    yield from _measure(increment, scaled(5e6, scale), repeats)


def a_line_each(scale: float, repeats: int) -> Iterator[Sample]:
    """Electrons that print a line each."""
    yield from _measure(say, scaled(1e5, scale), repeats)


def _measure(atom: Definition, electrons: int, repeats: int) -> Iterator[Sample]:
    with two_workers(say) as atomizer:
        _map(atomizer, atom, electrons, "keep")
        for _ in range(repeats):
            kept = seconds(_map, atomizer, atom, electrons, "keep")
            dropped = seconds(_map, atomizer, atom, electrons, "drop")
            yield {"value": kept / dropped, "kept, s": kept, "dropped, s": dropped}


def _map(atomizer: Atomizer, atom: Definition, electrons: int, output: str) -> None:
    run = atomizer.map(atom, grid(x=range(electrons)), output=output).wait(progress=False)
    assert len(run.to_frame()) == electrons
