"""deit-batch convert."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, get_args

import click

from deit_batch.commands._command import ExampleCommand, option, section
from deit_batch.commands._exit import DONE
from deit_batch.commands._options import CONFIG, LOG_FORMAT, QUIET, VERBOSE
from deit_batch.commands._types import SHARE, TopK
from deit_batch.io import counted
from deit_batch.output.formats import names
from deit_batch.output.layout import Layout

logger = logging.getLogger("deit_batch")


@click.command(cls=ExampleCommand, example="deit-batch convert preds.jsonl --out preds.csv --top-k 1 --excel")
@click.argument("predictions", type=click.Path(path_type=Path, exists=True, dir_okay=False))
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
    option(
        "--layout",
        type=click.Choice(get_args(Layout)),
        default="record",
        show_default=True,
        help="What a row of CSV or Parquet is. With record, it is an image, with its labels in one column. With wide, "
        "it is an image, with columns label_1, score_1, label_2 and so on. With long, it is one label of an image.",
    ),
    option("--flat", is_flag=True, help="Add the best label and its score to each record, in JSONL and Parquet."),
    option(
        "--excel",
        is_flag=True,
        help="Write CSV for spreadsheets: with a byte order mark, and an apostrophe before text that would be a "
        "formula.",
    ),
)
@section("Run", CONFIG, QUIET, VERBOSE, LOG_FORMAT)
def convert(**chosen: Any) -> None:
    """Write a finished result in another form, without scoring again.

    PREDICTIONS is a file of score that says which image each record is of.

    Exit status: 0 if the file was written, 1 if that failed, 2 for wrong usage.
    """
    from deit_batch.output.convert import Conversion
    from deit_batch.output.convert import convert as write

    tally = write(Conversion(**chosen))
    logger.info("%s, %s failed: %s", counted(tally.inputs, "image"), f"{tally.failed:,}", chosen["out"])
    sys.exit(DONE)
