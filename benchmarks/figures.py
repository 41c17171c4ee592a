"""The figures, and what each must reach."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from benchmarks import (
    imports,
    isolation,
    large,
    latency,
    memory,
    pages,
    panels,
    policy,
    printing,
    queueing,
    scale,
    scheduling,
    sharing,
    spawning,
    storing,
    throughput,
    walltimes,
)
from benchmarks.fresh import Sample, measure


@dataclass(frozen=True)
class Limit:
    """What the median must be at least or at most; with neither, it need only come to an end."""

    unit: str = ""
    least: float | None = None
    most: float | None = None
    key: str = "value"  # of the samples

    def holds(self, samples: list[Sample]) -> bool:
        middle = median(sample[self.key] for sample in samples)
        enough = self.least is None or middle >= self.least
        return enough and (self.most is None or middle <= self.most)


@dataclass(frozen=True)
class Figure:
    """One figure of the table.

    Parameters
    ----------
    number, title
        How it is called there.
    function
        Yields a sample for each repetition.
    limits
        Of the figure itself, then of what must hold beside it.
    fresh
        Each repetition wants a process of its own.
    """

    number: str
    title: str
    function: Callable[..., Iterator[Sample]]
    limits: tuple[Limit, ...]
    fresh: bool = False

    def measure(self, scale: float, repeats: int) -> list[Sample]:
        """Return a sample for each repetition."""
        if not self.fresh:
            return measure(self.function, scale=scale, repeats=repeats)
        each = (measure(self.function, scale=scale, repeats=1) for _ in range(repeats))
        return [sample for samples in each for sample in samples]


FIGURES = {
    "scalar": Figure(
        "1",
        "x + 1, scalar, 5 million electrons",
        throughput.scalar,
        (Limit("x ProcessPoolExecutor(2) at its best chunk size", least=1.2),),
    ),
    "silent": Figure(
        "1a",
        "the same, prints kept: there are none",
        printing.silent,
        (Limit("x its time where none are kept", most=1.01),),
    ),
    "printing": Figure(
        "1b",
        "100,000 electrons that print a line each",
        printing.a_line_each,
        (Limit("x its time where none are kept", most=1.3),),
    ),
    "keywords": Figure(
        "2",
        "three inputs of a DataFrame, a dict of two, 5 million",
        throughput.keywords,
        (
            Limit("x figure 1", least=0.5),
            Limit("x ProcessPoolExecutor(2) at its best chunk size", least=2.0, key="x the pool"),
        ),
    ),
    "vectorised": Figure(
        "3",
        "x + 1, vectorised, 50 million electrons",
        throughput.vectorised,
        (Limit("electrons/s", least=15e6),),
    ),
    "pi": Figure(
        "4",
        "pi, 4e9 tosses",
        throughput.pi,
        (Limit("x bare NumPy in two processes", least=0.95),),
    ),
    "latency": Figure(
        "5",
        "one electron, from send to Properties, p50 of 300",
        latency.one_electron,
        (Limit("x client.submit(...).result()", most=0.7),),
        fresh=True,
    ),
    "children": Figure(
        "6",
        "10,000 children that an atom sends and awaits",
        spawning.children,
        (Limit("children/s", least=100e3),),
    ),
    "recursion": Figure(
        "7",
        "a binary tree of spawners of depth 10 on 2 threads",
        spawning.recursion,
        (Limit("s"),),
    ),
    "utilisation": Figure(
        "8",
        "utilisation, 2,000 electrons of 10 ms",
        scheduling.utilisation,
        (Limit("of the threads' time", least=0.97),),
    ),
    "skew": Figure(
        "9",
        "1,000 electrons of 10 ms, the last 1 % of 1 s",
        scheduling.skew,
        (Limit("x the optimal schedule", most=1.1),),
    ),
    "memory": Figure(
        "10",
        "peak extra memory of the client, 50 million results",
        memory.client_alone,
        (Limit("x the frame's bytes", most=2.5),),
        fresh=True,
    ),
    "memory-laptop": Figure(
        "10b",
        "the same with the scheduler in the client's process",
        memory.with_scheduler,
        (Limit("x the frame's bytes"),),
        fresh=True,
    ),
    "imports": Figure(
        "11",
        "import atomizer_dask",
        imports.imports,
        (
            Limit("s beyond import distributed", most=0.6),
            Limit("loads of ipywidgets", most=0, key="ipywidgets"),
        ),
    ),
    "policy": Figure(
        "12",
        "sizing policy, 10,000 threads, 1e9 electrons, simulated",
        policy.sizing,
        (
            Limit("batches/s", most=300),
            Limit("of the threads' time", least=0.95, key="utilisation"),
        ),
    ),
    "isolation": Figure(
        "13",
        "x + 1 through one child process, 1 million electrons",
        isolation.one_child,
        (
            Limit("electrons/s", least=100e3),
            Limit("microseconds more an electron than without", most=150, key="added"),
        ),
    ),
    "isolation-timeout": Figure(
        "13b",
        "time.sleep(3600) with a timeout of 1 s",
        isolation.timeout,
        (Limit("s from the deadline to the report", most=3),),
    ),
    "isolation-death": Figure(
        "13c",
        "os._exit(1) among 2,000 electrons",
        isolation.death,
        (Limit("s"),),
    ),
    "store": Figure(
        "14",
        "figure 1 with a store, to the frame",
        storing.overhead,
        (Limit("x the time without", most=1.1),),
    ),
    "store-attach": Figure(
        "14b",
        "attach to a store of 10 million electrons",
        storing.attach,
        (Limit("s", most=3),),
    ),
    "store-memory": Figure(
        "14c",
        "growth of the client, 100 million floats into a store",
        storing.memory,
        (Limit("MiB", most=500),),
        fresh=True,
    ),
    "panel": Figure(
        "15",
        "a visible panel beside figure 1, two seconds a pair",
        panels.loss,
        (Limit("% of the rate, lost", most=2),),
    ),
    "panel-traffic": Figure(
        "15b",
        "what a panel with all tabs open sends, at its highest",
        panels.traffic,
        (
            Limit("updates/s", most=5),
            Limit("kB/s", most=50, key="kB"),
            Limit("updates in 10 s in which nothing changes", most=0, key="resting"),
        ),
    ),
    "panel-memory": Figure(
        "15c",
        "growth in ten minutes of 1,000 events a second",
        pages.memory,
        (
            Limit("MiB of the page's heap", most=2),
            Limit("MiB of the kernel", most=10, key="kernel"),
            Limit("DOM nodes", most=50, key="nodes"),
        ),
    ),
    "queue": Figure(
        "16",
        "30,000 Toss electrons over RabbitMQ, sent and answered",
        queueing.rate,
        (Limit("electrons/s", least=10e3),),
    ),
    "queue-latency": Figure(
        "16b",
        "one electron over RabbitMQ, p50 of 300",
        queueing.latency,
        (Limit("ms", most=5),),
    ),
    "queue-pi": Figure(
        "16c",
        "MonteCarlo, 100,000 tosses as electrons over RabbitMQ",
        queueing.estimate,
        (Limit("s", most=12),),
    ),
    "queue-killed": Figure(
        "16d",
        "20,000 electrons of 1 ms, their node killed every 2 s",
        queueing.killed,
        (Limit("wrong or unanswered", most=0), Limit("kills", least=1, key="kills")),
    ),
    "queue-restarted": Figure(
        "16e",
        "20,000 electrons of 1 ms, the broker restarted",
        queueing.restarted,
        (Limit("wrong or unanswered", most=0),),
    ),
    "wall-time": Figure(
        "17",
        "80 electrons of 0.1 to 6 s on workers that live for 20 s",
        walltimes.twice,
        (
            Limit("executed more than once", most=0),
            Limit("cut short", most=0, key="cut"),
            Limit("of the threads' time busy, restarts included", key="busy"),
        ),
    ),
    "fairness": Figure(
        "18",
        "the first of 100 electrons of 10 ms beside a million of another client",
        sharing.fairness,
        (Limit("s", most=2), Limit("s to the end of the 100", key="end")),
    ),
    "scale-processes": Figure(
        "19",
        "64 worker processes, sleeping electrons, while steady",
        scale.processes,
        (Limit("of the threads' time, the lowest of four kinds", least=0.95),),
    ),
    "scale-threads": Figure(
        "19b",
        "256 workers in this process, likewise",
        scale.threads,
        (Limit("of the threads' time, the lowest of four kinds", least=0.95),),
    ),
    "constant": Figure(
        "25",
        "a constant of 240 MB, 200 electrons of 1 ms, to the frame",
        large.constant,
        (
            Limit("x client.scatter(broadcast=True) and client.map", most=1.3),
            Limit("of its bytes sent on the host", most=1.1, key="of the bytes sent"),
            Limit("s, the run after it", most=0.5, key="s again"),
        ),
    ),
    "closure": Figure(
        "26",
        "an atom that closes over 800 MB, to its first result",
        large.closure,
        (
            Limit("x client.scatter", most=1.5),
            Limit("x the array, client's peak", most=1.3, key="x the array, client's peak"),
        ),
        fresh=True,
    ),
    "large-store": Figure(
        "27",
        "40 results of 50 MB with a store on local disk",
        large.written,
        (
            Limit("x pyarrow.parquet.write_table by two processes", least=0.8),
            Limit("MB that the client grew", most=200, key="MB that the client grew"),
            Limit("s, a filter for one row", most=1.0, key="s of a filter for one row"),
            Limit("MB of it", most=200, key="MB of it"),
        ),
        fresh=True,
    ),
    "large-results": Figure(
        "28",
        "1,000 results of 8 MB without a store, to the frame",
        large.gathered,
        (
            Limit("x client.gather", most=1.3),
            Limit("x the bytes, client's peak", most=1.2, key="x the bytes, client's peak"),
        ),
        fresh=True,
    ),
}
