"""Adapters as peft writes them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model


def adapted(base: Path, folder: Path, *, head: int | None = None, **settings: Any) -> tuple[Path, Path]:
    """An adapter of the base as peft writes it, with `head` classes of its own, and the same merged by peft."""
    torch.manual_seed(1)
    options: dict[str, Any] = {"num_labels": head, "ignore_mismatched_sizes": True} if head else {}
    model = transformers.AutoModelForImageClassification.from_pretrained(base, **options)
    modules = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"] if head else None}
    student: Any = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **{**modules, **settings}))
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight.normal_(0, 0.3)
    student.save_pretrained(folder / "adapter")
    student.merge_and_unload().save_pretrained(folder / "merged")
    shutil.copy(base / "preprocessor_config.json", folder / "merged")
    return folder / "adapter", folder / "merged"
