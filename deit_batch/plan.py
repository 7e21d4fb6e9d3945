"""What a run is asked for, and everything that is decided about it before its first image is read."""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, Self, TypeAlias, TypedDict, get_args

from deit_batch.errors import UsageError
from deit_batch.input.elsewhere import find_here
from deit_batch.input.open import OpenTable, Shard, open_source
from deit_batch.io import FeatureName, Reference, Source, pretty
from deit_batch.limits import DEFAULT_LIMITS, Limits, require_number, require_whole_number
from deit_batch.loading import turbo
from deit_batch.model.architecture import FEATURES, vit_of_size
from deit_batch.model.checkpoint import DEFAULT_MODEL, Checkpoint, find_checkpoint, find_recipe
from deit_batch.model.config import Runtime
from deit_batch.model.labels import are_placeholders, digest_of
from deit_batch.model.recipe import Recipe
from deit_batch.system.extras import is_installed
from deit_batch.system.machine import cores
from deit_batch.system.progress import is_watched

if TYPE_CHECKING:
    import torch

    from deit_batch.model.cards import Cards

logger = logging.getLogger("deit_batch")


FIRST_IMAGES = 8
"""In the first batch, at most: of large photographs a worker decodes ten a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to score with what; the command line's options of the same names, and their defaults. With `features`, those
    are what comes out, and not predictions."""

    input: str | tuple[str, ...]
    column: str | None = None
    keep: tuple[str, ...] = ()
    id: str | None = None
    recursive: bool = True
    limit: int | None = None
    map: tuple[tuple[str, str], ...] = ()
    base: str | None = None
    suffix: str | None = None
    delimiter: str | None = None
    shard: Shard | None = None
    model: str = DEFAULT_MODEL
    revision: str | None = None
    image_processor: str | None = None
    decode: Literal["exact", "fast"] = "exact"
    deep_gray: Literal["clip", "scale"] = "clip"
    allow_pickle: bool = False
    id2label: str | None = None
    runtime: Literal["auto", "native", "transformers", "onnx"] = "auto"
    device: str = "auto"
    dtype: str = "auto"
    top_k: int | None = 5
    threshold: float = 0.0
    features: tuple[FeatureName, ...] | None = None
    compile: bool = False
    batch_size: int | None = None
    workers: int | None = None
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        """Raises UsageError for what the command line would refuse."""
        if not self._given_inputs:
            raise UsageError("no input is given")
        for spec in self._given_inputs:
            _require_name(spec)
        for name in ("column", "id", "model", "revision", "image_processor", "id2label", "device", "dtype"):
            self._require(name, str)
        for name in ("base", "suffix", "delimiter"):
            self._require(name, str)
            if getattr(self, name) == "":
                raise UsageError(f"{name} is empty; leave it out")
        for name in ("recursive", "allow_pickle", "compile"):
            self._require(name, bool)
        self._require("limits", Limits)
        for name, least, otherwise in _NUMBERS:
            if getattr(self, name) is not None:
                require_whole_number(name, getattr(self, name), least, otherwise)
        require_number("threshold", self.threshold, 0, 1)
        self._require("keep", tuple)
        for pair in self.map:
            self._check_map(pair)
        if self.decode not in ("exact", "fast"):
            raise UsageError(f"decode is {self.decode!r}; it must be exact or fast")
        if self.deep_gray not in ("clip", "scale"):
            raise UsageError(f"deep_gray is {self.deep_gray!r}; it must be clip or scale")
        if self.runtime not in ("auto", *get_args(Runtime)):
            raise UsageError(f"runtime is {self.runtime!r}; it must be one of auto, {', '.join(get_args(Runtime))}")
        if self.shard is not None:
            self._check_shard(self.shard)
        if self.features is not None:
            self._check_features(self.features)

    def _require(self, name: str, kind: type) -> None:
        value = getattr(self, name)
        if not isinstance(value, kind) and not (value is None and _DEFAULTS[name] is None):
            what = "the name of a file with the names, or 'imagenet'" if name == "id2label" else _KINDS[kind]
            raise UsageError(f"{name} is {value!r:.80}; it must be {what}")

    def _check_map(self, pair: object) -> None:
        match pair:
            case (str(prefix), str(place)) if prefix and place:
                return
        raise UsageError(f"map has {pair!r:.80}; it must be pairs of a prefix and a folder or address")

    def _check_shard(self, shard: object) -> None:
        match shard:
            case (int(number), int(of)) if 0 <= number < of and not isinstance(number, bool):
                return
        raise UsageError(f"shard is {shard!r}; it must be (i, n), two whole numbers, i from 0 to n - 1")

    def _check_features(self, names: tuple[FeatureName, ...]) -> None:
        if not names or not all(name in FEATURES for name in names) or len(set(names)) < len(names):
            raise UsageError(f"features are {names!r}; give some of {', '.join(FEATURES)}, each once")
        clash = [name for name in self.keep if name in (*names, "features")]
        if clash:
            raise UsageError(f"--keep {clash[0]}: the features have a column of that name already")

    @property
    def inputs(self) -> tuple[str, ...]:
        """One or several, which are scored one after another: where they are here."""
        return tuple(find_here(spec, self.map) for spec in self._given_inputs)

    @property
    def _given_inputs(self) -> tuple[str, ...]:
        return (self.input,) if isinstance(self.input, str) else self.input

    def open_source(self, stdin: BinaryIO | None = None, given: OpenTable | None = None) -> Source:
        """`given`: what a Python program has given, which is no file."""
        return open_source(
            given or self.inputs,
            column=self.column,
            keep=self.keep,
            id=self.id,
            recursive=self.recursive,
            limit=self.limit,
            shard=self.shard,
            stdin=stdin,
            map=self.map,
            base=self.base,
            suffix=self.suffix,
            delimiter=self.delimiter,
        )


