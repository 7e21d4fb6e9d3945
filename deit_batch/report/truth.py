"""The true labels of the images that records are of, and which of those are judged: the same as in an evaluation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from deit_batch.errors import RowError, UsageError
from deit_batch.evaluation.joining import Labels, given_in, kept_in
from deit_batch.evaluation.judged import PredictionsSummary, known_classes, require_known, summarise_predictions
from deit_batch.input.labels import LABEL_COLUMNS, open_labelled, parse_labels
from deit_batch.model.matching import Matching, read_label_map
from deit_batch.output.read import read_records

logger = logging.getLogger("deit_batch")

_Given: TypeAlias = str | Sequence[str] | None


class Labelling:
    """`origin`: where the true labels are from; `several`: whether an image may have more than one. Once all records
    have been asked for: `unknown_images` counts those that were scored, but have a label that the model does not know,
    and `without_record` the labelled images that no record is of, or whose labels can't be read, by reason."""

    def __init__(
        self,
        origin: str,
        told: PredictionsSummary,
        classes: Sequence[str],
        label_map: Mapping[str, str],
        given: Callable[[Mapping[str, Any]], _Given],
        labels: Labels | None = None,
    ) -> None:
        self.origin = origin
        self.several = told.multi_label
        self.unknown_images = 0
        self._classes = classes
        self._map = label_map
        self._matching = Matching(classes, label_map)
        self._given = given
        self._labels = labels

    def of(self, record: Mapping[str, Any]) -> tuple[str, ...] | None:
        """The labels of a record's image, in the model's own names where it has them; None for an image that can't be
        judged: of no label, of many where the others have one, or of one that the model does not know."""
        labels = self._given(record)
        labels = (labels,) if isinstance(labels, str) else labels
        if labels is None or (len(labels) != 1 and not self.several):
            return None
        numbers = [self._matching.find(label) for label in labels]
        if None in numbers and "error" not in record and (record["predictions"] or self.several):
            self.unknown_images += 1
            return None
        named = zip(labels, numbers, strict=True)
        return tuple(self._map.get(label, label) if n is None else self._classes[n] for label, n in named)

    @property
    def without_record(self) -> Counter[str]:
        if self._labels is None:
            return Counter()
        self._labels.count_missing()
        return self._labels.failures

    def warn_of_files_names(self) -> None:
        if self._labels:
            self._labels.warn_of_files_names()


def warn_of_missing(labelling: Labelling) -> None:
    """Once all records have been asked for: of labelled images that none of them is of, and of those that are joined by
    less than their whole names."""
    labelling.warn_of_files_names()
    if missing := labelling.without_record:
        told = ", ".join(f"{images:,} {reason}" for reason, images in missing.items())
        logger.warning("labelled images that are not judged: %s (%s)", f"{missing.total():,}", told)


def find_labels(
    predictions: Path,
    labels: str | None,
    *,
    column: str | None,
    label_map: str | None,
    id: str | None = None,
    again: bool = False,
) -> Labelling | None:
    """Those of another input, joined by the images' identities, which the column `id` of it may say; or else of a field
    that the records carry along; None if there are none. They are matched with the model's names, and images are
    counted, as an evaluation does. What is found in an input is said, unless it is asked `again`.

    Raises UsageError if what was asked for is not there, or is labels none of which is ever predicted; such labels that
    the records carry are left out, with a warning."""
    mapping = read_label_map(label_map) if label_map else {}
    if labels:
        source = open_labelled(labels, id=id, label_column=column, image_optional=True, again=again)
        known = Labels(given_in(source), read_records(predictions))
        told = summarise_predictions(read_records(predictions), multi_label=source.multi_label)
        require_known(told, known.names, mapping)
        classes = known_classes(told, known.names, mapping)
        return Labelling(source.layout, told, classes, mapping, known.of, known)
    if id:
        raise UsageError("--id is for the labels of --labels")
    field, several = _carried(predictions, column)
    if field is None:
        if mapping:
            raise UsageError("--label-map: there are no labels; give --labels, or carry them along by score --keep")
        return None
    told = summarise_predictions(read_records(predictions), multi_label=several)
    read = partial(_parsed, classes={*told.classes})
    carried = (given for given in kept_in(read_records(predictions), read, field) if given.failure is None)
    known = Labels(carried, read_records(predictions))
    try:
        require_known(told, known.names, mapping)
    except UsageError as error:
        if column or mapping:
            raise
        logger.warning("the labels in the records' field %r are left out: %s", field, error)
        return None
    classes = known_classes(told, known.names, mapping)
    return Labelling(f"the records' field {field!r}", told, classes, mapping, known.of, known)


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


def _parsed(value: object, classes: Collection[str] = ()) -> str | tuple[str, ...] | None:
    """What the name of one of the `classes` is, that is the label, whatever else it may stand for."""
    if isinstance(value, str) and value in classes:
        return value
    try:
        return parse_labels(value)
    except RowError:
        return None
