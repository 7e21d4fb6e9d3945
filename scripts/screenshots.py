"""The demo's report and comparison as a browser shows them, for the README and the docs: screenshots.py [FOLDER].

Two runs of the demo model over the sample pictures, the second with another preprocessing; the page of the first and
what changed, on a wide screen and on a phone, as PNG files of few colours.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = str(REPOSITORY / "examples")
WIDE, PHONE = (1400, 1000), (390, 844)
COLOURS = 128  # that the eye does not miss, in a third of the bytes


def main(folder: Path = REPOSITORY / "docs" / "pictures") -> None:
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for page in make_pages(Path(temporary)):
            for width, height in (WIDE, PHONE):
                save(browser, page, width, height, folder / f"{page.stem}-{width}.png")
        browser.close()


def make_pages(folder: Path) -> list[Path]:
    run(folder, "score", "--model", "demo", "--input", EXAMPLES, "--out", "before.jsonl")
    run(folder, "score", "--model", "demo", "--input", EXAMPLES, "--image-processor", "card", "--out", "now.jsonl")
    title = ["--title", "Forty pieces of clothing"]
    run(folder, "report", "before.jsonl", "--labels", EXAMPLES, *title, "--out", "report.html")
    run(folder, "compare", "before.jsonl", "now.jsonl", "--labels", EXAMPLES, "--out", "comparison.html")
    return [folder / "report.html", folder / "comparison.html"]


def run(folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = ["deit-batch", *arguments, "--quiet"]
    subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)


def save(browser: Browser, page: Path, width: int, height: int, out: Path) -> None:
    tab = browser.new_page(viewport={"width": width, "height": height})
    tab.goto(page.as_uri())
    shot = Image.open(BytesIO(tab.screenshot()))
    shot.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(out, optimize=True)
    tab.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
