"""Pixels in, scores out: normalised, in batches, split where memory is small; whatever computes the logits."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from deit_batch.checkpoints import Checkpoint
from deit_batch.errors import DeitBatchError, UsageError
from deit_batch.images import Recipe

logger = logging.getLogger("deit_batch")

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Forward: TypeAlias = Callable[[Tensor], Tensor]
"""Pixel values, [n, 3, height, width], to logits, [n, classes]; on the classifier's device and in its dtype."""


def choose_device(name: str) -> torch.device:
    """ "auto" is the GPU if there is one. Raises UsageError for a device that this machine does not have."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise UsageError(f"--device {name}: give auto, cpu, cuda, cuda:N or mps")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name} can't be used on this machine: {reason}") from error
    return device


def choose_dtype(name: str, device: torch.device, checkpoint: Checkpoint) -> str:
    """ "auto" is float16 on a GPU and float32 on a CPU, whatever the weights were saved in, but what an exported
    checkpoint was exported to. Raises UsageError for what the device or the checkpoint does not have."""
    if checkpoint.weights == "onnx":
        if device.type != "cpu":
            raise UsageError(f"{checkpoint.name} is exported and runs on the CPU only, not on --device {device}")
        if name not in ("auto", checkpoint.dtype):
            raise UsageError(f"{checkpoint.name} is exported to {checkpoint.dtype}: it has no --dtype {name}")
        return str(checkpoint.dtype)
    if name == "auto":
        return "float32" if device.type == "cpu" else "float16"
    if name == "int8" and device.type != "cpu":
        raise UsageError("--dtype int8 is for CPUs only; float16 is the fast one on a GPU")
    if name not in (*DTYPES, "int8"):
        raise UsageError(f"dtype {name!r} is none of auto, {', '.join(DTYPES)}, int8")
    return name


def load_classifier(
    checkpoint: Checkpoint, recipe: Recipe, *, device: torch.device, dtype: str, pad_to: int | None = None
) -> Classifier:
    """Raises CheckpointError for a checkpoint that must not be scored with."""
    forward: Forward
    if checkpoint.weights == "onnx":
        from deit_batch.exported import Session

        forward = Session(checkpoint)
    else:
        from deit_batch.pytorch import load_weights  # imports transformers, which takes seconds

        forward = load_weights(checkpoint, device=device, dtype=DTYPES[dtype])
    return Classifier(
        forward,
        recipe,
        device=device,
        dtype=DTYPES.get(dtype, torch.float32),
        multi_label=checkpoint.multi_label,
        pad_to=pad_to,
    )


class Classifier:
    """Scores batches of pixels: uint8 [n, height, width, 3] on the CPU to float32 [n, classes] on the CPU, in 0..1."""

    def __init__(
        self,
        forward: Forward,
        recipe: Recipe,
        *,
        device: torch.device,
        dtype: torch.dtype,
        multi_label: bool,
        pad_to: int | None = None,
    ) -> None:
        """`pad_to`: the number of images in every forward pass, which black ones fill up. The matrix products then have
        one shape, and an image's scores are the same to the last bit whichever images come with it."""
        self._forward = forward
        self._device, self._dtype = device, dtype
        self._multi_label = multi_label
        self._padded = pad_to is not None
        self._largest = pad_to or sys.maxsize  # images at a time: all, until memory has run out
        shape = (1, 3, 1, 1)
        self._rescale = recipe.rescale_factor
        self._mean = torch.tensor(recipe.mean, device=device).view(shape)
        self._std = torch.tensor(recipe.std, device=device).view(shape)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Raises DeitBatchError if not even one image fits into the device's memory."""
        done: list[Tensor] = []
        while sum(map(len, done)) < len(pixels):
            start = sum(map(len, done))
            try:
                done.append(self._scores(self._pad(pixels[start : start + self._largest]))[: len(pixels) - start])
            except torch.OutOfMemoryError as error:
                self._shrink(self._largest if self._padded else min(self._largest, len(pixels) - start), error)
        return torch.cat(done)

    def _pad(self, pixels: Tensor) -> Tensor:
        if not self._padded or len(pixels) == self._largest:
            return pixels
        return torch.cat([pixels, pixels.new_zeros(self._largest - len(pixels), *pixels.shape[1:])])

    def _shrink(self, images: int, error: Exception) -> None:
        if images == 1:
            raise DeitBatchError(f"one image alone does not fit into the memory of {self._device}") from error
        self._largest = images // 2
        logger.warning(
            "%s images do not fit into the memory of %s: going on by %s", images, self._device, self._largest
        )

    @torch.inference_mode()
    def _scores(self, pixels: Tensor) -> Tensor:
        values = pixels.to(self._device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32)
        values = values.mul_(self._rescale).sub_(self._mean).div_(self._std)
        logits = self._forward(values.to(self._dtype)).float()
        scores = logits.sigmoid() if self._multi_label else logits.softmax(-1)
        return scores.cpu()
