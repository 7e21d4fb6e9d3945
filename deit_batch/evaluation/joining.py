"""Labels to predictions that were made before, by the identities of the images."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from deit_batch.errors import RowError
from deit_batch.evaluation.judged import Pair, file_name
from deit_batch.input.identity import identity_of
from deit_batch.input.labels import LABELLED_TWICE, LabelledSource
from deit_batch.io import Failure, counted, name_fields

logger = logging.getLogger("deit_batch")

PREDICTED_TWICE = "predicted twice, differently"

_Row: TypeAlias = tuple[int, tuple[str, ...]]
ReadLabels: TypeAlias = Callable[[Any], str | Sequence[str] | None]


@dataclass(frozen=True, slots=True)
class Given:
    """What the labels of an image were found beside: `named` has the fields that tell which image it is, `place` says
    which of all it is; `labels`, or the type of the `failure` for which there are none."""

    named: Mapping[str, Any]
    place: int
    labels: tuple[str, ...] = ()
    failure: str | None = None


def given_in(source: LabelledSource) -> Iterator[Given]:
    for example in source.examples:
        location = example.reference.location
        failure = location.type if isinstance(location, Failure) else None
        yield Given(name_fields(example.reference), example.reference.index, example.labels, failure)


def kept_in(records: Iterable[Mapping[str, Any]], read: ReadLabels, field: str) -> Iterator[Given]:
    """The labels that records keep in a `field`, as `read` understands it."""
    for record in records:
        labels = read(record.get(field))
        if labels is None or (not labels and "error" in record and record["error"]["type"] == RowError.__name__):
            yield Given(record, record["index"], failure=RowError.__name__)
        else:
            yield Given(record, record["index"], (labels,) if isinstance(labels, str) else tuple(labels))


@dataclass(slots=True)
class _Answers:
    """What records say of each image. `unclear`: a record of each of which two say something else."""

    unclear: dict[str | None, Mapping[str, Any]] = field(default_factory=dict)
    _digests: dict[str | None, bytes] = field(default_factory=dict)

    def add(self, key: str | None, record: Mapping[str, Any]) -> None:
        told = json.dumps([record["predictions"], record.get("error", {}).get("type")]).encode()
        digest = hashlib.blake2b(told, digest_size=8).digest()
        if self._digests.setdefault(key, digest) != digest:
            self.unclear[key] = record


class Labels:
    """The labels of a whole input, by image. Found by the image's identity (input/identity.py); or else by the file's
    name alone, if one image of the input and one of the records have it, and no other. An image that is there twice
    counts once; if its labels differ, it has none, and if its predictions do, they are not judged. `records`: those
    that are to be joined, for a first look at them. `inputs` counts images, `failures` those without labels or, once
    all are joined, predictions; `without_label` counts records without labels, `by_file` those whose file's name alone
    is that of a label."""

    def __init__(self, given: Iterable[Given], records: Iterable[Mapping[str, Any]]) -> None:
        self.inputs = self.without_label = self.by_file = 0
        self.names: set[str] = set()
        self.failures: Counter[str] = Counter()
        self._by_key: dict[str | None, _Row | None] = {}
        self._by_file: dict[str, _Row | None] = {}
        for one in given:
            key, row = identity_of(one.named), (one.place, one.labels)
            if one.failure is not None or key is None:
                self.inputs += 1
                self.failures[one.failure or RowError.__name__] += 1
                continue
            self.names.update(one.labels)
            if key not in self._by_key:
                self.inputs += 1
                self._by_key[key] = row
                file = file_name(one.named)
                self._by_file[file] = None if file in self._by_file else row
            elif (other := self._by_key[key]) and set(other[1]) != set(row[1]):
                self._by_key[key] = self._by_file[file_name(one.named)] = None
                self.failures[LABELLED_TWICE] += 1
        self._joined: set[int] = set()
        self._only: dict[str, str | None] = {}  # by a file's name that one label has: the one record that has it
        answers = _Answers()
        for record in records:
            key, file = identity_of(record), file_name(record)
            if self._by_file.get(file):
                self._only[file] = key if self._only.get(file, key) == key else None
            if key in self._by_key or self._by_file.get(file):
                answers.add(key, record)
        for record in answers.unclear.values():
            self._drop(record)

    def _drop(self, record: Mapping[str, Any]) -> None:
        """The image of this record is not judged: another record of it says something else."""
        row, _ = self._row(record)
        if row:
            self.failures[PREDICTED_TWICE] += 1
            self._joined.add(row[0])

    def join(self, records: Iterable[dict[str, Any]]) -> Iterator[Pair]:
        """All records that are to be joined, each with its labels; those that have none are left out."""
        for record in records:
            if row := self._take(record):
                yield Pair(record, row[1], row[0])
        self.count_missing()

    def of(self, record: Mapping[str, Any]) -> tuple[str, ...] | None:
        """The labels of a record's image; None if it has none, or a record before this one was of the same image."""
        row = self._take(record)
        return row[1] if row else None

    def count_missing(self) -> None:
        """Once all records are joined."""
        unclear = self.failures[PREDICTED_TWICE]  # which are among both
        if missing := self.inputs - (self.failures.total() - unclear) - len(self._joined):
            self.failures["no prediction"] += missing

    def _take(self, record: Mapping[str, Any]) -> _Row | None:
        row, is_by_file = self._row(record)
        self.without_label += row is None
        if row is None or row[0] in self._joined:
            return None
        self._joined.add(row[0])
        self.by_file += is_by_file
        return row

    def _row(self, record: Mapping[str, Any]) -> tuple[_Row | None, bool]:
        """The labels of a record's image, and whether they were found by its file's name alone."""
        key = identity_of(record)
        if key in self._by_key:
            return self._by_key[key], False
        file = file_name(record)
        return (self._by_file.get(file) if key and self._only.get(file) == key else None), True

    def warn_of_files_names(self) -> None:
        """Once all records are joined: another folder's images may be called alike."""
        if self.by_file:
            images = counted(self.by_file, "image is", "images are")
            logger.warning("%s joined with their labels by the files' names: their whole names differ", images)
