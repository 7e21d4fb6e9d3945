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
        ({"lora_alpha": "high"}, "can't be merged into its base"),
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
        ({"lora_B": "lora_C"}, "can't be merged into its base: 'vit"),
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
