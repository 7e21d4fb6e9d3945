"""deit-batch merge."""

from __future__ import annotations

from collections import Counter

import click

from deit_batch.commands._exit import finish, told
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
from deit_batch.output.formats import FORMATS


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
    option("--format", type=click.Choice(FORMATS), help="Instead of the format that FILE's ending says."),
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
    error_threshold: str | None,
    quiet: bool,
    verbose: bool,
    log_format: str,
) -> None:
    """Make one result of all SHARDS of a run, in the order of its input: what one run without --shard would have left.
    SHARDS may also be the one folder that a run with --engine ray has left.

    Nothing is written unless all are there, finished, unchanged, and of one run. Exit status as of score.
    """
    from deit_batch.system.logs import set_up_logging

    set_up_logging(quiet=quiet, verbose=verbose, log_format=log_format)
    with told(verbose):
        from deit_batch.output import merge
        from deit_batch.runner import ErrorThreshold, Outcome

        tally = merge.merge(shards, out, format=format, mode="fresh" if fresh else "continue")
        outcome = Outcome(tally, {}, Counter())
        threshold = None if error_threshold is None else ErrorThreshold.parse(error_threshold)
        finish(f"{outcome.summary('scored')}: {out}", too_many_failed=outcome.has_failures_beyond(threshold))
