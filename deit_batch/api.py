"""The package from Python: what `score`, `embed` and `load` of `deit_batch` are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from types import TracebackType
from typing import Self, Unpack

from deit_batch.io import FeatureName, Record, Source
from deit_batch.model.checkpoint import DEFAULT_MODEL
from deit_batch.plan import (
    EmbedOptions,
    Input,
    InputOptions,
    ModelOptions,
    Options,
    Plan,
    PredictionOptions,
    ScoreOptions,
    options_of,
    require_features,
)
from deit_batch.runner import warn_of_images
from deit_batch.scorer import Scorer


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
        map: Prefixes of images' names, each with the folder or address that stands for it. Default: none.
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
    return _records(options_of("embed", input, options, EmbedOptions.__optional_keys__, features=_names(features)))


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
    batch by batch. `close` it, or use it in a `with` statement; a program that ends closes it, too."""

    def __init__(self, options: Options) -> None:
        self._options, self._plan = options, Plan.of(options)
        self._scorer = Scorer(self._plan, options)
        try:
            self._scorer.start()
        except BaseException:
            self.close()
            raise

    def score(self, input: Input | Sequence[Input], **options: Unpack[PredictionOptions]) -> Iterator[Record]:
        """As `deit_batch.score`, with the options that say what is read and what of the scores comes out: `column`,
        `keep`, `id`, `recursive`, `limit`, `shard`, `top_k` and `threshold`."""
        return self._records(options_of("score", input, options, PredictionOptions.__optional_keys__, **self._kept))

    def embed(
        self,
        input: Input | Sequence[Input],
        *,
        features: Sequence[FeatureName] = ("cls",),
        **options: Unpack[InputOptions],
    ) -> Iterator[Record]:
        """As `deit_batch.embed`, with the options that say what is read. The first call loads the weights once more:
        features are another model's output."""
        chosen = options_of(
            "embed", input, options, InputOptions.__optional_keys__, **self._kept, features=_names(features)
        )
        require_features(chosen.features or (), chosen, self._plan.checkpoint, self._plan.outline)
        return self._records(chosen)

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

    def _records(self, options: Options) -> Iterator[Record]:
        return _scored(self._scorer, options.open_source(), self._plan, options)


def _names(features: Sequence[FeatureName]) -> tuple[object, ...]:
    return tuple(features) if isinstance(features, list | tuple) else (features,)


def _records(options: Options) -> Iterator[Record]:
    source = options.open_source()
    plan = Plan.of(options)
    return _scored_once(source, plan, options)


def _scored_once(source: Source, plan: Plan, options: Options) -> Iterator[Record]:
    with closing(Scorer(plan, options)) as scorer:
        yield from _scored(scorer, source, plan, options)


def _scored(scorer: Scorer, source: Source, plan: Plan, options: Options) -> Iterator[Record]:
    met: Counter[str] = Counter()
    for records in scorer.scored(plan.batches(source.references), options, met=met):
        yield from records
    warn_of_images(source, plan, met)
