"""The loop: pull a batch, score it, write it, count it."""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar, Unpack

from deit_batch.errors import DeitBatchError, Interrupted, ScoreError, TooManyFailures, UsageError
from deit_batch.input.passed_over import MOST_SHOWN, warn_of_photos
from deit_batch.input.webdataset import paths_of
from deit_batch.io import (
    Failure,
    FeatureName,
    Features,
    LocalFile,
    Prediction,
    Record,
    Reference,
    Source,
    Tally,
    Wanted,
    counts,
)
from deit_batch.loading.deep_gray import DEEP_GRAY, warn_of_deep_gray
from deit_batch.output.file import Output, open_output, written_for
from deit_batch.output.formats import Columns, choose_features_format, choose_format
from deit_batch.output.incremental import PredictionCache
from deit_batch.output.resume import Mode
from deit_batch.output.run_report import run_report
from deit_batch.output.staging import staged
from deit_batch.output.threshold import ErrorThreshold
from deit_batch.plan import EmbedOptions, Input, Options, Plan, ScoreOptions, options_of
from deit_batch.system import machine
from deit_batch.system.atomic import is_same_file, require_not_read, standing
from deit_batch.system.progress import Progress, Stopwatch
from deit_batch.system.signals import stop_on_signals

if TYPE_CHECKING:
    from torch import Tensor

    from deit_batch.loading.loader import Decoded
    from deit_batch.model.classifier import Classifier

logger = logging.getLogger("deit_batch")

