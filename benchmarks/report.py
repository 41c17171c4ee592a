"""The tables, as text."""

from statistics import median

from benchmarks.figures import Figure, Limit
from benchmarks.fresh import Sample
from benchmarks.peers import Peer

WIDTH = 122
LINE = "{:4} {:<58} {:<32} {:<18} {}"
PEER = "{:<52} {:<22} {:>9}  {:<30} {}"


def figures_head() -> str:
    head = LINE.format("", "figure", "median [min-max]", "target", "")
    return f"{head.rstrip()}\n{'-' * WIDTH}"


def figure_lines(figure: Figure, samples: list[Sample]) -> str:
    """The lines about a figure: the figure, what must hold beside it, what is worth knowing."""
    lines = []
    for position, limit in enumerate(figure.limits):
        row = ("", "  and") if position else (figure.number, figure.title)
        verdict = "ok" if limit.holds(samples) else "missed"
        lines.append(LINE.format(*row, spread(samples, limit.key), target(limit), verdict))
        lines.append(f"{'':4} {limit.unit}")
    judged = {limit.key for limit in figure.limits}
    beside = [
        f"{name} {number(median(sample[name] for sample in samples))}"
        for name in samples[0]
        if name not in judged
    ]
    if beside:
        lines.append(f"{'':4} {', '.join(beside)}")
    return "\n".join(lines)


def failed_line(figure: Figure, reason: str) -> str:
    return LINE.format(figure.number, figure.title, "failed", "", "missed") + f"\n     {reason}"


def peers_head() -> str:
    head = PEER.format("x + 1", "version", "electrons", "electrons/s, median [min-max]", "ours is")
    return f"\n{head}\n{'-' * WIDTH}"


def peer_line(peer: Peer, samples: list[Sample], ours: float | None) -> str:
    middle = median(sample["value"] for sample in samples)
    times = f"{number(ours / middle)} x as fast" if ours else ""
    chunk = samples[0]["chunk"]
    name = f"{peer.package} {peer.version}".strip()
    title = f"{peer.title}, chunks of {number(chunk)}" if chunk > 1 else peer.title
    return PEER.format(
        title, name, number(samples[0]["electrons"]), spread(samples, "value"), times
    ).rstrip()


def absent_line(peer: Peer, reason: str) -> str:
    return PEER.format(peer.title, peer.package, "", reason, "").rstrip()


def spread(samples: list[Sample], key: str) -> str:
    values = [sample[key] for sample in samples]
    return f"{number(median(values))} [{number(min(values))} - {number(max(values))}]"


def target(limit: Limit) -> str:
    if limit.least is not None:
        return f"at least {number(limit.least)}"
    return "finishes" if limit.most is None else f"at most {number(limit.most)}"


def number(value: float) -> str:
    """Three significant digits, for people.

    >>> [number(value) for value in (0.01234, 1.2, 1234, 1_234_567)]
    ['0.0123', '1.2', '1,234', '1.23 M']
    """
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g} M"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
