"""What an earlier run has left, held against what this one is asked for: what is to be done about it, and whether each
of its records is of the input as it is now."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from deit_batch.errors import UsageError
from deit_batch.input.identity import comparable, identity_of
from deit_batch.input.stamps import NONE, UNKNOWN, has_changed, stamp_of
from deit_batch.io import NAME_FIELDS, Reference, clean, counted, json_line, json_value, line_start, name_fields, pretty
from deit_batch.system.logs import warn_even_if_quiet

Mode: TypeAlias = Literal["continue", "fresh", "retry-failed", "require-current", "retry-changed"]
"""What to do about what an earlier run has left: continue it, or leave it be if it is finished; throw it away; or score
again only what failed in it. The last two are for who will have no record of a file that has changed since: the one
raises StaleResult where "continue" warns, the other scores those again, and what failed."""


class StaleResult(UsageError):  # noqa: N818 - says it all
    """A finished result has records of files that have changed since. `what`: which, as a sentence says it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; --fresh makes new ones")
        self.what = what


FileVersion: TypeAlias = "list[int] | None"


def version_of(path: Path) -> FileVersion:
    """What tells a file from another under its name, also in a copy that keeps its time; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]


"""What tells a file from another under its name: size and time of change (ns); None if there is none."""


@dataclass(frozen=True, slots=True)
class ExistingOutput:
    """What lies at an output when a run begins. `report`: that of an earlier run, {} if there is none; `has_records`:
    whether there is a partial file with anything in it; `result`: the version of the finished file."""

    report: Mapping[str, Any]
    has_records: bool
    result: FileVersion


@dataclass(frozen=True, slots=True)
class Action:
    """`kind`: continue the partial file, begin a new one, or do nothing, for an earlier run has finished. `replaces`:
    the mark of the result that is to be replaced; `retries`: whether that result's failures are scored again, and its
    other records kept. `checks_result`: whether the result must be what its run has left there."""

    kind: Literal["continue", "begin", "nothing"]
    replaces: FileVersion
    retries: bool = False
    checks_result: bool = False


def choose_action(existing: ExistingOutput, settings: Mapping[str, Any], mode: Mode, name: str) -> Action:
    """Decides, and touches nothing. `settings`: those of the run that begins; `name`: what messages call the output.
    Raises UsageError if what is there is not this run's to touch."""
    report, incremental = existing.report, bool(settings.get("incremental"))
    was_incremental = (report.get("settings") or {}).get("incremental") is True
    if mode == "fresh":
        return Action("begin", existing.result)
    if existing.has_records and not (incremental and was_incremental):  # then all that it holds is known anyway
        _require_same_run(name, report, settings)
        return Action("continue", report.get("replaces"), report.get("retries", False))
    if existing.result is None:
        return Action("begin", None)
    if existing.result == report.get("replaces") and not incremental:
        # A run was told to replace it, and died before it had a record: the same command still may.
        _require_same_run(name, report, settings)
        return Action("begin", existing.result, report.get("retries", False))
    if incremental:
        return Action("begin", existing.result, checks_result=True)
    _require_same_run(name, report, settings)
    if report.get("status") != "finished":  # the result was touched since a run died that was to replace it
        return Action("begin", existing.result, checks_result=True)
    if mode == "retry-changed" or (mode == "retry-failed" and report["counts"]["failed"]):
        return Action("begin", existing.result, retries=True, checks_result=True)
    return Action("nothing", existing.result, checks_result=True)


def require_ours(path: Path, is_ours: Callable[[Path], bool]) -> None:
    """Raises UsageError if there is a file of this name, and no run has left it: it is not taken away."""
    if path.is_file() and not is_ours(path):
        raise UsageError(f"{path} is there and is no file of a run; give another --out, or move it away")


def begins_with(path: Path, start: bytes) -> bool:
    """Whether the file begins so; cut off, and with zeros for what a power cut has lost, it still does."""
    with open(path, "rb") as file:
        return start.startswith(file.read(len(start)).rstrip(b"\0"))


def holds_records(path: Path) -> bool:
    return begins_with(path, b'{"index": ')


