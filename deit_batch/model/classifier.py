"""Pixels in, scores or features out: normalised, in batches, split where memory is small; whatever computes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch
from torch import Tensor

from deit_batch.errors import DeitBatchError, UsageError
from deit_batch.io import FeatureName, counted
from deit_batch.model.architecture import Geometry
from deit_batch.model.checkpoint import Checkpoint
from deit_batch.model.engines import Engine, Result, Scores, Streams, Threads
from deit_batch.model.recipe import Recipe
from deit_batch.system.logs import warn_even_if_quiet
from deit_batch.system.machine import cores

if TYPE_CHECKING:
    from deit_batch.model.auto_model import AutoModel
    from deit_batch.model.transformer import Transformer

logger = logging.getLogger("deit_batch")

Value = TypeVar("Value")

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
GPU_BATCH = 128
"""At most: a larger one is hardly faster, and a few of them lie decoded in the host's memory for each worker."""
GPU_SHARE = 0.5
"""Of the card's memory for what a pass computes; the rest is for weights, libraries and other programs."""

Forward: TypeAlias = Callable[[Tensor], Tensor]
"""Pixel values, [n, 3, height, width], to logits, [n, classes], or features, [n, features, width]; on the classifier's
device and in its dtype."""


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
    if checkpoint.runtime == "onnx" and device.type != "cpu":
        raise UsageError(f"--runtime onnx and --dtype int8 are for CPUs only, not for --device {device}")
    if checkpoint.runtime == "onnx" and name not in ("auto", "float32", "int8"):
        raise UsageError(f"--runtime onnx computes in float32 or int8, not in {name}")
    if name == "auto":
        return "float32" if device.type == "cpu" else "float16"
    if name == "int8" and device.type != "cpu":
        raise UsageError("--dtype int8 is for CPUs only; float16 is the fast one on a GPU")
    if name not in (*DTYPES, "int8"):
        raise UsageError(f"dtype {name!r} is none of auto, {', '.join(DTYPES)}, int8")
    return name


def passes_at_once(device: torch.device, granted: int | None = None) -> int:
    return min(granted or cores(), MOST_PASSES) if device.type == "cpu" else 1


def choose_sizes(
    device: torch.device, geometry: Geometry, dtype: str, batch_size: int | None = None
) -> tuple[int, int]:
    """How many images a batch, if that is not given, and how many a forward pass: on a GPU they are the same."""
    if device.type != "cpu":
        batch_size = batch_size or max_batch_size(geometry, DTYPES[dtype].itemsize, _memory(device))
        return batch_size, batch_size
    best = 1 if dtype == "int8" else TOKENS_A_PASS // geometry.tokens
    pass_size = max(1, min(best, MOST_A_PASS, batch_size or MOST_A_PASS))
    return batch_size or max(SMALLEST_BATCH, PASSES_A_BATCH * passes_at_once(device) * pass_size), pass_size


def max_batch_size(geometry: Geometry, itemsize: int, memory: int) -> int:
    """The largest power of two, up to GPU_BATCH, of images whose pass takes less than GPU_SHARE of `memory` bytes, by a
    generous count of what is alive at a time. It depends on the card alone, not on what else runs on it, so that a run
    can be continued; where it is too many after all, the classifier halves it."""
    height, width = geometry.image_size
    pixels = height * width * 3 * (1 + 4 + itemsize)
    hidden = geometry.tokens * (8 * geometry.hidden_size + 2 * geometry.intermediate_size) * itemsize
    attention = geometry.num_attention_heads * geometry.tokens**2 * 2 * itemsize  # without a fused kernel
    images = int(memory * GPU_SHARE / (pixels + hidden + attention))
    return min(GPU_BATCH, 1 << max(0, images.bit_length() - 1))


def _memory(device: torch.device) -> int:
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return torch.cuda.get_device_properties(device).total_memory


