"""Labelled inputs to what training takes: sets of images to train on and to validate with, and batches of them."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from deit_batch.errors import UsageError, nothing_left
from deit_batch.finetune.augmentation import Augmentation
from deit_batch.finetune.cache import (
    PREPARED,
    Prepared,
    Skipped,
    choose_keeping,
    needs_its_input,
    prepare,
)
from deit_batch.finetune.copies import Copies, find_copies, find_images_in_both, firsts_of
from deit_batch.finetune.inputs import Listing, open_input
from deit_batch.finetune.mixing import draw_mixing
from deit_batch.finetune.pictures import KeptPixels
from deit_batch.finetune.sampling import Draw
from deit_batch.finetune.settings import Settings
from deit_batch.input.labels import LabelledSource
from deit_batch.io import counted
from deit_batch.model.matching import read_label_map
from deit_batch.model.recipe import Recipe
from deit_batch.system.signals import Stop

logger = logging.getLogger("deit_batch")

CLASSES_SHOWN = 100

Example = dict[str, Any]
"""`pixels`: uint8 [height, width, 3]; `targets`: float32 [classes]; and in training `erased`, a box, and `draw`."""


class Examples(Dataset[Example]):
    """Some of the prepared images, with their targets. To train on, an image is asked for by its draw, and comes
    augmented; to validate with, by its number, and comes as the recipe gives it."""

    def __init__(
        self,
        prepared: Prepared,
        class_names: Sequence[str],
        places: Sequence[int],
        augmentation: Augmentation | None = None,
    ) -> None:
        """Raises UsageError for a class that is not among `class_names`."""
        self._pictures, self._rows = prepared.pictures, prepared.rows
        self._targets = prepared.targets(class_names)
        self._places = places
        self._augmentation = augmentation

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, wanted: int | Draw) -> Example:
        place = self._places[wanted.image if isinstance(wanted, Draw) else wanted]
        row, targets = int(self._rows[place]), self._targets[place]
        if not isinstance(wanted, Draw) or self._augmentation is None:
            return {"pixels": self._pictures.pixels(row), "targets": targets}
        pixels, erased = self._augmented(row, self._augmentation, wanted.dice())
        return {"pixels": pixels, "targets": targets, "erased": erased, "draw": wanted}

    def _augmented(self, row: int, augmentation: Augmentation, dice: np.random.Generator) -> tuple[NDArray[Any], Any]:
        pictures = self._pictures
        if not augmentation.crops or isinstance(pictures, KeptPixels):
            return augmentation(Image.fromarray(pictures.pixels(row)), dice)
        return augmentation(
            pictures.part(row, lambda width, height: augmentation.choose_box(width, height, dice)), dice
        )


class Collate:
    """Examples to a batch of tensors: `pixels`, uint8 [n, height, width, 3]; `targets`, float32 [n, classes]; and in
    training, if anything is done there, `erased`, int64 [n, 4], and `mixing`, float32 [n, 7] (mixing.py)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        names = ["pixels", "targets"]
        draw = examples[0].get("draw")
        if draw and self._settings.random_erasing:
            names.append("erased")
        batch = {name: torch.from_numpy(np.stack([np.asarray(one[name]) for one in examples])) for name in names}
        if draw and (self._settings.mixup or self._settings.cutmix):
            _, height, width, _ = batch["pixels"].shape
            mixing = draw_mixing(self._settings, (height, width), draw.dice(1))
            batch["mixing"] = torch.from_numpy(np.tile(mixing, (len(examples), 1)))
        return batch