def _require_same_run(name: str, report: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """The same settings as the run that left files here; nothing is overwritten without being told to."""
    settings = report.get("settings")
    if not isinstance(settings, dict):
        raise UsageError(
            f"{name} is there and no report beside it says what it is; give another --out, or replace it with --fresh"
        )
    require_same_settings(name, settings, now)


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The record of a whole line; None if it is none."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not {"index", "image"} <= record.keys():
        return None
    if not isinstance(record["image"], str | None):  # an inline image has no name
        return None
    error = record.get("error", {"type": ""})
    if not isinstance(error, dict) or not isinstance(error.get("type"), str):
        return None
    return record if "predictions" in record or "features" in record else None


_STRING = r'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"'
_NUMBER = r"(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:e-[0-9]++)?+"
_PREDICTION = rf'\{{"label": {_STRING}, "score": {_NUMBER}\}}'
_PREDICTIONS = re.compile(rf', "predictions": \[(?:{_PREDICTION}(?:, {_PREDICTION})*+)?+\]\}}\n')
"""The end of the line of a record that has no error and no kept columns, in the grammar of RFC 8259."""


def _is_scored(reference: Reference, line: bytes) -> bool:
    """Whether it is the whole line of a record of this reference, with predictions and nothing beside them. It is five
    times as quick as parsing it, which has to be done only where this says no."""
    if reference.kept:
        return False
    start = line_start(reference)
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return False
    return text.startswith(start) and _PREDICTIONS.fullmatch(text, len(start)) is not None


def errors_of_finished(target: str | Path, references: Sequence[Reference], lines: Iterable[bytes]) -> list[str | None]:
    """Of each reference in turn, the type of the error of the record that an earlier run has left, or None: as far as
    the lines are whole records. Raises UsageError, as `require_same_input`, if one is of another input."""
    errors: list[str | None] = []
    for reference, line in zip(references, lines, strict=False):
        if _is_scored(reference, line):
            errors.append(None)
            continue
        record = parse_record(line)
        if record is None:
            break
        require_same_input(target, reference, record)
        errors.append(record["error"]["type"] if has_failed(record) else None)
    return errors


def has_failed(record: Mapping[str, Any]) -> bool:
    return "error" in record


@dataclass(slots=True)
class Changed:
    """Counts the files that have changed since they were read for a result. `stamps`: of each reference in turn, what
    its file was then (input/stamps.py)."""

    result: str
    stamps: Iterator[bytes]
    images: int = 0
    first: str | None = None
    unknown: int = 0

    def look_at(self, reference: Reference, *, stands: bool = True) -> bytes:
        """Looks at the next reference, and returns the stamp that it had. It counts if what was found in it
        `stands`."""
        stamp = next(self.stamps, UNKNOWN)
        if stands and stamp == UNKNOWN and stamp_of(reference.location) != NONE:
            self.unknown += 1
        elif stands and has_changed(reference, stamp):
            self.images, self.first = self.images + 1, self.first or reference.image
        return stamp

    @property
    def all(self) -> int:
        """All that may have changed."""
        return self.images + self.unknown

    def warn(self, remedy: str) -> None:
        for what in self._told():
            warn_even_if_quiet("%s; %s", what, remedy)

    def require_none(self) -> None:
        """Raises StaleResult if there are any."""
        if told := self._told():
            raise StaleResult("; ".join(told))

    def _told(self) -> list[str]:
        told = []
        if self.images:
            images = counted(self.images, "image has", "images have")
            told.append(
                f"{images} changed since {self.result} was made, {self.first} first: the records of such are old"
            )
        if self.unknown:
            images = counted(self.unknown, "image has", "images have")
            told.append(
                f"whether {images} changed since {self.result} was made can't be told: there is no note of what was "
                "read"
            )
        return told


def require_same_settings(target: str | Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises UsageError, saying which differ, unless what was left at `target` was made with the same settings."""
    mine = json.loads(pretty(now))
    changes = [
        f"{name} was {_short(before.get(name))}, is {_short(mine.get(name))}"
        for name in {**before, **mine}
        if before.get(name) != mine.get(name)
    ]
    if changes:
        raise UsageError(
            f"{target} is of another run ({'; '.join(changes)}); give another --out, or replace it with --fresh"
        )


def require_same_input(target: str | Path, reference: Reference, record: Mapping[str, Any]) -> None:
    """Raises UsageError unless the record, left by an earlier run, is of this reference."""
    now = _fields(reference)
    if _compared(record, reference.kept) == _compared(now, reference.kept):
        return
    name = next((name for name in ("index", *NAME_FIELDS, *now) if record.get(name) != now.get(name)), "index")
    if name == "image_id":
        what = f"is of another input than {_short(now['image'])}: what is not shown of it, or its --id, is another"
    else:
        what = f"has {name} {_short(record.get(name))}, but the input now has {_short(now.get(name))} there"
    raise UsageError(
        f"{target} can't be continued: the input has changed. Record {reference.index} {what}; bring the input back as "
        "it was, to go on, or start over with --fresh"
    )


def reference_line(reference: Reference) -> bytes:
    """What of a reference goes into the digest of an input."""
    if reference.kept:
        return json_line(_compared(_fields(reference), reference.kept))
    identity = identity_of(name_fields(reference))
    return f'{{"index": {reference.index}, "identity": {json.dumps(identity)}}}\n'.encode()


def _compared(record: Mapping[str, Any], keep: Iterable[str]) -> dict[str, object]:
    """What of a record the input alone decides: its place, which input it is of, and the columns that are kept."""
    kept = {clean(name): record.get(clean(name)) for name in keep}
    # A link that was signed anew is no other link, also where its column is kept.
    same = {name: comparable(value) if isinstance(value, str) else value for name, value in kept.items()}
    return {"index": record["index"], "identity": identity_of(record), **same}


def _fields(reference: Reference) -> dict[str, Any]:
    """As a record of it has them."""
    return {**name_fields(reference), **{clean(name): json_value(value) for name, value in reference.kept.items()}}


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:20]}…{text[-50:]}"
