"""The forms that results have: each with its name, the endings of its files, and how it is written and read back.

Every run grows JSONL; at its end that becomes the wanted format. A new one is a function here, or two, and an entry in
FORMATS.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

from deit_batch.errors import UsageError
from deit_batch.input.tables import MAX_ROW_CHARS
from deit_batch.io import NAME_FIELDS, FeatureName, json_line, unpack
from deit_batch.output import spreadsheet
from deit_batch.system.atomic import sync_file

_CSV_COLUMNS = (*"index image label score predictions error_type error_message".split(), *NAME_FIELDS[1:])
_CSV_OWN = frozenset(("label", "score", "error_type", "error_message"))
_OPTIONAL = frozenset(("error", *NAME_FIELDS)) - {"image"}
_PARQUET_ROWS = 1000  # at a time

logger = logging.getLogger("deit_batch")

UNSURE = "unsure"
"""The field of a record, and the column, that marks it."""

Records = Iterator[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Columns:
    """What records hold beside what all do: the kept columns, and the features that stand for the predictions, if there
    are any, each of `width` numbers. `flat`: the best label and its score, too, as `add_best` puts them there;
    `for_spreadsheet`: a CSV file is to be opened by one; `unsure`: whether they are marked as unsure or not; `most`:
    the most labels that a record has, of columns for each of them; None: they are to be counted."""

    keep: Sequence[str]
    features: Sequence[FeatureName] = ()
    width: int = 0
    flat: bool = False
    for_spreadsheet: bool = False
    unsure: bool = False
    most: int | None = 0


Write: TypeAlias = Callable[[Records, Path, Columns], None]


@dataclass(frozen=True, slots=True)
class Format:
    """A form of results. `suffixes`: the endings that choose it; `write`: converts the records of a run, which grow as
    JSONL, to a file (None: they are left as they are); `read`: the records of a file (None: they do not say which image
    they are of); `of`: what it can hold; `reserved`: what no kept column may be called, beside the fields of a record;
    `streams`: whether it can go to stdout, a line an image; `in_parts`: whether it can be a folder of parts;
    `has_rows`: whether the records, without their features, stand beside it in a file of their own."""

    name: str
    suffixes: tuple[str, ...]
    write: Write | None
    read: Callable[[Path], Iterator[Any]] | None
    of: tuple[Literal["predictions", "features"], ...] = ("predictions",)
    reserved: Sequence[str] = ()
    streams: bool = False
    in_parts: bool = False
    has_rows: bool = False


def suffixes(of: Literal["predictions", "features"]) -> list[str]:
    """The endings of the files that can hold them."""
    return [suffix for format in FORMATS.values() if of in format.of for suffix in format.suffixes]


def readable_suffixes() -> str:
    """The endings of the files that `read` takes, for a message or a help text."""
    *others, last = (format.suffixes[0] for format in FORMATS.values() if format.read)
    return f"{', '.join(others)} or {last}"


def names(of: Literal["predictions", "features"]) -> list[str]:
    """Of the formats that can hold them."""
    return [format.name for format in FORMATS.values() if of in format.of]


def format_by_suffix(path: str | Path, of: Literal["predictions", "features"]) -> Format | None:
    """The format that a file's ending says."""
    suffix = Path(path).suffix.lower()
    return next((format for format in FORMATS.values() if of in format.of and suffix in format.suffixes), None)


def choose_format(out: str, named: str | None, keep: Sequence[str]) -> Format:
    """The format of predictions that is asked for, or that the file's ending says. Raises UsageError if neither tells,
    or the format can't take what it is to hold."""
    default = FORMATS["jsonl"] if out == "-" else format_by_suffix(out, "predictions")
    format = FORMATS[named] if named else default
    if format is None:
        raise UsageError(f"--out {out}: end it in {', '.join(suffixes('predictions'))}, or say --format")
    if out != "-" and default and default is not format:
        logger.warning(
            "--out %s ends as %s does, and is to hold %s: it is not read back by its ending",
            out,
            default.name,
            format.name,
        )
    if out == "-" and not format.streams:
        streaming = " and ".join(format.name for format in FORMATS.values() if format.streams)
        raise UsageError(f"--format {format.name} can't go to stdout; {streaming} can")
    clash = [name for name in keep if name in format.reserved]
    if clash:
        raise UsageError(f"--keep {clash[0]}: the {format.name} file has a column of that name already")
    return format


