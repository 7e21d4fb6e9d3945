"""The package from Python: what `score`, `embed` and `load` of `deit_batch` are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from PIL import Image

from deit_batch.errors import DecodeError, UsageError
from deit_batch.input.given import GIVEN, Images, names_or_rows
from deit_batch.input.open import OpenTable
from deit_batch.io import Failure, FeatureName, LocalFile, Picture, Record, Reference, Source, Tally
from deit_batch.loading.decode import decode_held
from deit_batch.model.checkpoint import DEFAULT_MODEL
from deit_batch.options import (
    EmbedOptions,
    Input,
    InputOptions,
    ModelOptions,
    Options,
    PredictionOptions,
    ScoreOptions,
    options_of,
)
from deit_batch.output.frame import frame_of
from deit_batch.plan import Plan, require_features
from deit_batch.python_words import as_python, in_python_words
from deit_batch.runner import warn_of_images
from deit_batch.scorer import Scorer
from deit_batch.system.progress import Progress, Stopwatch

if TYPE_CHECKING:
    import pandas


@in_python_words()
def score(input: Images, *, progress: bool = False, **options: Unpack[ScoreOptions]) -> Records:
    """Scores images: an iterator of one Record per input, in input order, as they are ready. Nothing is written.

    All is checked when it is called, the model's weights when the first record is asked for. An image that can't be
    scored is a Record with an `error`.

    Args:
        input: A path as `deit-batch score --input` takes it: a folder, image, glob, table, list, tar, `hf://…` or
            address on a store; or a list of them, which are taken one after another.
            Or images: one, or a list, Series, generator or whatever else can be iterated over, which is read a few
            batches ahead and never held whole. Each is a URL, a path (of an image: in a list of paths, all must be
            that), the bytes of an encoded image, an image of Pillow in any mode, or a NumPy array of uint8: [height,
            width], [height, width, 3] in RGB, or [height, width, 4] in RGBA, whose transparency is left out.
            Or a DataFrame of pandas or polars, or an iterable of dicts, with such an image in one column.
        progress: Whether a progress bar is shown, on stderr.
        column: The column of a table that holds the image. Default: found by its usual names.
        keep: Columns that are carried into `Record.keep`. Default: none.
        id: The column that says which image a row is of. Default: its name or address says it.
        recursive: Whether folders in a folder are looked into. Default: True.
        limit: How many inputs are taken, from the first on. Default: all.
        map: Prefixes of images' names, each with the folder or address that stands for it. Default: none.
        base: The folder, or the address on a store, that relative names in tables and lists start from. Default: the
            folder that the table is in.
        suffix: The ending of image files, as ".jpg", where a table has their names without it. Default: none.
        delimiter: What separates the columns of a CSV. Default: its first line says it.
        shard: (i, n) takes every n-th input, from number i on, counted from 0. Default: all.
        model: The checkpoint: a name on the Hub, a folder, or "demo". Default: "facebook/deit-base-patch16-224".
        revision: A branch, tag or commit of a model on the Hub. Default: its main branch.
        image_processor: Preprocessing: a folder, Hub name, JSON file, "card", or "paper". Default: its own.
        decode: "exact", or "fast": short cuts with large images, whose scores change a little. Default: "exact".
        deep_gray: What becomes of grey images of more than 8 bits: "clip": values above 255 are white, as in the
            pipeline; "scale": 16 bits, or of floats the image's own range, become 8. Default: "clip".
        allow_pickle: Whether weights that are not safetensors are loaded. Default: False.
        id2label: The names of the model's classes: a file of one name a line, a .json file, or "imagenet". Default: the
            checkpoint's own.
        runtime: What computes the scores: "native" (of DeiTs and ViTs), "transformers", "onnx". Default: "auto".
        device: "auto", "cpu", "cuda", "cuda:N" or "mps". Default: "auto".
        dtype: "auto" (float16 on a GPU, float32 on a CPU), "float32", "float16", "bfloat16", "int8". Default: "auto".
        compile: Whether the model is compiled first, on a GPU. Default: False.
        top_k: How many labels an image, from 1 up, or None for all. Default: 5.
        threshold: Labels with a lower score are left out, in 0..1. Default: 0.
        batch_size: Images that are scored together, from 1 up. Default: from the cores, the model and the GPU.
        workers: Processes that fetch and decode, from 0 up. Default: from the cores.
        limits: What one image may cost, a `deit_batch.Limits`. Default: Limits().

    Returns:
        An iterator; its method `to_frame` makes a DataFrame of pandas of what is left of it.

    Raises:
        UsageError: An option that there is not, a value that the command line would refuse, no such input.
        CheckpointError: No such model, or one that must not be scored with.
        InputError: While it yields: the input can't be read to its end.

    Example:
        for record in score("imgs/", model="demo", top_k=1):
            print(record.image, record.predictions, record.error)
    """
    return _scored_once(_asked("score", input, options, ScoreOptions.__optional_keys__, progress))


@in_python_words()
def embed(
    input: Images,
    *,
    features: Sequence[FeatureName] = ("cls",),
    progress: bool = False,
    **options: Unpack[EmbedOptions],
) -> Records:
    """Features instead of predictions: an iterator of one Record per input, as `score` gives, with `features` of the
    image.

    Args:
        input: As of `score`.
        features: Which: "cls", "distillation" (of checkpoints that have that token) and "mean" (of the patches).
            `Record.features` has of each name a float32 array [width] of the encoder's last layer, after its norm.
            Default: ("cls",).
        progress: As of `score`.
        **options: Those of `score`, but `top_k` and `threshold`.

    Raises:
        UsageError, CheckpointError, InputError: As `score`; the first, too, if the checkpoint has no such feature.

    Example:
        for record in embed("imgs/", model="demo"):
            print(record.image, record.features and record.features["cls"])
    """
    known = EmbedOptions.__optional_keys__
    return _scored_once(_asked("embed", input, options, known, progress, features=_names(features)))


@in_python_words()
def load(model: Input = DEFAULT_MODEL, **options: Unpack[ModelOptions]) -> Model:
    """A model and its decode workers, kept from one call to the next: `score` and `embed` of what it returns take
    inputs, and begin at once.

    Args:
        model: As of `score`.
        **options: Those of `score` that say how it is scored, not what: `revision`, `image_processor`, `decode`,
            `deep_gray`, `allow_pickle`, `id2label`, `runtime`, `device`, `dtype`, `compile`, `batch_size`, `workers`,
            `limits`.

    Raises:
        UsageError, CheckpointError: As `score`; also if the weights do not fit.

    Example:
        with load("demo") as model:
            for folder in ("monday/", "tuesday/"):
                print(folder, [record.predictions[:1] for record in model.score(folder)])
    """
    return Model(options_of("load", "", {"model": model, **options}, {"model", *ModelOptions.__optional_keys__}))


class Model:
    """What `load` gives. It may be used in several threads, and one call within the loop of another: they take turns,
    batch by batch, and none waits for the images of another. `close` it, or use it in a `with` statement; a program
    that ends closes it, too."""

    @in_python_words()
    def __init__(self, options: Options) -> None:
        plan = Plan.of(options)
        self._options, self._plan = options, replace(plan, checkpoint=plan.checkpoint.in_absolute_paths())
        self._scorer = Scorer(self._plan, options)
        try:
            self._scorer.start()
        except BaseException:
            self.close()
            raise

    @in_python_words()
    def score(self, input: Images, *, progress: bool = False, **options: Unpack[PredictionOptions]) -> Records:
        """As `deit_batch.score`, with the options that say what is read and what of the scores comes out: `column`,
        `keep`, `id`, `recursive`, `limit`, `map`, `base`, `suffix`, `delimiter`, `shard`, `top_k` and `threshold`."""
        known = PredictionOptions.__optional_keys__
        return self._scored(_asked("score", input, options, known, progress, **self._kept))

    @in_python_words()
    def embed(
        self,
        input: Images,
        *,
        features: Sequence[FeatureName] = ("cls",),
        progress: bool = False,
        **options: Unpack[InputOptions],
    ) -> Records:
        """As `deit_batch.embed`, with the options that say what is read. The first call loads the weights once more:
        features are another model's output."""
        known = InputOptions.__optional_keys__
        asked = _asked("embed", input, options, known, progress, **self._kept, features=_names(features))
        require_features(asked.options.features or (), asked.options, self._plan.checkpoint, self._plan.outline)
        return self._scored(asked)

    def close(self) -> None:
        """Ends the workers, and lets the model go."""
        self._scorer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _kept(self) -> dict[str, object]:
        return {name: getattr(self._options, name) for name in ("model", *ModelOptions.__optional_keys__)}

    def _scored(self, asked: _Asked) -> Records:
        return Records(_scored(self._scorer, asked.open(), self._plan, asked), asked)


