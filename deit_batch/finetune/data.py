"""Labelled inputs to what training takes: pixels on disk, mapped into memory, and a vector of targets for each image.

Every image is decoded once, before the first step, by the loader that `score` uses. So bad images are known (and
reported) before the first step, and what remains is read at random as fast as the disk can.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from deit_batch.errors import OutputError, RowError, UsageError, nothing_left
from deit_batch.finetune.settings import Settings
from deit_batch.input.identity import identity_of
from deit_batch.input.labels import LABELLED_TWICE, LabelledSource, find_unclear, open_labelled
from deit_batch.input.passed_over import MOST_SHOWN, warn_of_photos
from deit_batch.io import Failure, Reference, counted, counts, json_line, name_fields, stamp
from deit_batch.limits import Limits
from deit_batch.loading.deep_gray import warn_of_deep_gray
from deit_batch.loading.loader import Loader, batched
from deit_batch.model.matching import read_label_map
from deit_batch.model.recipe import Recipe
from deit_batch.system.atomic import write_atomically
from deit_batch.system.signals import Stop

logger = logging.getLogger("deit_batch")

BATCH = 64
FIRST_SHOWN = 3
CLASSES_SHOWN = 100
PREPARED = "prepared.json"
"""Written last: where it is, the rest is whole."""


@dataclass(frozen=True, slots=True)
class Skipped:
    image: str | None
    type: str
    message: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """The images that can be trained on. `pixels`: uint8 [all that were decoded, height, width, 3], in a file; `rows`:
    int64 [n], which of them is which image's; `labels`: of each image, in the data set's names; `class_names`: all of
    them, in the order of the model's outputs; `fingerprint`: SHA-256 over the bytes and labels of all that were
    decoded."""

    pixels: NDArray[np.uint8]
    rows: NDArray[np.int64]
    labels: list[list[str]]
    class_names: list[str]
    multi_label: bool
    layout: str
    fingerprint: str
    skipped: list[Skipped]

    def targets(self, class_names: Sequence[str]) -> NDArray[np.float32]:
        """float32 [n, classes]: 1 for what an image shows, 0 for the rest. Raises UsageError for a class that is not
        among `class_names`."""
        numbers = {name: number for number, name in enumerate(class_names)}
        unknown = sorted({label for labels in self.labels for label in labels} - set(numbers))
        if unknown:
            raise UsageError(f"the validation set has classes that the training set has not: {', '.join(unknown):.200}")
        targets = np.zeros((len(self.labels), len(class_names)), np.float32)
        for row, labels in zip(targets, self.labels, strict=True):
            row[[numbers[label] for label in labels]] = 1
        return targets


class Examples(Dataset[dict[str, NDArray[Any]]]):
    """Some of the prepared images, with their targets."""

    def __init__(self, prepared: Prepared, class_names: Sequence[str], places: Sequence[int]) -> None:
        """Raises UsageError for a class that is not among `class_names`."""
        self._pixels, self._rows = prepared.pixels, prepared.rows
        self._targets = prepared.targets(class_names)
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> dict[str, NDArray[Any]]:
        place = self._places[number]
        return {"pixels": self._pixels[self._rows[place]], "targets": self._targets[place]}


def collate(rows: Sequence[dict[str, NDArray[Any]]]) -> dict[str, torch.Tensor]:
    """`pixels`: uint8 [n, height, width, 3]; `targets`: float32 [n, classes]."""
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def listing_digest(settings: Settings) -> str | None:
    """SHA-256 of the names and labels in the inputs, and of the files' sizes and times, to tell whether they are still
    the same; None where they can be read only once, or would be fetched for it."""
    digest = hashlib.sha256()
    for spec in (settings.input, settings.validation):
        if spec is None:
            continue
        if spec == "-" or spec.startswith("hf://"):
            return None
        for example in _open(spec, settings, again=True).examples:
            mark = stamp(example.reference.location)
            name = identity_of(name_fields(example.reference))
            digest.update(json_line([name, example.labels, mark and mark[:2]]))
    return digest.hexdigest()


def prepare(
    folder: Path, source: LabelledSource | None, recipe: Recipe, limits: Limits, stop: Stop, *, workers: int
) -> Prepared:
    """Decodes what `source` gives into `folder`; None takes what an earlier run has left there whole. Raises
    DeitBatchError if not one image is left, OutputError if the disk is full."""
    if source is not None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            _decode_all(folder, source, recipe, limits, stop, workers)
        except OSError as error:
            raise OutputError(
                f"{error.filename or folder}: {error.strerror}; is there room for decoded images?"
            ) from error
    return _prepared(folder, recipe)


def _decode_all(folder: Path, source: LabelledSource, recipe: Recipe, limits: Limits, stop: Stop, workers: int) -> None:
    skipped: list[Skipped] = []
    digest = hashlib.sha256()
    deep_gray = 0
    images: list[str | None] = []
    given: list[tuple[str | None, list[str]]] = []
    references = source.as_source().references
    loader = Loader(recipe, limits, workers=workers, pin_memory=False, digests=True)
    with closing(loader), open(folder / "pixels", "wb") as pixels, open(folder / "labels.jsonl", "wb") as lines:
        for batch, decoded in loader.stream(batched(references, BATCH)):
            stop.check()
            deep_gray += decoded.deep_gray
            pixels.write(decoded.pixels.numpy().data)
            for place, reference in enumerate(batch):
                failure = decoded.settled.get(place)
                if isinstance(failure, Failure):
                    skipped.append(Skipped(reference.image, failure.type, failure.message))
                    continue
                labels = _labels(reference)
                images.append(reference.image)
                given.append((identity_of(name_fields(reference)), labels))
                line = json_line(labels)
                digest.update(decoded.digests[place].encode() + line)
                lines.write(line)
    unclear = find_unclear(given)
    skipped += [Skipped(images[row], RowError.__name__, LABELLED_TWICE) for row in unclear]
    about = {
        "class_names": source.class_names,
        "multi_label": source.multi_label,
        "layout": source.layout,
        "fingerprint": digest.hexdigest(),
        "unclear": unclear,
        "skipped": [asdict(one) for one in skipped],
        "passed_over": source.passed_over,
        "deep_gray": deep_gray,
    }
    write_atomically(folder / PREPARED, json_line(about))


def _labels(reference: Reference) -> list[str]:
    label = reference.keep["label"]
    return [str(one) for one in label] if isinstance(label, list) else [str(label)]


def _prepared(folder: Path, recipe: Recipe) -> Prepared:
    about = json.loads((folder / PREPARED).read_bytes())
    skipped = [Skipped(**one) for one in about.pop("skipped")]
    passed_over = about.pop("passed_over", {})  # an earlier version has not counted
    if passed_over:
        logger.info("passed over: %s", counts(passed_over, most=MOST_SHOWN))
    warn_of_photos(passed_over)
    warn_of_deep_gray(about.pop("deep_gray", 0), scaled=False, remedy="convert them to 8 bits first")
    _report(skipped)
    labels = [json.loads(line) for line in (folder / "labels.jsonl").read_bytes().splitlines()]
    unclear = set(about.pop("unclear", []))  # an earlier version has not looked
    rows = np.array([row for row in range(len(labels)) if row not in unclear], np.int64)
    if not len(rows):
        first = skipped[0].message if skipped else "there is none"
        types = [one.type for one in skipped]
        raise nothing_left(f"none of {counted(len(skipped), 'image')} can be trained on; the first: {first}", types)
    names = {label for row in rows for label in labels[row]}
    listed = about["class_names"] or sorted(names)
    about["class_names"] = [name for name in listed if name in names]
    lost = [name for name in listed if name not in names]
    if lost:
        logger.warning("classes without an image that can be read, which the model won't know: %s", ", ".join(lost))
    pixels = np.memmap(folder / "pixels", np.uint8, "r", shape=(len(labels), *recipe.size, 3))
    return Prepared(pixels, rows, [labels[row] for row in rows], skipped=skipped, **about)


def _report(skipped: Sequence[Skipped]) -> None:
    for one in skipped[:FIRST_SHOWN]:
        logger.warning("skipped: %s: %s", one.image or "an image in the table", one.message)
    if len(skipped) > FIRST_SHOWN:
        kinds = Counter(one.type for one in skipped)
        logger.warning("skipped: %s in all (%s)", len(skipped), ", ".join(f"{n} {kind}" for kind, n in kinds.items()))


def split(labels: Sequence[Sequence[str]], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Places to train on and to validate with: of each class the same `share` goes to validation, as near as whole
    images allow; a class of one image is only trained on."""
    dice = random.Random(seed)  # noqa: S311 - a split, no secret
    places = list(range(len(labels)))
    dice.shuffle(places)
    several = any(len(row) != 1 for row in labels)
    validation = set(_spread(labels, places, share) if several else _share_of_each(labels, places, share))
    return sorted(set(places) - validation), sorted(validation)


