"""The files of a run: results that grow beside the name the user gave, and the report that says what they are.

    preds.jsonl            appears whole, when the run is finished
    preds.jsonl.partial    grows, one record a line, whatever the final format; a dead run is continued from it
    preds.jsonl.lock       held while a run writes
    preds.jsonl.run.json   what the run is (settings), and when it is finished, how it went

A step that is cut short at any point leaves files from which the same command goes on:
the report is written before the result is renamed, and the partial file, while it exists, outranks a result.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from deit_batch import sinks
from deit_batch.errors import DeitBatchError, OutputError, UsageError
from deit_batch.io import Record, Reference, Tally, identity, json_line, json_value, rename_durably, write_atomically
from deit_batch.lock import Lock

Batch = list[Reference]


class Output(Protocol):
    tally: Tally
    complete: bool
    """Whether an earlier run has finished all this already."""

    def remaining(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches that are still to be scored."""

    def write(self, records: Sequence[Record]) -> None: ...

    def finish(self, report: Mapping[str, object]) -> None: ...

    def interrupt(self, report: Mapping[str, object], *, gave_up: bool) -> None: ...

    def close(self) -> None: ...


def open_output(out: str, format: str, *, settings: Mapping[str, object], keep: Sequence[str], fresh: bool) -> Output:
    """Raises UsageError if what stands at `out` is not this run's and was not told to be replaced, OutputError if
    nothing can be written there."""
    if out == "-":
        return _Stream(sys.stdout.buffer, format)
    target = Path(os.path.realpath(out))  # a link stays a link: what it points to is replaced
    if not target.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {Path(out).parent}")
    return _File(target, format, {**settings, "format": format}, keep, fresh)


