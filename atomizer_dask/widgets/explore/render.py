"""Results of atoms as outputs of a notebook, made in any thread."""

from __future__ import annotations

import sys
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from io import BytesIO
from numbers import Number
from typing import Any

import numpy as np

from atomizer_dask.errors import AtomizerError, ElectronError, text_of

_LONGEST = 20_000  # characters of a text that are shown
_WIDTH, _HEIGHT, _MOST_POINTS = 480, 160, 1000  # of the line that shows an array
_PLAIN = Number | str | bool | np.generic | None


def render(result: Any) -> tuple[dict[str, Any], ...]:
    """Return the outputs, for an `ipywidgets.Output`, that show a result.

    A figure is shown as a picture, a number in large type, a dict as a table of its plain values
    with the others below, an array of one dimension as a line. Any other value, a DataFrame say, is
    shown as at the end of a cell. Texts are escaped.
    """
    if isinstance(result, Mapping) and result:
        return _of_mapping(result)
    return (_of_value(result),)


def forget_figures(result: Any) -> None:
    """Close the figures of a result in pyplot, where making or unpickling has registered them.

    Otherwise the notebook would show them a second time, at the end of the next cell.
    """
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return
    for value in result.values() if isinstance(result, Mapping) else (result,):
        if (figure := _figure_of(value)) is not None:
            pyplot.close(figure)


def error_html(error: BaseException) -> str:
    """Return an error as HTML: its text, and its traceback to unfold."""
    if isinstance(error, ElectronError):
        text, traceback = error.event.message, error.traceback
        if error.kind != "exception":
            text = f"{error.kind}: {text}"
    elif isinstance(error, AtomizerError):
        text, traceback = str(error.event), ""
    else:
        text, traceback = f"{type(error).__name__}: {text_of(error)}", ""
    html = f"<b>{_shown(text)}</b>"
    if traceback:
        html += f"<details><summary>Traceback</summary><pre>{_shown(traceback)}</pre></details>"
    return f"<div class='atomizer-error' role='alert'>{html}</div>"


def _of_mapping(result: Mapping[Any, Any]) -> tuple[dict[str, Any], ...]:
    plain = {name: value for name, value in result.items() if isinstance(value, _PLAIN)}
    outputs = []
    if plain:
        rows = "".join(
            f"<tr><th style='text-align:left'>{_shown(str(name))}</th>"
            f"<td style='text-align:right'>{_short(value)}</td></tr>"
            for name, value in plain.items()
        )
        outputs.append(_html(f"<table>{rows}</table>", repr(plain)))
    for name, value in result.items():
        if name not in plain:
            outputs.append(_html(f"<b>{_shown(str(name))}</b>", str(name)))
            outputs.append(_of_value(value))
    return tuple(outputs)


def _of_value(value: Any) -> dict[str, Any]:
    figure = _figure_of(value)
    if figure is not None:
        return _of_figure(figure)
    if isinstance(value, str):
        return _html(f"<pre>{_shown(value)}</pre>", value)
    if isinstance(value, _PLAIN):
        return _html(f"<span style='font-size:2em'>{_short(value)}</span>", repr(value))
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iuf":
        line = _line(value.astype(np.float64))
        if line:
            return _html(line, repr(value))
    return _formatted(value)


def _figure_of(value: Any) -> Any:
    """Return the figure that a value is, or the figure of an Axes; else None.

    Where a value is a figure, matplotlib is loaded already; this function does not load it.
    """
    figures, axes = sys.modules.get("matplotlib.figure"), sys.modules.get("matplotlib.axes")
    if axes is not None and isinstance(value, axes.Axes):
        value = value.get_figure()
    return value if figures is not None and isinstance(value, figures.Figure) else None


def _of_figure(figure: Any) -> dict[str, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    png, before = BytesIO(), figure.canvas
    try:
        FigureCanvasAgg(figure).print_figure(png, format="png", bbox_inches="tight")
    finally:
        figure.set_canvas(before)
    content = png.getvalue()
    # From the header of the PNG: with a known size, the page does not jump when pictures change.
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    data = {"image/png": b64encode(content).decode(), "text/plain": repr(figure)}
    return _output(data, {"image/png": {"width": width, "height": height}})


def _line(values: np.ndarray) -> str:
    """Return values as a line in SVG; empty where less than two of them are finite."""
    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        return ""
    low, high = float(finite.min()), float(finite.max())
    picked = np.unique(np.linspace(0, len(values) - 1, _MOST_POINTS).astype(int))
    x = picked / (len(values) - 1) * _WIDTH
    y = (1 - (values[picked] - low) / ((high - low) or 1.0)) * _HEIGHT
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True) if np.isfinite(b))
    return (
        f"<svg role='img' aria-label='line of {len(values):,} values' width='{_WIDTH}' "
        f"height='{_HEIGHT}' viewBox='-2 -2 {_WIDTH + 4} {_HEIGHT + 4}' style='max-width:100%'>"
        f"<polyline points='{points}' fill='none' stroke='#1f77b4' stroke-width='1.5'/></svg>"
        f"<div>{len(values):,} values from {low:.6g} to {high:.6g}</div>"
    )


def _formatted(value: Any) -> dict[str, Any]:
    """Return what a notebook shows for a value at the end of a cell."""
    from IPython.core.formatters import DisplayFormatter, IPythonDisplayFormatter
    from IPython.core.getipython import get_ipython

    shell, formatter = get_ipython(), DisplayFormatter()
    known = shell and shell.display_formatter
    if known:  # with the formatters that the user has registered
        formatter.formatters = known.formatters
        formatter.mimebundle_formatter = known.mimebundle_formatter
    # Objects with `_ipython_display_` would display themselves below some cell, not here.
    formatter.ipython_display_formatter = IPythonDisplayFormatter(enabled=False)
    data, metadata = formatter.format(value)  # type: ignore[no-untyped-call]
    for kind, content in data.items():
        if isinstance(content, bytes):
            data[kind] = b64encode(content).decode()
    return _output(data or {"text/plain": object.__repr__(value)}, metadata)


def _html(html: str, text: str) -> dict[str, Any]:
    return _output({"text/html": html, "text/plain": text[:_LONGEST]}, {})


def _output(data: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    return {"output_type": "display_data", "data": data, "metadata": metadata}


def _short(value: Any) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return f"<span title='{value!r}'>{value:.6g}</span>"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**15:
        return f"<span title='{value}'>{value:,}</span>"
    return _shown(value if isinstance(value, str) else str(value))


def _shown(text: str) -> str:
    return escape(text if len(text) <= _LONGEST else text[:_LONGEST] + " …")
