"""What each ingredient of training does on real pictures, by deit-batch's own commands; writes ablations.md.

    python benchmarks/ablations.py FOLDER [--device cpu|cuda] [--jobs N] [--only NAME …] [--data FOLDER] …

Data, checkpoints and results are made in FOLDER; the same command goes on where it was stopped, run by run. Hours on 2
cores, minutes on a GPU with 16 cores and --jobs 8; without --only, the rows of 60,000 pictures are left out. The
accuracies of whole rows are kept in ablations.json by the machine that they were measured on: the page has a table for
each, and no difference between two machines. --data: where Debian's package dataset-fashion-mnist has put its four
files, if not where it usually does.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TypeAlias

import garments
from report import describe_machine
from scipy.stats import binomtest

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
TESTED = 10_000
"""Test pictures of clothes."""
T_95 = {2: 12.71, 3: 4.303}
"""Student's t for an interval of 95 %, by the number of seeds."""

Measured: TypeAlias = dict[str, dict[str, list[float]]]
"""Of a machine: by the study's name and the row's, an accuracy for each seed; under "cnn" and "all", that of the CNN. A
row whose options change wants a new name, for what was measured before is not of it."""


@dataclass(frozen=True)
class Study:
    """Runs that differ in one thing from the first, on the same pictures and for as many steps. `rows`: what each is
    called, and its options. `test`: the pictures that are judged by."""

    title: str
    common: str
    test: str
    rows: dict[str, str]
    rate: str
    """The learning rate of the rows that name none."""
    seeds: tuple[int, ...] = SEEDS
    more: str = ""

    @property
    def first(self) -> str:
        """What the other rows are compared with."""
        return next(iter(self.rows))


SCRATCH = "--model blank --from-scratch --validation-share 0.1 --train-batch-size 128"
DEIT = "--recipe deit --scale-learning-rate --learning-rate"
ON_CLOTHES = {
    "mirrored only": "--crop 1",
    "`--recipe finetune`: crop and flip": "",
    "hard distillation from the CNN": "--crop 1 --teacher cnn",
    "soft distillation from the CNN (τ 3, λ 0.1)": "--crop 1 --teacher cnn --distillation-type soft",
    "stochastic depth 0.1": "--crop 1 --drop-path 0.1",
    "EMA 0.99": "--crop 1 --ema-decay 0.99",
    "`--recipe deit`, at the same learning rate": f"{DEIT} 4e-3",
    "soft distillation, λ 0.5": "--crop 1 --teacher cnn --distillation-type soft --distillation-alpha 0.5",
    "random erasing 0.25": "--crop 1 --random-erasing 0.25",
    "RandAugment 9": "--crop 1 --randaugment 9",
    "Mixup 0.8 and CutMix 1": "--crop 1 --mixup 0.8 --cutmix 1",
    "repeated augmentation 3": "--crop 1 --repeated-augmentation 3",
}
SHORT = ("mirrored only", "EMA 0.99", "stochastic depth 0.1", "`--recipe deit`, at the same learning rate")

STUDIES = {
    "garments": Study(
        "5,000 pictures of clothes, a small DeiT from random weights, 30 epochs",
        f"--input few {SCRATCH} --num-train-epochs 30 --warmup-steps 0.1",
        "test",
        ON_CLOTHES,
        rate="1e-3",
        more="The first row is what the others are compared with.",
    ),
    "garments-short": Study(
        "The same, 10 epochs",
        f"--input few {SCRATCH} --num-train-epochs 10 --warmup-steps 0.1",
        "test",
        {row: ON_CLOTHES[row] for row in SHORT},
        rate="1e-3",
        more="A third as long, for machines of few cores: a minute and a half of one core for each run.",
    ),
    "digits": Study(
        "200 pictures of digits, the demo model fine-tuned, 30 epochs",
        "--input digits --model demo --validation-share 0.2 --num-train-epochs 30",
        "digits-test",
        {
            "`--recipe finetune`: crop and flip": "",
            "neither": "--crop 1 --no-flip",
            "flip only": "--crop 1",
            "random erasing 0.25 added": "--random-erasing 0.25",
            "RandAugment 9 added": "--randaugment 9",
            "colour jitter 0.4 added": "--color-jitter 0.4",
            "Mixup 0.8 and CutMix 1 added": "--mixup 0.8 --cutmix 1",
            "EMA 0.99 added": "--ema-decay 0.99",
        },
        rate="2e-4",
        more="The first row, today's default, is what the others are compared with.",
    ),
    "demo": Study(
        "The demo model: 60,000 pictures of clothes, from random weights",
        "--input train --model blank-demo --from-scratch --validation-share 0.033 --train-batch-size 128 "
        "--warmup-steps 0.1",
        "test",
        {
            "today's, as it was trained: 13 epochs": "--num-train-epochs 13 --crop 0.9",
            "`--recipe deit`, 13 epochs": f"{DEIT} 6e-3 --num-train-epochs 13",
            "as today's, 40 epochs": "--num-train-epochs 40 --crop 0.9",
            "`--recipe deit`, 40 epochs": f"{DEIT} 6e-3 --num-train-epochs 40",
        },
        rate="1.5e-3",
        seeds=(0,),
        more="One seed: intervals are those of 10,000 test pictures. The first row is the model in the package, as "
        "[fashion.md](fashion.md) has it; another is taken if its interval lies above. 13 epochs are an hour of a "
        "core.",
    ),
}