class Records(Iterator[Record]):
    """What `score` and `embed` give: the records, in input order, made as they are asked for."""

    def __init__(self, records: Generator[Record, None, None], asked: _Asked) -> None:
        self._records, self._asked = records, asked
        self._begun = False

    @in_python_words()
    def __next__(self) -> Record:
        record = next(self._records)
        self._begun = True
        return record

    def close(self) -> None:
        """Ends what is under way for those that were not asked for."""
        self._records.close()

    @in_python_words()
    def to_frame(self) -> pandas.DataFrame:
        """A row for each record that is left: `index`, `image`, the best `label` and its `score` (NaN if there is
        none), all `predictions` as dicts, `error_type` and `error_message`, what else says which input it is, and the
        columns that are kept: one that is called as one of these as `kept_label`, …. With features, a column of each by
        its name: arrays of float32 [width]. Rows of a DataFrame or Series of pandas have the labels of its index. What
        there is none of is None, but in `score`; whole numbers that are kept stay whole (Int64 where some are missing).

        Raises UsageError if pandas is not installed, or all records have been read before."""
        options = self._asked.options
        begun = self._begun
        frame = frame_of(self, options.features, options.keep, self._asked.labels)
        if begun and frame.empty:
            raise UsageError("all records have been read before, and are read once: keep them, as list(records) does")
        return frame


