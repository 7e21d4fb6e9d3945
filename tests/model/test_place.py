"""Where the files of a checkpoint are: MLflow models, and the mounts of registered ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from helpers import scored

from deit_batch.errors import CheckpointError
from deit_batch.model.checkpoint import find_checkpoint
from deit_batch.model.save import save_checkpoint


@pytest.fixture
def mlflow(vit: Path, tmp_path: Path) -> Path:
    """As MLflow's flavour for `transformers` writes it."""
    folder = tmp_path / "mlflow_model_folder"
    shutil.copytree(vit, folder / "model")
    processor = folder / "components" / "image_processor"
    processor.mkdir(parents=True)
    shutil.move(folder / "model" / "preprocessor_config.json", processor)
    flavours = {
        "python_function": {"loader_module": "mlflow.transformers", "model_binary": "model"},
        "transformers": {"model_binary": "model", "components": ["image_processor"], "task": "image-classification"},
    }
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavours}))
    return folder


@pytest.fixture
def catalogues(vit: Path, tmp_path: Path) -> Path:
    """As Azure ML's model catalogue has it, by its older flavour."""
    folder = tmp_path / "catalogue"
    for name in ("model", "config", "tokenizer"):
        (folder / "data" / name).mkdir(parents=True)
    shutil.copy(vit / "model.safetensors", folder / "data" / "model")
    shutil.copy(vit / "config.json", folder / "data" / "config")
    shutil.copy(vit / "preprocessor_config.json", folder / "data" / "tokenizer")
    flavours = {"hftransformersv2": {"model_data": "data"}, "python_function": {"data": "data"}}
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavours}))
    return folder


@pytest.mark.parametrize("kind", ["mlflow", "catalogues"])
def test_an_mlflow_model_scores_as_the_checkpoint_in_it(
    kind: str, vit: Path, photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    mount = tmp_path / "mount"
    mount.mkdir()
    shutil.copytree(folder, mount / folder.name)
    plain = scored(photos, vit, tmp_path, "a.jsonl", limit=3).read_bytes()
    assert scored(photos, folder, tmp_path, "b.jsonl", limit=3).read_bytes() == plain
    assert scored(photos, mount, tmp_path, "c.jsonl", limit=3).read_bytes() == plain  # as Azure ML mounts it
    pulled = save_checkpoint(find_checkpoint(str(folder)), tmp_path / "pulled")
    assert find_checkpoint(str(pulled)).digest == find_checkpoint(str(vit)).digest


def test_an_image_processor_may_be_beside_the_model(mlflow: Path, vit: Path) -> None:
    shutil.rmtree(mlflow / "components")
    shutil.copy(vit / "preprocessor_config.json", mlflow / "model")
    assert find_checkpoint(str(mlflow)).recipe == mlflow / "model" / "preprocessor_config.json"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("flavors: {sklearn: {data: x}}", r"of another flavour \(sklearn\)"),
        ("flavors: {}", r"of another flavour \(none\)"),
        ("flavors: 5", "names no flavors"),
        ("[", "names no flavors"),
        ("[" * 10_000, "names no flavors"),
        ("", "names no flavors"),
        ("!!python/object/apply:os.system ['false']", "names no flavors"),
        ("flavors: {transformers: {model_binary: ../other}}", "no folder in it"),
        ("flavors: {transformers: {model_binary: /etc}}", "no folder in it"),
        ("flavors: {transformers: {model_binary: 5}}", "no folder in it"),
        ("flavors: {transformers: {model_binary: none}}", "no checkpoint: there is no"),
    ],
)
def test_an_mlflow_model_that_is_none(mlflow: Path, text: str, problem: str) -> None:
    (mlflow / "MLmodel").write_text(text)
    with pytest.raises(CheckpointError, match=problem):
        find_checkpoint(str(mlflow))
