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

_FEWEST_STEPS = 10  # a slider without a given step that has fewer ...
_STEPS = 100  # ... gets so many
_LONGEST = 24  # characters of a name that are shown
_BOUNDS = ("min", "max", "step", "options")  # traits that determine the values of a control
_SEVERAL = (ipywidgets.SelectMultiple, ipywidgets.SelectionRangeSlider)  # whose value is several


@dataclass(frozen=True)
class Control:
    """The control of one parameter.

    Parameters
    ----------
    widget
        A widget with a value, or `ipywidgets.fixed`.
    is_swept
        Whether the user gave a range. A sweep then takes all values of the widget, else the
        current one.
    is_ours
        Whether the explorer made the widget, and closes it; a widget that the user gave stays open.
    """

    widget: Any
    is_swept: bool
    is_ours: bool

    @property
    def value(self) -> Any:
        """The current value."""
        return self.widget.get_interact_value()

    @property
    def bounds(self) -> list[str]:
        """Names of the traits of the widget that determine its values."""
        return [name for name in _BOUNDS if self.widget.has_trait(name)]

    def count(self) -> int:
        """Return the number of `values`, without making them."""
        steps = self._steps() if self.is_swept else None
        return len(self._listed()) if steps is None else _number(*steps)

    def values(self) -> Sequence[Any]:
        """Return the values that a sweep takes from the control."""
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
        return listed  # Python floats, as a single electron of the explorer has

    def _steps(self) -> tuple[Any, Any, Any] | None:
        """Return lowest and highest value and step of a slider; None for any other widget."""
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
    """Return the grid of all combinations of the values of controls."""
    return grid(**{name: control.values() for name, control in controls.items()})


def size_of(controls: Mapping[str, Control]) -> int:
    """Return the number of electrons of the sweep that `sweep_of` would make."""
    return prod(control.count() for control in controls.values())


def controls_of(definition: Definition, ranges: Mapping[str, Any]) -> dict[str, Control]:
    """Return a control for each parameter of an atom, in their order.

    Parameters
    ----------
    definition
        The atom.
    ranges
        A range for each parameter, as `ipywidgets.interact` takes it. A parameter without a range
        gets a control where its default is a number, a boolean, a text or a widget; with any other
        default it has no control.

    Raises
    ------
    InvalidPayloadError
        Where a parameter has neither range nor default, or there is no such parameter.
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
    """Make a widget wide enough for the longest name, and let it shrink on narrow pages."""
    widget.style.description_width = f"{min(max(longest, 8), _LONGEST) + 1}ch"
    widget.layout.width, widget.layout.max_width = "auto", "100%"
    widget.layout.min_width = "0"


def _check_names(definition: FunctionAtom[..., Any], ranges: Mapping[str, Any]) -> None:
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
    """Return an array or an iterator as a list; any other range stays as it is."""
    is_plain = isinstance(given, str | tuple | list | Mapping | type | ipywidgets.Widget)
    return list(given) if not is_plain and hasattr(given, "__iter__") else given


def _refine(widget: Any, *, stepped: bool) -> None:
    """Give a slider of a short range a smaller step than ipywidgets' 0.1, and show its digits."""
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
    """Return how many decimal places a number has."""
    exponent = Decimal(repr(float(number))).normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _values_of(options: Any) -> list[Any]:
    """Return the values of options, which may be pairs of label and value, as ipywidgets does."""
    listed = list(options.items() if isinstance(options, Mapping) else options)
    if all(isinstance(option, list | tuple) and len(option) == 2 for option in listed):
        return [value for _, value in listed]
    return listed