def split(
    labels: Sequence[Sequence[str]], share: float, seed: int, digests: NDArray[np.uint64] | None = None
) -> tuple[list[int], list[int]]:
    """Places to train on and to validate with: of each class the same `share` goes to validation, as near as whole
    images allow; a class of one image is only trained on. Images of the same one of the `digests`, [n], go together,
    and count once."""
    dice = random.Random(seed)  # noqa: S311 - a split, no secret
    firsts = firsts_of(digests) if digests is not None else list(range(len(labels)))
    places = sorted(set(firsts))
    dice.shuffle(places)
    several = any(len(row) != 1 for row in labels)
    validation = set(_spread(labels, places, share) if several else _share_of_each(labels, places, share))
    sides: tuple[list[int], list[int]] = [], []
    for place, first in enumerate(firsts):
        sides[first in validation].append(place)
    return sides


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
    given apart; `copies` are those of images to learn from, `in_both` is what is trained on and validated with."""

    training: Examples
    validation: Examples
    class_names: list[str]
    multi_label: bool
    layouts: list[str]
    fingerprints: list[str]
    skipped: list[Skipped]
    copies: Copies
    in_both: Copies


def load_sets(
    settings: Settings, recipe: Recipe, folder: Path, stop: Stop, *, workers: int, listing: Listing | None = None
) -> Sets:
    """Decodes the inputs, keeps of them in `folder` what is to be kept there, and divides them.

    Raises DeitBatchError where there is too little to learn, or the settings do not fit the labels; the latter before
    the first image is decoded."""
    specs = {"inputs": settings.input, "validation": settings.validation}
    called = {
        "inputs": "labels to train on" if settings.validation else "labels",
        "validation": "labels to validate with",
    }
    places = [folder / name for name, spec in specs.items() if spec is not None]
    keeping = choose_keeping(settings, listing, recipe, folder)
    opened = [
        open_input(spec, settings, called=called[name]) if needs_its_input(folder / name, keeping) else None
        for name, spec in specs.items()
        if spec is not None
    ]
    multi_label = _kind_of_labels(places, opened, settings)
    inputs = [
        prepare(place, source, keeping, recipe, settings.limits, stop, workers=workers, limit=settings.limit)
        for place, source in zip(places, opened, strict=True)
    ]
    first, last = inputs[0], inputs[-1]
    _say_what_is_not_renamed(first.class_names, settings.label_map)
    _say_what_is_put_together(first.class_names, settings.label_map)
    _check_there_is_something_to_learn(first)
    copies = find_copies(first)
    if first is last:
        training, validation = split(first.labels, settings.validation_share, settings.seed, first.digests)
    else:
        training, validation = list(range(len(first.labels))), list(range(len(last.labels)))
    if not validation:
        raise UsageError("no image can be spared for validation: no class has two; name others with --validation")
    if not any(last.labels[place] for place in validation):
        raise UsageError("no image to validate with has a label; name others with --validation")
    _say_how_they_are_divided(first, training, last, validation)
    in_both = find_images_in_both(first, training, last, validation)
    return Sets(
        training=Examples(first, first.class_names, training, Augmentation(settings, recipe)),
        validation=Examples(last, first.class_names, validation),
        class_names=first.class_names,
        multi_label=multi_label,
        layouts=[one.layout for one in inputs],
        fingerprints=[one.fingerprint for one in inputs],
        skipped=[skipped for one in inputs for skipped in one.skipped],
        copies=copies,
        in_both=in_both,
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


def _say_how_they_are_divided(
    first: Prepared, training: Sequence[int], last: Prepared, validation: Sequence[int]
) -> None:
    share = ", a share of the same input" if first is last else ""
    logger.info("%s to train on, %s to validate with%s", counted(len(training), "image"), f"{len(validation):,}", share)
    seen = {label for place in validation for label in last.labels[place]}
    if unseen := [name for name in first.class_names if name not in seen]:
        logger.warning(
            "classes without an image to validate with, of which no metric tells: %s", f"{', '.join(unseen):.200}"
        )


def _say_what_is_not_renamed(class_names: Sequence[str], label_map: str | None) -> None:
    known = {*read_label_map(label_map).values()} if label_map else {*class_names}
    if rest := [name for name in class_names if name not in known]:
        logger.warning("--label-map says nothing of these classes, which keep their names: %s", ", ".join(rest))


def _say_what_is_put_together(class_names: Sequence[str], label_map: str | None) -> None:
    """Two of ImageNet's folders, for one, have the same name, crane."""
    called: dict[str, list[str]] = {}
    for label, name in (read_label_map(label_map) if label_map else {}).items():
        called.setdefault(name, []).append(label)
    together = [f"{name} ({', '.join(called[name])})" for name in class_names if len(called.get(name, [])) > 1]
    if together:
        logger.info("--label-map makes one class of several labels: %s", f"{'; '.join(together):.500}")