def choose_features_format(out: str) -> Format:
    """What the file's ending says. Raises UsageError if features can't go there."""
    format = format_by_suffix(out, "features")
    if format is None:
        raise UsageError(f"--out {out}: features go to a file that ends in {' or '.join(suffixes('features'))}")
    return format


def line(record: dict[str, object], format: Format) -> bytes:
    """One record as one line, for a format that streams."""
    return json_line(record["predictions"] if format.name == "sample" else record)


def convert(source: Path, target: Path, write: Write, columns: Columns) -> None:
    """Writes the JSONL file of records `source` as `target` in another format, synced to the disk."""
    if columns.most is None:
        columns = replace(columns, most=max((len(each["predictions"]) for each in read_jsonl(source)), default=0))
    write(read_jsonl(source), target, columns)
    sync_file(target)


# --- writing ---------------------------------------------------------------------------------------------------------


def _write_json(records: Records, target: Path, columns: Columns) -> None:
    """The card's sample output: a list with one list of {"label", "score"} an image."""
    with open(target, "wb") as file:
        file.write(b"[")
        for place, record in enumerate(records):
            file.write((b",\n" if place else b"\n") + json_line(record["predictions"]).rstrip())
        file.write(b"\n]\n")


def _write_sample(records: Records, target: Path, columns: Columns) -> None:
    with open(target, "wb") as file:
        file.writelines(json_line(record["predictions"]) for record in records)


def _write_csv(records: Records, target: Path, columns: Columns) -> None:
    """One row an image: the best label and its score for people, all predictions as JSON for programs."""
    others = [*columns.keep, *([UNSURE] if columns.unsure else [])]
    rows = (_csv_row(record, others) for record in records)
    write_csv_rows([*_CSV_COLUMNS, *others], rows, target, for_spreadsheet=columns.for_spreadsheet)


def _csv_row(record: dict[str, Any], keep: Sequence[str]) -> list[Any]:
    best = record["predictions"][0] if record["predictions"] else {}
    error = record.get("error", {})
    return [
        record["index"],
        record["image"],
        best.get("label"),
        best.get("score"),
        json.dumps(record["predictions"], ensure_ascii=False),
        error.get("type"),
        error.get("message"),
        *map(record.get, NAME_FIELDS[1:]),
        *(as_text(record.get(name)) for name in keep),
    ]


def write_csv_rows(header: Sequence[str], rows: Iterable[list[Any]], target: Path, *, for_spreadsheet: bool) -> None:
    """Of text and numbers, as they are or as a spreadsheet wants them."""
    with open(target, "w", encoding=spreadsheet.ENCODING if for_spreadsheet else "utf-8", newline="") as file:
        writer = csv.writer(file)
        all_rows = chain([list(header)], rows)
        writer.writerows(spreadsheet.harmless_rows(all_rows) if for_spreadsheet else all_rows)


