"""Parquet files and data sets to rows, lazily."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

from deit_batch.errors import MALFORMED, InputError, RowError, UsageError, cut_off
from deit_batch.input.kinds import InputKind, parse_input_name
from deit_batch.input.tables import MAX_ROW_BYTES, Row, Table, Value, row_failure

if TYPE_CHECKING:
    import pyarrow

_MOST_ROWS = 16
_BATCH_BYTES = 2**24
"""Of rows that are read, or become Python's values, at a time, unless one alone is larger."""

_BOMB_BYTES, _BOMB_RATIO = 2**26, 100
"""A row group is a bomb if it unpacks to more than that many bytes, and to that many times the size of its file. Images
hardly shrink, and the text of paths is far smaller."""


def open_parquet(stream: BinaryIO, name: str, wanted: Callable[[Sequence[str]], list[str]]) -> Table:
    """Reads only the columns that `wanted` picks from all the names, through a small buffer: a column of images can
    be larger than memory."""
    import pyarrow
    import pyarrow.parquet

    try:
        stored = stream.seek(0, os.SEEK_END)
        file = pyarrow.parquet.ParquetFile(stream, buffer_size=2**20, pre_buffer=False)
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        raise UsageError(f"{name}: not a Parquet file: {error}") from error
    columns = file.schema_arrow.names

    def batches() -> Iterator[pyarrow.RecordBatch]:
        taken = wanted(columns)
        for group in range(file.num_row_groups):
            count = _rows_at_a_time(file.metadata.row_group(group), stored)
            yield from file.iter_batches(count, row_groups=[group], columns=taken)

    total = int(file.metadata.num_rows)
    return Table(_rows(batches(), name), columns, lambda read: total, _class_names_of_schema(file.schema_arrow))


def _rows(batches: Iterable[pyarrow.RecordBatch], name: str) -> Iterator[Row]:
    """Of small batches. Raises InputError where they can't be read on."""
    import pyarrow

    line = 0
    try:
        for batch in batches:
            for value in _values(batch, line):
                line += 1
                yield Row(line, value)
    except UnicodeError as error:  # Arrow quotes damaged bytes in what it says of them
        raise cut_off(f"{name}: can't be read past row {line}: damaged", error) from error
    except (RowError, pyarrow.ArrowException, OSError) as error:
        raise cut_off(f"{name}: can't be read past row {line}: {error}", error) from error


