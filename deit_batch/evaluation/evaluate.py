"""From labelled images, or predictions and labels, to an evaluation: a document in JSON's types, a report, pictures."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deit_batch import __version__, block_runner
from deit_batch.errors import OutputError
from deit_batch.evaluation.joining import Labels, given_in, kept_in
from deit_batch.evaluation.judged import (
    Judged,
    judge,
    known_classes,
    require_known,
    summarise_predictions,
    unknown_labels,
)
from deit_batch.evaluation.metrics import Metrics, compute
from deit_batch.evaluation.mistakes import most_confident_mistakes, thumbnails_of
from deit_batch.evaluation.names import CARD_NAMES, LOWER_IS_BETTER, METRICS, PAGE, PARTS, PLOTS, PREDICTIONS, REPORT
from deit_batch.evaluation.noise import compare, intervals
from deit_batch.evaluation.outcomes import pack, read_baseline, unpack
from deit_batch.evaluation.plots import draw
from deit_batch.evaluation.report import as_markdown, verdict_of
from deit_batch.input.labels import LabelledSource, open_labelled
from deit_batch.io import Source, counted
from deit_batch.model.labels import read_id2label, warn_of_shared_names
from deit_batch.model.matching import Matching, class_numbers, read_label_map
from deit_batch.names import alike, what_is_meant
from deit_batch.options import Options
from deit_batch.output.manifest import REPORT as REPORT_OF_PARTS
from deit_batch.output.part import PART_SIZE
from deit_batch.output.read import read_records
from deit_batch.output.resume import Mode, StaleResult
from deit_batch.output.run_report import read_report
from deit_batch.output.threshold import ErrorThreshold
from deit_batch.plan import checkpoint_of
from deit_batch.redaction import redact_all
from deit_batch.runner import run
from deit_batch.system.atomic import make_missing_folder, write_atomically
from deit_batch.system.junit import Case
from deit_batch.system.lock import Lock
from deit_batch.system.logs import warn_even_if_quiet

logger = logging.getLogger("deit_batch")

_SHOWN = 5
_ROUNDING = 1e-9
"""Of differences: 0.93 less 0.92 is a little more than 0.01."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """What `deit-batch evaluate` is asked for; `options` are those of a run of `score`. `predictions`: made before, to
    be joined to the labels; without it the images are scored: into parts of `part_size`, if `open_engine` says by whom.
    `gates`: metrics and what they must at least be; `max_drops`: how much worse than in the baseline they may be."""

    options: Options
    out: Path
    label_column: str | None = None
    label_map: str | None = None
    predictions: Path | None = None
    open_engine: Callable[[Options, int], block_runner.Engine] | None = None
    part_size: int = PART_SIZE
    threshold: float = 0.5
    gates: Mapping[str, float]
    max_drops: Mapping[str, float] = field(default_factory=dict)
    baseline: Path | None = None
    fresh: bool = False
    error_threshold: ErrorThreshold | None = None
    quiet: bool = False

    def open_input(self, *, again: bool = False) -> LabelledSource:
        options = self.options
        (spec,) = options.inputs
        return open_labelled(
            spec,
            column=options.column,
            id=options.id,
            label_column=self.label_column,
            recursive=options.recursive,
            limit=options.limit,
            again=again,
            image_optional=self.predictions is not None,
            map=options.map,
            base=options.base,
            suffix=options.suffix,
            delimiter=options.delimiter,
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`gates`: of each metric that has one, whether it is as high, or how far it is from it; `drops`: the same of those
    against the baseline. `unjudged`: how many images have no prediction or no label that the model knows."""

    document: dict[str, Any]
    gates: list[Case]
    drops: list[Case]
    inputs: int
    unjudged: int

    def summary(self) -> str:
        values = self.document["metrics"]
        shown = [f"{name} {values[name]:.4f}" for name in ("accuracy", "top_5_accuracy", "f1_macro") if name in values]
        missing = f", {self.unjudged:,} not judged{self._why()}" if self.unjudged else ""
        metrics = ", ".join(shown) or "no headline metric (report.md says why)"
        unlabelled = self.document.get("predictions_without_label", 0)
        extra = f", {counted(unlabelled, 'prediction')} without a label" if unlabelled else ""
        compared = self.document["baseline"]
        lost = f"; against the baseline, {_missing(compared)}" if compared and compared["missing"] else ""
        return f"{metrics} on {self.document['judged']:,} of {counted(self.inputs, 'image')}{missing}{extra}{lost}"

    def _why(self) -> str:
        """Of the images that are not judged: types of failures, and labels that the model does not know."""
        reasons = [f"{images:,} {kind}" for kind, images in self.document["failures"].items()]
        if unknown := self.document["unknown_labels"]:
            known = [row["class"] for row in self.document["per_class"]]
            named = [f"{name!r}{what_is_meant(name, known, 0.8)}" for name in islice(unknown, _SHOWN)]
            names = ", ".join(named) + (", …" if len(unknown) > _SHOWN else "")
            images = self.document["images_with_unknown_labels"]
            reasons.append(f"{images:,} of labels that the model does not know: {names:.200}")
        return f" ({'; '.join(reasons)})" if reasons else ""


