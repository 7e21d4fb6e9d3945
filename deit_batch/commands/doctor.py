"""deit-batch doctor."""

from __future__ import annotations

import click

from deit_batch.commands._command import ExampleCommand
from deit_batch.commands._options import ALLOW_PICKLE, MODEL_NAME, REVISION, VERBOSE
from deit_batch.errors import UsageError
from deit_batch.escaping import escape_controls


@click.command(cls=ExampleCommand, example="deit-batch doctor\ndeit-batch doctor --model my-model/")
@MODEL_NAME
@REVISION
@ALLOW_PICKLE
@VERBOSE
def doctor(model: str | None, revision: str | None, allow_pickle: bool) -> None:
    """Check the installation by scoring one image.

    Prints what an issue report should contain: versions, installed extras, processor, memory, GPU, whether the Hub can
    be reached, and which models are cached. The image is scored with the demo model, and by --model with that, too.

    Exit status: 0 if the image was scored, 1 if it can't be scored, 2 if the checkpoint can't be used.
    """
    from deit_batch.doctor import examined, score_one, try_model

    if model is None and (revision or allow_pickle):
        raise UsageError("--revision and --allow-pickle are of --model; give that, too")
    for name, value in examined():
        click.echo(escape_controls(f"{name}: {value}"))
    click.echo(escape_controls(f"demo image: {score_one()}"))
    if model is not None:
        for name, value in try_model(model, revision, allow_pickle):
            click.echo(escape_controls(f"{name}: {value}"))
