"""The memory of --incremental: what runs have found in each image, in a SQLite file beside the output.

A row is a fact: these bytes, scored with these settings, gave these predictions. So a run may die anywhere and leave
nothing wrong behind, and the next one takes up whatever was found, however far that run came.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from deit_batch.errors import OutputError
from deit_batch.input.identity import identity_of
from deit_batch.input.stamps import NONE, UNKNOWN, stamp_of
from deit_batch.io import EarlierResult, Record, Reference, name_fields, stamp
from deit_batch.output.resume import begins_with, require_ours
from deit_batch.system.logs import warn_even_if_quiet

logger = logging.getLogger("deit_batch")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (settings TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS known (
    image TEXT PRIMARY KEY, -- its identity
    stamp TEXT,             -- of its file, or the digest of inline data; NULL if nothing can vouch for what is in it
    sha256 TEXT NOT NULL,   -- of its bytes
    predictions TEXT NOT NULL,
    run INTEGER NOT NULL    -- the last that saw it
) WITHOUT ROWID;
"""
_COMMITS = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
"""
"""Each batch is committed: that writes, and does not wait for the disk, so a killed process loses nothing, and a power
cut no more than the last batches (sqlite.org/wal.html; exclusive, it needs no shared memory, which network file systems
lack)."""
_YOUNG_NS = 2 * 10**9
"""A file that has just changed may change again within a tick of its file system's clock: its stamp would not tell."""


