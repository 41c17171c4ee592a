"""The base class of all panels, on the side of Python.

The page never sets a trait and the panel answers no request. The page sends small messages, the
panel queues them until the next refresh, and a refresh sends at most one update. So one thread at a
time works on a panel, in whichever thread Jupyter delivers messages.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections import deque
from pathlib import Path
from time import monotonic
from typing import Any

import anywidget
import comm
import traitlets
from IPython.display import display

from atomizer_dask.config import setting
from atomizer_dask.display.live import in_kernel
from atomizer_dask.display.text import one_line
from atomizer_dask.errors import text_of
from atomizer_dask.events import Event, EventLog
from atomizer_dask.widgets.refresher import Refresher
from atomizer_dask.widgets.static_html import html_of
from atomizer_dask.widgets.summary import MESSAGE, event_row

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
STILL_SECONDS = 15.0  # between two updates of the still picture that a saved notebook keeps
BYTES_PER_SECOND = 36_000  # of all messages together, so that peaks stay below 50 kB
BURST = 9_000
GONE = "no variable holds this any more, so that nothing can be done about it"
FRONT = Path(__file__).parent / "front"

refresher = Refresher()


class Panel(anywidget.AnyWidget):
    """A live panel of a run, an atomizer or a conductor.

    Parameters
    ----------
    thing
        The run, atomizer or conductor. The panel keeps it alive until no page shows the panel.

    Attributes
    ----------
    state
        The facts for the head of the panel.
    news
        Events since the last update, and how many there were in all.
    failures, workers, results
        The contents of the tabs.
    still
        Id by which the page finds the still picture that a saved notebook keeps, and hides it.
    note
        Why a button did nothing; empty after one that did.
    troubles
        The error of each tab that cannot be shown.
    """

    _esm = FRONT / "panel.js"
    _css = FRONT / "panel.css"

    state: Any = traitlets.Dict().tag(sync=True)
    news: Any = traitlets.Dict().tag(sync=True)
    failures: Any = traitlets.List().tag(sync=True)
    output: Any = traitlets.Dict().tag(sync=True)
    workers: Any = traitlets.List().tag(sync=True)
    results: Any = traitlets.Dict().tag(sync=True)
    still: Any = traitlets.Unicode().tag(sync=True)

    def __init__(self, thing: Any) -> None:
        self._weak = weakref.ref(thing)
        self._strong: Any = thing
        self._messages: deque[dict[str, Any]] = deque()
        self._refreshing = threading.RLock()
        self._sent: dict[str, Any] = {}
        self._next_event = 0
        self._unsent: deque[tuple[int, Event]] = deque()
        self._afresh, self._next_at = False, 0.0
        self._allowance, self._allowed_at = float(BURST), monotonic()
        self._stills: list[Any] = []
        self.interval: float = setting("panel.refresh")
        self._still_at, self._still_of = 0.0, {"state": ""}
        self.wanted: set[str] = {"events"}
        self.note = ""
        self.troubles: dict[str, str] = {}
        super().__init__()
        self.on_msg(self._take_message)
        if in_kernel():
            comm.get_comm_manager().register_comm(_Direct(self.comm))  # type: ignore[arg-type]
        with self.hold_sync():
            self.still = self.model_id
            self.refresh()

    @property
    def thing(self) -> Any:
        """The run, atomizer or conductor; None once it has been garbage-collected."""
        return self._weak()

    # -- for each kind of panel ----------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """Return the facts for the head; a change of ``elapsed`` alone causes no update."""
        raise NotImplementedError

    def due_traits(self) -> dict[str, Any]:
        """Return the traits of open tabs that are due for an update, by name."""
        return {}

    def do(self, what: str, message: dict[str, Any]) -> None:
        """Carry out the action of a button; called in a thread of its own, for it may take long."""
        raise NotImplementedError

    @property
    def log(self) -> EventLog | None:
        """The events that the panel shows; None where it shows none."""
        return None

    @property
    def pace(self) -> float | None:
        """Seconds until the next refresh; None where nothing changes by itself."""
        return self.interval

    # -- keeping it up to date -----------------------------------------------------------------

    def refresh(self) -> float | None:
        """Send changes, unless some have just been sent; return seconds until the next refresh."""
        with self._refreshing:
            if self.comm is None:  # it was closed
                return None
            self._afresh = self._read_messages() or self._afresh
            early = self._next_at - monotonic()
            return early if early > 0 else self._send_news()

    def _send_news(self) -> float | None:
        """Send changes in one message at most; return seconds until the next refresh."""
        thing = self.thing  # a strong reference, so that it stays alive meanwhile
        if thing is None:
            self.state = {**self.state, "can": [], "note": GONE}
            return None
        self._fill_allowance()
        try:
            facts = self.facts()
        except Exception as error:
            self._say(f"this cannot be brought up to date: {described(error)}")
            raise
        changed = {
            name: value for name, value in self.due_traits().items() if self._is_new(name, value)
        }
        facts["note"] = self.note or "; ".join(self.troubles.values())
        if self._afresh or _lasting(facts) != self._sent.get("state"):
            changed["state"] = facts
            self._sent["state"] = _lasting(facts)
        self._afresh = False
        self._allowance -= _size(changed)
        if (news := self._gather_news()) is not None:
            changed["news"] = news
        with self.hold_sync():
            for name, value in changed.items():
                setattr(self, name, value)
        sent = bool(changed) + self._keep_still()
        self._next_at = monotonic() + self.interval * sent
        return self.interval if self._unsent else self.pace

    def _fill_allowance(self) -> None:
        now = monotonic()
        grown = self._allowance + BYTES_PER_SECOND * (now - self._allowed_at)
        self._allowance, self._allowed_at = min(grown, BURST), now

    @property
    def may_send(self) -> bool:
        """Whether the recent messages leave an allowance for more than the head."""
        return self._allowance > 0

    def _say(self, note: str) -> None:
        """Show a note beside the last known state, until the state can be updated."""
        self.state = {**self.state, "note": note}
        self._sent.pop("state", None)

    def _is_new(self, name: str, value: Any) -> bool:
        new: bool = self._sent.get(name) != value
        self._sent[name] = value
        return new

    def _gather_news(self) -> dict[str, Any] | None:
        """Return the newest events that the page lacks, as many as the allowance permits."""
        if self.log is None:
            return None
        fresh = self.log.since(self._next_event)
        if fresh:
            self._next_event = fresh[-1][0] + 1
            self._unsent.extend(fresh)
        first = self.log.total - len(self.log)
        while self._unsent and self._unsent[0][0] < first:
            self._unsent.popleft()  # the log has dropped it for newer ones
        rows = []
        while self._unsent and self.may_send:
            row = event_row(*self._unsent.pop())  # the newest first
            self._allowance -= _size(row)
            rows.append(row)
        if not rows and self._sent.get("total") == self.log.total:
            return None
        self._sent["total"] = self.log.total
        return {"rows": rows, "total": self.log.total, "levels": self.log.counts}

    # -- messages of the page ------------------------------------------------------------------

    def _take_message(self, widget: Any, message: dict[str, Any], buffers: Any) -> None:
        self._messages.append(message)
        refresher.schedule(self)

    def _read_messages(self) -> bool:
        """Handle the queued messages of the page; return whether it has a new view to fill."""
        afresh = False
        while self._messages:
            message = self._messages.popleft()
            if "views" in message:
                self._strong = self.thing if message["views"] else None
            if "tabs" in message:
                self.wanted = {str(tab) for tab in message["tabs"]}
            if message.get("hello"):
                afresh = True
                self._send_events_again()
            if "do" in message:
                threading.Thread(
                    target=self._act, args=(message,), name="atomizer-button", daemon=True
                ).start()
            self.hear(message)
        return afresh

    def hear(self, message: dict[str, Any]) -> None:
        """Handle the fields of a message that only this kind of panel knows."""

    def _send_events_again(self) -> None:
        self._next_event = 0
        self._unsent.clear()

    def _act(self, message: dict[str, Any]) -> None:
        try:
            self.do(str(message["do"]), message)
            self.note = ""
        except Exception as error:  # noqa: BLE001 - it is shown to whoever pressed the button
            self.note = described(error)
        refresher.schedule(self)

    # -- what a saved notebook keeps -------------------------------------------------------------

    def show_here(self) -> None:
        """Display the panel in the cell that is being executed.

        Two outputs: a still picture, which a saved notebook keeps and the live view hides, and the
        live view.
        """
        handle = display(  # type: ignore[no-untyped-call]
            self._texts(self.model_id), raw=True, display_id=True
        )
        live = {**self._view(), "text/plain": "", "text/html": ""}
        display(live, raw=True)  # type: ignore[no-untyped-call]
        with self._refreshing:
            if not self._stills:
                self._still_at, self._still_of = monotonic(), self._sent["state"]
            self._stills.append(handle)
        refresher.schedule(self)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Return the live view, and for pages without widgets the current state."""
        return {**self._texts(), **(self._view() if in_kernel() else {})}

    def _view(self) -> dict[str, Any]:
        version = {"version_major": 2, "version_minor": 0}
        return {WIDGET_VIEW: {**version, "model_id": self.model_id}}

    def _texts(self, live: str = "") -> dict[str, str]:
        """Return the current state, as text and as HTML."""
        thing = self.thing
        if thing is None:
            return {"text/plain": GONE, "text/html": f"<div>{GONE}</div>"}
        return {"text/plain": repr(thing), "text/html": html_of(thing, live)}

    def _keep_still(self) -> int:
        """Update the still picture: at once when ``state`` changes, else at most every 15 seconds.

        Returns how many messages that took.
        """
        if not self._stills or self._still_of == (now := self._sent["state"]):
            return 0
        another = self._still_of["state"] != now["state"]
        if not another and monotonic() - self._still_at < STILL_SECONDS:
            return 0
        return self.keep_still()

    def update_saved_output(self) -> None:
        """Send changes now, in the calling thread, and update the still picture.

        Nothing is raised: code that waits for a run must not fail because a panel shows it.
        """
        with self._refreshing:
            try:
                self._afresh = self._read_messages() or self._afresh
                self._send_news()
                if self._stills and self.thing is not None:
                    self.keep_still()
            except Exception:  # noqa: BLE001 - it is tried again, and logged, by the refresher
                refresher.schedule(self)

    def keep_still(self) -> int:
        """Update the still picture now, and return how many messages that took."""
        with self._refreshing:
            self._still_at, self._still_of = monotonic(), self._sent["state"]
            texts = self._texts(self.model_id)
            if texts == self._sent.get("still"):
                return 0
            self._allowance -= _size(texts)
            self._sent["still"] = texts
            for handle in self._stills:
                handle.update(texts, raw=True)
            return len(self._stills)

    def close(self) -> None:
        """Close the widget, and drop the reference that keeps the thing alive."""
        refresher.forget(self)
        self._strong = None
        super().close()


class _Direct:
    """A wrapper of a comm, with only the attributes that the comm manager needs.

    JupyterLab sends messages through a subshell, a thread of its own, so that they do not wait
    while a cell is executed. For comms of its own class ipykernel 7.4 passes them on to the thread
    in which the widget was made, since handlers may rely on that thread. Our handler only queues
    the message, so that any thread may call it.
    """

    def __init__(self, comm: Any) -> None:
        self.comm_id = comm.comm_id
        self.handle_msg = comm.handle_msg
        self.handle_close = comm.handle_close


def _lasting(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != "elapsed"}


def described(error: Exception) -> str:
    """Return the type and message of an error on one line."""
    return f"{type(error).__name__}: {one_line(text_of(error), MESSAGE)}"


def _size(value: Any) -> int:
    """Return about how many bytes a value has as JSON."""
    return len(json.dumps(value, default=str))
