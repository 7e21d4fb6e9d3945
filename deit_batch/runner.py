"""One run: the input is scored, batch by batch, and written and counted."""

from __future__ import annotations

import gc
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from deit_batch.errors import DeitBatchError, Interrupted, TooManyFailures, UsageError
from deit_batch.input.open import names_of_inputs
from deit_batch.input.passed_over import MOST_SHOWN, counts_of, warn_of_photos
from deit_batch.input.webdataset import paths_of
from deit_batch.io import (
    LocalFile,
    Reference,
    Source,
    Tally,
    counted,
    counts,
)
from deit_batch.loading import turbo
from deit_batch.loading.deep_gray import DEEP_GRAY, warn_of_deep_gray
from deit_batch.options import Options
from deit_batch.output.file_names import written_for
from deit_batch.output.form import PLAIN, Form, in_form
from deit_batch.output.formats import Columns, choose_features_format, choose_format
from deit_batch.output.incremental import PredictionCache
from deit_batch.output.output import Output, open_output
from deit_batch.output.resume import Mode
from deit_batch.output.run_report import run_report
from deit_batch.output.staging import staged
from deit_batch.output.threshold import ErrorThreshold
from deit_batch.plan import Plan
from deit_batch.redaction import redact_all
from deit_batch.scorer import Scorer
from deit_batch.system import machine
from deit_batch.system.atomic import is_same_file, require_not_read, standing
from deit_batch.system.logs import warn_even_if_quiet
from deit_batch.system.progress import Progress, Stopwatch
from deit_batch.system.signals import stop_on_signals

