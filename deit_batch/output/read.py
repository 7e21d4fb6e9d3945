"""What score has written, read back: the records of a file of predictions one after another, and the run's report."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deit_batch.errors import UsageError
from deit_batch.input.tables import MAX_ROW_CHARS
from deit_batch.io import NAME_FIELDS

logger = logging.getLogger("deit_batch")

_CSV_OWN = frozenset(("label", "score", "error_type", "error_message"))
_OPTIONAL = frozenset(("error", *NAME_FIELDS)) - {"image"}
_ROWS = 1000  # of Parquet at a time


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a .jsonl, .csv or .parquet file of predictions, in their form as JSON. Raises UsageError if it is
    none."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        raise UsageError(f"{path}: says of no prediction which image it is of; give a .jsonl, .csv or .parquet file")
    readers: dict[str, Callable[[Path], Iterator[Any]]] = {".csv": _read_csv, ".parquet": _read_parquet}
    number = 0  # what has another ending is taken for JSONL: a shard may be called preds.0, a partial file is one, too
    try:
        for number, record in enumerate(readers.get(suffix, _read_jsonl)(path), 1):
            if not _is_record(record):
                raise UsageError(f"{path}, record {number}: no record of predictions, as score writes them")
            yield record
    except (
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        RecursionError,
        csv.Error,
    ) as error:  # of pyarrow's, those about content are ValueErrors
        raise UsageError(f"{path}, record {number + 1}: can't be read as predictions of score: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error


def run_report(path: Path) -> dict[str, Any] | None:
    """What lies beside a file of predictions as its `.run.json`; None if there is none, or it is of another file."""
    try:
        report = json.loads(Path(os.path.realpath(path) + ".run.json").read_bytes())
        json.dumps(report, allow_nan=False)  # as it may be written again
        if not _is_report(report):
            raise ValueError("not as score writes it")
        if report["output"]["bytes"] == path.stat().st_size:
            return dict(report)
        logger.warning("%s.run.json is of another file: the page says nothing of the run", path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s.run.json can't be read: the page says nothing of the run (%r)", path, error)
    return None


def _is_report(report: Any) -> bool:
    """Whether all that its readers use is of the type that they take for granted, or not there."""
    numbers, text = (int, float), str
    if not (isinstance(report, dict) and isinstance(report.get("settings"), dict)):
        return False
    if not _has(report, {"images_per_second": numbers, "seconds": dict, "versions": dict}):
        return False
    settings, seconds = report["settings"], report.get("seconds") or {}
    if not _has(settings, {"commit": text, "recipe": dict, "column": text, "limit": int}):
        return False
    recipe = settings.get("recipe") or {}
    if not (_has(recipe, {"resample": int, "mean": list, "std": list}) and _has(seconds, {"total": numbers})):
        return False
    return all(isinstance(value, numbers) for name in ("mean", "std") for value in recipe.get(name) or [])


def _has(values: Any, types: Mapping[str, type | tuple[type, ...]]) -> bool:
    """Whether it is an object whose fields, where they say something, are of these types."""
    return isinstance(values, dict) and all(
        isinstance(values[name], kind) for name, kind in types.items() if values.get(name) is not None
    )


def _is_record(record: Any) -> bool:
    """Whether all is there that its readers take for granted."""
    if not isinstance(record, dict) or not {"index", "image", "predictions"} <= record.keys():
        return False
    error = record.get("error", {"type": "", "message": ""})
    return (
        isinstance(record["index"], int)
        and all(isinstance(record.get(name), str | None) for name in NAME_FIELDS)
        and isinstance(record["predictions"], list)
        and all(_is_prediction(prediction) for prediction in record["predictions"])
        and isinstance(error, dict)
        and all(isinstance(error.get(name), str) for name in ("type", "message"))
    )


def _is_prediction(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("label"), str)
        and isinstance(value.get("score"), int | float)
        and not isinstance(value["score"], bool)
        and 0 <= value["score"] <= 1  # and so no NaN
    )


def _read_jsonl(path: Path) -> Iterator[Any]:
    with open(path, "rb") as lines:
        for line in lines:
            yield json.loads(line)


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(MAX_ROW_CHARS)  # all the scores of a thousand classes are one field
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, strict=True):
            if None in row or None in row.values():
                raise ValueError("not as many fields as the header has; is the file cut off?")
            record: dict[str, Any] = {name: value or None for name, value in row.items() if name not in _CSV_OWN}
            record |= {"index": int(row["index"]), "predictions": json.loads(row["predictions"])}
            if row["error_type"]:
                record["error"] = {"type": row["error_type"], "message": row["error_message"]}
            yield _without_empty(record)


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS):
            yield from map(_without_empty, batch.to_pylist())


def _without_empty(record: dict[str, Any]) -> dict[str, Any]:
    """A column is there for all rows; these fields are in a record only if they say something."""
    return {name: value for name, value in record.items() if name not in _OPTIONAL or value is not None}
