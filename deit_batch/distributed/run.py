"""The driver: reads, decodes and scores on the cluster what has no part yet, and makes the folder whole at the end.

Ray Data streams the blocks from stage to stage, holds back a stage that is ahead of the next, and does again what a
worker, an actor or a machine was at when it died. A part that is there is not made again: a run that died goes on with
the others.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import ray
import ray.data

from deit_batch.distributed.cluster import Layout, connected, lay_out, plainly, task
from deit_batch.distributed.stages import Done, End, Input, Planned, Scorer, decode, planned, unpacked
from deit_batch.errors import DeitBatchError, Interrupted, TooManyFailures, UsageError
from deit_batch.input.open import names_of_inputs
from deit_batch.input.passed_over import warn_of_photos
from deit_batch.io import Tally, counted
from deit_batch.loading.deep_gray import warn_of_deep_gray
from deit_batch.output.formats import FORMATS, Columns
from deit_batch.output.parts import PART_SIZE, Folder, Part, convert_part, in_order, split_into_blocks, tally_of
from deit_batch.output.place import Place
from deit_batch.output.run_report import run_report
from deit_batch.output.threshold import ErrorThreshold
from deit_batch.plan import Options
from deit_batch.runner import RunResult
from deit_batch.system.object_store import is_stored
from deit_batch.system.progress import Progress, Stopwatch
from deit_batch.system.signals import stop_on_signals

logger = logging.getLogger("deit_batch")

IN_AN_ACTOR = 2  # blocks at a time, see Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """The cluster and how to use it; the command line's options of the same names."""

    ray_address: str | None = None
    actors: int | None = None
    actor_cores: int | None = None
    part_size: int = PART_SIZE


@dataclass(frozen=True, slots=True)
class Job:
    """What is decided before the first block. `options` are those that any machine understands, `settings` those that a
    run must share with the one that it continues."""

    options: Options
    plan: Planned
    settings: dict[str, object]
    part_size: int


@dataclass(slots=True)
class Found:
    """What there is of the parts, and what has been found out on the way."""

    parts: dict[int, Part]
    tally: Tally = field(init=False)
    seconds: Counter[str] = field(default_factory=Counter)
    machines: set[str] = field(default_factory=set)
    deep_gray: int = 0
    end: End = field(default_factory=lambda: End("", Counter(), None))

    def __post_init__(self) -> None:
        self.tally = tally_of(self.parts.values())

    def add(self, done: Done) -> None:
        self.parts[done.part.number] = done.part
        self.tally.scored += done.part.scored
        self.tally.failures.update(done.part.failures)
        self.seconds.update(done.seconds)
        self.machines.add(done.machine)
        self.deep_gray += done.deep_gray


def run(
    options: Options,
    where: Where,
    *,
    out: str,
    format: str | None = None,
    fresh: bool = False,
    error_threshold: ErrorThreshold | None = None,
    quiet: bool = False,
    verbose: bool = False,
    begun: Callable[[Tally], None] = lambda tally: None,
    time_limit: float | None = None,
) -> RunResult:
    """Scores `options.input` into parts in the folder `out`, which all machines of the cluster must see, as they must
    the images and the checkpoint. `begun` is called with the counts, which then grow.

    Raises DeitBatchError if the run can't go on, or has failed on more inputs than `error_threshold`; then the same
    call continues it."""
    stopwatch = Stopwatch()
    format = format or "jsonl"
    _check(options, out, format)
    source = options.open_source()  # here first: what is wrong with it is wrong usage
    with ExitStack() as stack:
        stack.enter_context(connected(where.ray_address, verbose=verbose))
        stop = stack.enter_context(stop_on_signals(time_limit=time_limit))
        layout = lay_out(options.device, actors=where.actors, cores=where.actor_cores)
        job = _planned(options, layout, format, where.part_size)
        folder = stack.enter_context(closing(Folder(out, job.settings, fresh=fresh)))
        blocks = split_into_blocks(source.references, where.part_size)
        if folder.complete:
            parts = folder.finished(blocks)
            logger.info("%s is finished already: nothing to do", out)
            tally = tally_of(parts)
            begun(tally)
            warn_of_photos(source.passed_over)
            return RunResult(tally, {}, source.passed_over)
        folder.begin()
        found = Found({block.number: part for block, part in folder.standing(blocks) if part})
        begun(found.tally)
        if found.parts:
            logger.info("going on with %s that an earlier run has left", counted(len(found.parts), "part"))
        total = source.total(0)
        if total is None and error_threshold and error_threshold.percent:
            total = sum(1 for _ in options.open_source().references)
        progress = stack.enter_context(closing(Progress(source.total, found.tally, stopwatch, quiet=quiet)))
        rows = stack.enter_context(closing(_rows(job, layout, folder.partial, found)))
        report = partial(_report, job, layout, found, stopwatch, progress)
        try:
            for _ in rows:
                progress.update(found.tally.inputs)
                stop.check()
                if error_threshold:
                    error_threshold.check(found.tally, total)
            if found.end.error:
                raise found.end.error
            parts = in_order(found.parts, found.end.digest)
        except (DeitBatchError, Interrupted) as error:
            folder.interrupt(report(), gave_up=isinstance(error, TooManyFailures))
            raise
        if not parts:
            logger.warning("%s has no rows: the output is empty", names_of_inputs(options.inputs))
        parts = _converted(folder.partial, parts, format, options.keep, layout)
        final = report()
        folder.finish(parts, final, format)
        warn_of_photos(found.end.passed_over)
        warn_of_deep_gray(found.deep_gray, scaled=job.plan.recipe.scale_deep_gray)
        return RunResult(found.tally, final, found.end.passed_over)


