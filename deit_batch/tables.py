"""Table files to rows, lazily: CSV, JSONL, Parquet, plain lists, request documents, data sets.

A malformed row comes out as a `Failure` in its place, with its line number; the rows after it follow. Memory holds
one row at a time, of at most MAX_ROW_CHARS, whatever the size of the file.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast
from urllib.parse import parse_qs, urlsplit

from deit_batch.errors import InputError, RowError, UsageError
from deit_batch.io import Failure

if TYPE_CHECKING:
    import pyarrow

MAX_ROW_CHARS = 128 * 2**20
"""A longer row is a failed record. A row may hold an image in base64, so it must be generous."""

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".parquet")
"""All but .parquet also with .gz. On a store, what has none of them may be a folder (listing.is_stored_folder)."""

Value: TypeAlias = Mapping[str, Any] | str | Failure


@dataclass(frozen=True, slots=True)
class Row:
    """`line` counts from 1, header included; in Parquet and data sets it counts the rows."""

    line: int
    value: Value


@dataclass(frozen=True, slots=True)
class Table:
    """An opened table. `columns` is None where rows have no common ones (JSONL, plain lists).

    `total(n)` says how many rows there are, exactly or judged from how far n rows went into the file; None if unknown.
    `class_names`: of the columns that hold numbers of classes, the names of those, from 0.
    """

    rows: Iterator[Row]
    columns: list[str] | None = None
    total: Callable[[int], int | None] = lambda read: None
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)


def row_failure(message: str) -> Failure:
    return Failure.of(RowError(message))


# --- text ------------------------------------------------------------------------------------------------------------


class Lines:
    """The lines of a text, numbered, each of at most MAX_ROW_CHARS; `push_back` returns some to be read again."""

    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self._pushed: list[str] = []
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._pushed.pop() if self._pushed else self._read()
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) > MAX_ROW_CHARS:
            raise RowError(f"line {self.number}: longer than {MAX_ROW_CHARS:,} characters")
        return line

    def push_back(self, lines: list[str]) -> None:
        self._pushed.extend(reversed(lines))
        self.number -= len(lines)

    def _read(self) -> str:
        try:
            line = self._text.readline(MAX_ROW_CHARS + 1)
            rest = line
            while len(rest) > MAX_ROW_CHARS and not rest.endswith("\n"):
                rest = self._text.readline(MAX_ROW_CHARS + 1)
        except (OSError, EOFError, zlib.error, UnicodeError) as error:
            raise InputError(f"the input can't be read past line {self.number}: {error}") from error
        return line


def open_text(stream: BinaryIO, *, gzipped: bool, newline: str) -> IO[str]:
    """Text of a UTF-8 stream, or of whatever its byte order mark says. Bytes that are not UTF-8 are carried along
    as surrogates, as Python does for file names, so that a path in any old encoding still finds its file."""
    binary = cast(io.BufferedReader, gzip.GzipFile(fileobj=stream) if gzipped else stream)
    try:
        start = binary.peek(4)[:4]
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"the input can't be read: {error}") from error
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return io.TextIOWrapper(binary, "utf-32", "replace", newline)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return io.TextIOWrapper(binary, "utf-16", "replace", newline)
    return io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline)


def _judged_total(stream: BinaryIO) -> Callable[[int], int | None]:
    """How many rows the file has, judged from the share of its bytes that the rows so far have taken."""
    if not stream.seekable():
        return lambda read: None
    start = stream.tell()
    size = stream.seek(0, 2)
    stream.seek(start)

    def total(read: int) -> int | None:
        if stream.closed:
            return read  # it has been read to its end
        return round(read * size / stream.tell()) if read and stream.tell() else None

    return total


def open_csv(stream: BinaryIO, *, gzipped: bool, delimiter: str) -> Table:
    total = _judged_total(stream)
    # A field may be an image. The module's own limit of 128 KiB is a process-wide setting; there is no other way.
    csv.field_size_limit(MAX_ROW_CHARS)
    lines = Lines(open_text(stream, gzipped=gzipped, newline=""))
    try:
        columns = [name.strip() for name in next(csv.reader(lines, delimiter=delimiter, strict=True), [])]
    except (csv.Error, RowError) as error:
        raise UsageError(f"the table's header can't be read: {error}") from error
    return Table(_csv_rows(lines, columns, delimiter), columns, total)


def _csv_rows(lines: Lines, columns: list[str], delimiter: str) -> Iterator[Row]:
    """An unclosed quote makes a CSV reader swallow the lines after it. So where a row is malformed, only its first
    line is given up, and the others are read again as rows of their own."""
    taken: list[str] = []

    def tape() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    while True:
        start = lines.number + 1
        taken.clear()
        try:
            fields = next(csv.reader(tape(), delimiter=delimiter, strict=True), None)
        except csv.Error as error:
            value: Value = row_failure(f"line {start}: {error}")
        except RowError as error:
            value = Failure.of(error)
        else:
            if fields is None:
                return
            if not fields:
                continue  # a blank line
            if len(fields) == len(columns):
                yield Row(start, dict(zip(columns, fields, strict=True)))
                continue
            value = row_failure(f"line {start}: {len(fields)} fields where the header has {len(columns)}")
        lines.push_back(taken[1:])
        yield Row(start, value)


def open_jsonl(stream: BinaryIO, *, gzipped: bool) -> Table:
    total = _judged_total(stream)
    return Table(_text_rows(stream, gzipped, parse_json), total=total)


def open_list(stream: BinaryIO, *, gzipped: bool, json_lines: bool = False) -> Table:
    """A list of references, one a line; with `json_lines`, a line that starts like JSON is read as JSON."""
    total = _judged_total(stream)

    def parse(line: str, number: int) -> Iterator[Value]:
        if json_lines and line.lstrip()[:1] in ("{", '"'):
            yield from parse_json(line, number)
        else:
            yield line

    return Table(_text_rows(stream, gzipped, parse), total=total)


def _text_rows(stream: BinaryIO, gzipped: bool, parse: Callable[[str, int], Iterator[Value]]) -> Iterator[Row]:
    lines = Lines(open_text(stream, gzipped=gzipped, newline="\n"))
    while True:
        try:
            line = next(lines, None)
        except RowError as error:
            yield Row(lines.number, Failure.of(error))
            continue
        if line is None:
            return
        line = line.rstrip("\r\n")
        if line.strip():
            for value in parse(line, lines.number):
                yield Row(lines.number, value)


def parse_json(text: str, number: int) -> Iterator[Value]:
    """The values of one JSON line: an object, a bare string, or each of a request document's `input_data`."""
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except ValueError as error:
        yield row_failure(f"line {number}: not JSON: {error}")
        return
    except RecursionError:
        yield row_failure(f"line {number}: JSON nested too deeply")
        return
    if isinstance(value, dict) and "input_data" in value:
        try:
            yield from request_values(value)
        except RowError as error:
            yield row_failure(f"line {number}: {error}")
    elif isinstance(value, dict | str):
        yield value
    else:
        yield row_failure(f"line {number}: a JSON {_kind(value)} where an object or a string should be")


