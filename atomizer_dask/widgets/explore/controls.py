"""Controls for the parameters of an atom, and the values that each of them offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from inspect import Parameter
from math import isfinite, prod
from numbers import Real
from typing import Any

import ipywidgets
import numpy as np
from traitlets import TraitError

from atomizer_dask.atoms.definition import Definition, FunctionAtom
from atomizer_dask.display.text import shorten
from atomizer_dask.errors import InvalidPayloadError, InvalidSweepError
from atomizer_dask.sweeps.grid import Grid
from atomizer_dask.sweeps.make import grid

_FEWEST_STEPS = 10  # of a slider whose step nobody gave
_STEPS = 100  # what it gets instead
_LONGEST = 24  # characters of a name that are shown
_BOUNDS = ("min", "max", "step", "options")  # traits that say what a control offers
_SEVERAL = (ipywidgets.SelectMultiple, ipywidgets.SelectionRangeSlider)  # whose value is several


@dataclass(frozen=True)
class Control:
    """What sets one parameter.

    Parameters
    ----------
    widget
        A widget with a value, or `ipywidgets.fixed`.
    is_swept
        A range was given for it: a sweep takes all of its values, else the one that it has.
    is_ours
        It was made here, and is closed with what it is in; a widget that was given is the user's.
    """

    widget: Any
    is_swept: bool
    is_ours: bool

    @property
    def value(self) -> Any:
        """The one that it has."""
        return self.widget.get_interact_value()

    @property
    def bounds(self) -> list[str]:
        """The traits that say which values it offers."""
        return [name for name in _BOUNDS if self.widget.has_trait(name)]

    def count(self) -> int:
        """Return how many values a sweep takes of it."""
        steps = self._steps() if self.is_swept else None
        return len(self._listed()) if steps is None else _number(*steps)

    def values(self) -> Sequence[Any]:
        """Return the values that a sweep takes of it."""
        steps = self._steps() if self.is_swept else None
        if steps is None:
            return self._listed()
        low, high, step = steps
        if all(isinstance(bound, int) for bound in steps):
            return range(low, high + 1, step)
        # As people write them: 1.15, where adding steps of 0.05 gives 1.1500000000000001.
        digits = max(_digits(low), _digits(step))
        values: np.ndarray = np.round(low + step * np.arange(_number(*steps)), digits)
        base: float | None = getattr(self.widget, "base", None)  # of a logarithmic slider
        listed: list[float] = (values if base is None else np.power(base, values)).tolist()
        return listed  # Python's, as the electrons that a control sends are given

    def _steps(self) -> tuple[Any, Any, Any] | None:
        """Return lowest, highest and step of what goes in steps, None for anything else."""
        low, high, step = (getattr(self.widget, name, None) for name in ("min", "max", "step"))
        numbers = (low, high, step, self.widget.value)
        if not all(isinstance(number, Real) and isfinite(number) for number in numbers):
            return None
        return (low, high, step) if step else None

    def _listed(self) -> list[Any]:
        if not self.is_swept:
            return [self.value]
        options = getattr(self.widget, "options", None)
        if options and not isinstance(self.widget, _SEVERAL):
            return _values_of(options)
        return [False, True] if isinstance(self.widget.value, bool) else [self.value]


def sweep_of(controls: Mapping[str, Control]) -> Grid:
    """Return all combinations of what controls offer."""
    return grid(**{name: control.values() for name, control in controls.items()})


def size_of(controls: Mapping[str, Control]) -> int:
    """Return how many electrons `sweep_of` has, without making it."""
    return prod(control.count() for control in controls.values())


def controls_of(definition: Definition, ranges: Mapping[str, Any]) -> dict[str, Control]:
    """Return a control for each parameter of an atom, in their order.

    Parameters
    ----------
    definition
        The atom.
    ranges
        For each parameter what `ipywidgets.interact` understands. One without gets a control for
        its default where that is a number, a boolean, a text or a widget; anything else stays.

    Raises
    ------
    InvalidPayloadError
        Where one has neither range nor default, or there is no such parameter.
    InvalidSweepError
        Where no control can be made of a range.
    """
    defaults: dict[str, Any] = {}
    if isinstance(definition, FunctionAtom):
        _check_names(definition, ranges)
        parameters = ((name, definition.parameters[name]) for name in definition.fields)
        defaults = {name: parameter.default for name, parameter in parameters}
    controls = {}
    for name in dict.fromkeys([*defaults, *ranges]):
        default = defaults.get(name, Parameter.empty)
        given = ranges.get(name, default)
        if name in ranges or _has_control(default):
            widget = _widget(name, given, default)
            controls[name] = Control(widget, name in ranges, is_ours=widget is not given)
            if widget is not given:
                _fit(widget, longest=max(map(len, [*defaults, *ranges])))
    return controls


def _fit(widget: Any, longest: int) -> None:
    """Give names the place that they need, and have narrow pages keep all of it in sight."""
    widget.style.description_width = f"{min(max(longest, 8), _LONGEST) + 1}ch"
    widget.layout.width, widget.layout.max_width = "auto", "100%"
    widget.layout.min_width = "0"


def _check_names(definition: FunctionAtom, ranges: Mapping[str, Any]) -> None:
    required = [name for name, is_required in definition.fields.items() if is_required]
    for name in () if definition.takes_any else ranges.keys() - definition.fields.keys():
        nearest = get_close_matches(name, definition.fields, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {list(definition.fields)}"
        raise InvalidPayloadError(f"{definition.id} has no parameter {name!r} to explore; {hint}")
    missing = [name for name in required if name not in ranges]
    if missing:
        what = ", ".join(map(repr, missing))
        example = ", ".join(f"{name}=(0, 10)" for name in missing)
        raise InvalidPayloadError(
            f"{definition.id} has no default for {what}, and no range was given: add {example}, "
            f"which makes a slider, or {missing[0]}=[...] to choose from"
        )
    definition.check_fields(ranges)


def _has_control(default: Any) -> bool:
    return isinstance(default, bool | Real | str | ipywidgets.ValueWidget | ipywidgets.fixed)


def _widget(name: str, given: Any, default: Any) -> Any:
    given = _as_list(given)
    try:
        if isinstance(given, ipywidgets.Widget) and not isinstance(given, ipywidgets.ValueWidget):
            raise TypeError("a widget without a value")  # noqa: TRY301 - as ipywidgets says it
        widget = ipywidgets.interactive.widget_from_abbrev(given, default)
    except (TypeError, ValueError, ArithmeticError, TraitError) as error:
        raise _unusable(name, given, str(error)) from error
    if widget is None or (not given and isinstance(given, list | dict)):
        raise _unusable(name, given, "")
    if not widget.description:
        widget.description = name
    if widget is not given:
        _refine(widget, stepped=isinstance(given, tuple) and len(given) > 2)
    return widget


def _as_list(given: Any) -> Any:
    """Return a range whose truth or type is unclear, an array or an iterator, as a list."""
    is_plain = isinstance(given, str | tuple | list | Mapping | type | ipywidgets.Widget)
    return list(given) if not is_plain and hasattr(given, "__iter__") else given


def _refine(widget: Any, *, stepped: bool) -> None:
    """Give a slider between 0 and 0.01 steps smaller than 0.1, and show them."""
    if not isinstance(widget, ipywidgets.FloatSlider):
        return
    span = widget.max - widget.min
    if not stepped and 0 < span < _FEWEST_STEPS * widget.step:
        value, widget.step = widget.value, float(f"{span / _STEPS:.3g}")
        widget.value = value
    if _digits(widget.step) > 2:
        widget.readout_format = f".{min(_digits(widget.step), 12)}f"


def _unusable(name: str, given: Any, reason: str) -> InvalidSweepError:
    why = f" ({reason})" if reason else ""
    return InvalidSweepError(
        f"no control can be made of {name}={shorten(repr(given))}{why}; expected (min, max), "
        "(min, max, step), a number, a boolean, a text, a list or dict of choices, a widget with "
        "a value, or ipywidgets.fixed(value)"
    )


def _number(low: float, high: float, step: float) -> int:
    low_, high_, step_ = (Decimal(repr(float(bound))) for bound in (low, high, step))
    return int((high_ - low_) // step_) + 1


def _digits(number: float) -> int:
    """Return how many digits a number has after the point."""
    exponent = Decimal(repr(float(number))).normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _values_of(options: Any) -> list[Any]:
    """Return the values of choices, which may have labels: ipywidgets' own rule."""
    listed = list(options.items() if isinstance(options, Mapping) else options)
    if all(isinstance(option, list | tuple) and len(option) == 2 for option in listed):
        return [value for _, value in listed]
    return listed
