"""Stochastic depth (arXiv 1603.09382), as timm's DropPath: in training, a branch of a layer is left out for some images
of a batch, and counts the more for the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def add_stochastic_depth(model: nn.Module, rate: float) -> None:
    """To both branches, attention and MLP, of every layer of a ViT or DeiT of transformers. `rate` is that of the last
    layer; it grows linearly from 0 at the first (section 3, "linear decay rule"). The weights keep their names."""
    (layers,) = (module for name, module in model.named_modules() if name.rpartition(".")[2] == "layers")
    for layer, share in zip(layers.children(), torch.linspace(0, rate, len(list(layers.children()))), strict=True):
        if share > 0:
            for branch in (layer.get_submodule("attention"), layer.get_submodule("mlp")):
                branch.register_forward_hook(_Dropping(float(share)))


class _Dropping:
    """A hook; a class, so that the module can be copied."""

    def __init__(self, share: float) -> None:
        self._share = share

    def __call__(self, branch: nn.Module, inputs: Any, output: Any) -> Any:
        if not branch.training:
            return None
        if isinstance(output, tuple):  # attention gives its weights, too
            return (drop(output[0], self._share), *output[1:])
        return drop(output, self._share)


def drop(values: Tensor, share: float) -> Tensor:
    """[n, …]: 0 for a random `share` of the n, the others so much larger that the expectation stays."""
    kept = torch.rand(len(values), *[1] * (values.ndim - 1), device=values.device) >= share
    return values * kept.to(values.dtype) / (1 - share)
