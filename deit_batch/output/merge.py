"""The results of shards, of `deit-batch score --shard I/N`, or the parts of a run with `--engine ray`, to what one run
would have left: the same records in the same order, and its report.

For the output it is a run like any other, of which each record is known beforehand: so it appears whole, in any format.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from deit_batch.errors import MALFORMED, UsageError, in_words
from deit_batch.io import EarlierResult, Failure, Record, Reference, Tally
from deit_batch.output.file import open_output
from deit_batch.output.formats import Columns, choose_format
from deit_batch.output.parts import MANIFEST, REPORT, part_name, read_manifest
from deit_batch.output.resume import Mode
from deit_batch.output.run_report import run_report
from deit_batch.output.staging import staged
from deit_batch.system.atomic import digest_of
from deit_batch.system.object_store import is_stored

BATCH = 1000
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ShardResult:
    """A shard's finished result. `report` is the one beside it."""

    path: Path
    report: dict[str, Any]

    @property
    def number(self) -> int:
        return int(self.report["settings"]["shard"][0])

    @property
    def of(self) -> int:
        return int(self.report["settings"]["shard"][1])

    @property
    def settings(self) -> dict[str, Any]:
        """Those that all shards of a run have in common."""
        return {**self.report["settings"], "shard": None}


def merge(shards: Sequence[str | Path], out: str, *, format: str | None = None, mode: Mode = "continue") -> Tally:
    """Writes all the records of the shards, or of the parts in one folder, to `out`, in the order of the whole
    input.

    Raises UsageError unless they are the finished results of all shards of one run, or of a run in parts."""
    for shard in shards:
        if is_stored(str(shard)):
            raise UsageError(f"{shard}: shards are merged from files; copy them here, with their reports")
    paths = [Path(shard) for shard in shards]
    if paths[0].is_dir():
        return _merge_folder(paths, out, format, mode)
    if (paths[0].parent / MANIFEST).exists():
        raise UsageError(f"{paths[0]} is a part of {paths[0].parent}; give that folder")
    parts = all_of_one_run([open_shard_result(path) for path in paths])
    if out != "-" and os.path.exists(out) and any(os.path.samefile(out, part.path) for part in parts):
        raise UsageError(f"--out {out} is one of the shards")
    settings = parts[0].settings
    with ExitStack() as stack:
        files = [stack.enter_context(open(part.path, "rb")) for part in parts]
        references = _in_order(files, parts, settings["keep"])
        return _write(references, out, format, mode, settings, lambda tally: _report(parts, tally))


def _merge_folder(paths: Sequence[Path], out: str, format: str | None, mode: Mode) -> Tally:
    folder, *others = paths
    if others:
        raise UsageError(f"{folder} is a folder of parts, and merged alone")
    rows = read_manifest(folder)
    report = json.loads((folder / REPORT).read_bytes())
    settings = {name: value for name, value in report["settings"].items() if name != "part_size"}
    if settings["format"] != "jsonl":
        raise UsageError(f"{folder} is {settings['format']}; parts are merged from jsonl")

    def references() -> Iterator[Reference]:
        for row in rows:
            with open(folder / part_name(row.number), "rb") as lines:
                for line in lines:
                    yield _reference(json.loads(line), settings["keep"])

    kept = {name: report[name] for name in report.keys() - {"status", "settings", "references_sha256"}}
    return _write(references(), out, format, mode, settings, lambda tally: {**kept, "parts": str(folder)})


def _write(
    references: Iterator[Reference],
    out: str,
    format: str | None,
    mode: Mode,
    settings: Mapping[str, Any],
    report: Callable[[Tally], dict[str, object]],
) -> Tally:
    keep = list(settings["keep"])
    chosen = choose_format(out, format, keep)
    settings = {name: value for name, value in settings.items() if name != "format"}
    columns = Columns(keep)
    with ExitStack() as stack:
        path = stack.enter_context(staged(out, fresh=mode == "fresh"))
        output = stack.enter_context(
            closing(open_output(path, chosen, settings=settings, columns=columns, mode=mode, name=out))
        )
        for batch in output.remaining(iter(lambda: list(islice(references, BATCH)), [])):
            output.write([_record(reference) for reference in batch])
        if not output.complete:
            output.finish(report(output.tally))
    return output.tally