logger = logging.getLogger("deit_batch")


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended: what came out, and its report as written beside the output (empty if it was finished before)."""

    tally: Tally
    report: dict[str, object]
    passed_over: Counter[str]
    kept: int = 0
    vanished: int = 0

    def summary(self, done: str) -> str:
        """As in "39 of 40 images scored, 1 failed (1 DecodeError)"; `done` is what was done with them."""
        tally, speed, passed_over = self.tally, self.report.get("images_per_second"), self.passed_over.total()
        before = f" ({self.kept:,} of them before)" if self.kept else ""
        parts = [
            f"{tally.scored:,} of {counted(tally.inputs, 'image')} {done}{before}",
            f"{tally.failed:,} failed ({counts(tally.failures)})" if tally.failed else "",
            f"{self.vanished:,} no longer there" if self.vanished else "",
            f"{passed_over:,} passed over ({counts_of(self.passed_over, most=MOST_SHOWN)})" if passed_over else "",
            f"{speed} images/s" if speed else "",
        ]
        return ", ".join(filter(None, parts))

    def has_failures_beyond(self, threshold: ErrorThreshold | None) -> bool:
        tally = self.tally
        return tally.failed > 0 and not (threshold and threshold.allows(tally.failed, tally.inputs))


def warn_of_images(source: Source, met: Counter[str], *, scaled: bool) -> None:
    """Of images that are missing in the result, or may be misread. `scaled`: as Recipe.scale_deep_gray."""
    warn_of_photos(source.passed_over)
    warn_of_deep_gray(met[DEEP_GRAY], scaled=scaled)


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
    time_limit: float | None = None,
    form: Form = PLAIN,
    also_written: Sequence[tuple[str, Path]] = (),
    remedies: str = "--fresh",
) -> RunResult:
    """Scores `options.input` into the file `out` ("-" for stdout), or embeds it if `options.features` says so, and
    leaves a report beside it. With `incremental`, what is found in each image is kept for the next run, which uses it
    unless its mode is "fresh". `source` is the input, if the caller has opened it already. `begun` is called with the
    counts, which then grow, so that they are known however the run ends. After `time_limit` seconds, the run stops with
    the batch in hand. The result is made in that `form`.
    `also_written`: options and other files that the caller will write: none may be an image of the input. `remedies`:
    the caller's options that replace a finished result whose input has changed.

    Raises DeitBatchError if the run can't go on, or has failed on more inputs than `error_threshold`; then the same
    call continues it.
    """
    stopwatch = Stopwatch()
    chosen = choose_features_format(out) if options.features else choose_format(out, format, options.keep)
    _require_free(form, options.keep)
    chosen = in_form(chosen, form, out, threshold=options.threshold)
    beside = ["known" if incremental else "stamps", *(["rows.jsonl"] if chosen.has_rows else [])]
    with staged(out, fresh=mode == "fresh", beside=beside) as path, ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals(time_limit=time_limit))
        inputs = (path for input in options.inputs for path in paths_of(input))
        require_not_read("--out", out, written_for(out), inputs)
        source = source or options.open_source(stdin)
        source = replace(source, references=_apart_from([("--out", out), *also_written], source.references))
        plan = Plan.of(options)
        stack.enter_context(long_lived_objects_left_alone())
        settings = {
            **plan.settings(options),
            "incremental": incremental,
            **({} if form == PLAIN else {"form": asdict(form)}),
        }
        columns = Columns(
            options.keep, options.features or (), plan.outline.width, most=None if form.layout == "wide" else 0
        )
        output = stack.enter_context(
            closing(
                open_output(path, chosen, settings=settings, columns=columns, mode=mode, name=out, remedies=remedies)
            )
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
            logger.info("going on after %s that an earlier run has left", counted(output.tally.inputs, "image"))
        progress = stack.enter_context(closing(Progress(source.total, output.tally, stopwatch, quiet=quiet)))
        scorer = stack.enter_context(closing(Scorer(plan, options, digests=incremental)))
        work = stack.enter_context(closing(scorer.scored(batches, stopwatch=stopwatch, cache=cache, met=met)))
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
            logger.warning("%s has no rows: the output is empty", names_of_inputs(options.inputs))
        vanished = cache.vanished() if cache else 0
        is_suspicious = vanished > output.tally.inputs
        final = report(vanished=vanished)
        output.finish(final)
        if cache:
            with standing(out):
                cache.finish(keeps_last=is_suspicious)
        if is_suspicious:
            warn_even_if_quiet(
                "%s of the last result %s no longer in the input, which has %s: is all of it there?",
                *(counted(vanished, "image"), "is" if vanished == 1 else "are", f"{output.tally.inputs:,}"),
            )
        warn_of_images(source, met, scaled=plan.recipe.scale_deep_gray)
        return RunResult(output.tally, final, source.passed_over, cache.kept if cache else 0, vanished)


def _require_free(form: Form, keep: Sequence[str]) -> None:
    for name in keep:
        if name in form.reserved:
            raise UsageError(f"--keep {name}: the form that is asked for has a field of that name already")


@contextmanager
def long_lived_objects_left_alone() -> Iterator[None]:
    """The garbage collector looks at new objects alone, not again and again at all that libraries have made, which is a
    tenth of the main process's time with Parquet. The workers are forked from here, and share that memory longer."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _apart_from(written: Sequence[tuple[str, str | Path]], references: Iterable[Reference]) -> Iterator[Reference]:
    """Raises UsageError at an image that would be written over; `written` are options and their files."""
    named = [(Path(file).name, option, str(file)) for option, file in written]
    for reference in references:
        location = reference.location
        if isinstance(location, LocalFile):
            for name, option, file in named:
                if location.path.endswith(name) and is_same_file(file, location.path):
                    raise UsageError(f"{option} {file} is the input's image {reference.index}")
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
    if unlike := plan.unlike(report, options):
        warn_even_if_quiet(
            "%s was made with other settings or versions (%s): everything is scored again", out, ", ".join(unlike)
        )
        return
    try:
        adopted = cache.adopt(output.records_with_stamps())
        logger.info("what %s says of %s counts, as far as they have not changed", out, counted(adopted, "image"))
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
    *,
    vanished: int = 0,
) -> dict[str, object]:
    about = {
        **({"input_sha256": source.whole()} if options.shard else {}),
        "images_per_second": round(progress.images_per_second, 2),
        "seconds": stopwatch.report(),
        "architecture": plan.checkpoint.architecture,
        "machine": machine.describe(),
        "devices": plan.describe_devices(),
        "workers": plan.workers,
        "jpeg_decoder": turbo.decoder(),
        "batch_size": plan.batch_size,
        "options": redact_all(asdict(options)),
        "versions": plan.versions(),
    }
    return run_report(
        output.tally,
        source.passed_over,
        about,
        kept=cache.kept if cache else None,
        vanished=vanished,
        deep_gray=met[DEEP_GRAY],
    )
