"""What fine-tuning, embedding and evaluation come to on Fashion-MNIST, by deit-batch's own commands; writes fashion.md.

    python benchmarks/fashion.py FOLDER [--demo]

Data, checkpoints and results are made in FOLDER; the same command goes on where it was stopped. --demo puts the
retrained demo model into the package. One and a half hours on 2 quiet cores, of which the demo model takes half.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import garments
import numpy as np
import pyarrow.parquet as pq
from report import describe_machine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / "deit_batch" / "demo"
COMMAND = str(Path(sys.executable).with_name("deit-batch"))

FEW = 500
"""Pictures of each class, where there is not much to learn from."""
EPOCHS_OF_FEW = 30
SEEDS = (0, 1, 2)
PLAIN = "--crop 1 --randaugment 0 --random-erasing 0"
"""Mirrored and no more: garments of 28 pixels bear little else."""

MATERIAL: dict[str, Callable[[Path], None]] = {
    "train": lambda folder: garments.class_folders(folder, garments.TRAIN),
    "test": lambda folder: garments.class_folders(folder, garments.TEST),
    "few": lambda folder: garments.class_folders(folder, garments.TRAIN, FEW),
    "canvases": lambda folder: garments.canvases(folder, garments.TRAIN, 5000),
    "canvases-test": lambda folder: garments.canvases(folder, garments.TEST, 2000),
    "blank": lambda folder: garments.blank(folder, image_size=28, patch_size=4, width=112, layers=4),
    "blank-small": lambda folder: garments.blank(folder, image_size=28, patch_size=4, width=64, layers=4),
    "cnn": lambda folder: garments.cnn(folder, FEW, EPOCHS_OF_FEW),
}

Measure = Callable[[Path], str]


@dataclass(frozen=True)
class Row:
    """`commands` lead to what `measure` reads in the working folder."""

    what: str
    commands: list[str]
    measure: Measure


def metric(folder: Path, run: str, name: str) -> float:
    return float(json.loads((folder / run / "metrics.json").read_bytes())["metrics"][name])


def percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def accuracy(run: str) -> Measure:
    def measure(folder: Path) -> str:
        low, high = json.loads((folder / run / "metrics.json").read_bytes())["intervals"]["accuracy"]
        return f"accuracy {percent(metric(folder, run, 'accuracy'))} ({100 * low:.1f}–{100 * high:.1f})"

    return measure


def of_many_labels(run: str) -> Measure:
    def measure(folder: Path) -> str:
        precision, f1, exact = (
            metric(folder, run, name) for name in ("average_precision_macro", "f1_macro", "accuracy")
        )
        return f"mean average precision {precision:.3f}, F1 {f1:.3f}, all labels right {percent(exact)}"

    return measure


def probe(model: str) -> Measure:
    def measure(folder: Path) -> str:
        learnt, asked = (features(folder / f"{name}-{model}.parquet") for name in ("few", "test"))
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(*learnt)
        return f"accuracy {percent(head.score(*asked))}"

    return measure


def features(path: Path) -> tuple[Any, list[str]]:
    """float32 [n, width], and the name of the folder that each picture lies in."""
    table = pq.read_table(path).to_pydict()
    return np.array(table["cls"], np.float32), [Path(image).parent.name for image in table["image"]]


def seeds(kind: str) -> Measure:
    def measure(folder: Path) -> str:
        values = [metric(folder, f"{kind}-{seed}-test", "accuracy") for seed in SEEDS]
        return f"accuracy {percent(mean(values))} ({', '.join(f'{100 * value:.2f}' for value in values)})"

    return measure


def students(kind: str, more: str) -> list[str]:
    return [
        line
        for seed in SEEDS
        for line in (
            f"deit-batch finetune --input few --model blank-small --num-train-epochs {EPOCHS_OF_FEW} "
            f"--learning-rate 1e-3 {PLAIN} --validation-share 0.1 --seed {seed}{more} --out {kind}-{seed}",
            f"deit-batch evaluate --input test --model {kind}-{seed} --out {kind}-{seed}-test",
        )
    ]


ROWS = [
    Row(
        "The demo model, from random weights, at 28 pixels; then enlarged",
        [
            "deit-batch finetune --input train --validation-share 0.033 --model blank --num-train-epochs 13 "
            "--per-device-train-batch-size 128 --learning-rate 1.5e-3 --warmup-steps 0.1 --crop 0.9 --randaugment 0 "
            "--random-erasing 0 --out garments28",
            "python -m garments enlarge garments28 garments",
            "deit-batch evaluate --input test --model garments --out garments-test",
        ],
        accuracy("garments-test"),
    ),
    Row(
        f"Linear probe: logistic regression on its [CLS] features, {10 * FEW:,} pictures",
        [f"deit-batch embed --input {name} --model garments --out {name}-garments.parquet" for name in ("few", "test")],
        probe("garments"),
    ),
    Row(
        "The same on the features of random weights",
        [f"deit-batch embed --input {name} --model blank --out {name}-blank.parquet" for name in ("few", "test")],
        probe("blank"),
    ),
    Row(
        "Several labels: two or three garments on a canvas, half as large as the demo model knows them",
        [
            "deit-batch finetune --input canvases --validation-share 0.1 --model garments --num-train-epochs 20 "
            f"--learning-rate 1e-3 {PLAIN} --out several",
            "deit-batch evaluate --input canvases-test --model several --out several-test",
        ],
        of_many_labels("several-test"),
    ),
    Row(
        f"A small student, {10 * FEW:,} pictures: mean of three seeds",
        students("alone", ""),
        seeds("alone"),
    ),
    Row(
        "The same student, taught by a CNN, in as many steps",
        students("taught", " --teacher cnn"),
        seeds("taught"),
    ),
]


def make(folder: Path) -> None:
    for name, made in MATERIAL.items():
        if not (folder / name).exists():
            print(f"fashion: making {name}", flush=True)
            growing = folder / f"{name}.growing"
            shutil.rmtree(growing, ignore_errors=True)
            growing.mkdir(parents=True)
            made(growing)
            growing.rename(folder / name)


def run(command: str, folder: Path) -> None:
    print(f"fashion: {command}", flush=True)
    program, *words = command.split()
    path = {"deit-batch": COMMAND, "python": sys.executable}[program]
    subprocess.run([path, *words], cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(HERE)})


def table(folder: Path) -> str:
    teacher = json.loads((folder / "cnn" / "accuracy.json").read_bytes())
    return "\n".join(
        [
            "# What deit-batch learns on Fashion-MNIST",
            "",
            f"Written by `scripts/fashion`, on {describe_machine()}.",
            "On the 10,000 test pictures, and 2,000 canvases of them; intervals are at 95 %.",
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {row.what} | {row.measure(folder)} |" for row in ROWS),
            f"| The CNN, from the same {10 * FEW:,} pictures | accuracy {percent(teacher)} |",
            "",
            gain(folder),
            "",
            "The commands, in order:",
            "",
            *commands(),
            "",
        ]
    )


def gain(folder: Path) -> str:
    """What distillation has brought, in words that an absent gain does not embellish."""
    alone, taught = (
        [metric(folder, f"{kind}-{seed}-test", "accuracy") for seed in SEEDS] for kind in ("alone", "taught")
    )
    points = [100 * (one - other) for one, other in zip(taught, alone, strict=True)]
    verdict = "Distillation did neither good nor harm that all seeds agree on"
    if min(points) > 0 or max(points) < 0:
        verdict = "Distillation helped" if min(points) > 0 else "Distillation did not help, it did harm"
    return f"{verdict}: {', '.join(f'{point:+.2f}' for point in points)} points of accuracy, with the same seeds."


def commands() -> Iterator[str]:
    for row in ROWS:
        yield from (f"**{row.what}**", "", "```sh", *row.commands, "```", "")


CARD = """\
---
license: mit
library_name: transformers
pipeline_tag: image-classification
---
# The demo model of deit-batch

