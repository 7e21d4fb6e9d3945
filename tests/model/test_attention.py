"""What a model looked at, beside the attentions of `transformers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import photo
from rollouts import rollout_of_transformers

from deit_batch.errors import UsageError
from deit_batch.model.attention import Watcher, require_attention
from deit_batch.model.checkpoint import find_checkpoint
from deit_batch.model.recipe import Recipe
from deit_batch.model.transformer import load_weights

# Pixels as they are: what the model is given, the test can give to transformers, too.
RECIPE = Recipe(resize=None, resample=2, crop=(32, 32), rescale_factor=1 / 127.5, mean=(1.0,) * 3, std=(1.0,) * 3)


def test_it_is_the_rollout_of_transformers_own_attentions(checkpoint: Path) -> None:
    found = find_checkpoint(str(checkpoint))
    pixels = np.asarray(photo(32, 32, seed=3))
    look = Watcher(found, RECIPE, torch.device("cpu"), "float32").look(pixels)
    rollout = rollout_of_transformers(checkpoint, pixels)
    special = len(found.geometry.parts.special_tokens)
    names = {
        "ViTForImageClassification": 1,
        "DeiTForImageClassificationWithTeacher": 2,
        "DeiTForImageClassification": 1,
    }
    assert look.tokens == ("cls_token", "distillation_token")[: names[found.architecture]]
    assert look.shares.shape == (len(look.tokens), 4, 4)
    for token, shares in enumerate(look.shares):
        np.testing.assert_allclose(shares.ravel(), rollout[token, special:], rtol=1e-4, atol=1e-6)
    assert np.ptp(look.shares) > 0.005  # it does look somewhere
    assert np.array_equal(look.picture, pixels)


def test_what_no_patch_sees_is_not_in_the_picture(make_checkpoint: Callable[..., Path]) -> None:
    found = find_checkpoint(str(make_checkpoint("ViTForImageClassification", image_size=37)))
    pixels = np.asarray(photo(37, 37))
    look = Watcher(found, RECIPE, torch.device("cpu"), "float32").look(pixels)
    assert np.array_equal(look.picture, pixels[:32, :32])
    assert look.shares.shape == (1, 4, 4)


def test_asking_for_it_changes_no_bit_of_a_score(checkpoint: Path) -> None:
    model = load_weights(find_checkpoint(str(checkpoint)), device=torch.device("cpu"), dtype=torch.float32, pass_size=2)
    values = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model(values)
        shares = model.rollout(values)
        assert torch.equal(model(values), logits)
        assert torch.equal(model._encode(values), model._encode(values, lambda query, key: None))
    assert shares.shape[0] == 2
    assert ((shares.sum((-2, -1)) > 0) & (shares.sum((-2, -1)) < 1)).all()  # the rest is of the tokens before


def test_other_models_are_refused_in_one_line(made: Callable[..., Path], vit: Path) -> None:
    for name, runtime, told in (
        (made("convnext"), "auto", "is a ConvNextForImageClassification, not a DeiT classifier"),
        (vit, "onnx", "is run by ONNX Runtime here, which tells scores alone"),
        (vit, "transformers", "is run by transformers here, which tells scores alone"),
    ):
        with pytest.raises(UsageError, match=f"^--attention: .*{told}[^\n]*$"):
            require_attention(find_checkpoint(str(name), runtime=runtime))
