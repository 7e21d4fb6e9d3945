"""Adapters of peft, merged into their base: the scores are those that peft's own model gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from adapters import adapted
from helpers import LABELS, MakeCheckpoint, read_jsonl, scored
from safetensors.torch import load_file, save_file

from deit_batch.errors import CheckpointError
from deit_batch.model.checkpoint import find_checkpoint
from deit_batch.model.save import save_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "deit-batch"


def rename(adapter: Path, names: dict[str, str]) -> None:
    """As an older version of transformers has called the modules."""
    path = adapter / "adapter_model.safetensors"
    tensors = {}
    for name, tensor in load_file(path).items():
        for new, old in names.items():
            name = name.replace(new, old)
        tensors[name] = tensor
    save_file(tensors, path)


OLD_NAMES = {
    "vit.layers": "vit.encoder.layer",
    "attention.q_proj": "attention.attention.query",
    "attention.v_proj": "attention.attention.value",
}


def predictions(photos: Path, model: Path, folder: Path, out: str) -> list[dict[str, float]]:
    records = read_jsonl(scored(photos, model, folder, out, limit=3, top_k=None))
    return [{one["label"]: one["score"] for one in record["predictions"]} for record in records]


def same_scores(adapter: Path, merged: Path, photos: Path, folder: Path) -> None:
    theirs = predictions(photos, merged, folder, "theirs.jsonl")
    for one, other in zip(predictions(photos, adapter, folder, "ours.jsonl"), theirs, strict=True):
        assert sorted(one.values()) == pytest.approx(sorted(other.values()), abs=1e-5)


@pytest.mark.parametrize("names", [{}, OLD_NAMES], ids=["names of today", "names of transformers 4"])
@pytest.mark.parametrize(("head", "settings"), [(None, {}), (3, {"use_rslora": True})])
def test_scores_are_those_of_the_merged_model(
    names: dict[str, str], head: int | None, settings: dict[str, Any],
    vit: Path, photos: Path, tmp_path: Path, cache: Path, messages: list[str],
) -> None:  # fmt: skip
    adapter, merged = adapted(vit, tmp_path, head=head, **settings)
    rename(adapter, names)
    ours, again = (predictions(photos, adapter, tmp_path, out) for out in ("a.jsonl", "again.jsonl"))
    theirs = predictions(photos, merged, tmp_path, "b.jsonl")
    assert ours == again
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert sum("merging" in message for message in messages) == 1
    found = find_checkpoint(str(adapter))
    assert (found.form, found.runtime, found.name) == ("adapter", "native", str(adapter))
    assert found.labels == (LABELS if head is None else ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert found.folder.parent == cache
    pulled = save_checkpoint(found, tmp_path / "pulled")
    assert predictions(photos, pulled, tmp_path, "pulled.jsonl") == ours


def test_of_a_base_without_a_head(make_checkpoint: MakeCheckpoint, vit: Path, photos: Path, tmp_path: Path) -> None:
    """As of a ViTModel, beside which the folder of the adapter lies; and its image processor is the adapter's own."""
    adapter, merged = adapted(vit, tmp_path, head=3)
    body = transformers.ViTModel.from_pretrained(vit)
    body.save_pretrained(adapter / "body")
    about = json.loads((adapter / "adapter_config.json").read_bytes())
    (adapter / "adapter_config.json").write_text(json.dumps({**about, "base_model_name_or_path": "body"}))
    shutil.copy(vit / "preprocessor_config.json", adapter)
    ours = predictions(photos, adapter, tmp_path, "a.jsonl")
    for one, other in zip(ours, predictions(photos, merged, tmp_path, "b.jsonl"), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"peft_type": "IA3"}, r"not merged here \(IA3\); merge it into its base \(merge_and_unload of peft\)"),
        ({"use_dora": True}, "LoRA with use_dora"),
        ({"alpha_pattern": {"q_proj": 3}}, "LoRA with alpha_pattern"),
        ({"bias": "lora_only"}, "LoRA with bias 'lora_only'"),
        ({"init_lora_weights": "pissa_niter_4"}, "LoRA with init_lora_weights 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "LoRA with init_lora_weights 'olora'"),
        ({"init_lora_weights": "loftq"}, "LoRA with init_lora_weights 'loftq'"),
        ({"init_lora_weights": ["pissa"]}, "LoRA with init_lora_weights"),
        ({"lora_alpha": "high"}, "can't be merged into its base: its lora_alpha is 'high', no number"),
        ({"base_model_name_or_path": None}, "does not say of which base"),
        ({"base_model_name_or_path": "/none/such"}, "is an adapter of /none/such, and can't be merged"),
    ],
)
def test_what_is_no_plain_adapter_is_refused(change: dict[str, Any], problem: str, vit: Path, tmp_path: Path) -> None:
    adapter, _ = adapted(vit, tmp_path)
    about = json.loads((adapter / "adapter_config.json").read_bytes())
    (adapter / "adapter_config.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(CheckpointError, match=problem) as caught:
        find_checkpoint(str(adapter))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ({"layers.0": "layers.7"}, "no place for 2 of its weights"),
        ({"lora_B": "lora_C"}, r"it has vit\..*\.lora_A\.weight without vit\..*\.lora_B\.weight"),
        ({"q_proj.lora_A": "q_proj.lora_C"}, r"it has vit\..*\.lora_B\.weight without vit\..*\.lora_A\.weight"),
        ({"lora_A": "lora_X", "lora_B": "lora_Y"}, "no place for"),
    ],
)
def test_what_has_no_place_in_the_base_is_refused(
    names: dict[str, str], problem: str, vit: Path, tmp_path: Path
) -> None:
    adapter, _ = adapted(vit, tmp_path)
    rename(adapter, names)
    with pytest.raises(CheckpointError, match=problem):
        find_checkpoint(str(adapter))