MATERIAL: dict[str, Callable[[Path, str], None]] = {
    "train": lambda folder, device: garments.class_folders(folder, garments.TRAIN),
    "test": lambda folder, device: garments.class_folders(folder, garments.TEST),
    "few": lambda folder, device: garments.class_folders(folder, garments.TRAIN, 500),
    "digits": lambda folder, device: garments.digits(folder, slice(0, 20)),
    "digits-test": lambda folder, device: garments.digits(folder, slice(20, None)),
    "blank": lambda folder, device: garments.blank(folder, image_size=28, patch_size=4, width=64, layers=4),
    "blank-demo": lambda folder, device: garments.blank(folder, image_size=28, patch_size=4, width=112, layers=4),
    "cnn": lambda folder, device: garments.cnn(folder, None, 12, device=device),
}
"""The CNN learns from all 60,000 pictures: it is to be clearly better than its students."""


@dataclass(frozen=True)
class Run:
    study: str
    row: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.study}-{self.row}-{self.seed}"

    def commands(self, device: str, workers: int) -> list[str]:
        study = STUDIES[self.study]
        options = list(study.rows.values())[self.row]
        if "--learning-rate" not in options:
            options += f" --learning-rate {study.rate}"
        where = f"--device {device} --workers {workers}"
        return [
            f"finetune {study.common} {options} --seed {self.seed} {where} --out {self.name}",
            f"evaluate --input {study.test} --model {self.name} {where} --out {self.name}-test",
        ]

    def accuracy(self, folder: Path) -> float | None:
        try:
            return float(
                json.loads((folder / f"{self.name}-test" / "metrics.json").read_bytes())["metrics"]["accuracy"]
            )
        except OSError:
            return None


def runs(names: list[str]) -> Iterator[Run]:
    """Those of one row together, so that a run that is ended has whole rows."""
    for name in names:
        for row in range(len(STUDIES[name].rows)):
            yield from (Run(name, row, seed) for seed in STUDIES[name].seeds)


def make(folder: Path, device: str, chosen: list[Run]) -> None:
    """What the runs name in their options."""
    words = {word for run in chosen for text in run.commands("", 0) for word in text.split()}
    for name, made in MATERIAL.items():
        if name in words and not (folder / name).exists():
            print(f"ablations: making {name}", flush=True)
            growing = folder / f"{name}.growing"
            subprocess.run(["rm", "-rf", growing], check=True)
            growing.mkdir(parents=True)
            made(growing, device)
            growing.rename(folder / name)


def work(run: Run, folder: Path, device: str, workers: int, end: float | None, ended: threading.Event) -> None:
    """`end`: when it is to be over, by time.monotonic; None for never."""
    if ended.is_set() or run.accuracy(folder) is not None:
        return
    start = time.monotonic()
    path = f"{HERE.parent}:{os.environ.get('PYTHONPATH', '')}"
    for command in run.commands(device, workers):
        try:
            done = subprocess.run(
                [sys.executable, "-m", "deit_batch", *command.split(), "--quiet"],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
                stderr=subprocess.PIPE,
                check=False,
                timeout=None if end is None else max(0.0, end - time.monotonic()),
            )
        except subprocess.TimeoutExpired:
            ended.set()
            return
        if done.returncode:
            print(f"ablations: deit-batch {command}: {done.returncode}\n{done.stderr.decode()}", flush=True)
            ended.set()
            return
    print(f"ablations: {run.name}: {run.accuracy(folder)}, {time.monotonic() - start:.0f} s", flush=True)


