"""deit-batch plot."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from deit_batch.commands._command import ExampleCommand, option, section
from deit_batch.commands._options import CONFIG, LIMITS, MODEL, PREDICTIONS, VERBOSE, limits_from
from deit_batch.commands._types import PLACE
from deit_batch.limits import Limits
from deit_batch.options import Options
from deit_batch.system.extras import needing

logger = logging.getLogger("deit_batch")


@click.command(
    cls=ExampleCommand,
    example="deit-batch plot cat.jpg --out cat-scores.png",
    defaults=(Options, Limits),
)
@click.argument("image", type=PLACE)
@section("Model", *MODEL)
@section(
    "Output",
    option(
        "--out",
        required=True,
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="PNG",
        help="PNG file to write.",
    ),
    *PREDICTIONS,
    option(
        "--attention",
        is_flag=True,
        help="Also draw what the model looked at: the attention rollout of its class token, and of a distilled model "
        "also that of its distillation token, over the image as the model gets it. For DeiT and ViT.",
    ),
)
@section("Limits of one image", *LIMITS)
@section("Run", CONFIG, VERBOSE)
def plot(*, image: str, out: Path, attention: bool, **chosen: Any) -> None:
    """Score one image and draw it beside its labels and scores.

    IMAGE is a path, a URL or base64. The picture looks like the one in the model card. Needs the extra report.

    Exit status: 0 if the picture was written, 1 if the image can't be fetched, 2 if it can't be scored, or for
    wrong usage.
    """
    limits = limits_from(chosen)
    with needing("report"):
        from deit_batch.report.files import PICTURES, require_place, write_file
        from deit_batch.report.plot import plot as draw

        require_place(out, PICTURES)
        record, picture = draw(Options(input=image, limits=limits, workers=1, **chosen), attention=attention)
        write_file(out, picture)
        best = record.predictions[0] if record.predictions else {"label": "no label", "score": 0.0}
        logger.info("%s %.4f: %s", best["label"], best["score"], out)
