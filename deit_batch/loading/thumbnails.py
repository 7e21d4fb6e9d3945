"""Small pictures of images, for people: fetched and decoded in workers, within the limits that hold for scoring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from deit_batch.io import Failure, Reference
from deit_batch.limits import Limits
from deit_batch.loading.loader import Loader, batched
from deit_batch.model.recipe import Recipe

SIDE = 224
"""Pixels."""

Picture: TypeAlias = NDArray[np.uint8]
"""[height, width, 3]."""

SQUARE = Recipe(
    resize=SIDE, resample=2, crop=(SIDE, SIDE), rescale_factor=1.0, mean=(0.0,) * 3, std=(1.0,) * 3, fast=True
)
"""SIDE by SIDE, from the middle of an image."""
_BATCH_SIZE, _WORKERS = 8, 2


def thumbnails(
    references: Iterable[Reference], limits: Limits, recipe: Recipe = SQUARE
) -> Iterator[tuple[Reference, Picture | Failure]]:
    """Of each image its picture by the recipe, or why it can't be had, in order. A decoder that crashes or hangs costs
    its own image alone."""
    with closing(Loader(recipe, limits, workers=_WORKERS, pin_memory=False)) as loader:
        for batch, decoded in loader.stream(batched(references, _BATCH_SIZE)):
            pictures = iter(decoded.pixels.numpy())
            for place, reference in enumerate(batch):
                settled = decoded.settled.get(place)
                yield reference, settled if isinstance(settled, Failure) else next(pictures)
