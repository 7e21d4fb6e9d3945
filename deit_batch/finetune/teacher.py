"""The teacher of a distillation (arXiv 2012.12877, section 4): any image classifier of transformers, asked what it says
of what the student sees."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModelForImageClassification

from deit_batch.errors import CheckpointAccessError, CheckpointError
from deit_batch.model.hub import HUB_NAME
from deit_batch.model.matching import Matching, log_inexact


class Teacher:
    """Values in 0..1, float32 [n, 3, height, width], to its logits of the student's classes, [n, classes]."""

    def __init__(self, name: str, class_names: Sequence[str], device: torch.device) -> None:
        """Raises CheckpointError if it can't be loaded, does not know every class as another than the rest
        (model/matching.py), or has an image processor that can't be followed."""
        try:
            model = AutoModelForImageClassification.from_pretrained(name)
            self._view = _View(AutoImageProcessor.from_pretrained(name), device)
            known = [str(label) for _, label in sorted(model.config.id2label.items())]
            self._model = model.eval().requires_grad_(False).to(device)
            self._numbers = torch.arange(len(known), device=device)
            self(torch.zeros(1, 3, 32, 32, device=device))  # what does not fit together is found out now
        except OSError as error:  # as transformers says of the Hub, too
            kind = CheckpointAccessError if HUB_NAME.fullmatch(name) and not os.path.isdir(name) else CheckpointError
            raise kind(f"--teacher {name} can't be used: {' '.join(str(error).split())}") from error
        except Exception as error:  # whatever its many classes raise
            raise CheckpointError(f"--teacher {name} can't be used: {' '.join(str(error).split())}") from error
        self._numbers = torch.tensor(_numbers_of(class_names, known, name), device=device)

    @torch.no_grad()
    def __call__(self, values: Tensor) -> Tensor:
        logits: Tensor = self._model(pixel_values=self._view(values)).logits
        return logits[:, self._numbers]


def _numbers_of(class_names: Sequence[str], known: Sequence[str], teacher: str) -> list[int]:
    """The teacher's number of each class. Raises CheckpointError if it has none, or one for two of them."""
    matching = Matching(known, {})
    numbers = {label: matching(label) for label in class_names}
    if matching.unknown:
        raise CheckpointError(
            f"--teacher {teacher} does not know {', '.join(matching.unknown):.200}; its classes are "
            f"{', '.join(known):.200}"
        )
    labels: dict[int, str] = {}
    for label, number in numbers.items():
        if number is not None and labels.setdefault(number, label) != label:
            raise CheckpointError(
                f"--teacher {teacher} takes {labels[number]} and {label} for one class, {known[number]}"
            )
    log_inexact(matching, "the teacher")
    return list(labels)


class _View:
    """What the student sees as the teacher's image processor would give it: it has been cut out already, so that only
    the size of the processor's result counts, cropped or not."""

    def __init__(self, processor: Any, device: torch.device) -> None:
        """Raises ValueError if it says no size."""
        size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        self._size = _sides(size)
        normalises = getattr(processor, "do_normalize", False)
        self._mean = _channels(processor.image_mean if normalises else 0.0, device)
        self._std = _channels(processor.image_std if normalises else 1.0, device)
        self._scale = 255 * (processor.rescale_factor if getattr(processor, "do_rescale", False) else 1)
        self._flips = bool(getattr(processor, "do_flip_channel_order", False))

    def __call__(self, values: Tensor) -> Tensor:
        if values.shape[-2:] != self._size:
            values = functional.interpolate(values, self._size, mode="bilinear", antialias=True, align_corners=False)
        if self._flips:
            values = values.flip(1)
        return (values * self._scale - self._mean) / self._std


def _sides(size: Any) -> tuple[int, int]:
    """Of the images that a processor gives: transformers has several ways to say it."""
    if size["height"] and size["width"]:
        return size["height"], size["width"]
    if size["shortest_edge"]:
        return size["shortest_edge"], size["shortest_edge"]
    raise ValueError(f"its image processor has a size that is not understood: {size}")


def _channels(value: Any, device: torch.device) -> Tensor:
    return torch.tensor(value, device=device, dtype=torch.float32).expand(3).view(1, 3, 1, 1)
