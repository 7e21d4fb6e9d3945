"""The tensors of a checkpoint, whatever form it has, by the names that `transformers` has for them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from deit_batch.errors import CheckpointAccessError, CheckpointError
from deit_batch.model.architecture import without_wrappers
from deit_batch.model.checkpoint import Checkpoint
from deit_batch.model.pickled import load_pickle
from deit_batch.model.timm import tensors_as_transformers


def read_tensors(checkpoint: Checkpoint, *, only_shapes: bool = False) -> dict[str, Tensor]:
    """On the CPU; with `only_shapes` on the device "meta", and no value is read. Raises CheckpointError if they can't
    be had."""
    stored: dict[str, Tensor] = {}
    try:
        for path in checkpoint.files:
            if checkpoint.weights == "pickle":
                stored |= load_pickle(path, only_shapes=only_shapes, counters=checkpoint.own_geometry is None)
            else:
                stored |= _shapes_of(path) if only_shapes else safetensors.torch.load_file(path)
    except OSError as error:
        raise CheckpointAccessError(f"{checkpoint.name} can't be loaded: {error}") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{checkpoint.name} can't be loaded: {' '.join(str(error).split())}") from error
    stored = without_wrappers(stored, checkpoint.name)
    if checkpoint.form == "timm":
        return tensors_as_transformers(stored, checkpoint.geometry.tokens)
    return stored


def _shapes_of(path: Path) -> dict[str, Tensor]:
    with safetensors.safe_open(path, "pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        return {
            name: torch.empty(
                one.get_shape(), dtype=torch.int64 if one.get_dtype() == "I64" else torch.float32, device="meta"
            )
            for name, one in slices.items()
        }


def require_finite(tensors: Iterable[tuple[str, Tensor]], name: str) -> None:
    """Raises CheckpointError for the checkpoint called `name`, as a training that has diverged leaves it."""
    for tensor_name, tensor in tensors:
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} is broken: {tensor_name} has numbers that are not finite")
