"""A result in parts: each the records of a fixed range of the input, whichever machine wrote it and when.

    DIR.partial             grows; a dead run is continued from the parts in it
      part-000000.jsonl       the records of the first inputs, as many as a part has; each part appears whole
      part-000000.stamps      what each image's file was when it was read (input/stamps.py)
      run.json                what the run is (settings), and how it went
    DIR                     the same folder, under its own name when the run is finished, and then with
      manifest.json           its parts, in the order of the input, with their digests and counts
      stamps                  those of all parts, in their order
    DIR.lock                held while a run writes

Several processes on several machines write parts; only the one that holds the lock does anything else here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Self

from deit_batch.errors import MALFORMED, DeitBatchError, UsageError, in_words
from deit_batch.input import stamps
from deit_batch.io import Record, Reference, Tally, pretty
from deit_batch.output.resume import (
    Changed,
    errors_of_finished,
    reference_line,
    require_same_settings,
)
from deit_batch.output.run_report import read_report
from deit_batch.system.atomic import (
    behind_links,
    digest_of,
    make_missing_folder,
    mend_folder,
    publish_folder,
    standing,
    write_atomically,
    writing,
)
from deit_batch.system.lock import Lock

logger = logging.getLogger("deit_batch")

MANIFEST, REPORT, STAMPS = "manifest.json", "run.json", "stamps"
PART_SIZE = 256
"""Images in each part, unless it is told."""
NOTHING_YET = hashlib.sha256().hexdigest()
"""The digest of no reference: where an input begins."""


@dataclass(frozen=True, slots=True)
class Block:
    """The references of one part. `before`, `after`: the SHA-256 of all references of the input up to its first, and up
    to its last. A block fits behind another if that one's `after` is its `before`; so all are of one reading, or of
    readings that were the same."""

    number: int
    references: list[Reference]
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Part:
    """What a manifest says of a part. `output`: the size and digest of its file, as atomic.digest_of."""

    number: int
    scored: int
    failures: Mapping[str, int]
    output: Mapping[str, object]
    before: str
    after: str

    @classmethod
    def of(cls, block: Block, tally: Tally, data: bytes) -> Self:
        output = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return cls(block.number, tally.scored, dict(tally.failures), output, block.before, block.after)


def split_into_blocks(references: Iterable[Reference], size: int) -> Iterator[Block]:
    """Blocks of `size` references, the last of fewer."""
    references = iter(references)
    digest = hashlib.sha256()
    number, before = 0, NOTHING_YET
    while block := list(islice(references, size)):
        for reference in block:
            digest.update(reference_line(reference))
        after = digest.hexdigest()
        yield Block(number, block, before, after)
        number, before = number + 1, after


def part_name(number: int, format: str = "jsonl") -> str:
    return f"part-{number:06}.{format}"


def write_part(folder: Path, block: Block, records: Sequence[Record]) -> Part:
    """Writes the part of a block, whole or not at all, whoever else may be writing the same."""
    tally = Tally()
    for record in records:
        tally.count_error(record.error.type if record.error else None)
    data = b"".join(record.line() for record in records)
    # The stamps first: of a part that is there, it is known what its images were.
    with writing(folder):
        write_atomically(folder / part_name(block.number, "stamps"), stamps.join_stamps(records), sweeps=False)
        write_atomically(folder / part_name(block.number), data, sweeps=False)
    return Part.of(block, tally, data)


def in_order(parts: Mapping[int, Part], digest: str) -> list[Part]:
    """Raises DeitBatchError unless they are all parts of one reading of an input, whose references have this digest."""
    ordered = [parts[number] for number in sorted(parts)]
    end = NOTHING_YET
    for place, part in enumerate(ordered):
        if (part.number, part.before) != (place, end):
            raise UsageError(
                f"the input changed while it was being scored: {part_name(part.number)} does not fit behind what was "
                "read before it; run the same command with --fresh"
            )
        end = part.after
    if end != digest:
        raise DeitBatchError(f"{part_name(len(ordered))} is missing; run the same command again, it goes on")
    return ordered


class Folder:
    """The folder of a run, and its lock."""

    def __init__(self, out: Path, settings: Mapping[str, Any], *, fresh: bool) -> None:
        """Raises UsageError if what stands at `out` is not this run's and was not told to be replaced, OutputError if
        nothing can be written there."""
        self._out = out = behind_links(out)
        self.partial = out.with_name(f"{out.name}.partial")
        self._settings = settings
        make_missing_folder(out)
        with writing(out):
            self._lock = Lock(out.with_name(f"{out.name}.lock"), str(out))
        try:
            self._earlier = self._look_around(fresh)
        except DeitBatchError:
            self._lock.release()
            raise

    def _look_around(self, fresh: bool) -> dict[str, Any]:
        """The report of the run that is continued."""
        with writing(self._out):
            mend_folder(self._out, self.partial)
            found = [folder for folder in (self.partial, self._out) if os.path.lexists(folder)]
            reports = [read_report(folder / REPORT) for folder in found]
            for folder, report in zip(found, reports, strict=True):
                # --fresh takes a folder away, with all that is in it: never one that no run has made.
                if not isinstance(report.get("settings"), dict):
                    raise UsageError(f"{folder} is there and no {REPORT} in it says what it is; give another --out")
            if fresh:
                shutil.rmtree(self.partial, ignore_errors=True)
                return {}
            if found:
                require_same_settings(found[0], reports[0]["settings"], self._settings)
                return reports[0]
        return {}

    @property
    def complete(self) -> bool:
        """Whether an earlier run has finished all this already."""
        return self._earlier.get("status") == "finished" and not self.partial.exists()

    def finished(self, blocks: Iterable[Block]) -> list[Part]:
        """The parts of a complete folder. Raises UsageError unless they are what its run has left there, and of these
        blocks."""
        parts = read_manifest(self._out)
        changed = Changed(str(self._out), self._stamps())
        end = NOTHING_YET
        for block in blocks:
            end = block.after
            for reference in block.references:
                changed.look_at(reference)
        if end != (parts[-1].after if parts else NOTHING_YET):
            raise UsageError(
                f"{self._out} is finished, but its input has changed since; give another --out, or replace it with "
                "--fresh"
            )
        changed.warn("--fresh makes new ones")
        return parts

    def _stamps(self) -> Iterator[bytes]:
        """Of the finished parts."""
        path = self._out / STAMPS
        is_ours = path.exists() and digest_of(path) == self._earlier.get("stamps")
        return stamps.read_stamps(path) if is_ours else repeat(stamps.UNKNOWN)

    def begin(self) -> None:
        """Makes the folder, if there is none to go on with."""
        with writing(self._out):
            self.partial.mkdir(exist_ok=True)
            self._write_report("running", {})

    def left(self) -> set[int]:
        """The numbers of the parts that an earlier run has left."""
        return {int(path.stem.removeprefix("part-")) for path in self.partial.glob("part-*.jsonl")}

    def standing(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, Part | None]]:
        """Each block, as it is asked for, with the part of it that an earlier run has finished; None where there is
        none, or one that must be made anew, which is taken away. Raises UsageError if the input has changed."""
        numbers = self.left()
        for block in blocks:
            yield block, self._standing(block) if block.number in numbers else None
            numbers.discard(block.number)
        if numbers:
            raise UsageError(
                f"{self._out} can't be continued: the input has become shorter, and {part_name(min(numbers))} is of "
                "none of it; start over with --fresh"
            )

    def _standing(self, block: Block) -> Part | None:
        path = self.partial / part_name(block.number)
        data = path.read_bytes()
        beside = path.with_suffix(".stamps")
        noted = stamps.split_stamps(beside.read_bytes()) if beside.exists() else []
        pairs = zip(block.references, noted, strict=False)
        changed = [each.image for each, stamp in pairs if stamps.has_changed(each, stamp)]
        if len(noted) != len(block.references):
            changed = [block.references[0].image]
            logger.warning("of the images in %s it is not known what they were: it is made anew", path.name)
        elif changed:
            logger.warning("%s has changed since it was scored: its part is made anew", changed[0])
        lines = data.splitlines(keepends=True)
        errors = [] if changed else errors_of_finished(self._out, block.references, lines)
        again = self._earlier.get("status") == "gave up" and any(errors)
        if again or not len(errors) == len(lines) == len(block.references):
            path.unlink()
            return None
        tally = Tally()
        for error in errors:
            tally.count_error(error)
        return Part.of(block, tally, data)

    def finish(self, parts: Sequence[Part], report: Mapping[str, object], result: Path, format: str) -> None:
        """Makes `result`, the partial folder or one in it, appear under the name of the run, for what stood there."""
        with writing(self._out):
            self._join_stamps(parts, result / STAMPS)
            for path in self.partial.glob(".part-*"):  # of a writer that was killed
                path.unlink()
            digest = parts[-1].after if parts else NOTHING_YET
            report = {**report, "references_sha256": digest, "stamps": digest_of(result / STAMPS)}
            write_atomically(result / REPORT, pretty({"status": "finished", **report, "settings": self._settings}))
            write_atomically(result / MANIFEST, pretty(_manifest(parts, result, format)))
            publish_folder(result, self._out, replace=True)
        with standing(self._out):
            for path in self._out.glob("part-*.stamps"):  # until now, or a run that dies here would begin anew
                path.unlink()
            if self.partial.exists():  # if the result was in it
                shutil.rmtree(self.partial)

    def _join_stamps(self, parts: Sequence[Part], target: Path) -> None:
        with open(target, "wb") as file:
            for part in parts:
                file.write((self.partial / part_name(part.number, "stamps")).read_bytes())
            file.flush()
            os.fsync(file.fileno())

    def interrupt(self, report: Mapping[str, object], *, gave_up: bool) -> None:
        with writing(self._out):
            self._write_report("gave up" if gave_up else "interrupted", report)

    def _write_report(self, status: str, report: Mapping[str, object]) -> None:
        write_atomically(self.partial / REPORT, pretty({"status": status, **report, "settings": self._settings}))

    def close(self) -> None:
        self._lock.release()


def read_manifest(folder: Path) -> list[Part]:
    """The parts of a finished folder, in order. Raises UsageError if there is none, or they are not as it says."""
    manifest = read_report(folder / MANIFEST)
    if not manifest:
        raise UsageError(f"{folder} is no finished result in parts: there is no {MANIFEST} in it")
    try:
        parts = []
        for row in manifest["parts"]:
            name, part = row["name"], Part(**{key: value for key, value in row.items() if key != "name"})
            if digest_of(folder / name) != part.output:
                raise UsageError(f"{folder / name} is not what its run has left there; score it again, with --fresh")
            parts.append(part)
    except (*MALFORMED, OSError) as error:
        raise UsageError(f"{folder} is no finished result in parts: {MANIFEST}: {in_words(error)}") from error
    return parts


def _manifest(parts: Sequence[Part], folder: Path, format: str) -> dict[str, object]:
    """Digests are of the files as they are now: in another format than that in which they grew, they are others."""
    rows = []
    for part in parts:
        name = part_name(part.number, format)
        output = part.output if format == "jsonl" else digest_of(folder / name)
        rows.append({"name": name, **asdict(replace(part, output=output))})
    tally = tally_of(parts)
    return {"format": format, "inputs": tally.inputs, "failed": tally.failed, "parts": rows}


def tally_of(parts: Iterable[Part]) -> Tally:
    """Of all these."""
    tally = Tally()
    for part in parts:
        tally.scored += part.scored
        tally.failures += Counter(part.failures)
    return tally