def _rows_at_a_time(group: pyarrow.RowGroupMetaData, stored: int) -> int:
    """As many rows of a row group as take little memory. `stored`: the bytes of its file. Raises RowError if the group
    grows out of all proportion as it is unpacked.

    Its columns are not asked for their sizes: where what is said of a column is damaged, pyarrow ends the process
    (`RowGroupMetaData.column` lets an exception of C++ through), as its readers do not."""
    size = group.total_byte_size
    if size > max(_BOMB_BYTES, _BOMB_RATIO * stored):
        raise RowError(f"a row group unpacks to {size:,} bytes, of a file of {stored:,}")
    bytes_a_row: int = size // max(group.num_rows, 1)
    return max(1, min(_MOST_ROWS, _BATCH_BYTES // max(bytes_a_row, 1)))


def _values(batch: pyarrow.RecordBatch, line: int) -> Iterator[Value]:
    """Its rows, the first of which comes after row number `line`: all at once, if they are small and nothing is wrong
    with them."""
    batch = _with_whole_times(batch)
    if batch.nbytes * batch.num_rows <= _BATCH_BYTES:  # each row may hold the same large value of a dictionary
        with suppress(*_odd_values()):
            return iter(batch.to_pylist())
    return (_value(batch.slice(number, 1), line + 1 + number) for number in range(batch.num_rows))


def _with_whole_times(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    """Times of day in nanoseconds as text: Arrow makes times of Python of them, without the last three digits."""
    import pyarrow

    for number, field in enumerate(batch.schema):
        if field.type == pyarrow.time64("ns"):
            batch = batch.set_column(number, field.name, batch.column(number).cast(pyarrow.string()))
    return batch


def _value(row: pyarrow.RecordBatch, line: int) -> Value:
    if row.nbytes > MAX_ROW_BYTES:
        return row_failure(f"row {line}: larger than {MAX_ROW_BYTES:,} bytes")
    value = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            value[name] = _cell(column)
        except _odd_values() as error:
            return row_failure(f"row {line}: {name} holds a {column.type} that can't be read: {error}")
    return value


def _cell(column: pyarrow.Array) -> Any:
    """The one value of a column. Text that is not UTF-8 is carried along as in other tables (tables.open_text); what
    Python has no value for, as a date after the year 9999, is text as Arrow writes it."""
    import pyarrow

    try:
        return column.to_pylist()[0]
    except _odd_values():
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
            return column.cast(pyarrow.large_binary())[0].as_py().decode("utf-8", "surrogateescape")
        return column.cast(pyarrow.string())[0].as_py()


def _odd_values() -> tuple[type[Exception], ...]:
    """What a value raises that Python has no value for: dates and times out of range (ValueError, OverflowError), text
    that is not UTF-8 (UnicodeDecodeError, a ValueError), unknown zones (ZoneInfoNotFoundError, a LookupError)."""
    import pyarrow

    return (pyarrow.ArrowException, ValueError, OverflowError, LookupError)


def _class_names_of_schema(schema: pyarrow.Schema) -> Mapping[str, Sequence[str]]:
    """What `datasets` has written into a Parquet file beside the numbers of its classes. It is JSON, for which that
    library need not be waited for; where it is not as it should be, there are no names."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        found = {column: _names_of_classes(feature) for column, feature in features.items()}
    except MALFORMED:
        return {}
    return {column: names for column, names in found.items() if names}


def _names_of_classes(feature: Any) -> Sequence[str]:
    """Of one column's feature: numbers of classes, or a list of them, which an earlier version wrote as one."""
    if isinstance(feature, list):
        feature = feature[0]
    feature = feature.get("feature", feature)
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _class_names(features: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    """Of each column of class numbers, or of lists of them, the names."""
    inner = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    return {column: feature.names for column, feature in inner.items() if getattr(feature, "names", None)}


def open_dataset(address: str) -> Table:
    """`hf://NAME?split=…&config=…&revision=…`: a Hub data set, or a folder that `datasets` can load, streamed."""
    import datasets

    parts = urlsplit(address)
    name = (parts.netloc + parts.path).removeprefix("datasets/")
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    unknown = set(query) - {"split", "config", "revision"}
    if unknown:
        raise UsageError(f"{address}: unknown {', '.join(sorted(unknown))}; known are split, config, revision")
    if parse_input_name(name).kind is InputKind.SAVED:
        split = query.get("split")
        return open_saved(os.path.join(name, split) if split else name)
    datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(name, query.get("config"), revision=query.get("revision"), streaming=True)
        split = _choose_split(list(splits), query.get("split"), address)
        stream = splits[split]
        features = stream.features or stream.take(1)._resolve_features().features or {}
    except UsageError:
        raise
    except Exception as error:  # the library raises whatever its many builders and back ends raise
        is_answer = type(error) is ValueError or isinstance(error, datasets.exceptions.DatasetsError)  # there is none
        kind = UsageError if is_answer else InputError
        raise kind(f"{address}: the data set can't be loaded: {error}") from error
    if stream.features:
        stream = stream.decode(False)  # the bytes as they are: decoding is ours, with our limits

    def rows() -> Iterator[Row]:
        line = 0
        try:
            for value in stream:
                line += 1
                yield Row(line, value)
        except Exception as error:  # as above
            raise InputError(f"{address}: can't be read past row {line}: {error}") from error

    info = (stream.info.splits or {}).get(split)
    total = info.num_examples if info else None
    return Table(rows(), _images_first(features), lambda read: total, _class_names(features))


def open_saved(path: str) -> Table:
    """A folder that `save_to_disk` of `datasets` has left, mapped into memory."""
    import datasets

    try:
        saved = datasets.load_from_disk(path)
    except Exception as error:  # as above
        raise cut_off(f"{path}: the saved data set can't be loaded: {error}", error) from error
    if isinstance(saved, datasets.DatasetDict):
        splits = ", ".join(f"{path.rstrip('/')}/{split}" for split in saved)
        raise UsageError(f"{path} holds several data sets; name one of {splits}")
    rows, features = _rows(_checked(saved.data), path), saved.features
    return Table(rows, _images_first(features), lambda read: len(saved), _class_names(features))


def _checked(table: pyarrow.Table) -> Iterator[pyarrow.RecordBatch]:
    """In small batches. Arrow takes the offsets in a file that it maps into memory as they are, and damaged ones end
    the process: so each part of the table is checked before a row of it is read, as `datasets` does where it streams.
    """
    for part in table.to_batches():
        part.validate(full=True)
        for first in range(0, part.num_rows, _MOST_ROWS):
            yield part.slice(first, _MOST_ROWS)


def _images_first(features: Mapping[str, Any]) -> list[str]:
    """The columns of a data set."""
    import datasets

    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    return images + [column for column in features if column not in images]


def _choose_split(splits: list[str], wanted: str | None, address: str) -> str:
    if wanted is None and len(splits) == 1:
        return splits[0]
    if wanted in splits:
        return str(wanted)
    raise UsageError(f"{address}: name one of its splits with ?split=…: {', '.join(splits)}")
