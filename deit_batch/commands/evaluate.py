"""deit-batch evaluate."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from deit_batch.commands._command import ExampleCommand, option, section
from deit_batch.commands._engine import CLUSTER, choose_engine, cluster_from, is_in_parts
from deit_batch.commands._exit import BELOW, DONE, SOME_FAILED, is_quiet, level_of
from deit_batch.commands._options import (
    CONFIG,
    ID,
    JUNIT,
    LABEL_COLUMN,
    LABEL_MAP,
    LIMITS,
    LOG_FORMAT,
    MODEL,
    ONE_INPUT,
    QUIET,
    SPEED,
    TABLE_INPUT,
    VERBOSE,
    limits_from,
)
from deit_batch.commands._types import AT_LEAST_ONE, PREDICTIONS_FILE, SHARE, Threshold, TopK
from deit_batch.errors import UsageError
from deit_batch.evaluation.names import (
    BELOW_ZERO,
    CARD_NAMES,
    COMPARED,
    LOWER_IS_BETTER,
    METRICS,
    NAMES,
    PAGE,
    PARTS,
    PLOTS,
    PREDICTIONS,
    REPORT,
)
from deit_batch.io import counted
from deit_batch.limits import Limits
from deit_batch.names import what_is_meant
from deit_batch.options import Options
from deit_batch.output.formats import readable_suffixes
from deit_batch.output.part import PART_SIZE
from deit_batch.output.threshold import ErrorThreshold
from deit_batch.system.extras import needing
from deit_batch.system.junit import Case, write_junit

logger = logging.getLogger("deit_batch")


class Baseline(click.Path):
    """The metrics.json of an evaluation, or the folder that it is in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fspath(value))
        return super().convert(path / METRICS if path.is_dir() else value, param, ctx)


class _Bound(click.ParamType[tuple[str, float]]):
    """A metric, and a number that it is held against."""

    name = "METRIC=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        metric, _, text = str(value).partition("=")
        if refusal := self.refuse_metric(CARD_NAMES.get(metric, metric), metric):
            self.fail(refusal, param, ctx)
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if refusal := self.refuse_number(CARD_NAMES.get(metric, metric), number, text):
            self.fail(refusal, param, ctx)
        return metric, number

    def refuse_metric(self, metric: str, given: str) -> str:
        """Why it can't be held against a number; empty if it can. `given`: as the user wrote its name."""
        raise NotImplementedError

    def refuse_number(self, metric: str, number: float, given: str) -> str:
        """The same of the number, which is NaN if there is none."""
        raise NotImplementedError


class Gate(_Bound):
    def refuse_metric(self, metric: str, given: str) -> str:
        if metric not in NAMES:
            meant = what_is_meant(given, [*NAMES, *CARD_NAMES])
            return f"{given!r}{meant} is no metric; there are {', '.join(sorted(NAMES))}"
        return f"{given} is the better the lower: nothing is under it" if metric in LOWER_IS_BETTER else ""

    def refuse_number(self, metric: str, number: float, given: str) -> str:
        least = -1 if metric in BELOW_ZERO else 0
        return "" if least <= number <= 1 else f"{given!r} is no number in {least}..1, which {metric} may be, as in 0.8"


class Drop(_Bound):
    def refuse_metric(self, metric: str, given: str) -> str:
        if metric in COMPARED:
            return ""
        meant = what_is_meant(given, COMPARED)
        return f"{given!r}{meant} is not compared with a baseline; what is: {', '.join(sorted(COMPARED))}"

    def refuse_number(self, metric: str, number: float, given: str) -> str:
        return "" if 0 <= number < math.inf else f"{given!r} is no number from 0 up, as in accuracy=0.01"


def _written_for(out: str, params: Mapping[str, Any]) -> Sequence[str]:
    """Files in the folder, of which only these are replaced."""
    from deit_batch.output.file_names import written_for

    files = [os.path.join(out, name) for name in (METRICS, REPORT, PAGE, *PLOTS, PARTS)]
    return files if params["predictions"] else [*files, *written_for(os.path.join(out, PREDICTIONS))]


