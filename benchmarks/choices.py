"""What stands behind our choices for a CPU: the forward pass in several ways, and where the seconds of a start go.

Writes choices.md. Five minutes on 2 cores; forward passes alone, no images.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import material
import torch
import transformers
from report import describe_machine

from deit_batch.model.checkpoint import find_checkpoint
from deit_batch.model.onnx import Session, export
from deit_batch.model.transformer import load_weights
from deit_batch.system.machine import cores

HERE = Path(__file__).resolve().parent
TURNS, SECONDS = 3, 3.0
SMALL, LARGE = 2, 16
CPU = torch.device("cpu")

Forward = Callable[[torch.Tensor], object]


def side_by_side(forward: Forward, size: int) -> float:
    """Images/s of passes of `size` images, one a core."""
    with ThreadPoolExecutor(cores(), "forward", torch.set_num_threads, (1,)) as pool:
        return measured(lambda values: list(pool.map(forward, [values] * 4 * cores())), size, 4 * cores() * size)


def measured(forward: Forward, size: int, images: int) -> float:
    values = torch.randn(size, 3, 224, 224)
    with torch.inference_mode():
        forward(values)
        start, count = time.monotonic(), 0
        while time.monotonic() - start < SECONDS:
            forward(values)
            count += images
        return count / (time.monotonic() - start)


def inference(module: Forward) -> Forward:
    """In whichever thread it is called."""

    def forward(values: torch.Tensor) -> object:
        with torch.inference_mode():
            return module(values)

    return forward


def ways(folder: Path) -> Iterator[tuple[str, Callable[[], float]]]:
    checkpoint = find_checkpoint(str(folder))
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    compiled: Any = torch.compile(transformers.AutoModelForImageClassification.from_pretrained(folder).eval())
    plain = load_weights(checkpoint, device=CPU, dtype=torch.float32)
    ours = load_weights(checkpoint, device=CPU, dtype=torch.float32, pass_size=SMALL)
    sessions = {}
    for dtype in ("float32", "int8"):
        export(checkpoint, folder.with_name(f"{folder.name}-{dtype}"), dtype)
        sessions[dtype] = Session(find_checkpoint(f"{folder}-{dtype}"), 1)

    torch.set_num_threads(1)
    start = time.monotonic()
    with torch.inference_mode():
        compiled(torch.randn(SMALL, 3, 224, 224))
    print(f"{folder.name}: compiled in {time.monotonic() - start:.0f} s", flush=True)
    torch.set_num_threads(cores())

    yield f"transformers, all cores, {LARGE} images", lambda: measured(theirs, LARGE, LARGE)
    yield f"transformers, one core a pass, {SMALL} images", lambda: side_by_side(inference(theirs), SMALL)
    yield "the same, torch.compile", lambda: side_by_side(inference(compiled), SMALL)
    yield f"ours, one core a pass, {SMALL} images, plain matrix products", lambda: side_by_side(inference(plain), SMALL)
    yield "the same, weights laid out by oneDNN", lambda: side_by_side(inference(ours), SMALL)
    yield "ONNX Runtime, float32, one core a pass, 1 image", lambda: side_by_side(sessions["float32"], 1)
    yield "ONNX Runtime, int8, one core a pass, 1 image", lambda: side_by_side(sessions["int8"], 1)
    yield f"ONNX Runtime, int8, one core a pass, {LARGE} images", lambda: side_by_side(sessions["int8"], LARGE)


def forward_table(folder: Path) -> str:
    lines = ["| forward pass alone, images/s | DeiT-Ti | DeiT-B |", "| --- | ---: | ---: |"]
    columns = []
    for name, geometry in (("ti", material.TINY), ("b", material.BASE)):
        material.checkpoint(folder / name, material.PLAIN, **geometry)
        runs = dict(ways(folder / name))
        speeds: dict[str, list[float]] = {way: [] for way in runs}
        for _ in range(TURNS):
            for way, run in runs.items():
                speeds[way].append(run())
        columns.append(speeds)
    for way in columns[0]:
        lines.append(f"| {way} | {shown(columns[0][way])} | {shown(columns[1][way])} |")
    return "\n".join(lines)


def shown(speeds: list[float]) -> str:
    return f"{median(speeds):.1f} ({min(speeds):.1f}–{max(speeds):.1f})"


OURS = "import torch, deit_batch.runner, deit_batch.loading.loader, deit_batch.model.classifier"
IMPORTS = {
    "Python alone": "pass",
    "`import torch`": "import torch",
    "and the model classes of transformers": "import torch, transformers; transformers.ViTForImageClassification",
    "or all of deit-batch": f"{OURS}, deit_batch.model.transformer",
    "and ONNX Runtime": f"{OURS}, onnxruntime",
}
LOADS = {
    "digest of the weights and checks": "find_checkpoint(sys.argv[1])",
    "loading them": "load_classifier(checkpoint, recipe, device=torch.device('cpu'), dtype=dtype, pass_size=2)",
}
PREAMBLE = """
import sys, time, torch
from deit_batch.model.checkpoint import find_checkpoint, find_recipe
from deit_batch.model.classifier import choose_dtype, load_classifier
import deit_batch.model.onnx
checkpoint = find_checkpoint(sys.argv[1])
recipe = find_recipe(checkpoint, None)
dtype = choose_dtype("auto", torch.device("cpu"), checkpoint)
start = time.monotonic()
result = {what}
print(time.monotonic() - start)
"""


def start_table(folder: Path) -> str:
    lines = ["| start | seconds |", "| --- | ---: |"]
    for what, code in IMPORTS.items():
        seconds = []
        for _ in range(TURNS):
            start = time.monotonic()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds.append(time.monotonic() - start)
        lines.append(f"| {what}, as a process | {median(seconds):.2f} |")
    for name in ("b", "b-float32", "b-int8"):
        for what, code in LOADS.items():
            words = [sys.executable, "-c", PREAMBLE.format(what=code), str(folder / name)]
            seconds = [float(subprocess.run(words, check=True, capture_output=True).stdout) for _ in range(TURNS)]
            kind = {"b": "safetensors", "b-float32": "exported float32", "b-int8": "exported int8"}[name]
            lines.append(f"| DeiT-B, {kind}: {what} | {median(seconds):.2f} |")
    return "\n".join(lines)


def main() -> None:
    torch._inductor.config.freezing = True
    with tempfile.TemporaryDirectory() as name:
        tables = forward_table(Path(name)), start_table(Path(name))
    text = PAGE.format(machine=describe_machine(), forward=tables[0], start=tables[1])
    (HERE / "choices.md").write_text(text, encoding="utf-8")
    print(text)


PAGE = """# What stands behind the choices

Written by `benchmarks/choices.py`, on {machine}. The median of three turns, with the least and the greatest;
checkpoints of random weights. Only ratios travel.

{forward}

Compiled with frozen weights.

{start}
"""

if __name__ == "__main__":
    main()
