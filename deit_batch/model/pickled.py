"""Weights that are pickled: read without running what else may be pickled with them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from deit_batch.errors import CheckpointAccessError, CheckpointError
from deit_batch.model.architecture import Shape


def load_pickle(path: Path, *, only_shapes: bool = False, counters: bool = False) -> dict[str, Tensor]:
    """The tensors by their names; of a training's checkpoint, as DeiT's authors write it, those of its model. With
    `only_shapes` no value is read; with `counters` there may be whole numbers of 64 bits among them. Raises
    CheckpointError."""
    try:
        # What the authors' main.py writes holds its arguments, too: a Namespace runs nothing when it is made.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="meta" if only_shapes else "cpu", weights_only=True)
    except OSError as error:
        raise CheckpointAccessError(f"{path} can't be loaded: {error}") from error
    except Exception as error:  # a pickle raises whatever it likes
        raise CheckpointError(f"{path} can't be loaded: {' '.join(str(error).split()):.300}") from error
    if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
        found = found["model"]
    if not isinstance(found, Mapping) or not all(
        _is_weight(value) or (counters and _is_counter(value)) for value in found.values()
    ):
        raise CheckpointError(
            f"{path} can't be loaded: it holds something else than named tensors of floating-point numbers"
        )
    return {str(name): tensor for name, tensor in found.items()}


def _is_weight(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_counter(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64


def shapes_in_pickle(path: Path, *, counters: bool = False) -> dict[str, Shape]:
    """Raises CheckpointError, also for weights that are said to be larger than the file, as no file proves them."""
    tensors = load_pickle(path, only_shapes=True, counters=counters)
    if sum(tensor.numel() * tensor.itemsize for tensor in tensors.values()) > path.stat().st_size:
        raise CheckpointError(f"{path} can't be loaded: its weights are said to be larger than the file")
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
