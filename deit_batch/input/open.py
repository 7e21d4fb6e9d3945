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

from deit_batch.errors import RowError, UsageError
from deit_batch.input import arrow, files, tables, webdataset
from deit_batch.input.columns import usual_image_column
from deit_batch.input.elsewhere import Map
from deit_batch.input.identity import given_identity, identity_of, image_id_if_hidden
from deit_batch.input.image_folder import FILE_NAME, counting_unlisted, metadata_files
from deit_batch.input.kinds import MLTABLE, TABLES, InputKind, InputName, parse_input_name, parts_of
from deit_batch.input.locate import digest_of_inline, locate_value
from deit_batch.input.mltable import read_mltable
from deit_batch.input.passed_over import pass_over
from deit_batch.input.tables import Row, Table
from deit_batch.io import (
    LONGEST_MESSAGE,
    RECORD_FIELDS,
    Failure,
    LocalFile,
    Location,
    Reference,
    Source,
    StoredFile,
    clean,
    counted,
    name_fields,
)
from deit_batch.redaction import redact
from deit_batch.system import object_store
from deit_batch.system.git_lfs import NOT_HERE, is_pointer
from deit_batch.system.missing_file import explain_missing

logger = logging.getLogger("deit_batch")

ChooseColumn: TypeAlias = Callable[[Sequence[str]], str]
"""Raises UsageError if there is no such column."""

ChooseColumns: TypeAlias = Callable[[Sequence[str]], list[str]]
"""Those to be read, of all that there are; the image's first. Raises UsageError if one is not there."""

OpenTable: TypeAlias = Callable[[ChooseColumns], Table]
"""Opens what a Python program has given (given.py)."""

Shard: TypeAlias = tuple[int, int]
"""(i, n): every n-th reference, from number i on, counted from 0."""

IDS_REMEMBERED = 50_000

MOST_TABLES_OPEN = 64
"""Of several inputs. The others are opened once to be checked, and again when it is their turn: a process may have only
so many files open."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a row are taken: the image (`column`, by its usual names unless it is given), those to `keep`,
    the one that says which input it is (`id`), and one more that is kept by its own name, which `label` picks. With
    `image_optional`, a table that has an id needs no image, and no image has to be one that can be opened: nothing but
    which input a row is of is asked for. `map`: the places of prefixes that images' names may have (elsewhere.py)."""

    column: str | None = None
    keep: Sequence[str] = ()
    id: str | None = None
    label: ChooseColumn | None = None
    image_optional: bool = False
    map: Map = ()

    @property
    def options(self) -> list[str]:
        """Those that were asked for by name, as the options are called."""
        named = {"--column": self.column, "--keep": self.keep, "--id": self.id}
        return [option for option, value in named.items() if value]

    def wanted(self, columns: Sequence[str]) -> list[str]:
        """The image's column first. Raises UsageError if one is not there."""
        names = [self.image_column(columns), *_present(columns, [*self.keep, *([self.id] if self.id else [])])]
        return list(dict.fromkeys([*names, *([self.label(columns)] if self.label else [])]))

    def image_column(self, columns: Sequence[str]) -> str:
        """The column that holds the image; that of the id, if there is none and none is needed. Raises UsageError,
        naming the columns there are, if it is not to be found."""
        named = usual_image_column(columns) if self.column is None else self.column
        if named is None and self.image_optional:
            named = self.id
        if named is None:
            raise UsageError(f"no column looks like the image; name it with --column. {columns_seen(columns)}")
        _present(columns, [named])
        return named


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
) -> Source:
    """Opens what `specs` name, one input after another: each a folder, image, glob, table, list or tar, `hf://…` data
    set, or `-` for stdin.

    Of all their references the first `limit` are taken, and of those the `shard`; references keep the indices that they
    have in the whole. Of several inputs, a relative name in a table is shown with the table's folder: two tables may
    have the same. `column`, `keep`, `id`, `label`, `image_optional` and `map` are the `Fields` of every table among
    them. A folder of images has fields if there is metadata in it (image_folder.py). A
    relative path in a table starts from `folder`, or else from the folder that the table is in.

    Raises UsageError if there is no such input, or it has no usable image column or lacks a column to keep.
    """
    for name in keep:
        if name in RECORD_FIELDS or keep.count(name) > 1:
            raise UsageError(f"--keep {name}: the record has a field of that name already")
    fields = Fields(column, keep, id, label, image_optional, map)
    if callable(specs):
        return _part_of(_given(specs, fields), limit, shard)
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
        metadata = find_metadata(spec) if fields.options or fields.label else None
        if metadata:
            return counting_unlisted(open_metadata(metadata, fields), spec, metadata.path)
        opened = _open(spec, given, fields, recursive, stdin)
        if isinstance(opened, Source):
            return opened
        return _of_rows(opened, spec, given, fields, folder, shows_folder=len(specs) > 1)

    source = open_one(specs[0]) if len(specs) == 1 else _open_several(specs, open_one)
    _require_columns(source, names_of_inputs(specs), fields)
    return _part_of(source, limit, shard)


