"""What can be told of the inputs of a fine-tuning before anything heavy is loaded."""

from __future__ import annotations

from deit_batch.finetune.settings import Settings
from deit_batch.input.labels import find_split, open_labelled
from deit_batch.model.matching import read_label_map


def check_inputs(settings: Settings) -> None:
    """Raises UsageError for an input that is not there or has no labels, and for what is no label map. What can be read
    but once, or would be fetched for it, is not looked at."""
    if settings.label_map:
        read_label_map(settings.label_map)
    split = find_split(settings.input)
    specs = [split.training if split else settings.input, settings.validation]
    for spec in specs:
        if spec is None or spec == "-" or spec.startswith("hf://"):
            continue
        source = open_labelled(
            spec,
            column=settings.column,
            label_column=settings.label_column,
            recursive=settings.recursive,
            again=True,
            map=settings.map,
        )
        next(source.examples, None)
