"""The figures of gpu.py as a page. `gpu_page.py FOLDER` makes gpu.md of the gpu.jsonl that is there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from report import Row

Line: TypeAlias = dict[str, Any]
"""Of gpu.jsonl: row, figure, value, unit, at (seconds from the start)."""


class Figure(NamedTuple):
    name: str
    value: float | str
    unit: str = ""

    def __str__(self) -> str:
        return shown(self.value, self.unit)


def page(lines: Sequence[Line]) -> str:
    figures = {(line["row"], line["figure"]): line["value"] for line in lines}
    about = {line["figure"]: line["value"] for line in lines if line["row"] == "smoke"}
    return PAGE.format(
        card=about.get("card", "an unknown device"),
        machine=about.get("machine", "an unknown machine"),
        versions=about.get("versions", "unknown versions"),
        seconds=max((line["at"] for line in lines), default=0),
        targets="\n".join(row.as_markdown() for row in _ratios(figures)),
        sections="\n".join(_sections(lines)),
    )


def _ratios(figures: dict[tuple[str, str], Any]) -> Iterator[Row]:
    """Those of which both sides were measured."""

    def ratio(what: str, target: float, one: tuple[str, str], other: tuple[str, str], **more: Any) -> Iterator[Row]:
        if one in figures and other in figures:
            yield Row(what, target, [figures[one] / figures[other]], **more)

    whole = ("DeiT-B", "end to end")
    yield from ratio("DeiT-B, 500×375, end to end, over the model alone", 0.9, whole, ("DeiT-B", "model alone"))
    yield from ratio("the same, over the pipeline", 17, whole, ("pipeline", "speed"))
    large = ("photographs", "end to end")
    yield from ratio("12 megapixels, end to end, over decoding alone", 0.9, large, ("photographs", "decoding alone"))
    first = ("photographs", "first record after the model is ready")
    if isinstance(figures.get(first), float):
        yield Row("… first record after the model is ready", 1, [figures[first]], at_most=True, unit=" s")
    many, few = ("memory, many images", "peak"), ("memory, few images", "peak")
    yield from ratio("peak memory of many images, over that of few", 1.05, many, few, at_most=True)


def _sections(lines: Sequence[Line]) -> Iterator[str]:
    for row, group in groupby(lines, key=lambda line: str(line["row"])):
        yield f"### {row}\n\n| what | |\n| --- | ---: |"
        for line in group:
            yield f"| {line['figure']} | {shown(line['value'], line['unit'])} |".replace("\n", " ")
        yield ""


def shown(value: float | str, unit: str) -> str:
    number = value if isinstance(value, str) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{number} {unit}".strip()


PAGE = """# On a GPU

Written by `scripts/bench --gpu` in {seconds:.0f} s, on {card}, {machine}; {versions}. JPEGs of 500×375 pixels and of 12
megapixels; checkpoints of random weights; on a GPU, float16 where nothing else is said. One run, so a figure has no
spread: ratios within it are what travels.

| what | target | reached | holds |
| --- | --- | --- | --- |
{targets}

## Every figure

{sections}
"""

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    text = page([json.loads(line) for line in (folder / "gpu.jsonl").read_bytes().splitlines()])
    (folder / "gpu.md").write_text(text, encoding="utf-8")
    print(text)