def _given(open_table: OpenTable, fields: Fields) -> Source:
    """Of a table, or of images in a row, which may be no files at all."""
    table = open_table(fields.wanted)
    first = list(islice(table.rows, 1)) if table.columns is None else []
    is_table = table.columns is not None or (first and isinstance(first[0].value, Mapping))
    name = InputName(InputKind.JSON_LINES if is_table else InputKind.LIST)
    table = replace(table, rows=chain(first, table.rows))
    source = _of_rows(table, "what is given", name, fields, "", shows_folder=False)
    _require_columns(source, "what is given", fields)
    return source


def _require_columns(source: Source, name: str, fields: Fields) -> None:
    if fields.options and not source.has_columns:
        raise UsageError(f"{name} has no columns; {', '.join(fields.options)} is for tables")


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


def open_metadata(metadata: Metadata, fields: Fields) -> Source:
    """Its images, called as they are called in the folder."""
    given = parse_input_name(metadata.path)
    fields = replace(fields, column=fields.column or FILE_NAME)
    table = _open_table(metadata.path, given, fields)
    return _of_rows(table, metadata.path, given, fields, None, shows_folder=True)


def names_of_inputs(specs: Sequence[str]) -> str:
    """A shell may have made thousands of one glob."""
    return specs[0] if len(specs) == 1 else f"{specs[0]} and {len(specs) - 1:,} others"


def _open_several(specs: Sequence[str], open_one: Callable[[str], Source]) -> Source:
    """The references of all, with indices that run on. All are opened now: what is wrong with the last one is known
    before the run."""
    opened: list[Source | None] = []
    has_columns = False
    for spec in specs:
        source = open_one(spec)
        has_columns |= source.has_columns
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

    return Source(references(), total, passed_over, has_columns=has_columns)


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


def _of_rows(
    table: Table, spec: str, given: InputName, fields: Fields, folder: str | None, *, shows_folder: bool
) -> Source:
    rows = table.rows
    if table.columns is not None:
        fields = replace(fields, column=fields.wanted(table.columns)[0])
    else:
        rows = _check_first_object(rows, fields)
    if folder is None:
        folder = "" if given.kind in (InputKind.STDIN, InputKind.DATA_SET, InputKind.SAVED) else os.path.dirname(spec)
    found: Iterator[Reference] = (_reference(index, row, fields, folder) for index, row in enumerate(rows))
    found = _saying_what_is_twice(found, spec) if fields.id else found
    references = (_shown_apart(reference, spec) for reference in found) if shows_folder else found
    return Source(
        references,
        table.total,
        passed_over=table.passed_over,
        class_names=table.class_names,
        has_columns=given.kind is not InputKind.LIST,
        is_open_file=given.kind is not InputKind.STDIN,
    )


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
            return tables.open_list(stdin or sys.stdin.buffer, "stdin", gzipped=False, json_lines=True)
        case _:
            return _open_table(spec, given, fields)


def _open_table(spec: str, given: InputName, fields: Fields) -> Table:
    match given.kind:
        case InputKind.DATA_SET:
            return arrow.open_dataset(spec)
        case InputKind.SAVED:
            return arrow.open_saved(spec)
        case InputKind.TARS:
            return webdataset.open_tars(spec, given, always_samples=fields.column not in (None, "image"))
        case InputKind.PARQUET:
            return arrow.open_parquet(_stream(spec, given), spec, fields.wanted)
        case InputKind.CSV:
            return tables.open_csv(_stream(spec, given), spec, gzipped=given.gzipped, delimiter=None)
        case InputKind.TSV:
            return tables.open_csv(_stream(spec, given), spec, gzipped=given.gzipped, delimiter="\t")
        case InputKind.JSON_LINES:
            return tables.open_jsonl(_stream(spec, given), spec, gzipped=given.gzipped)
        case InputKind.DOCUMENT:
            return tables.open_document(_stream(spec, given), spec, gzipped=given.gzipped)
        case InputKind.LIST:
            return tables.open_list(_stream(spec, given), spec, gzipped=given.gzipped)
        case _:
            missing = explain_missing(spec, what="no such file or folder")
            raise UsageError(
                f"{spec}: {'not a kind of input we know' if given.exists else missing}; "
                f"give a folder, an image, a glob, a {', '.join(TABLES)} or .tar, hf://… or -"
            )