def test_weights_that_neither_has_are_not_made_up(vit: Path, tmp_path: Path) -> None:
    adapter, _ = adapted(vit, tmp_path, head=3)
    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if not name.endswith("classifier.bias")}, path)
    with pytest.raises(CheckpointError, match=r"neither in the adapter nor in its base .* classifier\.bias"):
        find_checkpoint(str(adapter))


def test_a_half_alone_is_refused(vit: Path, tmp_path: Path) -> None:
    adapter, _ = adapted(vit, tmp_path)
    path = adapter / "adapter_model.safetensors"
    lost = "layers.0.attention.q_proj.lora_A"
    save_file({name: tensor for name, tensor in load_file(path).items() if lost not in name}, path)
    with pytest.raises(CheckpointError, match=rf"lora_B\.weight without .*{lost}\.weight"):
        find_checkpoint(str(adapter))


@pytest.mark.parametrize("beginning", [False, "gaussian", "orthogonal"])
def test_beginnings_that_leave_the_base_as_it_is(beginning: object, vit: Path, photos: Path, tmp_path: Path) -> None:
    adapter, merged = adapted(vit, tmp_path, init_lora_weights=beginning)
    same_scores(adapter, merged, photos, tmp_path)


@pytest.mark.parametrize(("head", "modules"), [(3, ["classifier", "fc1"]), (None, ["fc1"]), (5, ["classifier"])])
def test_what_it_replaces_is_used(
    head: int | None, modules: list[str], vit: Path, photos: Path, tmp_path: Path
) -> None:
    """The head is the one that is called so, beside other modules and without one of its own."""
    adapter, merged = adapted(vit, tmp_path, head=head, modules_to_save=modules)
    same_scores(adapter, merged, photos, tmp_path)


def test_the_head_may_be_adapted_itself(vit: Path, photos: Path, tmp_path: Path) -> None:
    adapter, merged = adapted(vit, tmp_path, target_modules=["classifier"])
    same_scores(adapter, merged, photos, tmp_path)


def test_what_does_not_fit_is_refused(vit: Path, tmp_path: Path) -> None:
    """A change of a head of other classes, which the adapter does not bring."""
    adapter, _ = adapted(vit, tmp_path, target_modules=["classifier"])
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    (name,) = (name for name in tensors if "lora_B" in name)
    save_file({**tensors, name: tensors[name][:3].contiguous()}, path)
    with pytest.raises(CheckpointError, match=r"the shape of its classifier\.weight is \(3, \d+\), where the base"):
        find_checkpoint(str(adapter))
    save_file({**tensors, name: tensors[name][:, :2].contiguous()}, path)
    with pytest.raises(CheckpointError, match="classifier have shapes that do not go together"):
        find_checkpoint(str(adapter))


def test_of_a_convolution_is_refused(vit: Path, tmp_path: Path) -> None:
    adapter, _ = adapted(vit, tmp_path, target_modules=["projection"])
    with pytest.raises(CheckpointError, match=r"LoRA of a convolution, vit\..*projection\); merge it into its base"):
        find_checkpoint(str(adapter))
