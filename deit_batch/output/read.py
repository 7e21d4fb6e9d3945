"""What score has written, read back: the records of a file of predictions one after another, and the run's report."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deit_batch.errors import MALFORMED, UsageError, in_words
from deit_batch.io import NAME_FIELDS
from deit_batch.output.formats import FORMATS, format_by_suffix, readable_suffixes, without_best
from deit_batch.output.manifest import files_of
from deit_batch.system.git_lfs import NOT_HERE, is_pointer_file

logger = logging.getLogger("deit_batch")


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of predictions, or of a folder of parts, in their form as JSON. Raises UsageError if it is
    none."""
    if path.is_dir():
        for part in files_of(path):
            yield from read_records(part)
        return
    # What has another ending is taken for JSONL: a shard may be called preds.0, and a partial file is one, too.
    read = (format_by_suffix(path, "predictions") or FORMATS["jsonl"]).read
    if read is None:
        raise UsageError(f"{path}: says of no prediction which image it is of; give a {readable_suffixes()} file")
    if is_pointer_file(str(path)):
        raise UsageError(f"{path}: {NOT_HERE}")
    number = 0
    first = None
    try:
        for number, record in enumerate(read(path), 1):
            if not _is_record(record):
                raise UsageError(f"{path}, record {number}: no record of predictions, as score writes them")
            if record["index"] == first:
                raise UsageError(
                    f"{path}, record {number}: index {first} is there again, as in several results that were put into "
                    "one file; shards of one input are put together by merge"
                )
            first = record["index"] if first is None else first
            yield without_best(record)
    except (*MALFORMED, csv.Error) as error:
        why = in_words(error)
        raise UsageError(f"{path}, record {number + 1}: can't be read as predictions of score: {why}") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error


def read_run_report(path: Path) -> dict[str, Any] | None:
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
    except (*MALFORMED, OSError) as error:
        logger.warning("%s.run.json can't be read: the page says nothing of the run (%s)", path, in_words(error))
    return None


def _is_report(report: Any) -> bool:
    """Whether all that its readers use is of the type that they take for granted, or not there."""
    numbers, text = (int, float), str
    if not (isinstance(report, dict) and isinstance(report.get("settings"), dict)):
        return False
    if not _has(report, {"images_per_second": numbers, "seconds": dict, "versions": dict, "counts": dict}):
        return False
    passed_over = (report.get("counts") or {}).get("passed_over") or {}
    if not (isinstance(passed_over, dict) and all(isinstance(number, int) for number in passed_over.values())):
        return False
    settings, seconds = report["settings"], report.get("seconds") or {}
    if not _has(settings, {"commit": text, "recipe": dict, "column": text, "limit": int}):
        return False
    recipe = settings.get("recipe") or {}
    if not (
        _has(recipe, {"resample": int, "mean": list, "std": list})
        and _has(seconds, {"total": numbers, "load": numbers})
    ):
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
