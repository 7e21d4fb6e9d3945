"""Image processors of `transformers`: as a Recipe where one can say what they do; else by their class itself, which
then does all but the decoding, in its backend for Pillow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deit_batch.errors import CheckpointError
from deit_batch.model.quiet import quiet_transformers
from deit_batch.model.recipe import Recipe, recipe_from_config

Processor: TypeAlias = Any
"""One of many classes that have little in common."""

_TRIED = ((64, 48), (48, 64), (200, 100))
"""Sizes of images by which it is found out what comes out of a processor."""


def recipe_of(config: Mapping[str, Any], model_type: str) -> Recipe:
    """What a preprocessor_config.json says, for a model of this type. Raises CheckpointError if its class gives no
    images of one size."""
    settings = {name: value for name, value in config.items() if name != "auto_map"}  # code of the checkpoint's own
    processor = _load(json.dumps(settings), model_type)
    kind = type(processor).__name__.removesuffix("Pil")
    settings = {**settings, "image_processor_type": kind}
    try:
        return recipe_from_config(settings, kind)
    except CheckpointError:
        text = json.dumps(settings, sort_keys=True)
    sizes = {_values(processor, Image.new("RGB", size)).shape for size in _TRIED}
    if len(sizes) > 1:
        raise CheckpointError(
            f"the image processor, a {kind}, leaves images of different sizes; name another with --image-processor"
        )
    (height, width, _) = sizes.pop()
    nothing = ((0.0,) * 3, (1.0,) * 3)  # mean and deviation: that is done
    return Recipe((height, width), Image.Resampling.NEAREST, None, 1.0, *nothing, processor=text)


def processed(image: Image.Image, processor: str) -> NDArray[np.float32]:
    """An RGB image to values, [height, width, 3], by what `Recipe.processor` says. Raises whatever the class raises."""
    return _values(_load(processor, ""), image)


@cache
def _load(config: str, model_type: str) -> Processor:
    """`model_type` tells the class where the config does not. Raises CheckpointError if there is no such class."""
    with quiet_transformers(), TemporaryDirectory() as folder:
        from transformers import AutoImageProcessor

        (Path(folder) / "preprocessor_config.json").write_text(config, encoding="utf-8")
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        try:
            return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        except Exception as error:  # of a setting, of a library that is not there, of a class that there is not
            raise _refused(error) from error


def _values(processor: Processor, image: Image.Image) -> NDArray[np.float32]:
    try:
        batch = dict(processor(images=[image], return_tensors="np"))
    except Exception as error:
        raise _refused(error) from error
    shape = np.shape(batch.get("pixel_values", ()))
    if len(batch) > 1 or len(shape) != 4 or shape[:2] != (1, 3):
        raise CheckpointError(
            f"the image processor, a {type(processor).__name__.removesuffix('Pil')}, gives {', '.join(batch)}; only "
            "models that take pixel_values alone, [3, height, width], are scored here"
        )
    return np.ascontiguousarray(batch["pixel_values"][0].transpose(1, 2, 0), np.float32)


def _refused(error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return CheckpointError(f"the image processor can't be used: {reason:.300}; name another with --image-processor")