def load_classifier(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    device: torch.device,
    dtype: str,
    pass_size: int,
    compile: bool = False,
    features: Sequence[FeatureName] | None = None,
    most_cores: int | None = None,
    float32_fallback: bool = False,
) -> Classifier:
    """Its results are these `features`, if there are any, instead of scores. It takes `most_cores` of those that are
    granted, or all. With `float32_fallback`, images whose results are not finite are scored again in float32.

    Raises CheckpointError for a checkpoint that must not be scored with, DeitBatchError if it can't be compiled."""
    granted = min(cores(), most_cores or cores())
    passes = passes_at_once(device, granted)
    threads = granted // passes
    forward: Forward
    if checkpoint.weights == "onnx":
        from deit_batch.model.onnx import Session

        forward = Session(checkpoint, threads)
    else:
        try:
            model = _load_model(checkpoint, device, DTYPES[dtype], pass_size)
        except torch.OutOfMemoryError as error:
            raise DeitBatchError("the model's weights do not fit into the memory of the device") from error
        forward = partial(model.features, names=features) if features else model
    values_dtype = DTYPES.get(dtype, torch.float32)
    if features:
        scores = make_output_function(forward, recipe, device=device, dtype=values_dtype)
    else:
        scores = make_score_function(
            forward, recipe, device=device, dtype=values_dtype, multi_label=checkpoint.multi_label
        )
    if compile:
        height, width = recipe.size
        pixels = torch.zeros(pass_size, height, width, 3, dtype=getattr(torch, recipe.dtype), device=device)
        scores = compiled(scores, pixels)
    load_exact = partial(
        load_classifier,
        checkpoint,
        recipe,
        device=device,
        dtype="float32",
        pass_size=pass_size,
        features=features,
        most_cores=most_cores,
    )
    engine: Engine
    if device.type == "cuda":
        engine = Streams(scores, device)
    else:
        engine = Threads(scores, device, passes=passes, threads=threads)
    return Classifier(engine, pass_size, load_exact if float32_fallback else None)


def _load_model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, pass_size: int
) -> Transformer | AutoModel:
    if checkpoint.runtime == "transformers":
        from deit_batch.model.auto_model import AutoModel

        return AutoModel(checkpoint, device=device, dtype=dtype)
    from deit_batch.model.transformer import load_weights

    return load_weights(checkpoint, device=device, dtype=dtype, pass_size=pass_size)


def make_score_function(
    forward: Forward, recipe: Recipe, *, device: torch.device, dtype: torch.dtype, multi_label: bool
) -> Scores:
    """All that is done with pixels, as one function of tensors: so a compiler sees the normalising, too."""
    logits_of = make_output_function(forward, recipe, device=device, dtype=dtype)

    def scores(pixels: Tensor) -> Tensor:
        logits = logits_of(pixels)
        return logits.sigmoid() if multi_label else logits.softmax(-1)

    return scores


def make_output_function(forward: Forward, recipe: Recipe, *, device: torch.device, dtype: torch.dtype) -> Scores:
    """What the model itself says, as float32."""
    shape = (1, 3, 1, 1)
    rescale = recipe.rescale_factor
    mean = torch.tensor(recipe.mean, device=device).view(shape)
    std = torch.tensor(recipe.std, device=device).view(shape)

    def outputs(pixels: Tensor) -> Tensor:
        values = pixels.permute(0, 3, 1, 2).to(torch.float32)
        values = values.mul_(rescale).sub_(mean).div_(std)
        return forward(values.to(dtype)).float()

    return outputs


def compiled(scores: Scores, pixels: Tensor) -> Scores:
    """The same function as kernels fused by torch.compile, on a GPU replayed as one CUDA graph; compiled at once, for
    the shape of `pixels`. torch keeps what it compiled for the next run (TORCHINDUCTOR_CACHE_DIR)."""
    fast: Scores = torch.compile(scores, fullgraph=True, dynamic=False, mode="reduce-overhead")
    try:
        with torch.inference_mode():
            for _ in range(3):  # a CUDA graph is warmed up, then recorded, then replayed
                fast(pixels)
    except torch.OutOfMemoryError:
        pass  # the classifier makes smaller passes, and says so
    except Exception as error:  # of Triton's, of a C++ compiler's
        reason = " ".join(str(error).split())
        raise UsageError(f"the model can't be compiled here; leave out --compile ({reason:.200})") from error
    return fast


