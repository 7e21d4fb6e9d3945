"""Checkpoints in timm's form, as on the Hub, and in that of DeiT's authors, who have the same names for the weights:
what they say, in the words of `transformers`. Imports no torch.

After timm 1.0.31 (timm/models/vision_transformer.py, deit.py, _hub.py, timm/data/config.py, transforms_factory.py) and
facebookresearch/deit (models.py, models_v2.py, datasets.py), both Apache-2.0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeGuard

from PIL import Image

from deit_batch.errors import CheckpointError
from deit_batch.io import counted
from deit_batch.model.architecture import CLASSES, Shape
from deit_batch.model.labels import id2label_of, imagenet_names, placeholders
from deit_batch.model.recipe import MOST_TIMES_LARGER, Recipe, recipe_from_config

Tensor: TypeAlias = Any
"""torch's, which is not imported here: who reads a config does not wait for it."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUTHORS_CROP = 0.875
"""--eval-crop-ratio of the authors' main.py."""
LAYER_NORM_EPS = 1e-6

_ARCHITECTURES = re.compile(
    r"(deit3?|vit)_(tiny|small|medium|base|large|huge|giant|gigantic)(_distilled)?_patch\d+_\d+"
    r"(_in21k|_in21ft1k|_miil)?"
)
_HEADS_BY_WIDTH = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
"""Of attention: the only size that the weights don't tell."""

_SEEN_IN_WEIGHTS = frozenset("patch_size embed_dim depth num_heads mlp_ratio qkv_bias init_values num_classes".split())
_WITHOUT_EFFECT = frozenset(
    "img_size no_embed_class dynamic_img_size strict_img_size weight_init fix_init num_features "
    "drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate drop_path_rate".split()
)
_AS_HERE = {"in_chans": 3, "class_token": True, "global_pool": "token", "final_norm": True, "proj_bias": True}

_IN_LAYER = re.compile(r"blocks\.(0|[1-9]\d{0,3})\.(.+)")
_SCALES = {"ls1.gamma": "attn.proj", "gamma_1": "attn.proj", "ls2.gamma": "mlp.fc2", "gamma_2": "mlp.fc2"}
"""LayerScale, by timm's name and by the authors', and what it multiplies the outputs of."""
_NAMES = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_NAMES_IN_LAYER = {
    "norm1": ["layernorm_before"],
    "attn.qkv": ["attention.attention.query", "attention.attention.key", "attention.attention.value"],
    "attn.proj": ["attention.output.dense"],
    "norm2": ["layernorm_after"],
    "mlp.fc1": ["intermediate.dense"],
    "mlp.fc2": ["output.dense"],
}


# --- what it says ---------------------------------------------------------------------------------------------------


def is_timms(config: Mapping[str, Any]) -> bool:
    return isinstance(config.get("architecture"), str) and "architectures" not in config


def config_from_timm(config: Mapping[str, Any], shapes: Mapping[str, Shape], name: str) -> dict[str, Any]:
    """A config.json of `transformers` that says what one of timm's does, of weights with these `shapes`; of an empty
    one, what the weights alone say. Raises CheckpointError for a model that is no plain ViT or DeiT."""
    arguments = config.get("model_args") or {}
    if config:
        _require_known(config, arguments, name)
    try:
        (width, _, patch_size, _), (inner, _) = shapes["patch_embed.proj.weight"], shapes["blocks.0.mlp.fc1.weight"]
        classes, seen = shapes["head.weight"]
        if not width == seen > 0:  # an empty weight may have any number of rows
            raise ValueError
    except (KeyError, ValueError):
        raise CheckpointError(
            f"{name} is no ViT or DeiT classifier in timm's form: its weights have other names or shapes"
        ) from None
    heads = arguments.get("num_heads", _HEADS_BY_WIDTH.get(width))
    if heads is None:
        raise CheckpointError(
            f"{name} does not say how many attention heads it has, and its width, {width}, is no DeiT's"
        )
    body, architecture = _class_of(shapes)
    return {
        "architectures": [architecture],
        "model_type": body,
        "hidden_size": width,
        "intermediate_size": inner,
        "patch_size": patch_size,
        "num_hidden_layers": 1 + max(int(found[1]) for name in shapes if (found := _IN_LAYER.fullmatch(name))),
        "num_attention_heads": heads,
        "image_size": _image_side(config, shapes, patch_size, name),
        "layer_norm_eps": LAYER_NORM_EPS,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        **id2label_of(_labels(config, classes, name)),
    }


