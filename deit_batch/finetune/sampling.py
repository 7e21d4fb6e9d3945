"""Which images an epoch shows, in which order, and by which random numbers each of them is changed.

What comes after is told by the seed, the epoch and the place in it alone. So a run that is resumed, with any number of
workers, shows what it would have shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """An image of the training set, shown at a place of an epoch; `seed` is the training's."""

    image: int
    seed: int
    epoch: int
    place: int

    def dice(self, *more: int) -> np.random.Generator:
        """The generator of all that is random about it; `more` makes another one."""
        return np.random.default_rng([self.seed, self.epoch, self.place, *more])


class EpochSampler(Sampler[Draw]):
    """All images in random order; with `repeats`, so many random ones, each of them so many times in a row that one
    batch shows it in several augmentations (repeated augmentation, arXiv 1902.05509: an epoch stays as long as it was;
    DeiT's RASampler)."""

    def __init__(self, count: int, seed: int, repeats: int) -> None:
        self._count, self._seed, self._repeats = count, seed, repeats
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Draw]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._count)
        for place, image in enumerate(np.repeat(order, self._repeats)[: self._count].tolist()):
            yield Draw(image, self._seed, self._epoch, place)
