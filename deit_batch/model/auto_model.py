"""Any image classifier that `transformers` loads, by its own class: checked before an image is read, then run.

None of a checkpoint's own code is run, and nothing is fetched: the config and the weights are those that
checkpoint.py has found.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from deit_batch.errors import CheckpointError
from deit_batch.io import FeatureName
from deit_batch.model.architecture import FEATURES, is_left_over
from deit_batch.model.checkpoint import Checkpoint
from deit_batch.model.labels import DEFAULT_CLASSES, id2label_of, placeholders
from deit_batch.model.quiet import quiet_transformers
from deit_batch.model.weights import read_tensors, require_finite

Model: TypeAlias = Any
"""A PreTrainedModel; their declarations have little in common."""

MOST_PARAMETERS = 20_000
"""Of a model; the largest vision transformers have some thousands."""

_CLASS_TOKENS, _DISTILLATION_TOKENS = ("cls_token", "class_embedding"), ("distillation_token",)
_OTHER_TOKENS = ("register_tokens",)
"""How the parameters end that stand before the patches, in this order."""


def find_features(checkpoint: Checkpoint, image_size: tuple[int, int]) -> tuple[tuple[FeatureName, ...], int]:
    """Which features it has, and how many numbers each; found out without any weight, on the device "meta".
    `image_size`: (height, width) of what the recipe gives. Raises CheckpointError unless every weight has its place,
    every place its weight, and such images can be scored."""
    model = _load(checkpoint, read_tensors(checkpoint, only_shapes=True), device="meta")
    outputs: list[Any] = []
    _body_of(model).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    refused = f"{checkpoint.name} must not be scored with: its class, {checkpoint.architecture},"
    try:
        with torch.inference_mode():
            logits = model(torch.empty(2, 3, *image_size, device="meta")).logits
    except Exception as error:  # of another size, of other inputs
        raise CheckpointError(
            f"{refused} does not take images of {image_size[0]}x{image_size[1]} alone: {_one_line(error)}"
        ) from error
    if logits.shape != (2, len(checkpoint.labels)):
        raise CheckpointError(f"{refused} gives {list(logits.shape[1:])} scores for {len(checkpoint.labels)} labels")
    hidden = getattr(outputs[0], "last_hidden_state", None) if outputs else None
    if hidden is None or hidden.ndim not in (3, 4):
        return (), 0
    return tuple(_places(model, hidden)), _as_tokens(hidden).shape[-1]


class AutoModel:
    """Pixel values [n, 3, height, width] to logits [n, classes], both on the model's device and in its dtype. May be
    called from several threads at once."""

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> None:
        """Raises CheckpointError for what must not be scored with."""
        model = _load(checkpoint, read_tensors(checkpoint), device="cpu")
        require_finite(model.named_parameters(), checkpoint.name)
        self._model = model.to(device, dtype)

    def __call__(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self._model(pixel_values).logits
        return logits

    def features(self, pixel_values: Tensor, names: Sequence[FeatureName]) -> Tensor:
        """Instead of logits, of what its body calls `last_hidden_state`: float32 [n, len(names), width]."""
        hidden = _body_of(self._model)(pixel_values).last_hidden_state
        places, tokens = _places(self._model, hidden), _as_tokens(hidden).float()
        return torch.stack([tokens[:, places[name]].mean(1) for name in names], 1)


def class_for(config: Mapping[str, Any], name: str) -> str:
    """The class of image classifiers that its config names, or that there is for the type of its model. Raises
    CheckpointError if there is none."""
    with quiet_transformers():
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    kind, (named, *_) = config.get("model_type"), config.get("architectures") or [None]
    classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(kind, ()) if isinstance(kind, str) else ()
    known = [classes] if isinstance(classes, str) else list(classes)
    if not known or ("ForImageClassification" in str(named) and named not in known):
        raise CheckpointError(
            f"{name} is a {named!s:.60} of model_type {kind!s:.60}, which is no image classifier of transformers "
            f"{transformers.__version__}; code that comes with a checkpoint is not run"
        )
    return str(named) if named in known else known[0]


def count_classes(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], name: str) -> int | None:
    """How many classes the weights of these shapes are for, whatever the config says: a model of DEFAULT_CLASSES has
    others where its head is. None if none differs so, or they do not agree."""
    named = {key: value for key, value in config.items() if key != "num_labels"}
    named |= id2label_of(placeholders(DEFAULT_CLASSES))
    tensors = {weight: torch.empty(*shape, device="meta") for weight, shape in shapes.items()}
    _, loaded = load_into(class_for(config, name), named, tensors, name, device="meta")
    found = {
        here[0]
        for _, here, expected in loaded["mismatched_keys"]
        if here and tuple(expected) == (DEFAULT_CLASSES, *here[1:])
    }
    return found.pop() if len(found) == 1 else None


def load_into(
    architecture: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str, *, device: str
) -> tuple[Model, dict[str, Any]]:
    """A model of this class in float32, with these of its weights and all others random, and what `transformers` says
    of the loading. Raises CheckpointError in the words for the checkpoint called `name`."""
    with quiet_transformers(), _few_parameters():
        import transformers

        trusted = _trusted(config)
        try:
            model, loaded = getattr(transformers, architecture).from_pretrained(
                None,
                config=transformers.CONFIG_MAPPING[str(config["model_type"])].from_dict(trusted),
                state_dict=dict(tensors),
                dtype=torch.float32,
                device_map=device,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of a config that says what no model of its class can be, of a missing library
            raise CheckpointError(f"{name} can't be loaded: {_one_line(error)}") from error
    return model, loaded


@contextmanager
def _few_parameters() -> Iterator[None]:
    """Raises ValueError in the middle of making a model that a config has made endless."""
    made = itertools.count(1)

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if next(made) > MOST_PARAMETERS:
            raise ValueError(f"its config wants more than {MOST_PARAMETERS:,} weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _load(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], *, device: str) -> Model:
    """Raises CheckpointError unless each of its weights comes from the `tensors`, and each of these has its place."""
    architecture = class_for(checkpoint.config, checkpoint.name)
    model, loaded = load_into(architecture, checkpoint.config, tensors, checkpoint.name, device=device)
    _require_whole(checkpoint, loaded)
    return model


def _require_whole(checkpoint: Checkpoint, loaded: Mapping[str, Any]) -> None:
    """As architecture.check_tensors, by what `transformers` says of the loading."""
    refused = f"{checkpoint.name} must not be scored with"
    if missing := sorted(loaded["missing_keys"]):
        raise CheckpointError(
            f"{refused}: it is no {checkpoint.architecture} as its config describes it, for {len(missing)} of its "
            f"weights were not in the checkpoint and would be random, {missing[0]} first"
        )
    loaded = {**loaded, "unexpected_keys": [name for name in loaded["unexpected_keys"] if not is_left_over(name)]}
    if unused := sorted(loaded["unexpected_keys"]):
        raise CheckpointError(f"{refused}: its config has no place for {len(unused)} of its weights, {unused[0]} first")
    if mismatched := sorted(loaded["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise CheckpointError(
            f"{refused}: the shape of its {name} is {tuple(found)}, where its config wants {tuple(expected)}"
        )
    if others := [problem for problem in loaded if loaded[problem]]:
        raise CheckpointError(f"{refused}: its loading ended with {', '.join(others)}: {loaded[others[0]]!s:.200}")


def _trusted(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without what would run code of the checkpoint's own, or fetch some: `auto_map`, and kernels for attention."""

    def is_trusted(name: str) -> bool:
        return name != "auto_map" and "_implementation" not in name

    return {
        name: _trusted(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if is_trusted(name)
    }


def _body_of(model: Model) -> Model:
    """What has the `last_hidden_state`: [n, tokens, width], or of a convolution [n, width, height, width]."""
    return model.vision_model if model.base_model is model and hasattr(model, "vision_model") else model.base_model


def _places(model: Model, hidden: Tensor) -> dict[FeatureName, slice]:
    """Which of its tokens each feature is the mean of; a convolution has patches alone."""
    names = dict(model.named_parameters()) if hidden.ndim == 3 else {}

    def count(endings: tuple[str, ...]) -> int:
        found = [one for name, one in names.items() if name.endswith(endings)]
        return sum(1 if one.ndim == 1 else one.shape[-2] for one in found)

    cls, distillation, others = count(_CLASS_TOKENS), count(_DISTILLATION_TOKENS), count(_OTHER_TOKENS)
    places: dict[FeatureName, slice] = {"mean": slice(cls + distillation + others, None)}
    if cls:
        places["cls"] = slice(0, 1)
    if distillation:
        places["distillation"] = slice(cls, cls + 1)
    return {name: places[name] for name in FEATURES if name in places}


def _as_tokens(hidden: Tensor) -> Tensor:
    """[n, tokens, width]."""
    return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden


def _one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split()) or type(error).__name__:.300}"