def recipe_from_timm(config: Mapping[str, Any], image_size: int, name: str) -> Recipe:
    """timm's evaluation: the short side, or with crop_mode "squash" both, to the whole part of size / crop_pct, then
    the centre. Raises CheckpointError for what can't be said as a Recipe."""
    about = _pretrained(config)
    crop, mode = about.get("crop_pct") or AUTHORS_CROP, about.get("crop_mode") or "center"
    filter = about.get("interpolation") or "bicubic"
    if mode not in ("center", "squash") or filter not in list(_FILTERS) or not _is_share(crop):
        raise CheckpointError(
            f"{name} is evaluated with crop_mode {mode!r:.60}, crop_pct {crop!r:.60} and interpolation {filter!r:.60}, "
            "which is not done here; name another recipe with --image-processor"
        )
    side = math.floor(image_size / crop)
    return recipe_from_config(
        {
            "size": {"shortest_edge": side} if mode == "center" else side,
            "resample": _FILTERS[filter],
            "crop_size": image_size,
            "crop_rounding": "half-even",
            "image_mean": about.get("mean") or IMAGENET_MEAN,
            "image_std": about.get("std") or IMAGENET_STD,
        },
        "deit",
    )


def recipe_of_authors(image_size: int) -> Recipe:
    """The evaluation of the paper: the short side to 256 for a centre of 224, to 438 for one of 384, ImageNet's mean
    and deviation. From `build_transform` of datasets.py in github.com/facebookresearch/deit; torchvision crops."""
    return recipe_from_timm({}, image_size, "the paper")


_FILTERS = {filter.name.lower(): filter for filter in Image.Resampling}


