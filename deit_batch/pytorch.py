"""A checkpoint's own weights, through `transformers`: pixel values in, logits out."""

from __future__ import annotations

import logging
import warnings

import torch
import transformers
from torch import Tensor, nn

from deit_batch.checkpoints import Checkpoint
from deit_batch.errors import CheckpointError

logger = logging.getLogger("deit_batch")


class Logits(nn.Module):
    """A classifier of `transformers` as a plain function: pixel values [n, 3, height, width] to logits [n, classes]."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.classifier(pixel_values=pixel_values).logits
        return logits


def load_weights(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> Logits:
    """Raises CheckpointError unless every tensor that is scored with came from the checkpoint."""
    model_class = getattr(transformers, checkpoint.architecture)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module, loading = model_class.from_pretrained(
                checkpoint.folder,
                dtype=dtype,
                use_safetensors=checkpoint.weights == "safetensors",
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
    return Logits(module.eval().to(device))
