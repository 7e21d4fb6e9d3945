"""How much faster a DeiT is by our own forward pass than by the class of transformers: `score` by both, in turns.

Writes runtimes.md. Two minutes on 2 cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import material
from report import describe_machine, versions

HERE = Path(__file__).resolve().parent
TURNS, IMAGES = 3, 64
RUNTIMES = ("native", "transformers")


class Cost(NamedTuple):
    """Of one run: seconds by the clock, and those that its processes have computed."""

    clock: float
    computing: float


def run(folder: Path, runtime: str, images: str) -> Cost:
    out = folder / "p.jsonl"
    command = [str(Path(sys.executable).parent / "deit-batch"), "score", images, "--model", str(folder / "model")]
    command += ["--runtime", runtime, "--out", str(out), "--fresh", "--quiet"]
    before, start = os.times(), time.monotonic()
    subprocess.run(command, check=True)
    clock, after = time.monotonic() - start, os.times()
    return Cost(clock, sum(after[2:4]) - sum(before[2:4]))  # user and system, of children that have ended


def table(folder: Path) -> str:
    """The runtimes take turns, so that what else the machine does meets them alike."""
    lines = [
        "| | native | transformers | transformers / native |",
        "| --- | ---: | ---: | ---: |",
    ]
    photos = folder / "photos"
    first = material.jpegs(photos, IMAGES, material.SMALL)[0]
    for what, images in ((f"DeiT-Ti, {IMAGES} photographs", str(photos)), ("DeiT-Ti, one photograph", first)):
        costs: dict[str, list[Cost]] = {runtime: [] for runtime in RUNTIMES}
        for _ in range(TURNS):
            for runtime in RUNTIMES:
                costs[runtime].append(run(folder, runtime, images))
        for unit, name in (("clock", "seconds"), ("computing", "seconds of computing")):
            native, theirs = ([getattr(cost, unit) for cost in costs[runtime]] for runtime in RUNTIMES)
            ratio = median(theirs) / median(native)
            lines.append(f"| {what}: {name} | {shown(native)} | {shown(theirs)} | {ratio:.2f} |")
    return "\n".join(lines)


def shown(values: list[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def used() -> str:
    return ", ".join(f"{name} {version}" for name, version in versions().items())


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        material.checkpoint(folder / "model", material.PLAIN, **material.TINY)
        text = PAGE.format(machine=describe_machine(), versions=used(), table=table(folder))
    (HERE / "runtimes.md").write_text(text, encoding="utf-8")
    print(text)


PAGE = """# A DeiT by either runtime

Written by `benchmarks/runtimes.py`, on {machine}. {versions}. Whole runs of `score`, start and end included; the median
of three turns, with the least and the greatest; a checkpoint of random weights. Only ratios travel, and those of the
seconds of computing alone where a machine has other work, too.

{table}
"""

if __name__ == "__main__":
    main()
