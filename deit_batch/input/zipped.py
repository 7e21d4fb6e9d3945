"""Zips: the images in one, in the order of its own list of members, or the one table in it.

A member costs bounded memory, whatever the list says of it, and one that can't be read is its own failure. Names are
shown, and nothing is written by them. The format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import IO, BinaryIO

from deit_batch.errors import RowError, UsageError, cut_off
from deit_batch.input.kinds import TABLES, InputKind, by_ending_of, is_image_name
from deit_batch.input.packed import unpacking
from deit_batch.input.passed_over import counts_of, ending_of, is_hidden, pass_over
from deit_batch.input.streams import open_input
from deit_batch.input.tables import MAX_ROW_BYTES
from deit_batch.io import Failure

MOST_LISTED_BYTES = 2**25
"""Of the list of members, which is read whole and takes ten times its size in memory: of some 300,000 images."""

_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""Those that unpack in bounded memory, and that nearly every program writes."""

_ENCRYPTED, _IN_UTF8 = 1, 0x800
_CHUNK = 2**20
_SHOWN = 3


class Zip:
    """One that is open. `passed_over`: what is in it and no image.

    Raises UsageError if it is none, InputError if it ends early or its list of members is damaged."""

    def __init__(self, path: str) -> None:
        stream = open_input(path)
        start = stream.peek(4)[:4]  # type: ignore[attr-defined]
        try:
            self._file = zipfile.ZipFile(_Bounded(stream))  # it needs no more than we have
        except OSError as error:
            raise cut_off(f"{path}: can't be read: {error.strerror or error}", error) from error
        except Exception as error:  # it raises whatever comes of odd headers
            if "not a zip" not in str(error):
                raise cut_off(f"{path}: its list of members can't be read: {error}", error) from error
            if start.startswith(b"PK"):
                raise cut_off(
                    f"{path}: can't be read: it ends early, before its list of members", EOFError()
                ) from error
            raise UsageError(f"{path}: not a zip file") from error
        self.path = path
        self.passed_over: Counter[str] = Counter()
        self._images: list[zipfile.ZipInfo] = []
        self._tables: list[zipfile.ZipInfo] = []
        for info in self._file.infolist():
            if not info.is_dir():
                self._sort_in(info, _name_of(info))

    def _sort_in(self, info: zipfile.ZipInfo, name: str) -> None:
        if is_hidden(name):
            pass_over(self.passed_over, "hidden")
        elif is_image_name(name):
            self._images.append(info)
        else:
            if by_ending_of(name) in TABLES.values():
                self._tables.append(info)
            pass_over(self.passed_over, ending_of(name))

    def __len__(self) -> int:
        """How many images are in it."""
        return len(self._images)

    def images(self) -> Iterator[tuple[str, bytes | Failure]]:
        """The name of each, and its bytes. Raises InputError if the disk gives no more of it."""
        for info in self._images:
            yield f"{self.path}/{_name_of(info)}", self._read(info)

    def open_table(self) -> tuple[str, InputKind, BinaryIO]:
        """The name, the kind and the data of the one that is in it; a .txt beside another is none. Raises UsageError if
        there is none, or several, or it can't be read."""
        found = [info for info in self._tables if by_ending_of(_name_of(info)) is not InputKind.LIST] or self._tables
        names = [_name_of(info) for info in found]
        if not found:
            reasons = counts_of(self.passed_over) or "it is empty"
            raise UsageError(f"{self.path} holds no image and no table ({reasons})")
        if len(found) > 1:
            shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
            raise UsageError(f"{self.path} holds {len(names):,} tables ({shown}): unpack it, and name one of them")
        self.passed_over -= Counter((ending_of(names[0]),))
        kind = by_ending_of(names[0])
        if kind is InputKind.PARQUET:
            raise UsageError(f"{self.path} holds {names[0]}, which is read from its end: unpack it")
        try:
            member = self._open(found[0])
        except RowError as error:
            raise UsageError(f"{self.path}/{names[0]}: {error}") from error
        return f"{self.path}/{names[0]}", kind, unpacking("zip", member.read)

    def _read(self, info: zipfile.ZipInfo) -> bytes | Failure:
        if info.file_size > MAX_ROW_BYTES:
            return Failure.of(RowError(f"larger than {MAX_ROW_BYTES:,} bytes"))
        data = bytearray()
        try:
            with self._open(info) as member:
                while chunk := member.read(_CHUNK):
                    data += chunk
        except RowError as error:
            return Failure.of(error)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            return Failure.of(RowError(f"it is damaged in the zip: {str(error) or 'it ends early'}"))
        except OSError as error:
            raise cut_off(
                f"{self.path}: can't be read past {_name_of(info)}: {error.strerror or error}", error
            ) from error
        return bytes(data)

    def _open(self, info: zipfile.ZipInfo) -> IO[bytes]:
        """Raises RowError for one that is not read."""
        if info.flag_bits & _ENCRYPTED:
            raise RowError("it is encrypted in the zip: unpack it")
        if info.compress_type not in _METHODS:
            raise RowError(f"it is packed by the zip's method {info.compress_type}, which is not read: unpack it")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise RowError("it is a link in the zip, and not the file itself")
        try:
            return self._file.open(info)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
            raise RowError(f"it is damaged in the zip: {str(error) or 'it ends early'}") from error


def holds_images(path: str) -> bool:
    """Raises as `Zip` does."""
    return len(Zip(path)) > 0


def _name_of(info: zipfile.ZipInfo) -> str:
    """In UTF-8, as most programs write it without saying so; other bytes are carried along as in tables."""
    if info.flag_bits & _IN_UTF8:
        return info.filename
    name = info.orig_filename.partition("\0")[0]
    return name.encode("cp437").decode("utf-8", "surrogateescape")


class _Bounded:
    """A stream of which no more is read at a time than a list of members may have."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seekable, self.tell, self.close = stream.seekable, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        most = MOST_LISTED_BYTES
        data = self._stream.read(most + 1 if size < 0 else min(size, most + 1))
        if len(data) > most:
            raise zipfile.BadZipFile(f"it is longer than {most:,} bytes; make several zips of it, or a tar")
        return data

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET and place < 0:
            raise zipfile.BadZipFile("a place before its start")
        return self._stream.seek(place, whence)
