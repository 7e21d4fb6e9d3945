"""A finished result in another form: other formats, fewer labels, tables for spreadsheets; nothing is scored."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit_batch.errors import OutputError, UsageError
from deit_batch.io import RECORD_FIELDS, Tally, clean, counted, json_line, json_value
from deit_batch.output.form import PLAIN, Form, in_form, is_unsure, without_mark
from deit_batch.output.formats import Columns, Format, choose_format
from deit_batch.output.layout import columns_of
from deit_batch.output.read import read_records
from deit_batch.system.atomic import (
    behind_links,
    make_missing_folder,
    rename_durably,
    require_room,
    sweep_files,
    sync_file,
    temporary_file,
)

logger = logging.getLogger("deit_batch")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What is asked for. `top_k`: how many labels an image at the most, None for all that there are; `threshold`:
    labels with a lower score are left out; `only_unsure_below`: no images but those whose best score is below this."""

    predictions: Path
    out: Path
    format: str | None = None
    top_k: int | None = None
    threshold: float = 0.0
    form: Form = PLAIN
    only_unsure_below: float | None = None


@dataclass(slots=True)
class _Found:
    """What the whole file has to tell before the first row is written: its kept columns in the order in which they are
    met, the most labels that an image has, the most that are left of them, and how many images lose all of theirs."""

    tally: Tally
    keep: dict[str, None]
    most: int = 0
    most_left: int = 0
    emptied: int = 0


def convert(request: Conversion) -> Tally:
    """Writes the records anew; what was there under that name before is replaced. Raises UsageError for what is no file
    of predictions or can't take the form that is asked for, OutputError if it can't be written."""
    make_missing_folder(request.out)
    _require_place(request.out, "--out")
    if not request.predictions.is_file():
        raise UsageError(f"{request.predictions} is no file: it is read twice, so give one that is")
    target = behind_links(request.out)
    found = _look_through(request)
    format = choose_format(str(request.out), request.format, ())
    format = in_form(format, request.form, str(request.out), threshold=request.threshold)
    _require_free_names(request, format, found)
    _warn(request, found)
    try:
        with temporary_file(target) as temporary:
            _write(request, format, found, temporary)
            sync_file(temporary)
            rename_durably(temporary, target)
        sweep_files(target)
    except OSError as error:
        raise OutputError(f"{request.out}: can't be written: {error.strerror or error}") from error
    except (ValueError, OverflowError) as error:  # an index of a hundred digits
        raise UsageError(f"{request.predictions}: a value of it can't be written as {format.name}: {error}") from error
    return found.tally


def _require_place(out: Path, option: str) -> None:
    """Raises UsageError where a file can't be put, or something else stands that was not made by this."""
    require_room(out, option)
    target = behind_links(out)
    if target.exists() and not target.is_file():
        raise UsageError(f"{option} {out} is there and is no file")
    if os.path.exists(f"{target}.run.json"):
        raise UsageError(f"{option} {out} is the result of a run, with its report; give another name")


def _look_through(request: Conversion) -> _Found:
    found = _Found(Tally(), {})
    for record in _wanted(request):
        found.tally.count(record)
        found.keep.update(dict.fromkeys(clean(name) for name in record if name not in RECORD_FIELDS))
        left = len(_shortened(record, request)["predictions"])
        found.most = max(found.most, len(record["predictions"]))
        found.most_left = max(found.most_left, left)
        found.emptied += bool(record["predictions"]) and not left
    return found


def _require_free_names(request: Conversion, format: Format, found: _Found) -> None:
    """Raises UsageError if a kept column is called as one that the wanted form has."""
    layout = request.form.layout
    of_layout = format.reserved if layout == "record" else columns_of(layout, found.most_left, ())
    taken = {*of_layout, *request.form.reserved}
    clash = [name for name in found.keep if name in taken]
    if clash:
        raise UsageError(f"{request.predictions} has a kept column {clash[0]}, which {request.out} needs for its own")


def _warn(request: Conversion, found: _Found) -> None:
    if request.top_k and request.top_k > found.most and found.tally.scored and request.only_unsure_below is None:
        logger.warning(
            "--top-k %s: no image of %s has more than %s",
            request.top_k,
            request.predictions,
            counted(found.most, "label"),
        )
    if found.emptied:
        logger.warning(
            "--threshold %g leaves no label to %s of %s",
            request.threshold,
            f"{found.emptied:,}",
            counted(found.tally.scored, "image"),
        )


def _shortened(record: dict[str, Any], request: Conversion) -> dict[str, Any]:
    left = [each for each in record["predictions"] if each["score"] >= request.threshold]
    return record | {"predictions": left[: request.top_k]}


def _write(request: Conversion, format: Format, found: _Found, target: Path) -> None:
    records = _records(request)
    if format.write:
        format.write(records, target, Columns(list(found.keep), most=found.most_left))
    else:
        with open(target, "wb") as file:
            file.writelines(map(json_line, records))


def _records(request: Conversion) -> Iterator[dict[str, Any]]:
    for record in _wanted(request):
        yield {clean(name): json_value(value) for name, value in _shortened(record, request).items()}  # it may hold NaN


def _wanted(request: Conversion) -> Iterator[dict[str, Any]]:
    below = request.only_unsure_below
    for record in read_records(request.predictions):
        if below is None and request.form.unsure_below is None:
            yield record
        elif below is None or is_unsure(record, below):
            yield without_mark(record)  # it is made anew; or all are


REVIEW_LABELS = 3


def require_review(review: Path, unsure_below: float | None) -> None:
    """Raises UsageError where no list for review can be made: better before the work than after it."""
    if unsure_below is None:
        raise UsageError("--review lists the images that are unsure: say which by --unsure-below X")
    if review.suffix.lower() != ".csv":
        raise UsageError(f"--review {review} must end in .csv: the list is a table of CSV, which a spreadsheet opens")
    _require_place(review, "--review")


def write_review(predictions: Path, review: Path, unsure_below: float | None) -> None:
    """A list of the images that are unsure, with their best labels, for a spreadsheet. Raises as `require_review` and
    `convert` do."""
    require_review(review, unsure_below)
    form = Form(layout="wide", excel=True)
    request = Conversion(predictions, review, "csv", REVIEW_LABELS, form=form, only_unsure_below=unsure_below)
    tally = convert(request)
    logger.info("%s unsure: %s", counted(tally.inputs, "image"), review)
