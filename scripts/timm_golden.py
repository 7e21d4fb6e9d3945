"""What timm makes of two pictures, with a tiny seeded checkpoint of each family: see scripts/timm-golden."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models import save_for_hf

OUT = Path(__file__).parent.parent / "tests" / "model" / "golden"
NAMES = ["can", "carton", "milk bottle", "water bottle", "jar"]
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 4, "num_classes": len(NAMES)}

FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # The model, what differs from TINY, and what its config says beside that.
    "deit": ("deit_tiny_patch16_224.fb_in1k", {}, {"label_names": NAMES}),
    "deit-distilled": ("deit_small_distilled_patch16_224.fb_in1k", {}, {}),
    "deit3": ("deit3_base_patch16_224.fb_in22k_ft_in1k", {}, {}),
    "vit": (
        "vit_base_patch16_224.augreg_in1k",
        {"qkv_bias": False, "mlp_ratio": 2.0},
        {
            "label_names": [f"n{number}" for number in range(len(NAMES))],
            "label_descriptions": {f"n{number}": name for number, name in enumerate(NAMES)},
        },
    ),
    "vit-squash": ("vit_large_patch16_224.augreg_in21k_ft_in1k", {}, {"pretrained_cfg": {"crop_mode": "squash"}}),
}
SIZES = [(61, 47), (40, 83)]
"""Of the pictures: resized, one is an odd number of pixels too long for the crop, whose half timm rounds to even."""


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    for number, size in enumerate(SIZES):
        random = np.random.default_rng(number)
        noise = Image.fromarray(random.integers(0, 256, (7, 9, 3)).astype(np.uint8))
        noise.resize(size, Image.Resampling.BICUBIC).save(OUT / f"{number}.png")
    logits = {family: golden(family, number) for number, family in enumerate(FAMILIES)}
    (OUT / "logits.json").write_text(json.dumps(logits, indent=1) + "\n")


def golden(family: str, seed: int) -> list[list[float]]:
    """Saves the family's checkpoint, and returns the logits of both pictures."""
    name, settings, says = FAMILIES[family]
    torch.manual_seed(seed)
    model = timm.create_model(name, **{**TINY, **settings}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    save_for_hf(model, str(OUT / family), model_config=says, safe_serialization=True)
    (OUT / family / "model.safetensors").chmod(0o644)  # safetensors makes its own private
    # As whoever loads it there has it: the recipe that was saved, and not this model's own.
    saved = timm.create_model(f"local-dir:{OUT / family}", pretrained=True).eval()
    recipe = create_transform(**resolve_model_data_config(saved))
    pictures = [Image.open(OUT / f"{number}.png").convert("RGB") for number in range(len(SIZES))]
    with torch.inference_mode():
        return saved(torch.stack([recipe(picture) for picture in pictures])).tolist()  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
