"""Checkpoints in timm's form and in the authors': the logits are timm's own (scripts/timm-golden), which needs
gigabytes and does not import beside the torch for CPUs."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import LABELS, MakeCheckpoint, deit_batch, read_jsonl, scored
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from deit_batch.errors import CheckpointError
from deit_batch.model.checkpoint import find_checkpoint, find_recipe
from deit_batch.model.labels import imagenet_names
from deit_batch.model.recipe import Recipe
from deit_batch.model.save import save_checkpoint
from deit_batch.model.timm import IMAGENET_MEAN, IMAGENET_STD, recipe_from_timm, recipe_of_authors
from deit_batch.model.transformer import load_tensors

GOLDEN = Path(__file__).parent / "golden"
LOGITS: dict[str, list[list[float]]] = json.loads((GOLDEN / "logits.json").read_bytes())
FAMILIES = list(LOGITS)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in GOLDEN.glob("*.png"):
        shutil.copy(path, folder)
    return folder


def expected(family: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """timm's scores, [pictures, classes]."""
    values = np.exp(np.array(LOGITS[family]))
    return np.asarray(values / values.sum(1, keepdims=True))


def scores(path: Path, labels: list[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    records = [{one["label"]: one["score"] for one in record["predictions"]} for record in read_jsonl(path)]
    return np.array([[record[label] for label in labels] for record in records])


def labels_of(family: str) -> list[str]:
    return LABELS if family in ("deit", "vit") else [f"LABEL_{number}" for number in range(5)]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_timms(family: str, pictures: Path, tmp_path: Path) -> None:
    out = scored(pictures, GOLDEN / family, tmp_path, top_k=None)
    assert scores(out, labels_of(family)) == pytest.approx(expected(family), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_pull_writes_has_the_same_scores(family: str, pictures: Path, tmp_path: Path) -> None:
    """As a folder in the form of `transformers`, whose own class computes the same logits."""
    import transformers

    found = find_checkpoint(str(GOLDEN / family))
    folder = save_checkpoint(found, tmp_path / "saved")
    out = scored(pictures, folder, tmp_path, top_k=None)
    assert scores(out, labels_of(family)) == pytest.approx(expected(family), abs=1e-5)
    kind = getattr(transformers, found.geometry.architecture)
    model, loaded = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(loaded[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert (processor.resample, processor.crop_size["height"]) == (3, 32)
    assert model.config.id2label == dict(enumerate(labels_of(family)))


@pytest.mark.parametrize("family", ["deit-distilled", "deit3"])
def test_other_commands_take_it(family: str, pictures: Path, tmp_path: Path) -> None:
    """evaluate, embed, and export with what it makes; the server scores as score does."""
    labels = labels_of(family)
    (tmp_path / "labelled" / labels[0]).mkdir(parents=True)
    for path in pictures.iterdir():
        shutil.copy(path, tmp_path / "labelled" / labels[0])

    def run(*args: str | Path) -> None:
        done = deit_batch(*args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    model = GOLDEN / family
    run("evaluate", "--input", "labelled", "--model", model, "--out", "e", "--workers", "0")
    assert scores(tmp_path / "e" / "predictions.jsonl", labels) == pytest.approx(expected(family), abs=1e-5)
    run("embed", "--input", "pictures", "--model", model, "--features", "mean", "--out", "f.npy", "--workers", "0")
    assert np.load(tmp_path / "f.npy").shape == (2, 16)
    run("export", model, "--out", "onnx")
    out = scored(pictures, tmp_path / "onnx", tmp_path, top_k=None)
    assert scores(out, labels) == pytest.approx(expected(family), abs=1e-5)


def in_timms_names(weights: dict[str, Tensor], body: str) -> dict[str, Tensor]:
    """Of a class of `transformers`, the other way round."""
    names = {
        f"{body}.embeddings.cls_token": "cls_token",
        f"{body}.embeddings.distillation_token": "dist_token",
        f"{body}.embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "layernorm": "norm",
        "encoder.layer": "blocks",
        "cls_classifier": "head",
        "distillation_classifier": "head_dist",
        "classifier": "head",
    }
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if ".query." in name:
            parts = [weights[name.replace("query", part)] for part in ("query", "key", "value")]
            name, tensor = name.replace("attention.attention.query", "attn.qkv"), torch.cat(parts)
        elif ".key." in name or ".value." in name:
            continue
        for theirs, timms in names.items():
            name = name.replace(theirs, timms)
        found[name.removeprefix(f"{body}.")] = tensor
    return found


@pytest.mark.parametrize("architecture", ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher"])
@pytest.mark.parametrize("zip_file", [True, False])
def test_the_authors_pickles(
    architecture: str, zip_file: bool, make_checkpoint: MakeCheckpoint, pictures: Path, tmp_path: Path
) -> None:
    """With what a training of theirs keeps beside the model, and in the older format of torch, too."""
    folder = make_checkpoint(architecture, hidden_size=192, num_attention_heads=3, layer_norm_eps=1e-6)
    body = "vit" if architecture.startswith("ViT") else "deit"
    model = in_timms_names(load_file(folder / "model.safetensors"), body)
    path, names = tmp_path / "deit.pth", tmp_path / "names.txt"
    of_training = {"epoch": 5, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}}
    torch.save({"model": model, **of_training}, path, _use_new_zipfile_serialization=zip_file)
    names.write_text("\n".join(LABELS))
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        find_checkpoint(str(path))
    options: dict[str, Any] = {"allow_pickle": True, "id2label": str(names), "top_k": None}
    ours = scored(pictures, path, tmp_path, image_processor=str(folder), **options)
    theirs = scored(pictures, folder, tmp_path, "theirs.jsonl", top_k=None)
    assert scores(ours, LABELS) == pytest.approx(scores(theirs, LABELS), abs=1e-6)
    found = find_checkpoint(str(path), allow_pickle=True)
    assert find_recipe(found, None) == Recipe(
        36, 3, (32, 32), 1 / 255, IMAGENET_MEAN, IMAGENET_STD, rounding="half-even"
    )
    pulled = deit_batch("pull", path, "--allow-pickle", "--id2label", names, "--out", "pulled", cwd=tmp_path)
    assert pulled.returncode == 0, pulled.stderr
    assert sorted(file.name for file in (tmp_path / "pulled").iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json"
    ]  # fmt: skip
    again = scored(pictures, tmp_path / "pulled", tmp_path, "again.jsonl", top_k=None)
    own = scored(pictures, path, tmp_path, "own.jsonl", **options)
    assert again.read_bytes() == own.read_bytes()


def test_a_pickle_of_timms_with_the_authors_names_for_layer_scale(pictures: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "deit3", tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    for number in range(2):
        for half in (1, 2):
            weights[f"blocks.{number}.gamma_{half}"] = weights.pop(f"blocks.{number}.ls{half}.gamma")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    out = scored(pictures, folder, tmp_path, allow_pickle=True, top_k=None)
    assert scores(out, labels_of("deit3")) == pytest.approx(expected("deit3"), abs=1e-5)


def test_what_a_pickle_may_not_hold(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for wrong, problem in (
        ([1], "something else than named tensors"),
        ({"model": {"a": 5}}, "something else than named tensors"),
        (Path(), "loaded"),
    ):
        torch.save(wrong, path)
        with pytest.raises(CheckpointError, match=problem):
            find_checkpoint(str(path), allow_pickle=True)
    torch.save({"head.weight": torch.zeros(1, 1).expand(10**9, 1)}, path)
    with pytest.raises(CheckpointError, match="larger than the file"):
        find_checkpoint(str(path), allow_pickle=True)
    torch.save({"head.weight": torch.zeros(10**7, 0)}, path)
    with pytest.raises(CheckpointError, match="other names or shapes"):
        find_checkpoint(str(path), allow_pickle=True)


@pytest.fixture
def deit3(tmp_path: Path) -> Path:
    return shutil.copytree(GOLDEN / "deit3", tmp_path / "deit3")


def change(path: Path, mend: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads(path.read_bytes())
    mend(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("mend", "problem"),
    [
        (lambda it: it.update(architecture="vit_base_patch16_clip_224"), "no plain ViT or DeiT"),
        (lambda it: it.update(architecture="resnet50"), "no plain ViT or DeiT"),
        (lambda it: it.update(global_pool="avg"), "global_pool = 'avg'"),
        (lambda it: it["model_args"].update(act_layer="relu"), "act_layer = 'relu'"),
        (lambda it: it["model_args"].update(in_chans=1), "in_chans = 1"),
        (lambda it: it["model_args"].pop("num_heads"), "attention heads"),
        (lambda it: it.update(model_args=[1]), "model_args"),
        (lambda it: it["model_args"].update(img_size=[32, 64]), "RGB squares"),
        (lambda it: it["model_args"].update(img_size=64), "shape of its vit.embeddings.position_embeddings"),
        (lambda it: it["pretrained_cfg"].update(crop_mode="border"), "crop_mode 'border'"),
        (lambda it: it["pretrained_cfg"].update(crop_pct=1.1), "crop_pct 1.1"),
        (lambda it: it["pretrained_cfg"].update(interpolation="random"), "interpolation 'random'"),
        (lambda it: it["pretrained_cfg"].update(mean=[1]), "image_mean has 1 values"),
        (lambda it: it["pretrained_cfg"].update(std=[1, 0, 1]), "image_std is 0"),
        (lambda it: it.update(label_names=["a"]), "names 1 class, but its head has 5"),
        (lambda it: it.update(label_names={"1": "a"}), "no names of classes"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(
    mend: Callable[[dict[str, Any]], object], problem: str, deit3: Path
) -> None:
    change(deit3 / "config.json", mend)
    with pytest.raises(CheckpointError, match=problem):
        find_recipe(find_checkpoint(str(deit3)), None)


def test_another_recipe_takes_the_place_of_one_that_is_refused(deit3: Path) -> None:
    change(deit3 / "config.json", lambda it: it["pretrained_cfg"].update(crop_mode="border"))
    recipe = deit3 / "recipe.json"
    recipe.write_text('{"size": 32, "do_center_crop": false}')
    assert find_recipe(find_checkpoint(str(deit3)), str(recipe)).resize == (32, 32)


def test_an_empty_config_is_no_form(deit3: Path) -> None:
    (deit3 / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="model of no stated class"):
        find_checkpoint(str(deit3))


@pytest.mark.parametrize(
    ("change_weights", "problem"),
    [
        (lambda it: it.pop("blocks.1.ls2.gamma"), "no place for 3 of its weights, blocks.0.ls1.gamma"),
        (lambda it: it.update({"blocks.0.gamma_1": it["blocks.0.ls1.gamma"]}), "no place for 5 of its weights"),
        (lambda it: it.update({"fc_norm.weight": it["norm.weight"]}), "no place for 1 of its weights, fc_norm"),
        (lambda it: it.update({"vit.layernorm.weight": it["norm.weight"]}), "twice, by different names"),
        (lambda it: it.update({"blocks.01.norm1.weight": it["norm.weight"]}), "no place for 1 of its weights"),
        (lambda it: it.pop("blocks.0.mlp.fc2.bias"), "would be random"),
        (lambda it: it.pop("head.weight"), "other names or shapes"),
        (lambda it: it.update({"dist_token": it["cls_token"]}), "would be random|shape of its"),
    ],
)
def test_weights_without_a_place_are_refused(
    change_weights: Callable[[dict[str, Tensor]], object], problem: str, deit3: Path
) -> None:
    weights = load_file(deit3 / "model.safetensors")
    change_weights(weights)
    save_file({name: tensor.clone() for name, tensor in weights.items()}, deit3 / "model.safetensors")
    with pytest.raises(CheckpointError, match=problem):
        find_checkpoint(str(deit3))


def test_names_that_a_wrapper_has_put_a_prefix_before(deit3: Path) -> None:
    weights = load_file(deit3 / "model.safetensors")
    plain = load_tensors(find_checkpoint(str(deit3)))
    save_file({f"module._orig_mod.{name}": tensor for name, tensor in weights.items()}, deit3 / "model.safetensors")
    wrapped = load_tensors(find_checkpoint(str(deit3)))
    assert all(torch.equal(tensor, plain[name]) for name, tensor in wrapped.items())
    pulled = save_checkpoint(find_checkpoint(str(deit3)), deit3.parent / "pulled")
    assert load_file(pulled / "model.safetensors").keys() == plain.keys()


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda of: st.lists(of, max_size=5) | st.dictionaries(st.text(max_size=3), of, max_size=3),
    max_leaves=6,
)
_KEYS = ["architecture", "global_pool", "model_args", "pretrained_cfg", "label_names", "label_descriptions"]
_INNER = [
    "input_size",
    "fixed_input_size",
    "interpolation",
    "crop_pct",
    "crop_mode",
    "mean",
    "std",
    "num_heads",
    "img_size",
]


@given(st.dictionaries(st.sampled_from(_KEYS), _json), st.dictionaries(st.sampled_from(_INNER), _json))
def test_any_config_is_followed_or_refused(
    tmp_path_factory: pytest.TempPathFactory, outer: dict[str, Any], inner: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    shutil.copytree(GOLDEN / "deit", folder, dirs_exist_ok=True)
    config = json.loads((GOLDEN / "deit" / "config.json").read_bytes())
    config["pretrained_cfg"] |= inner
    config["model_args"] |= {name: value for name, value in inner.items() if name in ("num_heads", "img_size")}
    (folder / "config.json").write_text(json.dumps({**config, **outer}))
    with contextlib.suppress(CheckpointError):
        found = find_checkpoint(str(folder))
        assert find_recipe(found, None).size == found.geometry.image_size == (32, 32)


def test_names_of_classes(deit3: Path) -> None:
    """By descriptions, or names, or the WordNet ids that come with us; ImageNet's where a thousand have no names."""
    change(deit3 / "config.json", lambda it: it.update(label_names=["n01440764", "a", "b", "c", "d"]))
    assert find_checkpoint(str(deit3)).labels == ["tench, Tinca tinca", "a", "b", "c", "d"]
    numbered = {str(number): f"x{number}" for number in range(5)}
    change(deit3 / "config.json", lambda it: it.update(label_names=numbered, label_descriptions={"x1": "y"}))
    assert find_checkpoint(str(deit3)).labels == ["x0", "y", "x2", "x3", "x4"]
    weights = load_file(deit3 / "model.safetensors")
    save_file({**weights, "head.weight": torch.zeros(1000, 16), "head.bias": torch.zeros(1000)},
              deit3 / "model.safetensors")  # fmt: skip
    change(deit3 / "config.json", lambda it: it.pop("label_names"))
    assert find_checkpoint(str(deit3)).labels == list(imagenet_names().values())


def test_an_older_config_has_one_level(deit3: Path) -> None:
    about = json.loads((deit3 / "config.json").read_bytes())
    flat = {**about.pop("pretrained_cfg"), **about, "labels": list("abcde")}
    (deit3 / "config.json").write_text(json.dumps(flat))
    found = find_checkpoint(str(deit3))
    assert found.labels == list("abcde")
    assert find_recipe(found, None) == find_recipe(find_checkpoint(str(GOLDEN / "deit3")), None)


def test_the_papers_evaluation_is_the_same_when_it_is_scaled() -> None:
    """438 pixels for 384, as the authors' code has it."""
    assert recipe_of_authors(224).scaled(384) == recipe_of_authors(384)
    assert recipe_of_authors(384).resize == 438


@pytest.mark.parametrize(
    ("size", "crop", "side"), [(224, 0.9, 248), (224, 0.875, 256), (384, 1.0, 384), (384, 0.95, 404)]
)
def test_timms_own_rounding_of_the_resize(size: int, crop: float, side: int) -> None:
    recipe = recipe_from_timm({"architecture": "x", "pretrained_cfg": {"crop_pct": crop}}, size, "x")
    assert (recipe.resize, recipe.size) == (side, (size, size))
    assert [recipe.cut_before(surplus) for surplus in (0, 1, 2, 3, 4, 5)] == [0, 0, 1, 2, 2, 2]  # halves to even


def test_layer_scale_of_halves_is_multiplied_in_float32(deit3: Path) -> None:
    weights = load_file(deit3 / "model.safetensors")
    exact = load_tensors(find_checkpoint(str(deit3)))
    save_file({name: tensor.half() for name, tensor in weights.items()}, deit3 / "model.safetensors")
    halves = load_tensors(find_checkpoint(str(deit3)))
    assert {tensor.dtype for tensor in halves.values()} == {torch.float32}
    for name, tensor in halves.items():
        assert torch.allclose(tensor, exact[name], rtol=2e-3, atol=1e-6)