class Classifier:
    """Scores batches of pixels: uint8 [n, height, width, 3] on the CPU to float32 [n, classes] on the CPU, in 0..1; or,
    where it was loaded for them, to features [n, features, width].

    Every forward pass is of `pass_size` images, which black ones fill up. So its matrix products have one shape, and an
    image's scores are the same to the last bit whichever images come with it.

    `load_exact` gives a classifier of a larger range, which scores again what is not finite. It is loaded when there is
    such an image, and kept."""

    def __init__(self, engine: Engine, pass_size: int, load_exact: Callable[[], Classifier] | None = None) -> None:
        self._engine = engine
        self._pass_size = self._size_last_said = pass_size
        self._load_exact = load_exact
        self._exact: Classifier | None = None
        self.repeated = 0
        """Images that were scored again so far."""

    def close(self) -> None:
        self._engine.close()
        if self._exact:
            self._exact.close()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Raises DeitBatchError if not even one image fits into the device's memory."""
        return self.submit(pixels)()

    def submit(self, pixels: Tensor) -> Result:
        """Starts scoring; what it returns is called once, waits for the end, and returns or raises what calling this
        object would."""
        if not len(pixels):
            return lambda: torch.empty(0, 1)
        size = self._pass_size
        passes = self._if_it_fits(size, lambda: [self._engine.start(part, size) for part in pixels.split(size)])
        if passes is None:
            return self._submit_again(pixels)

        def scores() -> Tensor:
            found = self._results(size, passes)
            if found is None:
                return self._submit_again(pixels)()
            self._say(size)
            return self._repeat_in_float32(pixels, found) if self._load_exact else found

        return scores

    def _repeat_in_float32(self, pixels: Tensor, found: Tensor) -> Tensor:
        """The scores, or features, of which those that are not finite are replaced."""
        well = found.flatten(1).isfinite().all(-1)
        if well.all() or self._load_exact is None:
            return found
        try:
            self._exact = self._exact or self._load_exact()
            repeated = self._exact(pixels[~well])
        except DeitBatchError as error:  # what could be scored must not be lost for what could not
            warn_even_if_quiet("images that float16 can't hold fail, for they can't be scored in float32: %s", error)
            self._load_exact = None
            return found
        self.repeated += len(repeated)
        found = found.clone()  # it may be memory that is used again
        found[~well] = repeated
        return found

    def _results(self, size: int, passes: list[Result]) -> Tensor | None:
        """Waits for all passes, also when one did not fit, and keeps none of them: what is tried next may need their
        memory. None if one did not fit."""
        found = [self._if_it_fits(size, result) for result in passes]
        passes.clear()
        there = [scores for scores in found if scores is not None]
        return torch.cat(there) if len(there) == len(found) else None

    def _if_it_fits(self, size: int, work: Callable[[], Value]) -> Value | None:
        """What `work` returns; None if the memory is full, and then later passes are smaller. Trying again is left to
        the caller: as long as an error is being handled, its traceback keeps the tensors of the pass that failed."""
        try:
            return work()
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise DeitBatchError("one image alone does not fit into the memory of the device") from error
        if self._pass_size == size:  # else it was done for a batch before
            self._pass_size = size // 2
        return None

    def _submit_again(self, pixels: Tensor) -> Result:
        self._engine.empty_cache()
        return self.submit(pixels)

    def _say(self, size: int) -> None:
        """Once, when it is known what fits, and not at each halving on the way there."""
        if size < self._size_last_said:
            message = "%s at once do not fit into the memory of the device: going on by %s"
            logger.warning(message, counted(self._size_last_said, "image"), size)
            self._size_last_said = size
