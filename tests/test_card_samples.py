"""The data of the model card's four fine-tuning and evaluation samples, in their form, from end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import MakeCheckpoint, read_json, read_jsonl
from PIL import Image

from deit_batch.cli import main
from deit_batch.model.checkpoint import find_checkpoint

STORE = (
    "azureml://subscriptions/0000/resourcegroups/rg/workspaces/ws/datastores/workspaceblobstore/paths/LocalUpload/a/"
)
SHORT = "azureml://datastores/workspaceblobstore/paths/LocalUpload/a/"
MLTABLE = """\
paths:
  - file: ./{name}
transformations:
  - read_json_lines:
        encoding: utf8
        invalid_lines: error
        include_path_column: false
  - convert_column_types:
      - columns: image_url
        column_type: stream_info"""
COLOURS = {"can": (200, 30, 30), "carton": (30, 200, 30), "milk_bottle": (220, 220, 220)}


def write_sample(folder: Path, *, several: bool) -> None:
    """The images, and an MLTable of each part, as the samples make them."""
    rows: list[tuple[str, object]] = []
    for number in range(18):
        names = [list(COLOURS)[number % 3]]
        if several:
            names += [name for name in COLOURS if number % 2 and name not in names][:1]
        image = Image.new("RGB", (40, 40), (9, 9, number))
        for place, name in enumerate(names):
            image.paste(COLOURS[name], (0, 40 * place // len(names), 40, 40 * (place + 1) // len(names)))
        path = Path("fridgeObjects", "images" if several else names[0], f"{number}.jpg")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / path)
        rows.append((f"{STORE}{path}", names if several else names[0]))
    for part, chosen in (("train", rows[:12]), ("validation", rows[12:])):
        table = folder / f"{part}-mltable-folder"
        table.mkdir()
        name = f"{part}_annotations.jsonl"
        (table / "MLTable").write_text(MLTABLE.format(name=name))
        (table / name).write_text("".join(json.dumps({"image_url": u, "label": label}) + "\n" for u, label in chosen))


def ran(command: str, *args: object) -> str:
    done = CliRunner().invoke(main, [command, "--workers", "0", *map(str, args)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("several", [False, True], ids=["multi-class", "multi-label"])
def test_fine_tuning_and_evaluation(several: bool, make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    write_sample(tmp_path, several=several)
    shutil.move(tmp_path / "train-mltable-folder", tmp_path / "fridgeObjects")
    train, validation = f"{SHORT}fridgeObjects/train-mltable-folder", tmp_path / "validation-mltable-folder"
    here = ["--map", f"{SHORT}={tmp_path}"]
    model = make_checkpoint("ViTForImageClassification")
    steps = ["--max-steps", "2", "--per-device-train-batch-size", "6"]
    data = ["--input", train, "--validation", validation, *here]
    ran("finetune", *data, "--model", model, *steps, "--out", tmp_path / "m")
    checkpoint = find_checkpoint(str(tmp_path / "m"))
    assert (checkpoint.labels, checkpoint.multi_label) == (list(COLOURS), several)

    ran("evaluate", "--input", validation, *here, "--model", tmp_path / "m", "--out", tmp_path / "e")
    found = read_json(tmp_path / "e" / "metrics.json")
    assert (found["judged"], found["inputs"], found["multi_label"]) == (6, 6, several)

    # The same of predictions that were made before: of the store's names, and of the files in a folder.
    ran("score", tmp_path / "fridgeObjects", "--model", tmp_path / "m", "--top-k", "all", "--out", tmp_path / "p.jsonl")
    stored, files = tmp_path / "e" / "predictions.jsonl", tmp_path / "p.jsonl"
    for predictions, labels in ((stored, validation), (files, validation / "validation_annotations.jsonl")):
        ran("evaluate", "--input", labels, "--predictions", predictions, "--out", tmp_path / "joined")
        joined = read_json(tmp_path / "joined" / "metrics.json")
        assert joined["judged"] == 6, (predictions, labels)
        assert joined["metrics"] == pytest.approx(found["metrics"])
    assert len(read_jsonl(tmp_path / "p.jsonl")) == 18
