"""Runs from and to a store of each kind, beside one from and to a disk: the same records, at what speed?

    python benchmarks/stores.py [OBJECTS]

OBJECTS tiny pictures (5,000 unless told otherwise) lie on real servers on loopback: moto's, fake-gcs-server and Azurite
(scripts/azurite). From each they are listed; scored, to a result on the same store; scored with a kill in the middle,
and on from there; and scored while the store refuses a fifth of all requests. Every result must have the records of the
run on disk. Writes stores.md. Needs the extra `dev`; ten minutes.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from report import describe_machine

from deit_batch.input.open import open_source

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import real_stores  # noqa: E402 - the servers that the tests have
from faulty_store import FaultyStore, misbehaving  # noqa: E402

COMMAND = str(Path(sys.executable).parent / "deit-batch")
REFUSED = 0.2


@dataclass
class Figures:
    """Seconds of each step; how many requests were refused in the last one, and images that failed in any."""

    seconds: dict[str, float] = field(default_factory=dict)
    refusals: int = 0
    failed: int = 0
    equal: bool = True


def make_pictures(folder: Path, count: int) -> None:
    draw = np.random.default_rng(0)
    for number in range(count):
        picture = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (28, 28), dtype=np.uint8)).save(picture, "PNG")
        (folder / f"{number:06}.png").write_bytes(picture.getvalue())


@contextmanager
def timed(figures: Figures, step: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    figures.seconds[step] = time.monotonic() - start


def command(images: str, out: str) -> list[str]:
    chosen = ["--model", "demo", "--workers", "1", "--batch-size", "32", "--retries", "0", "--quiet"]
    return [COMMAND, "score", "--input", images, "--out", out, *chosen]


def predictions(lines: bytes) -> dict[str, object]:
    records = map(json.loads, lines.splitlines())
    return {Path(record["image"]).name: record.get("predictions") for record in records}


def killed_half_way(arguments: list[str], cache: Path, seconds: float) -> None:
    """When half of the time that the run took before has gone, if records are there."""
    process = subprocess.Popen(arguments)
    time.sleep(seconds / 2)
    while not any(path.stat().st_size for path in cache.rglob("*.partial")):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()


def measure(kind: str, proxy: FaultyStore, pictures: Path, cache: Path, expected: dict[str, object]) -> Figures:
    bucket, figures = real_stores.make_bucket(kind, proxy), Figures()
    for picture in pictures.iterdir():
        bucket.put(f"in/{picture.name}", picture.read_bytes())
    images = bucket.address("in/")

    def check(out: str) -> None:
        found = predictions(bucket.get(out))
        figures.failed += sum(value is None for value in found.values())
        figures.equal &= found == expected

    with timed(figures, "listed"):
        assert sum(1 for _ in open_source(images).references) == len(expected)
    with timed(figures, "scored"):
        subprocess.run(command(images, bucket.address("scored.jsonl")), check=True)
    check("scored.jsonl")
    again = command(images, bucket.address("killed.jsonl"))
    with timed(figures, "killed and gone on"):
        killed_half_way(again, cache, figures.seconds["scored"])
        subprocess.run(again, check=True)
    check("killed.jsonl")
    proxy.refused = REFUSED
    with timed(figures, "a fifth refused"):
        subprocess.run(command(images, bucket.address("refused.jsonl")), check=True)
    check("refused.jsonl")
    figures.refusals = proxy.refusals
    return figures


def as_page(count: int, on_disk: float, by_kind: dict[str, Figures]) -> str:
    steps = list(next(iter(by_kind.values())).seconds)
    rows = [
        f"| `{kind}://` | "
        + " | ".join(f"{figures.seconds[step]:.1f}" for step in steps)
        + f" | {figures.refusals:,} | {figures.failed} | {'yes' if figures.equal else '**no**'} |"
        for kind, figures in by_kind.items()
    ]
    return (
        f"""# Runs from and to stores

Written by `benchmarks/stores.py`: {describe_machine()}.

{count:,} pictures of 28×28, each an object, on real servers on loopback (moto's, fake-gcs-server, Azurite), scored
with the demo model, `--workers 1 --retries 0`, to a result on the same store. The same from and to a disk took
{on_disk:.1f} s. The servers share the machine with the run, so the times say what works, not how fast a store is.

| store | {" | ".join(f"{step}, s" for step in steps)} | requests refused | images failed | records as on disk |
| --- |{" ---: |" * (len(steps) + 2)} --- |
"""
        + "\n".join(rows)
        + "\n"
    )


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    with tempfile.TemporaryDirectory() as name:
        folder, by_kind = Path(name), {}
        pictures = folder / "pictures"
        pictures.mkdir()
        make_pictures(pictures, count)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        disk = Figures()
        with timed(disk, "scored"):
            subprocess.run(command(str(pictures), str(folder / "disk.jsonl")), check=True)
        expected = predictions((folder / "disk.jsonl").read_bytes())
        for kind in real_stores.KINDS:
            with real_stores.server(kind) as port, misbehaving(port, kind) as proxy:
                os.environ.update(real_stores.environment(kind, proxy))
                by_kind[kind] = measure(kind, proxy, pictures, folder / "cache", expected)
                print(f"stores: {kind}: {by_kind[kind]}", flush=True)
    (HERE / "stores.md").write_text(as_page(count, disk.seconds["scored"], by_kind), encoding="utf-8")


if __name__ == "__main__":
    main()
