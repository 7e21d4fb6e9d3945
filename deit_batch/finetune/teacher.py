"""The teacher of a distillation: any image classifier of transformers, asked for its label of what the student sees
(hard-label distillation, arXiv 2012.12877, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import get_image_processor_config

from deit_batch.errors import CheckpointError

_MEAN, _STD, _SIZE = 0.5, 0.5, 224  # where its image processor leaves them out


class Teacher:
    """Values in 0..1, float32 [n, 3, height, width], to a class number of the student's for each, int64 [n]."""

    def __init__(self, name: str, class_names: Sequence[str], device: torch.device) -> None:
        """Raises CheckpointError if it can't be loaded, or does not know every class by the name that it has here."""
        try:
            model = AutoModelForImageClassification.from_pretrained(name)
            processor = get_image_processor_config(name)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"--teacher {name} can't be loaded: {' '.join(str(error).split())}") from error
        numbers = {label: number for number, label in model.config.id2label.items()}
        missing = [label for label in class_names if label not in numbers]
        if missing:
            raise CheckpointError(
                f"--teacher {name} does not know {', '.join(missing):.200}; its classes are {', '.join(numbers):.200}"
            )
        self._model = model.eval().requires_grad_(False).to(device)
        self._numbers = torch.tensor([numbers[label] for label in class_names], device=device)
        self._size = _side(processor.get("size")) or _SIZE
        self._mean = _channels(processor.get("image_mean", _MEAN), device)
        self._std = _channels(processor.get("image_std", _STD), device)

    @torch.no_grad()
    def __call__(self, values: Tensor) -> Tensor:
        if values.shape[-2:] != (self._size, self._size):
            values = functional.interpolate(
                values, (self._size, self._size), mode="bilinear", antialias=True, align_corners=False
            )
        logits: Tensor = self._model(pixel_values=(values - self._mean) / self._std).logits
        return logits[:, self._numbers].argmax(-1)


def _side(size: Any) -> int | None:
    """Of the squares that it takes: transformers has several ways to say it."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return None if size is None else int(size)


def _channels(value: Any, device: torch.device) -> Tensor:
    return torch.tensor(value, device=device).expand(3).view(1, 3, 1, 1)
