"""What becomes of ten times as many images where no model is in the way: listing, shards, output, resume and merging.

    python benchmarks/scale.py [ROWS] [--only WORD]

ROWS references (ten million unless told otherwise), and a tenth of them, go through each step in a process of its own,
with predictions that were made up. Writes scale.md; with --only, the lines of the steps in whose names the word is.
Needs the extras `ray` and `s3`, three kilobytes of disk a row, and an hour or two for ten million.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

from report import describe_machine

from deit_batch.input.open import Shard, open_source
from deit_batch.io import Prediction, Record, Reference
from deit_batch.output.formats import FORMATS, Columns
from deit_batch.output.manifest import require_all
from deit_batch.output.merge import merge
from deit_batch.output.output import Output, open_output
from deit_batch.output.part import Block, Part, split_into_blocks, write_part
from deit_batch.output.part_list import PartList
from deit_batch.output.parts import Folder

HERE = Path(__file__).resolve().parent
SHARDS = 8
BATCH = 128
PART = 256  # images in a part of --engine ray
MADE_UP: list[Prediction] = [
    {"label": f"a class of {number} words or so", "score": 0.1234567890123} for number in range(5)
]


def batches(folder: Path, shard: Shard | None = None) -> Iterator[list[Reference]]:
    references = open_source(str(folder / "rows.txt"), shard=shard).references
    return iter(lambda: list(islice(references, BATCH)), [])


def output(path: Path, shard: Shard | None = None) -> Output:
    settings: dict[str, object] = {"made up": True, "shard": shard, "keep": []}
    return open_output(
        str(path), FORMATS["jsonl"], settings=settings, columns=Columns(()), mode="continue", name=str(path)
    )


def scored(folder: Path, name: str, shard: Shard | None = None, most: int | None = None) -> None:
    """Without an end, if only `most` batches are written."""
    with closing(output(folder / name, shard)) as out:
        for batch in islice(out.remaining(batches(folder, shard)), most):
            out.write([Record.of(reference, MADE_UP) for reference in batch])
        counts = {
            "inputs": out.tally.inputs,
            "scored": out.tally.scored,
            "failed": 0,
            "failures": {},
            "passed_over": {},
        }
        report = {"counts": counts, "seconds": {}, "architecture": "", "machine": "", "versions": {}}
        if most is None:
            out.finish(report)
        else:
            out.interrupt(report, gave_up=False)


def listing(folder: Path, rows: int) -> None:
    assert sum(map(len, batches(folder))) == rows


def one_shard(folder: Path, rows: int) -> None:
    assert sum(map(len, batches(folder, (3, SHARDS)))) == len(range(3, rows, SHARDS))


def writing_half(folder: Path, rows: int) -> None:
    scored(folder, "whole.jsonl", most=rows // BATCH // 2)


def resuming(folder: Path, rows: int) -> None:
    """Up to the first batch that is not there."""
    with closing(output(folder / "whole.jsonl")) as out:
        next(out.remaining(batches(folder)))


def writing_the_rest(folder: Path, rows: int) -> None:
    scored(folder, "whole.jsonl")


def all_shards(folder: Path, rows: int) -> None:
    for number in range(SHARDS):
        scored(folder, f"part-{number}.jsonl", (number, SHARDS))


def merging(folder: Path, rows: int) -> None:
    merge([folder / f"part-{number}.jsonl" for number in range(SHARDS)], str(folder / "merged.jsonl"))


@contextmanager
def store(objects: int) -> Iterator[None]:
    """An S3 server, which this process then takes for Amazon's."""
    words = [sys.executable, str(HERE / "endless_store.py"), str(objects)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        os.environ["AWS_ENDPOINT_URL"] = server.stdout.readline().strip()
        os.environ |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
        yield
        server.kill()


def listing_a_store(folder: Path, rows: int) -> None:
    with store(rows):
        assert sum(1 for _ in open_source("s3://bucket/images/").references) == rows


def blocks(folder: Path) -> Iterator[Block]:
    return split_into_blocks(open_source(str(folder / "rows.txt")).references, PART)


def parts(folder: Path) -> Folder:
    return Folder(folder / "parts", {"made up": True}, fresh=False)


def part(folder: Folder, block: Block) -> Part:
    return write_part(folder.partial, block, [Record.of(reference, MADE_UP) for reference in block.references])


def half_of_the_parts(folder: Path, rows: int) -> None:
    with closing(parts(folder)) as result:
        result.begin()
        for block in islice(blocks(folder), rows // PART // 2):
            part(result, block)


def the_other_parts(folder: Path, rows: int) -> None:
    with closing(parts(folder)) as result:
        result.begin()
        found = PartList()
        for block, left in result.standing(blocks(folder)):
            found.add(left or part(result, block))
        require_all(found, block.after)
        result.finish(found, {}, "jsonl")


def driver_of_a_cluster(folder: Path, rows: int) -> None:
    """All but the driver is in other processes."""
    import made_up_cluster

    assert made_up_cluster.scored(folder / "rows.txt", folder / "on-ray", PART) == rows


STEPS: dict[str, Callable[[Path, int], None]] = {
    "a list, read": listing,
    f"one shard of {SHARDS}": one_shard,
    "half of the records, written": writing_half,
    "resumed: those checked": resuming,
    "resumed: the rest written, synced, digested": writing_the_rest,
    f"all {SHARDS} shards, written": all_shards,
    "merged": merging,
    "a folder of a store, listed": listing_a_store,
    f"half of the parts of {PART}, written": half_of_the_parts,
    "resumed: those checked, the rest of the parts and the manifest written": the_other_parts,
    f"a cluster's driver: parts of {PART} handed out, taken in, and the manifest written": driver_of_a_cluster,
}


def measured(step: str, folder: Path, rows: int) -> dict[str, float]:
    words = [sys.executable, __file__, "--step", step, str(folder), str(rows)]
    found: dict[str, float] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    print(f"scale: {rows:,} rows: {step}: {found['seconds']:.0f} s, {found['mebibytes']:.0f} MiB", flush=True)
    return found


def peak() -> float:
    """MiB of memory that this process has had at most; getrusage would count its parent's, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def of_rows(rows: int, steps: list[str]) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open(folder / "rows.txt", "w") as file:
            file.writelines(f"images/{number // 1000:07}/{number:010}.jpg\n" for number in range(rows))
        found = {step: measured(step, folder, rows) for step in steps}
        if (folder / "merged.jsonl").exists():
            assert filecmp.cmp(folder / "whole.jsonl", folder / "merged.jsonl", shallow=False)
        shutil.rmtree(folder)
        folder.mkdir()
    return found


def page(rows: int, lines: list[str]) -> str:
    return "\n".join(
        [
            "# Ten times as many rows",
            "",
            f"Written by `python benchmarks/scale.py {rows}`, on {describe_machine()}.",
            f"{rows // 10:,} references, then {rows:,}; records, made up, of some 400 bytes, a driver's of 200.",
            "Seconds are the processor's; linear cost is a ratio of 10.",
            "",
            f"| step | \u00b5s a row, of {rows:,} | seconds, ratio | MiB at most, of {rows // 10:,} | of {rows:,} |",
            "| --- | ---: | ---: | ---: | ---: |",
            *lines,
            "",
        ]
    )


def line(step: str, rows: int, few: dict[str, float], many: dict[str, float]) -> str:
    return (
        f"| {step} | {1e6 * many['seconds'] / rows:.1f} | {many['seconds'] / few['seconds']:.1f} "
        f"| {few['mebibytes']:.0f} | {many['mebibytes']:.0f} |"
    )


def main() -> None:
    if sys.argv[1:2] == ["--step"]:
        start = time.process_time()  # of the processor: what else the machine does must not count
        STEPS[sys.argv[2]](Path(sys.argv[3]), int(sys.argv[4]))
        print(json.dumps({"seconds": time.process_time() - start, "mebibytes": peak()}))
        return
    parser = ArgumentParser()
    parser.add_argument("rows", nargs="?", type=int, default=10_000_000)
    parser.add_argument("--only", default="")
    chosen = parser.parse_args()
    steps = [step for step in STEPS if chosen.only in step]
    few, many = (of_rows(rows, steps) for rows in (chosen.rows // 10, chosen.rows))
    lines = {text.split(" | ")[0][2:]: text for text in (HERE / "scale.md").read_text().splitlines()}
    lines |= {step: line(step, chosen.rows, few[step], many[step]) for step in steps}
    (HERE / "scale.md").write_text(
        page(chosen.rows, [lines[step] for step in STEPS if step in lines]), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
