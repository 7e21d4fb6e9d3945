"""The files of a run: results that grow beside the name the user gave, and the report that says what they are.

    preds.jsonl            appears whole, when the run is finished
    preds.jsonl.partial    grows, one record a line, whatever the final format; a dead run is continued from it
    preds.jsonl.lock       held while a run writes
    preds.jsonl.run.json   what the run is (settings), and when it is finished, how it went
    preds.jsonl.stamps     what each image's file was when it was read (input/stamps.py)
    preds.jsonl.partial.stamps   the same, while it grows
    preds.jsonl.known      with --incremental, what is known of each image (incremental.py)

    features.npy.rows.jsonl   beside an array: the record of each of its rows; there before the array is

A step that is cut short at any point leaves files from which the same command goes on:
the report is written before the result is renamed, and the partial file, while it exists, outranks a result.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from deit_batch.errors import UsageError
from deit_batch.input import stamps
from deit_batch.io import EarlierResult, Record, Reference, Tally, pretty
from deit_batch.output import formats
from deit_batch.output.file_names import Files
from deit_batch.output.formats import Columns, Format
from deit_batch.output.growing import Growing
from deit_batch.output.read import read_records
from deit_batch.output.resume import (
    Changed,
    Mode,
    choose_action,
    errors_of_finished,
    has_failed,
    holds_records,
    parse_record,
    reference_line,
    require_ours,
    require_same_input,
)
from deit_batch.system.atomic import (
    beginning,
    digest_of,
    rename_durably,
    standing,
    sweep_files,
    temporary_file,
    write_atomically,
    writing,
)
from deit_batch.system.lock import Lock

logger = logging.getLogger("deit_batch")


class File:
    """Does what `choose_action` decides."""

    def __init__(
        self,
        files: Files,
        lock: Lock,
        format: Format,
        settings: Mapping[str, object],
        columns: Columns,
        mode: Mode,
        name: str,
        remedies: str,
    ) -> None:
        for path in (files.result, files.rows, files.report):
            sweep_files(path)
        require_ours(files.partial, holds_records)
        existing = files.existing()
        if "settings" not in existing.report:
            require_ours(files.stamps, stamps.are_stamps)
        self.tally = Tally()
        self._files, self._lock, self._name, self._remedies = files, lock, name, remedies
        self._format, self._settings, self._columns = format, settings, columns
        self._earlier = existing.report
        is_old = existing.result is not None and existing.result == existing.report.get("replaces")
        self._of_result = existing.report.get("replaced", {}) if is_old else existing.report
        """What the report says of the result that stands: of the one before, if a run died that was to replace it."""
        self._digest = hashlib.sha256()
        self._requires_current = mode in ("require-current", "retry-changed")
        self._action = choose_action(existing, settings, mode, name)
        if self._action.checks_result:
            self._require_own_result()
        if mode == "retry-failed" and self._action.kind == "continue" and not self._action.retries:
            logger.info("an unfinished run is finished first; then this command tries its failures again")
        if self._action.kind != "continue":
            self._tidy()

    @property
    def complete(self) -> bool:
        return self._action.kind == "nothing"

    def _require_own_result(self) -> None:
        for field, path in zip(("output", "rows"), self._files.results, strict=False):
            if not (path.exists() and self._of_result.get(field) == digest_of(path)):
                shown = f"{self._name}{path.name.removeprefix(self._files.result.name)}"
                raise UsageError(
                    f"{shown} is not what its run has left there; give another --out, or replace it with --fresh"
                )

    def _tidy(self) -> None:
        """Takes away what a run has left that is not continued. If one died between its last two steps, its result is
        there, and its stamps are not yet under their name."""
        files = self._files
        is_without_records = files.partial_stamps.exists() and not files.partial.exists()
        if is_without_records and digest_of(files.partial_stamps) == self._of_result.get("stamps"):
            rename_durably(files.partial_stamps, files.stamps)
        files.partial.unlink(missing_ok=True)
        files.partial_stamps.unlink(missing_ok=True)

    # --- what is known already ----------------------------------------------------------------------------------------

    def plain_report(self) -> Mapping[str, Any]:
        report = self._earlier
        is_plain = report.get("status") == "finished" and not (report.get("settings") or {}).get("incremental")
        return report if is_plain and self._action.checks_result else {}

    def records_with_stamps(self) -> Iterator[tuple[Mapping[str, Any], bytes]]:
        return zip(read_records(self._files.result), self._stamps_of_result(), strict=False)

    def recall(self, references: Iterable[Reference]) -> Iterable[Reference]:
        return self._with_earlier_results(references) if self._action.retries else references

    def _with_earlier_results(self, references: Iterable[Reference]) -> Iterator[Reference]:
        changed = Changed(self._name, self._stamps_of_result())
        with open(self._files.result, "rb") as results:
            for reference in references:
                record = parse_record(results.readline())
                if record is None:  # the file is what its run has left there: this is its end
                    raise UsageError(f"{self._name}: its input has become longer since; start over with --fresh")
                require_same_input(self._name, reference, record)
                stands, before = not has_failed(record), changed.all
                stamp = changed.look_at(reference, stands=stands)
                stands = stands and not (self._requires_current and changed.all > before)
                yield replace(reference, earlier=EarlierResult(record["predictions"], stamp=stamp) if stands else None)
            if results.readline():
                raise UsageError(f"{self._name}: its input has become shorter since; start over with --fresh")
        if not self._requires_current:
            changed.warn(f"{self._remedies} makes new ones")

    def _stamps_of_result(self) -> Iterator[bytes]:
        """Of each record of the result that stands."""
        path, digest = self._files.stamps, self._of_result.get("stamps", "unknown")
        if digest is None:
            return repeat(stamps.NONE)
        return stamps.read_stamps(path) if path.exists() and digest_of(path) == digest else repeat(stamps.UNKNOWN)

    def remaining(self, batches: Iterator[list[Reference]]) -> Iterator[list[Reference]]:
        if self.complete:
            self._check_complete(batches)
            return iter(())
        goes_on = self._files.partial.exists()
        keeps_stamps = not self._settings.get("incremental")  # incremental.py knows more than that of each image
        with beginning(self._files.result):
            if goes_on:
                self._growing = Growing(self._files, keeps_stamps=keeps_stamps, goes_on=True)
                batches = self._after_finished_records(batches)
            # Before there is a partial file: one whose settings are not known could not be continued.
            self._write_report("running", {})
            if not goes_on:
                self._growing = Growing(self._files, keeps_stamps=keeps_stamps, goes_on=False)
        return self._add_each_to_digest(batches)

    def _check_complete(self, batches: Iterator[list[Reference]]) -> None:
        changed = Changed(self._name, self._stamps_of_result())
        for batch in self._add_each_to_digest(batches):
            for reference in batch:
                changed.look_at(reference)
        if self._digest.hexdigest() != self._earlier.get("references_sha256"):
            raise UsageError(
                f"{self._name} is finished, but its input has changed since; give another --out, or replace it with "
                f"{self._remedies}"
            )
        if self._requires_current:
            changed.require_none()
        changed.warn(f"{self._remedies} makes new ones")
        counts = self._earlier["counts"]
        self.tally = Tally(counts["scored"], Counter(counts["failures"]))

    def _after_finished_records(self, batches: Iterator[list[Reference]]) -> Iterator[list[Reference]]:
        """Passes over the batches whose records are all there, and cuts off what comes after them: the first batch with
        a file that is not what it was when it was read; or, if the run gave up because too much failed, the first in
        which anything did."""
        again = self._earlier.get("status") == "gave up"
        for batch in batches:
            start = self._growing.tell()
            lines, noted = self._growing.read(len(batch))
            errors = errors_of_finished(self._name, batch, lines)
            is_whole = len(errors) == len(batch) and not (again and any(errors))
            if not is_whole or not _are_unchanged(batch, noted):
                self._growing.cut_off(start, self.tally.inputs)
                return chain([batch], batches)
            for error in errors:
                self.tally.count_error(error)
            self._add_to_digest(batch)
        start = self._growing.tell()
        if any(map(parse_record, self._growing.read(1)[0])):
            raise UsageError(
                f"{self._name} can't be continued: the input has changed. It ends now after {self.tally.inputs:,} "
                "images, but more have records; start over with --fresh"
            )
        self._growing.cut_off(start, self.tally.inputs)
        return batches

    def _add_each_to_digest(self, batches: Iterator[list[Reference]]) -> Iterator[list[Reference]]:
        for batch in batches:
            self._add_to_digest(batch)
            yield batch

    def _add_to_digest(self, batch: list[Reference]) -> None:
        self._digest.update(b"".join(map(reference_line, batch)))

    # --- what is found out --------------------------------------------------------------------------------------------

    def write(self, records: Sequence[Record]) -> None:
        for record in records:
            self.tally.count_error(record.error.type if record.error else None)
        with writing(self._files.result):
            self._growing.append(b"".join(record.line() for record in records), stamps.join_stamps(records))

    def finish(self, report: Mapping[str, object]) -> None:
        files, read_files = self._files, self._growing.read_files
        with writing(files.result), ExitStack() as stack:
            self._growing.sync()
            self._growing.close()
            write = self._format.write
            result = files.partial
            if write:
                result = self._converted(write, stack.enter_context(temporary_file(files.result)))
            digests: dict[str, object] = {
                "output": digest_of(result),
                "references_sha256": self._digest.hexdigest(),
                "stamps": digest_of(files.partial_stamps) if read_files else None,
            }
            if files.has_rows:
                rows = self._converted(formats.write_rows, stack.enter_context(temporary_file(files.rows)))
                digests["rows"] = digest_of(rows)
                rename_durably(rows, files.rows)
            self._write_report("finished", {**report, **digests})
            rename_durably(result, files.result)
        with standing(files.result):
            files.partial.unlink(missing_ok=True)
            # Last, for without a partial file these are the stamps of the result, under either name (_tidy).
            if read_files:
                rename_durably(files.partial_stamps, files.stamps)
            else:
                files.partial_stamps.unlink()
                files.stamps.unlink(missing_ok=True)

    def _converted(self, write: formats.Write, target: Path) -> Path:
        formats.convert(self._files.partial, target, write, self._columns)
        return target

    def interrupt(self, report: Mapping[str, object], *, gave_up: bool) -> None:
        with writing(self._files.result):
            self._growing.sync()
            self._write_report("gave up" if gave_up else "interrupted", report)

    def close(self) -> None:
        self._lock.release()

    def _write_report(self, status: str, report: Mapping[str, object]) -> None:
        going_on: dict[str, object] = {"replaces": self._action.replaces, "retries": self._action.retries}
        if self._action.replaces:
            names = ("output", "rows", "stamps")
            going_on["replaced"] = {name: self._of_result[name] for name in names if name in self._of_result}
        values = {"status": status, **report, **going_on, "settings": self._settings}
        write_atomically(self._files.report, pretty(values))


def _are_unchanged(batch: list[Reference], noted: Sequence[bytes]) -> bool:
    if len(noted) < len(batch):
        logger.warning("of %s it is not known what it was when it was scored: going on from there", batch[0].image)
        return False
    pairs = zip(batch, noted, strict=True)
    changed = [each.image for each, stamp in pairs if not _is_kept(each, stamp) and stamps.has_changed(each, stamp)]
    if changed:
        logger.warning("%s has changed since it was scored: going on from there", changed[0])
    return not changed


def _is_kept(reference: Reference, stamp: bytes) -> bool:
    """Whether its record is that of an earlier result, whatever has become of its file since (which is told)."""
    return reference.earlier is not None and reference.earlier.stamp == stamp
