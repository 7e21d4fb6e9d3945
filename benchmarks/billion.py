"""What a billion images would take, reckoned from results.json, scale.md, scaling.md and gpu.md: billion.py. Renews the
tables of docs/scale.md. What was not measured here is an assumption, named in the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "scale.md"

IMAGES = 1e9
CORES = 1000
DOLLARS_A_CORE_HOUR = 0.04
CARDS = 10  # in a machine each
DOLLARS_A_CARD_HOUR = 4.0
DOLLARS_A_MILLION_GETS, DOLLARS_A_MILLION_LISTS = 0.40, 5.0
KEYS_A_LIST = 1000
IMAGE_BYTES = 80_000
BLOCK = 8 * 2**20  # of a stream from a store
SHARES = 125
BENCHMARK_CORES = 2  # of results.json's machine
SPEEDS = {
    "DeiT-Ti, float32": "DeiT-Ti: ours",
    "DeiT-B, float32": "DeiT-B: ours",
    "DeiT-B, bfloat16": "DeiT-B: ours, bfloat16",
    "DeiT-B, int8": "DeiT-B: ours, exported int8",
}


def table(*heads: str) -> list[str]:
    return ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]


def scoring() -> list[str]:
    figures = json.loads((HERE / "results.json").read_bytes())["figures"]
    ray = float(found_in("scaling.md", r"Ray over local, 2 cores \| ([\d.]+)"))
    lines = table(
        "model", "core-hours", f"hours on {CORES:,} cores", "the same on Ray", "dollars", "images/s, without Ray"
    )
    for name, figure in SPEEDS.items():
        speed = CORES * median(figures[figure]) / BENCHMARK_CORES
        hours = IMAGES / speed / 3600
        dollars = CORES * hours * DOLLARS_A_CORE_HOUR
        hours_on_ray = hours / min(ray, 1.0)
        lines.append(
            f"| {name} | {CORES * hours:,.0f} | {hours:.1f} | {hours_on_ray:.1f} | {dollars:,.0f} | {speed:,.0f} |"
        )
    return lines


def on_cards() -> list[str]:
    """Of the first run of gpu.md."""
    lines = table("DeiT-B, float16, JPEGs of 500×375", "images/s of one machine", f"hours on {CARDS}", "dollars")
    for what, figure in (("as measured", "end to end"), ("if it scored all that it decodes", "decoding alone")):
        speed = float(found_in("gpu.md", rf"#### DeiT-B\n.*?\| {figure} \| ([\d,]+) images/s").replace(",", ""))
        hours = IMAGES / speed / 3600
        lines.append(f"| {what} | {speed:,.0f} | {hours / CARDS:.1f} | {hours * DOLLARS_A_CARD_HOUR:,.0f} |")
    return lines


def found_in(page: str, pattern: str) -> str:
    match = re.search(pattern, (HERE / page).read_text(encoding="utf-8"), re.DOTALL)
    assert match, f"{page} has nothing like {pattern}"
    return match[1]


def requests() -> list[str]:
    """Of the store, for the input."""
    lists = IMAGES / KEYS_A_LIST
    streamed = IMAGES * IMAGE_BYTES / BLOCK
    rows = {
        "an object an image, fetched": (IMAGES, DOLLARS_A_MILLION_GETS),
        "a folder of them, listed once": (lists, DOLLARS_A_MILLION_LISTS),
        "the same images in tars, streamed": (streamed, DOLLARS_A_MILLION_GETS),
    }
    lines = [f"| {what} | {count:,.0f} | {count * price / 1e6:,.0f} |" for what, (count, price) in rows.items()]
    return table("input", "requests", "dollars") + lines


def bookkeeping() -> list[str]:
    """One process's hours, step by step, as scale.md has them of a row."""
    found = re.findall(r"^\| ([^|]+) \| ([\d.]+) \|", (HERE / "scale.md").read_text(encoding="utf-8"), re.MULTILINE)
    lines = table("step, in one process", "hours, of all", f"minutes, of one of {SHARES} shares")
    for step, microseconds in found:
        seconds = float(microseconds) * IMAGES / 1e6
        lines.append(f"| {step} | {seconds / 3600:.1f} | {seconds / 60 / SHARES:.1f} |")
    return lines


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    tables = {"scoring": scoring, "cards": on_cards, "requests": requests, "bookkeeping": bookkeeping}
    for name, write in tables.items():
        written = write()
        start, end = f"<!-- {name}: written by benchmarks/billion.py -->", f"<!-- end of {name} -->"
        head, _, rest = text.partition(start)
        text = "\n".join([head + start, *written, end + rest.partition(end)[2]])
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