SCORED_AHEAD = 1  # batches


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended: what came out, and its report as written beside the output (empty if it was finished before)."""

    tally: Tally
    report: dict[str, object]
    passed_over: Counter[str]
    kept: int = 0

    def summary(self, done: str) -> str:
        """As in "39 of 40 images scored, 1 failed (1 DecodeError)"; `done` is what was done with them."""
        tally, speed = self.tally, self.report.get("images_per_second")
        before = f" ({self.kept:,} of them before)" if self.kept else ""
        parts = [
            f"{tally.scored:,} of {tally.inputs:,} images {done}{before}",
            f"{tally.failed:,} failed ({counts(tally.failures)})" if tally.failed else "",
            f"{counts(self.passed_over, most=MOST_SHOWN)} passed over" if self.passed_over else "",
            f"{speed} images/s" if speed else "",
        ]
        return ", ".join(filter(None, parts))

    def has_failures_beyond(self, threshold: ErrorThreshold | None) -> bool:
        tally = self.tally
        return tally.failed > 0 and not (threshold and threshold.allows(tally.failed, tally.inputs))


def score(input: Input | Sequence[Input], **options: Unpack[ScoreOptions]) -> Iterator[Record]:
    """Scores images: yields one Record per input, in input order, as they are ready. Nothing is written.

    All is checked when it is called, the model's weights when the first record is asked for. An image that can't be
    scored is a Record with an `error`.

    Args:
        input: What `deit-batch score --input` takes: a folder, image, glob, table, list, tar, `hf://…` or address on a
            store; or a sequence of them, which are taken one after another.
        column: The column of a table that holds the image. Default: found by its usual names.
        keep: Columns that are carried into `Record.keep`. Default: none.
        id: The column that says which image a row is of. Default: its name or address says it.
        recursive: Whether folders in a folder are looked into. Default: True.
        limit: How many inputs are taken, from the first on. Default: all.
        shard: (i, n) takes every n-th input, from number i on, counted from 0. Default: all.
        model: The checkpoint: a name on the Hub, a folder, or "demo". Default: "facebook/deit-base-patch16-224".
        revision: A branch, tag or commit of a model on the Hub. Default: its main branch.
        image_processor: Preprocessing: a folder, Hub name, JSON file, or "card". Default: the checkpoint's own.
        decode: "exact", or "fast": short cuts with large images, whose scores change a little. Default: "exact".
        deep_gray: What becomes of grey images of more than 8 bits: "clip": values above 255 are white, as in the
            pipeline; "scale": 16 bits, or of floats the image's own range, become 8. Default: "clip".
        allow_pickle: Whether weights that are not safetensors are loaded. Default: False.
        id2label: The names of the model's classes: a file of one name a line, a .json file, or "imagenet". Default: the
            checkpoint's own.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps". Default: "auto".
        dtype: "auto" (float16 on a GPU, float32 on a CPU), "float32", "float16", "bfloat16", "int8". Default: "auto".
        compile: Whether the model is compiled first, on a GPU. Default: False.
        top_k: How many labels an image, from 1 up, or None for all. Default: 5.
        threshold: Labels with a lower score are left out, in 0..1. Default: 0.
        batch_size: Images that are scored together, from 1 up. Default: from the cores, the model and the GPU.
        workers: Processes that fetch and decode, from 0 up. Default: from the cores.
        limits: What one image may cost, a `deit_batch.Limits`. Default: Limits().

    Raises:
        UsageError: An option that there is not, a value that the command line would refuse, no such input.
        CheckpointError: No such model, or one that must not be scored with.
        InputError: While it yields: the input can't be read to its end.

    Example:
        for record in score("imgs/", model="demo", top_k=1):
            print(record.image, record.predictions, record.error)
    """
    return _records(options_of("score", input, options, ScoreOptions.__optional_keys__))


def embed(
    input: Input | Sequence[Input], *, features: Sequence[FeatureName] = ("cls",), **options: Unpack[EmbedOptions]
) -> Iterator[Record]:
    """Features instead of predictions: yields one Record per input, as `score` does, with `features` of the image.

    Args:
        input: As of `score`.
        features: Which: "cls", "distillation" (of checkpoints that have that token) and "mean" (of the patches).
            `Record.features` has of each name a float32 array [width] of the encoder's last layer, after its norm.
            Default: ("cls",).
        **options: Those of `score`, but `top_k` and `threshold`.

    Raises:
        UsageError, CheckpointError, InputError: As `score`; the first, too, if the checkpoint has no such feature.

    Example:
        for record in embed("imgs/", model="demo"):
            print(record.image, record.features and record.features["cls"])
    """
    names = tuple(features) if isinstance(features, list | tuple) else (features,)
    return _records(options_of("embed", input, options, EmbedOptions.__optional_keys__, features=names))


def _records(options: Options) -> Iterator[Record]:
    source = options.open_source()
    plan = Plan.of(options)
    met: Counter[str] = Counter()
    batches = scored(plan.batches(source.references), plan, options, Stopwatch(), met=met)
    return _yielded(batches, partial(_warn, source, plan, met))


def _yielded(batches: Iterator[list[Record]], at_the_end: Callable[[], None]) -> Iterator[Record]:
    for batch in batches:
        yield from batch
    at_the_end()


def _warn(source: Source, plan: Plan, met: Counter[str]) -> None:
    """Of images that are missing in the result, or may be misread."""
    warn_of_photos(source.passed_over)
    warn_of_deep_gray(met[DEEP_GRAY], scaled=plan.recipe.scale_deep_gray)


def scored(
    batches: Iterable[list[Reference]],
    plan: Plan,
    options: Options,
    stopwatch: Stopwatch,
    *,
    cache: PredictionCache | None = None,
    classifier: Classifier | None = None,
    met: Counter[str] | None = None,
) -> Generator[list[Record], None, None]:
    """The records of each batch, in order. The first images are decoded while the model loads, unless `classifier` is
    one that the caller has and keeps; and the next batch is being scored while the records of one are made and
    written. In `met`, images of deep grey are counted."""
    from deit_batch.loading.loader import Loader

    on_gpu = plan.device.type == "cuda"
    loader = Loader(
        batches,
        plan.recipe,
        options.limits,
        workers=plan.workers,
        pin_memory=on_gpu,
        digests=cache is not None,
        batch_size=plan.batch_size,
    )
    with ExitStack() as stack:
        stack.enter_context(closing(loader))
        if classifier is None:
            with stopwatch("load"):
                classifier = stack.enter_context(closing(plan.load()))
        under_way: deque[tuple[list[Reference], Decoded, Callable[[], Tensor]]] = deque()

        def finished() -> list[Record]:
            references, decoded, result = under_way.popleft()
            with stopwatch("wait for scores"):
                scores = result()
            loader.give_back(decoded)
            records = score_batch(references, decoded, scores, plan.checkpoint.labels, options)
            if cache:
                cache.remember(references, decoded.digests, records)
            return records

        waiting = iter(loader)
        while True:
            with stopwatch("wait for images"):
                item = next(waiting, None)
            if item is None:
                break
            references, decoded = item
            if met is not None:
                met[DEEP_GRAY] += decoded.deep_gray
            under_way.append((references, decoded, classifier.submit(decoded.pixels)))
            if len(under_way) > SCORED_AHEAD:
                yield finished()
        while under_way:
            yield finished()


def score_batch(
    references: Sequence[Reference], decoded: Decoded, scores: Tensor, labels: Sequence[str], options: Options
) -> list[Record]:
    """One record for each reference: predictions for what was decoded or is known from earlier, the failure for what
    is neither. `scores`: float32 [images that were decoded, classes], or [..., features, width] where features are
    asked for, which then stand for the predictions."""
    found: Iterator[list[Prediction] | Features | Failure]
    if options.features:
        found = name_features(scores, options.features)
    else:
        found = top_predictions(scores, labels, *widest_bounds([each.wanted for each in references], options))
    places = count()
    embedded = bool(options.features)

    def record(reference: Reference) -> Record:
        earlier = reference.earlier
        if earlier and reference.is_settled:
            return Record.of(reference, earlier.predictions, embedded=embedded, stamp=earlier.stamp)
        place = next(places)
        settled = decoded.settled.get(place)
        result: list[Prediction] | Features | Failure
        if isinstance(settled, Failure):
            result = settled
        elif settled == "same" and earlier:
            result = earlier.predictions
        else:
            result = as_wanted(next(found), reference.wanted, options)
        return Record.of(reference, result, embedded=embedded, stamp=decoded.stamps[place])

    return [record(reference) for reference in references]


def widest_bounds(wanted: Sequence[Wanted | None], options: Options) -> tuple[int | None, float]:
    """`top_k` and `threshold` that leave in what is wanted of any image."""
    bounds = [_bounds(one, options) for one in wanted] or [_bounds(None, options)]
    most = [top_k for top_k, _ in bounds if top_k is not None]
    return max(most) if len(most) == len(bounds) else None, min(threshold for _, threshold in bounds)


def _bounds(wanted: Wanted | None, options: Options) -> tuple[int | None, float]:
    """`top_k` and `threshold` of an image whose request may ask for its own."""
    top_k, threshold = (wanted.top_k, wanted.threshold) if wanted else (None, None)
    return options.top_k if top_k is None else top_k, options.threshold if threshold is None else threshold


Result = TypeVar("Result", bound="list[Prediction] | Features | Failure")


def as_wanted(result: Result, wanted: Wanted | None, options: Options) -> Result:
    """Of predictions that may be more than an image's request wants, those that it does."""
    if wanted is None or not isinstance(result, list):
        return result
    top_k, threshold = _bounds(wanted, options)
    return [one for one in result if one["score"] >= threshold][:top_k]  # type: ignore[return-value]


