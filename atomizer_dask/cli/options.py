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
    """Give a command the options that say which queue of which broker; see `BrokerCommand`."""
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
    """Give a command the option that says before whom a run goes."""
    return click.option(
        "--priority",
        type=click.IntRange(-MOST_PRIORITY, MOST_PRIORITY),
        help=f"Before all runs of a lower one on the same scheduler; {otherwise} unless given.",
    )


class BrokerCommand(click.Command):
    """A command that does not repeat credentials where a URL is in the wrong place."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Read the arguments."""
        with _credentials_hidden():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Do what the command does."""
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
