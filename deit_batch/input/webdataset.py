"""WebDataset tars to rows, lazily: the members that share a name up to its first dot are one sample, and one row.

A row has the sample's first image as `image`, its `key`, and each member by its extension: images as `{bytes, path}`,
`json` parsed, `cls` and `txt` as text. The layout is WebDataset's: https://github.com/webdataset/webdataset, README.
"""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, product
from typing import Any, BinaryIO, cast

from deit_batch.errors import InputError, RowError, UsageError
from deit_batch.input.kinds import InputKind, InputName, is_image_name, parse_input_name
from deit_batch.input.tables import MAX_ROW_CHARS, Row, Table
from deit_batch.io import Failure
from deit_batch.system import object_store

TEXTS = frozenset(("cls", "txt", "json"))

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")


def open_tars(spec: str, given: InputName) -> Table:
    """Of one tar, a glob, or numbered ones, `imgs-{0000..0099}.tar`; also on a store, but for a glob.

    Raises UsageError if one is not there."""
    paths = list(expand(spec)) if given.stored else _paths(spec, given)
    sizes = _sizes_of_stored(paths) if given.stored else [os.path.getsize(path) for path in paths]
    bytes_read = [0] * len(paths)

    def rows() -> Iterator[Row]:
        line = 0
        for place, path in enumerate(paths):
            with _open(path, given) as stream:
                for value in _samples(stream, path):
                    line += 1
                    bytes_read[place] = stream.tell()
                    yield Row(line, value)
            bytes_read[place] = sizes[place]

    def total(read: int) -> int | None:
        return round(read * sum(sizes) / sum(bytes_read)) if read and any(bytes_read) else None

    return Table(rows(), total=total)


def paths_of(spec: str) -> list[str]:
    """The files that it names: several, if it is of numbered tars."""
    return list(expand(spec)) if parse_input_name(spec).kind is InputKind.TARS else [spec]


def _open(path: str, given: InputName) -> BinaryIO:
    """Raises InputError if that can't be had any more."""
    try:
        return cast(BinaryIO, object_store.open_stream(path)) if given.stored else open(path, "rb")
    except OSError as error:
        raise InputError(f"{path}: can't be read at all: {error.strerror or error}") from error


def _paths(spec: str, given: InputName) -> list[str]:
    """On the disk."""
    paths = list(expand(spec))
    if paths == [spec] and glob.has_magic(spec) and not given.exists:
        paths = sorted(glob.glob(spec, recursive=True), key=os.fsencode)
        if not paths:
            raise UsageError(f"{spec} matches no file")
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        others = f", nor {len(missing) - 1:,} others of the {len(paths):,}" if len(missing) > 1 else ""
        raise UsageError(f"{missing[0]}: no such file{others}")
    return paths


def _sizes_of_stored(addresses: list[str]) -> list[int]:
    """Asked for side by side: there may be thousands. Raises UsageError if one can't be had."""
    store, _ = object_store.open_store(addresses[0])

    def size(address: str) -> int:
        try:
            return store.look_at(object_store.parse(address)[1]).size or 0
        except (object_store.StoreError, RowError) as error:
            raise UsageError(f"{address}: {error}") from error

    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(size, addresses))


def expand(spec: str) -> Iterator[str]:
    """Every name that the ranges in `spec` stand for, in order; numbers are as wide as the first of their range."""
    texts = _RANGE.split(spec)[::3]
    ranges = [
        [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
        for first, last in _RANGE.findall(spec)
    ]
    for numbers in product(*ranges):
        yield "".join(part for pair in zip(texts, [*numbers, ""], strict=True) for part in pair)


def _samples(stream: BinaryIO, path: str) -> Iterator[dict[str, Any] | Failure]:
    """Raises InputError where the tar is damaged: what comes after that is not known."""
    key = None
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as tar:
            for key, members in groupby(_members(tar), lambda named: named[0]):
                try:
                    yield _sample(tar, path, key, members)
                except RowError as error:
                    yield Failure.of(error)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        where = f"past {key}" if key else "at all"
        raise InputError(f"{path}: can't be read {where}: {str(error) or 'it ends early'}") from error


def _members(tar: Any) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, extension and header of the files in it; hidden ones and those without an extension belong to no sample."""
    for member in tar:
        named = _NAME.fullmatch(member.name)
        if member.isfile() and named:
            yield named[1], named[2], member
        tar.members = []  # or it would keep every header


def _sample(
    tar: tarfile.TarFile, path: str, key: str, members: Iterator[tuple[str, str, tarfile.TarInfo]]
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    room = MAX_ROW_CHARS
    for _, extension, member in members:
        if not is_image_name(member.name) and extension not in TEXTS:
            continue
        room -= member.size
        if room < 0:
            raise RowError(f"{path}/{key}: larger than {MAX_ROW_CHARS:,} bytes")
        file = tar.extractfile(member)
        data = file.read() if file else b""
        if len(data) < member.size:
            raise EOFError
        if extension in TEXTS:
            row[extension] = _text(data, extension)
            continue
        row[extension] = {"bytes": data, "path": f"{path}/{member.name}"}
        row.setdefault("image", row[extension])
    if "image" not in row:
        raise RowError(f"{path}/{key}: there is no image in this sample")
    return {"image": row.pop("image"), "key": key, **row}


def _text(data: bytes, extension: str) -> Any:
    text = data.decode("utf-8", "replace")
    if extension != "json":
        return text.strip()
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return text
