"""deit-batch compare."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from deit_batch.commands._command import ExampleCommand, option, section
from deit_batch.commands._exit import BELOW, DONE
from deit_batch.commands._options import (
    CONFIG,
    FETCH,
    ID,
    IMAGES,
    JUNIT,
    LABEL_COLUMN,
    LABEL_MAP,
    LABELS,
    LIMITS,
    LOG_FORMAT,
    QUIET,
    ROWS,
    THUMBNAILS,
    VERBOSE,
    limits_from,
)
from deit_batch.commands._types import PREDICTIONS_FILE, SHARE
from deit_batch.io import counted
from deit_batch.limits import Limits
from deit_batch.options import Options
from deit_batch.system.extras import needing
from deit_batch.system.junit import Case, write_junit

logger = logging.getLogger("deit_batch")


@click.command(
    cls=ExampleCommand,
    example="deit-batch compare old.jsonl new.jsonl --out changes.html --out changes.json --fail-under 0.99",
    defaults=(Options, Limits),
)
@click.argument("old", type=PREDICTIONS_FILE)
@click.argument("new", type=PREDICTIONS_FILE)
@section(
    "Comparison",
    option(
        "--fail-under",
        type=SHARE,
        metavar="AGREEMENT",
        help="Exit with 4 if the share of images with the same best label in both files is below this.",
    ),
)
@section("Labels", LABELS, LABEL_COLUMN, LABEL_MAP, ID)
@section(
    "Output",
    option(
        "--out",
        multiple=True,
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="File to write: an HTML page (.html), or the whole comparison as JSON (.json). Repeatable.",
    ),
    option(
        "--format",
        default="text",
        show_default=True,
        type=click.Choice(["text", "json"]),
        help="Format of the comparison on stdout.",
    ),
    JUNIT,
    ROWS,
)
@section("Pictures", IMAGES, FETCH, THUMBNAILS)
@section("Limits of one image", *LIMITS)
@section("Run", CONFIG, QUIET, VERBOSE, LOG_FORMAT)
def compare(
    *,
    old: Path,
    new: Path,
    fail_under: float | None,
    out: tuple[Path, ...],
    format: str,
    junit: Path | None,
    rows: int,
    images: str | None,
    fetch: bool,
    thumbnails: int,
    labels: str | None,
    label_column: str | None,
    label_map: str | None,
    id: str | None,
    **chosen: Any,
) -> None:
    """Compare two files of predictions of the same images.

    OLD and NEW are files of score that say which image each record is of. With labels, it says which is better. Needs
    the extra report.

    Exit status: 0 if the files were compared, 1 if that failed, 2 for wrong usage or if no image is in both, 4 if the
    agreement is below --fail-under.
    """
    limits = limits_from(chosen)
    with write_junit(junit, "deit-batch compare") as cases, needing("report"):
        from deit_batch.report import changes, comparison, verdict
        from deit_batch.report.files import JSON, PAGES, require_place

        for path in out:
            require_place(path, (*PAGES, *JSON))
        find_truths = partial(verdict.find_truths, old, new, labels, column=label_column, label_map=label_map, id=id)
        compared = comparison.compare_in_any_folder(old, new, find_truths, most_rows=rows, most_shown=thumbnails)
        if compared.verdict:
            verdict.require_judged(compared.verdict, labels)
        document = compared.as_dict(fail_under)
        changes.write(compared, document, out, images=images, fetch=fetch, limits=limits)
        click.echo(changes.as_json(document) if format == "json" else changes.as_text(document), nl=False)
        share, passed = document["agreement"], document["passed"]
        message = "the agreement " + ("can't be had" if share is None else f"is {share:.4f}")
        if fail_under is not None and share is not None and (lost := document["images"]["only_in_old"]):
            whole, images = compared.agreement_of_old, counted(lost, "image")
            message += f", and {whole:.4f} with {images} that {'is' if lost == 1 else 'are'} only in {old}"
        if not passed:
            message += "" if share is None else f", under {fail_under:g}"
            logger.error("--fail-under: %s", message)
        cases.append(Case("agreement", "passed" if passed else "failure", message))
        sys.exit(DONE if passed else BELOW)