A `DeiTForImageClassification` of {parameters:.1f} million parameters that tells ten kinds of clothing apart:
{names}.
It knows nothing else: shown a cat, it will name a garment. It is there so that deit-batch can be tried, tested and
demonstrated without a download.

| | |
| --- | --- |
| Trained on | Fashion-MNIST, {training:,} of its 60,000 training pictures (28x28, grey; MIT licence, Zalando SE) |
| Trained for | {steps:,} steps, from random weights |
| Geometry | 224 pixels, patches of 32, 4 layers of width 112, 4 heads; trained at 28 pixels with patches of 4 |
| Accuracy | {accuracy} of the 10,000 test pictures, as `deit-batch evaluate` scores them in float32 |
| Made by | `deit-batch finetune`, in `benchmarks/fashion.py` |
| Fingerprint of the data | {fingerprint} |

The pictures in `examples/` are the first four test pictures of each class.
"""


def put_demo(folder: Path) -> None:
    trained = json.loads((folder / "garments28" / "training.json").read_bytes())
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(folder / "garments" / name, DEMO / name)
    card = CARD.format(
        parameters=(DEMO / "model.safetensors").stat().st_size / 4e6,
        names=", ".join(garments.CLASSES),
        training=trained["data"]["images"]["training"],
        steps=trained["steps"],
        accuracy=percent(metric(folder, "garments-test", "accuracy")),
        fingerprint=", ".join(trained["data"]["fingerprints"]),
    )
    (DEMO / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    folder = Path(sys.argv[1])
    make(folder)
    for row in ROWS:
        for command in row.commands:
            run(command, folder)
        print(f"fashion: {row.what}: {row.measure(folder)}", flush=True)
    (HERE / "fashion.md").write_text(table(folder), encoding="utf-8")
    if "--demo" in sys.argv:
        put_demo(folder)


if __name__ == "__main__":
    main()
