"""The results of shards, of `deit-batch score --shard I/N`, or the parts of a run with `--engine ray`, to what one run
would have left: the same records in the same order, and its report.

For the output it is a run like any other, of which each record is known beforehand: so it appears whole, in any format.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from deit_batch.errors import MALFORMED, InputError, UsageError, in_words
from deit_batch.io import EarlierResult, Failure, Record, Reference, Tally
from deit_batch.output.file_names import written_for
from deit_batch.output.formats import Columns, choose_format
from deit_batch.output.manifest import MANIFEST, REPORT, read_manifest, read_parts
from deit_batch.output.output import open_output
from deit_batch.output.place import place_at
from deit_batch.output.resume import Mode
from deit_batch.output.run_report import run_report
from deit_batch.output.staging import staged
from deit_batch.system.atomic import is_inside, require_not_read
from deit_batch.system.object_store import NoSuchObjectError, StoreError, is_stored, open_store, open_stream

BATCH = 1000
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ShardResult:
    """A shard's finished result. `report` is the one beside it."""

    path: str
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
    input. All of these may be on a store.

    Raises UsageError unless they are the finished results of all shards of one run, or of a run in parts; InputError if
    a store does not give them."""
    paths = [str(shard) for shard in shards]
    with _reading(paths[0]):
        if _is_folder(paths[0]):
            return _merge_folder(paths, out, format, mode)
        folder = paths[0].rpartition("/")[0]
        if place_at(folder).has(MANIFEST):
            raise UsageError(f"{paths[0]} is a part of {folder}; give that folder")
    parts = all_of_one_run([open_shard_result(path) for path in paths])
    read = [name for part in parts for name in (part.path, f"{part.path}.{REPORT}")]
    require_not_read("--out", out, written_for(out), read)
    settings = parts[0].settings
    with ExitStack() as stack:
        lines = [stack.enter_context(closing(_lines(part.path))) for part in parts]
        references = _in_order(lines, parts, settings["keep"])
        return _write(references, out, format, mode, settings, lambda tally: _report(parts, tally))


def _is_folder(path: str) -> bool:
    if not is_stored(path):
        return os.path.isdir(path)
    store, key = open_store(path)
    return key.endswith("/") or (store.version(key) is None and place_at(path).exists())


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise InputError(f"{path}: can't be read: {error}") from error


def _open(path: str) -> BinaryIO:
    return open_stream(path) if is_stored(path) else open(path, "rb")


def _lines(path: str) -> Generator[bytes, None, None]:
    with _reading(path), _open(path) as file:
        yield from file


def _merge_folder(paths: Sequence[str], out: str, format: str | None, mode: Mode) -> Tally:
    name, *others = paths
    if others:
        raise UsageError(f"{name} is a folder of parts, and merged alone")
    folder = place_at(name)
    if is_inside(out, str(folder)):
        raise UsageError(f"--out {out} lies in the folder that is merged, {folder}; give another")
    rows = read_manifest(folder)
    report = json.loads(folder.read(REPORT))
    settings = {name: value for name, value in report["settings"].items() if name != "part_size"}
    if settings["format"] != "jsonl":
        raise UsageError(f"{folder} is {settings['format']}; parts are merged from jsonl")

    def references() -> Iterator[Reference]:
        with closing(read_parts(folder, rows)) as parts:
            for part in parts:
                for line in part.splitlines():
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


def open_shard_result(path: str | Path) -> ShardResult:
    """Raises UsageError unless it is a shard's finished result, as its run has left it; InputError if a store does not
    give it."""
    path, report_path = str(path), f"{path}.run.json"
    try:
        with _open(report_path) as file:
            report = json.loads(file.read())
        status, settings = report["status"], dict(report["settings"])
        shard, format, output = settings.get("shard"), settings.get("format"), report.get("output")
    except (FileNotFoundError, NoSuchObjectError):
        growing = f"{path.rstrip('/')}.partial"
        if place_at(growing).has(REPORT):
            raise UsageError(
                f"{path}: its run has not finished: {growing} is there; run the same command again, it goes on"
            ) from None
        raise UsageError(
            f"{path}: there is no {os.path.basename(report_path)} beside it; a shard is merged with its report"
        ) from None
    except StoreError as error:
        raise InputError(f"{report_path}: can't be read: {error}") from error
    except (*MALFORMED, OSError) as error:
        raise UsageError(f"{report_path}: no report of a run: {in_words(error)}") from error
    if status != "finished":
        raise UsageError(f"{path}: its run has not finished ({status}); run the same command again, it goes on")
    if not shard:
        raise UsageError(f"{path} is no shard: it was scored without --shard I/N")
    if format != "jsonl":
        raise UsageError(f"{path} is {format}; shards are merged from .jsonl")
    if output != _digest_of(path):
        raise UsageError(f"{path} is not what its run has left there; score this shard again, with --fresh")
    return ShardResult(path, report)


def _digest_of(path: str) -> dict[str, object] | None:
    """As atomic.digest_of; None if there is no such file."""
    try:
        with _open(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type] # it is one that reads into
            return {"bytes": file.tell(), "sha256": sha256}
    except (FileNotFoundError, NoSuchObjectError):
        return None
    except StoreError as error:
        raise InputError(f"{path}: can't be read: {error}") from error


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
        paths = [part.path for part in parts if part.number == twice[0]]
        raise UsageError(f"shard {twice[0]}/{first.of} is there twice: {' and '.join(paths)}")
    missing = [f"{number}/{first.of}" for number in sorted(set(range(first.of)) - {part.number for part in parts})]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise UsageError(
            f"{len(parts)} of {first.of} shards are given; {', '.join(missing[:_SHOWN])}{more} are missing"
        )
    return sorted(parts, key=lambda part: part.number)


def _in_order(
    lines: Sequence[Iterator[bytes]], parts: Sequence[ShardResult], keep: Sequence[str]
) -> Iterator[Reference]:
    """Record by record in turn, as the input was dealt out. Raises UsageError if the shards' inputs were not the same:
    then one has ended too early."""
    place = 0
    while line := next(lines[place % len(lines)], b""):
        reference = _reference(json.loads(line), keep)
        if reference.index != place:
            raise UsageError(f"{parts[place % len(lines)].path}: has record {reference.index} where {place} should be")
        yield reference
        place += 1
    for rest, part in zip(lines, parts, strict=True):
        if next(rest, b""):
            ended = parts[place % len(lines)].path
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
        "shards": [part.path for part in parts],
        "versions": first["versions"],
    }
    return run_report(tally, first["counts"]["passed_over"], about)
