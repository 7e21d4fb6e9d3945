"""From a checkpoint to the model that learns: one of the three classes, with a head for the classes at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    ViTForImageClassification,
)

from deit_batch.errors import UsageError
from deit_batch.finetune.settings import Settings
from deit_batch.model.architecture import CLASSES
from deit_batch.model.checkpoint import Checkpoint

Student: TypeAlias = Any
"""One of the three classes, or a PeftModel around one: their declarations have little in common."""

LORA_TARGETS = ["q_proj", "v_proj"]
"""Queries and values, as arXiv 2106.09685, section 4.2, has it."""
LORA_SCALE = 2
"""alpha over rank."""


def make_student(
    checkpoint: Checkpoint, settings: Settings, class_names: Sequence[str], *, multi_label: bool, image_size: int
) -> Student:
    """In float32 on the CPU. A plain DeiT stays a ViT, a distilled one gets a plain head; with a teacher, either is
    given two. What of it is to be trained requires its gradient; a head for other classes starts anew.

    Raises UsageError if the images are no whole number of patches.
    """
    torch.manual_seed(settings.seed)  # for the head
    named = {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: number for number, name in enumerate(class_names)},
        "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
    }
    # Heads for another number of classes are left out and made anew. The tensors were checked: nothing else can be.
    load: dict[str, Any] = {**named, "ignore_mismatched_sizes": True, "dtype": torch.float32}
    is_vit = checkpoint.geometry.parts.body == "vit"
    with_teacher: Any = DeiTForImageClassificationWithTeacher
    kind: Any = {
        "vit": ViTForImageClassification,
        "deit": with_teacher if settings.teacher else DeiTForImageClassification,
    }[checkpoint.geometry.parts.body]
    model: Student = kind.from_pretrained(checkpoint.folder, **load)
    if is_vit and settings.teacher:
        model = _with_distillation_token(model)
    heads = CLASSES[type(model).__name__].heads
    if list(class_names) != checkpoint.labels:
        for head in heads:
            nn.init.trunc_normal_(model.get_parameter(f"{head}.weight"), std=model.config.initializer_range)
            nn.init.zeros_(model.get_parameter(f"{head}.bias"))
    if image_size != model.config.image_size:
        model = _resized(model, image_size)
    return _trained_in_part(model, settings, heads)


def _trained_in_part(model: Student, settings: Settings, heads: Sequence[str]) -> Student:
    if settings.lora_rank:
        return get_peft_model(
            model,
            LoraConfig(
                r=settings.lora_rank,
                lora_alpha=LORA_SCALE * settings.lora_rank,
                target_modules=LORA_TARGETS,
                modules_to_save=list(heads),
            ),
        )
    if settings.freeze_backbone:
        model.requires_grad_(False)
        for head in heads:
            model.get_submodule(head).requires_grad_(True)
    return model


def _with_distillation_token(vit: ViTForImageClassification) -> DeiTForImageClassificationWithTeacher:
    """The same model with a second token before its patches, which starts as a copy of the first, and a second head."""
    config = DeiTConfig(**{name: value for name, value in vit.config.to_dict().items() if name != "model_type"})
    deit = DeiTForImageClassificationWithTeacher(config)
    weights = {name.replace("vit.", "deit.", 1): tensor for name, tensor in vit.state_dict().items()}
    embeddings = "deit.embeddings."
    weights[f"{embeddings}distillation_token"] = weights[f"{embeddings}cls_token"].clone()
    position = weights[f"{embeddings}position_embeddings"]
    weights[f"{embeddings}position_embeddings"] = torch.cat([position[:, :1], position], 1)
    for part in ("weight", "bias"):
        head = weights.pop(f"classifier.{part}")
        weights[f"cls_classifier.{part}"] = weights[f"distillation_classifier.{part}"] = head
    deit.load_state_dict(weights)
    return deit


def _resized(model: Student, image_size: int) -> Student:
    """For images of another size: the same patches, more or fewer of them, and their position embeddings interpolated
    (arXiv 2012.12877, section 3, "Fixing the positional encoding across resolutions")."""
    config = model.config
    if image_size % config.patch_size:
        raise UsageError(f"--image-size {image_size} is no multiple of the model's patches, {config.patch_size}")
    old, new = config.image_size // config.patch_size, image_size // config.patch_size
    weights = model.state_dict()
    (name,) = (name for name in weights if name.endswith("position_embeddings"))
    firsts, patches = weights[name].split([weights[name].shape[1] - old**2, old**2], 1)
    weights[name] = torch.cat([firsts, interpolated(patches, old, new)], 1)
    config.image_size = image_size
    resized = type(model)(config)
    resized.load_state_dict(weights)
    return resized


def interpolated(position: Tensor, old: int, new: int) -> Tensor:
    """[1, old², width] to [1, new², width], bicubic, which keeps the vectors' norms nearly as they were."""
    grid = position.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(1, new**2, -1)


def finished(model: Student) -> Student:
    """The plain model: what LoRA has learned is added to the weights that it was beside."""
    if isinstance(model, PeftModel):
        return model.merge_and_unload()
    return model
