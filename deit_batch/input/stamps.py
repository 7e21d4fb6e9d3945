"""Whether a file is still what it was when it was read.

A worker notes the size and times of each file just before it reads it. A run keeps them beside its result, eight bytes
a record, in the order of the records. The time of the result would not do: a file may be replaced after it was read,
while the run still goes on.
"""

from __future__ import annotations

import hashlib
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from deit_batch.io import Location, Record, Reference, stamp

WIDTH = 8
NONE = bytes(WIDTH)
"""Of what is no file, or could not be looked at."""
UNKNOWN = b"\xff" * WIDTH
"""Where nobody has noted what it was."""


def stamp_of(location: Location) -> bytes:
    """A digest of size, times and number, WIDTH bytes."""
    found = stamp(location)
    return NONE if found is None else hashlib.blake2b(repr(found).encode(), digest_size=WIDTH).digest()


def has_changed(reference: Reference, before: bytes) -> bool:
    """Whether it is a file that is there and is not what it was, or was not there. `before`: its stamp of then."""
    return before != UNKNOWN and stamp_of(reference.location) not in (before, NONE)


def join_stamps(records: Iterable[Record]) -> bytes:
    return b"".join(record.stamp or NONE for record in records)


def split_stamps(stamps: bytes) -> list[bytes]:
    """Into those of each record; without a last one that is not whole."""
    return [stamps[start : start + WIDTH] for start in range(0, len(stamps) - WIDTH + 1, WIDTH)]


def are_stamps(path: Path) -> bool:
    """Whether the file may hold some: it is no text, in UTF-8, as those of a few images are by chance alone."""
    with open(path, "rb") as file:
        start = file.read(4096)
    try:
        text = getincrementaldecoder("utf-8")().decode(start)  # which may end within a character
    except UnicodeDecodeError:
        return True
    return not text or "\0" in text


def read_stamps(path: Path) -> Iterator[bytes]:
    """One after another."""
    with open(path, "rb") as file:
        yield from stamps_in(file)


def stamps_in(file: BinaryIO) -> Iterator[bytes]:
    while len(one := file.read(WIDTH)) == WIDTH:
        yield one