def _is_share(value: object) -> bool:
    return _is_number(value) and 1 / MOST_TIMES_LARGER <= value <= 1


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _pretrained(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Older ones have it all on one level."""
    about = config.get("pretrained_cfg", config)
    return about if isinstance(about, Mapping) else {}


def _require_known(config: Mapping[str, Any], arguments: object, name: str) -> None:
    """Raises CheckpointError for a model that computes something else, as far as its weights would not tell."""
    architecture = str(config["architecture"]).partition(".")[0]
    if not _ARCHITECTURES.fullmatch(architecture):
        raise CheckpointError(
            f"{name} is a {architecture:.60} of timm, which is no plain ViT or DeiT; score it with timm"
        )
    if not isinstance(arguments, Mapping):
        raise CheckpointError(f"{name}: model_args in its config.json is no object")
    others = {**arguments, "global_pool": config.get("global_pool", arguments.get("global_pool", "token"))}
    for key, value in others.items():
        if value != _AS_HERE.get(key, value) or (value and key not in {*_SEEN_IN_WEIGHTS, *_WITHOUT_EFFECT, *_AS_HERE}):
            raise CheckpointError(
                f"{name} is a {architecture} with {key} = {value!r:.60}, which is not done here; score it with timm"
            )


def _class_of(shapes: Mapping[str, Shape]) -> tuple[str, str]:
    """The model_type and the class of `transformers` that have such weights."""
    distilled = "dist_token" in shapes
    architecture = "DeiTForImageClassificationWithTeacher" if distilled else "ViTForImageClassification"
    return CLASSES[architecture].body, architecture


def _image_side(config: Mapping[str, Any], shapes: Mapping[str, Shape], patch_size: int, name: str) -> int:
    """In pixels; where no config says it, from the number of positions."""
    if not config:
        positions = shapes.get("pos_embed", (1, 0, 0))[1]
        special_tokens = len(CLASSES[_class_of(shapes)[1]].special_tokens)
        sides = [math.isqrt(patches) for patches in (positions, positions - special_tokens) if patches > 0]
        squares = [side for side in sides if side**2 in (positions, positions - special_tokens)]
        return squares[0] * patch_size if squares else 0
    about, arguments = _pretrained(config), config.get("model_args") or {}
    size = about.get("input_size") or (3, 224, 224)
    if arguments.get("img_size") is not None and about.get("fixed_input_size", False):
        given = arguments["img_size"]
        size = (3, *(given if isinstance(given, list) else (given, given)))
    match list(size) if isinstance(size, list | tuple) else size:
        case [3, int(height), int(width)] if height == width > 0:
            return height
    raise CheckpointError(f"{name} takes images of {size!r:.60}; only RGB squares are done here: [3, N, N]")


def _labels(config: Mapping[str, Any], classes: int, name: str) -> list[str]:
    """The descriptions, or the names, or as timm takes it, those of ImageNet-1k for 1000 classes."""
    about = _pretrained(config)
    names = config.get("label_names") or about.get("label_names") or about.get("labels")
    if not names:
        return list(imagenet_names().values()) if classes == 1000 else placeholders(classes)
    descriptions = config.get("label_descriptions") or about.get("label_descriptions") or imagenet_names()
    if isinstance(names, Mapping):
        names = [names.get(str(number)) for number in range(len(names))]
    if (
        not isinstance(names, list)
        or not isinstance(descriptions, Mapping)
        or not all(isinstance(n, str) for n in names)
    ):
        raise CheckpointError(f"{name}: label_names and label_descriptions in its config.json are no names of classes")
    if len(names) != classes:
        raise CheckpointError(
            f"{name}: its config.json names {counted(len(names), 'class', 'classes')}, but its head has {classes:,}"
        )
    return [str(descriptions.get(label) or label) for label in names]


# --- its weights ----------------------------------------------------------------------------------------------------


def shapes_as_transformers(shapes: Mapping[str, Shape], positions: int, name: str) -> dict[str, Shape]:
    """The shapes of what `tensors_as_transformers` returns. A tensor that has no place there keeps its name.
    `positions` are those of all tokens. Raises CheckpointError if two would be one."""
    _, architecture = _class_of(shapes)
    scales = _layer_scales(shapes)
    renamed: list[tuple[str, Shape]] = []
    for tensor, shape in shapes.items():
        targets = _targets(tensor, architecture)
        if len(targets) == 3 and shape and shape[0] % 3 == 0:
            shape = (shape[0] // 3, *shape[1:])
        if tensor == "pos_embed" and _lacks_special_tokens(shape, positions, architecture):
            shape = (1, positions, shape[2])
        if tensor not in scales:
            renamed += [(target, shape) for target in targets]
    if len(dict(renamed)) < len(renamed):
        raise CheckpointError(f"{name} must not be scored with: it has some of its weights twice, by different names")
    return dict(renamed)


def tensors_as_transformers(tensors: Mapping[str, Tensor], positions: int) -> dict[str, Tensor]:
    """By the names of `transformers`, and such that its classes compute the same: queries, keys and values are three;
    what LayerScale multiplies the outputs of a layer's halves by is in the weights of those; where the special tokens
    have no positions (DeiT-III), these are zeros. In float32, for products of halves would be rounded."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _, architecture = _class_of(shapes)
    scales = _layer_scales(shapes)
    gammas = {scaled: tensors[name].float() for name, scaled in scales.items()}
    renamed: dict[str, Tensor] = {}
    for name, stored in tensors.items():
        if name in scales:
            continue
        tensor, targets = stored.float(), _targets(name, architecture)
        if (scaled := _without_kind(name)[0]) in gammas:
            tensor = tensor * gammas[scaled].view(-1, *[1] * (tensor.ndim - 1))
        if name == "pos_embed" and _lacks_special_tokens(shapes[name], positions, architecture):
            of_patches, tensor = tensor, tensor.new_zeros(1, positions, tensor.shape[2])
            tensor[:, -of_patches.shape[1] :] = of_patches
        renamed |= {target: part.contiguous() for target, part in zip(targets, tensor.chunk(len(targets)), strict=True)}
    return renamed


def _targets(name: str, architecture: str) -> list[str]:
    """What `transformers` calls it, or the parts of it; its own name if that has no place there."""
    parts = CLASSES[architecture]
    heads = dict(zip(("head", "head_dist"), parts.heads, strict=False))
    in_layer = _IN_LAYER.fullmatch(name)
    stem, kind = _without_kind(in_layer[2] if in_layer else name)
    if in_layer:
        layer = f"{parts.body}.encoder.layer.{in_layer[1]}"
        return [f"{layer}.{target}{kind}" for target in _NAMES_IN_LAYER.get(stem, [])] or [name]
    if stem in heads:
        return [f"{heads[stem]}{kind}"]
    return [f"{parts.body}.{_NAMES[stem]}{kind}"] if stem in _NAMES else [name]


def _without_kind(name: str) -> tuple[str, str]:
    for kind in (".weight", ".bias"):
        if name.endswith(kind):
            return name.removesuffix(kind), kind
    return name, ""


def _layer_scales(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """The names of LayerScale's tensors, each with that of the module that it scales; none unless every layer has both
    of its own: then they have no place."""
    scales: dict[str, str] = {}
    layers = set()
    for name, shape in shapes.items():
        if in_layer := _IN_LAYER.fullmatch(name):
            layers.add(in_layer[1])
            scaled = f"blocks.{in_layer[1]}.{_SCALES.get(in_layer[2])}"  # which is there for no other name
            if shape == shapes.get(f"{scaled}.bias"):
                scales[name] = scaled
    return scales if len(scales) == len(set(scales.values())) == 2 * len(layers) else {}


def _lacks_special_tokens(shape: Shape, positions: int, architecture: str) -> bool:
    """Whether positions are of the patches alone."""
    return len(shape) == 3 and shape[0] == 1 and shape[1] + len(CLASSES[architecture].special_tokens) == positions