def _require_name(spec: object) -> None:
    try:
        if isinstance(spec, str) and b"\0" not in os.fsencode(spec):
            return
    except UnicodeEncodeError:
        pass
    raise UsageError(f"input is {spec!r:.80}; it must be a path, or a sequence of paths")


_KINDS: dict[type, str] = {str: "text", bool: "True or False", tuple: "a sequence of names", Limits: "a Limits"}
_NUMBERS = (
    ("limit", 1, ", or None for all"),
    ("top_k", 1, ", or None for all"),
    ("batch_size", 1, ", or None"),
    ("workers", 0, ", or None"),
)
"""Options, the least that each may be, and what else."""
_DEFAULTS = {field.name: field.default for field in fields(Options)}


_LIMITS = frozenset(field.name for field in fields(Limits))


class InputOptions(TypedDict, total=False):
    """The options from Python that say what is read. (These classes are the one second list of `Options`: a test holds
    their names and types to that.)"""

    column: str | None
    keep: Sequence[str]
    id: str | None
    recursive: bool
    limit: int | None
    map: Mapping[str, str] | Sequence[tuple[str, str]]
    base: str | os.PathLike[str] | None
    suffix: str | None
    delimiter: str | None
    shard: Shard | None


class ModelOptions(TypedDict, total=False):
    """Those that say what it is scored with, beside the model's name."""

    revision: str | None
    image_processor: str | os.PathLike[str] | None
    decode: Literal["exact", "fast"]
    deep_gray: Literal["clip", "scale"]
    allow_pickle: bool
    id2label: str | os.PathLike[str] | None
    runtime: Literal["auto", "native", "transformers", "onnx"]
    device: str
    dtype: str
    compile: bool
    batch_size: int | None
    workers: int | None
    limits: Limits


class PredictionOptions(InputOptions, total=False):
    """What is read, and what of its scores comes out."""

    top_k: int | None
    threshold: float


