"""What training does to a batch: Mixup, CutMix, and the noise in erased rectangles. What is to be done is drawn in the
workers, as the batch is put together; it is done on the device, where it costs next to nothing, without waiting for it.

As timm's Mixup does it in the mode "batch" (timm/data/mixup.py), with which DeiT was trained: every image is mixed with
the one at its place from the other end of the batch, all in the same way.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deit_batch.finetune.settings import Settings

UNMIXED = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
"""A row of `draw_mixing` that leaves all as it is."""


def draw_mixing(settings: Settings, size: tuple[int, int], dice: np.random.Generator) -> NDArray[np.float32]:
    """float32 [7], for images of `size` (height, width): an image's own share of its label, of its pixels outside of
    a rectangle and inside of it; and that rectangle: left, top, right, bottom.

    Mixup (arXiv 1710.09412): a share from Beta(α, α) of everything. CutMix (arXiv 1905.04899): a rectangle of the other
    image, whose area is one minus such a share, around a place anywhere in the image; the label's share is of the area
    that lies within. Where both are on, --mixup-switch-prob says how often it is CutMix."""
    cut = settings.cutmix > 0 and (settings.mixup == 0 or dice.random() < settings.mixup_switch_prob)
    if not cut and not settings.mixup:
        return np.array(UNMIXED, np.float32)
    alpha = settings.cutmix if cut else settings.mixup
    share = dice.beta(alpha, alpha)
    if not cut:
        return np.array([share, share, share, 0, 0, 0, 0], np.float32)
    height, width = size
    wide, high = (int(side * math.sqrt(1 - share)) for side in (width, height))
    x, y = dice.integers(width), dice.integers(height)
    left, right = np.clip([x - wide // 2, x + wide // 2], 0, width)
    top, bottom = np.clip([y - high // 2, y + high // 2], 0, height)
    own = 1 - (right - left) * (bottom - top) / (width * height)
    return np.array([own, 1, 0, left, top, right, bottom], np.float32)


def mix(values: Tensor, targets: Tensor, mixing: Tensor) -> tuple[Tensor, Tensor]:
    """Values, [n, 3, height, width], and targets, [n, classes], to the same. `mixing`: [n, 7], a row of `draw_mixing`
    for each image, all alike."""
    label, outside, inside, *box = mixing[0]
    height, width = values.shape[-2:]
    share = torch.where(_within(torch.stack(box)[None], height, width)[0], inside, outside)
    return torch.lerp(values.flip(0), values, share), torch.lerp(targets.flip(0), targets, label)


def erase(values: Tensor, erased: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Values, [n, 3, height, width], with noise in the rectangles `erased`, [n, 4] (left, top, width, height): it is
    normal in each value, with this mean and deviation, of which the image processor makes 0 and 1 (the mode "pixel" of
    timm's RandomErasing)."""
    left, top, wide, high = erased.unbind(1)
    boxes = torch.stack([left, top, left + wide, top + high], 1)
    return torch.where(_within(boxes, *values.shape[-2:])[:, None], torch.randn_like(values) * std + mean, values)


def _within(boxes: Tensor, height: int, width: int) -> Tensor:
    """Of each of the boxes, [n, 4] (left, top, right, bottom), which pixels lie in it: bool [n, height, width]."""
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    return ((top <= y) & (y < bottom))[:, :, None] & ((left <= x) & (x < right))[:, None, :]
