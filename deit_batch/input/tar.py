"""The members of a tar, one after another, each read at most once.

A header costs bounded memory, whatever it claims to hold, and a tar that is damaged or cut short never looks like one
that has come to its end.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from deit_batch.errors import InputError, cut_off
from deit_batch.input.packed import unpacked

MAX_HEADER_BYTES = 2**20
"""Of all that is read before a member's data: its header, long names, and what pax and sparse files add to it."""

MAX_GLOBAL_FIELDS = 1000
"""Of pax headers that hold for all members after them, and so add up."""

_CHUNK = 2**20
_BLOCK = tarfile.BLOCKSIZE


class Tar:
    """Yields the headers of its members; `read` takes the data of the one that came last.

    Where another tar follows on its end, as in `cat a.tar b.tar`, that is read, too. Both raise InputError where it is
    damaged: nobody knows what comes after that."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._last = ""

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        self._blocks = _Blocks(self._stream)
        with self._naming_damage():
            self._blocks = _Blocks(unpacked(self._stream))
            self._tar = self._open()
        while True:
            with self._naming_damage():
                header = self._next()
            if header is None:
                return
            self._last = header.name
            yield header

    def read(self, header: tarfile.TarInfo) -> bytes:
        with self._naming_damage():
            if header.size < 0:
                raise tarfile.ReadError("a size below zero")
            file = self._tar.extractfile(header)
            data = file.read() if file else b""
            if len(data) < header.size:
                raise EOFError
        return data

    def _next(self) -> tarfile.TarInfo | None:
        header = self._header()
        while header is None and self._blocks.skip_zeros():
            self._tar = self._open()
            if self._tar.firstmember is None:  # type: ignore[attr-defined]
                raise tarfile.ReadError("after its end follows what is no tar")
            header = self._header()
        return header

    def _open(self) -> tarfile.TarFile:
        with self._blocks.at_most(MAX_HEADER_BYTES):
            return tarfile.TarFile(fileobj=self._blocks)  # type: ignore[arg-type]  # it needs no more than we have

    def _header(self) -> tarfile.TarInfo | None:
        """None at the end, which is marked by zeros: tarfile takes a damaged header for the end, too, and a missing
        one."""
        with self._blocks.at_most(MAX_HEADER_BYTES):
            header = self._tar.next()
        self._tar.members = []  # type: ignore[attr-defined]  # or it would keep every header
        if len(self._tar.pax_headers) > MAX_GLOBAL_FIELDS:
            raise tarfile.ReadError(f"more than {MAX_GLOBAL_FIELDS:,} fields that hold for all members")
        if header is None and not self._blocks.last:
            raise EOFError("it has no end mark, as if cut short; if it is whole, append 1,024 zero bytes to the tar")
        if header is None and len(self._blocks.last) < _BLOCK:
            raise EOFError
        if header is None and self._blocks.last.strip(b"\0"):
            raise tarfile.ReadError("what should be a header is none")
        return header

    @contextmanager
    def _naming_damage(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # tarfile raises whatever comes of odd headers
            where = f"past {self._last}" if self._last else "at all"
            reason = "headers nested too deeply" if isinstance(error, RecursionError) else str(error)
            message = f"{self._name}: can't be read {where}: {reason or 'it ends early'}"
            raise (InputError(message) if self._blocks.at_end else cut_off(message, error)) from error


class _Blocks:
    """A stream that is read forwards. `last`: what the last read has given; `at_end`: whether one gave less than was
    asked for."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0
        self._room: int | None = None
        self._ahead = b""
        self.last = b""
        self.at_end = False

    @contextmanager
    def at_most(self, size: int) -> Iterator[None]:
        """No more than that many bytes are read in here; what is skipped does not count."""
        self._room = size
        try:
            yield
        finally:
            self._room = None

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.ReadError("damaged header")
        while position > self._position:
            skipped = len(self._take(min(_CHUNK, position - self._position)))
            if not skipped:
                return  # nor does the next read find anything

    def read(self, size: int) -> bytes:
        if self._room is not None:
            self._room -= size
            if self._room < 0:
                raise tarfile.ReadError(f"a header of more than {MAX_HEADER_BYTES:,} bytes")
        self.last = self._take(size)
        return self.last

    def _take(self, size: int) -> bytes:
        data = self._ahead or self._stream.read(size)
        self._ahead = b""
        self.at_end |= len(data) < size
        self._position += len(data)
        return data

    def skip_zeros(self) -> bool:
        """Whether anything follows."""
        while not self._ahead and (block := self._stream.read(_BLOCK)):
            if block.strip(b"\0"):
                self._ahead = block
            else:
                self._position += len(block)
        return bool(self._ahead)
