"""The forward pass of the three classes, from a checkpoint's own weights: pixel values in, logits or features out.

The same function as `transformers` computes (models/vit/modeling_vit.py, models/deit/modeling_deit.py; a test compares
them), after arXiv 2010.11929, section 3.1, and arXiv 2012.12877, section 4. Written out for two reasons: importing the
library takes longer than all else until the first image is scored, and where every pass has one shape, weights can be
laid out for it beforehand (benchmarks/choices.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from deit_batch.io import FeatureName
from deit_batch.model.architecture import Geometry, check_tensors
from deit_batch.model.checkpoint import Checkpoint
from deit_batch.model.weights import read_tensors, require_finite

Linear: TypeAlias = Callable[[Tensor], Tensor]
"""[rows, in] to [rows, out]."""

Look: TypeAlias = Callable[[Tensor, Tensor], None]
"""At a layer's query and key, each [n, heads, tokens, width / heads]."""


def load_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All that a model of its class has, by their names on the Hub, on the CPU. Raises CheckpointError unless each
    comes from the checkpoint, and every tensor of the checkpoint has its place; UsageError for another class."""
    geometry = checkpoint.geometry
    weights = read_tensors(checkpoint)
    check_tensors({name: tuple(tensor.shape) for name, tensor in weights.items()}, geometry, checkpoint.name)
    weights = {name: weights[name] for name, _ in geometry.tensors()}
    require_finite(weights.items(), checkpoint.name)
    return weights


def load_weights(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, pass_size: int | None = None
) -> Transformer:
    """With `pass_size`, laid out for passes of so many images. Raises CheckpointError as `load_tensors` does."""
    weights = {name: tensor.to(device, dtype) for name, tensor in load_tensors(checkpoint).items()}
    return Transformer(weights, checkpoint.geometry, pass_size=pass_size)


class Transformer(nn.Module):
    """Pixel values [n, 3, height, width] to logits [n, classes], both on the weights' device and in their dtype. A
    Module, so that it can be exported."""

    def __init__(self, weights: Mapping[str, Tensor], geometry: Geometry, *, pass_size: int | None) -> None:
        super().__init__()
        body = geometry.parts.body
        self._geometry = geometry
        self._heads = [(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in geometry.parts.heads]
        special_tokens = [weights[f"{body}.embeddings.{name}"][0] for name in geometry.parts.special_tokens]
        position = weights[f"{body}.embeddings.position_embeddings"][0]
        self._special_tokens = torch.cat(special_tokens) + position[: len(special_tokens)]
        self._position = position[len(special_tokens) :]

        def linear(*names: str, activation: str = "none", rows: int = geometry.tokens) -> Linear:
            """Of several names, one product for them all."""
            weight = torch.cat([weights[f"{name}.weight"].flatten(1) for name in names])
            biases = [weights[f"{name}.bias"] for name in names if f"{name}.bias" in weights]
            return _linear(weight, torch.cat(biases) if biases else None, activation, pass_size and pass_size * rows)

        def norm(name: str) -> Linear:
            weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            return lambda values: functional.layer_norm(values, weight.shape, weight, bias, geometry.layer_norm_eps)

        self._patches = linear(f"{body}.embeddings.patch_embeddings.projection", rows=geometry.patches)
        self._norm = norm(f"{body}.layernorm")
        self._layers = []
        for number in range(geometry.num_hidden_layers):
            layer = f"{body}.encoder.layer.{number}"
            attention = f"{layer}.attention.attention"
            self._layers.append(
                (
                    norm(f"{layer}.layernorm_before"),
                    linear(f"{attention}.query", f"{attention}.key", f"{attention}.value"),
                    linear(f"{layer}.attention.output.dense"),
                    norm(f"{layer}.layernorm_after"),
                    linear(f"{layer}.intermediate.dense", activation="gelu"),
                    linear(f"{layer}.output.dense"),
                )
            )

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self._encode(pixel_values)
        looked_at = self._norm(
            hidden[:, : len(self._heads)]
        )  # [n, heads, width]: each head looks at a token of its own
        logits = [functional.linear(looked_at[:, place], *head) for place, head in enumerate(self._heads)]
        return torch.stack(logits).mean(0)  # of both heads, where there are two (arXiv 2012.12877, section 4)

    def features(self, pixel_values: Tensor, names: Sequence[FeatureName]) -> Tensor:
        """Instead of logits, what the last layer says after its norm (`last_hidden_state` in `transformers`): float32
        [n, len(names), width], in the order of `names`."""
        hidden = self._norm(self._encode(pixel_values)).float()
        return torch.stack([hidden[:, self._geometry.features[name]].mean(1) for name in names], 1)

    def rollout(self, pixel_values: Tensor) -> Tensor:
        """Instead of logits, how much of each token that a head looks at comes from which patch: float32 [n, heads,
        rows, columns], which with the shares of the other tokens add up to 1. This is the attention rollout of arXiv
        2005.00928, section 3: the product of all layers' attention, each the mean of its heads (arXiv 2010.11929,
        appendix D, "Attention maps"), and half of it what the residual connection passes by."""
        geometry = self._geometry
        rolled = passed_by = torch.eye(geometry.tokens, device=pixel_values.device)

        def roll(query: Tensor, key: Tensor) -> None:
            nonlocal rolled
            products = query.float() @ key.float().transpose(-2, -1) / math.sqrt(query.shape[-1])
            attention = products.softmax(-1).mean(1)  # [n, tokens, tokens]
            rolled = (attention + passed_by) / 2 @ rolled

        self._encode(pixel_values, roll)
        looked_at = rolled[:, : len(self._heads), len(geometry.parts.special_tokens) :]  # [n, heads, patches]
        return looked_at.reshape(*looked_at.shape[:2], *geometry.grid)

    def _encode(self, pixel_values: Tensor, look: Look | None = None) -> Tensor:
        """Hidden states of the last layer, before the norm: [n, tokens, width]. `look` is shown each layer's query and
        key, and changes nothing."""
        n, width = pixel_values.shape[0], self._geometry.hidden_size  # len() would fix it in an export
        hidden = self._embed(pixel_values).reshape(-1, width)  # [n * tokens, width]
        for norm_before, qkv, out, norm_after, up, down in self._layers:
            query, key, value = self._split(qkv(norm_before(hidden)), n)
            if look:
                look(query, key)
            hidden = hidden + out(self._attend(query, key, value))  # [n * tokens, width]
            hidden = hidden + down(up(norm_after(hidden)))  # in between [n * tokens, intermediate_size]
        return hidden.view(n, -1, width)

    def _embed(self, pixel_values: Tensor) -> Tensor:
        """A patch is a row of its own, so that the convolution is a matrix product."""
        n, channels, _, _ = pixel_values.shape
        side = self._geometry.patch_size
        height, width = (count * side for count in self._geometry.grid)
        patches = pixel_values[:, :, :height, :width].reshape(n, channels, height // side, side, width // side, side)
        rows = patches.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels * side * side)  # [n * patches, channels * side²]
        embedded = self._patches(rows).view(n, -1, self._geometry.hidden_size) + self._position  # [n, patches, width]
        return torch.cat([self._special_tokens.expand(n, -1, -1), embedded], 1)  # [n, tokens, width]

    def _split(self, qkv: Tensor, n: int) -> Tensor:
        """[n * tokens, 3 * width] to query, key and value, [3, n, heads, tokens, width / heads]."""
        heads, width = self._geometry.num_attention_heads, self._geometry.hidden_size
        return qkv.view(n, -1, 3, heads, width // heads).permute(2, 0, 3, 1, 4)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Each [n, heads, tokens, width / heads], to [n * tokens, width]."""
        attended = functional.scaled_dot_product_attention(query, key, value)  # as the query
        return attended.transpose(1, 2).reshape(-1, self._geometry.hidden_size)


def _linear(weight: Tensor, bias: Tensor | None, activation: str, rows: int | None) -> Linear:
    """With `rows`, laid out by oneDNN for inputs of so many, once instead of in every pass; as torch.compile does it
    (torch/_inductor/fx_passes/mkldnn_fusion.py)."""
    if rows and weight.dtype == torch.float32 and weight.device.type == "cpu" and _has_onednn():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        return lambda values: torch.ops.mkldnn._linear_pointwise(values, packed, bias, activation, [], "none")
    if activation == "gelu":
        return lambda values: functional.gelu(functional.linear(values, weight, bias))
    return lambda values: functional.linear(values, weight, bias)


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
