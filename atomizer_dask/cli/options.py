"""Options that several commands have."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from atomizer_dask.conductors.amqp.address import PASSWORD_VARIABLE, URL_VARIABLE, USER_VARIABLE
from atomizer_dask.policy import MOST_PRIORITY

_Command = TypeVar("_Command", bound=Callable[..., Any])


def broker_options(command: Any) -> Any:
    """Give a command the options that choose broker and queue; use it with `BrokerCommand`."""
    for option in (
        click.option(
            "--ca",
            type=click.Path(exists=True, dir_okay=False),
            help="With amqps: certificates to trust, in place of those of this machine.",
        ),
        click.option("--queue", help="The work queue; atomizer unless configured."),
        click.option(
            "--amqp",
            metavar="URL",
            help=f"The broker, amqp://user:password@host:5672/vhost or amqps://...; by default "
            f"that of {URL_VARIABLE}. User and password may be in {USER_VARIABLE} and "
            f"{PASSWORD_VARIABLE} instead, where other users of the machine do not see them.",
        ),
    ):
        command = option(command)
    return command


def priority_option(otherwise: str) -> Callable[[_Command], _Command]:
    """Give a command the option for the priority of a run.

    Parameters
    ----------
    otherwise
        The default, for the help text.
    """
    return click.option(
        "--priority",
        type=click.IntRange(-MOST_PRIORITY, MOST_PRIORITY),
        help=f"Before all runs of a lower one on the same scheduler; {otherwise} unless given.",
    )


class BrokerCommand(click.Command):
    """A command whose error messages hide the credentials of a URL."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Parse the arguments; error messages hide credentials."""
        with _credentials_hidden():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; error messages hide credentials."""
        with _credentials_hidden():
            return super().invoke(ctx)


@contextmanager
def _credentials_hidden() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        shown = re.sub(r"://\S*@", "://***@", error.message)
        error.message = shown  # type: ignore[misc, unused-ignore] # of any class of errors
        raise
