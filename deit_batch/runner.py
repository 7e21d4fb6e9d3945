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
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from deit_batch.errors import DeitBatchError, Interrupted, ScoreError, TooManyFailures, UsageError
from deit_batch.input.webdataset import paths_of
from deit_batch.io import Failure, FeatureName, Features, LocalFile, Prediction, Record, Reference, Source, Tally
from deit_batch.model.checkpoint import DEFAULT_MODEL
from deit_batch.output.file import Output, open_output
from deit_batch.output.formats import Columns, choose_features_format, choose_format
from deit_batch.output.incremental import Known
from deit_batch.output.resume import Mode
from deit_batch.output.run_report import run_report
from deit_batch.output.staging import at_hand
from deit_batch.output.threshold import ErrorThreshold, counts
from deit_batch.plan import Options, Plan
from deit_batch.system import machine
from deit_batch.system.progress import Progress, Stopwatch
from deit_batch.system.signals import stop_on_signals

if TYPE_CHECKING:
    from torch import Tensor

    from deit_batch.loading.loader import Decoded
    from deit_batch.model.classifier import Classifier

logger = logging.getLogger("deit_batch")

SCORED_AHEAD = 1  # batches

Input: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Outcome:
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
            f"{counts(self.passed_over)} passed over" if self.passed_over else "",
            f"{speed} images/s" if speed else "",
        ]
        return ", ".join(filter(None, parts))

    def has_failures_beyond(self, threshold: ErrorThreshold | None) -> bool:
        tally = self.tally
        return tally.failed > 0 and not (threshold and threshold.allows(tally.failed, tally.inputs))


def score(input: Input | Sequence[Input], *, model: str = DEFAULT_MODEL, **options: object) -> Iterator[Record]:
    """For Python: scores images and yields one Record per input, in input order, as they are ready. (The command line
    calls `run`.)

    `input` (one, or a sequence of them) and the options are those of `deit-batch score`, under the same names:
    `column`, `keep`, `id`, `recursive`, `limit`, `revision`, `image_processor`, `decode`, `allow_pickle`, `device`,
    `dtype`, `top_k` (None for all), `threshold`, `batch_size`, `workers`, and `limits`, a `deit_batch.limits.Limits`.
    Nothing is written. An image that can't be scored yields a Record with an `error`; raises DeitBatchError where there
    is nothing to score, or nothing to score with.

        for record in score("imgs/", model="demo"):
            print(record.image, record.predictions[:1])
    """
    inputs = [input] if isinstance(input, str | os.PathLike) else input
    specs = tuple(os.fspath(each) for each in inputs)
    chosen = Options(input=specs[0] if len(specs) == 1 else specs, model=model, **options)  # type: ignore[arg-type]
    source = chosen.open_source()
    plan = Plan.of(chosen)

    for records in scored(plan.batches(source.references), plan, chosen, Stopwatch()):
        yield from records


def embed(
    input: Input | Sequence[Input],
    *,
    model: str = DEFAULT_MODEL,
    features: Sequence[FeatureName] = ("cls",),
    **options: object,
) -> Iterator[Record]:
    """Like `score`, but each Record has `features` of its image in the place of predictions: of each name, a float32
    array [width] of the encoder's last layer, after its norm. The names are "cls", "distillation" and "mean" (of the
    patches).

        for record in embed("imgs/", model="demo"):
            print(record.image, record.features and record.features["cls"])
    """
    return score(input, model=model, features=features, **options)


