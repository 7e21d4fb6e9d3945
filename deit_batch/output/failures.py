"""The first inputs of a result that failed, for the last line of a run: of a scheduled run that may be all that is
read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from deit_batch.errors import MALFORMED
from deit_batch.output.formats import FORMATS, format_by_suffix

SHOWN = 2
_MESSAGE = 100
"""Characters of a message, at most."""


def describe_failures(out: str) -> str:
    """As in "; first a.jpg (DecodeError: no image); all of them: grep '"error":' preds.jsonl". Empty if no record of
    `out` tells of a failure: a stream, an address on a store, a format that does not say which image it is of."""
    path = Path(out)
    if out == "-" or not path.exists():
        return ""
    try:
        first = list(islice(_failed(path), SHOWN))
        shown = ", ".join(f"{_name(record)} ({_reason(record['error'])})" for record in first)
    except (*MALFORMED, OSError):  # the result is there, whoever has changed it since: no reason to fail now
        return ""
    return f"; first {shown}; all of them: {_how_to_list(path, first[0])}" if first else ""


def _failed(path: Path) -> Iterator[dict[str, Any]]:
    lines = _json_lines(path)
    if lines:
        for part in lines:
            with open(part, "rb") as file:
                # Most lines need no parsing.
                records = (json.loads(line) for line in file if b'"error": {' in line)
                yield from (record for record in records if "error" in record)
    else:
        format = format_by_suffix(path, "predictions")
        if format is FORMATS["parquet"]:
            yield from _failed_in_parquet(path)
        elif format and format.read:
            yield from (record for record in format.read(path) if record.get("error"))


def _failed_in_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Without the vectors: a file of features is large."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        has: dict[str, Any] = {"predictions": []} if "predictions" in file.schema_arrow.names else {}
        for batch in file.iter_batches(columns=["index", "image", "error"]):
            yield from (record | has for record in batch.to_pylist() if record["error"])


def _json_lines(path: Path) -> list[Path]:
    """The files with the records as JSON lines; none if they are in another format."""
    if path.is_dir():
        return sorted(path.glob("part-*.jsonl"))
    rows = path.with_name(f"{path.name}.rows.jsonl")
    if rows.exists():
        return [rows]
    format = format_by_suffix(path, "predictions")
    return [path] if format is None or format is FORMATS["jsonl"] else []


def _name(record: dict[str, Any]) -> str:
    return str(record.get("image") or f"index {record['index']}")


def _reason(error: dict[str, str]) -> str:
    message = error["message"]
    return f"{error['type']}: {message if len(message) <= _MESSAGE else message[: _MESSAGE - 1] + '…'}"


def _how_to_list(path: Path, record: dict[str, Any]) -> str:
    lines = _json_lines(path)
    if path.is_dir():
        return f"grep -r '\"error\":' {shlex.quote(str(path))}"
    if lines:
        return f"grep '\"error\":' {shlex.quote(str(lines[0]))}"
    if "predictions" not in record:
        return "the rows that have an error"
    return f"deit-batch report {shlex.quote(str(path))} --out failures.html"