class EmbedOptions(InputOptions, ModelOptions, total=False):
    """Those that both `score` and `embed` take."""

    model: str | os.PathLike[str]


class ScoreOptions(EmbedOptions, PredictionOptions, total=False):
    """Those that `score` takes."""


Input: TypeAlias = str | os.PathLike[str]


def options_of(
    function: str, input: str | tuple[str, ...], given: Mapping[str, Any], known: Iterable[str], **more: Any
) -> Options:
    """From what Python's `function` was called with. `known`: the options that it has. Raises UsageError, by name, for
    one that there is not and for a value that the command line would refuse."""
    for name in given:
        if name not in known:
            if "limits" in known and name in _LIMITS:
                raise UsageError(f"{function}() has no option {name}; it is one of limits=Limits({name}=…)")
            close = get_close_matches(name, known, 1)
            hint = f"; do you mean {close[0]}?" if close else f"; there are {', '.join(sorted(known))}"
            raise UsageError(f"{function}() has no option {name}{hint}")
    names = input[0] if isinstance(input, tuple) and len(input) == 1 else input
    paths = {name: os.fspath(value) for name, value in given.items() if isinstance(value, os.PathLike)}
    keep = {"keep": tuple(given["keep"])} if isinstance(given.get("keep"), list) else {}
    places = given.get("map", ())
    pairs = {"map": tuple(places.items() if isinstance(places, Mapping) else places)}
    return Options(input=names, **{**given, **paths, **keep, **pairs, **more})


def checkpoint_of(options: Options, *, fetch: bool = True) -> Checkpoint:
    """Raises as `find_checkpoint` does."""
    if fetch and is_watched():
        logger.info("loading %s…", options.model)
    return find_checkpoint(
        options.model,
        revision=options.revision,
        allow_pickle=options.allow_pickle,
        id2label=options.id2label,
        runtime=_runtime(options),
        fetch=fetch,
    )


def _runtime(options: Options) -> str:
    """The one that is asked for: by its name, or by what it alone computes in."""
    if options.dtype != "int8":
        return options.runtime
    if options.runtime not in ("auto", "onnx"):
        raise UsageError(f"--dtype int8 is run by ONNX Runtime; leave out --runtime {options.runtime}")
    return "onnx"


def recipe_of(checkpoint: Checkpoint, options: Options, *, fetch: bool = True) -> Recipe:
    """Raises as `find_recipe` does."""
    return replace(
        find_recipe(checkpoint, options.image_processor, fetch=fetch),
        fast=options.decode == "fast",
        scale_deep_gray=options.deep_gray == "scale",
    )


class Outline(NamedTuple):
    """What a model gives beside scores: which features, and how many numbers each has."""

    features: tuple[FeatureName, ...]
    width: int


