"""The forward pass of the three classes, from a checkpoint's own weights: pixel values in, logits out.

The same function as `transformers` computes (models/vit/modeling_vit.py, models/deit/modeling_deit.py; a test compares
them), after arXiv 2010.11929, section 3.1, and arXiv 2012.12877, section 4. Written out for two reasons: importing the
library takes two of the four seconds until the first image is scored, and where every pass has one shape, weights can
be laid out for it beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from deit_batch.checkpoints import Checkpoint
from deit_batch.errors import CheckpointError

Linear: TypeAlias = Callable[[Tensor], Tensor]
"""[rows, in] to [rows, out]."""

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a config.json says, with the defaults of ViTConfig and DeiTConfig of `transformers`."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12
    patch_size: int = 16
    qkv_bias: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any], name: str) -> Geometry:
        if config.get("hidden_act", "gelu") != "gelu":
            raise CheckpointError(f"{name} has hidden_act {config['hidden_act']}; a DeiT's is gelu")
        geometry = cls(**{key: config[key] for key in cls.__dataclass_fields__ if key in config})
        if geometry.hidden_size % geometry.num_attention_heads:
            raise CheckpointError(f"{name} can't be loaded: its hidden_size is no multiple of its num_attention_heads")
        return geometry


def load_weights(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, pass_size: int | None = None
) -> Transformer:
    """With `pass_size`, for passes of so many images only. Raises CheckpointError unless every tensor that is scored
    with comes from the checkpoint, and every tensor of the checkpoint has its place."""
    config = json.loads((checkpoint.folder / "config.json").read_bytes())
    try:
        geometry = Geometry.of(config, checkpoint.name)
        expected = dict(_expected(checkpoint, geometry))
        weights = _read(checkpoint)
    except (OSError, RuntimeError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{checkpoint.name} can't be loaded: {' '.join(str(error).split())}") from error
    _check(expected, weights, checkpoint.name)
    return Transformer(
        {name: weights[name].to(device, dtype) for name in expected}, checkpoint, geometry, pass_size=pass_size
    )


class Transformer(nn.Module):
    """Pixel values [n, 3, height, width] to logits [n, classes], both on the weights' device and in their dtype."""

    def __init__(
        self, weights: Mapping[str, Tensor], checkpoint: Checkpoint, geometry: Geometry, *, pass_size: int | None
    ) -> None:
        super().__init__()
        body = _body(checkpoint)
        self._geometry = geometry
        self._heads = [(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in _head_names(checkpoint)]
        position = weights[f"{body}.embeddings.position_embeddings"][0]
        firsts = [weights[f"{body}.embeddings.{name}"][0] for name in _first_tokens(checkpoint)]
        self._firsts = torch.cat(firsts) + position[: len(firsts)]
        self._position = position[len(firsts) :]
        tokens = len(position)

        def linear(name: str, activation: str = "none", rows: int = tokens) -> Linear:
            weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
            return _linear(weight.flatten(1), bias, activation, pass_size and pass_size * rows)

        def norm(name: str) -> Linear:
            weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            return lambda values: functional.layer_norm(
                values, (geometry.hidden_size,), weight, bias, geometry.layer_norm_eps
            )

        self._patches = linear(f"{body}.embeddings.patch_embeddings.projection", rows=len(self._position))
        self._norm = norm(f"{body}.layernorm")
        self._layers = []
        for number in range(geometry.num_hidden_layers):
            layer = f"{body}.encoder.layer.{number}"
            parts = [f"{layer}.attention.attention.{part}" for part in ("query", "key", "value")]
            self._layers.append(
                (
                    norm(f"{layer}.layernorm_before"),
                    _linear(
                        torch.cat([weights[f"{part}.weight"] for part in parts]),
                        torch.cat([weights[f"{part}.bias"] for part in parts]) if geometry.qkv_bias else None,
                        "none",
                        pass_size and pass_size * tokens,
                    ),
                    linear(f"{layer}.attention.output.dense"),
                    norm(f"{layer}.layernorm_after"),
                    linear(f"{layer}.intermediate.dense", "gelu"),
                    linear(f"{layer}.output.dense"),
                )
            )

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self._embed(pixel_values)
        n, tokens, width = hidden.shape
        hidden = hidden.reshape(n * tokens, width)
        for norm_before, qkv, out, norm_after, up, down in self._layers:
            hidden = hidden + out(self._attend(qkv(norm_before(hidden)), n))
            hidden = hidden + down(up(norm_after(hidden)))
        firsts = self._norm(hidden.view(n, tokens, width)[:, : len(self._firsts)])
        logits = [functional.linear(firsts[:, place], *head) for place, head in enumerate(self._heads)]
        return torch.stack(logits).mean(0)  # of both heads, where there are two (arXiv 2012.12877, section 4)

    def _embed(self, pixel_values: Tensor) -> Tensor:
        """A patch is a row of its own, so that the convolution is a matrix product."""
        n, channels, height, width = pixel_values.shape
        side = self._geometry.patch_size
        patches = pixel_values.reshape(n, channels, height // side, side, width // side, side)
        rows = patches.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels * side * side)
        embedded = self._patches(rows).view(n, -1, self._geometry.hidden_size) + self._position
        return torch.cat([self._firsts.expand(n, -1, -1), embedded], 1)

    def _attend(self, qkv: Tensor, n: int) -> Tensor:
        heads = self._geometry.num_attention_heads
        query, key, value = qkv.view(n, -1, 3, heads, self._geometry.hidden_size // heads).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return attended.transpose(1, 2).reshape(-1, self._geometry.hidden_size)


def _linear(weight: Tensor, bias: Tensor | None, activation: str, rows: int | None) -> Linear:
    """For inputs of exactly `rows` rows, if given: then oneDNN lays the weights out for them once, and not in every
    pass, as torch.compile would have it do (torch/_inductor/fx_passes/mkldnn_fusion.py)."""
    if rows and weight.dtype == torch.float32 and weight.device.type == "cpu" and _has_onednn():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        return lambda values: torch.ops.mkldnn._linear_pointwise(values, packed, bias, activation, [], "none")
    if activation == "gelu":
        return lambda values: functional.gelu(functional.linear(values, weight, bias))
    return lambda values: functional.linear(values, weight, bias)


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


# --- what must be in the file ---------------------------------------------------------------------------------------


def _body(checkpoint: Checkpoint) -> str:
    return checkpoint.model_type


def _has_teacher(checkpoint: Checkpoint) -> bool:
    return checkpoint.architecture.endswith("WithTeacher")


def _head_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    return ("cls_classifier", "distillation_classifier") if _has_teacher(checkpoint) else ("classifier",)


def _first_tokens(checkpoint: Checkpoint) -> tuple[str, ...]:
    return ("cls_token",) if checkpoint.model_type == "vit" else ("cls_token", "distillation_token")


def _expected(checkpoint: Checkpoint, geometry: Geometry) -> Iterator[tuple[str, Shape]]:
    """Name and shape of every tensor."""
    width, inner, side = geometry.hidden_size, geometry.intermediate_size, geometry.patch_size
    height, breadth = checkpoint.image_size
    body, firsts = _body(checkpoint), _first_tokens(checkpoint)

    def linear(name: str, out: int, *into: int, bias: bool = True) -> Iterator[tuple[str, Shape]]:
        yield f"{name}.weight", (out, *into)
        if bias:
            yield f"{name}.bias", (out,)

    for token in firsts:
        yield f"{body}.embeddings.{token}", (1, 1, width)
    yield f"{body}.embeddings.position_embeddings", (1, height // side * (breadth // side) + len(firsts), width)
    yield from linear(f"{body}.embeddings.patch_embeddings.projection", width, 3, side, side)
    for number in range(geometry.num_hidden_layers):
        layer = f"{body}.encoder.layer.{number}"
        for part in ("query", "key", "value"):
            yield from linear(f"{layer}.attention.attention.{part}", width, width, bias=geometry.qkv_bias)
        yield from linear(f"{layer}.attention.output.dense", width, width)
        yield from linear(f"{layer}.intermediate.dense", inner, width)
        yield from linear(f"{layer}.output.dense", width, inner)
        yield from linear(f"{layer}.layernorm_before", width)
        yield from linear(f"{layer}.layernorm_after", width)
    yield from linear(f"{body}.layernorm", width)
    for head in _head_names(checkpoint):
        yield from linear(head, len(checkpoint.labels), width)


def _read(checkpoint: Checkpoint) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for path in checkpoint.files:
        if checkpoint.weights == "pickle":
            weights |= torch.load(path, map_location="cpu", weights_only=True)
        else:
            weights |= safetensors.torch.load_file(path)
    return weights


def _check(expected: Mapping[str, Shape], weights: Mapping[str, Tensor], name: str) -> None:
    refused = f"{name} must not be scored with"
    lost = sorted(set(expected) - set(weights))
    if lost:
        raise CheckpointError(
            f"{refused}: {len(lost)} of its weights were not in the checkpoint and would be random, {lost[0]} first"
        )
    # A pooler is left over from pre-training: no classifier uses it.
    unused = sorted(key for key in weights if key not in expected and ".pooler." not in key)
    if unused:
        raise CheckpointError(f"{refused}: its config has no place for {len(unused)} of its weights, {unused[0]} first")
    for key, shape in expected.items():
        found = tuple(weights[key].shape)
        if found != shape:
            raise CheckpointError(f"{refused}: the shape of its {key} is {found}, where its config wants {shape}")
