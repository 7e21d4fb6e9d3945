"""What a model looked at, over the pictures of the images that a page shows."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deit_batch.io import Failure, Reference
from deit_batch.limits import Limits
from deit_batch.model.checkpoint import Checkpoint, find_recipe
from deit_batch.model.recipe import Recipe
from deit_batch.options import Options
from deit_batch.plan import checkpoint_of
from deit_batch.report.pictures import as_uri

logger = logging.getLogger("deit_batch")

NAMES = {"cls_token": "class token", "distillation_token": "distillation token"}
"""Of the tokens that heads look at."""

LEAST, MOST = (20, 60, 140), (255, 215, 60)
"""Blue over what was looked at the least, yellow over what was looked at the most: RGB, apart in lightness, too."""

OPACITY = 0.55
"""Of the colours, the same everywhere: so they are as far apart on a black picture as on a white one."""


@dataclass(frozen=True, slots=True)
class Attention:
    """What a page shows of it. `model`: whose it is; `others`: why that may not be what gave the predictions;
    `tints`: by place, a `data:` URI of what is laid over the picture in `pictures`."""

    model: str
    others: list[str]
    pictures: dict[int, str | Failure]
    tints: dict[int, str]


def tint(shares: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[rows, columns] to RGBA, [rows, columns, 4]: from blue to yellow, the larger the share."""
    least, most = float(shares.min()), float(shares.max())
    relative = (shares - least) / (most - least) if most > least else np.ones_like(shares)
    colours = np.array([LEAST, MOST])
    opacity = np.full((*shares.shape, 1), 255 * OPACITY)
    mixed = colours[0] + relative[..., None] * (colours[1] - colours[0])
    return np.round(np.concatenate([mixed, opacity], axis=-1)).astype(np.uint8)


def open_model(model: str, *, revision: str | None, allow_pickle: bool) -> Checkpoint:
    """Raises as `find_checkpoint` does, and UsageError for a model that does not tell what it looks at."""
    from deit_batch.model.attention import require_attention

    checkpoint = checkpoint_of(Options(input="-", model=model, revision=revision, allow_pickle=allow_pickle))
    require_attention(checkpoint)
    return checkpoint


def attention_of(
    checkpoint: Checkpoint, images: Iterable[Reference], run: Mapping[str, Any] | None, limits: Limits
) -> Attention:
    """At each image, under its index; the tokens' mean, where a model has two. `run`: the settings of the run that
    gave the predictions, if they are known. An image that can't be had says why."""
    import torch

    from deit_batch.loading.thumbnails import thumbnails
    from deit_batch.model.attention import Watcher

    recipe = _recipe_of(checkpoint, run)
    others = _others(checkpoint, recipe, run)
    for what in others:
        logger.warning("--attention %s: %s", checkpoint.name, what)
    found = Attention(checkpoint.name, others, {}, {})
    watcher = Watcher(checkpoint, recipe, torch.device("cpu"), "float32")  # of a few dozen images
    for image, pixels in thumbnails(images, limits, recipe):
        if isinstance(pixels, Failure):
            found.pictures[image.index] = pixels
        else:
            look = watcher.look(pixels)
            found.pictures[image.index] = as_uri(look.picture)
            found.tints[image.index] = _as_png(tint(look.shares.mean(0)))
    return found


def _recipe_of(checkpoint: Checkpoint, run: Mapping[str, Any] | None) -> Recipe:
    """The checkpoint's own, with the short cuts of the run."""
    said = (run or {}).get("recipe") or {}
    own = find_recipe(checkpoint, None)
    return replace(own, fast=bool(said.get("fast")), scale_deep_gray=bool(said.get("scale_deep_gray")))


def _others(checkpoint: Checkpoint, recipe: Recipe, run: Mapping[str, Any] | None) -> list[str]:
    if not run:
        return ["it is not known which model gave the predictions, for no run report lies beside them"]
    found = []
    if run.get("checkpoint_sha256") != checkpoint.digest:
        found.append("the predictions are of other weights")
    if run.get("recipe") != json.loads(json.dumps(recipe.as_dict())):
        found.append("the predictions were made with another image processor")
    return found


def _as_png(picture: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