def _share_of_each(labels: Sequence[Sequence[str]], places: Sequence[int], share: float) -> Iterator[int]:
    """What rounding leaves out of one class, the next one gives."""
    classes = defaultdict(list)
    for place in places:
        classes[labels[place][0]].append(place)
    owed = 0.0
    for _, images in sorted(classes.items()):
        owed += share * len(images)
        count = min(max(0, round(owed)), len(images) - 1)
        yield from images[:count]
        owed = min(0.5, max(-0.5, owed - count))  # but not what single images could not give


def _spread(labels: Sequence[Sequence[str]], places: Sequence[int], share: float) -> Iterator[int]:
    """Iterative stratification (Sechidis et al., On the Stratification of Multi-Label Data, 2011, figure 1), for two
    parts: the images of the rarest label first, each to the part that lacks more of it."""
    left = defaultdict(list)
    for place in places:
        for label in set(labels[place]) or {""}:
            left[label].append(place)
    lacking = {label: [(1 - share) * len(images), share * len(images)] for label, images in left.items()}
    room = [(1 - share) * len(places), share * len(places)]
    settled: set[int] = set()
    while left:
        rarest = min(left, key=lambda label: (len(left[label]), label))
        for place in left.pop(rarest):
            if place in settled:
                continue
            settled.add(place)
            part = max((0, 1), key=lambda part: (lacking[rarest][part], room[part]))
            room[part] -= 1
            for label in set(labels[place]) or {""}:
                lacking[label][part] -= 1
            if part:
                yield place
        left = defaultdict(list, {label: [p for p in images if p not in settled] for label, images in left.items()})