class _Stream:
    """Records to stdout as they come; nothing to continue from."""

    complete = False

    def __init__(self, stream: BinaryIO, format: str) -> None:
        self.tally = Tally()
        self._stream = stream
        self._format = format

    def remaining(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return batches

    def write(self, records: Sequence[Record]) -> None:
        lines = []
        for record in records:
            values = record.as_dict()
            self.tally.count(values)
            lines.append(sinks.line(values, self._format))
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
        self, target: Path, format: str, settings: Mapping[str, object], keep: Sequence[str], fresh: bool
    ) -> None:
        self.tally = Tally()
        self._target = target
        self._partial = target.with_name(target.name + ".partial")
        self._report = target.with_name(target.name + ".run.json")
        self._format = format
        self._settings = settings
        self._keep = keep
        self._digest = hashlib.sha256()
        self._replaces: object = None
        with _writing(target):
            self._lock = Lock(target.with_name(target.name + ".lock"), str(target))
            try:
                self._earlier = self._previous()
                self.complete = self._look_around(fresh)
            except DeitBatchError:
                self._lock.release()
                raise

    def _previous(self) -> dict[str, Any]:
        try:
            value = json.loads(self._report.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _look_around(self, fresh: bool) -> bool:
        """Whether an earlier run has finished the job. Raises UsageError if what is here is not ours to touch."""
        there = _mark(self._target)
        if fresh:
            self._partial.unlink(missing_ok=True)
            self._replaces = there
        elif self._partial.exists() and self._partial.stat().st_size:
            self._require_same_settings()
            self._replaces = self._earlier.get("replaces")
        elif there is None or there == self._earlier.get("replaces"):
            self._replaces = there  # a run with --fresh was told to replace it, and died before it had a record
        else:
            self._require_same_settings()
            if self._earlier.get("output") != _digest_of(self._target):
                raise UsageError(
                    f"{self._target} is not what its run has left there; give another --out, or replace it with --fresh"
                )
            return True
        return False

    def _require_same_settings(self) -> None:
        """The same settings as the run that left files here; nothing is overwritten without being told to."""
        settings = self._earlier.get("settings")
        if not isinstance(settings, dict):
            raise UsageError(
                f"{self._target} is there and no report beside it says what it is; give another --out, or replace it "
                "with --fresh"
            )
        mine = json.loads(_pretty(self._settings))
        changes = [
            f"{name} was {_short(settings.get(name))}, is {_short(mine.get(name))}"
            for name in {**settings, **mine}
            if settings.get(name) != mine.get(name)
        ]
        if changes:
            raise UsageError(
                f"{self._target} is of another run ({'; '.join(changes)}); give another --out, or replace it "
                "with --fresh"
            )

    def remaining(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        if self.complete:
            self._check_complete(batches)
            return iter(())
        with _writing(self._target):
            if self._partial.exists():
                self._file = open(self._partial, "r+b")  # noqa: SIM115 - grows to the end of the run
                batches = self._verified(batches)
            # Before there is a partial file: one whose settings are not known could not be continued.
            self._write_report("running", {})
            if not self._partial.exists():
                self._file = open(self._partial, "x+b")  # noqa: SIM115
        return self._digested(batches)

    def _check_complete(self, batches: Iterator[Batch]) -> None:
        for _ in self._digested(batches):
            pass
        if self._digest.hexdigest() != self._earlier.get("references_sha256"):
            raise UsageError(
                f"{self._target} is finished, but its input has changed since; give another --out, or replace it with "
                "--fresh"
            )
        counts = self._earlier["counts"]
        self.tally = Tally(counts["scored"], Counter(counts["failures"]))

    def _verified(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Passes over the batches whose records are all there, and cuts off what comes after them. If the run gave up
        because too much failed, that starts with the first batch in which anything did."""
        again = self._earlier.get("status") == "gave up"
        for batch in batches:
            start = self._file.tell()
            records = [record for _ in batch if (record := self._read_record())]
            if len(records) < len(batch) or (again and any("error" in record for record in records)):
                self._file.seek(start)
                self._file.truncate()
                return chain([batch], batches)
            for reference, record in zip(batch, records, strict=True):
                self._require_same_input(reference, record)
                self.tally.count(record)
            self._add_to_digest(batch)
        start = self._file.tell()
        if self._read_record():
            raise UsageError(
                f"{self._partial} can't be continued: the input has changed. It ends now after {self.tally.inputs:,} "
                "images, but more have records; start over with --fresh"
            )
        self._file.seek(start)
        self._file.truncate()
        return batches

    def _read_record(self) -> dict[str, Any] | None:
        text = self._file.readline()
        try:
            record = json.loads(text) if text.endswith(b"\n") else None
        except ValueError:
            return None
        return record if isinstance(record, dict) and {"index", "image", "predictions"} <= record.keys() else None

    def _require_same_input(self, reference: Reference, record: Mapping[str, Any]) -> None:
        for name, value in _fixed_fields(reference).items():
            if record.get(name) != value:
                raise UsageError(
                    f"{self._partial} can't be continued: the input has changed. Record {reference.index} has {name} "
                    f"{_short(record.get(name))}, but the input now has {_short(value)} there; start over with --fresh"
                )

    def _digested(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._add_to_digest(batch)
            yield batch

    def _add_to_digest(self, batch: Batch) -> None:
        for reference in batch:
            self._digest.update(json_line(_fixed_fields(reference)))

    def write(self, records: Sequence[Record]) -> None:
        lines = []
        for record in records:
            values = record.as_dict()
            self.tally.count(values)
            lines.append(json_line(values))
        with _writing(self._target):
            self._file.write(b"".join(lines))
            self._file.flush()

    def finish(self, report: Mapping[str, object]) -> None:
        with _writing(self._target):
            os.fsync(self._file.fileno())
            self._file.close()
            result = self._partial
            if self._format != "jsonl":
                result = self._target.with_name(self._target.name + ".tmp")
                sinks.convert(self._partial, result, self._format, self._keep)
            digests = {"output": _digest_of(result), "references_sha256": self._digest.hexdigest()}
            self._write_report("finished", {**report, **digests})
            rename_durably(result, self._target)
            self._partial.unlink(missing_ok=True)

    def interrupt(self, report: Mapping[str, object], *, gave_up: bool) -> None:
        with _writing(self._target):
            os.fsync(self._file.fileno())
            self._write_report("gave up" if gave_up else "interrupted", report)

    def close(self) -> None:
        self._lock.release()

    def _write_report(self, status: str, report: Mapping[str, object]) -> None:
        values = {"status": status, **report, "replaces": self._replaces, "settings": self._settings}
        write_atomically(self._report, _pretty(values))


def _mark(path: Path) -> list[int] | None:
    """What tells a file from another that stands under its name later; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _digest_of(path: Path) -> dict[str, object]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _fixed_fields(reference: Reference) -> dict[str, object]:
    """The fields of a record that the input alone decides."""
    return {**identity(reference), **{name: json_value(value) for name, value in reference.keep.items()}}


def _pretty(value: object) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:20]}…{text[-50:]}"


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{target}: can't be written: {error.strerror or error}; what is scored so far is kept: make room or "
            "mend the folder, and run the same command again to continue"
        ) from error
