"""The attention rollout as its paper says it, from the attentions that `transformers` gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray


def rollout_of_transformers(folder: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of a checkpoint at pixels [height, width, 3] that become -1..1: [tokens, tokens], after arXiv 2005.00928."""
    model = transformers.AutoModelForImageClassification.from_pretrained(folder, attn_implementation="eager")
    values = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        attentions = model(values, output_attentions=True).attentions
    product = np.eye(attentions[0].shape[-1])
    for attention in attentions:
        mean = attention[0].mean(0).double().numpy()
        assert np.allclose(mean.sum(1), 1)
        product = (0.5 * mean + 0.5 * np.eye(len(mean))) @ product
    return product.astype(np.float32)
