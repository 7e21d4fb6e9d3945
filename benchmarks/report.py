"""Figures to a page: each target, what was reached, and every figure that it came from."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TypeAlias, TypedDict

from deit_batch.system import machine

Results: TypeAlias = dict[str, list[float]]
"""The values of each figure, one a turn."""

START, END = "<!-- benchmark: written by scripts/bench -->", "<!-- end of benchmark -->"


HOST_TARGETS = {
    "jsonl, 10 classes": 25_000,
    "jsonl, 1,000 classes": 20_000,
    "jsonl, 21,841 classes": 10_000,
    "parquet, 1,000 classes": 15_000,
    "checking finished records": 200_000,
}
"""A second, of what host.py measures."""


class Record(TypedDict):
    machine: str
    versions: dict[str, str]
    figures: Results


LIBRARIES = ("deit-batch", "torch", "transformers", "pillow", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Row:
    """A ratio and its target. `values` has one ratio a turn; `at_most` turns the comparison around."""

    what: str
    target: float
    values: list[float]
    at_most: bool = False
    unit: str = "×"

    @property
    def reached(self) -> float:
        return median(self.values)

    @property
    def holds(self) -> bool:
        return self.reached <= self.target if self.at_most else self.reached >= self.target

    def as_markdown(self) -> str:
        bound = "≤" if self.at_most else "≥"
        spread = f" ({min(self.values):.4g}–{max(self.values):.4g})" if len(self.values) > 1 else ""
        verdict = "yes" if self.holds else "**no**"
        return (
            f"| {self.what} | {bound} {self.target:g}{self.unit} | {self.reached:.4g}{self.unit}{spread} | {verdict} |"
        )


def ratios(results: Results, one: str, other: str) -> list[float]:
    return [a / b for a, b in zip(results[one], results[other], strict=True)]


def of_ceiling(results: Results, model: str, ours: str) -> list[float]:
    """Images/s over 1 / (forward + decode), both in core-seconds an image and shared by two cores."""
    decode = median(results["decode: small_bare"]) / 1000
    return [
        speed * (2 / forward + decode) / 2
        for speed, forward in zip(results[ours], results[f"{model}: forward"], strict=True)
    ]


def rows(results: Results) -> Iterator[Row]:
    for model, target in (("DeiT-B", 1.10), ("DeiT-Ti", 1.7)):
        faster = ratios(results, f"{model}: ours", f"{model}: pipeline")
        yield Row(f"{model}, float32, end to end, against the pipeline's best", target, faster)
    yield Row(
        "the same, DeiT-Ti distilled", 1.45, ratios(results, "DeiT-Ti distilled: ours", "DeiT-Ti distilled: pipeline")
    )
    for model in ("DeiT-B", "DeiT-Ti"):
        near = of_ceiling(results, model, f"{model}: ours")
        yield Row(f"{model}, float32, end to end, against the ceiling", 0.95, near)
    int8 = "DeiT-B: ours, exported int8"
    yield Row("DeiT-B, int8 against our own float32", 2.0, ratios(results, int8, "DeiT-B: ours"))
    peers = [name for name in results if name in ("DeiT-B: onnxruntime int8", "DeiT-B: openvino int8")]
    if peers:
        best = max(peers, key=lambda name: median(results[name]))
        yield Row(f"DeiT-B, int8 against {best.split()[1]}, the best peer", 1.0, ratios(results, int8, best))
    agrees = "Fashion-MNIST: int8 agrees with float32, %"
    if agrees in results:
        yield Row("int8, top-1 agreement with float32, Fashion-MNIST", 99, results[agrees], unit=" %")
        one, other = (results[f"Fashion-MNIST: accuracy {dtype}, %"][0] for dtype in ("int8", "float32"))
        yield Row("the same, difference in accuracy", 0.3, [abs(one - other)], at_most=True, unit=" points")
    first = ratios(results, "DeiT-B: first record: pipeline", "DeiT-B: first record: ours")
    yield Row("first record, DeiT-B: the pipeline's seconds over ours", 1.33, first)
    many = f"{results['rows: how many'][0]:,.0f}"
    peak = [results["rows: peak at the many"][0] / median(results["rows: peak at 1,000"])]
    yield Row(f"peak memory at {many} rows, over that at 1,000", 1.05, peak, at_most=True)
    cost = [results["rows: ms an image of the many"][0] / median(results["rows: ms an image at 20,000"])]
    yield Row(f"time an image at {many} rows, over that at 20,000", 1.05, cost, at_most=True)
    yield Row("URLs answered after 200 ms, against local files, DeiT-Ti", 0.9, ratios(results, "URLs", "files"))
    if "photographs: first" in results:
        large = ratios(results, "photographs: end to end", "photographs: decoding alone")
        yield Row("384 photographs of 12 megapixels, end to end, over decoding alone", 0.9, large)
        first = results["photographs: first"]
        yield Row("the same, from a model that is ready to the first record", 1, first, at_most=True, unit=" s")
    if "15 workers: peak at 100,000" in results:
        peak = ratios(results, "15 workers: peak at 100,000", "15 workers: peak at 1,000")
        yield Row("peak memory with 15 workers at 100,000 rows, over that at 1,000", 1.05, peak, at_most=True)
    for name, target in HOST_TARGETS.items():
        if f"host: {name}" in results:
            yield Row(f"the main process alone: {name}", target / 1000, results[f"host: {name}"], unit=" thousand/s")


def describe_machine() -> str:
    """With what its processor can do for matrix products, where Linux says."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    wanted = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if flag in flags]
    return ", ".join([machine.describe(), *wanted])


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def table(results: Results) -> str:
    head = "| what | target | reached | holds |\n| --- | --- | --- | --- |\n"
    return head + "\n".join(row.as_markdown() for row in rows(results))