def top_predictions(
    scores: Tensor, labels: Sequence[str], top_k: int | None, threshold: float
) -> Iterator[list[Prediction] | Failure]:
    """Of each image its labels, best first; equal scores in the order of the classes. `scores`: float32 [n, classes].
    An image with a score that is not finite is a failure."""
    finite = scores.sum(-1).isfinite().tolist()  # of numbers in 0..1: it is, unless one of them is not
    order = _best_classes(scores, top_k)
    for well, numbers, values in zip(finite, order.tolist(), scores.gather(-1, order).tolist(), strict=True):
        if well:
            pairs = zip(numbers, values, strict=True)
            yield [{"label": labels[number], "score": score} for number, score in pairs if score >= threshold]
        else:
            yield Failure.of(
                ScoreError("the model gave scores that are not finite; if --dtype is float16, try float32")
            )


def _best_classes(scores: Tensor, top_k: int | None) -> Tensor:
    """int64 [n, top_k]: `scores.argsort(descending=True, stable=True)[:, :top_k]`, but all classes are sorted only of
    images where two scores that matter are equal: `topk` says nothing of the order of those."""
    if top_k is None or top_k >= scores.shape[-1]:
        return scores.argsort(descending=True, stable=True)
    best, order = scores.topk(top_k + 1)
    order = order[:, :top_k]
    tied = (best[:, 1:] == best[:, :-1]).any(-1)
    if tied.any():
        order[tied] = scores[tied].argsort(descending=True, stable=True)[:, :top_k]
    return order


def name_features(features: Tensor, names: Sequence[FeatureName]) -> Iterator[Features | Failure]:
    """Of each image its features by their names. `features`: float32 [n, len(names), width]. An image of which one is
    not finite is a failure."""
    finite = features.isfinite().flatten(1).all(-1).tolist()
    for well, vectors in zip(finite, features.numpy(), strict=True):
        if well:
            yield dict(zip(names, vectors, strict=True))
        else:
            yield Failure.of(
                ScoreError("the model gave features that are not finite; if --dtype is float16, try float32")
            )


