"""How many images a second the main process can see through: reading, handing over, records, writing.

    python benchmarks/host.py [IMAGES]

Nothing is decoded and no model runs: pixels are zeros, and scores were made up. Rates are of the main thread's own
processor time, for what the workers do is spread over as many cores as there are. And how many finished records a
second are checked before a stopped run goes on. Prints a line each; a minute or two. `bench.py` has these rows, too.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np
import torch
from material import PLAIN, TINY, checkpoint, tiny_pngs
from report import HOST_TARGETS, describe_machine
from torch import Tensor

from deit_batch import runner
from deit_batch.input.stamps import stamp_of
from deit_batch.io import Prediction, Record, Reference
from deit_batch.loading import worker
from deit_batch.loading.loader import batched
from deit_batch.options import Options
from deit_batch.output.formats import FORMATS, Columns
from deit_batch.output.output import Output, open_output
from deit_batch.plan import Plan

BATCH = 128
IMAGES = 50_000
PREDICTIONS: list[Prediction] = [{"label": f"class {number}", "score": 1 / (7 + number)} for number in range(5)]
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


def check(folder: Path, images: int, rates: SimpleQueue[float]) -> None:
    """Puts the records a second of checking those that a stopped run has left, beyond reading its input."""
    source, out = str(folder / "images.txt"), str(folder / "stopped.jsonl")

    def batches() -> Iterator[list[Reference]]:
        return batched(Options(input=source).open_source().references, BATCH)

    def opened() -> Output:
        return open_output(out, FORMATS["jsonl"], settings={}, columns=Columns(()), mode="continue", name=out)

    with closing(opened()) as output:
        for batch in output.remaining(batches()):
            predictions: list[Prediction] = [
                {"label": f"class {number}", "score": 1 / (7 + number)} for number in range(5)
            ]
            output.write([Record.of(each, predictions, stamp=stamp_of(each.location)) for each in batch])
        output.interrupt({}, gave_up=False)

    def read() -> None:
        for _ in batches():
            pass

    def read_and_check() -> None:
        with closing(opened()) as output:
            assert not list(output.remaining(batches()))
            assert output.tally.scored == images

    seconds: list[float] = []
    for _ in range(3):
        times = [time.thread_time()]
        for work in (read, read_and_check):
            work()
            times.append(time.thread_time())
        seconds.append(times[2] - 2 * times[1] + times[0])
    rates.put(images / min(seconds))


def rates(folder: Path, images: int) -> Iterator[tuple[str, float]]:
    """What is measured, by its name in HOST_TARGETS, and its rate a second. `folder`: empty."""
    paths = tiny_pngs(folder / "images", 1000)
    (folder / "images.txt").write_text("".join(f"{paths[number % 1000]}\n" for number in range(images)))
    for classes in {classes for _, classes in ROWS}:
        checkpoint(folder / f"of-{classes}", PLAIN, **TINY, classes=classes)
    for format, classes in ROWS:
        yield f"{format}, {classes:,} classes", _apart(score, folder, format, classes, images)
    yield "checking finished records", _apart(check, folder, images)


def _apart(measure: Callable[..., None], *arguments: object) -> float:
    """In a process of its own, for what it changes. Forked: in one that was spawned, workers would be spawned, too."""
    context = get_context("fork")
    rate: SimpleQueue[float] = context.SimpleQueue()
    process = context.Process(target=measure, args=(*arguments, rate))
    process.start()
    found = rate.get()
    process.join()
    return found


def main() -> None:
    images = int(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        for what, rate in rates(Path(name), images):
            print(f"{what}: {rate:,.0f}/s; target {HOST_TARGETS[what]:,}", flush=True)


if __name__ == "__main__":
    main()
