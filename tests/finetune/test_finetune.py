"""Fine-tuning learns, is resumed to the same weights, and leaves checkpoints that score as the pipeline scores them."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from click import Context
from click.testing import CliRunner
from helpers import COMMAND, EXAMPLES, LABELS, MakeCheckpoint, deit_batch, read_json
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    TrainerControl,
    TrainerState,
    pipeline,
)

from deit_batch import score
from deit_batch.cli import main
from deit_batch.errors import CheckpointError, InputError, OutputError, UsageError
from deit_batch.finetune.data import load_sets, split
from deit_batch.finetune.folders import finished_report, open_partial
from deit_batch.finetune.run import TrainingResult, _facts, finetune
from deit_batch.finetune.settings import Settings
from deit_batch.finetune.students import interpolated
from deit_batch.finetune.teacher import Teacher
from deit_batch.finetune.training import Diverged, StopIfDiverged
from deit_batch.model.checkpoint import find_checkpoint, find_recipe
from deit_batch.model.recipe import recipe_from_config
from deit_batch.system.signals import stop_on_signals

COLOURS = {"red": (200, 60, 50), "green": (60, 190, 70), "blue": (50, 70, 200)}
EACH = 10


def patch(colour: tuple[int, int, int], seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(-50, 50, (32, 32, 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of noisy patches."""
    folder = tmp_path_factory.mktemp("colours")
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for number in range(EACH):
            patch(colour, number).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def canvases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ beside labels.csv: the upper half in one colour, the lower in another, or in the same."""
    folder = tmp_path_factory.mktemp("canvases")
    (folder / "images").mkdir()
    lines = ["filename,labels"]
    for number in range(36):
        names = [list(COLOURS)[number % 3], list(COLOURS)[number // 3 % 3]]
        image = patch(COLOURS[names[0]], number)
        image.paste(patch(COLOURS[names[1]], number + 100).crop((0, 0, 32, 16)), (0, 16))
        image.save(folder / "images" / f"{number}.png")
        lines.append(f"{number}.png,{' '.join(dict.fromkeys(names))}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def start(make_checkpoint: MakeCheckpoint) -> Path:
    """What is learned from: weights as small as real ones."""
    return make_checkpoint(initializer_range=0.05)


def settings(input: Path, model: Path, **more: Any) -> Settings:
    quick: dict[str, Any] = {"num_train_epochs": 6, "learning_rate": 2e-3, "workers": 0}
    return Settings(input=str(input), model=str(model), **{**quick, **more})


def losses(out: Path) -> list[float]:
    history = json.loads((out / "training.json").read_bytes())["history"]
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry]


def assert_scores_as_the_pipeline(folder: Path, images: Path) -> None:
    classify = pipeline("image-classification", model=str(folder), dtype=torch.float32)
    records = list(score(str(images), model=str(folder), top_k=None, workers=0))
    assert len(records) > 20
    for record in records:
        expected = classify(str(record.image), top_k=len(COLOURS))
        assert [p["label"] for p in record.predictions] == [p["label"] for p in expected]
        assert [p["score"] for p in record.predictions] == pytest.approx([p["score"] for p in expected], abs=1e-5)


@pytest.mark.parametrize(
    "architecture",
    ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher", "DeiTForImageClassification"],
)
def test_every_class_learns_and_scores_as_the_pipeline(
    colours: Path, tmp_path: Path, make_checkpoint: MakeCheckpoint, architecture: str
) -> None:
    base = make_checkpoint(architecture, initializer_range=0.05)
    outcome = finetune(settings(colours, base), tmp_path / "out")
    assert outcome.metrics["accuracy"] > 0.8  # 0.33 by chance
    assert min(losses(tmp_path / "out")) < np.log(3) - 0.3  # by chance
    assert_scores_as_the_pipeline(tmp_path / "out", colours)
    checkpoint = find_checkpoint(str(tmp_path / "out"))
    assert checkpoint.labels == sorted(COLOURS)
    assert find_recipe(checkpoint, None) == find_recipe(find_checkpoint(str(base)), None)


def test_several_labels_an_image(canvases: Path, start: Path, tmp_path: Path) -> None:
    outcome = finetune(settings(canvases, start, num_train_epochs=20), tmp_path / "out")
    assert outcome.metrics["average_precision_macro"] > 0.8  # 0.56 by chance
    assert find_checkpoint(str(tmp_path / "out")).multi_label
    assert_scores_as_the_pipeline(tmp_path / "out", canvases / "images")
    card = (tmp_path / "out" / "README.md").read_text()
    report = json.loads((tmp_path / "out" / "training.json").read_bytes())
    of_epochs = [entry for entry in report["history"] if "eval_loss" in entry]
    best = max(of_epochs, key=lambda entry: entry["eval_average_precision_macro"])  # the first of equal ones
    assert (outcome.kept, report["best"]["step"]) == (
        f"epoch {best['epoch']:g}, the best by average_precision_macro",
        best["step"],
    )
    assert f"| Kept | {outcome.kept}; the metrics above are its own |" in card
    assert "any number of labels an image" in card
    assert json.loads((tmp_path / "out" / "training.json").read_bytes())["data"]["fingerprints"][0] in card


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(one: Path, other: Path) -> set[str]:
    before, after = weights(one), weights(other)
    return {name for name in before if before[name].shape != after[name].shape or (before[name] != after[name]).any()}


def test_a_validation_measures_what_an_evaluation_does(
    canvases: Path, start: Path, tmp_path: Path, messages: list[str]
) -> None:
    validation = str(canvases)
    chosen = settings(canvases, start, max_steps=2, validation=validation, metric_for_best_model="jaccard_samples")
    found = finetune(chosen, tmp_path / "out").metrics
    assert any("36 of 36 images to validate with are trained on, too" in message for message in messages)
    command = ["evaluate", "--input", validation, "--model", str(tmp_path / "out"), "--out", str(tmp_path / "e")]
    done = CliRunner().invoke(main, [*command, "--workers", "0"])
    assert done.exit_code == 0, done.output
    values = read_json(tmp_path / "e" / "metrics.json")["metrics"]
    for name in ("jaccard_samples", "log_loss", "balanced_accuracy", "balanced_accuracy_adjusted", "f1_macro"):
        assert found[name] == pytest.approx(values[name], abs=1e-4), name


def test_a_frozen_backbone_stays_as_it_was(colours: Path, start: Path, tmp_path: Path, messages: list[str]) -> None:
    finetune(settings(colours, start, freeze_backbone=True), tmp_path / "out")
    assert not any("are trained on, too" in message for message in messages)
    assert changed(start, tmp_path / "out") == {"classifier.weight", "classifier.bias"}


def test_an_epoch_takes_no_workers_beside_those_of_the_one_before(
    colours: Path, start: Path, tmp_path: Path, messages: list[str]
) -> None:
    counts: list[int] = []
    handler = logging.Handler()
    handler.emit = lambda record: counts.append(len(multiprocessing.active_children()))  # type: ignore[method-assign]
    handler.addFilter(lambda record: record.getMessage().startswith("epoch"))
    logging.getLogger("deit_batch").addHandler(handler)
    try:
        finetune(settings(colours, start, freeze_backbone=True, num_train_epochs=3, workers=1), tmp_path / "out")
    finally:
        logging.getLogger("deit_batch").removeHandler(handler)
    assert len(counts) == 3
    assert len(set(counts)) == 1, counts


def test_lora_ends_in_a_plain_checkpoint(colours: Path, start: Path, tmp_path: Path) -> None:
    outcome = finetune(settings(colours, start, lora_rank=4, learning_rate=1e-2), tmp_path / "out")
    assert outcome.metrics["accuracy"] > 0.8
    parts = {name.rsplit(".", 2)[-2] for name in changed(start, tmp_path / "out")}
    assert parts == {"query", "value", "classifier"}
    assert_scores_as_the_pipeline(tmp_path / "out", colours)


def test_an_mlflow_model_predicts_the_same(colours: Path, start: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    finetune(settings(colours, start, mlflow=True, max_steps=3), out)
    assert str(tmp_path) not in (out / "mlflow" / "MLmodel").read_text()
    import mlflow

    model = mlflow.pyfunc.load_model(str(out / "mlflow"))
    for record in score(str(colours / "red"), model=str(out), workers=0):
        (found,) = model.predict([str(record.image)]).to_numpy().tolist()
        assert [one["label"] for one in found] == [one["label"] for one in record.predictions]
        scores = [one["score"] for one in record.predictions]
        assert [one["score"] for one in found] == pytest.approx(scores, abs=1e-5)
    of_mlflow, of_folder = (list(score(str(colours), model=folder, workers=0)) for folder in (out / "mlflow", out))
    assert [record.predictions for record in of_mlflow] == [record.predictions for record in of_folder]


def test_a_larger_image_size(colours: Path, start: Path, tmp_path: Path) -> None:
    finetune(settings(colours, start, image_size=48, num_train_epochs=1), tmp_path / "out")
    checkpoint = find_checkpoint(str(tmp_path / "out"))
    assert checkpoint.geometry.image_size == find_recipe(checkpoint, None).size == (48, 48)
    assert_scores_as_the_pipeline(tmp_path / "out", colours)
    with pytest.raises(UsageError, match="--image-size 50 is no multiple"):
        finetune(settings(colours, start, image_size=50), tmp_path / "other")


def test_positions_are_interpolated_in_their_place() -> None:
    rows = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 4, 2).reshape(1, 16, 2)
    assert torch.equal(interpolated(rows, (4, 4), (4, 4)), rows)
    larger = interpolated(rows, (4, 4), (8, 8)).view(8, 8, 2)
    assert (larger.diff(dim=0) > -0.1).all()
    assert torch.allclose(larger.diff(dim=1), torch.zeros(()), atol=1e-5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CNN that says of everything that it is green."""
    names = dict(enumerate(["blue", "green", "red", "grey"]))
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", id2label=names, label2id={}
    )
    model = ResNetForImageClassification(config)
    linear: Any = model.classifier[-1]
    torch.nn.init.zeros_(linear.weight)
    linear.bias.data = torch.tensor([0.0, 9.0, 0.0, 10.0])  # grey is none of the student's classes
    folder = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 24}, "image_mean": [0.5, 0.4, 0.3]}')
    return folder