def run(
    options: Options,
    *,
    out: str,
    format: str | None = None,
    mode: Mode = "continue",
    incremental: bool = False,
    error_threshold: ErrorThreshold | None = None,
    quiet: bool = False,
    stdin: BinaryIO | None = None,
    source: Source | None = None,
    begun: Callable[[Tally], None] = lambda tally: None,
) -> RunResult:
    """Scores `options.input` into the file `out` ("-" for stdout), or embeds it if `options.features` says so, and
    leaves a report beside it. With `incremental`, what is found in each image is kept for the next run, which uses it
    unless its mode is "fresh". `source` is the input, if the caller has opened it already. `begun` is called with the
    counts, which then grow, so that they are known however the run ends.

    Raises DeitBatchError if the run can't go on, or has failed on more inputs than `error_threshold`; then the same
    call continues it.
    """
    stopwatch = Stopwatch()
    chosen = choose_features_format(out) if options.features else choose_format(out, format, options.keep)
    beside = ["known" if incremental else "stamps", *(["rows.jsonl"] if chosen.has_rows else [])]
    with staged(out, fresh=mode == "fresh", beside=beside) as path, ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        inputs = (path for input in options.inputs for path in paths_of(input))
        require_not_read("--out", out, written_for(out), inputs)
        source = source or options.open_source(stdin)
        source = replace(source, references=_apart_from(out, source.references))
        plan = Plan.of(options)
        settings = {**plan.settings(options), "incremental": incremental}
        columns = Columns(options.keep, options.features or (), plan.checkpoint.geometry.hidden_size)
        output = stack.enter_context(
            closing(open_output(path, chosen, settings=settings, columns=columns, mode=mode, name=out))
        )
        cache = stack.enter_context(closing(_prediction_cache(path, plan, options, mode))) if incremental else None
        if cache:
            _adopt_finished_result(cache, output, plan, options, out)
        references = cache.recall(source.references) if cache else output.recall(source.references)

        read: Counter[str] = Counter()
        met: Counter[str] = Counter()
        batches = output.remaining(_counted(plan.batches(references), read))
        begun(output.tally)
        if output.complete:
            logger.info("%s is finished already: nothing to do", out)
            warn_of_photos(source.passed_over)
            return RunResult(output.tally, {}, source.passed_over)
        if output.tally.inputs:
            logger.info("going on after %s images that an earlier run has left", f"{output.tally.inputs:,}")
        progress = stack.enter_context(closing(Progress(source.total, output.tally, stopwatch, quiet=quiet)))
        work = stack.enter_context(closing(scored(batches, plan, options, stopwatch, cache=cache, met=met)))
        report = partial(_report, source, options, plan, output, cache, stopwatch, progress, met)
        try:
            for records in work:
                with stopwatch("write"):
                    output.write(records)
                progress.update(read["references"])
                stop.check()
                if error_threshold:
                    error_threshold.check(output.tally, source.total(read["references"]))
        except (DeitBatchError, Interrupted) as error:
            output.interrupt(report(), gave_up=isinstance(error, TooManyFailures))
            raise
        if not output.tally.inputs:
            logger.warning("%s has no rows: the output is empty", ", ".join(options.inputs))
        final = report()
        output.finish(final)
        if cache:
            with standing(out):
                cache.finish()
        _warn(source, plan, met)
        return RunResult(output.tally, final, source.passed_over, cache.kept if cache else 0)


def _apart_from(out: str, references: Iterable[Reference]) -> Iterator[Reference]:
    """Raises UsageError at one that would be written over."""
    name = os.path.basename(out)
    for reference in references:
        location = reference.location
        if (
            isinstance(location, LocalFile)
            and os.path.basename(location.path) == name
            and is_same_file(out, location.path)
        ):
            raise UsageError(f"--out {out} is the input's image {reference.index}")
        yield reference


def _prediction_cache(out: str, plan: Plan, options: Options, mode: Mode) -> PredictionCache:
    return PredictionCache(
        Path(os.path.realpath(out) + ".known"), plan.prediction_settings(options), fresh=mode == "fresh"
    )


def _adopt_finished_result(cache: PredictionCache, output: Output, plan: Plan, options: Options, out: str) -> None:
    """What an earlier run without --incremental has found need not be found again."""
    report = output.plain_report()
    if not (cache.is_empty and report):
        return
    if not plan.would_repeat(report, options):
        logger.info("%s was made with other settings or versions: everything is scored again", out)
        return
    try:
        adopted = cache.adopt(output.records_with_stamps())
        logger.info("%s images of %s need no scoring, unless they have changed", f"{adopted:,}", out)
    except UsageError as error:  # the format is not read back: no reason to refuse what went without this
        logger.info("%s; everything is scored again", error)


def _counted(batches: Iterator[list[Reference]], counter: Counter[str]) -> Iterator[list[Reference]]:
    for batch in batches:
        counter["references"] += len(batch)
        yield batch


def _report(
    source: Source,
    options: Options,
    plan: Plan,
    output: Output,
    cache: PredictionCache | None,
    stopwatch: Stopwatch,
    progress: Progress,
    met: Counter[str],
) -> dict[str, object]:
    about = {
        **({"input_sha256": source.whole()} if options.shard else {}),
        "images_per_second": round(progress.images_per_second, 2),
        "seconds": stopwatch.report(),
        "architecture": plan.checkpoint.geometry.architecture,
        "machine": machine.describe(),
        "workers": plan.workers,
        "batch_size": plan.batch_size,
        "options": asdict(options),
        "versions": plan.versions(),
    }
    return run_report(
        output.tally, source.passed_over, about, kept=cache.kept if cache else None, deep_gray=met[DEEP_GRAY]
    )