def collect(folder: Path, names: list[str]) -> Measured:
    """Of the rows that are whole."""
    found: Measured = {}
    if (folder / "cnn" / "accuracy.json").exists():
        found["cnn"] = {"all": [json.loads((folder / "cnn" / "accuracy.json").read_bytes())]}
    for name in names:
        for number, row in enumerate(STUDIES[name].rows):
            values = [Run(name, number, seed).accuracy(folder) for seed in STUDIES[name].seeds]
            whole = [value for value in values if value is not None]
            if len(whole) == len(values):
                found.setdefault(name, {})[row] = whole
    return found


def keep(measured: Measured, path: Path) -> dict[str, Measured]:
    """Beside what was measured before, here or on other machines: all of it."""
    kept: dict[str, Measured] = json.loads(path.read_bytes()) if path.exists() else {}
    here = kept.setdefault(machine(), {})
    for name, rows in measured.items():
        here.setdefault(name, {}).update(rows)
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return kept


def page(kept: dict[str, Measured]) -> str:
    lines = [
        "# What each ingredient of training does",
        "",
        "Written by `benchmarks/ablations.py`, of what it has kept in `ablations.json`.",
        "Accuracies on test pictures that no run has seen; the best epoch is chosen on a part of the training",
        "pictures. Differences are between runs of the same seed and the same machine, with an interval at 95 % from",
        "those of three seeds (Student's t): one that holds 0 shows neither gain nor harm.",
        "",
    ]
    for name, study in STUDIES.items():
        lines += [f"## {study.title}", "", study.more, ""]
        for where, measured in kept.items():
            rows = measured.get(name, {})
            if study.first in rows:
                lines += [f"On {where}:", "", "| | accuracy, % | difference, points |", "| --- | --- | --- |"]
                lines += [table_row(study, rows, row) for row in study.rows if row in rows]
                if any("--teacher cnn" in study.rows[row] for row in rows):
                    lines += ["", f"The CNN that teaches has learnt from all 60,000 pictures: {teacher(measured)}."]
                lines.append("")
        seen = {row for measured in kept.values() for row in measured.get(name, {})}
        if missing := [row for row in study.rows if row not in seen]:
            lines += [f"Not run yet: {'; '.join(missing)}.", ""]
        lines += ["```sh", *(f"deit-batch {one}" for one in Run(name, 0, 0).commands("auto", 2)), "```", ""]
        lines += ["and the same with other seeds and, in place of the first row's options:", "", "```sh"]
        lines += [f"{options or '(none)'}  # {what}" for what, options in study.rows.items()]
        lines += ["```", ""]
    return "\n".join(lines)


def teacher(measured: Measured) -> str:
    return f"{100 * measured['cnn']['all'][0]:.2f} %"


def table_row(study: Study, rows: dict[str, list[float]], row: str) -> str:
    values, first = ([100 * value for value in rows[name]] for name in (row, study.first))
    each = ", ".join(f"{value:.2f}" for value in values)
    shown = f"{mean(values):.2f} ({each})" if len(values) > 1 else f"{each} ({interval(rows[row][0])})"
    gains = [value - other for value, other in zip(values, first, strict=True)]
    if row == study.first or len(gains) == 1:
        difference = "" if row == study.first else f"{gains[0]:+.2f}"
    else:
        half = T_95[len(gains)] * stdev(gains) / math.sqrt(len(gains))
        difference = f"{mean(gains):+.2f} ({mean(gains) - half:+.2f} to {mean(gains) + half:+.2f})"
    return f"| {row} | {shown} | {difference} |"


def interval(accuracy: float) -> str:
    """At 95 %, of the test pictures of clothes (Wilson)."""
    found = binomtest(round(accuracy * TESTED), TESTED).proportion_ci(method="wilson")
    return f"{100 * found.low:.1f}–{100 * found.high:.1f}"


def machine() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else describe_machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="after which nothing is begun")
    parser.add_argument("--data", type=Path, default=garments.SOURCE)
    parser.add_argument("--only", nargs="*", choices=list(STUDIES), default=["garments", "digits"])
    parser.add_argument("--page", type=Path, default=HERE)
    asked = parser.parse_args()
    end = None if asked.budget is None else time.monotonic() + asked.budget
    garments.SOURCE = asked.data
    chosen = list(runs(asked.only))
    make(asked.folder, asked.device, chosen)
    ended = threading.Event()
    with ThreadPoolExecutor(asked.jobs) as pool:
        working = [pool.submit(work, run, asked.folder, asked.device, asked.workers, end, ended) for run in chosen]
    for one in working:
        one.result()  # raises what it has raised
    kept = keep(collect(asked.folder, asked.only), asked.page / "ablations.json")
    (asked.page / "ablations.md").write_text(page(kept), encoding="utf-8")
    sys.exit(int(ended.is_set()))


if __name__ == "__main__":
    main()
