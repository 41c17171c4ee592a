"""A panel as it is at one moment: plain HTML, for what cannot show widgets and for what is saved.

Styles are inline, for notebooks that are not trusted are stripped of classes and style sheets.
"""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from typing import Any

from atomizer_dask.atomizer import Atomizer
from atomizer_dask.run import Run
from atomizer_dask.widgets.crew import Crew
from atomizer_dask.widgets.facts import (
    GOING,
    atomizer_facts,
    conductor_facts,
    run_facts,
    status_of,
)
from atomizer_dask.widgets.failing import failure_groups
from atomizer_dask.widgets.text import (
    bytes_text,
    count_text,
    percent_text,
    rate_text,
    seconds_text,
)

MUTED = "color:var(--jp-ui-font-color2,#777)"
ERROR = "color:var(--jp-error-color1,#d32f2f)"
EDGE = "var(--jp-border-color2,#ccc)"
COLORS = {
    "done": "var(--jp-brand-color1,#1976d2)",
    "failed": "var(--jp-error-color1,#d32f2f)",
    "running": "var(--jp-brand-color3,#90caf9)",
}
STILL_RUNS, STILL_WORKERS = 10, 20


def still_of(thing: Any, live: str = "") -> str:
    """Return a run, an atomizer or a conductor as HTML.

    Parameters
    ----------
    thing
        Which one.
    live
        The id of the widget beside it, which hides it where it can be shown.
    """
    if isinstance(thing, Run):
        body = _run(thing)
    elif isinstance(thing, Atomizer):
        body = _atomizer(thing)
    else:
        body = _conductor(thing)
    frame = f"border:1px solid {EDGE};border-radius:6px;padding:10px 14px;max-width:900px"
    mark = f' data-atomizer-still="{escape(live)}"' if live else ""
    return f'<div{mark} style="{frame}">{body}</div>{_hide_broken(live)}'


def _hide_broken(live: str) -> str:
    """Return what hides the message of Jupyter that the widget of another kernel is not there."""
    if not live:
        return ""
    here = f'.jp-OutputArea-child:has([data-atomizer-still="{escape(live)}"])'
    beside = ".jp-OutputArea-child:not(:has(.az))"
    return f"<style>{here} + {beside}{{display:none}}</style>"


def _run(run: Run) -> str:
    facts = run_facts(run)
    ended = facts["done"] + facts["failed"]
    numbers = [f"<b>{count_text(facts['done'])}</b> of {count_text(facts['total'])} electrons"]
    if facts["total"]:
        numbers.append(percent_text(ended, facts["total"]))
    numbers.append(rate_text(facts["rate"]))
    if facts["state"] == "running" and facts["eta"] is not None:
        numbers.append(f"{seconds_text(facts['eta'])} left")
    if facts["failed"]:
        numbers.append(f'<span style="{ERROR}">{count_text(facts["failed"])} failed</span>')
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    since = f"as of {now}" if facts["state"] in GOING else seconds_text(facts["elapsed"])
    head = _head(facts["atom"], facts["label"], facts["id"], since)
    error = f'<div style="{ERROR}">{escape(facts["error"])}</div>' if facts["error"] else ""
    failures = "".join(map(_failure, failure_groups(run))) if facts["failed"] else ""
    return f"{head}{_bar(facts)}<div>{' &nbsp;·&nbsp; '.join(numbers)}</div>{error}{failures}"


def _head(name: str, state: str, id: str, right: str = "") -> str:
    return (
        f'<div><b>{escape(name)}</b> &nbsp;<span style="{MUTED}">{escape(state)}</span> &nbsp;'
        f'<code style="{MUTED};background:none">{escape(id)}</code> &nbsp;'
        f'<span style="{MUTED}">{escape(right)}</span></div>'
    )


def _bar(facts: dict[str, Any]) -> str:
    total = facts["total"] or 0
    if not total:
        return ""
    cells = "".join(
        f'<div style="width:{100 * facts[name] / total:.3f}%;background:{color};height:8px;'
        'float:left"></div>'
        for name, color in COLORS.items()
    )
    style = "background:var(--jp-layout-color2,#eee);border-radius:4px;overflow:hidden;height:8px"
    return f'<div style="{style};margin:8px 0">{cells}</div>'


def _failure(group: dict[str, Any]) -> str:
    first = group["examples"][0] if group["examples"] else {"inputs": "", "replay": ""}
    what = escape(" ".join(filter(None, (group["kind"], group["type"]))))
    return (
        f'<details style="margin-top:6px"><summary><span style="{ERROR}">{what}</span> '
        f'{escape(group["message"])} &nbsp;<span style="{MUTED}">'
        f"{count_text(group['count'])} electrons</span></summary>"
        f'<pre style="white-space:pre-wrap;margin:4px 0">{escape(group["traceback"])}</pre>'
        f'<div style="{MUTED}"><code>{escape(first["inputs"])}</code><br>'
        f"<code>{escape(first['replay'])}</code></div></details>"
    )


def _atomizer(atomizer: Atomizer) -> str:
    facts = atomizer_facts(atomizer)
    runs = [
        [row["atom"], row["id"], row["label"], f"{row['done']:,} of {count_text(row['total'])}"]
        for row in facts["runs"][:STILL_RUNS]
    ]
    atoms = [[row["text"], row["doc"]] for row in facts["atoms"]]
    conductors = [
        [row["type"], row["id"], row.get("state", ""), f"{row.get('threads', '?')} threads"]
        for row in facts["conductors"]
    ]
    head = _head("Atomizer", facts["state"], "")
    return head + _table("Runs", runs) + _table("Conductors", conductors) + _table("Atoms", atoms)


def _conductor(conductor: Any) -> str:
    status = status_of(conductor)
    facts = conductor_facts(conductor, status)
    crew = Crew()
    crew.note(status)
    rows = [
        [w["address"], f"{w['threads']} threads", bytes_text(w["memory"])]
        for w in crew.rows(status)[:STILL_WORKERS]
    ]
    numbers = f"{len(status.workers)} workers, {facts['threads']} threads, {facts['memory']}"
    head = _head(facts["type"], facts["state"], facts["address"])
    return f"{head}<div>{numbers}</div>{_table('Workers', rows)}"


def _table(title: str, rows: list[list[str]]) -> str:
    if not rows:
        return ""
    body = "".join(
        "<tr>"
        + "".join(f'<td style="text-align:left">{escape(str(text))}</td>' for text in row)
        + "</tr>"
        for row in rows
    )
    return f'<div style="{MUTED};margin-top:8px">{title}</div><table>{body}</table>'