def request_values(document: dict[str, Any]) -> list[Value]:
    """The images of a request document, `{"input_data": ["image1", ...]}`, or with Azure ML's
    `{"input_data": {"columns": [...], "data": [[...], ...]}}`. Raises RowError if it has neither form."""
    data = document["input_data"]
    columns: list[str] = []
    if isinstance(data, dict):
        columns, data = data.get("columns") or [], data.get("data")
    if not isinstance(data, list) or not isinstance(columns, list):
        raise RowError('"input_data" holds no list of images')
    return [_request_value(item, columns, place) for place, item in enumerate(data)]


def _request_value(item: object, columns: list[str], place: int) -> Value:
    if isinstance(item, list) and len(item) == len(columns):
        return dict(zip(columns, item, strict=True))
    if isinstance(item, list) and len(item) == 1:
        item = item[0]
    if isinstance(item, dict | str):
        return item
    return row_failure(f"input_data[{place}]: a JSON {_kind(item)} where a string should be")


def _kind(value: object) -> str:
    kinds = {type(None): "null", bool: "boolean", int: "number", float: "number", list: "list"}
    return kinds.get(type(value), type(value).__name__)


def open_document(stream: BinaryIO, *, gzipped: bool) -> Table:
    """The card's request document. It is one JSON value, so unlike every other input it is read whole."""
    text = open_text(stream, gzipped=gzipped, newline="")
    try:
        document = json.load(text, parse_constant=lambda _: None)
        values = request_values(document if isinstance(document, dict) else {"input_data": document})
    except (ValueError, RecursionError, RowError, KeyError, EOFError, zlib.error, OSError) as error:
        raise UsageError(
            f'not a request document ({{"input_data": ["image1", ...]}}): {error!r}; for JSON lines use .jsonl'
        ) from error
    rows = (Row(place, value) for place, value in enumerate(values, 1))
    return Table(rows, total=lambda read: len(values))


# --- Arrow ------------------------------------------------------------------------------------------------------------


def open_parquet(stream: BinaryIO, name: str, wanted: Callable[[Sequence[str]], list[str]]) -> Table:
    """Reads only the columns that `wanted` picks from all the names, through a small buffer: a column of images can
    be larger than memory."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(stream, buffer_size=2**20, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{name}: not a Parquet file: {error}") from error
    columns = file.schema_arrow.names

    def rows() -> Iterator[Row]:
        line = 0
        try:
            for batch in file.iter_batches(batch_size=16, columns=wanted(columns)):
                for value in batch.to_pylist():
                    line += 1
                    yield Row(line, value)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{name}: can't be read past row {line}: {error}") from error

    return Table(rows(), columns, lambda read: int(file.metadata.num_rows), _class_names_of_schema(file.schema_arrow))


def _class_names_of_schema(schema: pyarrow.Schema) -> Mapping[str, Sequence[str]]:
    """What `datasets` has written into a Parquet file beside the numbers of its classes."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    import datasets

    return _class_names(datasets.Features.from_arrow_schema(schema))


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
    datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(name, query.get("config"), revision=query.get("revision"), streaming=True)
        split = _choose_split(list(splits), query.get("split"), address)
        stream = splits[split]
        features = stream.features or stream.take(1)._resolve_features().features or {}
    except UsageError:
        raise
    except Exception as error:  # the library raises whatever its many builders and back ends raise
        raise InputError(f"{address}: the data set can't be loaded: {error}") from error
    for column, feature in features.items():
        if isinstance(feature, datasets.Image):
            # The bytes as they are: decoding is ours, with our limits.
            stream = stream.cast_column(column, datasets.Image(decode=False))
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    columns = images + [column for column in features if column not in images]
    info = (stream.info.splits or {}).get(split)

    def rows() -> Iterator[Row]:
        line = 0
        try:
            for value in stream:
                line += 1
                yield Row(line, value)
        except Exception as error:  # as above
            raise InputError(f"{address}: can't be read past row {line}: {error}") from error

    return Table(rows(), columns, lambda read: info.num_examples if info else None, _class_names(features))


def _choose_split(splits: list[str], wanted: str | None, address: str) -> str:
    if wanted is None and len(splits) == 1:
        return splits[0]
    if wanted in splits:
        return str(wanted)
    raise UsageError(f"{address}: name one of its splits with ?split=…: {', '.join(splits)}")
