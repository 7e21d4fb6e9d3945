"""Checkpoints as ONNX: the same scores as their own weights give, or nearly, and nothing that was not asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import EXAMPLES, deit_batch, read_json, read_jsonl, scored

from deit_batch import score
from deit_batch.errors import CheckpointError, OutputError, UsageError
from deit_batch.model.checkpoint import find_checkpoint
from deit_batch.model.onnx import export


def assert_alike(ours: Any, theirs: Any, closely: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.image == other.image
        scores = {prediction["label"]: prediction["score"] for prediction in other.predictions}
        for prediction in one.predictions:
            assert prediction["score"] == pytest.approx(scores[prediction["label"]], abs=closely), one.image


def test_an_exported_checkpoint_scores_as_the_checkpoint_does(
    checkpoint: Path, all_kinds: Path, tmp_path: Path
) -> None:
    export(find_checkpoint(str(checkpoint)), tmp_path / "onnx", "float32")
    ours = score(all_kinds, model=str(tmp_path / "onnx"), workers=0, top_k=None)
    assert_alike(ours, score(all_kinds, model=str(checkpoint), workers=0, top_k=None), closely=1e-5)


def test_int8_is_exported_once_and_gives_nearly_the_same_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    exact = list(score(EXAMPLES, model="demo", workers=0, top_k=None))
    for _ in range(2):
        assert_alike(score(EXAMPLES, model="demo", workers=0, top_k=None, dtype="int8"), exact, closely=0.05)
    assert [message for message in messages if "exporting" in message] == [
        f"exporting demo to int8, once: it is kept in {next((tmp_path / 'deit-batch').iterdir())}"
    ]


def test_int8_scores_do_not_depend_on_the_other_images(photos: Path, vit: Path, tmp_path: Path) -> None:
    export(find_checkpoint(str(vit)), tmp_path / "onnx", "int8")
    for size in (1, 7, 40):
        scored(photos, tmp_path / "onnx", tmp_path, out=f"{size}.jsonl", batch_size=size)
    assert len({(tmp_path / f"{size}.jsonl").read_bytes() for size in (1, 7, 40)}) == 1


def test_the_command_makes_a_folder_that_is_a_checkpoint_like_any_other(
    vit: Path, photos: Path, tmp_path: Path
) -> None:
    done = deit_batch("export", vit, "--out", "made/vit-int8", "--dtype", "int8", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == ["deit-batch: made the folder made", f"deit-batch: {vit}, int8: made/vit-int8"]
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["vit-int8"]
    done = deit_batch("score", "--model", "made/vit-int8", "--input", photos, "--out", "p.jsonl", cwd=tmp_path)
    assert done.returncode == 0
    assert len(read_jsonl(tmp_path / "p.jsonl")) == 40
    report = read_json(tmp_path / "p.jsonl.run.json")
    assert report["settings"]["dtype"] == "int8"
    again = deit_batch("export", vit, "--out", "made/vit-int8", cwd=tmp_path)
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_by_its_runtime_a_checkpoint_is_exported_once_and_then_run_by_nothing_else(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    exact = list(score(EXAMPLES, model=vit, workers=0, top_k=None))
    for _ in range(2):
        assert_alike(score(EXAMPLES, model=vit, workers=0, top_k=None, runtime="onnx"), exact, closely=1e-5)
    assert sum("exporting" in message for message in messages) == 1
    (exported,) = (tmp_path / "deit-batch").iterdir()
    refused: list[tuple[dict[str, Any], str]] = [
        ({"dtype": "float16"}, "exported to float32: it has no dtype=float16"),
        ({"dtype": "int8"}, "no dtype=int8"),
        ({"runtime": "native"}, "run by ONNX Runtime, not by runtime=native"),
        ({"runtime": "transformers"}, "run by ONNX Runtime, not by runtime=transformers"),
    ]
    for options, message in refused:
        with pytest.raises(UsageError, match=message):
            next(score(EXAMPLES, model=exported, **options))


def test_an_export_that_does_not_fit_its_config_is_refused(vit: Path, tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    export(find_checkpoint(str(vit)), folder, "float32")
    with pytest.raises(UsageError, match="exported already"):
        export(find_checkpoint(str(folder)), tmp_path / "again", "float32")
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "can", "1": "jar"}}))
    with pytest.raises(CheckpointError, match="gives 5 classes; pixel_values and 2 were expected"):
        next(score(EXAMPLES, model=str(folder)))
    (folder / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"model\.onnx can't be loaded"):
        next(score(EXAMPLES, model=str(folder)))


def test_an_export_that_can_not_be_written_leaves_nothing(vit: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't be written"):
        export(find_checkpoint(str(vit)), tmp_path / "file" / "onnx", "float32")
    broken = shutil.copytree(vit, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-1000])
    with pytest.raises(CheckpointError):
        export(find_checkpoint(str(broken)), tmp_path / "onnx", "float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "file"]
