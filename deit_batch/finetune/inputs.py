"""The labelled inputs of a training, with the names that it has for their labels; and what can be told of them before
anything heavy is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from deit_batch.finetune.settings import Settings
from deit_batch.input.identity import identity_of
from deit_batch.input.labels import LabelledSource, find_split, open_labelled
from deit_batch.io import json_line, name_fields, stamp
from deit_batch.model.matching import read_label_map


@dataclass(frozen=True, slots=True)
class Listing:
    """What is in the inputs: `digest` tells whether it is still the same; `bytes` is None where the images' sizes are
    not known before they are fetched."""

    digest: str
    images: int
    bytes: int | None


def open_input(spec: str, settings: Settings, *, again: bool = False, called: str = "labels") -> LabelledSource:
    source = open_labelled(
        spec,
        column=settings.column,
        label_column=settings.label_column,
        recursive=settings.recursive,
        limit=settings.limit,
        again=again,
        map=settings.map,
        base=settings.base,
        suffix=settings.suffix,
        delimiter=settings.delimiter,
        called=called,
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


def list_inputs(settings: Settings) -> Listing | None:
    """By the names and labels in the inputs, and the files' sizes and times; None where they can be read only once, or
    would be fetched for it."""
    digest = hashlib.sha256()
    images, size = 0, 0
    sizes_known = True
    for spec in (settings.input, settings.validation):
        if spec is None:
            continue
        if is_read_once(spec):
            return None
        for example in open_input(spec, settings, again=True).examples:
            mark = stamp(example.reference.location)
            name = identity_of(name_fields(example.reference))
            digest.update(json_line([name, example.labels, mark and mark[:2]]))
            images += 1
            size += mark[0] if mark else 0
            sizes_known &= mark is not None
    return Listing(digest.hexdigest(), images, size if sizes_known else None)


def is_read_once(spec: str) -> bool:
    return spec == "-" or spec.startswith("hf://")


def check_inputs(settings: Settings) -> None:
    """Raises UsageError for an input that is not there or has no labels, and for what is no label map. What can be read
    but once, or would be fetched for it, is not looked at."""
    if settings.label_map:
        read_label_map(settings.label_map)
    split = find_split(settings.input)
    for spec in (split.training if split else settings.input, settings.validation):
        if spec is not None and not is_read_once(spec):
            next(open_input(spec, settings, again=True).examples, None)