def _write_parquet(records: Records, target: Path, columns: Columns) -> None:
    """The record's own fields, but a column for each of its features, null where it failed; kept columns as strings,
    for their type may change from row to row."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    prediction = pa.struct([("label", pa.string()), ("score", pa.float64())])
    error = pa.struct([("type", pa.string()), ("message", pa.string())])
    vectors: list[tuple[str, Any]] = [(name, pa.list_(pa.float32())) for name in columns.features]
    schema = pa.schema(
        [
            ("index", pa.int64()),
            *((name, pa.string()) for name in NAME_FIELDS),
            *(vectors or [("predictions", pa.list_(prediction))]),
            *([("label", pa.string()), ("score", pa.float64())] if columns.flat else []),
            ("error", error),
            *((name, pa.string()) for name in columns.keep),
            *([(UNSURE, pa.bool_())] if columns.unsure else []),
        ]
    )
    # No vector comes twice: a dictionary of them would be one more copy.
    with pq.ParquetWriter(target, schema, use_dictionary=not vectors) as writer:
        while rows := list(islice(records, _PARQUET_ROWS)):
            for row in rows:
                row.update({name: as_text(row.get(name)) for name in columns.keep})
                row.update({name: np.frombuffer(unpack(text), "<f4") for name, text in row.get("features", {}).items()})
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _write_npy(records: Records, target: Path, columns: Columns) -> None:
    """float32 [n, width], or of several features [n, features, width]; NaN where it failed."""
    import numpy as np

    several = len(columns.features) > 1
    shape = (len(columns.features), columns.width) if several else (columns.width,)
    nothing = np.full(shape, np.nan, "<f4").tobytes()
    with open(target, "wb") as file:
        _write_npy_header(file, (0, *shape))
        count = 0
        for count, record in enumerate(records, 1):  # noqa: B007 - their number, at the end
            features = record["features"]
            file.write(b"".join(unpack(features[name]) for name in columns.features) if features else nothing)
        file.seek(0)
        _write_npy_header(file, (count, *shape))


def _write_npy_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Always of the same length: NumPy leaves room in it for the number of rows to grow."""
    from numpy.lib.format import write_array_header_1_0

    write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


def write_rows(records: Records, target: Path, columns: Columns) -> None:
    """Of which input each row of an array is: the records as JSONL, without their features."""
    with open(target, "wb") as file:
        for record in records:
            del record["features"]
            file.write(json_line(record))


def add_best(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its best label and that one's score as fields of its own, null if it has none."""
    best = record["predictions"][0] if record["predictions"] else {}
    return record | {"label": best.get("label"), "score": best.get("score")}


def without_best(record: dict[str, Any]) -> dict[str, Any]:
    """The record without what `add_best` has added. A kept column that is called `label`, as what an image truly shows
    may be, stays: no other field repeats the score of the best prediction beside it."""
    if not {"label", "score"} <= record.keys():
        return record
    plain = {name: value for name, value in record.items() if name not in ("label", "score")}
    return plain if add_best(plain) == record else record


def as_text(value: object) -> str | None:
    """Of a kept value, whose type may change from row to row: a string as it is, anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_jsonl(path: Path) -> Iterator[Any]:
    with open(path, "rb") as lines:
        for line in lines:
            yield json.loads(line)


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(MAX_ROW_CHARS)  # all the scores of a thousand classes are one field
    with open(path, encoding="utf-8", newline="") as file:
        for_spreadsheet = file.read(1) == spreadsheet.MARK
        if not for_spreadsheet:
            file.seek(0)
        for row in csv.DictReader(file, strict=True):
            if None in row or None in row.values():
                raise ValueError("not as many fields as the header has; is the file cut off?")
            if for_spreadsheet:
                row = dict(zip(map(spreadsheet.original, row), map(spreadsheet.original, row.values()), strict=True))
            record: dict[str, Any] = {name: value or None for name, value in row.items() if name not in _CSV_OWN}
            record |= {"index": int(row["index"]), "predictions": json.loads(row["predictions"])}
            if row["error_type"]:
                record["error"] = {"type": row["error_type"], "message": row["error_message"]}
            yield _without_empty(record)


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_PARQUET_ROWS):
            yield from map(_without_empty, batch.to_pylist())


def _without_empty(record: dict[str, Any]) -> dict[str, Any]:
    """A column is there for all rows; these fields are in a record only if they say something."""
    return {name: value for name, value in record.items() if name not in _OPTIONAL or value is not None}


# --- all of them ------------------------------------------------------------------------------------------------------

FORMATS = {
    format.name: format
    for format in (
        Format("jsonl", (".jsonl", ".ndjson"), None, read_jsonl, streams=True, in_parts=True),
        Format("json", (".json",), _write_json, None),
        Format("csv", (".csv",), _write_csv, _read_csv, reserved=_CSV_COLUMNS),
        Format("parquet", (".parquet",), _write_parquet, _read_parquet, of=("predictions", "features"), in_parts=True),
        Format("sample", (), _write_sample, None, streams=True),
        Format("npy", (".npy",), _write_npy, None, of=("features",), has_rows=True),
    )
}
