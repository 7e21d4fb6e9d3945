"""Recipes of training: values for many settings at once, each of which an option that is given outranks."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

DEIT: Final = MappingProxyType(
    {
        "num_train_epochs": 300,
        "train_batch_size": 1024,
        "learning_rate": 5e-4,
        "scale_learning_rate": True,
        "lr_scheduler_type": "cosine",
        "min_learning_rate": 1e-5,
        "weight_decay": 0.05,
        "warmup_steps": 5 / 300,
        "label_smoothing_factor": 0.1,
        "dropout": 0.0,
        "drop_path": 0.1,
        "repeated_augmentation": 3,
        "max_grad_norm": 0.0,
        "randaugment": 9.0,
        "color_jitter": 0.0,
        "mixup": 0.8,
        "cutmix": 1.0,
        "mixup_switch_prob": 0.5,
        "random_erasing": 0.25,
        "crop": 0.08,
        "flip": True,
        "distillation_type": "hard",
    }
)
"""Table 9 of arXiv 2012.12877, "Ingredients and hyper-parameters", DeiT-B's column, row by row; the rest is what the
authors' code does (github.com/facebookresearch/deit, main.py). It says 0.4 of colour jitter, but timm leaves that out
where there is RandAugment; EMA is none of the table's rows."""

RECIPES: dict[str, MappingProxyType[str, Any]] = {"finetune": MappingProxyType({}), "deit": DEIT}
"""`finetune` is what Settings has for defaults."""

IN_A_RECIPE = frozenset(DEIT) | {
    "per_device_train_batch_size",
    "max_steps",
    "gradient_accumulation_steps",
    "ema_decay",
    "early_stopping_patience",
    "metric_for_best_model",
    "distillation_alpha",
    "distillation_tau",
    "fp16",
    "bf16",
    "freeze_backbone",
    "lora_rank",
    "image_size",
}
"""What a file of one's own may set: how is trained, and nothing of what or where."""
