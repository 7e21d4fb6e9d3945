"""One part of a result: the records of a block of references, its file, and the seal by which it is known again."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

from deit_batch.input import stamps
from deit_batch.io import Record, Reference, Tally, pretty
from deit_batch.output.formats import FORMATS, Columns, convert
from deit_batch.output.place import Place
from deit_batch.output.resume import reference_line
from deit_batch.system.atomic import writing

PART_SIZE = 256
"""Images in each part, unless it is told."""
NOTHING_YET = hashlib.sha256().hexdigest()
"""The digest of no reference: where an input begins."""


@dataclass(frozen=True, slots=True)
class Block:
    """The references of one part. `before`, `after`: the SHA-256 of all references of the input up to its first, and up
    to its last. A block fits behind another if that one's `after` is its `before`; so all are of one reading, or of
    readings that were the same. `run`: digest_settings of the run's."""

    number: int
    references: list[Reference]
    before: str
    after: str
    run: str = ""


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
        return cls(block.number, tally.scored, dict(tally.failures), digest_of_data(data), block.before, block.after)


def digest_settings(settings: Mapping[str, Any]) -> str:
    """What tells the parts of a run from those of another that its results do not go with."""
    return hashlib.sha256(json.dumps(json.loads(pretty(settings)), sort_keys=True).encode()).hexdigest()


def split_into_blocks(references: Iterable[Reference], size: int, run: str = "") -> Iterator[Block]:
    """Blocks of `size` references, the last of fewer."""
    references = iter(references)
    digest = hashlib.sha256()
    number, before = 0, NOTHING_YET
    while block := list(islice(references, size)):
        for reference in block:
            digest.update(reference_line(reference))
        after = digest.hexdigest()
        yield Block(number, block, before, after, run)
        number, before = number + 1, after


def part_name(number: int, format: str = "jsonl") -> str:
    return f"part-{number:06}.{format}"


def write_part(partial: Place, block: Block, records: Sequence[Record]) -> Part:
    """Writes the part of a block, whole or not at all, whoever else may be writing the same. `partial`: that of the
    Folder."""
    tally = Tally()
    for record in records:
        tally.count_error(record.error.type if record.error else None)
    data = b"".join(record.line() for record in records)
    # The stamps first: of a part that is there, it is known what its images were.
    with writing(partial):
        partial.write(part_name(block.number, "stamps"), seal_of(block, data) + stamps.join_stamps(records))
        partial.write(part_name(block.number), data)
    return Part.of(block, tally, data)


SEAL_BYTES = hashlib.sha256().digest_size
"""Bytes."""


def seal_of(block: Block, data: bytes) -> bytes:
    """By which a part is known for one that this run has written, and that nobody has changed since: one of a run with
    other settings, whose machine was taken for dead and wakes up, is another."""
    return hashlib.sha256(block.run.encode() + data).digest()


def convert_part(partial: Place, part: Part, format: str, columns: Columns) -> Part:
    """Makes a part in another format than that in which it grew, beside the others of this format. Returns what the
    manifest is to say of it."""
    write = FORMATS[format].write
    if not write:
        return part
    converted = partial.inside(format)
    with writing(partial), tempfile.TemporaryDirectory() as name:
        grown, target = Path(name, part_name(part.number)), Path(name, part_name(part.number, format))
        grown.write_bytes(partial.read(grown.name))
        convert(grown, target, write, columns)
        data = target.read_bytes()
        converted.make()
        converted.write(target.name, data)
    return replace(part, output=digest_of_data(data))


def digest_of_data(data: bytes) -> dict[str, object]:
    """As atomic.digest_of."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
