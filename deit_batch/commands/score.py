"""deit-batch score."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deit_batch.commands._command import ExampleCommand, option, section
from deit_batch.commands._engine import (
    CLUSTER,
    PART,
    choose_engine,
    cluster_from,
    is_in_parts,
    require_folder,
    require_here,
)
from deit_batch.commands._exit import DONE, exit_on_error, finish_scoring, is_quiet
from deit_batch.commands._options import (
    CONFIG,
    ERROR_THRESHOLD,
    FORM,
    FRESH,
    ID,
    INPUTS,
    KEEP,
    LIMITS,
    LOG_FORMAT,
    MODEL,
    PREDICTIONS,
    QUIET,
    SEVERAL_INPUTS,
    SPEED,
    TABLE_INPUT,
    TIME_LIMIT,
    VERBOSE,
    form_from,
    input_from,
    limits_from,
)
from deit_batch.commands._types import PLACE, ShardType
from deit_batch.errors import CheckpointAccessError, UsageError
from deit_batch.escaping import escape_controls
from deit_batch.limits import Limits
from deit_batch.options import Options
from deit_batch.output.form import PLAIN, Form
from deit_batch.output.formats import choose_format, names, suffixes
from deit_batch.output.part import PART_SIZE
from deit_batch.output.threshold import ErrorThreshold
from deit_batch.redaction import redact_all
from deit_batch.system.object_store import is_stored
from deit_batch.system.prometheus import write_metrics_file

if TYPE_CHECKING:
    from deit_batch.output.resume import Mode

FIRST_SHOWN = 5


@click.command(
    cls=ExampleCommand,
    example="deit-batch score --input imgs/ --out preds.jsonl",
    defaults=(Options, Limits),
)
@INPUTS
@section(
    "Input",
    SEVERAL_INPUTS,
    *TABLE_INPUT,
    KEEP,
    ID,
    option(
        "--shard",
        type=ShardType(),
        help="Score only every N-th input, starting from input I (0 to N-1). deit-batch merge joins the results of all "
        "shards.",
    ),
)
@section("Model", *MODEL)
@section(
    "Output",
    option(
        "--out",
        type=PLACE,
        metavar="FILE",
        help=f"File for the predictions ({', '.join(suffixes('predictions'))}), which may be on an object store "
        "(s3://…), or - for JSONL on stdout. DIR/ with a slash, or with --part-size or --engine ray, is a folder of "
        "several files. It appears when the run is complete.",
    ),
    option(
        "--format",
        type=click.Choice(names("predictions")),
        help="Format of the predictions; sample is one list of labels and scores per line, as in the model card. "
        "[default: by the ending of FILE]",
    ),
    *PREDICTIONS,
    *FORM,
    FRESH,
    option(
        "--incremental",
        is_flag=True,
        help="Score only images that are new, have changed, or failed before. All others keep their predictions from "
        "the last run with this FILE.",
    ),
    option(
        "--retry-failed",
        is_flag=True,
        help="Score again only the inputs that failed in a finished FILE (.jsonl).",
    ),
    PART,
    ERROR_THRESHOLD,
)
@section("Speed", *SPEED)
@section("Cluster", *CLUSTER)
@section("Limits of one image", *LIMITS)
@section(
    "Run",
    option(
        "--dry-run", is_flag=True, help="Show what would be scored, with which model and options. Nothing is scored."
    ),
    option(
        "--metrics-file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="PROM",
        help="Write metrics of the run to this file, for the textfile collector of Prometheus' node exporter.",
    ),
    TIME_LIMIT,
    CONFIG,
    QUIET,
    VERBOSE,
    LOG_FORMAT,
)
def score(
    *,
    out: str | None,
    format: str | None,
    fresh: bool,
    incremental: bool,
    retry_failed: bool,
    part_size: int | None,
    error_threshold: ErrorThreshold | None,
    engine: str,
    dry_run: bool,
    metrics_file: Path | None,
    review: Path | None,
    time_limit: float | None,
    **chosen: Any,
) -> None:
    """Score images and write one record of predictions for each.

    Inputs are given by --input or as INPUTS. Records are in input order. Run the same command again to continue a run
    that was stopped.

    Exit status: 0 if all images were scored, 1 if the run failed, 2 for wrong usage, 3 if the run is complete but some
    inputs failed (their records say why), 130 if interrupted. Every option can also be set by an environment variable:
    for example --batch-size by DEIT_BATCH_SCORE_BATCH_SIZE.
    """
    form = form_from(chosen)
    chosen["limits"] = limits_from(chosen)
    cluster = cluster_from(chosen)
    chosen["input"] = input_from(chosen)
    if dry_run:
        sys.exit(_dry_run(chosen, None if is_in_parts(out, part_size, engine) else out, format))
    with write_metrics_file(metrics_file, good=DONE) as ending, exit_on_error():
        mode = _mode(out, fresh=fresh, incremental=incremental, retry_failed=retry_failed)
        if out == "-" and time_limit:
            raise UsageError("--out -: stdout keeps nothing that a run after --time-limit could go on from")
        options, target = Options(**chosen), _given(out)
        in_parts = is_in_parts(target, part_size, engine)
        _check_form(form, review, out=target, mode=mode, in_parts=in_parts, shard=options.shard)
        common: dict[str, Any] = {
            "out": target,
            "format": format,
            "error_threshold": error_threshold,
            "quiet": is_quiet(),
            "begun": ending.begun,
            "time_limit": time_limit,
        }
        if in_parts:
            _check_parts(options, target, mode, incremental=incremental)
            open_engine = choose_engine(engine, cluster)
            from deit_batch import block_runner

            outcome = block_runner.run(
                options, open_engine, part_size=part_size or PART_SIZE, fresh=mode == "fresh", **common
            )
        else:
            require_here(cluster)
            from deit_batch import runner

            written = (("--review", review), ("--metrics-file", metrics_file))
            others = [(option, Path(file)) for option, file in written if file]
            outcome = runner.run(
                options,
                mode=mode,
                incremental=incremental,
                form=form,
                also_written=others,
                remedies="--fresh or --incremental",
                **common,
            )
            if incremental:
                ending.kept, ending.vanished = outcome.kept, outcome.vanished
        if review:
            from deit_batch.output.convert import write_review

            write_review(Path(target), review, form.unsure_below)
        finish_scoring(outcome, "scored", target, error_threshold)


def _given(out: str | None) -> str:
    if out is None:
        raise UsageError("Missing option '--out'. Use - for stdout.")
    return out


def _check_form(form: Form, review: Path | None, *, out: str, mode: Mode, in_parts: bool, shard: object) -> None:
    """Raises UsageError where the result can't have the form that is asked for, or no list for review be made of it."""
    if form != PLAIN and (in_parts or shard or mode == "retry-failed"):
        raise UsageError(
            "--layout, --flat, --excel and --unsure-below go neither with a folder of parts nor with --shard nor with "
            "--retry-failed; use deit-batch convert on the result"
        )
    if not review:
        return
    from deit_batch.output.convert import require_review

    require_review(review, form.unsure_below)
    if form.layout != "record" or is_stored(out):
        raise UsageError("--review is made of a result that is read back: leave out --layout, and let --out be a file")