@dataclass(frozen=True, slots=True)
class _Material:
    """Labels beside predictions; `about` says where they are from, `class_names` which labels there could be."""

    judged: Judged
    inputs: int
    about: dict[str, Any]
    class_names: list[str] | None


class Shown(NamedTuple):
    """What a page is made of. `thumbnails`: of the document's mistakes, in their order, None for one that can't be had,
    and none at all where the input can't be read again; `plots`: PNG by file name; `root`: the one folder that images
    may be in, if that is set."""

    document: Mapping[str, Any]
    judged: Judged
    thumbnails: Sequence[NDArray[np.uint8] | None]
    plots: Mapping[str, bytes]
    root: str | None


AsPage: TypeAlias = Callable[[Shown], bytes]


def evaluate(request: EvaluationRequest, as_page: AsPage) -> Evaluation:
    """Writes metrics.json, report.md, pictures and a page into `request.out`, and the predictions unless it was given
    some. `as_page` makes the page, in HTML: what draws pages stands above this.

    Raises DeitBatchError if there is nothing to evaluate, or the run of `score` fails; then the same call continues it.
    """
    label_map = read_label_map(request.label_map) if request.label_map else {}
    baseline = read_baseline(request.baseline) if request.baseline else None
    make_missing_folder(request.out)
    try:
        request.out.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{request.out}: no folder can be made: {error.strerror}") from error
    material = _joined(request, request.predictions, label_map) if request.predictions else _scored(request, label_map)
    judged = material.judged
    found = compute(judged, material.inputs)
    packed = pack(judged.outcomes)
    compared = None
    if baseline:
        compared = {
            "file": str(request.baseline),
            **compare(baseline, unpack(packed), f"--baseline {request.baseline}"),
        }
        logger.log(logging.WARNING if _is_worse(compared) else logging.INFO, "%s", _changed(compared))
        if compared["missing"]:
            warn_even_if_quiet("against %s: %s", request.baseline, _missing(compared))
    gates, cases = _check_gates(request.gates, found)
    drops, drop_cases = _check_drops(request.max_drops, compared)
    mistakes = most_confident_mistakes(judged)
    document = {
        "deit_batch": __version__,
        "ended_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **material.about,
        **_counts(material, found),
        "metrics": dict(sorted(found.values.items())),
        "intervals": {name: list(reach) for name, reach in intervals(judged.outcomes).items()},
        "unavailable": found.unavailable,
        "gates": gates,
        "drops": drops,
        "baseline": compared,
        "mistakes": [asdict(mistake) for mistake in mistakes],
        "calibration": found.bins,
        "per_class": found.per_class,
        "accuracy_table": found.accuracy_table,
        "outcomes": packed,
    }
    seen: list[Any] = []
    if mistakes and request.options.input != "-":
        references = (example.reference for example in request.open_input(again=True).examples)
        seen = thumbnails_of(mistakes, references, request.options.limits)
    drawn = dict(draw(judged, found, list(zip(mistakes, seen, strict=False))))
    _say_what_is_replaced(request.out, document)
    _write(request.out, document, drawn, as_page(Shown(document, judged, seen, drawn, request.options.limits.root)))
    return Evaluation(document, cases, drop_cases, material.inputs, material.inputs - len(judged.images))


