"""How large a page of 100,000 images is, and one of 1,000 with their pictures, what making them costs, and how soon a
browser shows them.

    PYTHONPATH=. .venv/bin/python benchmarks/pages.py [IMAGES]

prints two lines for docs/reports.md. Needs what scripts/test installs, and chromium.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from playwright.sync_api import expect, sync_playwright

from deit_batch.system.machine import describe

LABELS = [f"class number {number}, synonym {number}" for number in range(1000)]


def main(images: int = 100_000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        old, new, page = (Path(folder) / name for name in ("old.jsonl", "new.jsonl", "report.html"))
        for seed, path in enumerate((old, new)):
            _write(path, images, seed)
        compared = _cost("compare", old, new)  # first: the kernel keeps the peak of all children
        reported = _cost("report", new, "--gallery", "0", "--out", page)
        size = page.stat().st_size / 1e6
        shown, filtered = _in_browser(page, images)
        with_pictures = _with_pictures(Path(folder), 1000)
    print(
        f"{describe()}: {images:,} images, five labels each: compare {compared}; report {reported}, {size:.1f} MB; "
        f"shown after {shown:.2f} s, filtered by name after {filtered:.2f} s"
    )
    print(with_pictures)


def _with_pictures(folder: Path, images: int) -> str:
    """Of pictures that take WebP as much as photographs do: noise, blurred."""
    (folder / "imgs").mkdir()
    noise = np.random.default_rng(0)
    for index in range(images):
        pixels = noise.integers(0, 256, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1.2)).save(folder / "imgs" / f"{index:06}.jpg")
    predictions, page = folder / "pictures.jsonl", folder / "pictures.html"
    _write(predictions, images, 0, folder="imgs")
    cost = _cost("report", predictions, "--out", page)
    shown, _ = _in_browser(page, images)
    return f"{images:,} pictures: report {cost}, {page.stat().st_size / 1e6:.1f} MB; shown after {shown:.2f} s"


def _write(path: Path, images: int, seed: int, folder: str = "") -> None:
    chance = random.Random(seed)
    with open(path, "w") as file:
        for index in range(images):
            scores = sorted((chance.random() for _ in range(5)), reverse=True)
            predictions = [
                {"label": label, "score": score / 5}
                for label, score in zip(chance.sample(LABELS, 5), scores, strict=True)
            ]
            image = f"{folder or f'imgs/2026-11-25/camera-{index % 7}'}/{index:06}.jpg"
            file.write(json.dumps({"index": index, "image": image, "predictions": predictions}) + "\n")


def _cost(*command: str | Path) -> str:
    """Of the whole process: seconds of processor time, and the most memory that any so far has had."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["deit-batch", *command], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return f"{after.ru_utime - before.ru_utime:.1f} s and {after.ru_maxrss / 1000:.0f} MB"


def _in_browser(page: Path, images: int) -> tuple[float, float]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page()
        start = time.monotonic()
        tab.goto(page.as_uri())
        expect(tab.locator("#count")).to_have_text(f"{images:,} images")
        shown = time.monotonic() - start
        start = time.monotonic()
        tab.get_by_label("Name or failure contains").fill("camera-3/00" if images > 10_000 else "0007")
        expect(tab.locator("#count")).to_contain_text(" of ")
        filtered = time.monotonic() - start
        browser.close()
    return shown, filtered


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