def open_shard_result(path: Path) -> ShardResult:
    """Raises UsageError unless it is a shard's finished result, as its run has left it."""
    report_path = path.with_name(f"{path.name}.run.json")
    try:
        report = json.loads(report_path.read_bytes())
        status, settings = report["status"], dict(report["settings"])
        shard, format, output = settings.get("shard"), settings.get("format"), report.get("output")
    except FileNotFoundError:
        raise UsageError(
            f"{path}: there is no {report_path.name} beside it; a shard is merged with its report"
        ) from None
    except (*MALFORMED, OSError) as error:
        raise UsageError(f"{report_path}: no report of a run: {in_words(error)}") from error
    if status != "finished":
        raise UsageError(f"{path}: its run has not finished ({status}); run the same command again, it goes on")
    if not shard:
        raise UsageError(f"{path} is no shard: it was scored without --shard I/N")
    if format != "jsonl":
        raise UsageError(f"{path} is {format}; shards are merged from .jsonl")
    if not path.exists() or output != digest_of(path):
        raise UsageError(f"{path} is not what its run has left there; score this shard again, with --fresh")
    return ShardResult(path, report)


def all_of_one_run(parts: Sequence[ShardResult]) -> list[ShardResult]:
    """In the order of their numbers. Raises UsageError if they differ in anything but that, or are not all."""
    first = parts[0]
    for part in parts[1:]:
        names = sorted(first.settings.keys() | part.settings.keys())
        differing = [name for name in names if first.settings.get(name) != part.settings.get(name)]
        if differing:
            raise UsageError(f"{first.path} and {part.path} are not of one run: {', '.join(differing)} differ")
        if part.report.get("input_sha256") != first.report.get("input_sha256"):
            raise UsageError(
                f"{first.path} and {part.path} are not of one run: the input changed between them; score the older one "
                "again, with --fresh"
            )
        if part.of != first.of:
            raise UsageError(f"{first.path} is one of {first.of} shards, {part.path} one of {part.of}")
    twice = [number for number, count in Counter(part.number for part in parts).items() if count > 1]
    if twice:
        paths = [str(part.path) for part in parts if part.number == twice[0]]
        raise UsageError(f"shard {twice[0]}/{first.of} is there twice: {' and '.join(paths)}")
    missing = [f"{number}/{first.of}" for number in sorted(set(range(first.of)) - {part.number for part in parts})]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise UsageError(
            f"{len(parts)} of {first.of} shards are given; {', '.join(missing[:_SHOWN])}{more} are missing"
        )
    return sorted(parts, key=lambda part: part.number)


def _in_order(files: Sequence[BinaryIO], parts: Sequence[ShardResult], keep: Sequence[str]) -> Iterator[Reference]:
    """Record by record in turn, as the input was dealt out. Raises UsageError if the shards' inputs were not the same:
    then one has ended too early."""
    place = 0
    while line := files[place % len(files)].readline():
        reference = _reference(json.loads(line), keep)
        if reference.index != place:
            raise UsageError(f"{parts[place % len(files)].path}: has record {reference.index} where {place} should be")
        yield reference
        place += 1
    for file, part in zip(files, parts, strict=True):
        if file.readline():
            ended = parts[place % len(files)].path
            raise UsageError(f"{part.path} goes on after {ended} has ended: the input changed between their runs")


def _reference(record: dict[str, Any], keep: Sequence[str]) -> Reference:
    """What the record is of, with what was found in it: predictions, or a failure for where it is."""
    image = record["image"]
    if "image_bytes" in record:
        image = os.fsdecode(base64.b64decode(record["image_bytes"]))
    return Reference(
        record["index"],
        image,
        Failure(**record["error"]) if "error" in record else b"",
        {name: record[name] for name in keep if name in record},
        record.get("image_sha256"),
        record.get("image_id"),
        EarlierResult(record["predictions"]),
    )


def _record(reference: Reference) -> Record:
    if isinstance(reference.location, Failure):
        return Record.of(reference, reference.location)
    return Record.of(reference, reference.earlier.predictions if reference.earlier else [])


def _report(parts: Sequence[ShardResult], tally: Tally) -> dict[str, object]:
    """What a run's report says, as far as it is true of all its shards; seconds are the sum of theirs."""
    first = parts[0].report
    seconds: Counter[str] = Counter()
    for part in parts:
        seconds.update(part.report["seconds"])
    about = {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "architecture": first["architecture"],
        "machine": sorted({part.report["machine"] for part in parts}),
        "shards": [str(part.path) for part in parts],
        "versions": first["versions"],
    }
    return run_report(tally, first["counts"]["passed_over"], about)
