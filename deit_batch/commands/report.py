"""deit-batch report."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from deit_batch.commands._command import ExampleCommand, option, section
from deit_batch.commands._exit import DONE
from deit_batch.commands._options import (
    ALLOW_PICKLE,
    CONFIG,
    FETCH,
    ID,
    IMAGES,
    LABEL_COLUMN,
    LABEL_MAP,
    LABELS,
    LIMITS,
    LOG_FORMAT,
    QUIET,
    REVISION,
    ROWS,
    THUMBNAILS,
    VERBOSE,
    limits_from,
)
from deit_batch.commands._types import PLACE, PREDICTIONS_FILE, WholeNumber
from deit_batch.io import counted
from deit_batch.limits import Limits
from deit_batch.options import Options
from deit_batch.system.extras import needing

logger = logging.getLogger("deit_batch")


@click.command(
    cls=ExampleCommand,
    example="deit-batch report preds.jsonl --out report.html",
    defaults=(Options, Limits),
)
@click.argument("predictions", type=PREDICTIONS_FILE)
@section("Labels", LABELS, LABEL_COLUMN, LABEL_MAP, ID)
@section(
    "Pictures",
    IMAGES,
    FETCH,
    THUMBNAILS,
    option(
        "--gallery",
        default=1000,
        show_default=True,
        type=WholeNumber(min=0),
        metavar="N",
        help="Largest number of images of which the page holds a picture; the others are linked to their file or URL.",
    ),
    option(
        "--attention",
        type=PLACE,
        metavar="CHECKPOINT",
        help="Colour the pictures by what this model, a DeiT or ViT, looked at: its attention rollout, from blue for "
        "the least to yellow for the most. The pictures are then as the model gets them.",
    ),
    REVISION,
    ALLOW_PICKLE,
)
@section(
    "Output",
    option(
        "--out",
        required=True,
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="HTML",
        help="HTML file to write.",
    ),
    option("--title", metavar="TEXT", help="Title of the page. [default: the name of the predictions file]"),
    ROWS,
)
@section("Limits of one image", *LIMITS)
@section("Run", CONFIG, QUIET, VERBOSE, LOG_FORMAT)
def report(**chosen: Any) -> None:
    """Write an HTML page about the predictions of a run.

    PREDICTIONS is a file of score that says which image each record is of. The page is a single file that needs no
    other files. Needs the extra report.

    Exit status: 0 if the page was written, 1 if that failed, 2 for wrong usage.
    """
    limits = limits_from(chosen)
    with needing("report"):
        from deit_batch.report.files import PAGES, require_place
        from deit_batch.report.report import ReportRequest
        from deit_batch.report.report import report as write

        require_place(chosen["out"], PAGES)
        summary = write(ReportRequest(limits=limits, **chosen))
        logger.info(
            "%s, %s failed: %s", counted(summary.tally.inputs, "image"), f"{summary.tally.failed:,}", chosen["out"]
        )
        sys.exit(DONE)