# --- predictions and labels -----------------------------------------------------------------------------------------


def _scored(request: EvaluationRequest, label_map: Mapping[str, str]) -> _Material:
    """Scores the images, as `score` does, into predictions.jsonl or a folder of parts, which keeps the labels."""
    options, mapped = request.options, len(label_map)
    checkpoint = checkpoint_of(options)
    classes = list(dict.fromkeys(checkpoint.labels))
    if options.input != "-":  # which can be read but once
        given = (label for example in request.open_input(again=True).examples for label in example.labels)
        label_map = _checked_label_map(given, checkpoint.labels, label_map)
    source, path, report = _predict(request)
    multi_label = checkpoint.multi_label or source.multi_label
    if source.multi_label and not checkpoint.multi_label:
        logger.warning(
            "images may have several labels, but the scores of %s are shares of one: hardly any label but the best "
            "reaches --threshold",
            checkpoint.name,
        )
    labels = Labels(kept_in(read_records(path), _as_it_is, "label"), read_records(path))
    if options.input == "-":
        label_map = _checked_label_map(sorted(labels.names), checkpoint.labels, label_map)
    judged = judge(
        labels.join(read_records(path)),
        classes,
        Matching(classes, label_map),
        multi_label=multi_label,
        full=len(checkpoint.labels),
        threshold=request.threshold,
        unpaired=labels.failures,
    )
    ran = json.loads(report.read_bytes())
    about = {
        "input": redact_all(options.input),
        "labels": f"{source.layout}, numbers of the model's classes" if len(label_map) > mapped else source.layout,
        "multi_label": multi_label,
        "predictions": path.name,
        "model": ran["settings"],
        "passed_over": ran["counts"]["passed_over"],
    }
    return _Material(judged, labels.inputs, about, source.class_names)


def _predict(request: EvaluationRequest) -> tuple[LabelledSource, Path, Path]:
    """The input, its predictions, and the report of the run that has made them. None is of a file that has changed
    since: such are scored again, or, where that can't be, StaleResult is raised."""
    source = request.open_input()
    try:
        return source, *_run(request, source.as_source(), "fresh" if request.fresh else "require-current")
    except StaleResult as stale:
        if request.open_engine or request.options.input == "-":  # parts are made whole; stdin can be read but once
            raise
        warn_even_if_quiet("%s; these are scored again", stale.what)
    source = request.open_input(again=True)
    return source, *_run(request, source.as_source(), "retry-changed")


def _run(request: EvaluationRequest, source: Source, mode: Mode) -> tuple[Path, Path]:
    """The predictions, in a file or a folder of parts, and the report of the run that has made them."""
    common: dict[str, Any] = {
        "error_threshold": request.error_threshold,
        "quiet": request.quiet,
        "source": source,
    }
    if request.open_engine:
        parts = request.out / PARTS
        how: dict[str, Any] = {"part_size": request.part_size, "fresh": request.fresh, "current": True}
        block_runner.run(request.options, request.open_engine, out=str(parts), **how, **common)
        return parts, parts / REPORT_OF_PARTS
    path = request.out / PREDICTIONS
    run(request.options, out=str(path), mode=mode, **common)
    return path, path.with_name(f"{path.name}.run.json")


def _as_it_is(label: str | list[str] | None) -> str | list[str] | None:
    """What `LabelledSource.as_source` has written."""
    return label


