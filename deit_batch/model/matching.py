"""A data set's names for classes to a model's."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from deit_batch.errors import MALFORMED, UsageError, in_words
from deit_batch.io import counted, unique_fields
from deit_batch.model.labels import IMAGENET, imagenet_names
from deit_batch.names import alike
from deit_batch.system.regular_file import read_settings

logger = logging.getLogger("deit_batch")


def read_label_map(name: str) -> dict[str, str]:
    """A data set's names to the model's: IMAGENET, a JSON object, or a CSV or TSV file of two columns. A line of titles
    above them is read as a pair like any other, which does no harm, for files without one are lost otherwise.

    Raises UsageError if it is none of them, or gives one name two meanings."""
    mapping: dict[str, str] = {}
    try:
        for label, class_ in imagenet_names().items() if name == IMAGENET else _pairs(Path(name)):
            if not isinstance(class_, str) or mapping.setdefault(alike(label), alike(class_)) != alike(class_):
                raise ValueError(f"{label!r} has no one name: {class_!r:.60}")
    except (*MALFORMED, OSError, csv.Error) as error:
        raise UsageError(f"--label-map {name}: {in_words(error)}") from error
    return mapping


def _pairs(path: Path) -> Iterable[tuple[str, object]]:
    suffix = path.suffix.lower()
    if suffix not in (".json", ".csv", ".tsv"):
        raise ValueError(f"give {IMAGENET}, or a .json, .csv or .tsv file")
    text = read_settings(path).decode("utf-8-sig")
    return _json_pairs(text) if suffix == ".json" else _table_pairs(text, suffix)


def _json_pairs(text: str) -> Iterable[tuple[str, object]]:
    document = json.loads(text, object_pairs_hook=unique_fields)
    if not isinstance(document, dict):
        raise ValueError(f'it holds {text.strip():.40}, but is to be an object: {{"label": "class", …}}')
    return document.items()


def _table_pairs(text: str, suffix: str) -> Iterable[tuple[str, object]]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="," if suffix == ".csv" else "\t", strict=True)
    for row in filter(None, rows):
        if len(row) != 2:
            raise ValueError(
                f"line {rows.line_num}: {counted(len(row), 'field')} where there should be two, a label and a class, "
                f"with a {'comma' if suffix == '.csv' else 'tab'} between them: {','.join(row)!r:.60}"
            )
        yield row[0].strip(), row[1].strip()


_CLASS_NUMBER = re.compile(r"([0-9]{1,9})(\.0)?")  # with .0 as pandas writes whole numbers if some are missing
_WORDNET_ID = re.compile(r"n[0-9]{8}")


def class_numbers(labels: Iterable[str], names: Sequence[str]) -> dict[str, str]:
    """A label map for labels that can be nothing but numbers of classes, from 0: all are such numbers, and no class is
    called by one. Else an empty one. `names`: of the classes, by number."""
    numbers: dict[str, str] = {}
    if any(_CLASS_NUMBER.fullmatch(alike(name)) for name in names):
        return {}
    for label in labels:
        found = _CLASS_NUMBER.fullmatch(alike(label))
        if not found or int(found[1]) >= len(names):
            return {}
        numbers[alike(label)] = alike(names[int(found[1])])
    return numbers


class Matching:
    """The number of the class that a label means. `classes`: the model's names, by number. A label means, after the
    map: the class of that name (names.alike); or the only one that differs in nothing but case, hyphens and underscores
    (a folder's name for it); or the only one that has it among the synonyms between its commas; or the class of
    ImageNet-1k whose WordNet id it is.

    `inexact` says what was matched in the latter three ways; `unknown` counts what was not at all."""

    def __init__(self, classes: Sequence[str], label_map: Mapping[str, str]) -> None:
        self.inexact: dict[str, str] = {}
        self.unknown: Counter[str] = Counter()
        self._classes = classes
        self._map = label_map
        self._exact = _unambiguous((alike(name), number) for number, name in enumerate(classes))
        self._folded = _unambiguous((_fold(name), number) for number, name in enumerate(classes))
        self._synonyms = _unambiguous(
            (_fold(synonym), number) for number, name in enumerate(classes) for synonym in name.split(",")
        )

    def __call__(self, label: str) -> int | None:
        number = self.find(label)
        if number is None:
            self.unknown[label] += 1
        elif alike(self._classes[number]) != self._name(label):
            self.inexact[label] = self._classes[number]
        return number

    def find(self, label: str) -> int | None:
        """The same, and nothing is counted."""
        name = self._name(label)
        number = self._by_name(name)
        if number is None and _WORDNET_ID.fullmatch(name):
            return self._of_imagenet(name)
        return number

    def _by_name(self, name: str) -> int | None:
        folded = _fold(name)
        return self._exact.get(name, self._folded.get(folded, self._synonyms.get(folded)))

    def _of_imagenet(self, wordnet_id: str) -> int | None:
        """By its place where the classes are ImageNet's in their order: two of its names are the same."""
        names = imagenet_names()
        if wordnet_id not in names:
            return None
        if len(self._classes) == len(names) and all(map(str.__eq__, self._classes, names.values())):
            return list(names).index(wordnet_id)
        return self._by_name(alike(names[wordnet_id]))

    def _name(self, label: str) -> str:
        return alike(self._map.get(alike(label), label))


_SHOWN = 3
"""Of the classes that match inexactly."""


def log_inexact(matching: Matching, owner: str) -> None:
    """Which labels are taken for a class of another spelling: the first, and how many. `owner`: of the classes."""
    more = f" (and {len(matching.inexact) - 1:,} such)" if len(matching.inexact) > _SHOWN else ""
    for label, name in islice(matching.inexact.items(), _SHOWN):
        logger.info("%s is %s's %s%s", label, owner, name, more)


def _fold(name: str) -> str:
    return " ".join(alike(name).casefold().replace("-", " ").replace("_", " ").split())


def _unambiguous(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Of names with the numbers of classes, those that mean one class."""
    meanings: dict[str, set[int]] = {}
    for name, number in pairs:
        meanings.setdefault(name, set()).add(number)
    return {name: numbers.pop() for name, numbers in meanings.items() if name and len(numbers) == 1}
