"""What the user names as input, to references: lazily, in an order that is the same on every machine."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import BinaryIO, TypeAlias

from deit_batch import stores, tables, tars
from deit_batch.errors import UsageError
from deit_batch.io import RECORD_FIELDS, Failure, Reference, Source
from deit_batch.listing import is_image_name, open_files
from deit_batch.locating import digest_of_inline, locate_value
from deit_batch.tables import Row, Table

logger = logging.getLogger("deit_batch")

IMAGE_COLUMNS = (
    "image", "image_path", "image_url", "image_base64", "image_b64", "image_file", "img", "url", "uri", "path",
    "file", "filepath", "file_path", "filename", "file_name", "base64", "b64",
)  # fmt: skip
"""The usual names of the column that holds the image, the likeliest first."""

ChooseColumn: TypeAlias = Callable[[Sequence[str]], str]
"""Raises UsageError if there is no such column."""

Shard: TypeAlias = tuple[int, int]
"""Number, from 0, and count of all: every so-manieth reference, from the one of that index on."""


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
    source = open_files(spec, recursive)
    if (source or spec.lower().endswith((".txt", ".txt.gz"))) and (column or keep):
        raise UsageError(f"{spec} has no columns; --column and --keep are for tables")
    source = source or _open_rows(spec, column, keep, stdin, label, folder)
    return source if limit is None and shard is None else _part(source, limit, shard or (0, 1))


def _part(source: Source, limit: int | None, shard: Shard) -> Source:
    """The shard of the first `limit` references, which keep their indices."""
    number, of = shard
    digest = hashlib.sha256()

    def digested() -> Iterator[Reference]:
        """By which it is known whether all shards were of one input: so each reads the whole of it."""
        for reference in islice(source.references, limit):
            digest.update(f"{reference.image}\n{reference.sha256}\n".encode("utf-8", "surrogatepass"))
            yield reference

    def total(read: int) -> int | None:
        known = source.total(read * of)
        counted = limit if known is None else known if limit is None else min(limit, known)
        return None if counted is None else len(range(number, counted, of))

    references = islice(digested(), number, None, of)
    return Source(references, total, source.passed_over, source.class_names, digest.hexdigest)


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
    """Kinds that want a path, or are several files, are told apart first; then those that are one stream, wherever it
    comes from."""
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
    if suffix not in tables.SUFFIXES:
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
    image, location = locate_value(value, column or "", folder, row.line)
    return Reference(index, image, location, kept, digest_of_inline(location))
