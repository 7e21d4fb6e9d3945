"""Records to the file that the user asked for. Every run grows JSONL; at its end that becomes the wanted format.

predictions  jsonl, json, csv, parquet, sample
features     parquet, or npy beside the records without their features (rows)
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from deit_batch.errors import UsageError
from deit_batch.io import NAME_FIELDS, FeatureName, json_line, unpack

# A new one belongs into schemas/run-report.schema.json, too.
FORMATS = ("jsonl", "json", "csv", "parquet", "sample")
_CSV_COLUMNS = "index image label score predictions error_type error_message".split()
_CSV_COLUMNS += NAME_FIELDS[1:]
_BY_SUFFIX = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_FEATURES_BY_SUFFIX = {".parquet": "parquet", ".npy": "npy"}


@dataclass(frozen=True, slots=True)
class Columns:
    """What records hold beside what all do: the kept columns, and the features that stand for the predictions, if there
    are any, each of `width` numbers."""

    keep: Sequence[str]
    features: Sequence[FeatureName] = ()
    width: int = 0


def choose_format(out: str, named: str | None, keep: Sequence[str]) -> str:
    """The format asked for, or the one that the file's ending says. Raises UsageError if neither tells, or the format
    can't take what it is to hold."""
    format = named or ("jsonl" if out == "-" else _BY_SUFFIX.get(Path(out).suffix.lower()))
    if format is None:
        raise UsageError(f"--out {out}: end it in {', '.join(_BY_SUFFIX)}, or say --format")
    if out == "-" and format not in ("jsonl", "sample"):
        raise UsageError(f"--format {format} can't go to stdout; jsonl and sample can")
    clash = [name for name in keep if name in _CSV_COLUMNS]
    if format == "csv" and clash:
        raise UsageError(f"--keep {clash[0]}: the CSV file has a column of that name already")
    return format


def choose_features_format(out: str) -> str:
    """What the file's ending says. Raises UsageError if features can't go there."""
    format = _FEATURES_BY_SUFFIX.get(Path(out).suffix.lower())
    if format is None:
        raise UsageError(f"--out {out}: features go to a file that ends in {' or '.join(_FEATURES_BY_SUFFIX)}")
    return format


def line(record: dict[str, object], format: str) -> bytes:
    """One record as one line of "jsonl" or "sample"."""
    return json_line(record["predictions"] if format == "sample" else record)


def convert(source: Path, target: Path, format: str, columns: Columns) -> None:
    """Writes the JSONL file of records `source` as `target` in another format, synced to the disk."""
    writers: dict[str, Callable[[Iterator[dict[str, Any]], Path, Columns], None]] = {
        "json": _write_json,
        "sample": _write_sample,
        "csv": _write_csv,
        "parquet": _write_parquet,
        "npy": _write_npy,
        "rows": _write_rows,
    }
    with open(source, "rb") as lines:
        writers[format]((json.loads(text) for text in lines), target, columns)
    with open(target, "rb") as written:
        os.fsync(written.fileno())


def _write_json(records: Iterator[dict[str, Any]], target: Path, columns: Columns) -> None:
    """The card's sample output: a list with one list of {"label", "score"} an image."""
    with open(target, "wb") as file:
        file.write(b"[")
        for place, record in enumerate(records):
            file.write((b",\n" if place else b"\n") + line(record, "sample").rstrip())
        file.write(b"\n]\n")


def _write_sample(records: Iterator[dict[str, Any]], target: Path, columns: Columns) -> None:
    with open(target, "wb") as file:
        file.writelines(line(record, "sample") for record in records)


def _write_csv(records: Iterator[dict[str, Any]], target: Path, columns: Columns) -> None:
    """One row an image: the best label and its score for people, all predictions as JSON for programs."""
    with open(target, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*_CSV_COLUMNS, *columns.keep])
        for record in records:
            best = record["predictions"][0] if record["predictions"] else {}
            error = record.get("error", {})
            writer.writerow(
                [
                    record["index"],
                    record["image"],
                    best.get("label"),
                    best.get("score"),
                    json.dumps(record["predictions"], ensure_ascii=False),
                    error.get("type"),
                    error.get("message"),
                    *map(record.get, NAME_FIELDS[1:]),
                    *(_as_text(record.get(name)) for name in columns.keep),
                ]
            )


def _write_parquet(records: Iterator[dict[str, Any]], target: Path, columns: Columns) -> None:
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
            ("error", error),
            *((name, pa.string()) for name in columns.keep),
        ]
    )
    # No vector comes twice: a dictionary of them would be one more copy.
    with pq.ParquetWriter(target, schema, use_dictionary=not vectors) as writer:
        while rows := list(islice(records, 1000)):
            for row in rows:
                row.update({name: _as_text(row.get(name)) for name in columns.keep})
                row.update({name: np.frombuffer(unpack(text), "<f4") for name, text in row.get("features", {}).items()})
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _write_npy(records: Iterator[dict[str, Any]], target: Path, columns: Columns) -> None:
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


def _write_rows(records: Iterator[dict[str, Any]], target: Path, columns: Columns) -> None:
    """Of which input each row of an array is: the records as JSONL, without their features."""
    with open(target, "wb") as file:
        for record in records:
            del record["features"]
            file.write(json_line(record))


def _as_text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
