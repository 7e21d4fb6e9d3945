"""How fast JPEGs become pixels, and how far `--decode fast` is from exact: decoding.py [--quick].

Beside the way that Pillow alone does it (which is what happens without the extra `turbo`), by processor
time; writes decoding.md beside itself. A few minutes on one core. With Debian's dataset-fashion-mnist, also
what fast makes of the demo model's answers.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median

import garments
import material
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from report import Results, Row, describe_machine, ratios, versions

from deit_batch import score
from deit_batch.io import Record
from deit_batch.limits import Limits
from deit_batch.loading import decode as decoding
from deit_batch.loading import turbo
from deit_batch.model.recipe import CARD_RECIPE, Recipe

HERE = Path(__file__).resolve().parent
LIMITS = Limits()
BILINEAR, BICUBIC = "224 bilinear", "256→224 bicubic"
RECIPES = {BILINEAR: replace(CARD_RECIPE, resize=(224, 224), resample=2, crop=None), BICUBIC: CARD_RECIPE}
SMALL, LARGE = "500×375", "12 megapixels"
FASHION, SIDE = 2000, 1000
"""Pictures, enlarged to squares of so many pixels: fast then decodes them at half their size."""


Ways = dict[str, Callable[[bytes, Recipe], NDArray[np.uint8]]]
WAYS: Ways = {
    "pillow": lambda data, recipe: decoding._by_pillow(data, recipe, LIMITS, None),
    "exact": lambda data, recipe: decoding.decode(data, recipe, LIMITS),
    "fast": lambda data, recipe: decoding.decode(data, replace(recipe, fast=True), LIMITS),
}


class Measured:
    """Each way has a process of its own, for what one leaves in memory changes what another costs."""

    def __init__(self, files: dict[str, list[bytes]]) -> None:
        self._files = files
        context = multiprocessing.get_context("spawn")
        self._processes = {way: ProcessPoolExecutor(1, context) for way in WAYS}

    def turn(self) -> dict[str, float]:
        """Milliseconds of processor time an image, each way after the other; and how many values differ from
        Pillow's."""
        figures: dict[str, float] = {}
        for size, images in self._files.items():
            for name, recipe in RECIPES.items():
                about = f"decode: {size}, {name}"
                found = {
                    way: process.submit(timed, way, images, recipe).result() for way, process in self._processes.items()
                }
                figures |= {f"{about}: {way}": 1000 * seconds for way, (seconds, _) in found.items()}
                for way in ("exact", "fast"):
                    off = np.abs(found[way][1].astype(int) - found["pillow"][1])
                    figures[f"{about}: {way}, values that differ, %"] = 100 * float(np.mean(off > 0))
                    figures[f"{about}: {way}, by at most"] = float(off.max())
        return figures

    def close(self) -> None:
        for process in self._processes.values():
            process.shutdown()


def timed(way: str, images: list[bytes], recipe: Recipe) -> tuple[float, NDArray[np.uint8]]:
    """Seconds an image, and the pixels of all."""
    start = time.process_time()
    pixels = [WAYS[way](data, recipe) for data in images]
    return (time.process_time() - start) / len(images), np.stack(pixels)


def rows(results: Results) -> Iterator[Row]:
    """Of what `Measured` found, one value a turn."""

    def faster(size: str, name: str, way: str) -> list[float]:
        return ratios(results, f"decode: {size}, {name}: pillow", f"decode: {size}, {name}: {way}")

    yield Row(f"decode `exact`, {SMALL}, {BILINEAR}, against Pillow's way", 1.6, faster(SMALL, BILINEAR, "exact"))
    yield Row(f"the same, {BICUBIC}", 1.8, faster(SMALL, BICUBIC, "exact"))
    for name in RECIPES:
        yield Row(f"the same, {LARGE}, {name}", 1.9, faster(LARGE, name, "exact"))
    off = [values for name, values in results.items() if name.endswith("exact, values that differ, %")]
    yield Row("values of those that differ from Pillow's", 0, [max(max(one) for one in off)], at_most=True, unit=" %")
    yield Row(f"`--decode fast`, {SMALL}, {BILINEAR}, against Pillow's way", 2.2, faster(SMALL, BILINEAR, "fast"))
    about = f"decode: {SMALL}, {BILINEAR}: fast"
    off_by_one = results[f"{about}, values that differ, %"]
    yield Row("values of those that differ from exact", 0.5, off_by_one, at_most=True, unit=" %")
    yield Row("… by at most", 2, results[f"{about}, by at most"], at_most=True, unit="")
    yield Row(f"`--decode fast`, {LARGE}, {BILINEAR}, against Pillow's way", 8, faster(LARGE, BILINEAR, "fast"))