@dataclass(frozen=True, slots=True)
class _Asked:
    """Of one call; `given`: what is scored, unless the options name it; `labels`: of its rows, if pandas has any."""

    options: Options
    given: OpenTable | None
    progress: bool
    labels: pandas.Index | None = None

    def open(self) -> Source:
        return self.options.open_source(given=self.given)


def _asked(
    function: str, input: Images, options: Mapping[str, Any], known: Iterable[str], progress: bool, **more: object
) -> _Asked:
    if not isinstance(progress, bool):
        raise UsageError(f"progress is {progress!r:.60}; it must be True or False")
    found = names_or_rows(input)
    if isinstance(found, str | tuple):
        return _Asked(options_of(function, found, options, known, **more), None, progress)
    labels = getattr(input, "index", None) if hasattr(type(input), "iloc") else None  # a list has such a method
    return _Asked(options_of(function, GIVEN, options, known, **more), found, progress, labels)


def _names(features: Sequence[FeatureName]) -> tuple[object, ...]:
    return tuple(features) if isinstance(features, list | tuple) else (features,)


def _scored_once(asked: _Asked) -> Records:
    source = asked.open()
    plan = Plan.of(asked.options)

    def records() -> Generator[Record, None, None]:
        with closing(Scorer(plan, asked.options)) as scorer:
            yield from _scored(scorer, source, plan, asked)

    return Records(records(), asked)


def _scored(scorer: Scorer, source: Source, plan: Plan, asked: _Asked) -> Generator[Record, None, None]:
    met: Counter[str] = Counter()
    reading = _Reading(source.references, plan, asked.options, met)
    tally, stopwatch = Tally(), Stopwatch()
    work = scorer.scored(plan.batches(reading), asked.options, stopwatch=stopwatch, met=met)
    with closing(Progress(source.total, tally, stopwatch, quiet=not asked.progress, always_bar=asked.progress)) as bar:
        for records in work:
            for record in records:
                tally.count_error(record.error.type if record.error else None)
            bar.update(reading.count)
            yield from map(_in_python_words, records)
    if reading.error:
        raise reading.error
    warn_of_images(source, met, scaled=plan.recipe.scale_deep_gray)


def _in_python_words(record: Record) -> Record:
    error = record.error
    return replace(record, error=replace(error, message=as_python(error.message))) if error else record


class _Reading:
    """References on their way to the loader, each once. `count`: how many have passed. `error`: why there are no more;
    it is kept, so that what came before it is scored.

    A picture that the program holds becomes what the model is to see of it at once, here: to hand the whole of it to a
    worker would take as long, and memory for each that is under way. A relative path starts from the working folder of
    this moment; the workers keep that in which they were started."""

    def __init__(self, references: Iterator[Reference], plan: Plan, options: Options, met: Counter[str]) -> None:
        self._references, self._recipe, self._limits, self._met = references, plan.recipe, options.limits, met
        self.count = 0
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[Reference]:
        try:
            for reference in self._references:
                self.count += 1
                yield self._ready(reference)
        except Exception as error:
            self.error = error

    def _ready(self, reference: Reference) -> Reference:
        if isinstance(reference.location, LocalFile):
            with suppress(FileNotFoundError):  # of a working folder that was removed
                return replace(reference, location=reference.location.seen_from(os.getcwd()))
        image = reference.location.pixels if isinstance(reference.location, Picture) else None
        if not isinstance(image, Image.Image):
            return reference
        try:
            return replace(reference, location=Picture(decode_held(image, self._recipe, self._limits, met=self._met)))
        except DecodeError as error:
            return replace(reference, location=Failure.of(error))
