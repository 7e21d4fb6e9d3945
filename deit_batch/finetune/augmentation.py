"""What training does to images so that none is seen twice the same: kornia's operations, on whole batches, in the
device's memory. Randomness is torch's own, which the Trainer keeps in its checkpoints: a resumed run draws the same.

RandAugment and random erasing as the model card names them, Mixup and CutMix as in arXiv 2012.12877, table 9.
"""

from __future__ import annotations

from typing import Any

import torch
from kornia import augmentation as kornia
from kornia.augmentation.auto import RandAugment
from torch import Tensor

from deit_batch.finetune.settings import Settings

RANDAUGMENT_OPERATIONS = 2
"""For a whole batch: kornia does not draw others for each image."""
CROP_RATIO = (3 / 4, 4 / 3)
ERASED = (0.02, 0.2)
"""Share of the image's area."""


class Augmentation:
    """Values in 0..1, float32 [n, 3, height, width], and targets, float32 [n, classes], to the same, the targets mixed
    where the images are."""

    def __init__(self, settings: Settings, size: tuple[int, int]) -> None:
        steps: list[Any] = []
        if settings.crop < 1:
            steps.append(kornia.RandomResizedCrop(size, scale=(settings.crop, 1.0), ratio=CROP_RATIO))
        if settings.flip:
            steps.append(kornia.RandomHorizontalFlip())
        if settings.randaugment:
            steps.append(RandAugment(n=RANDAUGMENT_OPERATIONS, m=settings.randaugment))
        if settings.random_erasing:
            steps.append(kornia.RandomErasing(scale=ERASED, p=settings.random_erasing))
        self._each = kornia.AugmentationSequential(*steps, data_keys=["input"]) if steps else None
        keys = ["input", "class"]
        self._mix: list[Any] = []
        if settings.mixup:
            self._mix.append(kornia.RandomMixUpV2(lambda_val=(0.0, settings.mixup), data_keys=keys))
        if settings.cutmix:
            beta = torch.tensor(settings.cutmix)
            self._mix.append(kornia.RandomCutMixV2(beta=beta, use_correct_lambda=True, data_keys=keys))

    @torch.no_grad()
    def __call__(self, values: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self._each is not None:
            values = self._each(values).clamp_(0, 1)
        if not self._mix:
            return values, targets
        mix = self._mix[int(torch.randint(len(self._mix), ()))]
        # Both take class numbers; given the images' own, they say which other each was mixed with, and in what share.
        values, pairs = mix(values, torch.arange(len(values), device=values.device))
        _, others, share = pairs.reshape(-1, 3).T
        if isinstance(mix, kornia.RandomCutMixV2):  # whose share is the image's own, where Mixup's is the other's
            share = 1 - share
        return values, torch.lerp(targets, targets[others.long()], share[:, None])