def _stream(spec: str, given: InputName) -> BinaryIO:
    """Open to the end of the run."""
    try:
        stream = object_store.open_stream(spec) if given.stored else open(spec, "rb")  # noqa: SIM115
        pointer = is_pointer(stream.peek())
    except FileNotFoundError as error:
        raise UsageError(f"{spec}: {explain_missing(spec)}") from error
    except OSError as error:
        raise UsageError(f"{spec}: {error.strerror or error}") from error
    if pointer:
        raise UsageError(f"{spec}: {NOT_HERE}")
    return stream


def _present(columns: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if columns.count(name) != 1:
            problem = "no column" if name not in columns else "more than one column"
            raise UsageError(f"{problem} is called {name!r}. {columns_seen(columns)}")
    return names


def columns_seen(columns: Sequence[str]) -> str:
    """For a message: of a file that is no table, its first line may be taken for a header of any length."""
    return f"Columns seen: {', '.join(columns) or 'none'}"[:LONGEST_MESSAGE]


def _check_first_object(rows: Iterator[Row], fields: Fields) -> Iterator[Row]:
    """Rows without common columns: a wrong column is found out at the first row that has any. One to keep may be
    missing there and come later."""
    seen = []
    for row in rows:
        seen.append(row)
        if isinstance(row.value, Mapping):
            columns = list(row.value)
            replace(fields, keep=()).wanted(columns)
            for name in set(fields.keep) - set(columns):
                logger.warning("--keep %s: the first row has no such column, only %s", name, ", ".join(columns))
        if not isinstance(row.value, Failure) or len(seen) == 1000:
            break
    return chain(seen, rows)


def _reference(index: int, row: Row, fields: Fields, folder: str) -> Reference:
    """A row that has no usable image is one whose location is the failure."""
    reference = _named_in(index, row, fields, folder)
    return replace(reference, wanted=row.wanted) if row.wanted else reference


def _named_in(index: int, row: Row, fields: Fields, folder: str) -> Reference:
    value: object = row.value
    if isinstance(value, Failure):
        return Reference(index, None, value)
    if not isinstance(value, Mapping):
        return _located(index, value, fields.column or "", fields, folder, row.line)
    kept = {name: value.get(name) for name in fields.keep}
    try:
        column = fields.image_column(list(value))
        if fields.label:
            label = fields.label(list(value))
            kept[label] = value[label]
        id = given_identity(value.get(fields.id)) if fields.id else None
    except (UsageError, RowError) as error:
        return Reference(index, None, tables.row_failure(f"line {row.line}: {error}"), kept)
    reference = _located(index, value[column], column, fields, folder, row.line)
    return replace(reference, keep=kept, id=id or reference.id)


def _saying_what_is_twice(references: Iterator[Reference], spec: str) -> Iterator[Reference]:
    """At the end, if rows have the same id: whoever joins by it will take one for another. An id is remembered for the
    next IDS_REMEMBERED rows."""
    remembered: dict[str, None] = {}
    doubles, first = 0, ""
    for reference in references:
        if id := reference.id:
            if id in remembered:
                doubles, first = doubles + 1, first or str(reference.image)
            remembered[id] = None
            if len(remembered) > IDS_REMEMBERED:
                del remembered[next(iter(remembered))]
        yield reference
    if doubles:
        rows = counted(doubles, "row has", "rows have")
        logger.warning("--id: %s the id of a row before in %s, that of %s first", rows, redact(spec), clean(first))


def _located(index: int, value: object, column: str, fields: Fields, folder: str, line: int) -> Reference:
    name, location = locate_value(value, column, folder, line, fields.map)
    if name and fields.image_optional and isinstance(location, Failure):
        location = LocalFile(name)  # nobody opens it
    return _named(index, name, location)


def _shown_apart(reference: Reference, spec: str) -> Reference:
    """One of the input `spec` among several: a name with its folder, and of a row that has none, of what input."""
    match reference.location:
        case Failure(type, message) if reference.image is None:
            return replace(reference, location=Failure(type, f"{redact(spec)}: {message}"))
        case LocalFile(path):
            return replace(reference, image=path)
        case StoredFile(address) if "://" not in str(reference.image):
            return replace(reference, image=address)
        case _:
            return reference


def _named(index: int, name: str | None, location: Location) -> Reference:
    sha256 = digest_of_inline(location)
    id = image_id_if_hidden(name, sha256) if name else None
    return Reference(index, name and redact(name), location, sha256=sha256, id=id)