def _mode(out: str | None, *, fresh: bool, incremental: bool, retry_failed: bool) -> Mode:
    if retry_failed and (fresh or incremental):
        raise UsageError(
            "--retry-failed goes neither with --fresh nor with --incremental; both score what failed anyway"
        )
    if out == "-" and (incremental or retry_failed):
        raise UsageError("--out -: stdout keeps nothing that --incremental or --retry-failed could go on from")
    return "fresh" if fresh else "retry-failed" if retry_failed else "continue"


def _check_parts(options: Options, out: str, mode: Mode, *, incremental: bool) -> None:
    """Raises UsageError for what a result in parts can't be or have."""
    require_folder(out, "predictions")
    local = "--incremental" if incremental else "--retry-failed" if mode == "retry-failed" else None
    local = "--shard" if options.shard else local
    if local:
        raise UsageError(
            f"{local} is for a result in one file; one in parts can be continued, or started over with --fresh"
        )


def _dry_run(chosen: dict[str, Any], out: str | None, format: str | None) -> int:
    from deit_batch.input.passed_over import counts_of
    from deit_batch.io import Failure, counted, counts

    options = Options(**chosen)
    if out is not None:
        choose_format(out, format, options.keep)
    source = options.open_source()
    kinds: Counter[str] = Counter()
    first: list[str] = []
    for reference in source.references:
        location = reference.location
        kind = f"{location.type}s" if isinstance(location, Failure) else _LOCATION_NAMES[type(location).__name__]
        kinds[kind] += 1
        if len(first) < FIRST_SHOWN:
            first.append(reference.image or f"({kind.removesuffix('s')})")
    click.echo(f"{counted(kinds.total(), 'input')}: {counts(kinds) or 'none'}")
    if source.passed_over:
        click.echo(f"passed over: {escape_controls(counts_of(source.passed_over))}")
    for image in first:
        click.echo(f"  {escape_controls(image)}")
    if kinds.total() > len(first):
        click.echo("  …")
    click.echo("options:")
    context = click.get_current_context()
    given = {name: value for name, value in context.params.items() if name != "inputs"} | {"input": options.input}
    for name, value in sorted(given.items()):
        shown = "all" if name == "top_k" and value is None else redact_all(value)
        click.echo(f"  {name.replace('_', '-')} = {json.dumps(shown, default=str)}")
    for line in _describe_model(options):
        click.echo(escape_controls(line))
    return DONE


def _describe_model(options: Options) -> Iterator[str]:
    """What is on this machine of it; nothing is fetched. Raises CheckpointError if a run would be refused."""
    from deit_batch.io import counted
    from deit_batch.plan import checkpoint_of, outline_of, recipe_of

    try:
        checkpoint = checkpoint_of(options, fetch=False)
        recipe = recipe_of(checkpoint, options, fetch=False)
    except CheckpointAccessError:
        yield f"model: {options.model}: not on this machine, or not all of it; a run fetches it from the Hub"
        return
    commit = f", commit {checkpoint.commit}" if checkpoint.commit else ""
    outline_of(checkpoint, recipe)
    height, width = recipe.size
    yield (
        f"model: {checkpoint.name}, in the form of {checkpoint.form}{commit}: {checkpoint.architecture}, "
        f"{counted(len(checkpoint.labels), 'label')}, {height}x{width} pixels, {checkpoint.weights}"
    )
    yield f"runtime: {checkpoint.runtime}"
    yield f"recipe: {json.dumps(recipe.as_dict())}"


_LOCATION_NAMES = {
    "LocalFile": "files",
    "Url": "URLs",
    "StoredFile": "objects",
    "Base64": "base64 strings",
    "bytes": "images in the table",
}
