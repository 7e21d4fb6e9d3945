"""The files of a run: results that grow beside the name the user gave, and the report that says what they are.

    preds.jsonl            appears whole, when the run is finished
    preds.jsonl.partial    grows, one record a line, whatever the final format; a dead run is continued from it
    preds.jsonl.lock       held while a run writes
    preds.jsonl.run.json   what the run is (settings), and when it is finished, how it went
    preds.jsonl.stamps     what each image's file was when it was read (input/stamps.py); .partial.stamps, while it
    grows preds.jsonl.known      with --incremental, what is known of each image (incremental.py)

    features.npy.rows.jsonl   beside an array: the record of each of its rows; there before the array is

A step that is cut short at any point leaves files from which the same command goes on:
the report is written before the result is renamed, and the partial file, while it exists, outranks a result.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypeAlias

from deit_batch.errors import DeitBatchError, OutputError, UsageError
from deit_batch.input import stamps
from deit_batch.io import Earlier, Record, Reference, Tally, json_line, pretty
from deit_batch.output import formats
from deit_batch.output.formats import Columns
from deit_batch.output.resume import (
    Changed,
    has_failed,
    parse_record,
    reference_line,
    require_same_input,
    require_same_settings,
)
from deit_batch.system.atomic import digest_of, rename_durably, write_atomically, writing
from deit_batch.system.lock import Lock

logger = logging.getLogger("deit_batch")

Batch = list[Reference]
Mode: TypeAlias = Literal["continue", "fresh", "incremental", "retry-failed"]
"""What to do about what an earlier run has left: go on with it, or leave it be if it is finished; throw it away; make
it anew out of what is known; or only score again what failed in it."""


class Output(Protocol):
    tally: Tally
    complete: bool
    """Whether an earlier run has finished all this already."""

    def recall(self, references: Iterable[Reference]) -> Iterable[Reference]:
        """The references, with what the run whose failures are tried again has found in the others."""

    def remaining(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches that are still to be scored."""

    def write(self, records: Sequence[Record]) -> None: ...

    def finish(self, report: Mapping[str, object]) -> None: ...

    def interrupt(self, report: Mapping[str, object], *, gave_up: bool) -> None: ...

    def close(self) -> None: ...


def open_output(
    out: str, format: str, *, settings: Mapping[str, object], columns: Columns, mode: Mode, name: str
) -> Output:
    """`name` is what messages call it.

    Raises UsageError if what stands at `out` is not this run's and was not told to be replaced, OutputError if
    nothing can be written there."""
    if out == "-":
        return _Stream(sys.stdout.buffer, format)
    if mode == "retry-failed" and format != "jsonl":
        raise UsageError(f"--retry-failed can't read {format} files back, only jsonl; --incremental works with all")
    target = Path(os.path.realpath(out))  # a link stays a link: what it points to is replaced
    if not target.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {Path(out).parent}")
    return _File(target, format, {**settings, "format": format}, columns, mode, name)


