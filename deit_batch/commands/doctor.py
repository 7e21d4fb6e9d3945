"""deit-batch doctor."""

from __future__ import annotations

import click

from deit_batch.commands._options import VERBOSE, ExampleCommand


@click.command(cls=ExampleCommand, example="deit-batch doctor")
@VERBOSE
def doctor() -> None:
    """Say what is here, and score one image: what to paste into an issue.

    Versions, extras, processor, memory, GPU, whether the Hub can be reached, the models that are cached. Exit status 1
    if the image can't be scored.
    """
    from deit_batch.doctor import examined, score_one

    for name, value in examined():
        click.echo(f"{name}: {value}")
    click.echo(f"demo image: {score_one()}")
