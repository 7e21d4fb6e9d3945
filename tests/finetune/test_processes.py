"""Processes that train together come to what one process comes to, and leave one folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import MakeCheckpoint
from PIL import Image
from safetensors.torch import load_file

from deit_batch.finetune.processes import Processes
from deit_batch.finetune.run import workers_of_each
from deit_batch.finetune.settings import Settings
from deit_batch.system import machine

OPTIONS = ["--model", "base", "--device", "cpu", "--workers", "1", "--learning-rate", "2e-3", "--quiet"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: MakeCheckpoint) -> Path:
    """A folder with a checkpoint, and images of which one is broken."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "base").symlink_to(make_checkpoint(initializer_range=0.05))
    dice = np.random.default_rng(0)
    for name, colour in {"red": (200, 60, 50), "blue": (50, 70, 200)}.items():
        (folder / "in" / name).mkdir(parents=True)
        for number in range(20):
            pixels = (np.array(colour) + dice.integers(-50, 50, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "in" / name / f"{number}.png")
    (folder / "in" / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def command(processes: int, *options: object) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [
        *(start if processes > 1 else [sys.executable]),
        "-m",
        "deit_batch",
        "finetune",
        "--input",
        "in",
        *OPTIONS,
        *map(str, options),
    ]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def report(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "training.json").read_bytes()))


def losses(folder: Path) -> list[float]:
    return [entry["eval_loss"] for entry in report(folder)["history"] if "eval_loss" in entry]


def test_the_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr(machine, "cores", lambda: 96)
    card, together = torch.device("cuda"), Processes(on_cpu=False)
    assert workers_of_each(Settings(input=""), card, together) == 96 // 8 - 1
    assert workers_of_each(Settings(input="", workers=3), card, together) == 3


def test_two_processes_train_as_one_with_twice_the_batch_and_go_on_where_they_were_stopped(place: Path) -> None:
    """A signal in the middle of it costs nothing, and the image that is broken is reported once."""
    options = ["--num-train-epochs", 12, "--randaugment", 9]
    alone = command(1, *options, "--per-device-train-batch-size", 8, "--out", "one")
    one = subprocess.run(alone, cwd=place, env=ENVIRONMENT, check=False)
    assert one.returncode == 3  # one image is broken
    both = command(2, *options, "--per-device-train-batch-size", 4, "--out", "two")
    process = subprocess.Popen(both, cwd=place, env=ENVIRONMENT, stderr=subprocess.PIPE)
    steps = place / "two.partial" / "steps"
    while process.poll() is None and not list(steps.glob("checkpoint-*/trainer_state.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode != 0
    assert not (place / "two").exists()
    done = subprocess.run(both, cwd=place, env=ENVIRONMENT, check=False, stderr=subprocess.PIPE, text=True)
    assert done.stderr.count("validation of epoch") == 1  # the first says it for all
    assert not (place / "two.partial").exists()
    single, together = report(place / "one"), report(place / "two")
    assert together["steps"] == single["steps"]
    assert together["data"] == single["data"]
    assert [one["image"] for one in together["data"]["skipped"]] == ["in/red/broken.png"]
    assert together["training"]["images_in_a_step"] == single["training"]["images_in_a_step"] == 8
    assert losses(place / "two") == pytest.approx(losses(place / "one"), rel=1e-3)
    ours, theirs = (load_file(place / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in ours)