def _checked_label_map(labels: Iterable[str], names: Sequence[str], label_map: Mapping[str, str]) -> Mapping[str, str]:
    """The label map, with the numbers of classes in it if the labels can be nothing else, which is said. `names`: of
    the model's classes, by number. Raises UsageError if there are labels, and the model knows none of them: the first
    that it knows ends the search."""
    matching = Matching(list(dict.fromkeys(names)), label_map)
    for label in labels:
        if matching(label) is not None:
            return label_map
    is_mapped = any(alike(label) in label_map for label in matching.unknown)  # then it means what the map says
    numbers = {} if is_mapped else class_numbers(matching.unknown, names)
    if numbers:
        shown = ", ".join(f"{number} is {name}" for number, name in islice(numbers.items(), _SHOWN))
        more = ", …" if len(numbers) > _SHOWN else ""
        logger.warning("the labels are taken for the numbers of the model's classes, from 0: %s%s", shown, more)
    elif matching.unknown:
        raise unknown_labels(matching, names)
    return {**label_map, **numbers}


def _joined(request: EvaluationRequest, path: Path, label_map: Mapping[str, str]) -> _Material:
    """Predictions that were made before, joined to the labels by the images' names."""
    source = request.open_input()
    told = summarise_predictions(read_records(path), multi_label=source.multi_label)
    labels = Labels(given_in(source), read_records(path))
    if request.options.id2label:  # predictions do not tell which class has which number
        names = read_id2label(request.options.id2label)
        warn_of_shared_names(names, request.options.id2label)
        label_map = _checked_label_map(sorted(labels.names), names, label_map)
    else:
        require_known(told, labels.names, label_map)
    classes = known_classes(told, labels.names, label_map)
    judged = judge(
        labels.join(read_records(path)),
        classes,
        Matching(classes, label_map),
        multi_label=told.multi_label,
        full=told.full,
        threshold=request.threshold,
        unpaired=labels.failures,
    )
    labels.warn_of_files_names()
    about = {
        "input": redact_all(request.options.input),
        "labels": source.layout,
        "multi_label": told.multi_label,
        "predictions": str(path),
        "predictions_without_label": labels.without_label,
        "passed_over": dict(source.passed_over),
        "never_predicted": [] if told.full else sorted(set(classes) - set(told.classes)),
    }
    return _Material(judged, labels.inputs, about, source.class_names)


# --- what comes out -------------------------------------------------------------------------------------------------


def _counts(material: _Material, found: Metrics) -> dict[str, Any]:
    judged, matching = material.judged, material.judged.matching
    empty = [row["class"] for row in found.per_class if not row["images"]]
    known = {number for number in range(len(found.per_class)) if found.per_class[number]["images"]}
    folders = [name for name in material.class_names or [] if matching.find(name) not in known]
    return {
        "inputs": material.inputs,
        "judged": len(judged.images),
        "failures": dict(judged.failures),
        "images_with_unknown_labels": judged.unknown_images,
        "unknown_labels": dict(matching.unknown.most_common()),
        "matched": dict(sorted(matching.inexact.items())),
        "classes": len(found.per_class),
        "classes_without_images": empty,
        "listed_without_images": folders,
    }


def _changed(compared: Mapping[str, Any]) -> str:
    metrics = compared["metrics"]
    beyond = [
        f"{name} {of['change']:+.4f} ({verdict_of(name, of)})" for name, of in metrics.items() if not of["within_noise"]
    ]
    none = "no metric changed beyond noise" if metrics else "no metric that both have"
    told = f"beyond noise: {', '.join(beyond)}" if beyond else none
    return f"against {compared['file']}, on the {counted(compared['images'], 'image')} of both: {told}"


def _missing(compared: Mapping[str, Any]) -> str:
    images = counted(compared["missing"], "image of it is", "images of it are")
    return f"{images} not judged here with the same label; if that is meant, make a new baseline"


def _is_worse(compared: Mapping[str, Any]) -> bool:
    return any(verdict_of(name, of) == "worse" for name, of in compared["metrics"].items())


