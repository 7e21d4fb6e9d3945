"""How fast training is: images/s of `finetune` and of a plain Trainer script, interleaved; writes training.md.

    python benchmarks/training.py [--device cpu|cuda] [--steps N] [--turns N] [--batch N] [--workers N] [--page FOLDER]

Both train the same DeiT from random weights on the same JPEGs of 500x375 pixels, with random crops of 8 to 100 % and
flips. The plain script is written in the manner of transformers' image-classification example, with Pillow in place of
torchvision: a data set that decodes and augments, a collator that stacks. Each is timed twice, for few steps and for
many; the difference is that of steps alone. The input side alone says what it would carry if the step cost nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageOps
from report import describe_machine
from torch.utils.data import DataLoader, Dataset

from deit_batch.finetune.augmentation import crop_box
from deit_batch.finetune.data import Collate, load_sets
from deit_batch.finetune.run import finetune
from deit_batch.finetune.sampling import EpochSampler
from deit_batch.finetune.settings import Settings
from deit_batch.loading.worker import start_worker
from deit_batch.model.recipe import CARD_RECIPE
from deit_batch.system.signals import stop_on_signals

HERE = Path(__file__).resolve().parent
FEW = 4
IMAGES = 512
TABLE_9: dict[str, Any] = {"crop": 0.08, "randaugment": 9.0, "random_erasing": 0.25, "mixup": 0.8, "cutmix": 1.0}


def make_photographs(folder: Path) -> None:
    """JPEGs of some 40 kB: waves and grain."""
    y, x = np.mgrid[0:375, 0:500]
    for number in range(IMAGES):
        dice = np.random.default_rng(number)
        waves = [127 + 90 * np.sin(x / dice.uniform(20, 90) + y / dice.uniform(20, 90)) for _ in range(3)]
        pixels = np.stack(waves, -1) + dice.normal(0, 9, (375, 500, 1))
        path = folder / f"class {number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)


def make_model(folder: Path) -> transformers.DeiTForImageClassification:
    """The geometry of DeiT-Ti."""
    torch.manual_seed(0)
    names = {0: "class 0", 1: "class 1"}
    config = transformers.DeiTConfig(
        hidden_size=192,
        num_attention_heads=3,
        intermediate_size=768,
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    model = transformers.DeiTForImageClassification(config)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "DeiTImageProcessor"}')
    return model


class Photographs(Dataset[dict[str, Any]]):
    """As the example's data set with its transforms: decoded, cropped, flipped, normalised where it is asked for."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._dice = np.random.default_rng()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> dict[str, Any]:
        path = self._paths[number]
        image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
        left, top, wide, high = crop_box(image.width, image.height, 0.08, self._dice)
        image = image.crop((left, top, left + wide, top + high)).resize((224, 224), Image.Resampling.BICUBIC)
        image = ImageOps.mirror(image) if self._dice.random() < 0.5 else image
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        return {"pixel_values": (values - 0.5) / 0.5, "labels": int(path.parent.name[-1])}


def plain(place: Path, steps: int, asked: argparse.Namespace) -> float:
    """Seconds."""
    model = transformers.DeiTForImageClassification.from_pretrained(place / "model")
    arguments = transformers.TrainingArguments(
        output_dir=str(place / "plain"),
        max_steps=steps,
        per_device_train_batch_size=asked.batch,
        dataloader_num_workers=asked.workers,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=asked.device == "cpu",
        bf16=asked.device == "cuda",
    )
    paths = sorted((place / "in").glob("*/*.jpg"))
    trainer = transformers.Trainer(model, arguments, transformers.DefaultDataCollator(), Photographs(paths))
    trainer.remove_callback(transformers.PrinterCallback)
    metrics: dict[str, Any] = trainer.train().metrics
    return float(metrics["train_runtime"])


def settings(place: Path, asked: argparse.Namespace, **more: Any) -> Settings:
    return Settings(
        input=str(place / "in"),
        model=str(place / "model"),
        device=asked.device,
        workers=asked.workers,
        per_device_train_batch_size=asked.batch,
        validation_share=0.02,
        **{"crop": 0.08, **more},
    )


def ours(place: Path, steps: int, asked: argparse.Namespace, **more: Any) -> float:
    """Seconds."""
    out = place / "ours"
    shutil.rmtree(out, ignore_errors=True)
    finetune(settings(place, asked, max_steps=steps, **more), out)
    history = json.loads((out / "training.json").read_bytes())["history"]
    return float(next(entry["train_runtime"] for entry in reversed(history) if "train_runtime" in entry))


def rate(run: Callable[[int], float], asked: argparse.Namespace) -> float:
    """Images in a second of the steps beyond the first few."""
    few, many = run(FEW), run(FEW + asked.steps)
    return float(asked.steps * asked.batch / max(many - few, 1e-9))


def input_side(place: Path, asked: argparse.Namespace, **more: Any) -> float:
    """Images in a second that the workers give, augmented and in batches."""
    chosen = settings(place, asked, **more)
    with tempfile.TemporaryDirectory() as folder, stop_on_signals(60) as stop:
        sets = load_sets(chosen, CARD_RECIPE, Path(folder), stop, workers=asked.workers)
        sampler = EpochSampler(len(sets.training), 0, 1)
        loader = DataLoader(
            sets.training,
            asked.batch,
            sampler=sampler,
            collate_fn=Collate(chosen),
            num_workers=asked.workers,
            persistent_workers=asked.workers > 0,
            worker_init_fn=start_worker,
        )
        list(loader)  # starts the workers
        start = time.perf_counter()
        shown = sum(len(batch["pixels"]) for _ in range(2) for batch in loader)
        return shown / (time.perf_counter() - start)


def page(figures: dict[str, list[float]], asked: argparse.Namespace) -> str:
    ratio = median(a / b for a, b in zip(figures["finetune"], figures["plain Trainer"], strict=True))
    where = torch.cuda.get_device_name() if asked.device == "cuda" else describe_machine()
    rows = [
        f"| {name} | {median(each):.4g} ({', '.join(f'{one:.4g}' for one in each)}) |" for name, each in figures.items()
    ]
    return "\n".join(
        [
            "# How fast training is",
            "",
            f"Written by `scripts/bench-train`, on {where}: DeiT-Ti from random weights, batches of {asked.batch}, "
            f"{asked.workers} workers, JPEGs of 500x375 pixels; crop and flip on both sides, interleaved, "
            f"{asked.turns} turns of {asked.steps} steps. The median, and all turns.",
            "",
            "| | images/s |",
            "| --- | --- |",
            *rows,
            "",
            f"`finetune` is {ratio:.2f} times as fast as the plain script (the goal is 1.3).",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--page", type=Path, default=HERE)
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_photographs(place / "in")
        make_model(place / "model")
        rows: dict[str, Callable[[], float]] = {
            "plain Trainer": lambda: rate(lambda steps: plain(place, steps, asked), asked),
            "finetune": lambda: rate(lambda steps: ours(place, steps, asked), asked),
            "finetune, with the augmentation of table 9": lambda: rate(
                lambda steps: ours(place, steps, asked, **TABLE_9), asked
            ),
            "the input side alone, crop and flip": lambda: input_side(place, asked),
            "the input side alone, table 9": lambda: input_side(place, asked, **TABLE_9),
        }
        for _ in range(asked.turns):
            for name, measure in rows.items():
                figures.setdefault(name, []).append(measure())
                print(f"training: {name}: {figures[name][-1]:.4g} images/s", flush=True)
    (asked.page / "training.md").write_text(page(figures, asked), encoding="utf-8")


if __name__ == "__main__":
    main()
