"""What the user names as input, to references: lazily, in an order that is the same on every machine."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from deit_batch import stores, tables, tars
from deit_batch.errors import InputError, RowError, UsageError
from deit_batch.io import RECORD_FIELDS, Base64, Failure, LocalFile, Location, Reference, StoredFile, Url, redact
from deit_batch.tables import Row, Table

logger = logging.getLogger("deit_batch")

# Of the formats that images.FORMATS names.
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .png .webp .gif .tif .tiff .bmp .avif".split())

IMAGE_COLUMNS = (
    "image", "image_path", "image_url", "image_base64", "image_b64", "image_file", "img", "url", "uri", "path",
    "file", "filepath", "file_path", "filename", "file_name", "base64", "b64",
)  # fmt: skip
"""The usual names of the column that holds the image, the likeliest first."""

BASE64_COLUMNS = frozenset(("image_base64", "image_b64", "base64", "b64"))
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".parquet")

# The first characters of the base64 of a JPEG, PNG, GIF, WebP, BMP (with its reserved zeros), TIFF and AVIF.
_BASE64_IMAGE = re.compile(r"[/_]9j[/_]|iVBORw0KGgo|R0lGOD|UklGR|Qk[0-9A-Za-z+/_-]{6}AAAA|SUkqA|TU0AK|AAAA..Z0eXB")
_BASE64_ONLY = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}\s*")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SHORTEST_BASE64_IMAGE = 32  # the smallest GIF has 26 bytes
_LONGEST_PATH = 4096  # PATH_MAX on Linux

ChooseColumn: TypeAlias = Callable[[Sequence[str]], str]
"""Raises UsageError if there is no such column."""


Shard: TypeAlias = tuple[int, int]
"""Number, from 0, and count of all: every so-manieth reference, from the one of that index on."""


@dataclass(frozen=True, slots=True)
class Source:
    """An opened input. `total(n)` says how many references there are, n having been read: exactly, by a guess that
    gets better, or None. `passed_over` counts by reason the files of a folder that are not inputs. `class_names`: as in
    tables.Table."""

    references: Iterator[Reference]
    total: Callable[[int], int | None] = lambda read: None
    passed_over: Counter[str] = field(default_factory=Counter)
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)


def open_source(
    spec: str,
    *,
    column: str | None = None,
    keep: Sequence[str] = (),
    recursive: bool = True,
    limit: int | None = None,
    shard: Shard | None = None,
    stdin: BinaryIO | None = None,
    label: ChooseColumn | None = None,
    folder: str | None = None,
) -> Source:
    """Opens what `spec` names: a folder, image, glob, table, list or tar, `hf://…` data set, or `-` for stdin.

    Of that the first `limit` are taken, and of those the `shard`; references keep the indices that they have in the
    whole. `label` picks, from the names of a table's columns, one more column that is kept, by its own name. A relative
    path in a table starts from `folder`, or else from the folder that the table is in.

    Raises UsageError if there is no such input, or it has no usable image column or lacks a column to keep.
    """
    for name in keep:
        if name in RECORD_FIELDS or keep.count(name) > 1:
            raise UsageError(f"--keep {name}: the record has a field of that name already")
    source = _open_paths(spec, recursive)
    if (source or spec.lower().endswith((".txt", ".txt.gz"))) and (column or keep):
        raise UsageError(f"{spec} has no columns; --column and --keep are for tables")
    source = source or _open_rows(spec, column, keep, stdin, label, folder)
    return source if limit is None and shard is None else _part(source, limit, shard or (0, 1))


def _part(source: Source, limit: int | None, shard: Shard) -> Source:
    """The shard of the first `limit` references, which keep their indices."""
    number, of = shard

    def total(read: int) -> int | None:
        known = source.total(read * of)
        counted = limit if known is None else known if limit is None else min(limit, known)
        return None if counted is None else len(range(number, counted, of))

    references = islice(source.references, number, limit, of)
    return Source(references, total, source.passed_over, source.class_names)


# --- folders, files and globs -------------------------------------------------------------------------------------


def _open_paths(spec: str, recursive: bool) -> Source | None:
    """A source of files found by name; None if `spec` is not of that kind."""
    if stores.is_stored(spec):
        return _open_stored(spec, recursive)
    if os.path.isdir(spec):
        return _files(lambda passed_over: _walk(spec, recursive, passed_over, set()), f"{spec} holds no image")
    if is_image_name(spec) and os.path.lexists(spec):
        return _files(lambda passed_over: iter([spec]), "")
    if glob.has_magic(spec) and not os.path.lexists(spec) and "://" not in spec and not tars.is_tars(spec):
        return _files(lambda passed_over: _glob(spec, passed_over), f"{spec} matches no image")
    return None


def _files(find: Callable[[Counter[str]], Iterator[str]], if_empty: str) -> Source:
    """The files that `find` yields. It is run twice: names alone are quick to count, for the time that is left."""
    count = sum(1 for _ in find(Counter()))
    passed_over: Counter[str] = Counter()
    if not count:
        for _ in find(passed_over):
            pass
        raise _no_image(if_empty, passed_over)
    references = (Reference(index, path, LocalFile(path)) for index, path in enumerate(find(passed_over)))
    return Source(references, lambda read: count, passed_over)


def _no_image(what: str, passed_over: Counter[str]) -> UsageError:
    reasons = ", ".join(f"{number} {reason}" for reason, number in passed_over.items()) or "it is empty"
    return UsageError(f"{what} ({reasons}); known names end in {' '.join(sorted(IMAGE_SUFFIXES))}")


def _open_stored(spec: str, recursive: bool) -> Source | None:
    """An image on a store, or a folder, which is listed as it is scored: so nobody knows how many there are."""
    folder = is_stored_folder(spec)
    if not (folder or is_image_name(spec)):
        return None
    store, path = stores.open_store(spec)
    passed_over: Counter[str] = Counter()
    try:
        if folder:
            path = path.rstrip("/") + "/"
            files = _images(store.list(path, recursive=recursive), len(store.address(path)), passed_over)
        else:
            files = iter([store.look_at(path)])
        first = list(islice(files, 1))
    except stores.StoreError as error:
        raise UsageError(f"{spec}: can't be read: {error}") from error
    if not first:
        raise _no_image(f"{spec} holds no image", passed_over)
    references = (Reference(index, file.address, file) for index, file in enumerate(_until_broken(spec, first, files)))
    return Source(references, passed_over=passed_over)


def is_stored_folder(spec: str) -> bool:
    """On a store, where there are no folders to ask: what is not named like an image, table or tar."""
    name = spec.lower().removesuffix(".gz")
    return stores.is_stored(spec) and not (is_image_name(spec) or tars.is_tars(spec) or name.endswith(TABLE_SUFFIXES))


def _images(found: Iterator[StoredFile | str], start: int, passed_over: Counter[str]) -> Iterator[StoredFile]:
    """`start`: how long the folder's own address is."""
    for file in found:
        if isinstance(file, str):
            passed_over["folders"] += 1
        elif file.address.startswith(".", start) or "/." in file.address[start:]:
            passed_over["hidden"] += 1
        elif is_image_name(file.address):
            yield file
        else:
            passed_over["not an image name"] += 1


