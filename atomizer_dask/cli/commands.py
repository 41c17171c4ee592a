"""The command ``atomizer-dask`` and its subcommands."""

from __future__ import annotations

import click

from atomizer_dask import __version__
from atomizer_dask.cli.console import console
from atomizer_dask.cli.map import map_
from atomizer_dask.cli.node import node
from atomizer_dask.cli.pi import pi
from atomizer_dask.cli.stored_runs import resume, status


@click.group(name="atomizer", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="atomizer-dask")
def main() -> None:
    """From a function and a table of inputs to one tidy DataFrame, on Dask."""


for _command in (pi, map_, status, resume, node, console):
    main.add_command(_command)
