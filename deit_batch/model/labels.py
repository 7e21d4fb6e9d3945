"""The names of a model's classes: those that its config says, or those that the user gives."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from deit_batch.errors import CheckpointError, UsageError, in_words
from deit_batch.io import clean, counted, unique_fields
from deit_batch.system.regular_file import read_settings

logger = logging.getLogger("deit_batch")

IMAGENET = "imagenet"
"""What the names that come with us are called, for --id2label and --label-map: those of the 1000 classes of
ImageNet-1k, as in the `id2label` of facebook/deit-*. From timm 1.0.31 (Apache-2.0): imagenet_synsets.txt,
imagenet_synset_to_lemma.txt."""
DEFAULT_CLASSES = 2
"""`PretrainedConfig` of `transformers` leaves its own default out of a config.json: LABEL_0 and LABEL_1."""

_NUMBER_FIRST, _NUMBER_LAST = re.compile(r'\s*"?\d+"?\s*[,;:|\t]\s*\S'), re.compile(r'\S\s*[,;:|\t]\s*"?\d+"?\s*$')
"""As tables of numbers and names have them; a name may have a comma in it."""
_PLACEHOLDER = re.compile(r"LABEL_\d+")


@cache
def imagenet_names() -> dict[str, str]:
    """The names of the classes of ImageNet-1k by their WordNet ids, in the order of the classes."""
    text = (files(__package__) / "imagenet.csv").read_text("utf-8")
    return dict(csv.reader(text.splitlines(), strict=True))


def labels_from_config(config: dict[str, Any], classes: int | None, name: str) -> list[str]:
    """Those of a config.json; placeholders where it names none, as `transformers` does: of as many `classes` as the
    weights have. Raises CheckpointError for what can't be names."""
    names = config.get("id2label")
    if names is None:
        return placeholders(DEFAULT_CLASSES if classes is None else classes)
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{name} names no labels: its config.json needs an id2label of one name a class")
    try:
        labels = [names[str(number)] for number in range(len(names))]
    except KeyError as error:
        raise CheckpointError(f"{name}: the id2label of its config.json skips class {error.args[0]}") from error
    if not all(isinstance(label, str) and label and clean(label) == label for label in labels):
        raise CheckpointError(f"{name}: the id2label of its config.json has names that are no text")
    numbers = config.get("label2id")
    # Two classes may share a name, so not each number has to come back.
    if isinstance(numbers, dict) and any(names.get(str(number)) != label for label, number in numbers.items()):
        logger.warning("%s: id2label and label2id of its config.json contradict each other; id2label counts", name)
    return labels


def read_id2label(name: str) -> list[str]:
    """What --id2label gives: IMAGENET, or a file of one name a line, or of JSON: a list of names, an object of numbers
    and names, or one that has such an `id2label`, as a config.json. Raises UsageError if it is none of them."""
    try:
        labels = list(imagenet_names().values()) if name == IMAGENET else _read_names(Path(name))
        for number, label in enumerate(labels):
            if not isinstance(label, str) or not label.strip():
                raise ValueError(f"class {number} has no name")
        return [label.strip() for label in labels]
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--id2label {name}: {in_words(error)}") from error


def _read_names(path: Path) -> list[Any]:
    text = read_settings(path).decode("utf-8-sig")
    is_json = path.suffix.lower() == ".json"
    value = json.loads(text, object_pairs_hook=unique_fields) if is_json else _lines_of_names(text)
    if isinstance(value, dict):
        value = value.get("id2label", value)
    if isinstance(value, dict):
        value = [value.get(str(number)) for number in range(len(value))]
    if not isinstance(value, list) or not value:
        raise ValueError("it holds neither a list of names nor an object of numbers and names")
    return value


def _lines_of_names(text: str) -> list[str]:
    lines = text.rstrip().splitlines()
    rows = lines[1:] or lines  # without the titles of columns, if there are some
    if rows and (all(map(_NUMBER_FIRST.match, rows)) or all(map(_NUMBER_LAST.search, rows))):
        raise ValueError(
            f"its lines are names with numbers, as {rows[0]!r:.60}; give the names alone, in the order of the classes, "
            'or a .json file: {"0": "name", …}'
        )
    return lines


def placeholders(classes: int) -> list[str]:
    """As `transformers` calls classes that have no names."""
    return [f"LABEL_{number}" for number in range(classes)]


def are_placeholders(labels: Sequence[str]) -> bool:
    return all(map(_PLACEHOLDER.fullmatch, labels))


def warn_of_shared_names(labels: Sequence[str], name: str) -> None:
    """Of names that stand for several classes each. That ImageNet has two cranes is known, and no warning."""
    shared = [f"{label} ({counted(n, 'class', 'classes')})" for label, n in Counter(labels).items() if n > 1]
    if shared:
        is_imagenet = list(labels) == list(imagenet_names().values())
        logger.log(
            logging.INFO if is_imagenet else logging.WARNING,
            "%s: names that stand for several classes each: %s; every class has a score of its own, by which "
            "predictions are ranked; evaluate adds up those of one name",
            name,
            f"{', '.join(shared):.200}",
        )


def id2label_of(labels: Sequence[str]) -> dict[str, Any]:
    """What a config.json says of them."""
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def digest_of(labels: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(labels)).encode()).hexdigest()
