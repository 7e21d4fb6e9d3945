"""deit-batch merge."""

from __future__ import annotations

from collections import Counter

import click

from deit_batch.commands._exit import finish
from deit_batch.commands._options import (
    ERROR_THRESHOLD,
    FRESH,
    LOG_FORMAT,
    QUIET,
    VERBOSE,
    ExampleCommand,
    option,
    section,
)
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
        help="Where the records go, as of score. Appears when it is whole.",
    ),
    option("--format", type=click.Choice(names("predictions")), help="Instead of the format that FILE's ending says."),
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
    """Make one result of all SHARDS of a run, in the order of its input: what one run without --shard would have left.
    SHARDS may also be the one folder that a run with --engine ray has left.

    Nothing is written unless all are there, finished, unchanged, and of one run. Exit status as of score.
    """
    from deit_batch.output import merge
    from deit_batch.runner import Outcome

    tally = merge.merge(shards, out, format=format, mode="fresh" if fresh else "continue")
    outcome = Outcome(tally, {}, Counter())
    finish(f"{outcome.summary('scored')}: {out}", too_many_failed=outcome.has_failures_beyond(error_threshold))
