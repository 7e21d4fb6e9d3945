"""Image classifiers that are no DeiTs, by their own classes of transformers; and DeiTs by theirs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import EXAMPLES, agree, by_label, by_the_pipeline, read_json, scored
from other_classes import KINDS
from safetensors.torch import load_file, save_file
from server_process import b64, running
from transformers import AutoImageProcessor
from transformers.image_utils import load_image

from deit_batch import embed, score
from deit_batch.cli import main
from deit_batch.errors import CheckpointError, DeitBatchError, UsageError
from deit_batch.model.checkpoint import find_checkpoint
from deit_batch.options import Options
from deit_batch.plan import Plan
from deit_batch.report.page import settings_of

SOME_KINDS = ["rgb.jpg", "palette-transparent.png", "3000x2.png", "grey16.png", "orientation6.jpg"]


@pytest.fixture
def pictures(all_kinds: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in SOME_KINDS:
        shutil.copy(all_kinds / name, folder)
    return folder


def by_score(folder: Path, images: Path, **options: Any) -> list[dict[str, float]]:
    records = list(score(images, model=folder, **{"workers": 0, "top_k": None, **options}))
    assert [record.error for record in records] == [None] * len(records)
    return [by_label(record.predictions) for record in records]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_pipelines(kind: str, made: Callable[..., Path], pictures: Path) -> None:
    assert agree(by_score(made(kind), pictures), by_the_pipeline(made(kind), pictures))


@pytest.mark.parametrize("problem", ["multi_label_classification", "single_label_classification"])
def test_a_siglip_is_scored_by_its_kind_of_problem(problem: str, made: Callable[..., Path], pictures: Path) -> None:
    folder = made("siglip", problem_type=problem)
    found = by_score(folder, pictures)
    assert agree(found, by_the_pipeline(folder, pictures))
    sums = [sum(scores.values()) for scores in found]
    assert (sums == pytest.approx([1] * len(sums))) is (problem == "single_label_classification")


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_its_body(kind: str, made: Callable[..., Path], pictures: Path) -> None:
    import transformers

    about, folder, names = KINDS[kind], made(kind), KINDS[kind].features
    model = getattr(transformers, about.architecture).from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    for record in embed(pictures, model=folder, features=names, workers=0):  # type: ignore[arg-type]
        with torch.inference_mode():
            values = processor(load_image(str(record.image)), return_tensors="pt")["pixel_values"]
            hidden = (model.vision_model if kind == "siglip" else model.base_model)(values).last_hidden_state[0]
        tokens = hidden.flatten(1).T if hidden.ndim == 3 else hidden
        first = {"dinov2": 4, "beit": 1}.get(kind, 0)
        expected = {"mean": tokens[first:].mean(0), "cls": tokens[0]}
        assert record.features is not None
        assert list(record.features) == list(names)
        for name, vector in record.features.items():
            np.testing.assert_allclose(vector, expected[name], rtol=1e-5, atol=1e-5)
    for missing in {"cls", "mean", "distillation"} - set(names):
        with pytest.raises(UsageError, match=f"features={missing}: .* which has only {' and '.join(names)}"):
            next(embed(pictures, model=folder, features=(missing,)))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["dinov2", "resnet"])  # by a recipe, and by the class of its processor
def test_it_is_a_run_as_any_other(kind: str, made: Callable[..., Path], pictures: Path, tmp_path: Path) -> None:
    """Workers, any batch, a broken image, the report, a dry run."""
    folder = made(kind)
    (pictures / "broken.jpg").write_bytes(b"broken")
    out = scored(pictures, folder, tmp_path, workers=2, top_k=None)
    again = scored(pictures, folder, tmp_path, "again.jsonl", workers=0, batch_size=7, top_k=None)
    assert out.read_bytes() == again.read_bytes()
    report = read_json(tmp_path / "p.jsonl.run.json")
    assert report["architecture"] == KINDS[kind].architecture
    assert report["settings"]["runtime"] == "transformers"
    assert {"torch", "transformers"} <= report["versions"].keys()
    processor = report["settings"]["recipe"]["processor"]
    assert (processor and processor["image_processor_type"]) == (
        "MobileViTImageProcessor" if kind == "resnet" else None
    )
    shown = settings_of(report)
    assert shown["Computed"] == "float32 on cpu, by transformers"
    assert ("MobileViTImageProcessor of transformers, to 32×32" in shown["Recipe"]) is (kind == "resnet")
    done = CliRunner().invoke(main, ["score", str(pictures), "--model", str(folder), "--dry-run"])
    assert done.exit_code == 0, done.stderr
    assert f"in the form of transformers: {KINDS[kind].architecture}, 5 labels" in done.stdout
    assert "runtime: transformers\n" in done.stdout


def test_half_precision_gives_nearly_the_same_scores(made: Callable[..., Path], pictures: Path) -> None:
    exact, rough = by_score(made("beit"), pictures), by_score(made("beit"), pictures, dtype="bfloat16")
    assert exact != rough
    assert all(one == pytest.approx(other, abs=0.05) for one, other in zip(exact, rough, strict=True))


@pytest.fixture
def beit(made: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(made("beit"), tmp_path / "beit")


def change(path: Path, **settings: Any) -> None:
    config = {**json.loads(path.read_bytes()), **settings}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def plan(folder: Path, **options: Any) -> Plan:
    return Plan.of(Options(input="", model=str(folder), **options))


WEIGHT, BIAS = "classifier.weight", "classifier.bias"


@pytest.mark.parametrize(
    ("mend", "problem"),
    [
        (lambda it: it.pop(BIAS), r"1 of its weights were not in the checkpoint and would be random, classifier\.bias"),
        (lambda it: it.update({"classifier.more": torch.ones(5)}), "no place for 1 of its weights, classifier.more"),
        (lambda it: it.update({BIAS: torch.zeros(6)}), r"the shape of its classifier\.bias is \(6,\), where .* \(5,\)"),
        (lambda it: it.update({BIAS: torch.zeros(5, dtype=torch.int8)}), "quantised or whole numbers"),
        (lambda it: it.update({BIAS: torch.full((5,), torch.nan)}), "classifier.bias has numbers that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    mend: Callable[[dict[str, torch.Tensor]], object], problem: str, beit: Path
) -> None:
    weights = load_file(beit / "model.safetensors")
    mend(weights)
    save_file(weights, beit / "model.safetensors")
    with pytest.raises(CheckpointError, match=problem):
        plan(beit).load()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"architectures": ["BeitModel"]}, "is a BeitModel, not an image classifier"),
        ({"architectures": ["SwinForImageClassification"]}, "of model_type beit, which is no image classifier of"),
        ({"architectures": ["MineForImageClassification"]}, "code that comes with a checkpoint is not run"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.py"}}, "of model_type mine"),
        ({"model_type": None}, "of model_type None"),
        ({"model_type": ["beit"]}, "model_type"),
        ({"num_hidden_layers": 3}, "would be random"),
        ({"num_hidden_layers": 10**6}, "wants more than 20,000 weights"),
        ({"hidden_size": 24}, "the shape of its"),
        ({"hidden_size": "wide"}, "can't be loaded"),
        ({"num_attention_heads": 5}, "the shape of its"),
        ({"image_size": 64}, "the shape of its|does not take images of 32x32"),
        ({"problem_type": "regression"}, "regression"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_an_image_is_read(
    settings: dict[str, Any], problem: str, beit: Path
) -> None:
    change(beit / "config.json", **settings)
    with pytest.raises(CheckpointError, match=problem) as caught:
        plan(beit)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("processor", "problem"),
    [
        ({"image_processor_type": "TextNetImageProcessor", "size": {"shortest_edge": 32}}, "images of different sizes"),
        ({"image_processor_type": "BitImageProcessor", "do_center_crop": False}, "images of different sizes"),
        ({"image_processor_type": "ImageGPTImageProcessor", "clusters": [[0, 0, 0]]}, "gives input_ids"),
        ({"image_processor_type": "NoSuchImageProcessor"}, "can't be used"),
        ({"image_processor_type": "ViTImageProcessor", "size": 4}, "does not take images of 4x4"),
        ({"image_processor_type": "ViTImageProcessor", "size": -5}, "can't be used"),
    ],
)
def test_an_image_processor_that_can_not_be_followed_is_refused(
    processor: dict[str, Any], problem: str, beit: Path
) -> None:
    (beit / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(CheckpointError, match=problem) as caught:
        plan(beit)
    assert "\n" not in str(caught.value)


def test_a_processor_that_names_no_class_is_that_of_the_model(
    made: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(made("siglip"), tmp_path / "siglip")
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 32, "width": 32}}')
    assert agree(by_score(folder, pictures), by_score(made("siglip"), pictures))


def test_what_is_for_deits_alone_refuses_other_classes_by_name(made: Callable[..., Path], tmp_path: Path) -> None:
    folder, named = made("swin"), "SwinForImageClassification, not a DeiT classifier; those are ViT"
    for options in ({"dtype": "int8"}, {"runtime": "native"}, {"runtime": "onnx"}):
        with pytest.raises(UsageError, match=named):
            plan(folder, **options)
    out = str(tmp_path / "out")
    for command in (["export", str(folder)], ["finetune", "--input", str(EXAMPLES), "--model", str(folder)]):
        done = CliRunner().invoke(main, [*command, "--out", out])
        assert done.exit_code == 2
        assert named in done.output
    assert not os.path.exists(out)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"runtime": "native", "dtype": "int8"}, "leave out --runtime native"),
        ({"runtime": "transformers", "dtype": "int8"}, "leave out --runtime transformers"),
        ({"runtime": "onnx", "dtype": "float16"}, "computes in float32 or int8, not in float16"),
        ({"runtime": "onnx", "features": ("cls",)}, "--runtime onnx is for scores alone"),
        ({"runtime": "torch"}, "must be one of auto, native, transformers, onnx"),
    ],
)
def test_a_runtime_is_refused_for_what_it_can_not_do(vit: Path, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        plan(vit, **options)


def test_pull_copies_it_as_it_is(made: Callable[..., Path], pictures: Path, tmp_path: Path) -> None:
    folder = made("convnext")
    done = CliRunner().invoke(main, ["pull", str(folder), "--out", str(tmp_path / "pulled")])
    assert done.exit_code == 0, done.stderr
    assert by_score(tmp_path / "pulled", pictures) == by_score(folder, pictures)


def test_pickled_weights_and_those_of_a_wrapper(made: Callable[..., Path], pictures: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made("resnet"), tmp_path / "pickled")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({f"module.{name}": tensor for name, tensor in weights.items()}, folder / "pytorch_model.bin")
    assert by_score(folder, pictures, allow_pickle=True) == by_score(made("resnet"), pictures)


def test_no_process_of_a_native_run_imports_transformers_or_datasets(vit: Path, photos: Path, tmp_path: Path) -> None:
    """Neither a command nor a worker, of a folder, CSV or JSON lines; traps lie where they would find them."""
    trap, mark = tmp_path / "trap", tmp_path / "imported"
    trap.mkdir()
    for name in ("transformers.py", "datasets.py"):
        (trap / name).write_text(f"open({str(mark)!r}, 'w')\nraise ImportError('not for this')\n")
    path = os.pathsep.join([str(trap), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": f"{photos}/00.jpg"}) + "\n")
    (tmp_path / "labels.csv").write_text("image,label\n" + f"{photos}/00.jpg,can\n{photos}/01.jpg,jar\n")
    program = (
        "import os, shlex, sys; from click.testing import CliRunner; from deit_batch.cli import main\n"
        "for command in sys.argv[1:]:\n"
        "    done = CliRunner().invoke(main, shlex.split(command))\n"
        "    assert done.exit_code == 0, (command, done.output, done.exception)\n"
        "assert not {'transformers', 'datasets'} & {*sys.modules}\n"
        f"assert not os.path.exists({str(mark)!r})\n"
        "import transformers"  # which is the trap
    )
    model = f"--model {vit} --workers 1"
    commands = [
        f"score --input {photos} --out p.jsonl {model}",
        f"embed --input rows.jsonl --out f.npy {model}",
        f"evaluate --input labels.csv --out e {model}",
        f"score --input {photos} --dry-run {model}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *commands], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert b"not for this" in done.stderr, done.stderr.decode()
    assert mark.exists()
    mark.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        with running(tmp_path, vit, "--workers", "1") as server:
            server.score(b64((photos / "00.jpg").read_bytes()))
    assert not mark.exists()
    assert find_checkpoint(str(vit)).runtime == "native"


def test_what_transformers_raises_in_a_run_is_one_line(beit: Path, pictures: Path) -> None:
    """Whatever it is, the run ends with a DeitBatchError and no traceback."""
    change(beit / "config.json", id2label={"0": "a"}, label2id={"a": 0})
    with pytest.raises(DeitBatchError):
        list(score(pictures, model=beit, workers=0))
