"""Table files to rows, lazily: CSV, JSONL, Parquet, plain lists, request documents, data sets.

A malformed row comes out as a `Failure` in its place, with its line number; the rows after it follow. Memory holds
one row at a time, of at most MAX_ROW_CHARS, whatever the size of the file.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any, BinaryIO, TypeAlias

from deit_batch.errors import MALFORMED, RowError, UsageError, cut_off, in_words
from deit_batch.input.columns import usual_image_column
from deit_batch.input.image_list import images_listed
from deit_batch.input.packed import unpacked
from deit_batch.io import COLUMNS, DELIMITED, NAMES, Failure, Picture, Takes, Wanted, counted, unique_fields
from deit_batch.limits import require_number, require_whole_number

logger = logging.getLogger("deit_batch")

MAX_ROW_CHARS = 32 * 2**20
"""A longer row of text is a failed record. A row may hold an image in base64, so it must be generous; but the CSV
reader takes four bytes a character."""

MAX_ROW_BYTES = 128 * 2**20
"""Of a row that need not be text, as MAX_ROW_CHARS."""

MAX_DOCUMENT_CHARS = 64 * 2**20
"""Of a request document, which is read whole."""

MAX_VALUES = 10**6
"""In a row or document. An empty list takes three characters, and twenty times their room in memory."""

_LINE_BYTES = 64
"""What a line takes in memory beside its characters, roughly."""

Value: TypeAlias = Mapping[str, Any] | str | bytes | Picture | Failure
"""Of a row: its cells; or, where it has none, where its image is, the image's bytes, or its pixels."""


@dataclass(frozen=True, slots=True)
class Row:
    """`line` counts from 1, header included; in Parquet and data sets it counts the rows; of what Python gives, rows or
    items from 0, and `unit` says which. `wanted`: of its predictions, where it is of a request that says so."""

    line: int
    value: Value
    wanted: Wanted | None = None
    unit: str = "line"

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.unit} {self.line}"


@dataclass(frozen=True, slots=True)
class Table:
    """An opened table. `columns` is None where rows have no common ones (JSONL, plain lists).

    `total(n)` says how many rows there are, exactly or judged from how far n rows went into the file; None if unknown.
    `class_names`: of the columns that hold numbers of classes, the names of those, from 0.
    `passed_over`: as in io.Source, what is beside the rows and no row. `takes`: as there.
    """

    rows: Iterator[Row]
    columns: list[str] | None = None
    total: Callable[[int], int | None] = lambda read: None
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)
    takes: Takes = COLUMNS | NAMES


def row_failure(message: str) -> Failure:
    return Failure.of(RowError(message))


# --- text ------------------------------------------------------------------------------------------------------------


class Lines:
    """The lines of a text, numbered, each of at most MAX_ROW_CHARS; `push_back` returns some to be read again. `name`
    is what messages call the text."""

    def __init__(self, text: IO[str], name: str) -> None:
        self._text, self._name = text, name
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
        except (OSError, EOFError, UnicodeError) as error:
            raise cut_off(f"{self._name}: can't be read past line {self.number}: {in_words(error)}", error) from error
        return line


def open_text(stream: BinaryIO, name: str, *, newline: str) -> IO[str]:
    """Text of a stream, which may be packed: in UTF-8, or whatever its byte order mark says. Bytes that are not UTF-8
    are carried along as surrogates, as Python does for file names, so that a path in any old encoding still finds its
    file."""
    try:
        binary = unpacked(stream, name)
        start = binary.peek(4)[:4]
    except (OSError, EOFError) as error:
        raise cut_off(f"{name}: can't be read: {in_words(error)}", error) from error
    encoding, errors = encoding_of(start)
    return io.TextIOWrapper(binary, encoding, errors, newline)


def encoding_of(start: bytes) -> tuple[str, str]:
    """Of a text that begins so, and what becomes of bytes that are not of it."""
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32", "replace"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16", "replace"
    return "utf-8-sig", "surrogateescape"


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


DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""Of a .csv, the likeliest first; as spreadsheets of other countries and databases write it."""


def parse_delimiter(text: str) -> str:
    """Of what --delimiter gives. Raises UsageError if it is none."""
    character = "\t" if text in ("tab", "\\t") else text
    if len(character) != 1 or character in '"\r\n\0':
        raise UsageError(f"--delimiter {text!r:.40}: it must be one character, or tab")
    return character


def delimiter_of(line: str) -> str:
    """That by which the header has a column that is usually the image, or else by which it has the most columns."""
    try:
        headers = {each: next(csv.reader([line], delimiter=each), []) for each in DELIMITERS}
    except csv.Error:  # it will be told of where the header is read
        return ","
    usual = (each for each, header in headers.items() if usual_image_column([name.strip() for name in header]))
    return next(usual, max(headers, key=lambda each: len(headers[each])))


def is_header(line: str) -> bool:
    """Whether it looks like one: a name in it is usual for the column that holds the image."""
    names = [name.strip('" ') for name in line.strip().split(delimiter_of(line))]
    return usual_image_column(names) is not None


def open_csv(stream: BinaryIO, name: str, *, delimiter: str | None) -> Table:
    """`delimiter`: None if the header says it."""
    total = _judged_total(stream)
    # A field may be an image. The module's own limit of 128 KiB is a process-wide setting; there is no other way.
    csv.field_size_limit(MAX_ROW_CHARS)
    lines = Lines(open_text(stream, name, newline=""), name)
    try:
        if delimiter is None:
            first = list(islice(lines, 1))
            lines.push_back(first)
            delimiter = delimiter_of(first[0]) if first else ","
            if delimiter != ",":
                logger.info("%s: its columns are separated by %s", name, DELIMITERS[delimiter])
        header = next(csv.reader(_row_lines(lines, delimiter, []), delimiter=delimiter, strict=True), [])
        columns = [name.strip() for name in header]
    except (csv.Error, RowError) as error:
        raise UsageError(f"{name}: its header can't be read: {_what_is_no_csv(error)}") from error
    return Table(_csv_rows(lines, columns, delimiter), columns, total, takes=COLUMNS | NAMES | DELIMITED)


def _csv_rows(lines: Lines, columns: list[str], delimiter: str) -> Iterator[Row]:
    """An unclosed quote makes a CSV reader swallow the lines after it. So where a row is malformed, only its first
    line is given up, and the others are read again as rows of their own."""
    taken: list[str] = []
    while True:
        start = lines.number + 1
        taken.clear()
        try:
            fields = next(csv.reader(_row_lines(lines, delimiter, taken), delimiter=delimiter, strict=True), None)
        except csv.Error as error:
            value: Value = row_failure(f"line {start}: {_what_is_no_csv(error)}")
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
            value = row_failure(f"line {start}: {counted(len(fields), 'field')} where the header has {len(columns)}")
        lines.push_back(taken[1:])
        yield Row(start, value)


def _what_is_no_csv(error: Exception) -> str:
    """In words, where the module's own are not."""
    said = str(error)
    if "unexpected end" in said:
        return "a quote is not closed"
    if "expected after" in said:
        return "a quote is closed within a field"
    if "new-line character" in said:
        return "a carriage return within a field without quotes"
    return said


def _row_lines(lines: Lines, delimiter: str, taken: list[str]) -> Iterator[str]:
    """Those that a row goes on for, which are also put into `taken`. Raises RowError if they are more than one row may
    take."""
    start = lines.number + 1
    room, fields = MAX_ROW_CHARS, MAX_VALUES
    for line in lines:
        taken.append(line)
        room -= len(line) + (_LINE_BYTES if len(taken) > 1 else 0)
        fields -= line.count(delimiter)
        if room < 0:
            raise RowError(f"line {start}: longer than {MAX_ROW_CHARS:,} characters")
        if fields < 0:
            raise RowError(f"line {start}: more than {MAX_VALUES:,} values")
        yield line


def open_jsonl(stream: BinaryIO, name: str) -> Table:
    total = _judged_total(stream)
    return Table(_text_rows(stream, name, parse_json), total=total)


