"""deit-batch doctor."""

from __future__ import annotations

import click

from deit_batch.commands._command import ExampleCommand
from deit_batch.commands._options import VERBOSE
from deit_batch.escaping import escape_controls


@click.command(cls=ExampleCommand, example="deit-batch doctor")
@VERBOSE
def doctor() -> None:
    """Check the installation by scoring one image.

    Prints what an issue report should contain: versions, installed extras, processor, memory, GPU, whether the Hub can
    be reached, and which models are cached.

    Exit status: 0 if the image was scored, 1 if it can't be scored.
    """
    from deit_batch.doctor import examined, score_one

    for name, value in examined():
        click.echo(escape_controls(f"{name}: {value}"))
    click.echo(escape_controls(f"demo image: {score_one()}"))
