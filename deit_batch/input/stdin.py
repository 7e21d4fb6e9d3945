"""What comes by stdin, which has no name: a list, JSON lines, a table or a tar, packed or not, told by its start."""

from __future__ import annotations

import io
import logging
import os
import tarfile
from typing import Any, BinaryIO

from deit_batch.errors import UsageError, cut_off, in_words
from deit_batch.input import tables, webdataset
from deit_batch.input.packed import packing_of, unpacked
from deit_batch.input.tables import Table, encoding_of, is_header

logger = logging.getLogger("deit_batch")

STDIN = "stdin"

_LONGEST_HEADER = 2**16
_READ_FROM_THE_END = {b"PK\x03\x04": "a zip", b"PK\x05\x06": "an empty zip", b"PAR1": "a Parquet file"}


def open_stdin(stream: BinaryIO, *, has_columns: bool, delimiter: str | None, always_samples: bool) -> Table:
    """`has_columns`: whether some are asked for, so that text which is no JSON is a table with a header. Without, it is
    one if its first line looks like a header, with a usual name for the image, and is no file's name.

    Raises UsageError for what can't be read as it comes, InputError for what is damaged."""
    try:
        start, stream = _begin(stream)
        if packing := packing_of(start):
            start, stream = _begin(unpacked(stream))
            logger.info("stdin is packed by %s", packing)
    except (OSError, EOFError) as error:
        raise cut_off(f"{STDIN}: can't be read: {in_words(error)}", error) from error
    if what := _READ_FROM_THE_END.get(start[:4]):
        raise UsageError(f"{STDIN} is {what}, which is read from its end: save it to a file, and give its name")
    if _is_tar(start):
        logger.info("stdin is a tar")
        return webdataset.open_tar_stream(stream, STDIN, always_samples=always_samples)
    if delimiter or _is_table(start, has_columns):
        logger.info("stdin is a table, whose first line names its columns")
        return tables.open_csv(stream, STDIN, delimiter=delimiter)
    return tables.open_list(stream, STDIN, json_lines=True)


def _is_table(start: bytes, has_columns: bool) -> bool:
    encoding, errors = encoding_of(start)
    first = start.decode(encoding, "replace" if errors == "replace" else errors).partition("\n")[0].strip()
    if first.startswith("{"):
        return False
    return has_columns or (is_header(first) and not os.path.exists(first))


def _is_tar(start: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(start[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _begin(stream: BinaryIO) -> tuple[bytes, BinaryIO]:
    """How a stream begins, and the same stream from its start: a whole first line, or as much as says that there is
    none. A pipe gives what is there, and is asked for no more than that takes."""
    start = b""
    place = stream.tell() if stream.seekable() else None
    while not _says_enough(start) and (more := stream.read1(_LONGEST_HEADER)):  # type: ignore[attr-defined]
        start += more
    if place is not None:  # a file, of which it is known how far it has been read
        stream.seek(place)
        return start, stream
    return start, io.BufferedReader(_Replayed(start, stream))


def _says_enough(start: bytes) -> bool:
    return b"\n" in start or packing_of(start) is not None or len(start) >= _LONGEST_HEADER or _is_tar(start)


class _Replayed(io.RawIOBase):
    """A stream from its start again, which was read already."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self._start, self._stream = memoryview(start), stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._start:
            data, self._start = self._start[: len(buffer)], self._start[len(buffer) :]
        else:
            data = memoryview(self._stream.read1(len(buffer)))  # type: ignore[attr-defined]
        buffer[: len(data)] = data
        return len(data)
