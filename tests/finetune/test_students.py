"""A model that learns starts as the checkpoint that it comes from, whatever form that has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import LABELS, MakeCheckpoint

from deit_batch.finetune.settings import Settings
from deit_batch.finetune.students import make_student
from deit_batch.model.checkpoint import find_checkpoint
from deit_batch.model.transformer import load_weights

GOLDEN = Path(__file__).parent.parent / "model" / "golden"


@pytest.mark.parametrize("family", sorted(json.loads((GOLDEN / "logits.json").read_bytes())))
def test_a_checkpoint_of_timm_is_a_base(family: str) -> None:
    """With the head of the [CLS] token, where there are two."""
    checkpoint = find_checkpoint(str(GOLDEN / family))
    settings = Settings(input="", model=str(GOLDEN / family))
    student = make_student(checkpoint, settings, checkpoint.labels, multi_label=False, image_size=(32, 32)).eval()
    pixel_values = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = load_weights(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    with torch.inference_mode():
        features = ours.features(pixel_values, ["cls"])[:, 0]
        head = checkpoint.geometry.parts.heads[0]
        classify = student.get_submodule("classifier")
        assert torch.allclose(student(pixel_values=pixel_values).logits, classify(features), atol=1e-5), head
        if len(checkpoint.geometry.parts.heads) == 1:
            assert torch.allclose(student(pixel_values=pixel_values).logits, ours(pixel_values), atol=1e-5)


def test_classes_without_names_are_a_base(make_checkpoint: MakeCheckpoint) -> None:
    """Whose head goes on if its classes are given the names that are trained."""
    names = {number: f"LABEL_{number}" for number in range(5)}
    folder = make_checkpoint(id2label=names, label2id={name: number for number, name in names.items()})
    checkpoint = find_checkpoint(str(folder))
    settings = Settings(input="", model=str(folder))
    student = make_student(checkpoint, settings, LABELS, multi_label=False, image_size=(32, 32))
    assert student.config.id2label == dict(enumerate(LABELS))
    (folder / "names.json").write_text(json.dumps(LABELS))
    named = find_checkpoint(str(folder), id2label=str(folder / "names.json"))
    same = make_student(named, settings, LABELS, multi_label=False, image_size=(32, 32))
    weight = load_weights(named, device=torch.device("cpu"), dtype=torch.float32)._heads[0][0]
    assert torch.equal(same.get_submodule("classifier").weight, weight)
    assert not torch.equal(student.get_submodule("classifier").weight, weight)


@pytest.mark.parametrize("architecture", ["ViTForImageClassification", "DeiTForImageClassification"])
def test_a_larger_image_size_keeps_the_head(make_checkpoint: MakeCheckpoint, architecture: str) -> None:
    """As the paper's fine-tuning at 384 pixels: the same classes, more patches."""
    folder = make_checkpoint(architecture)
    checkpoint = find_checkpoint(str(folder))
    settings = Settings(input="", model=str(folder), image_size=48)
    small = make_student(checkpoint, settings, LABELS, multi_label=False, image_size=(32, 32))
    large = make_student(checkpoint, settings, LABELS, multi_label=False, image_size=(48, 48))
    for name in ("weight", "bias"):
        ours, theirs = (one.get_submodule("classifier").get_parameter(name) for one in (large, small))
        assert torch.equal(ours, theirs)
    weights = load_weights(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    assert torch.equal(large.get_submodule("classifier").weight, weights._heads[0][0])