def _until_broken(spec: str, first: Iterable[StoredFile], files: Iterable[StoredFile]) -> Iterator[StoredFile]:
    last = ""
    try:
        for file in chain(first, files):
            yield file
            last = file.address
    except stores.StoreError as error:
        raise InputError(f"{spec}: can't be listed past {last}: {error}") from error


def is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _walk(folder: str, recursive: bool, passed_over: Counter[str], seen: set[tuple[int, int]]) -> Iterator[str]:
    """The images under a folder, by name, byte for byte (a locale would order them otherwise on another machine).

    Links to folders are followed, but each folder is entered once, under the first of its names."""
    try:
        status = os.stat(folder)
        names = sorted(os.listdir(os.fsencode(folder)))  # bytes: half the memory of what scandir gives
    except OSError as error:
        raise InputError(f"{folder}: can't be listed: {error.strerror}") from error
    seen.add((status.st_dev, status.st_ino))
    for name in map(os.fsdecode, names):
        path = os.path.join(folder, name)
        if name.startswith("."):
            passed_over["hidden"] += 1
        elif os.path.isdir(path):
            inner = os.stat(path)
            if not recursive:
                passed_over["folders"] += 1
            elif (inner.st_dev, inner.st_ino) in seen:
                passed_over["folders seen under another name"] += 1
            else:
                yield from _walk(path, recursive, passed_over, seen)
        elif is_image_name(name):
            yield path
        else:
            passed_over["not an image name"] += 1