def page(record: Record) -> str:
    results = record["figures"]
    libraries = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    figures = "\n".join(f"| {name} | {median(v):.4g} | {min(v):.4g} | {max(v):.4g} |" for name, v in results.items())
    return f"""# Benchmark

Written by `scripts/bench`, in {median(results["minutes"]):.0f} minutes on {record["machine"]}, with
{libraries}.

Pictures of 500×375 pixels; checkpoints of random weights. The ceiling is what two cores could do if they did nothing
but the forward pass of `transformers` and Pillow's decoding, with no loss between them; a better forward pass or
decoder can go beyond it. A figure is the median of the turns, with the least and the greatest; only ratios within one
run travel.

{table(results)}

## Every figure

Images a second where nothing else is said, thousands of them for what is called host; seconds for first records and 16
images; milliseconds for decoding; MB for peaks.

| figure | median | least | greatest |
| --- | ---: | ---: | ---: |
{figures}
"""


def write_figures(folder: Path, results: Results) -> Record:
    """results.json, of which the pages are made."""
    values = {name: [round(value, 4) for value in row] for name, row in results.items()}
    record: Record = {"machine": describe_machine(), "versions": versions(), "figures": values}
    (folder / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def in_one_line(record: Record) -> str:
    """For the README: how many times as fast as the pipeline, end to end."""
    results = record["figures"]
    runs = {"DeiT-B": "DeiT-B: ours", "DeiT-Ti": "DeiT-Ti: ours", "DeiT-B in int8": "DeiT-B: ours, exported int8"}
    times = [
        f"{name} {median(ratios(results, run, f'{name.split()[0]}: pipeline')):.2f}×" for name, run in runs.items()
    ]
    peak = results["rows: peak at the many"][0] / median(results["rows: peak at 1,000"])
    processor = ", ".join(record["machine"].split(", ")[:2])
    return (
        f"End to end, against the pipeline of `transformers` at its best batch size ({processor}): {', '.join(times)}; "
        f"{results['rows: how many'][0]:,.0f} rows take {peak:.2f}× the memory of 1,000."
    )


def write_pages(folder: Path, record: Record) -> None:
    """results.md, and the line in the README."""
    text = page(record)
    (folder / "results.md").write_text(text, encoding="utf-8")
    readme = folder.parent / "README.md"
    before, start, rest = readme.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    readme.write_text(f"{before}{start}\n{in_one_line(record)}\n{end}{after}", encoding="utf-8")
    print(text)


if __name__ == "__main__":  # the pages anew, from the figures that are there
    here = Path(__file__).resolve().parent
    write_pages(here, json.loads((here / "results.json").read_bytes()))
