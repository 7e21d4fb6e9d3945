"""Everything that is decided about a run before its first image is read."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from deit_batch.errors import UsageError
from deit_batch.io import FeatureName, Reference, pretty
from deit_batch.loading import turbo
from deit_batch.model.architecture import vit_of_size
from deit_batch.model.checkpoint import Checkpoint, find_checkpoint, find_recipe
from deit_batch.model.labels import are_placeholders, digest_of, warn_of_shared_names
from deit_batch.model.recipe import Recipe
from deit_batch.options import Options
from deit_batch.redaction import redact_all
from deit_batch.system.extras import is_installed
from deit_batch.system.machine import cores
from deit_batch.system.progress import is_watched

if TYPE_CHECKING:
    import torch

    from deit_batch.model.cards import Cards

logger = logging.getLogger("deit_batch")


FIRST_IMAGES = 8
"""In the first batch, at most: of large photographs a worker decodes ten a second."""


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


def _warn_of_names(checkpoint: Checkpoint) -> None:
    """That predictions will not say, or not alone, which class they are of."""
    if are_placeholders(checkpoint.labels):
        logger.warning(
            "%s has no names for its classes: predictions say %s, …; --id2label FILE gives names",
            checkpoint.name,
            checkpoint.labels[0],
        )
    warn_of_shared_names(checkpoint.labels, checkpoint.name)


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
        if not options.features:
            _warn_of_names(checkpoint)
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
        """What the results depend on: a run is continued only by one with the same settings. They are written beside
        the result, so without what gives access."""
        settings = {
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
        return {name: redact_all(value) for name, value in settings.items()}

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