def scored(
    batches: Iterable[list[Reference]],
    plan: Plan,
    options: Options,
    stopwatch: Stopwatch,
    *,
    known: Known | None = None,
    classifier: Classifier | None = None,
) -> Generator[list[Record], None, None]:
    """The records of each batch, in order. The first images are decoded while the model loads, unless `classifier` is
    one that the caller has and keeps; and the next batch is being scored while the records of one are made and
    written."""
    from deit_batch.loading.loader import Loader

    on_gpu = plan.device.type == "cuda"
    loader = Loader(
        batches, plan.recipe, options.limits, workers=plan.workers, pin_memory=on_gpu, digests=known is not None
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
            records = score_batch(references, decoded, scores, plan.checkpoint.labels, options)
            if known:
                known.remember(references, decoded.digests, records)
            return records

        waiting = iter(loader)
        while True:
            with stopwatch("wait for images"):
                item = next(waiting, None)
            if item is None:
                break
            references, decoded = item
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
        found = named(scores, options.features)
    else:
        found = best(scores, labels, options.top_k, options.threshold)
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
            result = next(found)
        return Record.of(reference, result, embedded=embedded, stamp=decoded.stamps[place])

    return [record(reference) for reference in references]


def best(
    scores: Tensor, labels: Sequence[str], top_k: int | None, threshold: float
) -> Iterator[list[Prediction] | Failure]:
    """Of each image its labels, best first; equal scores in the order of the classes. `scores`: float32 [n, classes].
    An image with a score that is not finite is a failure."""
    finite = scores.isfinite().all(-1).tolist()
    order = scores.argsort(descending=True, stable=True)[..., :top_k]
    for well, numbers, values in zip(finite, order.tolist(), scores.gather(-1, order).tolist(), strict=True):
        if well:
            pairs = zip(numbers, values, strict=True)
            yield [{"label": labels[number], "score": score} for number, score in pairs if score >= threshold]
        else:
            yield Failure.of(
                ScoreError("the model gave scores that are not finite; if --dtype is float16, try float32")
            )


def named(features: Tensor, names: Sequence[FeatureName]) -> Iterator[Features | Failure]:
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
) -> Outcome:
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
    with at_hand(out, fresh=mode == "fresh", beside=beside) as path, ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        if any(_is_same(out, path) for input in options.inputs for path in paths_of(input)):
            raise UsageError(f"--out {out} is the input")
        source = source or options.open_source(stdin)
        source = replace(source, references=_apart_from(out, source.references))
        plan = Plan.of(options)
        settings = {**plan.settings(options), "incremental": incremental}
        columns = Columns(options.keep, options.features or (), plan.checkpoint.geometry.hidden_size)
        output = stack.enter_context(
            closing(open_output(path, chosen, settings=settings, columns=columns, mode=mode, name=out))
        )
        known = stack.enter_context(closing(_known(path, plan, options, mode))) if incremental else None
        references = known.recall(source.references) if known else output.recall(source.references)

        read: Counter[str] = Counter()
        batches = output.remaining(_counted(plan.batches(references), read))
        begun(output.tally)
        if output.complete:
            logger.info("%s is finished already: nothing to do", out)
            return Outcome(output.tally, {}, source.passed_over)
        if output.tally.inputs:
            logger.info("going on after %s images that an earlier run has left", f"{output.tally.inputs:,}")
        progress = stack.enter_context(closing(Progress(source.total, output.tally, stopwatch, quiet=quiet)))
        work = stack.enter_context(closing(scored(batches, plan, options, stopwatch, known=known)))
        report = partial(_report, source, options, plan, output, known, stopwatch, progress)
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
        if known:
            known.forget_the_vanished()
        return Outcome(output.tally, final, source.passed_over, known.kept if known else 0)


def _apart_from(out: str, references: Iterable[Reference]) -> Iterator[Reference]:
    """Raises UsageError at one that would be written over."""
    name = os.path.basename(out)
    for reference in references:
        location = reference.location
        if isinstance(location, LocalFile) and os.path.basename(location.path) == name and _is_same(out, location.path):
            raise UsageError(f"--out {out} is the input's image {reference.index}")
        yield reference


def _is_same(out: str, input: str) -> bool:
    return out == input != "-" or (os.path.exists(out) and os.path.exists(input) and os.path.samefile(out, input))


def _known(out: str, plan: Plan, options: Options, mode: Mode) -> Known:
    return Known(Path(os.path.realpath(out) + ".known"), plan.facts(options), fresh=mode == "fresh")


def _counted(batches: Iterator[list[Reference]], counter: Counter[str]) -> Iterator[list[Reference]]:
    for batch in batches:
        counter["references"] += len(batch)
        yield batch


def _report(
    source: Source,
    options: Options,
    plan: Plan,
    output: Output,
    known: Known | None,
    stopwatch: Stopwatch,
    progress: Progress,
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
    return run_report(output.tally, source.passed_over, about, kept=known.kept if known else None)
