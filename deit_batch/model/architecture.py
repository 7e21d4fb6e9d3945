"""What a classifier of the three classes is made of: its sizes, and the name and shape of each of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar, get_args

from deit_batch.errors import CheckpointError, UsageError
from deit_batch.io import FeatureName, counted
from deit_batch.limits import require_number, require_whole_number

Shape: TypeAlias = tuple[int, ...]
Tensor = TypeVar("Tensor")
"""Its shape, or its values."""

_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
"""What DataParallel and torch.compile put in front of the names of a model's tensors."""

FEATURES: tuple[FeatureName, ...] = get_args(FeatureName)


class Parts(NamedTuple):
    """`body` is the model_type, how the body's tensors' names begin, and whose image recipe it has (recipe._DEFAULTS);
    `special_tokens` come before the patches, each with a position of its own; head i looks at token i."""

    body: str
    special_tokens: tuple[str, ...]
    heads: tuple[str, ...]


CLASSES = {
    # The plain DeiTs: without a distillation token, a DeiT is a ViT.
    "ViTForImageClassification": Parts("vit", ("cls_token",), ("classifier",)),
    # The distilled ones, with both heads.
    "DeiTForImageClassificationWithTeacher": Parts(
        "deit", ("cls_token", "distillation_token"), ("cls_classifier", "distillation_classifier")
    ),
    # Fine-tuned with one head.
    "DeiTForImageClassification": Parts("deit", ("cls_token", "distillation_token"), ("classifier",)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What a config.json says, with the defaults of ViTConfig and DeiTConfig of `transformers`. `image_size` is
    (height, width) in pixels."""

    architecture: str
    classes: int
    image_size: tuple[int, int]
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    patch_size: int = 16
    layer_norm_eps: float
    qkv_bias: bool

    @property
    def parts(self) -> Parts:
        return CLASSES[self.architecture]

    @property
    def features(self) -> dict[FeatureName, slice]:
        """Those that it has, and which of the tokens each is the mean of."""
        special_tokens = self.parts.special_tokens
        tokens: dict[FeatureName, slice] = {"cls": slice(0, 1), "mean": slice(len(special_tokens), self.tokens)}
        if "distillation_token" in special_tokens:
            place = special_tokens.index("distillation_token")
            tokens["distillation"] = slice(place, place + 1)
        return {name: tokens[name] for name in FEATURES if name in tokens}

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; what is left at the right and at the bottom, none sees."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    @property
    def patches(self) -> int:
        rows, columns = self.grid
        return rows * columns

    @property
    def tokens(self) -> int:
        return self.patches + len(self.parts.special_tokens)

    def tensors(self) -> Iterator[tuple[str, Shape]]:
        width, inner, body = self.hidden_size, self.intermediate_size, self.parts.body
        for token in self.parts.special_tokens:
            yield f"{body}.embeddings.{token}", (1, 1, width)
        yield f"{body}.embeddings.position_embeddings", (1, self.tokens, width)
        yield from _affine(f"{body}.embeddings.patch_embeddings.projection", width, 3, self.patch_size, self.patch_size)
        for number in range(self.num_hidden_layers):
            layer = f"{body}.encoder.layer.{number}"
            for part in ("query", "key", "value"):
                yield from _affine(f"{layer}.attention.attention.{part}", width, width, bias=self.qkv_bias)
            yield from _affine(f"{layer}.attention.output.dense", width, width)
            yield from _affine(f"{layer}.intermediate.dense", inner, width)
            yield from _affine(f"{layer}.output.dense", width, inner)
            yield from _affine(f"{layer}.layernorm_before", width)
            yield from _affine(f"{layer}.layernorm_after", width)
        yield from _affine(f"{body}.layernorm", width)
        for head in self.parts.heads:
            yield from _affine(head, self.classes, width)


def vit_of_size(image_size: tuple[int, int], classes: int) -> Geometry:
    """A DeiT-B for such images: what a pass of another class is taken to cost."""
    return Geometry(
        architecture="ViTForImageClassification",
        classes=classes,
        image_size=image_size,
        layer_norm_eps=1e-12,
        qkv_bias=True,
    )


def _affine(name: str, out: int, *into: int, bias: bool = True) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (out, *into)
    if bias:
        yield f"{name}.bias", (out,)


def geometry_from_config(config: Mapping[str, Any], architecture: str, *, classes: int) -> Geometry:
    """Raises ValueError for what no DeiT's config says."""
    try:
        return _geometry(config, architecture, classes)
    except UsageError as error:  # of a number, which here no user has given
        raise ValueError(str(error)) from error


def _geometry(config: Mapping[str, Any], architecture: str, classes: int) -> Geometry:
    if config.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"hidden_act is {config['hidden_act']!r:.60}; a DeiT's is gelu")
    if config.get("num_channels", 3) != 3:
        raise ValueError(f"it takes images of {config['num_channels']!r:.60} channels; only RGB is supported")
    if not isinstance(config.get("qkv_bias", True), bool):
        raise ValueError(f"qkv_bias is {config['qkv_bias']!r:.60}; it must be true or false")
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
    found = {name: config[name] for name in sizes if name in config}
    for name, value in found.items():
        require_whole_number(name, value, 1)
    eps = config.get("layer_norm_eps", 1e-12)
    require_number("layer_norm_eps", eps, 0, 1)
    geometry = Geometry(
        architecture=architecture,
        classes=classes,
        image_size=_image_size(config.get("image_size", 224)),
        layer_norm_eps=eps,
        qkv_bias=config.get("qkv_bias", True),
        **found,
    )
    if geometry.hidden_size % geometry.num_attention_heads:
        raise ValueError(f"hidden_size {geometry.hidden_size} is no multiple of num_attention_heads")
    if min(geometry.image_size) < geometry.patch_size:
        raise ValueError(f"no patch of {geometry.patch_size} pixels fits into an image of {min(geometry.image_size)}")
    return geometry


def _image_size(value: Any) -> tuple[int, int]:
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2:
        raise ValueError(f"image_size is {value!r:.60}; it must be a number, or height and width")
    height, width = sides
    require_whole_number("image_size", height, 1)
    require_whole_number("image_size", width, 1)
    return height, width


def without_wrappers(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The same by their own names: Raises CheckpointError if two
    have one name then."""
    own = {_WRAPPERS.sub("", tensor): tensor for tensor in tensors}
    if len(own) < len(tensors):
        raise CheckpointError(
            f"{name} must not be scored with: some of its weights are in it twice, by names that begin with module. "
            "or _orig_mod., and without"
        )
    return {plain: tensors[tensor] for plain, tensor in own.items()}


def is_left_over(tensor: str) -> bool:
    """Whether it is a pooler's, of pre-training: what a classifier uses has its place."""
    return ".pooler." in f".{tensor}"


def check_tensors(found: Mapping[str, Shape], geometry: Geometry, name: str) -> None:
    """Raises CheckpointError unless every tensor that would be scored with is there, in its shape, and every one that
    is there has its place."""
    refused = f"{name} must not be scored with"
    if geometry.num_hidden_layers > len(found):  # before they are counted up
        raise CheckpointError(
            f"{refused}: its config has {counted(geometry.num_hidden_layers, 'layer')}, and "
            f"its weights are only {len(found):,}"
        )
    expected = dict(geometry.tensors())
    lost = [tensor for tensor in expected if tensor not in found]
    if lost:
        raise CheckpointError(
            f"{refused}: it is no {geometry.architecture} as its config describes it, for {len(lost)} of its weights "
            f"were not in the checkpoint and would be random, {lost[0]} first"
        )
    unused = sorted(tensor for tensor in found if tensor not in expected and not is_left_over(tensor))
    if unused:
        raise CheckpointError(f"{refused}: its config has no place for {len(unused)} of its weights, {unused[0]} first")
    for tensor, shape in expected.items():
        if found[tensor] != shape:
            raise CheckpointError(
                f"{refused}: the shape of its {tensor} is {found[tensor]}, where its config wants {shape}"
            )
