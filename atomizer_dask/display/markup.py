"""The pieces of HTML with which every record makes its ``_repr_html_``.

Values from users pass through `text`, `code`, `value` or `details`, which escape them. `Html` is
the type of escaped text. Styles are inline, for notebooks that are not trusted lose all others,
and colours are those of Jupyter's theme where there is one. `markupsafe` escapes as `html.escape`
does, short texts at twice its cost and long ones faster, and would save no line.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from html import escape
from itertools import islice
from math import floor
from typing import Any, Literal, NewType, TypeVar

from atomizer_dask.display.text import brief, one_line, plain

Html = NewType("Html", str)
Tone = Literal["plain", "good", "warning", "bad", "busy"]
S = TypeVar("S")

_MOST_FIELDS = 20
_LONGEST = 80  # characters of a value
_LONGEST_TRACEBACK = 12_000

_RATES = (1e6, " M"), (1e3, " k"), (1, "")

_MUTED = "color:var(--jp-ui-font-color2,inherit)"
_BORDER = "1px solid var(--jp-border-color2,rgba(128,128,128,.35))"
_MONO = "font-family:var(--jp-code-font-family,monospace);font-size:12px"
_CARD = (
    "font-family:var(--jp-ui-font-family,sans-serif);font-size:13px;line-height:1.5;"
    f"color:var(--jp-ui-font-color1,inherit);border:{_BORDER};border-radius:6px;"
    "padding:8px 12px;margin:2px 0;max-width:820px;overflow-x:auto"
)
_TABLE = "border-collapse:collapse;border:none;margin:4px 0 0 0;font-size:12px;color:inherit"
_ROW = "background:none;border:none"
_CELL = (
    "text-align:left;vertical-align:top;border:none;padding:1px 16px 1px 0;background:none;"
    "font-weight:normal;max-width:none;overflow-wrap:anywhere"
)
_KEY = f"{_CELL};{_MUTED};white-space:nowrap"
_PRE = (
    f"{_MONO};line-height:1.45;white-space:pre-wrap;overflow-wrap:anywhere;color:inherit;"
    "background:var(--jp-layout-color2,rgba(128,128,128,.12));border-radius:4px;"
    "padding:8px 10px;margin:4px 0;max-height:360px;overflow-y:auto"
)
_TONES: dict[Tone, tuple[str, str]] = {
    "plain": ("var(--jp-ui-font-color2,inherit)", "rgba(128,128,128,.16)"),
    "good": ("var(--jp-success-color1,#388e3c)", "rgba(56,142,60,.14)"),
    "busy": ("var(--jp-brand-color1,#1976d2)", "rgba(25,118,210,.14)"),
    "warning": ("var(--jp-warn-color1,#f57c00)", "rgba(245,124,0,.14)"),
    "bad": ("var(--jp-error-color1,#d32f2f)", "rgba(211,47,47,.14)"),
}
_BAR = {tone: colour for tone, (colour, _) in _TONES.items()}
_BAR["plain"] = "var(--jp-brand-color3,rgba(25,118,210,.35))"
TONES_OF_LEVELS: dict[str, Tone] = {"warning": "warning", "error": "bad"}


def safely(show: Callable[[S], Html]) -> Callable[[S], str]:
    """Have a ``_repr_html_`` return its error as HTML where a value in the record makes it fail."""

    @functools.wraps(show)
    def shown(record: S) -> str:
        try:
            return show(record)
        except Exception as error:  # noqa: BLE001 - a cell must show something, and says what
            name = type(record).__name__
            return f"<pre>{escape(f'{name}, which cannot be shown: {brief(error, 200)}')}</pre>"

    return shown


def text(value: object, length: int = 200) -> Html:
    """Return a text, or any other value shortly, on one line."""
    return Html(escape(one_line(value, length)))


def code(value: object, length: int = _LONGEST) -> Html:
    """Return an id or the like in the type of code."""
    style = f"{_MONO};color:inherit;background:none;padding:0"
    return Html(f"<code style='{style}'>{text(value, length)}</code>")


def value(given: Any, length: int = _LONGEST) -> Html:
    """Return a value as Python would show it, shortened."""
    return code(brief(given, length), length)


def muted(value: object, length: int = 200) -> Html:
    """Return a text in a muted colour."""
    return Html(f"<span style='{_MUTED}'>{text(value, length)}</span>")


def badge(value: object, tone: Tone = "plain") -> Html:
    """Return a state, a level or a kind as a coloured badge."""
    colour, ground = _TONES[tone]
    style = f"font-size:11px;border-radius:9px;padding:0 8px;color:{colour};background:{ground}"
    return Html(f"<span style='{style};white-space:nowrap'>{text(value, 40)}</span>")


def time(moment: datetime | None) -> Html | None:
    """Return a moment to the millisecond, in its own time zone."""
    if moment is None:
        return None
    return text(f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03} {moment:%Z}")


def percent(part: int, whole: int) -> str:
    """Return a share, rounded down, so that 100 % means all.

    >>> percent(99_999, 100_000), percent(1, 1)
    ('99.9 %', '100 %')
    """
    if whole == 0 or part == whole:
        return "100 %"
    return f"{floor(1000 * part / whole) / 10:.1f} %"


def duration(of: timedelta | float | None) -> str:
    """Return seconds as people say them.

    >>> duration(0.0123), duration(12.44), duration(timedelta(minutes=2)), duration(8000)
    ('12.3 ms', '12.4 s', '2 min 0 s', '2 h 13 min')
    """
    if of is None:
        return ""
    seconds = of.total_seconds() if isinstance(of, timedelta) else of
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def rate(a_second: float) -> str:
    """Return a rate in electrons a second as people say it.

    >>> rate(0.25), rate(59_812)
    ('0.25 / s', '59.8 k / s')
    """
    factor, unit = next((f, u) for f, u in _RATES if a_second >= f or f == 1)
    return f"{a_second / factor:.3g}{unit} / s"


def joined(*pieces: Html | None, by: str = " ") -> Html:
    """Return pieces side by side; those that are None are left out."""
    return Html(by.join(piece for piece in pieces if piece))


def card(title: str, *parts: Html | None, beside: Sequence[Html | None] = ()) -> Html:
    """Return the card of one record: its title, with pieces `beside` it, above its parts."""
    gap = "&nbsp; "
    head = joined(Html(f"<b style='font-weight:600'>{text(title)}</b>"), *beside, by=gap)
    return Html(f"<div style='{_CARD}'><div>{head}</div>{joined(*parts, by='')}</div>")


def facts(rows: Mapping[str, Html | None]) -> Html | None:
    """Return a table of names and values; rows whose value is None or empty are left out."""
    shown = {name: fact for name, fact in rows.items() if fact}
    body = "".join(
        f"<tr style='{_ROW}'><th style='{_KEY}'>{text(name, 30)}</th>"
        f"<td style='{_CELL}'>{fact}</td></tr>"
        for name, fact in shown.items()
    )
    return Html(f"<table style='{_TABLE}'><tbody>{body}</tbody></table>") if shown else None


def fields(given: Any, name: str) -> dict[str, Html | None]:
    """Return the row of `facts` for a payload or a result; a mapping is a table of its fields."""
    if not isinstance(given, Mapping) or not given:
        return {name: value(given)}
    rows = [(code(key, 40), value(given[key])) for key in islice(given, _MOST_FIELDS)]
    body = "".join(
        f"<tr style='{_ROW}'><th style='{_KEY}'>{key}</th><td style='{_CELL}'>{shown}</td></tr>"
        for key, shown in rows
    )
    more = len(given) - len(rows)
    end = muted(f"and {more:,} more") if more else ""
    inner = f"<table style='{_TABLE};margin:0'><tbody>{body}</tbody></table>{end}"
    return {name: Html(inner)}


def table(names: Sequence[str], rows: Iterable[Sequence[Html]], more: str = "") -> Html:
    """Return a small table with its header, and the text `more` below it."""
    head = "".join(f"<th style='{_KEY}'>{text(name, 24)}</th>" for name in names)
    body = "".join(
        f"<tr style='{_ROW}'>{''.join(f'<td style={_CELL!r}>{cell}</td>' for cell in row)}</tr>"
        for row in rows
    )
    line = f"border:none;border-bottom:{_BORDER};background:none"
    return Html(
        f"<table style='{_TABLE}'><thead><tr style='{line}'>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{muted(more) if more else ''}"
    )


def details(summary: str, content: str, *, is_open: bool = False) -> Html | None:
    """Return a text of many lines, a traceback say, to be unfolded; None where there is none."""
    if not content:
        return None
    if len(content) > _LONGEST_TRACEBACK:  # of a traceback, beginning and end matter most
        half = _LONGEST_TRACEBACK // 2
        left_out = len(content) - 2 * half
        content = f"{content[:half]}\n... {left_out:,} letters ...\n{content[-half:]}"
    return Html(
        f"<details style='margin:4px 0 0 0'{' open' if is_open else ''}>"
        f"<summary style='cursor:pointer;font-size:12px;{_MUTED}'>{text(summary)}</summary>"
        f"<pre style='{_PRE}'>{escape(plain(content))}</pre></details>"
    )


def bar(shares: Sequence[tuple[float, Tone]]) -> Html:
    """Return a bar of which each share, from 0 to 1, has the colour of its tone."""
    pieces = "".join(
        f"<div style='float:left;height:8px;width:{100 * share:.2f}%;background:{_BAR[tone]}'>"
        "</div>"
        for share, tone in shares
    )
    style = (
        "height:8px;border-radius:4px;overflow:hidden;margin:6px 0 4px 0;"
        "background:var(--jp-layout-color2,rgba(128,128,128,.2))"
    )
    return Html(f"<div style='{style}'>{pieces}</div>")
