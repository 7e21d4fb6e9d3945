"""Pixels in, scores out: normalised, in batches, split where memory is small; whatever computes the logits."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import torch
from torch import Tensor

from deit_batch.checkpoints import Checkpoint
from deit_batch.errors import DeitBatchError, UsageError
from deit_batch.images import Recipe
from deit_batch.machine import cores

logger = logging.getLogger("deit_batch")

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

MOST_PASSES = 8
"""Side by side on a CPU. Where there are more cores, each pass takes several: between two operations a pass holds
Python's lock. (The number is a guess; on two cores nothing waits.)"""
TOKENS_A_PASS = 400
"""On a CPU: rows enough for the matrix products to run at full speed, few enough for a core's cache."""
MOST_A_PASS = 16
PASSES_A_BATCH = 4
"""For each that runs at once: with more, less time is lost at the batch's end; with fewer, records come sooner."""
SMALLEST_BATCH = 16
GPU_BATCH = 64

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
    exported = checkpoint.exported_dtype
    if exported:
        if device.type != "cpu":
            raise UsageError(f"{checkpoint.name} is exported and runs on the CPU only, not on --device {device}")
        if name not in ("auto", exported):
            raise UsageError(f"{checkpoint.name} is exported to {exported}: it has no --dtype {name}")
        return exported
    if name == "auto":
        return "float32" if device.type == "cpu" else "float16"
    if name == "int8" and device.type != "cpu":
        raise UsageError("--dtype int8 is for CPUs only; float16 is the fast one on a GPU")
    if name not in (*DTYPES, "int8"):
        raise UsageError(f"dtype {name!r} is none of auto, {', '.join(DTYPES)}, int8")
    return name


def passes_at_once(device: torch.device) -> int:
    return min(cores(), MOST_PASSES) if device.type == "cpu" else 1


def choose_sizes(device: torch.device, checkpoint: Checkpoint, batch_size: int | None) -> tuple[int, int]:
    """How many images a batch, if that is not given, and how many a forward pass: on a GPU they are the same."""
    if device.type != "cpu":
        batch_size = batch_size or GPU_BATCH
        return batch_size, batch_size
    best = 1 if checkpoint.exported_dtype == "int8" else TOKENS_A_PASS // checkpoint.geometry.tokens
    pass_size = max(1, min(best, MOST_A_PASS, batch_size or MOST_A_PASS))
    return batch_size or max(SMALLEST_BATCH, PASSES_A_BATCH * passes_at_once(device) * pass_size), pass_size


def load_classifier(
    checkpoint: Checkpoint, recipe: Recipe, *, device: torch.device, dtype: str, pass_size: int
) -> Classifier:
    """Raises CheckpointError for a checkpoint that must not be scored with."""
    passes = passes_at_once(device)
    threads = cores() // passes
    forward: Forward
    if checkpoint.weights == "onnx":
        from deit_batch.exported import Session

        forward = Session(checkpoint, threads)
    else:
        from deit_batch.pytorch import load_weights

        forward = load_weights(checkpoint, device=device, dtype=DTYPES[dtype], pass_size=pass_size)
    return Classifier(
        forward,
        recipe,
        device=device,
        dtype=DTYPES.get(dtype, torch.float32),
        multi_label=checkpoint.multi_label,
        pass_size=pass_size,
        pool=ThreadPoolExecutor(passes, "forward", torch.set_num_threads, (threads,)),
    )


class Classifier:
    """Scores batches of pixels: uint8 [n, height, width, 3] on the CPU to float32 [n, classes] on the CPU, in 0..1.

    Every forward pass is of `pass_size` images, which black ones fill up. So its matrix products have one shape, and an
    image's scores are the same to the last bit whichever images come with it. On a CPU the passes are small and run
    side by side, one a core, in the threads of `pool`: with all cores in one pass, each would wait for the slowest
    after every operation, and a core that also decodes would hold up the others."""

    def __init__(
        self,
        forward: Forward,
        recipe: Recipe,
        *,
        device: torch.device,
        dtype: torch.dtype,
        multi_label: bool,
        pass_size: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._forward = forward
        self._device, self._dtype = device, dtype
        self._multi_label = multi_label
        self._pass_size = pass_size
        self._pool = pool
        # Called by the user, or else when the program ends: later, what it needs may be gone.
        self.close = weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        shape = (1, 3, 1, 1)
        self._rescale = recipe.rescale_factor
        self._mean = torch.tensor(recipe.mean, device=device).view(shape)
        self._std = torch.tensor(recipe.std, device=device).view(shape)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Raises DeitBatchError if not even one image fits into the device's memory."""
        return self.submit(pixels)()

    def submit(self, pixels: Tensor) -> Callable[[], Tensor]:
        """Starts scoring; what it returns waits for the end, and returns or raises what calling this object would."""
        if not len(pixels):
            return lambda: torch.empty(0, 1)
        size = self._pass_size
        passes = [self._pool.submit(self._scores, part, size) for part in pixels.split(size)]

        def scores() -> Tensor:
            try:
                return torch.cat([one.result() for one in passes])
            except torch.OutOfMemoryError as error:
                self._shrink(size, error)
            return self(pixels)

        return scores

    def _shrink(self, size: int, error: Exception) -> None:
        if size == 1:
            raise DeitBatchError(f"one image alone does not fit into the memory of {self._device}") from error
        if self._pass_size == size:  # else it was done for a batch before
            self._pass_size = size // 2
            message = "%s images do not fit into the memory of %s: going on by %s"
            logger.warning(message, size, self._device, self._pass_size)

    @torch.inference_mode()
    def _scores(self, pixels: Tensor, pass_size: int) -> Tensor:
        count = len(pixels)
        if count < pass_size:
            pixels = torch.cat([pixels, pixels.new_zeros(pass_size - count, *pixels.shape[1:])])
        values = pixels.to(self._device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32)
        values = values.mul_(self._rescale).sub_(self._mean).div_(self._std)
        logits = self._forward(values.to(self._dtype))[:count].float()
        scores = logits.sigmoid() if self._multi_label else logits.softmax(-1)
        return scores.cpu()