def outline_of(checkpoint: Checkpoint, recipe: Recipe) -> Outline:
    """Raises CheckpointError if the class, which only `transformers` knows, can't have these weights or such images."""
    if checkpoint.runtime == "transformers":
        from deit_batch.model.auto_model import find_features

        return Outline(*find_features(checkpoint, recipe.size))
    return Outline(tuple(checkpoint.geometry.features), checkpoint.geometry.hidden_size)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything decided about a run before its first image is read. Making one imports torch, but loads no weights."""

    checkpoint: Checkpoint
    recipe: Recipe
    devices: tuple[torch.device, ...]
    """Of one type; several are cards, which take batches in turn."""
    dtype: str
    batch_size: int
    pass_size: int
    workers: int
    compile: bool
    outline: Outline
    float32_fallback: bool = False
    """Whether images whose scores are not finite are scored again in float32."""
    features: tuple[FeatureName, ...] | None = None

    @classmethod
    def of(cls, options: Options) -> Self:
        checkpoint = checkpoint_of(options)
        if not options.features and are_placeholders(checkpoint.labels):
            logger.warning(
                "%s has no names for its classes: predictions say %s, …; --id2label FILE gives names",
                checkpoint.name,
                checkpoint.labels[0],
            )
        recipe = recipe_of(checkpoint, options)
        if why_not := turbo.why_not():  # found out here, once: workers that are forked know it
            logger.debug("JPEGs are decoded by Pillow alone: %s", why_not)
        outline = outline_of(checkpoint, recipe)
        if options.features:
            require_features(options.features, options, checkpoint, outline)

        from deit_batch.model.cards import choose_devices
        from deit_batch.model.classifier import choose_dtype, choose_sizes

        runs_on_cpu = checkpoint.runtime == "onnx" and options.device == "auto"
        devices = choose_devices("cpu" if runs_on_cpu else options.device)
        device = devices[0]
        dtype = choose_dtype(options.dtype, device, checkpoint)
        if checkpoint.runtime == "onnx" and not checkpoint.exported_dtype:
            from deit_batch.model.onnx import exported

            checkpoint = exported(checkpoint, dtype)
        if options.compile and device.type != "cuda":
            raise UsageError("--compile is for NVIDIA GPUs: on a CPU it gains nothing (docs/decisions.md)")
        geometry = checkpoint.own_geometry or vit_of_size(recipe.size, len(checkpoint.labels))
        batch_size, pass_size = min(choose_sizes(each, geometry, dtype, options.batch_size) for each in devices)
        return cls(
            checkpoint=checkpoint,
            recipe=recipe,
            devices=devices,
            dtype=dtype,
            batch_size=batch_size,
            pass_size=pass_size,
            workers=default_workers(device) if options.workers is None else options.workers,
            compile=options.compile,
            float32_fallback=options.dtype == "auto" and dtype == "float16",
            features=options.features,
            outline=outline,
        )

    @property
    def device(self) -> torch.device:
        """The first: they are of one type."""
        return self.devices[0]

    def describe_devices(self) -> list[str]:
        from deit_batch.model.cards import describe

        return [describe(device) for device in self.devices]

    @property
    def round_size(self) -> int:
        """Images in one round of forward passes, those that run at once."""
        from deit_batch.model.classifier import passes_at_once

        return min(self.batch_size, self.pass_size * passes_at_once(self.device))

    def batches(self, references: Iterable[Reference]) -> Iterator[list[Reference]]:
        """Of `batch_size` references, but the first: that is one round, and few images even if that takes many, so
        that its records come soon, also of large photographs."""
        from deit_batch.loading.loader import batched

        return batched(references, self.batch_size, first_size=min(self.round_size, FIRST_IMAGES))

    def load(self, most_cores: int | None = None) -> Cards:
        """Raises CheckpointError if the weights do not fit."""
        from deit_batch.model.cards import Cards
        from deit_batch.model.classifier import load_classifier

        load = partial(
            load_classifier,
            self.checkpoint,
            self.recipe,
            dtype=self.dtype,
            pass_size=self.pass_size,
            compile=self.compile,
            features=self.features,
            most_cores=most_cores,
            float32_fallback=self.float32_fallback,
        )
        return Cards(self.devices, [load(device=device) for device in self.devices])

    def settings(self, options: Options) -> dict[str, object]:
        """What the results depend on: a run is continued only by one with the same settings."""
        return {
            "input": options.input if isinstance(options.input, str) else list(options.input),
            "column": options.column,
            "keep": list(options.keep),
            "id": options.id,
            "recursive": options.recursive,
            "limit": options.limit,
            "map": [list(pair) for pair in options.map],
            "base": options.base,
            "suffix": options.suffix,
            "delimiter": options.delimiter,
            "shard": options.shard,
            "model": self.checkpoint.name,
            "commit": self.checkpoint.commit,
            "checkpoint_sha256": self.checkpoint.digest,
            "id2label_sha256": digest_of(self.checkpoint.labels) if options.id2label else None,
            "recipe": self.recipe.as_dict(),
            "device": self.device.type,
            "dtype": self.dtype,
            "compile": self.compile,
            "float32_fallback": self.float32_fallback,
            "runtime": self.checkpoint.runtime,
            **_results(options),
            "pass_size": self.pass_size,
            "allow_truncated": options.limits.allow_truncated,
        }

    def prediction_settings(self, options: Options) -> dict[str, object]:
        """What the predictions of one image depend on, beside the image: they are kept as long as it stays the same."""
        return _about_predictions(self.settings(options), asdict(options.limits), self.versions())

    def unlike(self, report: Mapping[str, Any], options: Options) -> list[str]:
        """Of what predictions depend on, what is not as it was in the run that left this report; nothing if it would
        give the same, image by image."""
        settings, versions = report.get("settings"), report.get("versions")
        limits = (report.get("options") or {}).get("limits")
        if not (isinstance(settings, dict) and isinstance(limits, dict) and isinstance(versions, dict)):
            return ["the report"]
        theirs = _about_predictions({name: settings.get(name) for name in self.settings(options)}, limits, versions)
        ours = json.loads(pretty(self.prediction_settings(options)))
        return sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))

    def versions(self) -> dict[str, str]:
        """Of all that scores depend on."""
        runtimes = {"native": ["torch"], "transformers": ["torch", "transformers"], "onnx": ["onnxruntime"]}
        heif = ["pi-heif"] if is_installed("pi_heif") else []
        reduces = ["simplejpeg"] if self.recipe.fast and not turbo.why_not() else []  # else its pixels are Pillow's
        names = ("deit-batch", "pillow", *heif, *reduces, *runtimes[self.checkpoint.runtime])
        libraries = {name: version(name) for name in names}
        return {"python": platform.python_version(), **libraries}


def _about_predictions(
    settings: Mapping[str, object], limits: Mapping[str, object], versions: Mapping[str, str]
) -> dict[str, object]:
    about_input = ("input", "column", "keep", "recursive", "limit", "map", "base", "suffix", "delimiter", "shard")
    return {
        **{name: value for name, value in settings.items() if name not in about_input},
        "limits": [limits.get(name) for name in ("image_bytes", "image_pixels", "root")],
        "versions": versions,
    }


def _results(options: Options) -> dict[str, object]:
    if options.features:
        return {"features": list(options.features)}
    return {"top_k": options.top_k, "threshold": options.threshold}


def require_features(names: Sequence[FeatureName], options: Options, checkpoint: Checkpoint, outline: Outline) -> None:
    """Raises UsageError unless the checkpoint has them."""
    if checkpoint.exported_dtype:
        raise UsageError(f"{checkpoint.name} is exported: it gives scores alone; name the checkpoint it was made from")
    if checkpoint.runtime == "onnx":
        why = "--dtype int8" if options.dtype == "int8" else "--runtime onnx"
        raise UsageError(f"{why} is for scores alone: it runs an exported checkpoint, which has no features")
    missing = [name for name in names if name not in outline.features]
    if missing:
        raise UsageError(
            f"--features {missing[0]}: {checkpoint.name} is a {checkpoint.architecture}, which has only "
            f"{' and '.join(outline.features) or 'scores'}"
        )
    heads = checkpoint.own_geometry.parts.heads if checkpoint.own_geometry else ()
    if "distillation" in names and heads == ("classifier",):
        logger.warning(
            "the head of %s does not look at the distillation token: its features are what an earlier training has "
            "left",
            checkpoint.name,
        )


def default_workers(device: torch.device, granted: int | None = None) -> int:
    """For so many cores, or all. On a CPU decoding is the smaller part of the work, and the model wants the cores; but
    one worker alone would leave them idle while it waits for a network."""
    granted = granted or cores()
    return max(2, granted // 4 if device.type == "cpu" else granted - 1)