def open_list(stream: BinaryIO, name: str, *, json_lines: bool = False) -> Table:
    """A list of references, one a line; with `json_lines`, a line that starts like JSON is read as JSON."""
    total = _judged_total(stream)

    def parse(line: str, number: int) -> Iterator[Row]:
        if json_lines and line.lstrip()[:1] in ("{", '"'):
            yield from parse_json(line, number)
        else:
            if number == 1 and not json_lines and is_header(line):
                logger.warning(
                    "%s: its first line, %.100s, looks like a header; of a table, end the name in .csv", name, line
                )
            yield Row(number, line)

    return Table(_text_rows(stream, name, parse), total=total, takes=COLUMNS | NAMES if json_lines else NAMES)


def _text_rows(stream: BinaryIO, name: str, parse: Callable[[str, int], Iterator[Row]]) -> Iterator[Row]:
    lines = Lines(open_text(stream, name, newline="\n"), name)
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
            yield from parse(line, lines.number)


def parse_json(text: str, number: int) -> Iterator[Row]:
    """The values of one JSON line: an object, a bare string, or each image of a request document."""
    try:
        value = load_json(text)
        if isinstance(value, dict) and "input_data" in value:
            request = parse_request(value)
            yield from (Row(number, image, request.wanted) for image in request.images)
        elif isinstance(value, dict | str):
            yield Row(number, value)
        else:
            yield Row(
                number, row_failure(f"line {number}: a JSON {_kind(value)} where an object or a string should be")
            )
    except (ValueError, RowError) as error:
        yield Row(number, row_failure(f"line {number}: {in_words(error)}"))
    except RecursionError:
        yield Row(number, row_failure(f"line {number}: JSON nested too deeply"))


def load_json(text: str) -> Any:
    """NaN and infinities are None. Raises ValueError if it is no JSON, or an object has a name twice; RecursionError if
    it is nested too deeply; and RowError if it may hold so many values that they would take far more memory than the
    text does."""
    if sum(map(text.count, "[{,")) > MAX_VALUES:
        raise RowError(f"more than {MAX_VALUES:,} values")
    return json.loads(text, parse_constant=lambda _: None, object_pairs_hook=unique_fields)


@dataclass(frozen=True, slots=True)
class Request:
    """A request document: `images`, as rows of a table hold them, and what is `wanted` of their predictions."""

    images: list[Value]
    wanted: Wanted | None = None


PARAMETERS = ("top_k", "threshold")
"""What a request may ask for, by the names of the options."""


def read_request(text: str) -> Request:
    """One that came over a network. Raises RowError, in words, for what is none."""
    try:
        return parse_request(load_json(text))
    except MALFORMED as error:
        raise RowError(in_words(error)) from error


def parse_request(document: object) -> Request:
    """The images of a request document, `{"input_data": ["image1", ...]}`, or with Azure ML's
    `{"input_data": {"columns": [...], "index": [...], "data": [[...], ...]}}`, both also with `"params": {"top_k": 3}`.
    Files, the server and Azure ML's deployment all read it by this. Raises RowError if it has neither form, or a field
    or parameter that is not known."""
    if not isinstance(document, dict):
        raise RowError(f"a JSON {_kind(document)} where an object should be")
    if "input_data" not in document:
        keys = ", ".join(json.dumps(key) for key in document)
        raise RowError(f'there is no "input_data" in it, but {keys:.100}' if keys else 'there is no "input_data" in it')
    _require_known("field", document, ("input_data", "params"))
    data = document["input_data"]
    columns: list[str] = []
    table: dict[str, Any] = {}
    if isinstance(data, dict):
        _require_known('field of "input_data"', data, ("columns", "index", "data"))
        table, columns, data = data, data.get("columns") or [], data.get("data")
    if not isinstance(data, list) or not isinstance(columns, list):
        raise RowError('"input_data" holds no list of images')
    _require_table(columns, table.get("index"), len(data))
    images = [_request_value(item, columns, place) for place, item in enumerate(data)]
    return Request(images, _wanted(document.get("params")))


