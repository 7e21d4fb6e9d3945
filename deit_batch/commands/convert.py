"""deit-batch convert."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from deit_batch.commands._command import ExampleCommand, option, section
from deit_batch.commands._exit import DONE
from deit_batch.commands._options import CONFIG, FORM, LOG_FORMAT, QUIET, VERBOSE, form_from
from deit_batch.commands._types import PREDICTIONS_FILE, SHARE, TopK
from deit_batch.io import counted
from deit_batch.output.formats import names

logger = logging.getLogger("deit_batch")


@click.command(cls=ExampleCommand, example="deit-batch convert preds.jsonl --out preds.csv --top-k 1 --excel")
@click.argument("predictions", type=PREDICTIONS_FILE)
@section(
    "Output",
    option(
        "--out",
        required=True,
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="File for the records, in any format that score can write. A file that is there is replaced.",
    ),
    option(
        "--format",
        type=click.Choice(names("predictions")),
        help="Format of the records. [default: by the ending of FILE]",
    ),
    option(
        "--top-k",
        type=TopK(),
        metavar="N|all",
        help="Number of labels that each image keeps, best first. [default: all that PREDICTIONS has]",
    ),
    option(
        "--threshold",
        type=SHARE,
        default=0.0,
        metavar="X",
        help="Leave out labels whose score is below this.",
    ),
    *FORM,
)
@section("Run", CONFIG, QUIET, VERBOSE, LOG_FORMAT)
def convert(**chosen: Any) -> None:
    """Write a finished result in another form, without scoring again.

    PREDICTIONS is a file of score that says which image each record is of.

    Exit status: 0 if the file was written, 1 if that failed, 2 for wrong usage.
    """
    from deit_batch.output.convert import Conversion, write_review
    from deit_batch.output.convert import convert as write

    review = chosen.pop("review")
    form = form_from(chosen)
    tally = write(Conversion(**chosen, form=form))
    if review:
        write_review(chosen["predictions"], review, form.unsure_below)
    logger.info("%s, %s failed: %s", counted(tally.inputs, "image"), f"{tally.failed:,}", chosen["out"])
    sys.exit(DONE)
