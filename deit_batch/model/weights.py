"""The tensors of a checkpoint, whatever form it has, by the names that `transformers` has for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    counters = checkpoint.own_geometry is None
    stored = read_files(checkpoint.files, checkpoint.name, only_shapes=only_shapes, counters=counters)
    if checkpoint.form == "timm":
        return tensors_as_transformers(stored, checkpoint.geometry.tokens)
    return stored


def read_files(
    files: Sequence[Path], name: str, *, only_shapes: bool = False, counters: bool = False
) -> dict[str, Tensor]:
    """The tensors in the files of the checkpoint called `name`, by their own names; `counters` as of `load_pickle`."""
    stored: dict[str, Tensor] = {}
    try:
        for path in files:
            if path.suffix == ".safetensors":
                stored |= _shapes_of(path) if only_shapes else safetensors.torch.load_file(path)
            else:
                stored |= load_pickle(path, only_shapes=only_shapes, counters=counters)
    except OSError as error:
        raise CheckpointAccessError(f"{name} can't be loaded: {error}") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{name} can't be loaded: {' '.join(str(error).split())}") from error
    return without_wrappers(stored, name)


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
