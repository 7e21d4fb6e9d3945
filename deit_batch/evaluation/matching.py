"""A data set's names for classes to the model's."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from deit_batch.errors import UsageError

IMAGENET = "imagenet"
"""The label map that comes with us: the 1000 WordNet ids of ImageNet-1k, as its folders are called, to the names in
the `id2label` of facebook/deit-*. From timm 1.0.31 (Apache-2.0): imagenet_synsets.txt, imagenet_synset_to_lemma.txt."""


def read_label_map(name: str) -> dict[str, str]:
    """A data set's names to the model's: IMAGENET, a JSON object, or a CSV or TSV file of two columns with a header.

    Raises UsageError if it is none of them, or gives one name two meanings."""
    try:
        if name == IMAGENET:
            text, suffix = (files(__package__) / "imagenet.csv").read_text("utf-8"), ".csv"
        else:
            text, suffix = Path(name).read_text("utf-8-sig"), Path(name).suffix.lower()
        if suffix == ".json":
            pairs = list(json.loads(text).items())
        elif suffix in (".csv", ".tsv"):
            _, *rows = csv.reader(text.splitlines(), delimiter="," if suffix == ".csv" else "\t", strict=True)
            pairs = [(label.strip(), class_.strip()) for label, class_ in filter(None, rows)]
        else:
            raise ValueError(f"give {IMAGENET}, or a .json, .csv or .tsv file")
    except (OSError, ValueError, AttributeError, csv.Error) as error:
        raise UsageError(f"--label-map {name}: {error}") from error
    mapping: dict[str, str] = {}
    for label, class_ in pairs:
        if not isinstance(class_, str) or mapping.setdefault(label, class_) != class_:
            raise UsageError(f"--label-map {name}: {label!r} has no one name: {class_!r:.60}")
    return mapping


class Matching:
    """The number of the class that a label means. `classes`: the model's names, by number, each once. A label means,
    after the map: the class of exactly that name; or the only one that differs in nothing but case, hyphens and
    underscores (a folder's name for it); or the only one that has it among the synonyms between its commas.

    `inexact` says what was matched in the latter two ways; `unknown` counts what was not at all."""

    def __init__(self, classes: Sequence[str], label_map: Mapping[str, str]) -> None:
        self.inexact: dict[str, str] = {}
        self.unknown: Counter[str] = Counter()
        self._classes = classes
        self._map = label_map
        self._exact = {name: number for number, name in enumerate(classes)}
        self._folded = _unambiguous((_fold(name), number) for name, number in self._exact.items())
        self._synonyms = _unambiguous(
            (_fold(synonym), number) for name, number in self._exact.items() for synonym in name.split(",")
        )

    def __call__(self, label: str) -> int | None:
        name = self._map.get(label, label)
        number = self.find(label)
        if number is None:
            self.unknown[label] += 1
        elif self._classes[number] != name:
            self.inexact[label] = self._classes[number]
        return number

    def find(self, label: str) -> int | None:
        """The same, and nothing is counted."""
        name = self._map.get(label, label)
        folded = _fold(name)
        return self._exact.get(name, self._folded.get(folded, self._synonyms.get(folded)))


def _fold(name: str) -> str:
    return " ".join(name.casefold().replace("-", " ").replace("_", " ").split())


def _unambiguous(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Of names with the numbers of classes, those that mean one class."""
    meanings: dict[str, set[int]] = {}
    for name, number in pairs:
        meanings.setdefault(name, set()).add(number)
    return {name: numbers.pop() for name, numbers in meanings.items() if name and len(numbers) == 1}
