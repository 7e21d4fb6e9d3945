"""A batch deployment: the service calls `init()` once in each of its processes, then `run()` for one mini-batch after
another. What `run` returns goes, a line each, into its output file (`output_action: append_row`)."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from deit_batch.azureml.deployed import batch_options
from deit_batch.errors import DeitBatchError, FetchError, RowError, UsageError
from deit_batch.input.kinds import InputKind, by_ending_of
from deit_batch.input.open import open_source
from deit_batch.io import Failure, LocalFile, Record, Reference, clean, counted, json_line
from deit_batch.loading.deep_gray import DEEP_GRAY, warn_of_deep_gray
from deit_batch.options import Options
from deit_batch.plan import Plan
from deit_batch.scorer import Scorer
from deit_batch.system.logs import set_up_logging

logger = logging.getLogger("deit_batch")

TABLES = (InputKind.CSV, InputKind.TSV, InputKind.JSON_LINES, InputKind.PARQUET)

_SHOWN = 5  # failures, of a mini-batch

_SAY_NOTHING_OF_THE_BYTES = (FetchError.__name__, RowError.__name__)
"""Errors of images of which no byte was seen."""


@dataclass(frozen=True, slots=True)
class _Deployed:
    options: Options
    format: str
    plan: Plan
    scorer: Scorer


_deployed: _Deployed | None = None


def init() -> None:
    """Raises DeitBatchError if there is nothing to score with."""
    global _deployed  # the service passes nothing from init to run
    set_up_logging(quiet=False, verbose=False)
    options, format = batch_options()
    plan = Plan.of(options)
    _deployed = _Deployed(options, format, plan, Scorer(plan, options))
    _deployed.scorer.start()


def run(mini_batch: Sequence[str]) -> list[str]:
    """A line of JSON for each image: the record, without `index`, for mini-batches come back in any order.
    `mini_batch` are paths of images, or of tables of paths, URLs or base64 (the column `image`); an image of a table
    has the table as `file` and its place in it as `row`, from 0. With DEIT_BATCH_SCORE_FORMAT=csv, a line of CSV for
    each: `_csv_line`.

    An image that can't be scored is a line with its error, so that every image has one. But if none of a mini-batch can
    be read at all, as of a dead mount, or a table can't be read to its end, so that nobody knows what is missing, this
    raises DeitBatchError: the service tries it again (`retry_settings`), and counts it (`error_threshold`)."""
    if _deployed is None:
        raise UsageError("init() has not been called")
    options, plan = _deployed.options, _deployed.plan
    numbered = (replace(reference, index=number) for number, reference in enumerate(_references(mini_batch, options)))
    met: Counter[str] = Counter()
    records = [record for batch in _deployed.scorer.scored(plan.batches(numbered), met=met) for record in batch]
    warn_of_deep_gray(met[DEEP_GRAY], scaled=plan.recipe.scale_deep_gray)
    unread = [record.error for record in records if record.error and record.error.type == FetchError.__name__]
    if unread and all(record.error and record.error.type in _SAY_NOTHING_OF_THE_BYTES for record in records):
        raise DeitBatchError(f"nothing of this mini-batch of {len(records):,} could be read: {unread[0].message}")
    if _deployed.format == "csv":
        _warn_of_failures(records)
        return [_csv_line(record) for record in records]
    return [_line(record) for record in records]


def _references(paths: Sequence[str], options: Options) -> Iterator[Reference]:
    for path in paths:
        if by_ending_of(path) not in TABLES:
            yield Reference(0, path, LocalFile(path))
            continue
        try:
            source = open_source(
                path,
                column=options.column,
                keep=options.keep,
                id=options.id,
                map=options.map,
                base=options.base,
                suffix=options.suffix,
                delimiter=options.delimiter,
            )
        except DeitBatchError as error:
            yield _unreadable(path, error)
        else:
            yield from rows_of(path, source.references)


def rows_of(path: str, rows: Iterator[Reference]) -> Iterator[Reference]:
    """Those of a table, and its end, if that is not the table's. Raises DeitBatchError if the disk gives no more of
    it."""
    read = 0
    try:
        for row in rows:
            yield replace(row, keep={"file": path, "row": read, **row.keep})
            read += 1
    except DeitBatchError as error:
        if read and _is_fault_of_the_disk(error):
            raise
        yield _unreadable(path, error)


def _unreadable(path: str, error: DeitBatchError) -> Reference:
    failure = FetchError(str(error)) if _is_fault_of_the_disk(error) else RowError(str(error))
    return Reference(0, path, Failure.of(failure), {"file": path})


def _is_fault_of_the_disk(error: DeitBatchError) -> bool:
    """Whether the system refused to read on: damaged content is an error without a number."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno is not None


def _line(record: Record) -> str:
    values = record.as_dict()
    del values["index"]
    return json_line(values).decode().rstrip("\n")


def _csv_line(record: Record) -> str:
    """The columns that the model card's batch sample reads, which has no header: `row_number_per_file` (0 of an image
    that is a file), `preds`, `labels` (lists, best first) and `file_name`. An image that failed has empty lists: there
    is no place for its error."""
    predictions = record.predictions
    scores, labels = [one["score"] for one in predictions], [clean(one["label"]) for one in predictions]
    text = io.StringIO()
    row = [record.keep.get("row", 0), json.dumps(scores), json.dumps(labels, ensure_ascii=False)]
    csv.writer(text, lineterminator="").writerow([*row, clean(str(record.keep.get("file", record.image)))])
    return text.getvalue()


def _warn_of_failures(records: Sequence[Record]) -> None:
    """Where lines do not tell of them."""
    failed = [record for record in records if record.error]
    for record in failed[:_SHOWN]:
        where = record.keep.get("file", record.image)
        logger.warning("%s, row %s: %s", where, record.keep.get("row", 0), record.error and record.error.message)
    if failed:
        logger.warning("of this mini-batch, %s of %s got no labels", len(failed), counted(len(records), "image"))
