"""What the user names as input, to references: lazily, in an order that is the same on every machine."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import BinaryIO, TypeAlias

from deit_batch.errors import UsageError
from deit_batch.input import arrow, files, tables, webdataset
from deit_batch.input.elsewhere import Map
from deit_batch.input.identity import identity_of
from deit_batch.input.image_folder import FILE_NAME, counting_unlisted, metadata_files
from deit_batch.input.kinds import (
    MLTABLE,
    TABLES,
    InputKind,
    InputName,
    by_ending_of,
    image_endings,
    parse_input_name,
    parts_of,
)
from deit_batch.input.mltable import read_mltable
from deit_batch.input.passed_over import pass_over
from deit_batch.input.rows import ChooseColumn, Fields, named_reference, source_of_rows
from deit_batch.input.stdin import open_stdin
from deit_batch.input.streams import open_input
from deit_batch.input.tables import Table, parse_delimiter
from deit_batch.input.zipped import Zip
from deit_batch.io import COLUMNS, NAMES, RECORD_FIELDS, Reference, Source, Takes, name_fields
from deit_batch.system.missing_file import explain_missing
from deit_batch.system.object_store import is_stored

logger = logging.getLogger("deit_batch")

ChooseColumns: TypeAlias = Callable[[Sequence[str]], list[str]]
"""Those to be read, of all that there are; the image's first. Raises UsageError if one is not there."""

OpenTable: TypeAlias = Callable[[ChooseColumns], Table]
"""Opens what a Python program has given (given.py)."""

Shard: TypeAlias = tuple[int, int]
"""(i, n): every n-th reference, from number i on, counted from 0."""

MOST_TABLES_OPEN = 64
"""Of several inputs. The others are opened once to be checked, and again when it is their turn: a process may have only
so many files open."""


def open_source(
    specs: str | Sequence[str] | OpenTable,
    *,
    column: str | None = None,
    keep: Sequence[str] = (),
    id: str | None = None,
    recursive: bool = True,
    limit: int | None = None,
    shard: Shard | None = None,
    stdin: BinaryIO | None = None,
    label: ChooseColumn | None = None,
    folder: str | None = None,
    image_optional: bool = False,
    map: Map = (),
    base: str | None = None,
    suffix: str | None = None,
    delimiter: str | None = None,
) -> Source:
    """Opens what `specs` name, one input after another: each a folder, image, glob, table, list or tar, `hf://…` data
    set, or `-` for stdin.

    Of all their references the first `limit` are taken, and of those the `shard`; references keep the indices that they
    have in the whole. Of several inputs, a relative name in a table is shown with the table's folder: two tables may
    have the same. `column`, `keep`, `id`, `label`, `image_optional` and `map` are the `Fields` of every table among
    them, as are `suffix` and `delimiter`. A folder of images has fields if there is metadata in it (image_folder.py). A
    relative path in a table starts from `base`, a folder or an address on a store, or else from `folder`, or else from
    the folder that the table is in.

    Raises UsageError if there is no such input, or it has no usable image column or lacks a column to keep.
    """
    for name in keep:
        if name in RECORD_FIELDS or keep.count(name) > 1:
            raise UsageError(f"--keep {name}: the record has a field of that name already")
    if base is not None:
        _require_folder(base)
    if suffix and f".{suffix.lower()}" in image_endings():
        raise UsageError(f"--suffix {suffix}: an ending begins with a dot; give --suffix .{suffix}")
    delimiter = parse_delimiter(delimiter) if delimiter else None
    fields = Fields(column, keep, id, label, image_optional, map, suffix, delimiter)
    folder = folder if base is None else base
    asked = {
        "--column": column, "--keep": keep, "--id": id, "--base": base, "--suffix": suffix, "--delimiter": delimiter
    }  # fmt: skip
    options = [option for option, value in asked.items() if value]
    if callable(specs):
        given = _given(specs, fields, folder or "")
        _require_taken(given, options, "what is given")
        return _part_of(given, limit, shard)
    specs = [specs] if isinstance(specs, str) else list(specs)
    specs = [part for spec in specs for part in parts_of(spec)]
    if specs.count("-") > 1:
        raise UsageError("stdin is named twice as input; it can be read once")

    def open_one(spec: str, kind: InputKind | None = None) -> Source:
        given = parse_input_name(spec)
        given = replace(given, kind=kind) if kind else given
        if given.kind is InputKind.MLTABLE:
            table = read_mltable(spec, map)
            open_file = partial(open_one, kind=table.kind)
            rows = open_file(table.files[0]) if len(table.files) == 1 else _open_several(table.files, open_file)
            return counting_unlisted(rows, spec, MLTABLE) if os.path.isdir(spec) else rows
        metadata = find_metadata(spec) if fields.are_named else None
        if metadata:
            return counting_unlisted(open_metadata(metadata, fields, base), spec, metadata.path)
        opened = _open(spec, given, fields, recursive, stdin)
        if isinstance(opened, Source):
            return opened
        return source_of_rows(opened, spec, given, fields, folder, is_apart=len(specs) > 1 and base is None)

    source = open_one(specs[0]) if len(specs) == 1 else _open_several(specs, open_one)
    _require_taken(source, options, names_of_inputs(specs))
    return _part_of(source, limit, shard)


