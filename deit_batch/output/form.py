"""What people want of a format beside its name: plain columns, the best label as a field, CSV for a spreadsheet, a mark
on images that are unsure. `score` gives its result that form at its end, `convert` gives it to a finished one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deit_batch.errors import UsageError
from deit_batch.io import json_line
from deit_batch.output.formats import UNSURE, Columns, Format, Records, add_best
from deit_batch.output.layout import Layout, columns_of, rows_of, write_layout


@dataclass(frozen=True, slots=True)
class Form:
    """`flat`: the best label and its score as fields of their own; `excel`: a CSV file that a spreadsheet opens;
    `unsure_below`: the best score below which an image is marked as unsure, None for no marks."""

    layout: Layout = "record"
    flat: bool = False
    excel: bool = False
    unsure_below: float | None = None

    @property
    def reserved(self) -> tuple[str, ...]:
        """What it adds to a record."""
        return (*(("label", "score") if self.flat else ()), *((UNSURE,) if self.unsure_below is not None else ()))


PLAIN = Form()


def is_unsure(record: Mapping[str, Any], below: float) -> bool:
    """Whether it was scored, and no label reaches that score."""
    return "error" not in record and not any(each["score"] >= below for each in record["predictions"])


def without_mark(record: dict[str, Any]) -> dict[str, Any]:
    """The record without an earlier mark, which its scores tell as well. A kept column of that name stays, unless it
    says the like."""
    mark = record.get(UNSURE)
    is_marked = isinstance(mark, bool) or mark in ("true", "false")
    return {name: value for name, value in record.items() if name != UNSURE} if is_marked else record


def in_form(format: Format, form: Form, out: str, *, threshold: float = 0.0) -> Format:
    """The format, whose files have that form. Raises UsageError if it can't have it."""
    if form == PLAIN:
        return format
    if form.unsure_below is not None and threshold > form.unsure_below:
        raise UsageError("--threshold is above --unsure-below: what is left says nothing of which images are unsure")
    if out == "-":
        raise UsageError("--out -: stdout has records as they are; --layout, --flat, --excel and the like need a file")
    if form.unsure_below is not None and format.name not in ("jsonl", "csv", "parquet"):
        raise UsageError(f"--unsure-below is for jsonl, csv and parquet, and {out} is {format.name}")
    if form.excel and format.name != "csv":
        raise UsageError(f"--excel is for csv, and {out} is {format.name}")
    if form.layout != "record" and format.name not in ("csv", "parquet"):
        raise UsageError(f"--layout {form.layout} is for csv and parquet, and {out} is {format.name}")
    if form.flat and (format.name not in ("jsonl", "parquet") or form.layout != "record"):
        raise UsageError("--flat is for records in jsonl and parquet; csv has these columns anyway")

    def write(records: Records, target: Path, columns: Columns) -> None:
        columns = replace(
            columns, flat=form.flat, for_spreadsheet=form.excel, unsure=columns.unsure or form.unsure_below is not None
        )
        shaped = (_shaped(record, form) for record in records)
        if form.layout != "record":
            texts = [*columns.keep, *([UNSURE] if columns.unsure else [])]
            names = columns_of(form.layout, columns.most or 0, texts)
            rows = rows_of(shaped, form.layout, columns.most or 0, texts)
            write_layout(names, rows, target, name=format.name, excel=form.excel)
        elif format.write:
            format.write(shaped, target, columns)
        else:
            with open(target, "wb") as file:
                file.writelines(map(json_line, shaped))

    return replace(format, write=write, streams=False)


def _shaped(record: dict[str, Any], form: Form) -> dict[str, Any]:
    mark = {} if form.unsure_below is None else {UNSURE: is_unsure(record, form.unsure_below)}
    return (add_best(record) if form.flat else record) | mark
