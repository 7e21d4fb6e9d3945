"""What a config.json says of the kind of model: its class, what it computes in, how its labels are scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from deit_batch.errors import CheckpointError
from deit_batch.model.architecture import CLASSES, Shape


def architecture_from_config(config: Mapping[str, Any], name: str) -> str:
    """The class comes from the checkpoint: with any other, weights would be left out and made up instead. Raises
    CheckpointError, as all of these do, in the words for the checkpoint called `name`."""
    value = config.get("architectures")
    named = value if isinstance(value, list) and all(isinstance(one, str) for one in value) else []
    if len(named) != 1 or named[0] not in CLASSES:
        raise CheckpointError(
            f"{name} is a {', '.join(named) or 'model of no stated class':.100}, not a DeiT classifier; those are "
            f"{', '.join(CLASSES)}"
        )
    expected = CLASSES[named[0]].body
    if config.get("model_type") != expected:
        raise CheckpointError(f"{name}: a {named[0]} has model_type {expected}, not {config.get('model_type')!s:.60}")
    return str(named[0])


def head_size(architecture: str, shapes: Mapping[str, Shape]) -> int | None:
    """How many classes the head has, where that is known."""
    head = shapes.get(f"{CLASSES[architecture].heads[0]}.weight")
    return head[0] if head and all(head) else None  # an empty weight may have any number of rows


def dtype_from_config(config: Mapping[str, Any]) -> Literal["float32", "int8"]:
    """What an exported checkpoint computes in."""
    return "int8" if config.get("dtype") == "int8" else "float32"


def is_multi_label(config: Mapping[str, Any], name: str, *, classes: int) -> bool:
    """Whether each label is scored for itself (sigmoid) or all share one (softmax); as the pipeline decides it."""
    problem = config.get("problem_type")
    if problem == "regression":
        raise CheckpointError(f"{name} is a regression model, not a classifier")
    return problem == "multi_label_classification" or classes == 1
