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


_DTYPES = (None, "float32", "float16", "bfloat16", "float64", "auto", "int8")
"""Those that weights are saved in, and of an exported checkpoint int8."""


def require_plain_numbers(config: Mapping[str, Any], name: str) -> None:
    """The weights must be meant as they are."""
    if config.get("quantization_config") is not None:
        raise CheckpointError(
            f"{name}: its config.json has a quantization_config, by which its weights are no plain numbers; take the "
            "checkpoint that it was made from (--dtype int8 is ours)"
        )
    for field in ("dtype", "torch_dtype"):
        value = config.get(field)
        if not (value is None or isinstance(value, str)) or value not in _DTYPES:
            raise CheckpointError(f"{name}: its config.json has {field} {value!r:.60}, which is not known here")


def dtype_from_config(config: Mapping[str, Any]) -> Literal["float32", "int8"]:
    """What an exported checkpoint computes in."""
    return "int8" if config.get("dtype") == "int8" else "float32"


def is_multi_label(config: Mapping[str, Any], name: str, *, classes: int) -> bool:
    """Whether each label is scored for itself (sigmoid) or all share one (softmax); as the pipeline decides it."""
    problem = config.get("problem_type")
    if problem == "regression":
        raise CheckpointError(f"{name} is a regression model, not a classifier")
    return problem == "multi_label_classification" or classes == 1
