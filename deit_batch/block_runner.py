"""A run whose result is a folder of parts: the input is read once, each block of it is scored, by this process or by
whoever else can, and the folder is made whole at the end. A part that is there is not made again: a run that died goes
on with the others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial as bound
from typing import Any, BinaryIO, NamedTuple, Protocol

from deit_batch.errors import DeitBatchError, Interrupted, TooManyFailures, UsageError
from deit_batch.input.open import names_of_inputs
from deit_batch.input.passed_over import warn_of_photos
from deit_batch.input.webdataset import paths_of
from deit_batch.io import Source, Tally, counted
from deit_batch.loading import turbo
from deit_batch.loading.deep_gray import DEEP_GRAY
from deit_batch.options import Options
from deit_batch.output.formats import FORMATS, Columns
from deit_batch.output.manifest import require_all
from deit_batch.output.part import (
    NOTHING_YET,
    PART_SIZE,
    Block,
    Part,
    convert_part,
    digest_settings,
    split_into_blocks,
    write_part,
)
from deit_batch.output.part_list import PartList
from deit_batch.output.parts import Folder
from deit_batch.output.place import Place
from deit_batch.output.run_report import run_report
from deit_batch.output.threshold import ErrorThreshold
from deit_batch.plan import Plan
from deit_batch.redaction import redact_all
from deit_batch.runner import RunResult, long_lived_objects_left_alone, warn_of_images
from deit_batch.system import machine
from deit_batch.system.atomic import require_not_read
from deit_batch.system.progress import Progress, Stopwatch
from deit_batch.system.signals import stop_on_signals

logger = logging.getLogger("deit_batch")


class Planned(NamedTuple):
    """What is known of a run before its first image. `settings`: what its results depend on, as Plan.settings; `about`:
    for its report; `width`: of its features; `scale_deep_gray`: as of its recipe."""

    settings: dict[str, Any]
    about: dict[str, Any]
    width: int
    scale_deep_gray: bool

    @classmethod
    def of(cls, plan: Plan, options: Options) -> Planned:
        about = {
            "architecture": plan.checkpoint.architecture,
            "jpeg_decoder": turbo.decoder(),
            "versions": plan.versions(),
        }
        return cls(plan.settings(options), about, plan.outline.width, plan.recipe.scale_deep_gray)


class Done(NamedTuple):
    """A part that was written, the seconds that each stage took since the last, and how many of its images are of deep
    grey, where this run has not counted them itself."""

    part: Part
    seconds: Mapping[str, float] = {}
    deep_gray: int = 0


@dataclass(slots=True)
class Found:
    """What this run and those before it have found so far. `stopwatch` and `met` are those of this process, `seconds`
    those of all others. `read`: how many references; `end`: the digest of those, as Block.after."""

    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    tally: Tally = field(default_factory=Tally)
    met: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    parts: PartList = field(default_factory=PartList)
    read: int = 0
    end: str = NOTHING_YET

    def add(self, part: Part) -> None:
        self.parts.add(part)
        self.count(part)

    def count(self, part: Part) -> None:
        self.tally.scored += part.scored
        self.tally.failures.update(part.failures)

    def add_done(self, done: Done) -> None:
        self.add(done.part)
        self.met[DEEP_GRAY] += done.deep_gray
        self.seconds.update(done.seconds)


class Engine(Protocol):
    """Who scores the blocks."""

    @property
    def plan(self) -> Planned: ...

    def parts(
        self, blocks: Iterator[Block], partial: Place, found: Found, require_held: Callable[[], None]
    ) -> Generator[Done | None, None, None]:
        """Each part as soon as it is written, in any order; None now and then, where that takes long. Takes no more
        blocks than it works at. `require_held`: to be called before this process writes, as Folder.require_held."""

    def convert(
        self, parts: Iterable[Part], partial: Place, format: str, columns: Columns
    ) -> Generator[Part | None, None, None]:
        """What parts.convert_part makes of each, in any order; None now and then."""

    def about(self) -> Mapping[str, Any]:
        """For the report: who it was."""

    def state(self) -> Mapping[str, int]:
        """For whoever watches the run: what there is to say of it now."""

    def close(self) -> object: ...


def run(
    options: Options,
    open_engine: Callable[[Options, int], Engine],
    *,
    out: str,
    format: str | None = None,
    part_size: int = PART_SIZE,
    fresh: bool = False,
    current: bool = False,
    error_threshold: ErrorThreshold | None = None,
    quiet: bool = False,
    stdin: BinaryIO | None = None,
    source: Source | None = None,
    begun: Callable[[Tally], None] = lambda tally: None,
    time_limit: float | None = None,
) -> RunResult:
    """Scores `options.input` into parts of `part_size` images in the folder `out`, or embeds it, by the engine
    that opens for these options and this size. `current`: a finished result whose files have changed since is refused.
    The other arguments are runner.run's.

    Raises DeitBatchError if the run can't go on, or has failed on more inputs than `error_threshold`; then the same
    call continues it."""
    found = Found()
    format = _choose_format(options, format)
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals(time_limit=time_limit))
        inputs = (path for input in options.inputs for path in paths_of(input))
        require_not_read("--out", out, [out, f"{out.rstrip('/')}.partial"], inputs)
        source = source or options.open_source(stdin)  # here first: what is wrong with it is wrong usage
        engine = stack.enter_context(closing(open_engine(options, part_size)))
        plan = engine.plan
        stack.enter_context(long_lived_objects_left_alone())
        settings = {**plan.settings, "incremental": False, "format": format, "part_size": part_size}
        folder = stack.enter_context(closing(Folder(out, settings, fresh=fresh)))
        blocks = split_into_blocks(source.references, part_size, digest_settings(settings))
        if folder.complete:
            for part in folder.finished(blocks, format, current=current):
                found.count(part)
            logger.info("%s is finished already: nothing to do", out)
            begun(found.tally)
            warn_of_photos(source.passed_over)
            return RunResult(found.tally, {}, source.passed_over)
        folder.begin()
        begun(found.tally)
        if left := len(folder.left()):
            logger.info("going on with %s that an earlier run has left", counted(left, "part"))
        state = bound(_state, found, engine)
        progress = stack.enter_context(
            closing(Progress(source.total, found.tally, found.stopwatch, quiet=quiet, state=state))
        )
        missing = _missing(folder.standing(blocks), found, progress)
        report = bound(_report, options, engine, found, source.passed_over, progress)
        try:
            with closing(engine.parts(missing, folder.partial, found, folder.require_held)) as work:
                for done in work:
                    if done:
                        found.add_done(done)
                        folder.require_held()
                    progress.update(found.read)
                    stop.check()
                    if error_threshold:
                        error_threshold.check(found.tally, source.total(found.read))
            require_all(found.parts, found.end)
            if FORMATS[format].write:
                columns = Columns(options.keep, options.features or (), plan.width)
                for converted in engine.convert(found.parts, folder.partial, format, columns):
                    if converted:
                        found.parts.add(converted)
                    stop.check()
        except (DeitBatchError, Interrupted) as error:
            folder.interrupt(report(), gave_up=isinstance(error, TooManyFailures))
            raise
        if not found.parts:
            logger.warning("%s has no rows: the output is empty", names_of_inputs(options.inputs))
        final = report()
        folder.finish(found.parts, final, format)
        warn_of_images(source, found.met, scaled=plan.scale_deep_gray)
        return RunResult(found.tally, final, source.passed_over)


def _choose_format(options: Options, named: str | None) -> str:
    """Raises UsageError for one that a folder of parts can't have."""
    of = "features" if options.features else "predictions"
    fitting = [format.name for format in FORMATS.values() if format.in_parts and of in format.of]
    chosen = named or fitting[0]
    if chosen not in fitting:
        raise UsageError(f"--format {chosen}: a folder of parts holds {' or '.join(fitting)}")
    return chosen


