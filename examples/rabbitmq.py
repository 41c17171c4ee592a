"""Electrons over RabbitMQ: a node serves an atom from a queue, and a sender asks it.

How likely do two of n people share a birthday? The node executes `shared` on a Dask cluster; the
sender knows nothing of it but the id of the atom, and would not notice were it a program in Go.
Both are in this process, and might be on two continents. The last electron is wrong on purpose.

    python examples/rabbitmq.py
    python examples/rabbitmq.py --amqp amqps://broker.example --scheduler tcp://host:8786

Where there is no RabbitMQ: docker run --rm -p 127.0.0.1:5672:5672 rabbitmq
"""

import math

import click
import numpy as np
import pandas as pd

from atomizer_dask import AmqpConductor, Atomizer, DaskConductor, atom
from atomizer_dask.errors import ConductorError

GROUPS = 20_000


@atom(id="birthdays.shared")
def shared(people, groups, *, context):
    """Count the groups of people in which two have their birthday on the same day."""
    days = np.sort(context.rng.integers(365, size=(groups, people)), axis=1)
    return {"shared": np.count_nonzero((days[:, 1:] == days[:, :-1]).any(axis=1))}


@click.command(help=__doc__.partition("\n")[0])
@click.option(
    "--amqp",
    metavar="URL",
    envvar="ATOMIZER_AMQP_URL",
    default="amqp://localhost",
    show_default=True,
    show_envvar=True,
    help="The broker. A password is better off in the variable, which others do not see.",
)
@click.option("--queue", default="birthdays", show_default=True, help="It stays on the broker.")
@click.option("--seed", default=7, help="The same seed gives the same numbers.")
@click.option("--scheduler", metavar="ADDRESS", help="Of a Dask scheduler; else a local cluster.")
def main(amqp, queue, seed, scheduler):
    """Serve the atom, and send to it."""
    try:
        # First who may fail: without a broker no cluster is needed either.
        served, sent = AmqpConductor(amqp, queue), AmqpConductor(amqp, queue, serve=False)
    except ConductorError as error:
        raise click.ClickException(error.event.message) from error
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--amqp") from error
    with Atomizer(DaskConductor(scheduler), served, shared), Atomizer(sent) as sender:
        # What a node draws for an electron follows from its id.
        futures = {
            people: sender.send(
                "birthdays.shared", {"people": people, "groups": GROUPS}, id=f"{seed}-{people}"
            )
            for people in (10, 23, 40, 57, -1)
        }
        answers = pd.Series({people: future.result() for people, future in futures.items()})
    failed = answers.map(lambda properties: properties.error is not None)
    click.echo(table(answers[~failed]).to_string(index=False, float_format="{:.4f}".format))
    for people, properties in answers[failed].items():
        error = properties.error
        click.echo(f"\n{people} people: {error.kind}, {error.type}: {error.message}")


def table(answers):
    """Return the share of groups beside the value in the books."""
    counts = answers.map(lambda properties: properties.value()["shared"])
    exact = [1 - math.perm(365, people) / 365**people for people in answers.index]
    return pd.DataFrame({"people": counts.index, "share": counts.values / GROUPS, "exact": exact})


if __name__ == "__main__":
    main()