class PredictionCache:
    """`kept` counts the images that needed no scoring."""

    def __init__(self, path: Path, settings: Mapping[str, object], *, fresh: bool) -> None:
        """Raises OutputError if the file can't be written."""
        self.kept = 0
        self._fail_now = 0  # of those that were scored before
        self._path = path
        self._stamps: dict[int, str | None] = {}  # of images under way, taken before they are read
        text = json.dumps(settings, sort_keys=True, default=str)
        with self._using():
            require_ours(path, _is_database)
            if fresh:
                self._remove()
            try:
                self._open(text)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                logger.warning("%s is damaged (%s): everything is scored again", path, error)
                self._database.close()  # on Windows, no file is removed that is open
                self._remove()
                self._open(text)

    def _remove(self) -> None:
        """With its log, which would be taken for that of the next file of this name."""
        for ending in ("", "-wal", "-shm"):
            Path(f"{self._path}{ending}").unlink(missing_ok=True)

    def _open(self, settings: str) -> None:
        self._database = sqlite3.connect(self._path)
        self._database.executescript(_COMMITS + _SCHEMA)
        row = self._database.execute("SELECT settings FROM about").fetchone()
        if row != (settings,):
            if row:
                warn_even_if_quiet("%s: everything is scored again", _differing(row[0], settings))
            self._database.execute("UPDATE known SET stamp = NULL, sha256 = ''")  # vouches for nothing, and was there
            self._database.execute("DELETE FROM about")
            self._database.execute("INSERT INTO about VALUES (?)", (settings,))
            self._database.commit()
        vouched = "SELECT 1 FROM known WHERE stamp IS NOT NULL OR sha256 != '' LIMIT 1"
        self.is_empty = self._database.execute(vouched).fetchone() is None
        (self._run,) = self._database.execute("SELECT coalesce(max(run), 0) + 1 FROM known").fetchone()

    @contextmanager
    def _using(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise OutputError(
                f"{self._path}: can't be used: {error}; make room, mend the folder, or allow larger files (ulimit -f), "
                "and run the same command again; if that does not help, remove this file: then all is scored again"
            ) from error

    def adopt(self, records: Iterable[tuple[Mapping[str, Any], bytes]]) -> int:
        """Takes up what a run without --incremental has found: its records, each with its stamp (input/stamps.py).
        Returns how many can vouch for their image: failures can't, nor what has neither a file nor inline data."""
        adopted = 0
        with self._using():
            for record, noted in records:
                inline = record.get("image_sha256")
                if "error" in record or "params" in record or not (inline or noted not in (NONE, UNKNOWN)):
                    continue
                row = (identity_of(record), inline or _noted_text(noted), "", json.dumps(record["predictions"]), 0)
                adopted += self._database.execute("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?)", row).rowcount
            self._database.commit()
        return adopted

    def recall(self, references: Iterable[Reference]) -> Iterator[Reference]:
        """The references, with what is known of each. Inline data are known by their digest; a file whose stamp is the
        same is not read again; anything else is read and compared."""
        for reference in references:
            yield replace(reference, earlier=self._earlier(reference, _stamp_text(reference)))

    def _earlier(self, reference: Reference, stamp_text: str | None) -> EarlierResult | None:
        """None, too, where a request asks for predictions of its own kind: those are not remembered."""
        if reference.wanted:
            self._stamps[reference.index] = stamp_text
            return None
        with self._using():
            row = self._database.execute(
                "SELECT stamp, sha256, predictions FROM known WHERE image = ?", (_key(reference),)
            ).fetchone()
        if row and row[0] is not None and row[0] in (stamp_text, _noted_text(stamp_of(reference.location))):
            return EarlierResult(json.loads(row[2]))
        self._stamps[reference.index] = stamp_text
        return EarlierResult(json.loads(row[2]), row[1]) if row else None

    def remember(self, references: Sequence[Reference], digests: Mapping[int, str], records: Sequence[Record]) -> None:
        """What has come out for a batch. `digests`: by place among those that were not settled before. Failures are not
        remembered: they are tried again."""
        looked_at = count()
        with self._using():
            for reference, record in zip(references, records, strict=True):
                if reference.is_settled:
                    self.kept += 1
                    self._database.execute("UPDATE known SET run = ? WHERE image = ?", (self._run, _key(reference)))
                else:
                    self._add(reference, digests.get(next(looked_at)), record)
            self._database.commit()

    def _add(self, reference: Reference, sha256: str | None, record: Record) -> None:
        stamp_text = self._stamps.pop(reference.index)
        self._fail_now += record.error is not None and reference.earlier is not None
        if record.error is None and reference.wanted is None:
            self.kept += reference.earlier is not None and reference.earlier.sha256 == sha256
            row = (_key(reference), stamp_text, sha256, json.dumps(record.predictions), self._run)
            self._database.execute("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?)", row)

    def vanished(self) -> int:
        """How many images earlier runs had scored that are not in the input of this one, which has seen all of it."""
        with self._using():
            (stale,) = self._database.execute("SELECT count(*) FROM known WHERE run != ?", (self._run,)).fetchone()
        return max(0, int(stale) - self._fail_now)

    def finish(self, *, keeps_last: bool) -> None:
        """Forgets what this run, which has seen all its input, did not see; with `keeps_last`, only what the run before
        did not see either. Raises OutputError if that can't be kept."""
        with self._using():
            self._database.execute("DELETE FROM known WHERE run < ?", (self._run - keeps_last,))
            self._database.commit()

    def close(self) -> None:
        """All that was remembered is kept already: what fails here is only said."""
        try:
            with self._using():
                self._database.execute("PRAGMA journal_mode = DELETE")  # whoever has it open locks nobody out
                self._database.close()
        except OutputError as error:
            logger.warning("%s", error)


def _is_database(path: Path) -> bool:
    """How every one begins: https://sqlite.org/fileformat.html"""
    return begins_with(path, b"SQLite format 3\0")


def _differing(before: str, now: str) -> str:
    """Which of two settings are not the same, as JSON."""
    old, new = json.loads(before), json.loads(now)
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not as before"


def _noted_text(noted: bytes) -> str:
    return f"noted {noted.hex()}"


def _key(reference: Reference) -> str | None:
    return identity_of(name_fields(reference))


def _stamp_text(reference: Reference) -> str | None:
    if reference.sha256 is not None:
        return reference.sha256
    stamp_text = stamp(reference.location)
    return None if stamp_text is None or time.time_ns() - max(stamp_text[1:3]) < _YOUNG_NS else str(stamp_text)
