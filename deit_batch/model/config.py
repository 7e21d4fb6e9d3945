"""What a config.json says of the kind of model: its class, what it computes in, how its labels are scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, cast

from deit_batch.errors import CheckpointError, UsageError
from deit_batch.model.architecture import CLASSES, Shape

Runtime: TypeAlias = Literal["native", "transformers", "onnx"]
"""What computes the scores: transformer.py, a class of `transformers`, or ONNX Runtime."""


def architecture_from_config(config: Mapping[str, Any], name: str) -> str:
    """The class comes from the checkpoint: with any other, weights would be left out and made up instead. Raises
    CheckpointError, as all of these do, in the words for the checkpoint called `name`."""
    value = config.get("architectures")
    named = value if isinstance(value, list) and all(isinstance(one, str) for one in value) else []
    if len(named) != 1 or "ForImageClassification" not in named[0]:
        raise CheckpointError(
            f"{name} is a {', '.join(named) or 'model of no stated class':.100}, not an image classifier"
        )
    expected = CLASSES[named[0]].body if named[0] in CLASSES else None
    if expected and config.get("model_type") != expected:
        raise CheckpointError(f"{name}: a {named[0]} has model_type {expected}, not {config.get('model_type')!s:.60}")
    return str(named[0])


def choose_runtime(asked: str, architecture: str, name: str, *, is_exported: bool) -> Runtime:
    """ "auto" is ours for DeiTs and ViTs, that of `transformers` for other classes, ONNX Runtime for what is exported;
    by name, that exports what is not. Raises UsageError for one that the checkpoint can't be run by."""
    if is_exported:
        if asked not in ("auto", "onnx"):
            raise UsageError(f"{name} is exported: it is run by ONNX Runtime, not by --runtime {asked}")
        return "onnx"
    if architecture not in CLASSES:
        if asked in ("native", "onnx"):
            how = "--runtime onnx, or --dtype int8" if asked == "onnx" else "--runtime native"
            raise UsageError(f"{how}: {not_ours(architecture, name)}")
        return "transformers"
    return "native" if asked == "auto" else cast(Runtime, asked)


def not_ours(architecture: str, name: str) -> str:
    """Why something that is for our own classes alone can't be done."""
    return f"{name} is a {architecture}, not a DeiT classifier; those are {', '.join(CLASSES)}"


def head_size(architecture: str, shapes: Mapping[str, Shape]) -> int | None:
    """How many classes the head has, where that is known."""
    if architecture not in CLASSES:
        return None
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
