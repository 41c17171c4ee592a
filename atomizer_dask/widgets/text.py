"""Numbers and values as a person reads them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from atomizer_dask.brief import one_line

CELL = 60  # characters of a value in a table


def cell(value: Any, length: int = CELL) -> str:
    """Return a value as it stands in a table.

    >>> cell(0.1 + 0.2), cell(3), cell("x"), cell(None), cell(np.zeros((20, 3)))
    ('0.3', '3', 'x', '', 'ndarray float64 (20, 3), 480 B')
    """
    if value is None:
        return ""
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else f"{value:.6g}"
    return one_line(value, length)


def count_text(count: int | None) -> str:
    """Return a number of things.

    >>> count_text(1234567)
    '1,234,567'
    """
    return "?" if count is None else f"{count:,}"


def rate_text(rate: float) -> str:
    """Return a number per second.

    >>> rate_text(59_812), rate_text(0.25), rate_text(0)
    ('59.8 k/s', '0.25 /s', '0 /s')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= size:
            return f"{rate / size:.3g} {unit}/s"
    return f"{rate:.3g} /s"


def seconds_text(seconds: float) -> str:
    """Return how long something takes.

    >>> seconds_text(0.02), seconds_text(12.44), seconds_text(200), seconds_text(7500)
    ('0.0 s', '12.4 s', '3 min 20 s', '2 h 05 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def bytes_text(size: float) -> str:
    """Return an amount of memory.

    >>> bytes_text(2_200_000_000)
    '2.05 GiB'
    """
    for factor, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 2**10:.3g} KiB"


def percent_text(part: int, whole: int) -> str:
    """Return a share, rounded down: nothing is at 100 % before it is all there.

    >>> percent_text(99_999, 100_000), percent_text(1, 1)
    ('99.9 %', '100 %')
    """
    if whole == 0 or part == whole:
        return "100 %"
    return f"{math.floor(1000 * part / whole) / 10:.1f} %"


def rounded(value: float, digits: int = 3) -> float:
    """Return a number with as many digits as are shown of it.

    >>> rounded(59_812.7), rounded(0.0)
    (59800.0, 0.0)
    """
    return float(f"{value:.{digits}g}")
