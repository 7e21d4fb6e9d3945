"""deit-batch export."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from deit_batch.commands._command import ExampleCommand, option
from deit_batch.commands._options import ALLOW_PICKLE, ID2LABEL, REVISION, VERBOSE
from deit_batch.commands._types import PLACE
from deit_batch.limits import Limits
from deit_batch.model.checkpoint import find_checkpoint
from deit_batch.model.labels import warn_of_shared_names
from deit_batch.options import Options
from deit_batch.system.atomic import make_missing_folder

logger = logging.getLogger("deit_batch")


@click.command(
    cls=ExampleCommand,
    example="deit-batch export facebook/deit-base-patch16-224 --dtype int8 --out deit-int8\n"
    "deit-batch score --model deit-int8 --input imgs/ --out preds.jsonl",
    defaults=(Options, Limits),
)
@click.argument("model", type=PLACE, metavar="CHECKPOINT")
@option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New folder for the exported checkpoint.",
)
@option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "int8"]),
    help="Data type of the exported weights. int8 is several times faster and a little less exact.",
)
@REVISION
@ALLOW_PICKLE
@ID2LABEL
@VERBOSE
def export(model: str, out: Path, dtype: str, revision: str | None, allow_pickle: bool, id2label: str | None) -> None:
    """Export a checkpoint to ONNX.

    The result is a folder that score takes as --model. It starts faster than the checkpoint, and runs on CPUs only.
    Needs the extra onnx.
    """
    checkpoint = find_checkpoint(model, revision=revision, allow_pickle=allow_pickle, id2label=id2label)
    warn_of_shared_names(checkpoint.labels, checkpoint.name)
    from deit_batch.model.onnx import export as write

    make_missing_folder(out)
    write(checkpoint, out, dtype)
    logger.info("%s, %s: %s", checkpoint.name, dtype, out)
