"""A panel as it is at one moment: plain HTML, for saved notebooks and pages without widgets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from dask.utils import format_bytes

from atomizer_dask.atomizer import Atomizer
from atomizer_dask.display import markup
from atomizer_dask.display.markup import Html
from atomizer_dask.display.text import counted
from atomizer_dask.runs.run import Run
from atomizer_dask.store.layout import GOING
from atomizer_dask.widgets.failures import GROUPS, failure_groups
from atomizer_dask.widgets.format import count_text
from atomizer_dask.widgets.summary import atomizer_facts, conductor_facts, run_facts, status_of

STILL_RUNS, STILL_WORKERS = 10, 20
TONES: dict[str, markup.Tone] = {
    "running": "busy",
    "paused": "warning",
    "reconnecting": "warning",
    "cancelled": "warning",
    "failed": "bad",
    "gone": "bad",
    "closed": "plain",
    "suspended": "plain",
    "detached": "plain",
}
BAR: dict[str, markup.Tone] = {"done": "busy", "failed": "bad", "running": "plain"}


def html_of(thing: Any, live: str = "") -> str:
    """Return a run, an atomizer or a conductor as HTML.

    Parameters
    ----------
    thing
        The run, atomizer or conductor.
    live
        Id of the live widget beside the HTML, which hides the HTML where a page shows the widget;
        empty where there is no widget.
    """
    if isinstance(thing, Run):
        body = _run(thing)
    elif isinstance(thing, Atomizer):
        body = _atomizer(thing)
    else:
        body = _conductor(thing)
    if not live:
        return body
    return f'<div data-atomizer-still="{escape(live)}">{body}</div>{_hide_broken(escape(live))}'


def _hide_broken(live: str) -> str:
    """Return CSS that hides Jupyter's error message where the kernel of the widget is gone."""
    here = f'.jp-OutputArea-child:has([data-atomizer-still="{live}"])'
    beside = ".jp-OutputArea-child:not(:has(.az))"
    return f"<style>{here} + {beside}{{display:none}}</style>"


def _run(run: Run) -> Html:
    facts = run_facts(run)
    total, failed = facts["total"], facts["failed"]
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    going = facts["state"] in GOING
    since = f"as of {now}" if going else markup.duration(facts["elapsed"])
    shares = [(facts[name] / (total or 1), tone) for name, tone in BAR.items()]
    groups = failure_groups(run) if failed else []
    more = f"The {GROUPS} most frequent kinds; run.failures has all."
    return markup.card(
        facts["atom"],
        markup.bar(shares) if total else None,
        Html(f"<div>{_numbers(facts)}</div>"),
        Html(f"<div>{markup.text(facts['error'], 500)}</div>") if facts["error"] else None,
        *map(_failure, groups),
        markup.muted(more) if len(groups) == GROUPS else None,
        beside=[
            markup.badge(facts["label"], _tone(facts["state"], failed)),
            markup.code(facts["id"]),
            markup.muted(since),
        ],
    )


def _tone(state: str, failed: int) -> markup.Tone:
    return "bad" if failed and state not in GOING else TONES.get(state, "good")


def _numbers(facts: dict[str, Any]) -> Html:
    total, going = facts["total"], facts["state"] == "running"
    ended = markup.percent(facts["done"] + facts["failed"], total) if total else ""
    left = f"{markup.duration(facts['eta'])} left" if going and facts["eta"] is not None else ""
    failed = f"{count_text(facts['failed'])} failed" if facts["failed"] else ""
    done = f"{count_text(facts['done'])} of {counted(total, 'electron')}"
    facts_shown = filter(None, (done, ended, markup.rate(facts["rate"]), left, failed))
    return markup.joined(*map(markup.text, facts_shown), by=" &nbsp;·&nbsp; ")


def _failure(group: dict[str, Any]) -> Html | None:
    first = group["examples"][0]
    what = " ".join(filter(None, (group["kind"], group["type"], group["message"])))
    content = "\n".join(filter(None, (group["traceback"], first["inputs"], first["replay"])))
    return markup.details(f"{count_text(group['count'])} failed: {what}", content)


def _atomizer(atomizer: Atomizer) -> Html:
    facts = atomizer_facts(atomizer)
    runs = [
        [row["atom"], row["id"], row["label"], f"{row['done']:,} of {count_text(row['total'])}"]
        for row in facts["runs"][:STILL_RUNS]
    ]
    conductors = [
        [row["type"], row["id"], row.get("state", ""), row.get("threads", "")]
        for row in facts["conductors"]
    ]
    atoms = [[row["text"], row["doc"]] for row in facts["atoms"]]
    return markup.card(
        "Atomizer",
        _table(["run", "id", "state", "done"], runs, facts["run_count"]),
        _table(["conductor", "id", "state", "threads"], conductors, len(conductors)),
        _table(["atom", "what it does"], atoms, len(atoms)),
        beside=[markup.badge(facts["state"], TONES.get(facts["state"], "good"))],
    )


def _conductor(conductor: Any) -> Html:
    status = status_of(conductor)
    facts = conductor_facts(conductor, status)
    rows = [
        [worker.address, worker.host, worker.threads, format_bytes(worker.memory)]
        for worker in status.workers[:STILL_WORKERS]
    ]
    return markup.card(
        facts["type"],
        _table(["worker", "host", "threads", "memory"], rows, len(status.workers)),
        beside=[
            markup.badge(facts["state"], TONES.get(facts["state"], "good")),
            markup.code(facts["address"]),
            markup.muted(facts["crew"]),
        ],
    )


def _table(names: Sequence[str], rows: Iterable[Sequence[Any]], of: int) -> Html | None:
    cells = [[markup.text(str(cell)) for cell in row] for row in rows]
    more = f"and {of - len(cells):,} more" if of > len(cells) else ""
    return markup.table(names, cells, more) if cells else None