class _Stream:
    """Records to stdout as they come; nothing to continue from."""

    complete = False

    def __init__(self, stream: BinaryIO, format: str) -> None:
        self.tally = Tally()
        self._stream = stream
        self._format = format

    def recall(self, references: Iterable[Reference]) -> Iterable[Reference]:
        return references

    def remaining(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return batches

    def write(self, records: Sequence[Record]) -> None:
        lines = []
        for record in records:
            values = record.as_dict()
            self.tally.count(values)
            lines.append(formats.line(values, self._format))
        try:
            self._stream.write(b"".join(lines))
            self._stream.flush()
        except OSError as error:
            # What is left in Python's buffer would fail once more, at the very end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise OutputError(f"stdout: can't be written: {error.strerror}") from error

    def finish(self, report: Mapping[str, object]) -> None:
        pass

    def interrupt(self, report: Mapping[str, object], *, gave_up: bool) -> None:
        pass

    def close(self) -> None:
        pass


class _File:
    def __init__(
        self, target: Path, format: str, settings: Mapping[str, object], columns: Columns, mode: Mode, name: str
    ) -> None:
        self.tally = Tally()
        self._target = target
        self._name = name
        self._partial = self._beside("partial")
        self._report = self._beside("run.json")
        self._stamps = self._beside("stamps")
        self._partial_stamps = self._beside("partial.stamps")
        # An incremental run knows more than that of each image (incremental.py).
        self._keeps_stamps = not settings.get("incremental")
        self._read_files = False
        self._rows = self._beside("rows.jsonl") if format == "npy" else None
        for path in filter(None, (target, self._rows)):
            if path.is_dir():
                raise UsageError(f"--out {name}: {path} is a folder; give the name of a file")
        self._format = format
        self._settings = settings
        self._columns = columns
        self._digest = hashlib.sha256()
        self._replaces: object = None
        self._retries = False
        with writing(target):
            self._lock = Lock(self._beside("lock"), name)
            try:
                self._earlier = self._previous()
                self.complete = self._look_around(mode)
            except DeitBatchError:
                self._lock.release()
                raise

    def _beside(self, what: str) -> Path:
        return self._target.with_name(f"{self._target.name}.{what}")

    def _previous(self) -> dict[str, Any]:
        try:
            value = json.loads(self._report.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _look_around(self, mode: Mode) -> bool:
        """Whether an earlier run has finished the job. Raises UsageError if what is here is not ours to touch."""
        if mode != "fresh" and self._partial.exists() and self._partial.stat().st_size and not self._is_known(mode):
            self._require_same_settings()
            self._replaces = self._earlier.get("replaces")
            self._retries = self._earlier.get("retries", False)
            if mode == "retry-failed" and not self._retries:
                logger.info("an unfinished run is finished first; then this command tries its failures again")
            return False
        complete = self._look_at_target(mode)
        if complete or self._retries:
            self._save_stamps()
        self._partial.unlink(missing_ok=True)
        self._partial_stamps.unlink(missing_ok=True)
        return complete

    def _save_stamps(self) -> None:
        """Of a run that died between its last two steps: the result is there, its stamps not yet by their name."""
        if self._partial.exists() or not self._partial_stamps.exists():
            return
        if digest_of(self._partial_stamps) == self._earlier.get("stamps"):
            rename_durably(self._partial_stamps, self._stamps)

    def _target_stamps(self) -> Iterator[bytes] | None:
        """Of the result that stands; None if they are not known."""
        if "stamps" not in self._earlier:
            return None
        if self._earlier["stamps"] is None:
            return repeat(stamps.NONE)
        if not self._stamps.exists() or digest_of(self._stamps) != self._earlier["stamps"]:
            return None
        return stamps.read_all(self._stamps)

    def _is_known(self, mode: Mode) -> bool:
        """Whether what the partial file holds is known anyway."""
        return mode == "incremental" and (self._earlier.get("settings") or {}).get("incremental") is True

    def _look_at_target(self, mode: Mode) -> bool:
        there = self._replaces = _mark(self._target)
        if mode == "fresh" or there is None:
            return False
        if there == self._earlier.get("replaces"):  # a run was told to replace it, and died before it had a record
            self._retries = self._earlier.get("retries", False)
            return False
        if mode == "incremental":
            self._require_own_result()
            return False
        self._require_same_settings()
        self._require_own_result()
        self._retries = mode == "retry-failed" and self._earlier["counts"]["failed"] > 0
        return not self._retries

    def _require_own_result(self) -> None:
        for name, path, shown in (
            ("output", self._target, self._name),
            ("rows", self._rows, f"{self._name}.rows.jsonl"),
        ):
            if path and not (path.exists() and self._earlier.get(name) == digest_of(path)):
                raise UsageError(
                    f"{shown} is not what its run has left there; give another --out, or replace it with --fresh"
                )

    def _require_same_settings(self) -> None:
        """The same settings as the run that left files here; nothing is overwritten without being told to."""
        settings = self._earlier.get("settings")
        if not isinstance(settings, dict):
            raise UsageError(
                f"{self._name} is there and no report beside it says what it is; give another --out, or replace it "
                "with --fresh"
            )
        require_same_settings(self._name, settings, self._settings)

    def recall(self, references: Iterable[Reference]) -> Iterable[Reference]:
        return self._recalled(references) if self._retries else references

    def _recalled(self, references: Iterable[Reference]) -> Iterator[Reference]:
        changed = Changed(self._name, self._target_stamps())
        with open(self._target, "rb") as results:
            for reference in references:
                record = parse_record(results.readline()) or {}
                require_same_input(self._name, reference, record)
                stands = not has_failed(record)
                stamp = changed.look_at(reference, stands=stands)
                yield replace(reference, earlier=Earlier(record["predictions"], stamp=stamp) if stands else None)
            if results.readline():
                raise UsageError(f"{self._name}: its input has become shorter since; start over with --fresh")
        changed.warn("--fresh or --incremental makes new ones")

    def remaining(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        if self.complete:
            self._check_complete(batches)
            return iter(())
        with writing(self._target):
            goes_on = self._partial.exists()
            if goes_on:
                self._open("r+b")
                batches = self._verified(batches)
            # Before there is a partial file: one whose settings are not known could not be continued.
            self._write_report("running", {})
            if not goes_on:
                self._open("x+b")
        return self._digested(batches)

    def _open(self, how: str) -> None:
        """Both grow to the end of the run."""
        self._file = open(self._partial, how)  # noqa: SIM115
        self._growing_stamps = open(self._partial_stamps, "a+b")  # noqa: SIM115
        self._growing_stamps.seek(0)

    def _check_complete(self, batches: Iterator[Batch]) -> None:
        changed = Changed(self._name, self._target_stamps())
        for batch in self._digested(batches):
            for reference in batch:
                changed.look_at(reference)
        if self._digest.hexdigest() != self._earlier.get("references_sha256"):
            raise UsageError(
                f"{self._name} is finished, but its input has changed since; give another --out, or replace it with "
                "--fresh"
            )
        changed.warn("--fresh or --incremental makes new ones")
        counts = self._earlier["counts"]
        self.tally = Tally(counts["scored"], Counter(counts["failures"]))

    def _verified(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Passes over the batches whose records are all there, and cuts off what comes after them: the first batch with
        a file that is not what it was when it was read; or, if the run gave up because too much failed, the first in
        which anything did."""
        again = self._earlier.get("status") == "gave up"
        for batch in batches:
            start = self._file.tell()
            records = [record for _ in batch if (record := parse_record(self._file.readline()))]
            for reference, record in zip(batch, records, strict=False):
                require_same_input(self._name, reference, record)
            is_whole = len(records) == len(batch) and not (again and any(map(has_failed, records)))
            if not is_whole or not self._are_unchanged(batch):
                self._cut_off(start)
                return chain([batch], batches)
            for record in records:
                self.tally.count(record)
            self._add_to_digest(batch)
        start = self._file.tell()
        if parse_record(self._file.readline()):
            raise UsageError(
                f"{self._name} can't be continued: the input has changed. It ends now after {self.tally.inputs:,} "
                "images, but more have records; start over with --fresh"
            )
        self._cut_off(start)
        return batches

    def _are_unchanged(self, batch: Batch) -> bool:
        if not self._keeps_stamps:
            return True
        noted = stamps.cut(self._growing_stamps.read(len(batch) * stamps.WIDTH))
        if len(noted) < len(batch):
            logger.warning("of %s it is not known what it was when it was scored: going on from there", batch[0].image)
            return False
        changed = [each.image for each, stamp in zip(batch, noted, strict=True) if stamps.has_changed(each, stamp)]
        if changed:
            logger.warning("%s has changed since it was scored: going on from there", changed[0])
        self._read_files |= any(stamp != stamps.NONE for stamp in noted)
        return not changed

    def _cut_off(self, start: int) -> None:
        """What stands behind the records that are counted, which end at this byte."""
        self._file.seek(start)
        self._file.truncate()
        self._growing_stamps.truncate(self.tally.inputs * stamps.WIDTH)

    def _digested(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._add_to_digest(batch)
            yield batch

    def _add_to_digest(self, batch: Batch) -> None:
        for reference in batch:
            self._digest.update(reference_line(reference))

    def write(self, records: Sequence[Record]) -> None:
        lines = []
        for record in records:
            values = record.as_dict()
            self.tally.count(values)
            lines.append(json_line(values))
        noted = stamps.of_records(records) if self._keeps_stamps else b""
        self._read_files |= noted.strip(b"\0") != b""
        with writing(self._target):
            self._growing_stamps.write(noted)
            self._growing_stamps.flush()  # first: a record without a stamp would be scored again
            self._file.write(b"".join(lines))
            self._file.flush()

    def finish(self, report: Mapping[str, object]) -> None:
        with writing(self._target):
            self._sync()
            self._file.close()
            self._growing_stamps.close()
            result = self._partial
            if self._format != "jsonl":
                result = self._beside("tmp")
                formats.convert(self._partial, result, self._format, self._columns)
            digests: dict[str, object] = {
                "output": digest_of(result),
                "references_sha256": self._digest.hexdigest(),
                "stamps": digest_of(self._partial_stamps) if self._read_files else None,
            }
            if self._rows:
                rows = self._beside("rows.tmp")
                formats.convert(self._partial, rows, "rows", self._columns)
                digests["rows"] = digest_of(rows)
                rename_durably(rows, self._rows)
            self._write_report("finished", {**report, **digests})
            rename_durably(result, self._target)
            self._partial.unlink(missing_ok=True)
            # Last, for without a partial file these are the stamps of the result, under either name (_save_stamps).
            if self._read_files:
                rename_durably(self._partial_stamps, self._stamps)
            for path in (self._partial_stamps, *(() if self._read_files else (self._stamps,))):
                path.unlink(missing_ok=True)

    def _sync(self) -> None:
        for file in (self._growing_stamps, self._file):
            os.fsync(file.fileno())

    def interrupt(self, report: Mapping[str, object], *, gave_up: bool) -> None:
        with writing(self._target):
            self._sync()
            self._write_report("gave up" if gave_up else "interrupted", report)

    def close(self) -> None:
        self._lock.release()

    def _write_report(self, status: str, report: Mapping[str, object]) -> None:
        going_on = {"replaces": self._replaces, "retries": self._retries}
        values = {"status": status, **report, **going_on, "settings": self._settings}
        write_atomically(self._report, pretty(values))


def _mark(path: Path) -> list[int] | None:
    """What tells a file from another that stands under its name later; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]
