"""Common to all pictures of a run: matplotlib, figures, headings, texts without math markup."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from atomizer_dask.display.text import shorten

LONGEST_NAME = 60
LONGEST_LINE = 75  # letters that fit above an Axes
LETTERS_PER_INCH = 12
FAILED_COLOUR = "tab:red"


def pyplot(what: str) -> Any:
    """Return ``matplotlib.pyplot``.

    Parameters
    ----------
    what
        The method that needs it, for the message of the error.

    Raises
    ------
    ImportError
        Where matplotlib is not installed; the message says how to install it.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"{what} needs matplotlib: pip install 'atomizer_dask[plot]'", name="matplotlib"
        ) from error
    return plt


@dataclass(frozen=True, slots=True)
class Heading:
    """The heading above a picture of a run.

    Parameters
    ----------
    run_id, atom_id
        Ids of the run and of its atom.
    done, failed
        How many electrons ended well, and in a failure.
    total
        How many electrons there are; None while that is unknown.
    """

    run_id: str
    atom_id: str
    done: int
    failed: int
    total: int | None

    @property
    def name(self) -> str:
        """The name of the atom without its module."""
        words = self.atom_id.replace("<locals>", "locals").split(".")
        plain = all(word.isidentifier() for word in words)
        return shorten(words[-1] if plain else self.atom_id, LONGEST_NAME)

    def details(self, *notes: str) -> str:
        """Return the lines below the name: the run, the number of electrons, and `notes`."""
        ended = self.done + self.failed
        some = ended != self.total
        count = f"{ended:,} of {'?' if self.total is None else f'{self.total:,}'}"
        count = f"{count if some else f'{ended:,}'} electron{'' if self.total == 1 else 's'}"
        failed = f", {self.failed:,} failed" if self.failed else ""
        facts = " · ".join([shorten(self.run_id, LONGEST_NAME), count + failed])
        noted = " · ".join(filter(None, notes))
        between = " · " if len(facts) + len(noted) < LONGEST_LINE else "\n"
        return f"{facts}{between}{noted}" if noted else facts

    def check_ended(self, *, well: bool = False) -> None:
        """Raise where there is nothing to show.

        Raises
        ------
        ValueError
            Where no electron has ended, or, with `well`, ended well.
        """
        if not self.done + self.failed:
            raise ValueError(
                f"no electron of {self.run_id} has ended yet: run.wait() waits for them, "
                "run.progress says how far it is"
            )
        if well and not self.done:
            raise ValueError(
                f"all {self.failed:,} electrons of {self.run_id} that have ended failed: there is "
                "nothing to draw; run.failures says why"
            )

    def write_over(self, ax: Any, *notes: str) -> None:
        """Write it above an Axes."""
        details = self.details(*notes)
        ax.set_title(self.name, pad=20 + 11 * details.count("\n"), parse_math=False)
        ax.annotate(
            details, (0.5, 1), (0, 6), xycoords="axes fraction",
            textcoords="offset points", ha="center", va="bottom", fontsize="small", alpha=0.7,
            parse_math=False,
        )  # fmt: skip

    def write_above(self, figure: Any, *notes: str) -> None:
        """Write it above all Axes of a figure."""
        text = f"{self.name}\n{self.details(*notes)}"
        figure.suptitle(text, fontsize="medium", parse_math=False)


def new_axes(plt: Any, width: float | None = None, height: float | None = None) -> Any:
    """Return an Axes on a figure of its own, on which nothing is cut off."""
    size = plt.rcParams["figure.figsize"]
    figsize = width or size[0], height or size[1]
    return plt.subplots(figsize=figsize, layout="constrained")[1]


def show_once(plt: Any, figure: Any) -> None:
    """Close a figure in pyplot, so that a notebook shows it only once.

    At the end of a cell Jupyter's inline backend shows all figures that pyplot holds, and the
    notebook shows the value of the last line. A returned figure would appear twice.
    """
    if "inline" in plt.get_backend():
        plt.close(figure)


def write_legend(ax: Any, handles: Iterable[Any], labels: Iterable[str], **options: Any) -> None:
    """Add a legend whose texts are not parsed as math."""
    # matplotlib leaves out labels that begin with an underscore.
    shown = [f"\N{ZERO WIDTH SPACE}{label}" if label[:1] == "_" else label for label in labels]
    legend = ax.legend(list(handles), shown, fontsize="small", **options)
    for text in legend.get_texts():
        text.set_parse_math(False)


def label(axis: Any, text: str) -> None:
    """Label an axis with a text that is not parsed as math, cut to the room that there is."""
    room = LONGEST_NAME
    if axis.axis_name == "y":
        height = axis.axes.get_window_extent().height / axis.axes.figure.dpi
        room = max(10, min(room, int(LETTERS_PER_INCH * height)))
    axis.set_label_text(shorten(text, room), parse_math=False)