def _require_known(what: str, given: Mapping[str, object], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise RowError(f"unknown {what}: {json.dumps(name):.60}; there are {', '.join(known)}")


def _require_table(columns: Sequence[object], index: object, rows: int) -> None:
    for name, count in Counter(name if isinstance(name, str) else None for name in columns).items():
        if name is None:
            raise RowError('"columns" holds a name that is no text')
        if count > 1:
            raise RowError(f'"columns" has the name {json.dumps(name):.60} {count} times')
    if index is not None and (not isinstance(index, list) or len(index) != rows):
        length = counted(len(index), "value") if isinstance(index, list) else f"a JSON {_kind(index)}"
        raise RowError(f'"index" is {length}, where "data" has {counted(rows, "row")}')


def _wanted(params: object) -> Wanted | None:
    if not params and (params is None or isinstance(params, dict)):
        return None
    if not isinstance(params, dict):
        raise RowError(f'"params" is a JSON {_kind(params)} where an object should be')
    _require_known("parameter", params, PARAMETERS)
    try:
        if "top_k" in params:
            require_whole_number("top_k", params["top_k"], 1)
        if "threshold" in params:
            require_number("threshold", params["threshold"], 0, 1)
    except UsageError as error:
        raise RowError(f"parameter {error}") from error
    return Wanted(**params)


def image_of(value: Value) -> object:
    """What a row of a request says of its image, for those that take an image and nothing else. Raises RowError if no
    column of it is one."""
    if not isinstance(value, Mapping):
        return value
    column = usual_image_column(list(value))
    if column is None:
        raise RowError(f"no column looks like the image; there are {', '.join(value):.100}")
    return value[column]


def _request_value(item: object, columns: list[str], place: int) -> Value:
    """Of several columns, a row has a cell for each. One column alone is the image, whatever it is called, and a row of
    it may be bare."""
    cells = item if isinstance(item, list) else [item]
    if columns and len(cells) != len(columns):
        return row_failure(
            f"input_data[{place}]: {counted(len(cells), 'cell')} where there are {counted(len(columns), 'column')}"
        )
    is_unusual = len(columns) == 1 and usual_image_column(columns) is None
    if isinstance(item, list) and len(item) == len(columns) and not is_unusual:
        return dict(zip(columns, item, strict=True))
    if isinstance(item, list) and len(item) == 1:
        item = item[0]
    if isinstance(item, dict | str):
        return item
    return row_failure(f"input_data[{place}]: a JSON {_kind(item)} where a string should be")


def _kind(value: object) -> str:
    kinds = {type(None): "null", bool: "boolean", int: "number", float: "number", list: "list"}
    return kinds.get(type(value), type(value).__name__)


def _whole_request(document: object) -> Request:
    return parse_request({"input_data": document} if isinstance(document, list) else document)


def _listed(image: object) -> Value:
    return image if isinstance(image, dict | str) else row_failure(f"a JSON {_kind(image)} where an image should be")


def open_document(stream: BinaryIO, name: str) -> Table:
    """The card's request document, or a list of images with what is known of them (image_list.py). It is one JSON
    value, so unlike every other input it is read whole."""
    try:
        whole = open_text(stream, name, newline="").read(MAX_DOCUMENT_CHARS + 1)
    except (EOFError, OSError, UnicodeError) as error:
        raise cut_off(f"{name}: can't be read: {in_words(error)}", error) from error
    if len(whole) > MAX_DOCUMENT_CHARS:
        raise UsageError(
            f"{name}: a request document of more than {MAX_DOCUMENT_CHARS:,} characters; make JSON lines of it"
        )
    try:
        document = load_json(whole)
        images = images_listed(document, name)
        request = Request(list(map(_listed, images))) if images is not None else _whole_request(document)
    except (*MALFORMED, RowError) as error:
        raise UsageError(
            f'{name}: not a request document ({{"input_data": ["image1", ...]}}): {in_words(error)}; for JSON lines '
            "use .jsonl"
        ) from error
    rows = (Row(place, image, request.wanted) for place, image in enumerate(request.images, 1))
    return Table(rows, total=lambda read: len(request.images))