def _glob(pattern: str, passed_over: Counter[str]) -> Iterator[str]:
    """As the shell's: `**` is any depth of folders, not through links, and hidden names must be asked for."""
    path = Path(pattern)
    start = Path(path.anchor)
    wanted = {part for part in path.parts if part.startswith(".")}
    for found in sorted(start.glob(str(path.relative_to(start))), key=os.fsencode):
        if any(part.startswith(".") and part not in wanted for part in found.parts):
            passed_over["hidden"] += 1
        elif found.is_dir():
            passed_over["folders"] += 1
        elif is_image_name(found.name):
            yield str(found)
        else:
            passed_over["not an image name"] += 1


# --- tables and lists ---------------------------------------------------------------------------------------------


def _open_rows(
    spec: str,
    column: str | None,
    keep: Sequence[str],
    stdin: BinaryIO | None,
    label: ChooseColumn | None,
    folder: str | None,
) -> Source:
    def wanted(columns: Sequence[str]) -> list[str]:
        names = [_image_column(columns, column), *_present(columns, keep), *([label(columns)] if label else [])]
        return list(dict.fromkeys(names))

    table = _open_table(spec, wanted, stdin)
    rows = table.rows
    if table.columns is not None:
        column = wanted(table.columns)[0]
    else:
        rows = _check_first_object(rows, column, keep, label)
    if folder is None:
        folder = "" if spec == "-" or spec.startswith("hf://") else os.path.dirname(spec)
    references = (_reference(index, row, column, keep, label, folder) for index, row in enumerate(rows))
    return Source(references, table.total, class_names=table.class_names)


def _open_table(spec: str, wanted: Callable[[Sequence[str]], list[str]], stdin: BinaryIO | None) -> Table:
    if spec == "-":
        return tables.open_list(stdin or sys.stdin.buffer, gzipped=False, json_lines=True)
    stored = stores.is_stored(spec)
    if spec.startswith("hf://") and not stored:
        return tables.open_dataset(spec)
    if tars.is_tars(spec):
        return tars.open_tars(spec, is_image_name)
    name = spec.lower()
    gzipped = name.endswith(".gz")
    suffix = os.path.splitext(name.removesuffix(".gz"))[1]
    if suffix not in TABLE_SUFFIXES:
        raise UsageError(
            f"{spec}: {'no such file or folder' if not os.path.lexists(spec) else 'not a kind of input we know'}; "
            "give a folder, an image, a glob, a .txt, .csv, .tsv, .jsonl, .ndjson, .json, .parquet or .tar, hf://… or -"
        )
    try:
        stream = stores.open_stream(spec) if stored else open(spec, "rb")  # noqa: SIM115 - to the end of the run
    except OSError as error:
        raise UsageError(f"{spec}: {error.strerror or error}") from error
    if suffix == ".parquet":
        return tables.open_parquet(stream, spec, wanted)
    match suffix:
        case ".csv" | ".tsv":
            return tables.open_csv(stream, gzipped=gzipped, delimiter="," if suffix == ".csv" else "\t")
        case ".jsonl" | ".ndjson":
            return tables.open_jsonl(stream, gzipped=gzipped)
        case ".json":
            return tables.open_document(stream, gzipped=gzipped)
        case _:
            return tables.open_list(stream, gzipped=gzipped)


def _image_column(columns: Sequence[str], named: str | None) -> str:
    """The column that holds the image. Raises UsageError, naming the columns there are, if it is not to be found."""
    seen = ", ".join(columns) or "none"
    if named is None:
        lower = {name.lower(): name for name in reversed(columns)}
        named = next((lower[name] for name in IMAGE_COLUMNS if name in lower), None)
        if named is None:
            raise UsageError(f"no column looks like the image; name it with --column. Columns seen: {seen}")
    _present(columns, [named])
    return named