def _check_gates(gates: Mapping[str, float], found: Metrics) -> tuple[dict[str, Any], list[Case]]:
    """A gate whose metric can't be had is not passed."""
    results: dict[str, Any] = {}
    cases: list[Case] = []
    for metric, least in gates.items():
        value = found.values.get(CARD_NAMES.get(metric, metric))
        passed = value is not None and value >= least
        results[metric] = {"least": least, "value": value, "passed": passed}
        if value is None:
            why = found.unavailable.get(CARD_NAMES.get(metric, metric), "it is not one of labels like these")
            message = f"{metric} can't be had: {why}"
        elif passed:
            message = f"{metric} is {value:.4f}, not under {least:g}"
        else:
            message = f"{metric} is {value:.4f}, {least - value:.4g} under {least:g}"
        cases.append(Case(metric, "passed" if passed else "failure", message))
    return results, cases


def _check_drops(
    max_drops: Mapping[str, float], compared: Mapping[str, Any] | None
) -> tuple[dict[str, Any], list[Case]]:
    """As _check_gates, of how much worse than in the baseline each metric is, on the images of both. Where images of
    the baseline are missing, none is passed: it is not known how they would be judged."""
    results: dict[str, Any] = {}
    cases: list[Case] = []
    for metric, most in max_drops.items():
        name = CARD_NAMES.get(metric, metric)
        of = (compared or {"metrics": {}})["metrics"].get(name)
        drop = None if of is None else of["change"] if name in LOWER_IS_BETTER else of["before"] - of["now"]
        is_small = drop is not None and drop <= most + _ROUNDING
        lost = _missing(compared) if compared and compared["missing"] else ""
        passed = is_small and not lost
        results[metric] = {"most": most, "drop": drop, "passed": passed}
        if of is None or drop is None:
            message = f"the drop of {metric} can't be had: it is not compared with the baseline of labels like these"
        else:
            told = f"{metric} was {of['before']:.4f} in the baseline and is {of['now']:.4f}"
            fallen = f"worse by {drop:.4g}, {'no more' if is_small else 'more'} than {most:g}"
            message = f"{told}: {fallen if drop > _ROUNDING else 'no worse'}{lost and f', but {lost}'}"
        cases.append(Case(f"drop of {metric}", "passed" if passed else "failure", message))
    return results, cases


def _say_what_is_replaced(out: Path, document: Mapping[str, Any]) -> None:
    """Of an earlier evaluation; a warning, if it was of something else or had other gates."""
    before = read_report(out / METRICS)
    if not {"ended_at", "metrics", "gates", "drops"} <= before.keys():
        return
    unlike = [name for name in ("input", "predictions") if before.get(name) != document[name]]
    unlike += ["gates"] if _bounds(before) != _bounds(document) else []
    below = [name for gates in (before["gates"], before["drops"]) for name, gate in gates.items() if not gate["passed"]]
    accuracy = before["metrics"].get("accuracy")
    told = [
        *([] if accuracy is None else [f"accuracy {accuracy:.4f}"]),
        f"gates not passed: {', '.join(below)}" if below else "no gate failed",
        *([f"of other {', '.join(unlike)}"] if unlike else []),
    ]
    level = logging.WARNING if unlike else logging.INFO
    logger.log(level, "%s: the evaluation of %s is replaced (%s)", out, before["ended_at"], "; ".join(told))


def _bounds(document: Mapping[str, Any]) -> list[dict[str, float]]:
    return [
        {name: gate[bound] for name, gate in document[kind].items()}
        for kind, bound in (("gates", "least"), ("drops", "most"))
    ]


def _write(out: Path, document: Mapping[str, Any], pictures: Mapping[str, bytes], page: bytes) -> None:
    """The document last: where it is, the rest is of the same evaluation; another process waits until that is so."""
    try:
        lock = Lock(out / f"{METRICS}.lock", str(out), wait=True)
    except OSError as error:
        raise OutputError(f"{out}: can't be written: {error.strerror}") from error
    try:
        for name in PLOTS:
            if name not in pictures:
                (out / name).unlink(missing_ok=True)  # of an evaluation before this one
        for name, data in pictures.items():
            write_atomically(out / name, data)
        write_atomically(out / REPORT, as_markdown(document, pictures).encode())
        write_atomically(out / PAGE, page)
        lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in document.items()]
        write_atomically(out / METRICS, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
    except OSError as error:
        raise OutputError(f"{out}: can't be written: {error.strerror}") from error
    finally:
        lock.release()
