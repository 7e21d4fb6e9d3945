"""What a DeiT or ViT looked at: the attention rollout of the tokens that its heads look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from deit_batch.errors import UsageError
from deit_batch.model.checkpoint import Checkpoint
from deit_batch.model.classifier import DTYPES, make_output_function
from deit_batch.model.config import not_ours
from deit_batch.model.recipe import Recipe

if TYPE_CHECKING:
    from deit_batch.model.engines import Scores


@dataclass(frozen=True, slots=True)
class Look:
    """At one image. `picture`: uint8 [height, width, 3], what the model was given, as far as its patches reach;
    `shares`: float32 [tokens, rows, columns], of each of `tokens`, by name, how much comes from which patch."""

    picture: NDArray[np.uint8]
    tokens: tuple[str, ...]
    shares: NDArray[np.float32]


class Watcher:
    """A model that tells what it looks at. Its weights are there once more, beside those that score."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, device: torch.device, dtype: str) -> None:
        """Raises UsageError for a model without such attention, CheckpointError for weights that do not fit."""
        require_attention(checkpoint)
        from deit_batch.model.transformer import load_weights

        geometry = checkpoint.geometry
        model = load_weights(checkpoint, device=device, dtype=DTYPES[dtype])
        self._rollout: Scores = make_output_function(model.rollout, recipe, device=device, dtype=DTYPES[dtype])
        self._tokens = geometry.parts.special_tokens[: len(geometry.parts.heads)]
        self._seen = tuple(count * geometry.patch_size for count in geometry.grid)
        self._device = device

    @torch.inference_mode()
    def look(self, pixels: NDArray[Any]) -> Look:
        """`pixels`: uint8 [height, width, 3], of the recipe's size."""
        height, width = self._seen
        (shares,) = self._rollout(torch.tensor(pixels)[None].to(self._device)).cpu().numpy()
        return Look(pixels[:height, :width], self._tokens, shares)


def require_attention(checkpoint: Checkpoint) -> None:
    """Raises UsageError unless our own forward pass runs it: of what others compute, only scores are known."""
    if checkpoint.own_geometry is None:
        raise UsageError(f"--attention: {not_ours(checkpoint.architecture, checkpoint.name)}")
    if checkpoint.runtime != "native":
        runtime = {"onnx": "ONNX Runtime", "transformers": "transformers"}[checkpoint.runtime]
        raise UsageError(
            f"--attention: {checkpoint.name} is run by {runtime} here, which tells scores alone; name a DeiT or ViT "
            "that is not exported, and leave out --runtime and --dtype int8"
        )
