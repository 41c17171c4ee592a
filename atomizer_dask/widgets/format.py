"""Numbers and values as a person reads them."""

from __future__ import annotations

import math
from datetime import date, time, timedelta
from typing import Any

import numpy as np
import pandas as pd

from atomizer_dask.display.text import one_line

CELL = 60  # characters of a value in a table


def cell(value: Any, length: int = CELL) -> str:
    """Return a value as the text of a table cell.

    >>> cell(0.1 + 0.2), cell(3), cell("x"), cell(None), cell(np.zeros((20, 3)))
    ('0.3', '3', 'x', '', 'ndarray float64 (20, 3), 480 B')
    >>> cell(np.int64(3)), cell(date(2026, 1, 2))
    ('3', '2026-01-02')
    """
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else f"{value:.6g}"
    if isinstance(value, np.generic | date | time | timedelta):  # whose repr names the type
        try:
            value = str(value)
        except Exception:  # noqa: BLE001 - a class of the user that is made of one of these
            return one_line(value, length)
    return one_line(value, length)


def count_text(count: int | None) -> str:
    """Return a count with commas, a question mark where it is unknown.

    >>> count_text(1234567)
    '1,234,567'
    """
    return "?" if count is None else f"{count:,}"


def rounded(value: float, digits: int = 3) -> float:
    """Return a number rounded to some significant digits.

    >>> rounded(59_812.7), rounded(0.0)
    (59800.0, 0.0)
    """
    return float(f"{value:.{digits}g}")
