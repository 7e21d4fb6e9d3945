"""The true labels of the images that records are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from deit_batch.errors import RowError, UsageError
from deit_batch.evaluation.joining import Labels
from deit_batch.evaluation.judged import summarise_predictions
from deit_batch.evaluation.matching import Matching, read_label_map
from deit_batch.input.labels import LABEL_COLUMNS, open_labelled, parse_labels
from deit_batch.output.read import read_records
from deit_batch.report.summary import Truth


@dataclass(frozen=True, slots=True)
class Labelling:
    """Where the true labels are from, and what they say of a record."""

    origin: str
    several: bool
    of: Truth


def find_labels(
    predictions: Path, labels: str | None, *, column: str | None, label_map: str | None, id: str | None = None
) -> Labelling | None:
    """Those of another input, joined by the images' identities, which the column `id` of it may say; or else of a field
    that the records carry along; None if there are none. A label has the name that the model has for it, as an
    evaluation matches them, or else its own.

    Raises UsageError if what was asked for is not there."""
    mapping = read_label_map(label_map) if label_map else {}
    if labels:
        source = open_labelled(labels, id=id, label_column=column, image_optional=True)
        several, known = source.multi_label, Labels(source, read_records(predictions))
        named = _namer(predictions, mapping, several)
        return Labelling(source.layout, several, lambda record: named(known.of(record)))
    if id:
        raise UsageError("--id is for the labels of --labels")
    field, several = _carried(predictions, column)
    if field is None:
        if mapping:
            raise UsageError("--label-map: there are no labels; give --labels, or carry them along by score --keep")
        return None
    named = _namer(predictions, mapping, several)
    return Labelling(f"the records' field {field!r}", several, lambda record: named(_parsed(record.get(field))))


def _carried(predictions: Path, column: str | None) -> tuple[str | None, bool]:
    """The field of the records that holds labels, and whether an image may have several, as the first label tells. One
    of a malformed row has no such fields: what there is, the first that was scored tells."""
    for record in read_records(predictions):
        field = next((name for name in ((column,) if column else LABEL_COLUMNS) if name in record), None)
        if field is None and "error" in record:
            continue
        if field is None and column:
            raise UsageError(f"the records have no field {column!r}, only {', '.join(record)}")
        if field is None:
            break
        labels = _parsed(record[field])
        if labels is not None:
            return field, not isinstance(labels, str)
    return None, False


def _parsed(value: object) -> str | tuple[str, ...] | None:
    try:
        return parse_labels(value)
    except RowError:
        return None


def _namer(
    predictions: Path, mapping: dict[str, str], several: bool
) -> Callable[[str | Sequence[str] | None], tuple[str, ...] | None]:
    classes = summarise_predictions(read_records(predictions), multi_label=several).classes
    matching = Matching(classes, mapping)

    @cache
    def name(label: str) -> str:
        number = matching.find(label)
        return mapping.get(label, label) if number is None else classes[number]

    def named(labels: str | Sequence[str] | None) -> tuple[str, ...] | None:
        """None for an image that can't be judged: of no label, or of many where the others have one."""
        labels = (labels,) if isinstance(labels, str) else labels
        return None if labels is None or (len(labels) != 1 and not several) else tuple(map(name, labels))

    return named
