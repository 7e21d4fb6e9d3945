"""deit-batch pull."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from deit_batch.commands._command import ExampleCommand, option
from deit_batch.commands._options import ALLOW_PICKLE, ID2LABEL, REVISION, VERBOSE
from deit_batch.commands._types import PLACE
from deit_batch.errors import UsageError
from deit_batch.limits import Limits
from deit_batch.options import Options

logger = logging.getLogger("deit_batch")


@click.command(
    cls=ExampleCommand,
    example="deit-batch pull facebook/deit-base-patch16-224 --out deit-base\n"
    "deit-batch score --model deit-base --input imgs/ --out preds.jsonl   # on a machine without a network",
    defaults=(Options, Limits),
)
@click.argument("model", type=PLACE, metavar="CHECKPOINT")
@option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New folder that the checkpoint is copied to, as safetensors in the form of transformers. [default: it stays "
    "in the cache only]",
)
@REVISION
@ALLOW_PICKLE
@ID2LABEL
@VERBOSE
def pull(model: str, out: Path | None, revision: str | None, allow_pickle: bool, id2label: str | None) -> None:
    """Download a checkpoint from the Hub and check that it works.

    The checkpoint is stored in the Hub's cache, and its folder is printed. For a container image or a machine without a
    network, copy the folder of --out there. A checkpoint that is here already, as a folder or a .pth file, can be
    written to --out, too. With --id2label, the copy in --out has these names.
    """
    if id2label and not out:
        raise UsageError("--id2label names the classes of the copy that --out writes: give --out")
    from deit_batch.model.save import save_checkpoint
    from deit_batch.plan import Plan

    options = Options(
        input="", model=model, revision=revision, allow_pickle=allow_pickle, id2label=id2label, device="cpu"
    )
    plan = Plan.of(options)
    plan.load().close()  # the weights, too: of a pickle, only they say what is in it
    checkpoint = plan.checkpoint
    logger.info("%s", checkpoint.description)
    click.echo(save_checkpoint(checkpoint, out, has_new_names=bool(id2label)) if out else checkpoint.folder)
