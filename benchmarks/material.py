"""What is measured with: photographs that ship in scikit-image and scikit-learn, and checkpoints of random weights."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import torch
import transformers
from PIL import Image

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg", "ihc.png")
SMALL, LARGE = (500, 375), (4000, 3000)
PLAIN, DISTILLED = "ViTForImageClassification", "DeiTForImageClassificationWithTeacher"

RECIPES: dict[str, dict[str, Any]] = {
    # those of facebook/deit-*-patch16-224 and facebook/deit-*-distilled-patch16-224
    PLAIN: {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "size": 224},
    DISTILLED: {
        "feature_extractor_type": "DeiTFeatureExtractor",
        "do_center_crop": True,
        "crop_size": 224,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": 256,
    },
}


def photographs() -> list[Image.Image]:
    """Those of scikit-learn alone where scikit-image is not installed, which is enough for a trial."""
    found = [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
    spec = find_spec("skimage")
    if spec and spec.origin:
        found = [Path(spec.origin).parent / "data" / name for name in PHOTOS] + found
    return [Image.open(path).convert("RGB") for path in found]


def jpegs(folder: Path, count: int, size: tuple[int, int], *, first: int = 0) -> list[str]:
    """Crops of the photographs, at about 50 kB for the small ones; returns their paths. `first` is the number of the
    first: processes that make some each make different ones."""
    folder.mkdir(exist_ok=True)
    originals = photographs()
    dice = np.random.default_rng(first)
    paths = []
    for number in range(first, first + count):
        image = originals[number % len(originals)]
        scale = dice.uniform(0.6, 1)
        width, height = (round(side * scale) for side in image.size)
        left, top = (int(dice.integers(room + 1)) for room in (image.width - width, image.height - height))
        part = image.resize(size, Image.Resampling.LANCZOS, (left, top, left + width, top + height))
        noise = dice.integers(-7, 8, (size[1], size[0], 3), np.int8)  # as a camera's: enlarged photographs are smooth
        noisy = Image.fromarray((np.asarray(part) + noise.astype(np.int16)).clip(0, 255).astype(np.uint8))
        path = folder / f"{number:04}.jpg"
        noisy.save(path, quality=85)
        paths.append(str(path))
    return paths


def tiny_pngs(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    dice = np.random.default_rng(0)
    paths = []
    for number in range(count):
        path = folder / f"{number:04}.png"
        Image.fromarray(dice.integers(0, 255, (28, 28), np.uint8)).save(path)
        paths.append(str(path))
    return paths


def checkpoint(folder: Path, architecture: str, **geometry: Any) -> Path:
    """Random weights, large enough that scores differ from image to image."""
    torch.manual_seed(0)
    config_class = transformers.ViTConfig if architecture == PLAIN else transformers.DeiTConfig
    names = {number: f"class {number}" for number in range(geometry.pop("classes", 1000))}
    config = config_class(initializer_range=0.1, id2label=names, label2id={v: k for k, v in names.items()}, **geometry)
    getattr(transformers, architecture)(config).save_pretrained(folder)
    recipe = RECIPES[architecture] | ({"size": geometry["image_size"]} if "image_size" in geometry else {})
    (folder / "preprocessor_config.json").write_text(json.dumps(recipe))
    return folder


TINY: dict[str, Any] = {
    "hidden_size": 192,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "num_hidden_layers": 12,
}
BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
}
ONE_LAYER: dict[str, Any] = {
    "image_size": 28,
    "patch_size": 14,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "classes": 10,
}
