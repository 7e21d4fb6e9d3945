"""From a checkpoint to the model that learns: one of the three classes, with a head for the classes at hand."""

from __future__ import annotations

import logging
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

from deit_batch.finetune.settings import Settings
from deit_batch.finetune.stochastic_depth import add_stochastic_depth
from deit_batch.io import counted
from deit_batch.model.architecture import CLASSES
from deit_batch.model.checkpoint import Checkpoint
from deit_batch.model.matching import Matching, log_inexact
from deit_batch.model.transformer import load_tensors

logger = logging.getLogger("deit_batch")

Student: TypeAlias = Any
"""One of the three classes, or a PeftModel around one: their declarations have little in common."""

LORA_TARGETS = ["q_proj", "v_proj"]
"""Queries and values, as arXiv 2106.09685, section 4.2, has it."""
LORA_SCALE = 2
"""alpha over rank."""


def make_student(
    checkpoint: Checkpoint,
    settings: Settings,
    class_names: Sequence[str],
    *,
    multi_label: bool,
    image_size: tuple[int, int],
) -> Student:
    """In float32 on the CPU. A plain DeiT stays a ViT, a distilled one gets a plain head; with a teacher, either is
    given two. What of it is to be trained requires its gradient. `image_size`: whole patches.

    Raises CheckpointError if the weights can't be loaded.
    """
    torch.manual_seed(settings.seed)  # for the heads
    is_vit = checkpoint.geometry.parts.body == "vit"
    kind: Any = ViTForImageClassification if is_vit else DeiTForImageClassification
    if settings.teacher and not is_vit:
        kind = DeiTForImageClassificationWithTeacher
    config = kind.config_class.from_dict(
        dict(checkpoint.config),
        id2label=dict(enumerate(class_names)),
        label2id={name: number for number, name in enumerate(class_names)},
        problem_type="multi_label_classification" if multi_label else "single_label_classification",
    )
    if settings.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = settings.dropout
    if settings.from_scratch:
        logger.info("training starts from random weights: of the checkpoint, only the shape is used")
        model: Student = _blank(kind, config)
    else:
        tensors = _with_heads(load_tensors(checkpoint), checkpoint, kind, class_names, config.initializer_range)
        model = kind.from_pretrained(None, config=config, state_dict=tensors, dtype=torch.float32)
    if is_vit and settings.teacher:
        model = _with_distillation_token(model)
    if image_size != checkpoint.geometry.image_size:
        model = _resized(model, checkpoint.geometry.image_size, image_size)
    if settings.drop_path:
        add_stochastic_depth(model, settings.drop_path)
    return _trained_in_part(model, settings, CLASSES[type(model).__name__].heads)


def _blank(kind: Any, config: Any) -> Student:
    """As the authors' code starts (models.py): tokens and positions, which `transformers` leaves at zero, from the same
    truncated normal distribution as the rest."""
    model = kind(config)
    for name, weight in model.named_parameters():
        if name.endswith(("cls_token", "distillation_token", "position_embeddings")):
            nn.init.trunc_normal_(weight, std=config.initializer_range)
    return model


def _with_heads(
    tensors: dict[str, Tensor], checkpoint: Checkpoint, kind: type, class_names: Sequence[str], deviation: float
) -> dict[str, Tensor]:
    """The checkpoint's tensors with the heads of `kind` for `class_names`: the rows of classes that the checkpoint has
    of these names (model/matching.py) are taken over, the others start anew, and which do is said. A head that
    the checkpoint has not takes the rows of its first one, which looks at the same token."""
    parts = checkpoint.geometry.parts
    matching = Matching(checkpoint.labels, {})
    rows = {name: number for name in class_names if (number := matching(name)) is not None}
    log_inexact(matching, "the checkpoint")
    _say_what_starts_anew(len(rows), list(matching.unknown))
    heads = CLASSES[kind.__name__].heads
    if rows and len(heads) < len(parts.heads):
        logger.info("of the checkpoint's two heads, that of the [CLS] token goes on alone; its scores were of both")
    kept = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] not in parts.heads}
    for head in heads:
        old = head if head in parts.heads else parts.heads[0]
        weight = torch.empty(len(class_names), checkpoint.geometry.hidden_size)
        nn.init.trunc_normal_(weight, std=deviation)
        bias = torch.zeros(len(class_names))
        for place, name in enumerate(class_names):
            if name in rows:
                weight[place] = tensors[f"{old}.weight"][rows[name]]
                bias[place] = tensors[f"{old}.bias"][rows[name]]
        kept |= {f"{head}.weight": weight, f"{head}.bias": bias}
    return kept


def _say_what_starts_anew(taken: int, new: Sequence[str]) -> None:
    if not new:
        logger.info("the head starts as the checkpoint's, which has all the classes")
    elif not taken:
        logger.info("the head starts anew: the checkpoint has none of the classes")
    else:
        logger.info(
            "the head starts as the checkpoint's for %s, and anew for: %s",
            counted(taken, "class", "classes"),
            ", ".join(new),
        )


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


def _resized(model: Student, old: tuple[int, int], new: tuple[int, int]) -> Student:
    """From images of one size, (height, width), to those of another: the same patches, more or fewer of them, and their
    position embeddings interpolated (arXiv 2012.12877, section 3, "Fixing the positional encoding across
    resolutions")."""
    config = model.config
    grids = [(height // config.patch_size, width // config.patch_size) for height, width in (old, new)]
    count = grids[0][0] * grids[0][1]
    weights = model.state_dict()
    (name,) = (name for name in weights if name.endswith("position_embeddings"))
    firsts, patches = weights[name].split([weights[name].shape[1] - count, count], 1)
    weights[name] = torch.cat([firsts, interpolated(patches, *grids)], 1)
    config.image_size = new[0] if new[0] == new[1] else list(new)
    resized = type(model)(config)
    resized.load_state_dict(weights)
    return resized


def interpolated(position: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """[1, patches, width] of a grid of `old` (rows, columns) to that of a `new` one, bicubic, which keeps the vectors'
    norms nearly as they were."""
    grid = position.reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, new, mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1)


def finished(model: Student) -> Student:
    """The plain model: what LoRA has learned is added to the weights that it was beside."""
    if isinstance(model, PeftModel):
        return model.merge_and_unload()
    return model
