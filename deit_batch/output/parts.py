"""A result in parts: each the records of a fixed range of the input, whichever machine wrote it and when.

    DIR.partial             grows; a dead run is continued from the parts in it
      part-000000.jsonl       the records of the first inputs, as many as a part has; each part appears whole
      part-000000.stamps      the part's seal, and what each image's file was when it was read (input/stamps.py)
      run.json                what the run is (settings), and how it went
    DIR                     the same folder, under its own name when the run is finished, and then with
      manifest.json           its parts, in the order of the input, with their digests and counts
      stamps                  those of all parts, in their order
    DIR.lock                held while a run writes

Several processes on several machines write parts; only the one that holds the lock does anything else here. Where the
folder is, and what that means for its appearing whole, is place.py's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from errno import ENOENT
from pathlib import Path
from typing import Any

from deit_batch.errors import OutputError, UsageError
from deit_batch.input import stamps
from deit_batch.io import Reference, Tally, counted, pretty
from deit_batch.output.formats import FORMATS
from deit_batch.output.manifest import MANIFEST, REPORT, Parts, end_of, manifest_lines, read_document, read_manifest
from deit_batch.output.part import NOTHING_YET, SEAL_BYTES, Block, Part, part_name, seal_of
from deit_batch.output.place import Place, result_place
from deit_batch.output.resume import (
    Changed,
    errors_of_finished,
    has_failed,
    parse_record,
    require_same_settings,
)
from deit_batch.system.atomic import beginning, standing, writing

logger = logging.getLogger("deit_batch")

STAMPS = "stamps"
_SHOWN = 3
"""Files that a message names at most."""
"""Files that a message names at most."""

_FORMATS = [format.name for format in FORMATS.values() if format.in_parts]
_PART = re.compile(rf"part-(\d{{6,}})\.({'|'.join(_FORMATS)}|stamps)")
_CONVERTED = "|".join(name for name in _FORMATS if FORMATS[name].write)
_FILE = rf"{_PART.pattern}|{STAMPS}|{re.escape(MANIFEST)}|{re.escape(REPORT)}"
_OURS = re.compile(rf"(?:{_CONVERTED})|(?:(?:{_CONVERTED})/)?(?:{_FILE}|\.(?:{_FILE})\.[0-9a-f]{{32}}\.tmp|\.replaced)")
"""The paths of what a run makes in its partial folder, with the temporary files of writers that were killed."""


class Folder:
    """The folder of a run, and its lock. Before each change it is looked whether it is held still: on a store, another
    run goes on with it if this one sleeps for long."""

    def __init__(self, out: str | Path, settings: Mapping[str, Any], *, fresh: bool) -> None:
        """Raises UsageError if what stands at `out` is not this run's and was not told to be replaced, OutputError if
        nothing can be written there."""
        self._out = result_place(out)
        self.partial = self._out.partial
        self._settings = settings
        with beginning(self._out):
            self._held = self._out.hold()
        try:
            self._earlier = self._look_around(fresh)
        except BaseException:
            self._held.release()
            raise

    def _look_around(self, fresh: bool) -> dict[str, Any]:
        """The report of the run that is continued."""
        with beginning(self._out):
            self._held.require()
            self._out.mend()
            if _is_leftover(self.partial):
                if self.partial.exists():
                    logger.info("%s is what a killed run has left, without a report: it is taken away", self.partial)
                self.partial.remove_all()
            found = [folder for folder in (self.partial, self._out) if folder.exists()]
            reports = [read_document(folder) for folder in found]
            for folder, report in zip(found, reports, strict=True):
                # --fresh takes a folder away, with all that is in it: never one that no run has made.
                if not isinstance(report.get("settings"), dict):
                    raise UsageError(f"{folder} is there and no {REPORT} in it says what it is; give another --out")
            if fresh:
                for folder in found:
                    if others := self._others_in(folder):
                        raise UsageError(
                            f"{folder} would be replaced, and has files that no run has made: {others}; move them "
                            "away, or give another --out"
                        )
                self._held.require()
                self.partial.remove_all()
                return {}
            if found:
                require_same_settings(str(found[0]), reports[0]["settings"], self._settings)
                return reports[0]
        return {}

    def _others_in(self, folder: Place) -> str:
        """The first files that no run has made, of those that would be gone with the folder."""
        if not folder.exists() or (folder == self._out and not self._out.is_replaced_whole):
            return ""
        others = sorted(path for path in folder.everything() if not _OURS.fullmatch(path))
        return ", ".join(others[:_SHOWN]) + (", …" if len(others) > _SHOWN else "")

    @property
    def complete(self) -> bool:
        """Whether an earlier run has finished all this already."""
        return self._earlier.get("status") == "finished" and not self.partial.exists()

    def finished(self, blocks: Iterable[Block], format: str, *, current: bool = False) -> list[Part]:
        """The parts of a complete folder, whose run may have been killed as it tidied up. Raises UsageError unless they
        are what its run has left there, and of these blocks; StaleResult if they are to be `current`, and are of files
        that have changed since."""
        parts = read_manifest(self._out)
        changed = Changed(str(self._out), self._stamps())
        end = NOTHING_YET
        for block in blocks:
            end = block.after
            for reference in block.references:
                changed.look_at(reference)
        if end != end_of(parts):
            raise UsageError(
                f"{self._out} is finished, but its input has changed since; give another --out, or replace it with "
                "--fresh"
            )
        if current:
            changed.require_none()
        changed.warn("--fresh makes new ones")
        self._tidy(parts, format)
        return parts

    def _stamps(self) -> Iterator[bytes]:
        """Of the finished parts; as many as are known."""
        noted = {STAMPS: self._earlier.get("stamps")}
        with writing(self._out):
            if self._out.has(STAMPS) and not self._out.first_unlike(noted):
                with self._out.open(STAMPS) as file:
                    yield from stamps.stamps_in(file)

    def begin(self) -> None:
        """Makes the folder, if there is none to go on with. Of a run that gave up, the parts with failures are taken
        away before the report says that it goes on: else, if it were killed, the next would take them for good."""
        with beginning(self._out):
            self.partial.make()
            if self._earlier.get("status") == "gave up":
                self._remove_failed()
            self._write_report("running", {})

    def _remove_failed(self) -> None:
        numbers = sorted(self.left())
        removed = 0
        with closing(self._grown(numbers)) as files:
            for number, (data, _) in zip(numbers, files, strict=True):
                if _has_failures(data or b""):
                    self._held.require()
                    self.partial.remove([part_name(number)])
                    removed += 1
        if removed:
            made = counted(removed, "part with failures is", "parts with failures are")
            logger.info("the earlier run gave up: %s made anew", made)

    def left(self) -> set[int]:
        """The numbers of the parts that an earlier run has left."""
        with writing(self._out):
            found = (_PART.fullmatch(name) for name in self.partial.names())
            return {int(match[1]) for match in found if match and match[2] == "jsonl"}

    def standing(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, Part | None]]:
        """Each block, as it is asked for, with the part of it that an earlier run has finished; None where there is
        none, or one that must be made anew, which is taken away. Raises UsageError if the input has changed."""
        numbers = self.left()
        with closing(self._grown(sorted(numbers))) as files:
            for block in blocks:
                yield block, self._standing(block, *next(files)) if block.number in numbers else None
                numbers.discard(block.number)
        if numbers:
            raise UsageError(
                f"{self._out} can't be continued: the input has become shorter, and {part_name(min(numbers))} is of "
                "none of it; start over with --fresh"
            )

    def _grown(self, numbers: Sequence[int]) -> Generator[tuple[bytes | None, bytes | None], None, None]:
        """Of each of these parts the records and the stamps, as far as they are there."""
        names = (part_name(number, what) for number in numbers for what in ("jsonl", "stamps"))
        with writing(self._out), closing(self.partial.read_each(names)) as files:
            yield from zip(files, files, strict=True)

    def _standing(self, block: Block, data: bytes | None, noted: bytes | None) -> Part | None:
        name = part_name(block.number)
        data, noted = data or b"", noted or b""
        before = stamps.split_stamps(noted[SEAL_BYTES:])
        lines = data.splitlines(keepends=True)
        errors: list[str | None] = []
        if noted[:SEAL_BYTES] != seal_of(block, data):
            logger.warning("%s is not what this run has left there: it is made anew", name)
        elif not len(before) == len(lines) == len(block.references):
            logger.warning("%s is of another number of images than there are now: it is made anew", name)
        elif changed := _first_changed(block.references, before):
            logger.warning("%s has changed since it was scored: its part is made anew", changed)
        else:
            errors = errors_of_finished(str(self._out), block.references, lines)
        if len(errors) != len(block.references):
            with writing(self._out):
                self._held.require()
                self.partial.remove([name])
            return None
        tally = Tally()
        for error in errors:
            tally.count_error(error)
        return Part.of(block, tally, data)

    def finish(self, parts: Parts, report: Mapping[str, object], format: str) -> None:
        """Makes the folder appear under the name of the run, for what stood there, with its parts in this format: those
        that convert_part has returned, if it is another than that in which they grew."""
        converted = FORMATS[format].write is not None
        result = self.partial.inside(format) if converted else self.partial
        with writing(self._out):
            self._held.ask()
            result.make()
            noted = result.write_chunks(STAMPS, self._stamps_of(parts))
            report = {**report, "references_sha256": end_of(parts), "stamps": noted}
            told = pretty({"status": "finished", **report, "settings": self._settings})
            self._held.require()
            result.write(REPORT, told)
            sizes = {REPORT: len(told), STAMPS: _size_of(noted)}
            sizes |= ((part_name(part.number, format), _size_of(part.output)) for part in parts)
            sizes[MANIFEST] = _size_of(result.write_chunks(MANIFEST, manifest_lines(parts, format)))
            if others := self._others_in(self._out):
                raise OutputError(
                    f"{self._out} would be replaced, and has files that no run has made: {others}; move them away, and "
                    "run the same command again, without --fresh"
                )
            self._out.publish(format if converted else None, sizes, self._held)
        # Until now, or a run that dies here would begin anew.
        self._tidy(parts, format)
        with standing(str(self._out)):
            self._held.require()
            self.partial.remove_all()

    def _tidy(self, parts: Parts, format: str) -> None:
        """Leaves no file of a part in the finished folder but these."""
        count = sum(1 for _ in parts)
        with standing(str(self._out)):
            self._out.remove(name for name in self._out.names() if _is_of_another(name, count, format))

    def _stamps_of(self, parts: Parts) -> Iterator[bytes]:
        with closing(self.partial.read_each(part_name(part.number, "stamps") for part in parts)) as files:
            for part, data in zip(parts, files, strict=True):
                if data is None:
                    raise FileNotFoundError(ENOENT, f"{part_name(part.number, 'stamps')} is missing")
                yield data[SEAL_BYTES:]

    def require_held(self) -> None:
        """Raises OutputError if another run has taken the folder over."""
        self._held.require()

    def interrupt(self, report: Mapping[str, object], *, gave_up: bool) -> None:
        """Says how the run has ended, if no other has taken the folder over."""
        with writing(self._out):
            try:
                self._held.ask()
            except OutputError:
                return
            self._write_report("gave up" if gave_up else "interrupted", report)

    def _write_report(self, status: str, report: Mapping[str, object]) -> None:
        self._held.require()
        self.partial.write(REPORT, pretty({"status": status, **report, "settings": self._settings}))

    def close(self) -> None:
        self._held.release()


def _size_of(output: Mapping[str, object]) -> int:
    return int(str(output["bytes"]))


def _first_changed(references: Sequence[Reference], before: Sequence[bytes]) -> str | None:
    """The first image of these whose file is not what it was. `before`: their stamps of then."""
    pairs = zip(references, before, strict=True)
    return next((each.image for each, stamp in pairs if stamps.has_changed(each, stamp)), None)


def _has_failures(data: bytes) -> bool:
    """Whether one of these records has an error. Few hold the word, and only those are parsed."""
    records = (parse_record(line) for line in data.splitlines(keepends=True) if b'"error"' in line)
    return any(record and has_failed(record) for record in records)


def _is_of_another(name: str, count: int, format: str) -> bool:
    """Whether it is the name of a part, but not of a result in this format with so many."""
    match = _PART.fullmatch(name)
    return match is not None and not (int(match[1]) < count and name == part_name(int(match[1]), format))


def _is_leftover(partial: Place) -> bool:
    """Whether the partial folder has no report, and nothing that a run does not write: it was killed while it made the
    folder or took it away, or the parts came after the end. Such are from a machine that was taken for dead, and whose
    blocks others have scored meanwhile; on a store, they find their place."""
    return not partial.has(REPORT) and all(map(_OURS.fullmatch, partial.everything()))
