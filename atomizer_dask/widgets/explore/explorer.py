"""Controls for an atom's parameters, and beside them what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets

from atomizer_dask.atoms.definition import Definition
from atomizer_dask.display.text import counted
from atomizer_dask.errors import AtomizerError, ElectronError
from atomizer_dask.properties import Properties
from atomizer_dask.store.layout import GOING
from atomizer_dask.sweeps.grid import Grid
from atomizer_dask.widgets.explore.controls import controls_of, size_of, sweep_of
from atomizer_dask.widgets.explore.latest_request import Fate, Latest, Request
from atomizer_dask.widgets.explore.render import error_html, forget_figures, render
from atomizer_dask.widgets.explore.tried import Tried

if TYPE_CHECKING:
    import pandas as pd

    from atomizer_dask.atomizer import Atomizer
    from atomizer_dask.runs.run import Run


MOST_MAPPED = 1_000_000  # electrons that a button sends
_STYLE = """<style>
.atomizer-stale { opacity: 0.5; }
.atomizer-note { font-size: 0.85em; opacity: 0.75; }
.atomizer-error { border-left: 3px solid var(--jp-error-color1, #c62828); }
.atomizer-error { padding-left: 0.6em; overflow-wrap: anywhere; }
.atomizer-error pre { max-height: 20em; overflow: auto; white-space: pre; }
</style>"""


class Explorer(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Controls for an atom's parameters, and beside them what it returns; see `Atomizer.explore`.

    Attributes
    ----------
    controls
        The widget of each parameter, by name: set its ``value`` as a user would.
    button
        Maps the current ranges, as `map` does.
    result
        The result of the last electron that ended well; None before the first.
    error
        The error of the last electron; None where it did not fail.
    run
        The run that `map` last started; None before the first.
    """

    _is_closed = True  # until the constructor has made all parts

    def __init__(
        self, atomizer: Atomizer, definition: Definition, ranges: Mapping[str, Any]
    ) -> None:
        self._atomizer, self._definition = atomizer, definition
        self._controls = controls_of(definition, ranges)
        self.controls = {name: control.widget for name, control in self._controls.items()}
        self.result: Any = None
        self.error: BaseException | None = None
        self.run: Run | None = None
        self._tried = Tried(self._controls)
        self._status, self._failure = ipywidgets.HTML(), ipywidgets.HTML()
        self._output = ipywidgets.Output()
        self._note = ipywidgets.HTML()
        self.button = ipywidgets.Button(layout={"width": "auto", "margin": "8px 2px 2px"})
        self._runs = ipywidgets.VBox(layout={"margin": "8px 0 0"})
        super().__init__(self._arranged())
        self._count()
        self.button.on_click(self._on_click)
        self._latest = Latest(f"explore-{definition.id}", self._send_electron, self._on_outcome)
        for control in self._controls.values():
            control.widget.observe(self._on_value, "value")
            if control.is_swept and control.bounds:
                control.widget.observe(self._on_bounds, control.bounds)
        self._is_closed = False
        self._ask(at_once=True)

    @property
    def inputs(self) -> dict[str, Any]:
        """The current values of the controls, by parameter."""
        return {name: control.value for name, control in self._controls.items()}

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each electron that ended, in the order sent, as `Run.to_frame` has them.

        Those that failed have no outputs but ``error_kind``, ``error_type`` and
        ``error_message``. Those that were cancelled, since the controls had moved on, are no rows.
        The last 10,000 are kept.
        """
        return self._tried.to_frame()

    def sweep(self) -> Grid:
        """Return the grid of all combinations of the values of controls with a range.

        A slider has the values from its lowest to its highest by its step. Parameters without a
        range have the current value of their control, and so have texts, fixed values, and controls
        without a list of values.

        Raises
        ------
        InvalidSweepError
            Where the atom has no parameters.
        """
        return sweep_of(self._controls)

    def map(self, **options: Any) -> Run:
        """Map the atom over `sweep`, and show the run below.

        Parameters
        ----------
        **options
            The options of `Atomizer.map`: ``seed``, ``store`` and so on.
        """
        self.run = self._atomizer.map(self._definition, self.sweep(), **options)
        self._show_run(self.run)
        return self.run

    def wait(self, timeout: float | None = None) -> Explorer:
        """Wait until the electron for the current values of the controls has ended.

        Parameters
        ----------
        timeout
            Seconds; None waits as long as it takes.

        Raises
        ------
        TimeoutError
            When time is up.
        """
        if not self._latest.wait(timeout):
            raise TimeoutError(f"the electron has not ended within {timeout} s; it goes on")
        return self

    def close(self) -> None:
        """Cancel the electron under way, and close the widgets; the run goes on."""
        if self._is_closed:
            return
        self._is_closed = True
        for control in self._controls.values():
            control.widget.unobserve(self._on_value, "value")
            if control.is_swept and control.bounds:
                control.widget.unobserve(self._on_bounds, control.bounds)
            if control.is_ours:
                control.widget.close()
        self._latest.close()
        style, both, runs = self.children
        left, right = both.children
        for part in (*right.children, self.button, self._note, left, right, both, style, runs):
            part.close()
        super().close()

    # -- widgets --------------------------------------------------------------------------------

    def _arranged(self) -> list[Any]:
        shown = [w for w in self.controls.values() if isinstance(w, ipywidgets.DOMWidget)]
        left = ipywidgets.VBox(
            [*shown, self.button, self._note],
            layout={"flex": "0 1 28em", "min_width": "0", "max_width": "100%"},
        )
        right = ipywidgets.VBox(
            [self._status, self._failure, self._output],
            layout={"flex": "1 1 20em", "min_width": "0", "overflow": "auto"},
        )
        both = ipywidgets.Box(
            [left, right], layout={"display": "flex", "flex_flow": "row wrap", "grid_gap": "1em"}
        )
        return [ipywidgets.HTML(_STYLE, layout={"display": "none"}), both, self._runs]

    def _say(self, text: str) -> None:
        """Show a text, which is not escaped, as the status of the electron."""
        self._status.value = f"<span class='atomizer-note' role='status'>{text}</span>"

    def _count(self) -> None:
        """Write on the button how many electrons it sends."""
        count = size_of(self._controls) if self._controls else 0
        self.button.description = f"Map {counted(count, 'electron')}"
        self.button.disabled = not 0 < count <= MOST_MAPPED
        note = ""
        if not self._controls:
            note = "There is nothing to map: the atom has no parameters here."
        elif count > MOST_MAPPED:
            note = f"More than {MOST_MAPPED:,}: narrow the ranges, or map explorer.sweep()"
        self._note.value = f"<span class='atomizer-note'>{note}</span>" if note else ""

    def _show_run(self, run: Any) -> None:
        self._runs.children = (run.watch(),)

    # -- events of controls, and outcomes of electrons ------------------------------------------

    def _on_value(self, change: Any) -> None:
        self._ask()

    def _on_bounds(self, change: Any) -> None:
        self._count()

    def _on_click(self, button: Any) -> None:
        if self.run is not None and self.run.state in GOING:
            # A second click by mistake must not cost a million electrons.
            text = f"{self.run.id} is under way: wait for it, or explorer.run.cancel()"
            self._failure.value = error_html(AtomizerError(text))
            return
        try:
            self.map()
        except (AtomizerError, TypeError, ValueError) as error:
            self._failure.value = error_html(error)

    def _ask(self, *, at_once: bool = False) -> None:
        self._say("computing …")
        self._output.add_class("atomizer-stale")
        self._latest.ask(self.inputs, at_once=at_once)

    def _send_electron(self, inputs: dict[str, Any]) -> Any:
        return self._atomizer.send(self._definition, inputs)

    def _on_outcome(
        self, request: Request, outcome: Properties | BaseException | None, fate: Fate
    ) -> None:
        try:
            if isinstance(outcome, Properties):
                forget_figures(outcome.result)
        finally:
            if isinstance(outcome, Properties) and fate != "cancelled":
                self._keep(request, outcome)
            if fate == "last" and not self._is_closed:
                self._show_end(outcome)

    def _keep(self, request: Request, properties: Properties) -> None:
        error = properties.error
        if not (isinstance(error, ElectronError) and error.kind == "cancelled"):
            self._tried.add(request.number, request.inputs, properties)

    def _show_end(self, outcome: Properties | BaseException | None) -> None:
        if not isinstance(outcome, Properties):
            self._fail(outcome)
        elif outcome.error is not None:
            self._fail(outcome.error)
        else:
            self._show(outcome)

    def _show(self, properties: Properties) -> None:
        self.result, self.error = properties.result, None
        try:
            outputs = render(properties.result)
            self._output.outputs = outputs
        except Exception as error:  # noqa: BLE001 - the result's own code, or it is no JSON
            self._fail(error)
            return
        self._failure.value = ""
        seconds = properties.duration.total_seconds()
        self._say(f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms")
        self._output.remove_class("atomizer-stale")

    def _fail(self, error: BaseException | None) -> None:
        """Show an error, or None for a cancelled electron; the last result stays in sight."""
        self.error = error
        self._failure.value = "" if error is None else error_html(error)
        before = "; below is the last result before" if self._output.outputs else ""
        self._say(f"{'cancelled' if error is None else 'failed'}{before}")
