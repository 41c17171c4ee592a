"""The one door up: handles find the widgets that show them by name."""

import subprocess
import sys

from atomizer_dask import Atomizer, MemoryConductor, grid, widgets
from atomizer_dask.display.live import FRONT, ExplorerWidget, Front
from atomizer_dask.widgets.explore.explorer import Explorer
from atomizer_dask.widgets.panel import Panel


def expected():
    return [name for name in vars(Front) if not name.startswith("_")]


def test_the_name_leads_to_widgets_that_have_all_that_handles_expect():
    assert widgets.__name__ == FRONT
    assert set(expected()) == set(widgets.__all__)


def test_the_explorer_has_what_its_users_are_told():
    for name, member in vars(ExplorerWidget).items():
        if not name.startswith("_"):
            assert type(getattr(Explorer, name)) is type(member), name


def test_every_handle_finds_its_panel():
    conductor = MemoryConductor(1)
    with Atomizer(conductor) as atomizer:
        run = atomizer.map(lambda x: x, grid(x=range(3))).wait(30)
        panels = [handle.watch() for handle in (run, atomizer, conductor)]
        assert len({type(panel) for panel in panels}) == 3
        assert all(isinstance(panel, Panel) for panel in panels)
        assert all("<" in handle._repr_html_() for handle in (run, atomizer))


def test_whoever_looks_at_nothing_loads_no_widgets():
    program = (
        "import sys; from atomizer_dask import *\n"
        "with Atomizer(MemoryConductor(1)) as atomizer:\n"
        "    atomizer.map(abs_of, grid(x=range(3))).wait(30)\n"
        "assert 'ipywidgets' not in sys.modules and 'atomizer_dask.widgets' not in sys.modules\n"
    ).replace("with", "@atom\ndef abs_of(x): return abs(x)\nwith", 1)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
