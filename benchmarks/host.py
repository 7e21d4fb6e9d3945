"""How many images a second the main process can see through: reading, handing over, records, writing.

    python benchmarks/host.py [IMAGES]

Nothing is decoded and no model runs: pixels are zeros, and scores were made up. Rates are of the main thread's own
processor time, for what the workers do is spread over as many cores as there are. Prints a table; a minute or two.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np
import torch
from material import PLAIN, TINY, checkpoint, tiny_pngs
from report import describe_machine
from torch import Tensor

from deit_batch import runner
from deit_batch.loading import worker
from deit_batch.plan import Options, Plan

BATCH = 128
ROWS = (("jsonl", 10), ("jsonl", 1000), ("jsonl", 21_841), ("parquet", 1000))


class MadeUpScores:
    """Has its answers already."""

    def __init__(self, classes: int) -> None:
        self._scores = torch.randn((BATCH, classes), generator=torch.Generator().manual_seed(0)).softmax(-1)

    def submit(self, pixels: Tensor) -> Callable[[], Tensor]:
        return lambda: self._scores[: len(pixels)]

    def close(self) -> None:
        pass


def score(folder: Path, format: str, classes: int, images: int, rates: SimpleQueue[float]) -> None:
    """Puts the images a second of scoring them."""
    torch.set_num_threads(1)
    pixels = np.zeros((224, 224, 3), np.uint8)
    setattr(worker, "decode", lambda *_, **__: pixels)  # noqa: B010
    setattr(Plan, "load", lambda plan, *_: MadeUpScores(classes))  # noqa: B010
    options = Options(
        input=str(folder / "images.txt"), model=str(folder / f"of-{classes}"), device="cpu", batch_size=BATCH, workers=2
    )
    start = time.thread_time()
    runner.run(options, out=str(folder / f"{classes}.{format}"), quiet=True)
    rates.put(images / (time.thread_time() - start))


def main() -> None:
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = tiny_pngs(folder / "images", 1000)
        (folder / "images.txt").write_text("".join(f"{paths[number % 1000]}\n" for number in range(images)))
        for classes in {classes for _, classes in ROWS}:
            checkpoint(folder / f"of-{classes}", PLAIN, **TINY, classes=classes)
        context = get_context("spawn")
        for format, classes in ROWS:
            rates = context.SimpleQueue()
            process = context.Process(target=score, args=(folder, format, classes, images, rates))
            process.start()
            print(f"{format}, {classes:,} classes: {rates.get():,.0f} images/s", flush=True)
            process.join()


if __name__ == "__main__":
    main()
