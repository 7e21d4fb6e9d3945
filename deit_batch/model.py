"""A checkpoint to a callable: pixels in, scores out."""

from __future__ import annotations

import logging
import sys
import warnings

import torch
import transformers
from torch import Tensor, nn

from deit_batch.checkpoints import Checkpoint
from deit_batch.errors import CheckpointError, DeitBatchError, UsageError
from deit_batch.images import Recipe

logger = logging.getLogger("deit_batch")

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is float16 on a GPU and float32 on a CPU, whatever the weights were saved in."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else "float16"
    if name not in DTYPES:
        raise UsageError(f"dtype {name!r} is none of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


class Classifier:
    """Scores batches of pixels: uint8 [n, height, width, 3] on the CPU to float32 [n, classes] on the CPU, in 0..1."""

    def __init__(self, module: nn.Module, recipe: Recipe, *, multi_label: bool, pad_to: int | None = None) -> None:
        """`pad_to`: the number of images in every forward pass, which black ones fill up. The matrix products then have
        one shape, and an image's scores are the same to the last bit whichever images come with it."""
        weight = next(module.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self._module = module
        self._multi_label = multi_label
        self._padded = pad_to is not None
        self._largest = pad_to or sys.maxsize  # images at a time: all, until memory has run out
        shape = (1, 3, 1, 1)
        self._rescale = recipe.rescale_factor
        self._mean = torch.tensor(recipe.mean, device=self.device).view(shape)
        self._std = torch.tensor(recipe.std, device=self.device).view(shape)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Raises DeitBatchError if not even one image fits into the device's memory."""
        done: list[Tensor] = []
        while sum(map(len, done)) < len(pixels):
            start = sum(map(len, done))
            try:
                done.append(self._forward(self._pad(pixels[start : start + self._largest]))[: len(pixels) - start])
            except torch.OutOfMemoryError as error:
                self._shrink(self._largest if self._padded else min(self._largest, len(pixels) - start), error)
        return torch.cat(done)

    def _pad(self, pixels: Tensor) -> Tensor:
        if not self._padded or len(pixels) == self._largest:
            return pixels
        return torch.cat([pixels, pixels.new_zeros(self._largest - len(pixels), *pixels.shape[1:])])

    def _shrink(self, images: int, error: Exception) -> None:
        if images == 1:
            raise DeitBatchError(f"one image alone does not fit into the memory of {self.device}") from error
        self._largest = images // 2
        logger.warning("%s images do not fit into the memory of %s: going on by %s", images, self.device, self._largest)

    @torch.inference_mode()
    def _forward(self, pixels: Tensor) -> Tensor:
        values = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32)
        values = values.mul_(self._rescale).sub_(self._mean).div_(self._std)
        logits = self._module(pixel_values=values.to(self.dtype)).logits.float()
        scores = logits.sigmoid() if self._multi_label else logits.softmax(-1)
        result: Tensor = scores.cpu()
        return result


def load_classifier(
    checkpoint: Checkpoint, recipe: Recipe, *, device: torch.device, dtype: torch.dtype, pad_to: int | None = None
) -> Classifier:
    """Loads the weights. Raises CheckpointError unless every tensor that is scored with came from the checkpoint."""
    model_class = getattr(transformers, checkpoint.architecture)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module, loading = model_class.from_pretrained(
                checkpoint.folder,
                dtype=dtype,
                use_safetensors=not checkpoint.pickled,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # the library raises whatever config, weights and torch raise
        raise CheckpointError(f"{checkpoint.name} can't be loaded: {' '.join(str(error).split())}") from error
    lost = sorted(loading["missing_keys"]) + sorted(str(key[0]) for key in loading["mismatched_keys"])
    if lost:
        raise CheckpointError(
            f"{checkpoint.name} must not be scored with: {len(lost)} of its weights were not in the checkpoint and are "
            f"random, {lost[0]} first"
        )
    # A pooler is left over from pre-training: no classifier uses it.
    unused = sorted(key for key in loading["unexpected_keys"] if ".pooler." not in key)
    if unused:
        raise CheckpointError(
            f"{checkpoint.name} must not be scored with: its config has no place for {len(unused)} of its weights, "
            f"{unused[0]} first"
        )
    classes = module.config.num_labels
    if classes != len(checkpoint.labels):
        raise CheckpointError(f"{checkpoint.name} has {classes} classes but names {len(checkpoint.labels)} labels")
    logger.debug("loaded %s as %s", checkpoint.folder, checkpoint.architecture)
    return Classifier(module.eval().to(device), recipe, multi_label=checkpoint.multi_label, pad_to=pad_to)
