"""deit-batch embed."""

from __future__ import annotations

from typing import Any

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
from deit_batch.commands._exit import finish_scoring, is_quiet
from deit_batch.commands._options import (
    CONFIG,
    ERROR_THRESHOLD,
    FRESH,
    ID,
    INPUTS,
    KEEP,
    LIMITS,
    LOG_FORMAT,
    MODEL,
    QUIET,
    SEVERAL_INPUTS,
    SPEED,
    TABLE_INPUT,
    TIME_LIMIT,
    VERBOSE,
    input_from,
    limits_from,
)
from deit_batch.commands._types import PLACE
from deit_batch.limits import Limits
from deit_batch.model.architecture import FEATURES
from deit_batch.options import Options
from deit_batch.output.part import PART_SIZE
from deit_batch.output.threshold import ErrorThreshold


@click.command(
    cls=ExampleCommand,
    example="deit-batch embed --input imgs/ --out features.parquet",
    defaults=(Options, Limits),
)
@INPUTS
@section("Input", SEVERAL_INPUTS, *TABLE_INPUT, KEEP, ID)
@section("Model", *MODEL)
@section(
    "Output",
    option(
        "--out",
        required=True,
        type=PLACE,
        metavar="FILE",
        help="File for the features: .parquet, or .npy with the names of the inputs in FILE.rows.jsonl. DIR/ with a "
        "slash, or with --part-size or --engine ray, is a folder of several .parquet files. It appears when the run is "
        "complete.",
    ),
    option(
        "--features",
        default=["cls"],
        show_default=True,
        multiple=True,
        type=click.Choice(FEATURES),
        help="Features to write: those of the [CLS] token, those of the distillation token, or the mean over the "
        "patches. Repeatable.",
    ),
    FRESH,
    PART,
    ERROR_THRESHOLD,
)
@section("Speed", *SPEED)
@section("Cluster", *CLUSTER)
@section("Limits of one image", *LIMITS)
@section("Run", TIME_LIMIT, CONFIG, QUIET, VERBOSE, LOG_FORMAT)
def embed(
    *,
    out: str,
    fresh: bool,
    part_size: int | None,
    engine: str,
    error_threshold: ErrorThreshold | None,
    time_limit: float | None,
    **chosen: Any,
) -> None:
    """Compute features (embeddings) of images with the encoder.

    Inputs are given by --input or as INPUTS. The result has one row for each input, in input order. Run the same
    command again to continue a run that was stopped.

    The exit statuses are those of score: 3 if some inputs failed; these have no features.
    """
    chosen["limits"] = limits_from(chosen)
    cluster = cluster_from(chosen)
    chosen["input"] = input_from(chosen)
    options = Options(**chosen)
    common: dict[str, Any] = {
        "out": out,
        "error_threshold": error_threshold,
        "quiet": is_quiet(),
        "time_limit": time_limit,
    }
    if is_in_parts(out, part_size, engine):
        require_folder(out, "features")
        open_engine = choose_engine(engine, cluster)
        from deit_batch import block_runner

        outcome = block_runner.run(options, open_engine, part_size=part_size or PART_SIZE, fresh=fresh, **common)
    else:
        require_here(cluster)
        from deit_batch import runner

        outcome = runner.run(options, mode="fresh" if fresh else "continue", **common)
    finish_scoring(outcome, "embedded", str(out), error_threshold)