def _check(options: Options, out: str, format: str) -> None:
    """Raises UsageError for what only the local engine can do."""
    if out == "-" or not FORMATS[format].in_parts:
        in_parts = " or ".join(known.name for known in FORMATS.values() if known.in_parts)
        raise UsageError(f"--engine ray writes a folder of parts, {in_parts}: give --out DIR")
    if is_stored(out):
        raise UsageError(
            f"--out {out}: --engine ray writes to a folder that all machines see, not to a store; copy it there "
            "afterwards, or merge it to there"
        )
    if "-" in options.inputs:
        raise UsageError("--engine ray can't read stdin, for it may have to read the input twice; give a file")
    if options.shard:
        raise UsageError("--shard is for machines that know nothing of each other; --engine ray shares out by itself")
    if options.workers is not None:
        raise UsageError("--workers is for the local engine; Ray decides how many tasks decode")


def _planned(options: Options, layout: Layout, format: str, part_size: int) -> Job:
    """Planned on a machine that has what an actor has: the driver's may have no GPU. Paths are made such that other
    working folders don't matter."""

    options_there = replace(
        options,
        model=_absolute(options.model),
        image_processor=options.image_processor and _absolute(options.image_processor),
        id2label=options.id2label and _absolute(options.id2label),
        device="cuda" if layout.on_gpus else "cpu",
        limits=replace(options.limits, root=options.limits.root and _absolute(options.limits.root)),
    )
    with plainly():
        plan: Planned = ray.get(task(planned, layout.of_an_actor).remote(options_there))
    as_given = {"model": options.model, "incremental": False, "format": format, "part_size": part_size}
    commit = plan.settings["commit"]
    return Job(replace(options_there, revision=commit), plan, {**plan.settings, **as_given}, part_size)


def _absolute(path: str) -> str:
    """If it is a path: a model and a recipe may also be names."""
    return os.path.abspath(path) if os.path.exists(path) else path


def _rows(job: Job, layout: Layout, partial: Place, found: Found) -> Generator[Done, None, None]:
    """Each part that is written, as soon as it is. Closing it ends what is under way."""
    blocks = Input(job.options, job.part_size, frozenset(found.parts), os.getcwd())
    decoding = {"recipe": job.plan.recipe, "limits": job.options.limits}
    scoring = {"options": job.options, "settings": job.plan.settings, "cores": layout.cores, "partial": partial}
    actors = ray.data.ActorPoolStrategy(
        size=layout.actors, max_concurrent_calls_per_actor=IN_AN_ACTOR, enable_true_multi_threading=True
    )
    whole = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1  # bytes: each row stays a block of its own, and so a task's
    dataset = (
        ray.data.read_datasource(blocks, num_cpus=0, override_num_blocks=1)
        .map_batches(decode, fn_kwargs=decoding, **whole, **layout.of_a_decoder)
        .map_batches(Scorer, fn_constructor_kwargs=scoring, compute=actors, **whole, **layout.of_an_actor)
    )
    with plainly():
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in unpacked(table):
                if isinstance(row, End):
                    found.end = row
                else:
                    found.add(row)
                    yield row


def _converted(partial: Place, parts: Sequence[Part], format: str, keep: Sequence[str], layout: Layout) -> list[Part]:
    """The parts in their format, for that in which they grew."""
    if FORMATS[format].write is None:
        return list(parts)
    converting = task(convert_part, layout.of_a_decoder)
    with plainly():
        converted: list[Part] = ray.get([converting.remote(partial, part, format, Columns(keep)) for part in parts])
    return converted


def _report(job: Job, layout: Layout, found: Found, stopwatch: Stopwatch, progress: Progress) -> dict[str, object]:
    """As runner's; the seconds of a stage are the sum of all machines'."""
    about = {
        "images_per_second": round(progress.images_per_second, 2),
        "seconds": {**{name: round(value, 3) for name, value in found.seconds.items()}, **stopwatch.report()},
        "architecture": job.plan.architecture,
        "machine": sorted(found.machines),
        "actors": asdict(layout),
        "jpeg_decoder": job.plan.jpeg_decoder,
        "options": asdict(job.options),
        "versions": job.plan.versions,
    }
    return run_report(found.tally, found.end.passed_over, about, deep_gray=found.deep_gray)
