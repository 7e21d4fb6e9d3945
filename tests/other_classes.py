"""Small checkpoints with random weights of image classifiers that are no DeiTs, each with an image processor as the
published ones of its family have it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from helpers import LABELS


class Kind(NamedTuple):
    architecture: str
    config: Mapping[str, Any]
    processor: Mapping[str, Any]
    features: tuple[str, ...]


_LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_VIT = {"image_size": 32, "patch_size": 8, **_LAYERS}

KINDS = {
    "swin": Kind(
        "SwinForImageClassification",
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        {"image_processor_type": "ViTImageProcessor", "size": 32, "resample": 3},
        ("mean",),
    ),
    "convnext": Kind(
        "ConvNextForImageClassification",
        {"image_size": 32, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
        {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 32, "crop_pct": 0.875, "resample": 3},
        ("mean",),
    ),
    "beit": Kind(
        "BeitForImageClassification",
        {**_VIT, "intermediate_size": 32, "use_relative_position_bias": True},
        {"feature_extractor_type": "BeitFeatureExtractor", "size": 32, "crop_size": 32, "do_center_crop": False},
        ("cls", "mean"),
    ),
    "dinov2": Kind(
        "Dinov2WithRegistersForImageClassification",
        {**_VIT, "mlp_ratio": 2, "num_register_tokens": 3},
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 37},
            "crop_size": {"height": 32, "width": 32},
            "do_convert_rgb": True,
        },
        ("cls", "mean"),
    ),
    "siglip": Kind(
        "SiglipForImageClassification",
        {"vision_config": {**_VIT, "intermediate_size": 32}},
        {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}},
        ("mean",),
    ),
    # Of BatchNorms, which count; its processor turns RGB around, which no Recipe says.
    "resnet": Kind(
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32},
        ("mean",),
    ),
}


def make(kind: str, folder: Path, **settings: Any) -> Path:
    """The checkpoint in `folder`, whose scores differ clearly; `settings` are of its config."""
    torch.manual_seed(0)
    about, labels = KINDS[kind], dict(enumerate(LABELS))
    model_class = getattr(transformers, about.architecture)
    names = {"id2label": labels, "label2id": {label: number for number, label in labels.items()}}
    config = model_class.config_class(**about.config, initializer_range=0.5, **{**names, **settings})
    model_class(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(about.processor))
    return folder