def test_a_teacher_trains_the_distillation_token(colours: Path, start: Path, teacher: Path, tmp_path: Path) -> None:
    finetune(settings(colours, start, teacher=str(teacher)), tmp_path / "out")
    assert find_checkpoint(str(tmp_path / "out")).geometry.architecture == "DeiTForImageClassificationWithTeacher"
    assert_scores_as_the_pipeline(tmp_path / "out", colours)
    pixels = torch.tensor(np.stack([np.asarray(patch(COLOURS["red"], n)) for n in range(20, 30)])).permute(0, 3, 1, 2)
    from transformers import DeiTForImageClassificationWithTeacher

    student = DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path / "out")
    outputs = student(pixel_values=pixels / 127.5 - 1)
    assert outputs.distillation_logits.argmax(-1).tolist() == [1] * 10  # as it was taught
    assert Counter(outputs.cls_logits.argmax(-1).tolist()).most_common(1)[0][0] == 2  # as it is


def test_a_teacher_that_lacks_a_class_is_refused(colours: Path, start: Path, vit: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"does not know blue, green, red; its classes are {LABELS[0]}"):
        finetune(settings(colours, start, teacher=str(vit)), tmp_path / "out")


def test_a_teacher_knows_classes_by_other_spellings(teacher: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As any data set's names are matched with a checkpoint's; and each by one of its own."""
    caplog.set_level("INFO", "deit_batch")
    values = torch.rand(2, 3, 24, 24)
    exact = Teacher(str(teacher), ["blue", "green"], torch.device("cpu"))(values)
    assert caplog.messages == []
    assert torch.equal(Teacher(str(teacher), ["Blue", "GREEN "], torch.device("cpu"))(values), exact)
    assert caplog.messages == ["Blue is the teacher's blue", "GREEN  is the teacher's green"]
    with pytest.raises(CheckpointError, match="takes red and Red for one class, red"):
        Teacher(str(teacher), ["red", "Red"], torch.device("cpu"))


def test_a_teacher_sees_images_as_its_processor_gives_them(
    make_checkpoint: MakeCheckpoint, teacher: Path, tmp_path: Path
) -> None:
    """Cropped, not normalised, with its channels turned around; or it says what is missing."""
    folder = make_checkpoint(image_size=32)
    names = find_checkpoint(str(folder)).labels
    recipe = {"image_processor_type": "DeiTImageProcessor", "size": 37, "crop_size": 32, "do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(json.dumps({**recipe, "image_mean": None, "do_normalize": False}))
    values = torch.rand(3, 3, 48, 48)
    found = Teacher(str(folder), names, torch.device("cpu"))(values)
    model = AutoModelForImageClassification.from_pretrained(folder)
    shrunk = torch.nn.functional.interpolate(values, (32, 32), mode="bilinear", antialias=True)
    assert torch.allclose(found, model(pixel_values=shrunk).logits, atol=1e-5)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="can't be used: Can't load image processor"):
        Teacher(str(folder), names, torch.device("cpu"))


def test_an_output_that_the_system_refuses_says_that_nothing_was_trained(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="File name too long; nothing has been trained by this run") as refused:
        finetune(Settings(input="x"), tmp_path / ("x" * 253))
    assert refused.value.exit_status == 2


def test_a_teacher_needs_all_weights_to_learn() -> None:
    with pytest.raises(UsageError, match="--teacher trains a distillation token"):
        Settings(input="x", teacher="y", freeze_backbone=True)


def test_bad_images_are_skipped_and_reported(colours: Path, start: Path, tmp_path: Path) -> None:
    rows = [{"image": str(path), "label": path.parent.name} for path in sorted(colours.glob("*/*.png"))]
    rows += [{"image": "gone.png", "label": "red"}, {"image": str(colours / "red" / "1.png")}]
    table = tmp_path / "rows.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n")
    done = deit_batch(
        "finetune",
        "--input",
        table,
        "--model",
        start,
        "--out",
        "out",
        "--max-steps",
        "1",
        "--workers",
        "0",
        cwd=tmp_path,
    )
    assert done.returncode == 3, done.stderr
    assert "3 images skipped" in done.stderr
    skipped = json.loads((tmp_path / "out" / "training.json").read_bytes())["data"]["skipped"]
    assert [one["type"] for one in skipped] == ["FetchError", "RowError", "RowError"]
    assert os.stat(tmp_path / "out" / "model.safetensors").st_mode & 0o777 == 0o644


ALL_AT_ONCE: dict[str, Any] = {
    "randaugment": 9.0,
    "random_erasing": 0.25,
    "color_jitter": 0.4,
    "mixup": 0.8,
    "cutmix": 1.0,
    "drop_path": 0.1,
    "ema_decay": 0.9,
    "repeated_augmentation": 2,
}
"""All that is random in training."""


@pytest.fixture(scope="module")
def whole(colours: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the runs come to that are stopped below."""
    out = tmp_path_factory.mktemp("whole") / "out"
    finetune(
        settings(
            colours,
            start,
            num_train_epochs=30,
            learning_rate=None,
            per_device_train_batch_size=4,
            **ALL_AT_ONCE,
        ),
        out,
    )
    return out


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_goes_on_to_the_same_weights(
    colours: Path, start: Path, whole: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    """With another number of workers, too."""
    options = ["--input", colours, "--model", start, "--workers", 1, "--num-train-epochs", 30]
    options += ["--per-device-train-batch-size", 4]
    for name, value in ALL_AT_ONCE.items():
        options += [f"--{name.replace('_', '-')}", value]
    command = [COMMAND, "finetune", *map(str, options), "--out", "stopped", "--quiet"]
    process = subprocess.Popen(command, cwd=tmp_path)
    steps = tmp_path / "stopped.partial" / "steps"
    while process.poll() is None and not list(steps.glob("checkpoint-*/trainer_state.json")):
        time.sleep(0.01)
    process.send_signal(signum)
    assert process.wait() == (-9 if signum == signal.SIGKILL else 143)
    assert not (tmp_path / "stopped").exists()
    done = deit_batch(*command[1:-1], cwd=tmp_path)
    assert done.returncode == 0
    assert re.search(r"going on from step \d+ of \d+, epoch [\d.]+ of 30\n", done.stderr), done.stderr
    assert re.search(r"validation of epoch \d+, the best by accuracy: accuracy [01]\.", done.stderr), done.stderr
    assert not (tmp_path / "stopped.partial").exists()
    assert changed(whole, tmp_path / "stopped") == set()


def test_a_run_that_stopped_early_and_died_is_not_trained_further(
    colours: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = settings(colours, start, num_train_epochs=30, early_stopping_patience=2, learning_rate=1e-2)
    whole, died = tmp_path / "whole", tmp_path / "died"
    finetune(patient, whole)
    steps = json.loads((whole / "training.json").read_bytes())["steps"]
    with monkeypatch.context() as patched:
        patched.setattr("deit_batch.finetune.run.finished", die)  # after the last step, before anything is written
        with pytest.raises(RuntimeError):
            finetune(patient, died)
    finetune(patient, died)
    assert json.loads((died / "training.json").read_bytes())["steps"] == steps < 30 * 6
    assert changed(whole, died) == set()


def die(student: object) -> None:
    raise RuntimeError("died")


def test_a_changed_input_is_noticed(start: Path, colours: Path, tmp_path: Path) -> None:
    shutil.copytree(colours, tmp_path / "in")
    finetune(settings(tmp_path / "in", start, num_train_epochs=1), tmp_path / "out")
    shutil.move(tmp_path / "in" / "red" / "0.png", tmp_path / "in" / "blue" / "new.png")
    with pytest.raises(UsageError, match=r"other settings \(what-is-in-the-inputs\); --fresh"):
        finetune(settings(tmp_path / "in", start, num_train_epochs=1), tmp_path / "out")


def test_a_finished_run_is_not_done_again_and_other_settings_need_fresh(
    colours: Path, start: Path, tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(epochs: int, **more: Any) -> TrainingResult:
        return finetune(settings(colours, start, num_train_epochs=epochs), tmp_path / "out", **more)

    with monkeypatch.context() as patched:
        patched.setattr("deit_batch.finetune.run.make_student", lambda *_, **__: die(None))
        with pytest.raises(RuntimeError):
            once(1)
    first = once(1)
    assert any("images of an earlier run, which has saved no step: training starts" in line for line in messages)
    assert once(1) == first
    assert f"{tmp_path / 'out'} is finished already: nothing to do" in messages
    with pytest.raises(UsageError, match=r"made with other settings \(num-train-epochs\); --fresh replaces it"):
        once(2)
    once(2, fresh=True)
    assert len(losses(tmp_path / "out")) == 2  # an epoch: the best is not validated again
    (tmp_path / "out" / "training.json").unlink()
    with pytest.raises(UsageError, match="no result of a fine-tuning"):
        once(2)


def test_metrics_go_to_a_tracker_while_it_trains(
    colours: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "tracked").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    try:
        finetune(settings(colours, start, report_to=("mlflow",), **NEVER), tmp_path / "out")
    finally:
        mlflow.end_run()
        mlflow.set_tracking_uri("")  # as it was
    logged = {path.name for path in (tmp_path / "tracked").glob("*/*/metrics/*")}
    assert {"eval_accuracy", "eval_loss"} <= logged
    with pytest.raises(UsageError, match="--report-to wandb: its library is not installed; pip install wandb"):
        finetune(settings(colours, start, report_to=("wandb",)), tmp_path / "out")


def test_a_wrong_input_is_said_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.png").write_bytes((EXAMPLES / "bag" / "00018.png").read_bytes())
    program = (
        "import sys; from deit_batch.cli import main\n"
        "try: main(['finetune', '--input', sys.argv[1], '--out', 'x'])\n"
        "finally: print(sorted({'torch', 'transformers', 'datasets', 'pyarrow'} & {*sys.modules}))"
    )
    for name, says in (("nothing", "no such file or folder"), ("bare", "has no class folders and no labels.csv")):
        command = [sys.executable, "-c", program, name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, says in done.stderr) == (2, "[]\n", True), done.stderr


def test_too_little_to_learn_from_is_said(colours: Path, start: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="blue is the only class"):
        finetune(settings(colours, start, limit=3), tmp_path / "out")
    with pytest.raises(UsageError, match="has no class folders"):
        finetune(settings(colours / "red", start), tmp_path / "other")


def write_rows(table: Path, colours: Path, labels: Callable[[int], object]) -> Path:
    """A table of all images, and of each number its label."""
    images = sorted(colours.glob("*/*.png"))
    rows = [{"image": str(path), "label": labels(number)} for number, path in enumerate(images)]
    table.write_text("\n".join(map(json.dumps, rows)))
    return table


def test_labels_that_nothing_can_be_learned_from_are_wrong_usage(colours: Path, start: Path, tmp_path: Path) -> None:
    for name, labels, message in (
        ("none", lambda number: [], "none of 30 images has a label"),
        ("same", lambda number: ["a", "b"], "all images show a, b: there is nothing to tell apart"),
        ("vectors", lambda number: [0, 1, 0], "none of 30 images can be trained on.*vector of zeros and ones"),
    ):
        table = write_rows(tmp_path / f"{name}.jsonl", colours, labels)
        with pytest.raises(UsageError, match=message):
            finetune(settings(table, start), tmp_path / name)
    several = write_rows(tmp_path / "several.jsonl", colours, lambda number: ["a", "b"][: number % 3])
    with pytest.raises(UsageError, match="no image to validate with has a label"):
        finetune(settings(several, start, validation=str(tmp_path / "none.jsonl")), tmp_path / "out")


def test_images_that_cannot_be_fetched_may_come_back(start: Path, tmp_path: Path) -> None:
    (tmp_path / "gone.jsonl").write_text('{"image": "gone/1.png", "label": "a"}\n{"image": "gone/2.png", "label": "b"}')
    with pytest.raises(InputError, match="none of 2 images can be trained on; the first: No such file"):
        finetune(settings(tmp_path / "gone.jsonl", start), tmp_path / "out")


@pytest.mark.parametrize(("labels", "metric"), [("one", "average_precision"), ("several", "teacher")])
def test_settings_that_do_not_fit_the_labels_are_refused_before_the_first_image(
    colours: Path, start: Path, tmp_path: Path, labels: str, metric: str
) -> None:
    of: Callable[[int], object] = (lambda number: "a") if labels == "one" else lambda number: ["a", "b"][: number % 3]
    table = write_rows(tmp_path / "t.jsonl", colours, of)
    more: dict[str, Any] = {"teacher": "no such"} if metric == "teacher" else {"metric_for_best_model": metric}
    with pytest.raises(UsageError, match=r"is not measured where an image has|--teacher is for inputs of one label"):
        finetune(settings(table, start, **more), tmp_path / "out")
    assert not (tmp_path / "out.partial" / "inputs").exists()


def test_a_diverged_run_publishes_nothing(colours: Path, start: Path, tmp_path: Path) -> None:
    options: list[str | Path] = ["--input", colours, "--model", start, "--out", "out"]
    options += ["--workers", "0", "--num-train-epochs", "2"]
    done = deit_batch("finetune", *options, "--learning-rate", "1e30", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert re.search(r"(is (nan|inf)|is not finite) at step \d+: .*give a lower --learning-rate", done.stderr)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out*"))
    assert deit_batch("finetune", *options, "--quiet", cwd=tmp_path).returncode == 0  # as the message says


def test_what_is_logged_is_json_and_no_number_is_missed(start: Path) -> None:
    learner: Any = SimpleNamespace(student=torch.nn.Linear(2, 2))
    guard, state, control = StopIfDiverged(learner), TrainerState(), TrainerControl()
    arguments: Any = None
    state.log_history.append({"loss": 1.0, "grad_norm": float("inf"), "step": 3})
    guard.on_log(arguments, state, control, logs={"loss": 1.0, "grad_norm": float("inf")})
    assert json.dumps(state.log_history, allow_nan=False) == '[{"loss": 1.0, "grad_norm": null, "step": 3}]'
    state.global_step = 7
    for logs in ({"loss": float("nan")}, {"eval_loss": float("inf")}, {"train_loss": float("nan")}):
        with pytest.raises(Diverged, match=r"loss is (nan|inf) at step 7"):
            guard.on_log(arguments, state, control, logs=logs)
    guard.on_evaluate(arguments, state, control)
    torch.nn.init.constant_(learner.student.bias, float("inf"))
    with pytest.raises(Diverged, match="bias is not finite at step 7"):
        guard.on_evaluate(arguments, state, control)


def test_a_split_is_trained_on_and_validated_with(
    colours: Path, start: Path, tmp_path: Path, messages: list[str]
) -> None:
    for part in ("train", "val", "test"):
        shutil.copytree(colours, tmp_path / "data" / part)
    (tmp_path / "data" / "train" / "red" / "0.png").unlink()
    once: dict[str, Any] = {"max_steps": 1}
    finetune(settings(tmp_path / "data", start, **once), tmp_path / "out")
    data = json.loads((tmp_path / "out" / "training.json").read_bytes())["data"]
    assert (data["class_names"], data["images"]) == (sorted(COLOURS), {"training": 29, "validation": 30})
    split = f"{tmp_path / 'data'} is split into test, train, val: "
    assert f"{split}trains on {tmp_path / 'data' / 'train'}, validates with {tmp_path / 'data' / 'val'}" in messages
    assert "classes to learn, with their images: blue (10), green (10), red (9)" in messages
    assert "labels to train on: class folders, 3 classes (blue, green, red)" in messages
    assert "labels to validate with: class folders, 3 classes (blue, green, red)" in messages
    assert "29 images to train on, 30 to validate with" in messages
    finetune(settings(tmp_path / "data", start, validation=str(colours), **once), tmp_path / "other")
    assert f"{split}trains on {tmp_path / 'data' / 'train'}, validates with {colours}" in messages


def test_an_image_that_is_labelled_twice_differently_is_left_out(
    colours: Path, start: Path, tmp_path: Path, messages: list[str]
) -> None:
    rows = [{"image": str(path), "label": path.parent.name} for path in sorted(colours.glob("*/*.png"))]
    rows += [{**rows[0], "label": "red"}, rows[1]]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    outcome = finetune(settings(tmp_path / "t.jsonl", start, max_steps=1), tmp_path / "out")
    data = json.loads((tmp_path / "out" / "training.json").read_bytes())["data"]
    assert outcome.skipped == len(data["skipped"]) == 2
    one, other = rows[0]["label"], "red"
    assert [(each["image"], each["message"]) for each in data["skipped"]] == [
        (rows[0]["image"], f"labelled twice, differently: {here}, and {there} as {rows[0]['image']}")
        for here, there in ((one, other), (other, one))
    ]
    assert sum(data["images"].values()) == 30
    copy = {"image": rows[1]["image"], "copy_of": rows[1]["image"], "same_labels": True}
    assert data["copies"] == {"count": 1, "first": [copy]}
    assert data["trained_on_and_validated_with"] == {"count": 0, "first": []}
    assert any(line.startswith("1 of 30 images to learn from are copies of others, by their") for line in messages)
    assert not any("are trained on, too" in line for line in messages)


def test_copies_are_told_from_contradictions_by_their_bytes(colours: Path, tmp_path: Path, messages: list[str]) -> None:
    data, other = shutil.copytree(colours, tmp_path / "data"), tmp_path / "val"
    red, blue = data / "red", data / "blue"
    shutil.copy(red / "0.png", blue / "wrong.png")
    shutil.copy(red / "1.png", red / "again.png")
    for name in ("red", "blue"):
        (other / name).mkdir(parents=True)
    shutil.copy(red / "2.png", other / "red" / "known.png")
    shutil.copy(red / "3.png", other / "blue" / "known.png")
    wanted = Settings(input=str(data), validation=str(other))
    with stop_on_signals(60) as stop:
        sets = load_sets(wanted, recipe_from_config({"size": 32}, "vit"), tmp_path / "work", stop, workers=0)
    twice = "labelled twice, differently"
    assert [(one.image, one.message) for one in sets.skipped] == [
        (str(blue / "wrong.png"), f"{twice}: blue, and red as {red / '0.png'}"),
        (str(red / "0.png"), f"{twice}: red, and blue as {blue / 'wrong.png'}"),
    ]
    assert f"skipped: {blue / 'wrong.png'}: {twice}: blue, and red as {red / '0.png'}" in messages
    assert len(sets.training) == 30
    assert (sets.copies.count, sets.in_both.count) == (1, 2)
    assert sets.copies.first == [
        {"image": str(red / "again.png"), "copy_of": str(red / "1.png"), "same_labels": True}
    ] or sets.copies.first == [{"image": str(red / "1.png"), "copy_of": str(red / "again.png"), "same_labels": True}]
    assert sets.in_both.first == [
        {"image": str(other / "blue" / "known.png"), "copy_of": str(red / "3.png"), "same_labels": False},
        {"image": str(other / "red" / "known.png"), "copy_of": str(red / "2.png"), "same_labels": True},
    ]
    (both,) = [message for message in messages if "are trained on, too" in message]
    known = f"{other / 'blue' / 'known.png'} is {red / '3.png'}, {other / 'red' / 'known.png'} is {red / '2.png'}"
    assert both.startswith(
        f"2 of 2 images to validate with are trained on, too, by their bytes ({known}), 1 of them wi"
    )


def test_no_password_is_written_with_the_settings(colours: Path, start: Path) -> None:
    checkpoint = find_checkpoint(str(start))
    wanted = settings(colours, start, map=(("https://user:TOPSECRET@h/", "/tmp/"),))
    facts = _facts(wanted, checkpoint, find_recipe(checkpoint, None), None, 1)
    assert facts["map"] == [["https://***@h/", "/tmp/"]]


def test_images_are_learned_with_their_own_labels(colours: Path, tmp_path: Path) -> None:
    """Also where one before them is left out."""
    rows = [{"image": str(path), "label": path.parent.name} for path in sorted(colours.glob("*/*.png"))]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, [{**rows[0], "label": "red"}, *rows])))
    recipe = recipe_from_config({"size": 32}, "vit")
    with stop_on_signals(60) as stop:
        sets = load_sets(Settings(input=str(tmp_path / "t.jsonl")), recipe, tmp_path / "work", stop, workers=0)
    assert len(sets.training) + len(sets.validation) == 29
    for part in (sets.training, sets.validation):
        for number in range(len(part)):
            mean = part[number]["pixels"].mean((0, 1))
            assert sets.class_names[part[number]["targets"].argmax()] == ["red", "green", "blue"][mean.argmax()]


NEVER = {"max_steps": 1, "learning_rate": 1e-12}
"""What is trained so is what it was."""


def scores(model: Path, images: Path) -> list[dict[str, float]]:
    records = score(str(images), model=str(model), top_k=None, workers=0)
    return [{one["label"]: one["score"] for one in record.predictions} for record in records]


@pytest.fixture(scope="module")
def named_by_colour(make_checkpoint: MakeCheckpoint) -> Callable[..., Path]:
    def make(architecture: str, *names: str, **more: Any) -> Path:
        numbers = {name: number for number, name in enumerate(names)}
        return make_checkpoint(architecture, id2label=dict(enumerate(names)), label2id=numbers, **more)

    return make


@pytest.mark.parametrize("architecture", ["ViTForImageClassification", "DeiTForImageClassification"])
def test_the_rows_of_a_head_are_matched_by_name(
    colours: Path, tmp_path: Path, messages: list[str], named_by_colour: Callable[..., Path], architecture: str
) -> None:
    base = named_by_colour(architecture, "red", "blue", "green")
    finetune(settings(colours, base, **NEVER), tmp_path / "out")
    assert find_checkpoint(str(tmp_path / "out")).labels == ["blue", "green", "red"]
    assert "the head starts as the checkpoint's, which has all the classes" in messages
    for before, after in zip(scores(base, colours), scores(tmp_path / "out", colours), strict=True):
        assert after == pytest.approx(before, abs=1e-5)


def test_classes_that_the_checkpoint_has_not_start_anew(
    colours: Path, start: Path, tmp_path: Path, messages: list[str], named_by_colour: Callable[..., Path]
) -> None:
    base = named_by_colour("ViTForImageClassification", "grey", "red", "blue", "blue", "mauve")
    finetune(settings(colours, base, **NEVER), tmp_path / "out")
    assert sum("several classes each: blue (2 classes); " in message for message in messages) == 1
    assert "the head starts as the checkpoint's for 1 class, and anew for: blue, green" in messages
    old, new = (weights(folder)["classifier.weight"] for folder in (base, tmp_path / "out"))
    assert torch.allclose(new[2], old[1], atol=1e-6)
    finetune(settings(colours, start, **NEVER), tmp_path / "other")
    assert "the head starts anew: the checkpoint has none of the classes" in messages


def test_a_label_map_names_the_classes(
    colours: Path, tmp_path: Path, messages: list[str], named_by_colour: Callable[..., Path]
) -> None:
    base = named_by_colour("ViTForImageClassification", "rosso", "verde scuro", "n01440764")
    (tmp_path / "map.csv").write_text("red,rosso\ngreen,verde_scuro\n")
    finetune(settings(colours, base, label_map=str(tmp_path / "map.csv"), **NEVER), tmp_path / "out")
    assert find_checkpoint(str(tmp_path / "out")).labels == ["blue", "verde_scuro", "rosso"]
    assert "--label-map says nothing of these classes, which keep their names: blue" in messages
    assert "verde_scuro is the checkpoint's verde scuro" in messages
    assert "the head starts as the checkpoint's for 2 classes, and anew for: blue" in messages
    old, new = (weights(folder)["classifier.weight"] for folder in (base, tmp_path / "out"))
    assert torch.allclose(new[[2, 1]], old[[0, 1]], atol=1e-6)
    (tmp_path / "map.csv").write_text("red,rosso\ngreen,verde\n")
    with pytest.raises(UsageError, match="what-is-in-the-inputs"):
        finetune(settings(colours, base, label_map=str(tmp_path / "map.csv"), **NEVER), tmp_path / "out")


def test_the_folders_of_imagenet_keep_the_head_of_its_checkpoint(
    colours: Path, tmp_path: Path, messages: list[str], named_by_colour: Callable[..., Path]
) -> None:
    synsets = {"red": "n01440764", "green": "n01443537", "blue": "n02012849"}
    for name, synset in synsets.items():
        shutil.copytree(colours / name, tmp_path / "imgs" / synset)
    base = named_by_colour("ViTForImageClassification", "tench, Tinca tinca", "goldfish, Carassius auratus", "crane")
    finetune(settings(tmp_path / "imgs", base, **NEVER), tmp_path / "out")
    assert "the head starts as the checkpoint's, which has all the classes" in messages


@pytest.mark.parametrize("with_teacher", [False, True])
def test_two_heads_are_taken_over(
    colours: Path, teacher: Path, tmp_path: Path, named_by_colour: Callable[..., Path], with_teacher: bool
) -> None:
    base = named_by_colour("DeiTForImageClassificationWithTeacher", "red", "blue", "green")
    more = {"teacher": str(teacher)} if with_teacher else {}
    finetune(settings(colours, base, **NEVER, **more), tmp_path / "out")
    old, new = weights(base), weights(tmp_path / "out")
    order = [1, 2, 0]
    heads = ("cls_classifier", "distillation_classifier") if with_teacher else ("classifier",)
    for head in heads:
        source = head if with_teacher else "cls_classifier"
        assert torch.allclose(new[f"{head}.weight"], old[f"{source}.weight"][order], atol=1e-6)


@pytest.mark.parametrize("size", [[32, 32], [48, 32]])
def test_image_sizes_of_two_numbers(
    colours: Path, tmp_path: Path, make_checkpoint: MakeCheckpoint, size: list[int]
) -> None:
    base = make_checkpoint(image_size=size, initializer_range=0.05)
    recipe = {"image_processor_type": "ViTImageProcessor", "size": {"height": size[0], "width": size[1]}}
    (base / "preprocessor_config.json").write_text(json.dumps(recipe))
    finetune(settings(colours, base, max_steps=2), tmp_path / "out")
    assert find_checkpoint(str(tmp_path / "out")).geometry.image_size == tuple(size)
    assert_scores_as_the_pipeline(tmp_path / "out", colours)
    if size[0] == size[1]:
        finetune(settings(colours, base, max_steps=2, image_size=48), tmp_path / "larger")
        assert_scores_as_the_pipeline(tmp_path / "larger", colours)
    else:
        with pytest.raises(UsageError, match=r"--image-size is for models that take squares; .* takes 48x32"):
            finetune(settings(colours, base, image_size=64), tmp_path / "other")


rows = st.lists(st.lists(st.sampled_from("abc"), max_size=2, unique=True), min_size=1, max_size=60)


@given(rows, st.floats(0.05, 0.95), st.integers(0, 9))
def test_a_split_loses_nothing_and_depends_on_the_seed_alone(labels: list[list[str]], share: float, seed: int) -> None:
    training, validation = split(labels, share, seed)
    assert sorted(training + validation) == list(range(len(labels)))
    assert split(labels, share, seed) == (training, validation)


@given(rows, st.floats(0.05, 0.95), st.integers(0, 9), st.data())
def test_copies_of_an_image_are_on_one_side(
    labels: list[list[str]], share: float, seed: int, data: st.DataObject
) -> None:
    several = st.lists(st.integers(0, 9), min_size=len(labels), max_size=len(labels))
    digests = np.array(data.draw(several), np.uint64)
    training, validation = split(labels, share, seed, digests)
    assert sorted(training + validation) == list(range(len(labels)))
    assert not {*digests[training]} & {*digests[validation]}
    assert split(labels, share, seed, np.arange(len(labels), dtype=np.uint64)) == split(labels, share, seed)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.floats(0.05, 0.95), st.integers(0, 9))
def test_a_split_takes_its_share_of_every_class(sizes: list[int], share: float, seed: int) -> None:
    labels = [[f"class {number}"] for number, size in enumerate(sizes) for _ in range(size)]
    _, validation = split(labels, share, seed)
    spared = Counter(labels[place][0] for place in validation)
    for number, size in enumerate(sizes):
        wanted = min(share * size, max(0, size - 1))
        assert wanted - 1 <= spared[f"class {number}"] <= max(0, min(size - 1, wanted + 1))


def test_many_single_images_take_nothing_from_the_next_class() -> None:
    labels = [[f"rare {number:02}"] for number in range(30)] + [["zebra"]] * 12 + [["zoo"]] * 12
    _, validation = split(labels, 0.2, 0)
    assert Counter(labels[place][0] for place in validation) == {"zebra": 3, "zoo": 2}


def test_a_split_of_several_labels_takes_its_share_of_each_label() -> None:
    dice = np.random.default_rng(0)
    labels = [sorted(map(str, dice.choice(12, dice.integers(1, 5), replace=False))) for _ in range(300)]
    _, validation = split(labels, 0.2, 0)
    everywhere, spared = (Counter(label for row in part for label in row) for part in
                          (labels, [labels[place] for place in validation]))  # fmt: skip
    for label, count in everywhere.items():
        assert spared[label] == pytest.approx(0.2 * count, abs=2)


def test_the_command_has_the_defaults_of_the_settings() -> None:
    context = Context(main, **main.context_settings)  # it has the names of --help, which the command remembers
    chosen = main.commands["finetune"].make_context("finetune", ["--input", "x", "--out", "y"], context).params
    known = {field.name: chosen[field.name] for field in fields(Settings) if field.name in chosen}
    assert Settings(**known) == Settings(input="x")


def test_the_commands_of_the_page_on_training_are_as_the_authors_have_it() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    words = [
        shlex.split(block.replace("\\\n", "")) for block in re.findall(r"```sh\n(torchrun .*?)```", page, re.DOTALL)
    ]
    command, context = main.commands["finetune"], Context(main, **main.context_settings)
    options = [line[line.index("finetune") + 1 :] for line in words]
    first, larger = (command.make_context("finetune", line, context).params for line in options)
    assert (first["image_processor"], first["from_scratch"], first["num_train_epochs"]) == ("paper", True, 300)
    assert larger["model"] == str(first["out"])  # whose image processor it brings with it
    assert (larger["learning_rate"], larger["min_learning_rate"], larger["train_batch_size"]) == (5e-6, 5e-6, 512)
    assert larger["warmup_steps"] * larger["num_train_epochs"] == pytest.approx(5, abs=0.01)
    assert (larger["mixup"], larger["crop"]) == (first["mixup"], first["crop"])


def test_with_a_terminal_nothing_is_written_to_stdout(tmp_path: Path) -> None:
    arguments = ["finetune", "--model", "demo", "--input", str(EXAMPLES), "--num-train-epochs", "1", "--workers", "0"]
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [COMMAND, *arguments, "--out", "m"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=theirs,
        timeout=120,
        check=True,
    )
    os.close(theirs)
    assert done.stdout == b""
    assert b"epoch 1 of 1" in os.read(ours, 2**16)
    os.close(ours)


def test_what_a_run_with_fresh_has_left_goes_with_the_next(tmp_path: Path) -> None:
    """One that was killed between putting the new folder in place and removing the rest."""
    facts = {"model": "demo"}
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    for folder in (out, partial, partial / "result"):
        folder.mkdir()
    (out / "training.json").write_text(json.dumps({"settings": facts}))
    (partial / "settings.json").write_text(json.dumps(facts))
    (partial / "result" / ".replaced").touch()
    assert finished_report(out, facts, fresh=False) == {"settings": facts}
    assert os.listdir(tmp_path) == ["out"]


def test_a_run_that_was_killed_while_it_made_or_removed_its_folder_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, out, partial = {"model": "demo"}, tmp_path / "out", tmp_path / "out.partial"
    partial.mkdir()
    (partial / f".settings.json.{'0' * 32}.tmp").touch()
    assert open_partial(out, facts, fresh=False) == partial
    assert os.listdir(partial) == ["settings.json"]
    (partial / "images").touch()
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *args, **more: None)  # it comes to nothing
        open_partial(out, facts, fresh=True)
    assert os.listdir(partial) == ["settings.json"]
    assert finished_report(out, facts, fresh=False) is None
    assert sorted(os.listdir(tmp_path)) == ["out.partial"]


def test_a_folder_of_the_users_beside_a_result_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "training.json").write_text(json.dumps({"settings": {}}))
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine.txt").touch()
    finished_report(tmp_path / "out", {}, fresh=False)
    assert (tmp_path / "out.partial" / "mine.txt").exists()