@dataclass(frozen=True, slots=True)
class Sets:
    """Everything to learn from. `fingerprint` is that of the training inputs, and of the validation inputs if they were
    given apart."""

    training: Examples
    validation: Examples
    class_names: list[str]
    multi_label: bool
    layouts: list[str]
    fingerprints: list[str]
    skipped: list[Skipped]


def load_sets(settings: Settings, recipe: Recipe, folder: Path, stop: Stop, *, workers: int) -> Sets:
    """Decodes the inputs into `folder` and divides them. Raises DeitBatchError where there is too little to learn, or
    the settings do not fit the labels; the latter before the first image is decoded."""
    specs = {"inputs": settings.input, "validation": settings.validation}
    places = [folder / name for name, spec in specs.items() if spec is not None]
    opened = [
        None if (folder / name / PREPARED).exists() else _open(spec, settings)
        for name, spec in specs.items()
        if spec is not None
    ]
    multi_label = _kind_of_labels(places, opened, settings)
    inputs = [
        prepare(place, source, recipe, settings.limits, stop, workers=workers)
        for place, source in zip(places, opened, strict=True)
    ]
    first, last = inputs[0], inputs[-1]
    _say_what_is_not_renamed(first.class_names, settings.label_map)
    _check_there_is_something_to_learn(first)
    if first is last:
        training, validation = split(first.labels, settings.validation_share, settings.seed)
    else:
        training, validation = list(range(len(first.labels))), list(range(len(last.labels)))
    if not validation:
        raise UsageError("no image can be spared for validation: no class has two; name others with --validation")
    if not any(last.labels[place] for place in validation):
        raise UsageError("no image to validate with has a label; name others with --validation")
    return Sets(
        training=Examples(first, first.class_names, training),
        validation=Examples(last, first.class_names, validation),
        class_names=first.class_names,
        multi_label=multi_label,
        layouts=[one.layout for one in inputs],
        fingerprints=[one.fingerprint for one in inputs],
        skipped=[skipped for one in inputs for skipped in one.skipped],
    )


