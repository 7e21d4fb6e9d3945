"""What is packed by gzip, bzip2, xz or zstd, read as what is in it: tables and tars alike, in bounded memory.

How a stream is packed is told by its first bytes: a `.tar` may be packed, and stdin has no name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, Protocol

from deit_batch.input.kinds import packed_by_name

MOST_MEMORY = 128 * 2**20
"""Bytes of what was unpacked that a decompressor may look back at: the most that `zstd` takes unless asked, and twice
what `xz -9` does."""

LONGEST_START = 10
"""Bytes by which it can be told how a stream is packed."""

_CHUNK = 2**17

# RFC 1952; bzip2's marks of a block and of the end, which are digits of pi and of its root; tukaani.org/xz; RFC 8878,
# whose frames may also be ones to be skipped.
_STARTS = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "bzip2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL),
}


def packing_of(start: bytes) -> str | None:
    """What a stream that begins so is packed by; None if it is not."""
    return next((name for name, pattern in _STARTS.items() if pattern.match(start)), None)


def unpacked(stream: BinaryIO, name: str = "") -> io.BufferedReader:
    """What is in a stream, which has `peek`. It raises OSError without a number where its data are damaged or need too
    much memory, and EOFError where they end early; so does this, if the stream is not packed as its `name` says."""
    start = stream.peek(LONGEST_START)  # type: ignore[attr-defined]
    packing = packing_of(start)
    if packing is None:
        claimed = packed_by_name(name)
        if claimed and start:
            raise OSError(_damaged(claimed))
        return stream  # type: ignore[return-value]
    return unpacking(packing, _OPENERS[packing](stream))


def unpacking(packing: str, read: Callable[[int], bytes]) -> io.BufferedReader:
    """The data that `read` gives, in as many bytes at most as it is asked for, with damage told as `unpacked` does."""
    return io.BufferedReader(_Unpacked(packing, read), _CHUNK)


def _damaged(packing: str) -> str:
    return f"no {packing} data, or damaged ones"


class _Unpacked(io.RawIOBase):
    """The same data, with damage said in one way."""

    def __init__(self, packing: str, read: Callable[[int], bytes]) -> None:
        self._packing, self._read = packing, read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._read(len(buffer))
        except EOFError as error:
            raise EOFError from error
        except (zlib.error, lzma.LZMAError, zipfile.BadZipFile, OSError) as error:
            if getattr(error, "errno", None) is not None:  # the medium's
                raise
            said = str(error).lower()
            if "truncated" in said:
                raise EOFError from error
            too_much = f"{self._packing} data that need more than {MOST_MEMORY:,} bytes of memory"
            raise OSError(too_much if "memory" in said else _damaged(self._packing)) from error
        buffer[: len(data)] = data
        return len(data)


class _Decompressor(Protocol):
    """As those of bz2 and lzma are."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Streams:
    """Packed streams that follow on one another, perhaps with zeros between and after them. (The files of bz2 and lzma
    take what follows for nothing, and lzma's any memory.)"""

    def __init__(self, stream: BinaryIO, start: Callable[[], _Decompressor]) -> None:
        self._stream, self._start = stream, start
        self._decompressor = start()
        self._ahead = b""

    def read(self, size: int) -> bytes:
        while not self._decompressor.eof or self._begins_another():
            packed = b""
            if self._decompressor.needs_input:
                packed, self._ahead = self._ahead or self._stream.read(_CHUNK), b""
                if not packed:
                    raise EOFError
            if data := self._decompressor.decompress(packed, size):
                return data
        return b""

    def _begins_another(self) -> bool:
        self._ahead = self._decompressor.unused_data.lstrip(b"\0")
        while not self._ahead and (more := self._stream.read(_CHUNK)):
            self._ahead = more.lstrip(b"\0")
        if self._ahead:
            self._decompressor = self._start()
        return bool(self._ahead)


def _read_gzip(stream: BinaryIO) -> Callable[[int], bytes]:
    return gzip.GzipFile(fileobj=stream).read1


def _read_bzip2(stream: BinaryIO) -> Callable[[int], bytes]:
    return _Streams(stream, bz2.BZ2Decompressor).read


def _read_xz(stream: BinaryIO) -> Callable[[int], bytes]:
    return _Streams(stream, partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, MOST_MEMORY)).read


def _read_zstd(stream: BinaryIO) -> Callable[[int], bytes]:
    import pyarrow

    read: Callable[[int], bytes] = pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd").read
    return read


_OPENERS = {"gzip": _read_gzip, "bzip2": _read_bzip2, "xz": _read_xz, "zstd": _read_zstd}
