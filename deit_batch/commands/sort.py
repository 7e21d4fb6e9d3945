"""deit-batch sort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deit_batch.commands._command import ExampleCommand, option, section
from deit_batch.commands._exit import finish
from deit_batch.commands._options import CONFIG, LOG_FORMAT, QUIET, VERBOSE
from deit_batch.commands._types import PREDICTIONS_FILE
from deit_batch.io import counted

_DONE = {"link": "linked", "copy": "copied", "move": "moved"}


class Below(click.ParamType[tuple[float, str]]):
    name = "X=NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, str]:
        if isinstance(value, tuple):
            return value
        number, _, name = str(value).partition("=")
        try:
            score = float(number)
        except ValueError:
            score = -1.0
        if not (0 <= score <= 1 and name):
            self.fail(f"{value!r} is not X=NAME with X from 0 to 1", param, ctx)
        return score, name


@click.command(cls=ExampleCommand, example="deit-batch sort preds.jsonl --out sorted/ --below 0.5=review --dry-run")
@click.argument("predictions", type=PREDICTIONS_FILE)
@section(
    "Output",
    option(
        "--out",
        required=True,
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="New folder for the folders of images. An interrupted run into it goes on.",
    ),
    option(
        "--by",
        type=click.Choice(["link", "copy", "move"]),
        default="link",
        show_default=True,
        help="How images get there. With link, they stay where they are, and links lead to them.",
    ),
    option(
        "--below",
        type=Below(),
        help="Put images whose best score is below X, or that have no label, into the folder NAME instead.",
    ),
    option(
        "--failed",
        default="failed",
        show_default=True,
        metavar="NAME",
        help="Folder for images that could not be scored.",
    ),
    option("--dry-run", is_flag=True, help="Print how many images each folder would get, and write nothing."),
)
@section(
    "Pictures",
    option(
        "--images",
        type=click.Path(exists=True, file_okay=False),
        metavar="DIR",
        help="Folder that relative image names start from, if the images have been moved. [default: images are read "
        "from where the run read them]",
    ),
)
@section("Run", CONFIG, QUIET, VERBOSE, LOG_FORMAT)
def sort(*, dry_run: bool, **chosen: Any) -> None:
    """Sort the images of a run into folders by their best labels.

    PREDICTIONS is a file of score that says which image each record is of. Only images that are files of their own are
    sorted.

    Exit status: 0 if all images are sorted, 3 if some are missing, 1 if the folder can't be written, 2 for wrong usage,
    130 or 143 if a signal stopped it; the same command then goes on.
    """
    from deit_batch.report.sorting import Sorting, folders_of, preview, sort_images
    from deit_batch.system.signals import stop_on_signals

    request = Sorting(**chosen)
    with stop_on_signals() as stop:
        result = preview(request) if dry_run else sort_images(request, stop.check)
    if dry_run:
        for folder, number in folders_of(result):
            click.echo(f"{number}\t{folder}")
    what = f"would be {_DONE[request.by]}" if dry_run else _DONE[request.by]
    total = result.folders.total()
    before = f" ({result.there:,} of them before)" if result.there else ""
    missing = f", {result.missing:,} not sorted" if result.missing else ""
    again = f", {counted(result.again, 'record')} of the same images" if result.again else ""
    finish(
        f"{counted(total, 'image')} {what}{before}, {counted(len(result.folders), 'folder')}{missing}{again}: "
        f"{request.out}",
        some_failed=result.missing > 0,
        too_many_failed=result.missing > 0,
    )