def _require_folder(base: str) -> None:
    """Raises UsageError unless names may start from there."""
    is_archive = by_ending_of(base) in (InputKind.TARS, InputKind.ZIP)
    if is_archive and (is_stored(base) or os.path.isfile(base)):
        raise UsageError(f"--base {base} is an archive; unpack it, and give the folder that the names start from")
    if not is_stored(base) and not os.path.isdir(base):
        raise UsageError(f"--base {base}: no such folder; give a folder, or an address on an object store")


def _given(open_table: OpenTable, fields: Fields, folder: str) -> Source:
    """Of a table, or of images in a row, which may be no files at all."""
    table = open_table(fields.wanted)
    first = list(islice(table.rows, 1)) if table.columns is None else []
    is_table = table.columns is not None or (first and isinstance(first[0].value, Mapping))
    table = replace(table, rows=chain(first, table.rows), takes=COLUMNS | NAMES if is_table else NAMES)
    name = InputName(InputKind.JSON_LINES if is_table else InputKind.LIST)
    return source_of_rows(table, "what is given", name, fields, folder, is_apart=False)


def _require_taken(source: Source, options: Sequence[str], name: str) -> None:
    """Raises UsageError for an option that would have no say in any of the inputs."""
    left = [option for option in options if option not in source.takes]
    if COLUMNS.intersection(left):
        raise UsageError(f"{name} has no columns; {', '.join(left)} is for tables")
    if NAMES.intersection(left):
        raise UsageError(f"{name} has no rows that name images; {', '.join(left)} is for tables and lists")
    if left:
        raise UsageError(f"{name} is no text with columns; {', '.join(left)} is for .csv, .tsv and stdin")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What lies beside the images of a folder: a table whose column `file_name` says which one a row is of."""

    path: str
    columns: list[str]


def find_metadata(spec: str) -> Metadata | None:
    """Of a folder; None if it has none. Where rows have no common columns, the first one's count. Raises UsageError if
    there are several."""
    found: list[Metadata] = []
    for path in metadata_files(spec):
        table = _open_table(path, parse_input_name(path), Fields(column=FILE_NAME))
        first = next(table.rows, None) if table.columns is None else None
        columns = list(first.value) if first and isinstance(first.value, Mapping) else table.columns or []
        if FILE_NAME in columns:
            found.append(Metadata(path, columns))
    if len(found) > 1:
        names = " and ".join(os.path.basename(each.path) for each in found)
        raise UsageError(f"{spec} holds {names}, and only one can be its table; move the others away")
    return found[0] if found else None


def open_metadata(metadata: Metadata, fields: Fields, folder: str | None) -> Source:
    """Its images, called as they are called in the folder; `folder`: where else they are."""
    given = parse_input_name(metadata.path)
    fields = replace(fields, column=fields.column or FILE_NAME)
    table = _open_table(metadata.path, given, fields)
    return source_of_rows(table, metadata.path, given, fields, folder, is_apart=True)


def names_of_inputs(specs: Sequence[str]) -> str:
    """A shell may have made thousands of one glob."""
    return specs[0] if len(specs) == 1 else f"{specs[0]} and {len(specs) - 1:,} others"


def _open_several(specs: Sequence[str], open_one: Callable[[str], Source]) -> Source:
    """The references of all, with indices that run on. All are opened now: what is wrong with the last one is known
    before the run."""
    opened: list[Source | None] = []
    takes: Takes = frozenset()
    for spec in specs:
        source = open_one(spec)
        takes |= source.takes
        stays = not source.is_open_file or len(opened) < MOST_TABLES_OPEN
        opened.append(source if stays else None)
    passed_over: Counter[str] = Counter()
    read = [0]  # references of each input so far

    def references() -> Iterator[Reference]:
        for place, spec in enumerate(specs):
            source = opened[place] = opened[place] or open_one(spec)
            before = sum(read)
            for reference in source.references:
                read[-1] += 1
                yield replace(reference, index=before + reference.index)
            for reason, number in source.passed_over.items():
                pass_over(passed_over, reason, number)
            opened[place] = None  # its file may be closed
            read.append(0)

    def total(count: int) -> int | None:
        done = len(read) - 1
        before = sum(read[:done])
        read_here = [count - before, *(0 for _ in opened[done + 1 :])]
        left = [each.total(n) if each else None for each, n in zip(opened[done:], read_here, strict=False)]
        known = [number for number in left if number is not None]
        return before + sum(known) if len(known) == len(left) else None

    return Source(references(), total, passed_over, takes=takes)


def _part_of(source: Source, limit: int | None, shard: Shard | None) -> Source:
    """The shard of the first `limit` references, which keep their indices."""
    if limit is None and shard is None:
        return source
    number, of = shard or (0, 1)
    digest = hashlib.sha256()

    def digested() -> Iterator[Reference]:
        """By which it is known whether all shards were of one input: so each reads the whole of it."""
        for reference in islice(source.references, limit):
            digest.update(f"{identity_of(name_fields(reference))}\n".encode())
            yield reference

    def total(read: int) -> int | None:
        known = source.total(read * of)
        counted = limit if known is None else known if limit is None else min(limit, known)
        return None if counted is None else len(range(number, counted, of))

    references = islice(digested(), number, None, of)
    return replace(source, references=references, total=total, whole=digest.hexdigest)


def _open(spec: str, given: InputName, fields: Fields, recursive: bool, stdin: BinaryIO | None) -> Source | Table:
    """Image files are a source; all that has rows is a table."""
    match given.kind:
        case InputKind.FOLDER | InputKind.IMAGE if given.stored:
            return files.open_stored(spec, given, recursive)
        case InputKind.FOLDER:
            return files.open_folder(spec, recursive)
        case InputKind.IMAGE if given.exists:
            return files.open_image(spec)
        case InputKind.GLOB:
            return files.open_glob(spec)
        case InputKind.STDIN:
            return open_stdin(
                stdin or sys.stdin.buffer,
                has_columns=fields.are_named,
                delimiter=fields.delimiter,
                always_samples=_are_samples(fields),
            )
        case InputKind.ZIP:
            return _open_zip(Zip(spec), fields)
        case _:
            return _open_table(spec, given, fields)


def _open_zip(zip: Zip, fields: Fields) -> Source | Table:
    if not len(zip):
        name, kind, stream = zip.open_table()
        logger.info("reading %s", name)
        return replace(_table_of(kind, stream, name, fields), passed_over=zip.passed_over)
    references = (named_reference(index, name, location) for index, (name, location) in enumerate(zip.images()))
    return Source(references, lambda read: len(zip), zip.passed_over, is_open_file=True)


def _open_table(spec: str, given: InputName, fields: Fields) -> Table:
    match given.kind:
        case InputKind.DATA_SET:
            return arrow.open_dataset(spec)
        case InputKind.SAVED:
            return arrow.open_saved(spec)
        case InputKind.TARS:
            return webdataset.open_tars(spec, given, always_samples=_are_samples(fields))
        case InputKind.PARQUET:
            return arrow.open_parquet(open_input(spec), spec, fields.wanted)
        case kind if kind in TABLES.values():
            return _table_of(kind, open_input(spec), spec, fields)
        case _:
            missing = explain_missing(spec, what="no such file or folder")
            raise UsageError(
                f"{spec}: {'not a kind of input we know' if given.exists else missing}; "
                f"give a folder, an image, a glob, a {', '.join(TABLES)}, .tar or .zip, hf://… or -"
            )


def _table_of(kind: InputKind, stream: BinaryIO, name: str, fields: Fields) -> Table:
    """Of a stream of text."""
    match kind:
        case InputKind.CSV:
            return tables.open_csv(stream, name, delimiter=fields.delimiter)
        case InputKind.TSV:
            return tables.open_csv(stream, name, delimiter=fields.delimiter or "\t")
        case InputKind.JSON_LINES:
            return tables.open_jsonl(stream, name)
        case InputKind.DOCUMENT:
            return tables.open_document(stream, name)
        case _:
            return tables.open_list(stream, name)


def _are_samples(fields: Fields) -> bool:
    """Whether a tar is to be read as samples, whatever its members are called: one of their fields is asked for."""
    return fields.column not in (None, "image")