def _present(columns: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if columns.count(name) != 1:
            problem = "no column" if name not in columns else "more than one column"
            raise UsageError(f"{problem} is called {name!r}. Columns seen: {', '.join(columns)}")
    return names


def _check_first_object(
    rows: Iterator[Row], column: str | None, keep: Sequence[str], label: ChooseColumn | None
) -> Iterator[Row]:
    """Rows without common columns: a wrong column is found out at the first row that has any. One to keep may be
    missing there and come later."""
    seen = []
    for row in rows:
        seen.append(row)
        if isinstance(row.value, Mapping):
            _image_column(list(row.value), column)
            if label:
                label(list(row.value))
            for name in set(keep) - set(row.value):
                logger.warning("--keep %s: the first row has no such column, only %s", name, ", ".join(row.value))
        if not isinstance(row.value, Failure) or len(seen) == 1000:
            break
    return chain(seen, rows)


def _reference(
    index: int, row: Row, column: str | None, keep: Sequence[str], label: ChooseColumn | None, folder: str
) -> Reference:
    kept: dict[str, object] = {}
    value: object = row.value
    if isinstance(value, Failure):
        return Reference(index, None, value, kept)
    if isinstance(value, Mapping):
        kept = {name: value.get(name) for name in keep}
        try:
            column = _image_column(list(value), column)
            if label:
                name = label(list(value))
                kept[name] = value[name]
        except UsageError as error:
            return Reference(index, None, tables.row_failure(f"line {row.line}: {error}"), kept)
        value = value[column]
    image, location = _locate(value, column or "", folder, row.line)
    return Reference(index, image, location, kept, _sha256(location))


def _sha256(location: Location) -> str | None:
    match location:
        case Base64(text):
            return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        case bytes() as data:
            return hashlib.sha256(data).hexdigest()
        case _:
            return None


def _locate(value: Any, column: str, folder: str, line: int) -> tuple[str | None, Location]:
    """The reference as given (None for inline data), and where its bytes are."""
    if isinstance(value, Mapping):  # an image of `datasets`: {"bytes": …, "path": …}
        if isinstance(value.get("bytes"), bytes):
            return value.get("path"), value["bytes"]
        value = value.get("path")
    if isinstance(value, bytes):
        return None, value
    if not isinstance(value, str) or not value.strip():
        what = "is empty" if value is None or value == "" or isinstance(value, str) else f"is {value!r:.40}, no text"
        return None, tables.row_failure(f"line {line}: the image {what}")
    try:
        location = locate(value, folder, always_base64=column.lower() in BASE64_COLUMNS)
    except RowError as error:
        return redact(value), tables.row_failure(f"line {line}: {error}")
    return (None if isinstance(location, Base64) else redact(value)), location


def locate(text: str, folder: str = "", *, always_base64: bool = False) -> LocalFile | Url | StoredFile | Base64:
    """Tells a URL, an object on a store, a data URI, base64 and a path apart. A relative path is taken from `folder`.

    Base64 of a JPEG starts with `/9j/`, as an absolute path might. So text is base64 only if it starts as an image's
    base64 does, has no other characters, and is long enough for one; or if it is too long for a path. Raises RowError
    for a scheme that is not ours to open."""
    start = text.lstrip()[:16].lower()
    if start.startswith(("http://", "https://")):
        return Url(text.strip())
    if start.startswith("data:"):
        header, comma, data = text.partition(",")
        if not comma or not header.rstrip().lower().endswith(";base64"):
            raise RowError("a data: URI that is not base64")
        return Base64(data)
    if always_base64 or len(text) > _LONGEST_PATH:
        return Base64(text)
    if stores.is_stored(text):
        return _stored(text)
    scheme = _SCHEME.match(text)
    if scheme:
        raise RowError(f"{scheme[1]}: is not opened; give a path, an http(s) or s3 URL, or base64")
    stripped = text.strip()
    long_enough = len(stripped) >= _SHORTEST_BASE64_IMAGE
    if long_enough and _BASE64_IMAGE.match(stripped) and _BASE64_ONLY.fullmatch(stripped):
        return Base64(text)
    path = os.path.join(folder, text)
    return _stored(path) if stores.is_stored(path) else LocalFile(path)


def _stored(address: str) -> StoredFile:
    scheme, path = stores.parse(address)
    return StoredFile(f"{scheme}://{path}")