def _kind_of_labels(places: Sequence[Path], opened: Sequence[LabelledSource | None], settings: Settings) -> bool:
    """Whether an image may have several labels. Raises UsageError if the settings are for the other kind."""
    kinds = {
        source.multi_label if source else bool(json.loads((place / PREPARED).read_bytes())["multi_label"])
        for place, source in zip(places, opened, strict=True)
    }
    if len(kinds) > 1:
        raise UsageError("of --input and --validation, one has several labels an image and the other has one")
    multi_label = kinds.pop()
    settings.best_metric(multi_label=multi_label)
    if settings.teacher and multi_label:
        raise UsageError("--teacher is for inputs of one label an image, for it names one")
    return multi_label


def _check_there_is_something_to_learn(prepared: Prepared) -> None:
    """Says which classes there are. Raises DeitBatchError if no image differs from another."""
    names, labels = prepared.class_names, prepared.labels
    counts = Counter(label for row in labels for label in row)
    shown = ", ".join(f"{name} ({counts[name]:,})" for name in names[:CLASSES_SHOWN])
    more = f" and {len(names) - CLASSES_SHOWN:,} more" if len(names) > CLASSES_SHOWN else ""
    logger.info("classes to learn, with their images: %s%s", shown or "none", more)
    folded = Counter(name.casefold() for name in names)
    if twins := [name for name in names if folded[name.casefold()] > 1]:
        logger.warning("classes of their own, though their names differ in case alone: %s", f"{', '.join(twins):.200}")
    skipped = [one.type for one in prepared.skipped]
    if not names:
        raise nothing_left(f"none of {counted(len(labels), 'image')} has a label: there is nothing to learn", skipped)
    if len(names) == 1:
        raise nothing_left(f"{names[0]} is the only class: there is nothing to tell it from", skipped)
    if all(len(row) == len(names) for row in labels):
        raise nothing_left(f"all images show {', '.join(names):.200}: there is nothing to tell apart", skipped)


def _open(spec: str, settings: Settings, *, again: bool = False) -> LabelledSource:
    source = open_labelled(
        spec,
        column=settings.column,
        label_column=settings.label_column,
        recursive=settings.recursive,
        limit=settings.limit,
        again=again,
        map=settings.map,
    )
    return renamed(source, read_label_map(settings.label_map)) if settings.label_map else source


def renamed(source: LabelledSource, label_map: Mapping[str, str]) -> LabelledSource:
    """The same images with the names of a label map; several labels of one name are one. A label that is not in the map
    keeps its own."""

    def names(labels: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(label_map.get(label, label) for label in labels))

    examples = (replace(example, labels=tuple(names(example.labels))) for example in source.examples)
    listed = None if source.class_names is None else names(source.class_names)
    return replace(source, examples=examples, class_names=listed)


def _say_what_is_not_renamed(class_names: Sequence[str], label_map: str | None) -> None:
    known = {*read_label_map(label_map).values()} if label_map else {*class_names}
    if rest := [name for name in class_names if name not in known]:
        logger.warning("--label-map says nothing of these classes, which keep their names: %s", ", ".join(rest))
