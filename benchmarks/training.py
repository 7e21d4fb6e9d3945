"""How fast training is: images/s of `finetune` and of a plain Trainer script, interleaved; writes training.md.

    python benchmarks/training.py [--device cpu|cuda] [--steps N] [--turns N] [--batch N] [--workers N] [--page FOLDER]

Both train the same DeiT from random weights on the same JPEGs of 500x375 pixels, with random crops of 8 to 100 % and
flips. The plain script is written in the manner of transformers' image-classification example, with Pillow in place of
torchvision: a data set that decodes and augments, a collator that stacks. Each is timed twice, for few steps and for
many; the difference is that of steps alone. The input side alone says what it would carry if the step cost nothing.
Images are counted by the second and by the second of CPU time, of all processes together: the latter says the same
whatever else the machine does, if no thread waits for another in a loop (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

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
from deit_batch.loading import turbo
from deit_batch.loading.worker import start_worker
from deit_batch.model.recipe import CARD_RECIPE
from deit_batch.system.signals import stop_on_signals

HERE = Path(__file__).resolve().parent
FEW = 2
IMAGES = 256
EPOCHS_OF_INPUT = 2
"""Of the input side alone; the first starts the workers."""
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


class Seconds(NamedTuple):
    wall: float
    cpu: float
    """Of this process and of those that it has started."""


class Rates(NamedTuple):
    """Images in a second of either kind."""

    wall: float
    cpu: float


def cpu_seconds() -> float:
    """So far; of processes that have ended."""
    gc.collect()  # of a loader that nobody holds, the workers end
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def plain(place: Path, steps: int, asked: argparse.Namespace) -> Seconds:
    before = cpu_seconds()
    return Seconds(train_plainly(place, steps, asked), cpu_seconds() - before)


def train_plainly(place: Path, steps: int, asked: argparse.Namespace) -> float:
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


def ours(place: Path, steps: int, asked: argparse.Namespace, **more: Any) -> Seconds:
    out = place / "ours"
    shutil.rmtree(out, ignore_errors=True)
    before = cpu_seconds()
    finetune(settings(place, asked, max_steps=steps, **more), out)
    spent = cpu_seconds() - before
    history = json.loads((out / "training.json").read_bytes())["history"]
    wall = next(entry["train_runtime"] for entry in reversed(history) if "train_runtime" in entry)
    return Seconds(float(wall), spent)


def rate(run: Callable[[int], Seconds], asked: argparse.Namespace) -> Rates:
    """Of the steps beyond the first few."""
    few, many = run(FEW), run(FEW + asked.steps)
    images = asked.steps * asked.batch
    return Rates(images / max(many.wall - few.wall, 1e-9), images / max(many.cpu - few.cpu, 1e-9))


def plain_input(place: Path, asked: argparse.Namespace) -> Rates:
    paths = sorted((place / "in").glob("*/*.jpg"))
    return input_rates(Photographs(paths), transformers.DefaultDataCollator(), None, asked)


def our_input(place: Path, asked: argparse.Namespace, **more: Any) -> Rates:
    chosen = settings(place, asked, **more)
    with tempfile.TemporaryDirectory() as folder, stop_on_signals(60) as stop:
        sets = load_sets(chosen, CARD_RECIPE, Path(folder), stop, workers=asked.workers)
        return input_rates(sets.training, Collate(chosen), EpochSampler(len(sets.training), 0, 1), asked)


def input_rates(images: Dataset[Any], collate: Any, sampler: Any, asked: argparse.Namespace) -> Rates:
    """Of what the workers give, augmented and in batches."""
    before = cpu_seconds()
    loader = DataLoader(
        images,
        asked.batch,
        shuffle=sampler is None,
        sampler=sampler,
        collate_fn=collate,
        num_workers=asked.workers,
        persistent_workers=asked.workers > 0,
        worker_init_fn=start_worker,
    )
    count = len(images) // asked.batch * asked.batch  # type: ignore[arg-type]
    for epoch in range(EPOCHS_OF_INPUT):
        if epoch == 1:
            start = time.perf_counter()
        for _ in loader:
            pass
    wall = time.perf_counter() - start
    del loader
    spent = cpu_seconds() - before
    return Rates((EPOCHS_OF_INPUT - 1) * count / wall, EPOCHS_OF_INPUT * count / spent)


PLAIN, OURS = "plain Trainer", "`finetune`"
PLAIN_INPUT, OUR_INPUT = "the plain script's input side alone", "`finetune`'s input side alone"


def page(figures: dict[str, list[Rates]], asked: argparse.Namespace) -> str:
    """By CPU seconds, or by seconds where the model is on a GPU."""
    on_gpu = asked.device == "cuda"
    rates = {name: [one.wall if on_gpu else one.cpu for one in each] for name, each in figures.items()}
    unit = "second" if on_gpu else "CPU second"
    threads = torch.get_num_threads()
    training, feeding = ratio(rates[OURS], rates[PLAIN]), ratio(rates[OUR_INPUT], rates[PLAIN_INPUT])
    return "\n".join(
        [
            "# How fast training is",
            "",
            f"Written by `scripts/bench-train`, on {torch.cuda.get_device_name() if on_gpu else describe_machine()}.",
            f"DeiT-Ti from random weights, batches of {asked.batch}, {asked.workers} workers, {threads} of torch's",
            f"threads; JPEGs of 500x375 pixels, which {turbo.decoder()} decodes in `finetune`, and Pillow in the",
            f"plain script; random crops and mirroring on both sides; {asked.turns} turns of {asked.steps} steps,",
            "interleaved. A CPU second is one of any of the processes: what else the machine does is not in it.",
            "",
            f"| images a {unit} | median | each turn |",
            "| --- | --- | --- |",
            *(
                f"| {name} | {median(each):.4g} | {', '.join(f'{one:.4g}' for one in each)} |"
                for name, each in rates.items()
            ),
            "",
            "`finetune` over the plain script, the median of the turns and their range; the goal is 1.3:",
            "",
            "| | times as fast |",
            "| --- | --- |",
            f"| training | {training} |",
            f"| the input side alone: what a step that costs nothing is fed | {feeding} |",
            "",
            *([] if on_gpu else [*reason(median(rates[PLAIN]) / median(rates[PLAIN_INPUT])), ""]),
        ]
    )


def ratio(ours: list[float], plain: list[float]) -> str:
    each = [one / other for one, other in zip(ours, plain, strict=True)]
    return f"{median(each):.2f} ({min(each):.2f}–{max(each):.2f})"


def reason(share: float) -> list[str]:
    """Why no input side, however fast, makes training on a CPU much faster. `share`: of the plain script's time, what
    its input side takes."""
    return [
        f"The input side is {share:.0%} of the plain script's time, and the rest the model's own passes, which are",
        "the same on both sides. With this model on these cores, images that cost nothing would make it",
        f"{1 / (1 - share):.2f} times as fast: the goal can't be reached here. It could be where the model is small,",
        "or on a GPU, where this has not been measured yet.",
    ]


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
    figures: dict[str, list[Rates]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_photographs(place / "in")
        make_model(place / "model")
        rows: dict[str, Callable[[], Rates]] = {
            PLAIN: lambda: rate(lambda steps: plain(place, steps, asked), asked),
            OURS: lambda: rate(lambda steps: ours(place, steps, asked), asked),
            PLAIN_INPUT: lambda: plain_input(place, asked),
            OUR_INPUT: lambda: our_input(place, asked),
            f"{OUR_INPUT}, with the augmentation of table 9": lambda: our_input(place, asked, **TABLE_9),
        }
        for _ in range(asked.turns):
            for name, measure in rows.items():
                rates = measure()
                figures.setdefault(name, []).append(rates)
                print(f"training: {name}: {rates.wall:.4g} images/s, {rates.cpu:.4g} a CPU second", flush=True)
    (asked.page / "training.md").write_text(page(figures, asked), encoding="utf-8")


if __name__ == "__main__":
    main()