def answers(folder: Path) -> Iterator[str]:
    """What fast changes in scores, a line for each material."""
    tiny = material.checkpoint(folder / "tiny", material.PLAIN, **material.TINY)
    yield compared(f"{len(list((folder / 'large').iterdir()))} photographs of {LARGE}, DeiT-Ti of random weights",
                   folder / "large", str(tiny), None)  # fmt: skip
    if not garments.SOURCE.exists():
        yield "Fashion-MNIST (Debian's dataset-fashion-mnist) is not here: the demo model was not asked."
        return
    images, labels = garments.pictures(garments.TEST)
    (folder / "garments").mkdir()
    truth = {}
    for number in range(FASHION):
        name = f"{number:05}.jpg"
        Image.fromarray(images[number]).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / "garments" / name)
        truth[name] = garments.CLASSES[labels[number]]
    yield compared(f"{FASHION:,} pictures of Fashion-MNIST, enlarged to {SIDE}×{SIDE}, the demo model",
                   folder / "garments", "demo", truth)  # fmt: skip


def compared(what: str, folder: Path, model: str, truth: dict[str, str] | None) -> str:
    exact, fast = (list(score(folder, model=model, decode=how, top_k=None)) for how in ("exact", "fast"))
    same = sum(best(one) == best(other) for one, other in zip(exact, fast, strict=True))
    changes = [change(one, other) for one, other in zip(exact, fast, strict=True)]
    line = f"{what}: the best label is the same for {100 * same / len(exact):.2f} %; the largest change of a score is "
    line += f"{max(changes):.4f} (median of an image's largest: {median(changes):.5f})"
    if truth:
        right = [sum(best(one) == truth[Path(str(one.image)).name] for one in records) for records in (exact, fast)]
        line += "; right are " + " and ".join(f"{100 * count / len(exact):.2f} %" for count in right)
    return line + "."


def best(record: Record) -> str:
    return str(record.predictions[0]["label"])


def change(one: Record, other: Record) -> float:
    scores = {prediction["label"]: prediction["score"] for prediction in other.predictions}
    return float(max(abs(prediction["score"] - scores[prediction["label"]]) for prediction in one.predictions))


def read(paths: list[str]) -> list[bytes]:
    return [Path(path).read_bytes() for path in paths]


def page(results: Results, lines: list[str]) -> str:
    libraries = ", ".join(f"{name} {number}" for name, number in versions().items() if name != "torch")
    table = "\n".join(row.as_markdown() for row in rows(results))
    figures = "\n".join(f"| {name} | {median(v):.4g} | {min(v):.4g} | {max(v):.4g} |" for name, v in results.items())
    return f"""# Decoding

Written by `benchmarks/decoding.py`, on {describe_machine()}, with {libraries}. JPEGs are decoded by {turbo.decoder()}.
Photographs of scikit-image and scikit-learn with a camera's noise, quality 85; processor time, each way in a process of
its own, in turn; a figure is the median of the turns, with the least and the greatest.

| what | target | reached | holds |
| --- | --- | --- | --- |
{table}

## What fast changes

{"".join(f"- {line}" + chr(10) for line in lines)}
## Every figure

Milliseconds of an image, where nothing else is said; values are of 0 to 255.

| figure | median | least | greatest |
| --- | ---: | ---: | ---: |
{figures}
"""


def main() -> None:
    turns = 2 if "--quick" in sys.argv else 7
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {
            SMALL: read(material.jpegs(folder / "small", 32, material.SMALL)),
            LARGE: read(material.jpegs(folder / "large", 24, material.LARGE))[:8],
        }
        results: Results = {}
        with closing(Measured(files)) as measured:
            measured.turn()  # without counting: memory and caches fill
            for _ in range(turns):
                for figure, value in measured.turn().items():
                    results.setdefault(figure, []).append(value)
        text = page(results, list(answers(folder)))
    (HERE / "decoding.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
