"""Rows of tables to references: which field is the image, which are kept, and what a row without an image is."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeAlias

from deit_batch.errors import RowError, UsageError
from deit_batch.input import tables
from deit_batch.input.columns import usual_image_column
from deit_batch.input.elsewhere import Map
from deit_batch.input.identity import given_identity, image_id_if_hidden
from deit_batch.input.kinds import InputKind, InputName, image_endings
from deit_batch.input.locate import digest_of_inline, locate_value
from deit_batch.input.tables import Row, Table
from deit_batch.io import LONGEST_MESSAGE, Failure, LocalFile, Location, Reference, Source, StoredFile, clean, counted
from deit_batch.redaction import redact
from deit_batch.system.missing_file import ending_that_lacks

logger = logging.getLogger("deit_batch")

ChooseColumn: TypeAlias = Callable[[Sequence[str]], str]
"""Raises UsageError if there is no such column."""

IDS_REMEMBERED = 50_000


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a row are taken: the image (`column`, by its usual names unless it is given), those to `keep`,
    the one that says which input it is (`id`), and one more that is kept by its own name, which `label` picks. With
    `image_optional`, a table that has an id needs no image, and no image has to be one that can be opened: nothing but
    which input a row is of is asked for. `map`: the places of prefixes that images' names may have (elsewhere.py);
    `suffix`: how the names of their files end, where the rows leave that out. `delimiter`: of tables that are text."""

    column: str | None = None
    keep: Sequence[str] = ()
    id: str | None = None
    label: ChooseColumn | None = None
    image_optional: bool = False
    map: Map = ()
    suffix: str | None = None
    delimiter: str | None = None

    @property
    def are_named(self) -> bool:
        """Whether one was asked for, so that there must be some."""
        return bool(self.column or self.keep or self.id or self.label)

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


def source_of_rows(
    table: Table, spec: str, given: InputName, fields: Fields, folder: str | None, *, is_apart: bool
) -> Source:
    """`is_apart`: whether names are shown with the folder that they start from, for another input's rows may have the
    same names, and start elsewhere."""
    rows = table.rows
    if table.columns is not None:
        fields = replace(fields, column=fields.wanted(table.columns)[0])
    else:
        rows = _saying_what_none_has(_check_first_object(rows, fields), fields.keep)
    if folder is None:
        folder = "" if given.kind in (InputKind.STDIN, InputKind.DATA_SET, InputKind.SAVED) else os.path.dirname(spec)
    found: Iterator[Reference] = (_reference(index, row, fields, folder) for index, row in enumerate(rows))
    found = _saying_what_is_twice(found, spec) if fields.id else found
    found = found if fields.image_optional else _saying_which_ending_lacks(found)
    references = (_shown_apart(reference, spec, fields.suffix) for reference in found) if is_apart else found
    return Source(
        references,
        table.total,
        passed_over=table.passed_over,
        class_names=table.class_names,
        takes=table.takes,
        is_open_file=given.kind is not InputKind.STDIN,
    )


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
            for name in dict.fromkeys(fields.keep):
                if name not in columns:
                    logger.info("--keep %s: not in the first row, which has %s", name, ", ".join(columns))
        if not isinstance(row.value, Failure) or len(seen) == 1000:
            break
    return chain(seen, rows)


def _saying_what_none_has(rows: Iterator[Row], keep: Sequence[str]) -> Iterator[Row]:
    """At the end, of rows without common columns: a field that is rare need not be in the first of them."""
    missing = set(keep)
    for row in rows:
        if missing and isinstance(row.value, Mapping):
            missing.difference_update(row.value)
        yield row
    for name in keep:
        if name in missing:
            logger.warning("--keep %s: no row has such a column", name)


def _saying_which_ending_lacks(references: Iterator[Reference]) -> Iterator[Reference]:
    """At the first file, if it is there with an image's ending behind the name that it has: then all will be."""
    looked = False
    for reference in references:
        if not looked and isinstance(reference.location, LocalFile):
            looked = True
            path = reference.location.path
            if not os.path.exists(path) and (ending := ending_that_lacks(path, image_endings())):
                shown = clean(redact(path))
                logger.warning(
                    "%s is not there, but %s%s is: if names lack their ending, give --suffix %s",
                    *(shown, shown, ending, ending),
                )
        yield reference


def _reference(index: int, row: Row, fields: Fields, folder: str) -> Reference:
    """A row that has no usable image is one whose location is the failure."""
    reference = _named_in(index, row, fields, folder)
    return replace(reference, wanted=row.wanted) if row.wanted else reference


def _named_in(index: int, row: Row, fields: Fields, folder: str) -> Reference:
    value: object = row.value
    nothing_kept = dict.fromkeys(fields.keep)
    if isinstance(value, Failure):
        return Reference(index, None, value, nothing_kept)
    if not isinstance(value, Mapping):
        located = _located(index, value, fields.column or "", fields, folder, row.place)
        return replace(located, keep=nothing_kept)
    kept = {name: value.get(name) for name in fields.keep}
    try:
        column = fields.image_column(list(value))
        if fields.label:
            label = fields.label(list(value))
            kept[label] = value[label]
        id = given_identity(value.get(fields.id)) if fields.id else None
    except (UsageError, RowError) as error:
        return Reference(index, None, tables.row_failure(f"{row.place}: {error}"), kept)
    reference = _located(index, value[column], column, fields, folder, row.place)
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


def _located(index: int, value: object, column: str, fields: Fields, folder: str, place: str) -> Reference:
    name, location = locate_value(value, column, folder, place, fields.map, fields.suffix)
    if name and fields.image_optional and isinstance(location, Failure):
        location = LocalFile(name)  # nobody opens it
    return named_reference(index, name, location)


def _shown_apart(reference: Reference, spec: str, suffix: str | None) -> Reference:
    """One of the input `spec` among several: a name with its folder, and of a row that has none, of what input."""
    added = suffix if suffix and not str(reference.image).endswith(suffix) else ""
    match reference.location:
        case Failure(type, message) if reference.image is None:
            return replace(reference, location=Failure(type, f"{redact(spec)}: {message}"))
        case LocalFile(path):
            return replace(reference, image=path.removesuffix(added))
        case StoredFile(address) if "://" not in str(reference.image):
            return replace(reference, image=address.removesuffix(added))
        case _:
            return reference


def named_reference(index: int, name: str | None, location: Location) -> Reference:
    sha256 = digest_of_inline(location)
    id = image_id_if_hidden(name, sha256) if name else None
    return Reference(index, name and redact(name), location, sha256=sha256, id=id)