def _missing(standing: Iterator[tuple[Block, Part | None]], found: Found, progress: Progress) -> Iterator[Block]:
    """The blocks that have no part yet."""
    for block, part in standing:
        found.read += len(block.references)
        found.end = block.after
        if part:
            found.add(part)
            progress.take_over(len(block.references))
        else:
            yield block


def _state(found: Found, engine: Engine) -> dict[str, int]:
    return {"parts": len(found.parts), **engine.state()}


def _report(
    options: Options,
    engine: Engine,
    found: Found,
    passed_over: Mapping[str, int],
    progress: Progress,
) -> dict[str, object]:
    about = {
        "images_per_second": round(progress.images_per_second, 2),
        "seconds": {**{stage: round(value, 3) for stage, value in found.seconds.items()}, **found.stopwatch.report()},
        **engine.plan.about,
        **engine.about(),
        "options": redact_all(asdict(options)),
    }
    return run_report(found.tally, passed_over, about, deep_gray=found.met[DEEP_GRAY])


class LocalEngine:
    """This process."""

    def __init__(self, options: Options, part_size: int) -> None:
        from deit_batch.blocks import BlockScorer

        self._plan = Plan.of(options)
        self.plan = Planned.of(self._plan, options)
        self._scorer = BlockScorer(self._plan, options, part_size=part_size)

    def parts(
        self, blocks: Iterator[Block], partial: Place, found: Found, require_held: Callable[[], None]
    ) -> Generator[Done, None, None]:
        with closing(self._scorer.records(blocks, found.stopwatch, found.met)) as work:
            for block, records in work:
                with found.stopwatch("write"):
                    require_held()
                    part = write_part(partial, block, records)
                yield Done(part)

    def convert(
        self, parts: Iterable[Part], partial: Place, format: str, columns: Columns
    ) -> Generator[Part, None, None]:
        for part in parts:
            yield convert_part(partial, part, format, columns)

    def about(self) -> dict[str, Any]:
        return {
            "machine": machine.describe(),
            "devices": self._plan.describe_devices(),
            "workers": self._plan.workers,
            "batch_size": self._plan.batch_size,
        }

    def state(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self._scorer.close()