@click.command(
    cls=ExampleCommand,
    example="deit-batch evaluate --input val/ --model ./fridge-deit --out evaluation --fail-under accuracy=0.9",
    defaults=(Options, Limits),
    written_for=_written_for,
)
@section(
    "Input",
    ONE_INPUT,
    *TABLE_INPUT,
    ID,
    LABEL_COLUMN,
    LABEL_MAP,
    option(
        "--predictions",
        type=PREDICTIONS_FILE,
        metavar="FILE",
        help=f"Evaluate the predictions in this file ({readable_suffixes()} of score) instead of scoring the images. "
        "They are matched with the labels by the images' names.",
    ),
)
@section("Model", *MODEL)
@section(
    "Evaluation",
    option(
        "--top-k",
        default="all",
        show_default=True,
        type=TopK(),
        metavar="N|all",
        help="Number of labels kept in the predictions of each image. With a number, files are smaller, but there is "
        "no log loss, ROC AUC or average precision.",
    ),
    option(
        "--threshold",
        default=0.5,
        show_default=True,
        type=SHARE,
        metavar="X",
        help="Lowest score at which a label counts as predicted, if images can have several labels.",
    ),
    option(
        "--fail-under",
        multiple=True,
        type=Gate(),
        help="Exit with 4 if this metric is below this value. Repeatable.",
    ),
    option(
        "--baseline",
        type=Baseline(path_type=Path, dir_okay=False),
        metavar="JSON|DIR",
        help="Compare with an earlier evaluation, by its metrics.json or its folder, and test whether the differences "
        "are significant.",
    ),
    option(
        "--max-drop",
        multiple=True,
        type=Drop(),
        help="Exit with 4 if this metric is worse than in --baseline by more than this value, on the images of both. "
        "Repeatable.",
    ),
    option(
        "--error-threshold",
        type=Threshold(),
        help="Images that may fail or have an unknown label, as a number or a percentage. With more, the exit status "
        "is 3; scoring stops with 1 as soon as more have failed (by a percentage, of 1,000 images or more). "
        "[default: 0, and scoring never stops early]",
    ),
)
@section(
    "Output",
    option(
        "--out",
        required=True,
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Folder for the results: metrics.json, report.md, report.html, pictures and predictions.jsonl.",
    ),
    JUNIT,
    option(
        "--fresh",
        is_flag=True,
        help="Score all images again, and replace the predictions of an earlier evaluation in DIR.",
    ),
    option(
        "--part-size",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Write the predictions to a folder of several files, each of N images, instead of predictions.jsonl. "
        f"[default: {PART_SIZE}, with --engine ray]",
    ),
)
@section("Speed", *SPEED)
@section("Cluster", *CLUSTER)
@section("Limits of one image", *LIMITS)
@section("Run", CONFIG, QUIET, VERBOSE, LOG_FORMAT)
def evaluate(
    *,
    out: Path,
    label_column: str | None,
    label_map: str | None,
    predictions: Path | None,
    threshold: float,
    fail_under: tuple[tuple[str, float], ...],
    baseline: Path | None,
    max_drop: tuple[tuple[str, float], ...],
    error_threshold: ErrorThreshold | None,
    junit: Path | None,
    fresh: bool,
    part_size: int | None,
    engine: str,
    **chosen: Any,
) -> None:
    """Score labelled images and measure how good the model is.

    Needs the extra eval. Run the same command again to continue a run that was stopped.

    Exit status: 0 if the evaluation is complete, 1 if it failed, 2 for wrong usage, 3 if some images have no prediction
    or an unknown label, 4 if a metric is below --fail-under or has fallen by more than --max-drop, 130 if interrupted.
    """
    chosen["limits"] = limits_from(chosen)
    cluster = cluster_from(chosen)
    with write_junit(junit, "deit-batch evaluate") as cases, needing("eval"):
        from deit_batch.evaluation.evaluate import EvaluationRequest
        from deit_batch.evaluation.evaluate import evaluate as run
        from deit_batch.report.evaluation import as_page

        if max_drop and not baseline:
            raise UsageError("--max-drop is against an earlier evaluation: give its metrics.json as --baseline")
        open_engine = choose_engine(engine, cluster)
        evaluation = run(
            EvaluationRequest(
                options=Options(**chosen),
                out=out,
                label_column=label_column,
                label_map=label_map,
                predictions=predictions,
                open_engine=open_engine if is_in_parts(None, part_size, engine) else None,
                part_size=part_size or PART_SIZE,
                threshold=threshold,
                gates=dict(sorted(fail_under)),  # of two for one metric, the higher
                max_drops=dict(sorted(max_drop, reverse=True)),  # of two for one metric, the lower
                baseline=baseline,
                fresh=fresh,
                error_threshold=error_threshold,
                quiet=is_quiet(),
            ),
            as_page,
        )
        fine = (error_threshold or ErrorThreshold(0)).allows(evaluation.unjudged, evaluation.inputs)
        level = level_of(some_failed=evaluation.unjudged > 0, too_many_failed=not fine)
        logger.log(level, "%s", evaluation.summary())
        below = [
            f"{option}: {gate.message}"
            for option, gates in (("--fail-under", evaluation.gates), ("--max-drop", evaluation.drops))
            for gate in gates
            if gate.verdict == "failure"
        ]
        for message in below:
            logger.error("%s", message)
        if (fail_under or max_drop) and not below and not fine:
            logger.error(
                "every gate is passed; the status is %s for %s without a prediction or a known label, "
                "which --error-threshold may allow",
                SOME_FAILED,
                counted(evaluation.unjudged, "image"),
            )
        cases += [
            *evaluation.gates,
            *evaluation.drops,
            Case("images", "passed" if fine else "failure", evaluation.summary()),
        ]
        sys.exit(BELOW if below else DONE if fine else SOME_FAILED)
