"""deit-batch merge."""

from __future__ import annotations

from collections import Counter

import click

from deit_batch.commands._command import ExampleCommand, option, section
from deit_batch.commands._exit import finish_scoring
from deit_batch.commands._options import ERROR_THRESHOLD, FRESH, LOG_FORMAT, QUIET, VERBOSE
from deit_batch.commands._types import PLACE
from deit_batch.output.formats import names
from deit_batch.output.threshold import ErrorThreshold


@click.command(
    cls=ExampleCommand,
    example="deit-batch merge part-*.jsonl --out preds.jsonl",
)
@click.argument("shards", nargs=-1, required=True, type=click.Path())
@section(
    "Output",
    option(
        "--out",
        required=True,
        type=PLACE,
        metavar="FILE",
        help="File for the records, in any format that score can write. It appears when it is complete.",
    ),
    option(
        "--format",
        type=click.Choice(names("predictions")),
        help="Format of the records. [default: by the ending of FILE]",
    ),
    FRESH,
    ERROR_THRESHOLD,
)
@section("Run", QUIET, VERBOSE, LOG_FORMAT)
def merge(
    *,
    shards: tuple[str, ...],
    out: str,
    format: str | None,
    fresh: bool,
    error_threshold: ErrorThreshold | None,
) -> None:
    """Merge the results of all shards of a run into one file.

    SHARDS are the files that score --shard has written, or the folder that score --engine ray has written, here or on
    an object store (s3://…). The records are in input order, as one run without --shard would have written them.

    Nothing is written unless all shards are there, complete, unchanged and of the same run. The exit statuses are those
    of score.
    """
    from deit_batch.output import merge
    from deit_batch.runner import RunResult

    tally = merge.merge(shards, out, format=format, mode="fresh" if fresh else "continue")
    outcome = RunResult(tally, {}, Counter())
    finish_scoring(outcome, "scored", str(out), error_threshold)
