"""Low-rank adapters (LoRA, arXiv 2106.09685) as peft saves them: merged into the weights of their base."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from deit_batch.errors import CheckpointError, OutputError
from deit_batch.model.architecture import is_left_over
from deit_batch.model.auto_model import Model, class_for, load_into
from deit_batch.model.labels import id2label_of, placeholders
from deit_batch.model.place import RECIPE
from deit_batch.model.quiet import quiet_transformers
from deit_batch.model.weights import read_files
from deit_batch.system.new_folder import new_folder

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_BEYOND = (
    "use_dora",
    "use_qalora",
    "fan_in_fan_out",
    "alpha_pattern",
    "rank_pattern",
    "lora_bias",
    "layer_replication",
)
"""Settings by which there is more to add than the product of the two matrices, or another multiple of it."""
_PLAIN_BEGINNINGS = (True, "gaussian", "orthogonal", False, None)
"""Values of `init_lora_weights` that leave the base's weights as they are. PiSSA, OLoRA and others take a part out of
them at the beginning of training, which is in no file (huggingface.co/docs/peft/developer_guides/lora)."""


class Adapter(NamedTuple):
    """What its adapter_config.json says, the files of its weights, and of its base the config and the files of its
    weights; `recipe` is the preprocessor_config.json of one of them, if there is one."""

    name: str
    config: Mapping[str, Any]
    files: list[Path]
    base_config: Mapping[str, Any]
    base_files: list[Path]
    recipe: Path | None


def merge(adapter: Adapter, out: Path) -> None:
    """Writes the checkpoint into the new folder `out`, in the form of `transformers`. A head that the adapter brings
    has the place of the base's, and its classes have no names: no adapter says which they are. Raises CheckpointError
    for an adapter of another kind, or of another base."""
    changes, replaced = _read(adapter)
    config = {**adapter.base_config, "architectures": [class_for(adapter.base_config, adapter.name)]}
    head = next(
        (len(replaced[name]) for name in _head_of(config, adapter.name) if name in replaced and replaced[name].ndim),
        None,
    )
    if head is not None:
        config |= id2label_of(placeholders(head))
    # The names are those of the version of transformers that has saved them: only it can tell which they are today.
    base = read_files(adapter.base_files, adapter.name, counters=True)
    model, weights, lacking = _fitted(adapter, config, base)
    new_weights, additions = (_fitted(adapter, config, one, whole=True)[1] for one in (replaced, changes))
    weights |= new_weights
    if missing := sorted((lacking | additions.keys()) - weights.keys()):
        raise CheckpointError(
            f"{adapter.name} must not be scored with: {len(missing)} of its weights are neither in the adapter nor in "
            f"its base and would be random, {missing[0]} first"
        )
    model.load_state_dict(weights | {name: weights[name] + tensor for name, tensor in additions.items()}, strict=False)
    try:
        with new_folder(out, wait=True) as folder, quiet_transformers():
            model.save_pretrained(folder)
            if adapter.recipe:
                shutil.copyfile(adapter.recipe, folder / RECIPE)
    except OSError as error:
        raise OutputError(f"{out} can't be written: {error.strerror or error}") from error


def _read(adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is to be added to weights of the base, and what takes the place of some; by the names of its modules."""
    if kind := _other_kind(adapter.config):
        raise _not_merged(adapter, kind)
    tensors = {
        name.removeprefix(_PREFIX).replace(".modules_to_save.", "."): tensor.float()
        for name, tensor in read_files(adapter.files, adapter.name).items()
    }
    pairs = sorted({name.removesuffix(_A).removesuffix(_B) for name in tensors if name.endswith((_A, _B))})
    changes = {f"{module}.weight": _product(adapter, module, tensors) for module in pairs}
    return changes, {name: tensor for name, tensor in tensors.items() if not name.endswith((_A, _B))}


def _other_kind(config: Mapping[str, Any]) -> str | None:
    """What it is, if it is not plain LoRA."""
    if config.get("peft_type") != "LORA":
        return f"{config.get('peft_type')!s:.60}"
    beyond = [name for name in _BEYOND if config.get(name)]
    if config.get("bias") not in (None, "none"):
        beyond.append(f"bias {config['bias']!r:.40}")
    if config.get("init_lora_weights") not in _PLAIN_BEGINNINGS:
        beyond.append(f"init_lora_weights {config['init_lora_weights']!r:.40}")
    return f"LoRA with {', '.join(beyond)}" if beyond else None


def _not_merged(adapter: Adapter, kind: str) -> CheckpointError:
    return CheckpointError(
        f"{adapter.name} is an adapter of a kind that is not merged here ({kind}); merge it into its base "
        "(merge_and_unload of peft), save that, and name its folder"
    )


def _product(adapter: Adapter, module: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """What is added to the weight of the module: float32 [out, in]."""
    for half, other in ((_A, _B), (_B, _A)):
        if module + half not in tensors:
            raise CheckpointError(
                f"{adapter.name} can't be merged into its base: it has {module + other} without {module + half}"
            )
    down, up = tensors[module + _A], tensors[module + _B]
    if down.ndim == up.ndim == 4:
        raise _not_merged(adapter, f"LoRA of a convolution, {module}")
    if not down.ndim == up.ndim == 2 or not 0 < len(down) == up.shape[1]:
        raise CheckpointError(
            f"{adapter.name} can't be merged into its base: the lora_A and lora_B of {module} have shapes that do not "
            f"go together, {tuple(down.shape)} and {tuple(up.shape)}"
        )
    alpha, rank = adapter.config.get("lora_alpha"), len(down)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise CheckpointError(
            f"{adapter.name} can't be merged into its base: its lora_alpha is {alpha!r:.40}, no number"
        )
    return alpha / (math.sqrt(rank) if adapter.config.get("use_rslora") else rank) * (up @ down)


def _head_of(config: Mapping[str, Any], name: str) -> list[str]:
    """The names of the weights whose shape is another if the classes are more."""
    few, many = (
        load_into(
            str(config["architectures"][0]), {**config, **id2label_of(placeholders(classes))}, {}, name, device="meta"
        )
        for classes in (2, 3)
    )
    shapes = {weight: tensor.shape for weight, tensor in few[0].state_dict().items()}
    return [weight for weight, tensor in many[0].state_dict().items() if tensor.shape != shapes.get(weight)]


def _fitted(
    adapter: Adapter, config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, whole: bool = False
) -> tuple[Model, dict[str, Tensor], set[str]]:
    """A model that has these tensors, what they are called in it, and what it lacks. Raises CheckpointError for one
    that has no place, or if it is to have the `whole` of them, another shape than its place."""
    model, loaded = load_into(str(config["architectures"][0]), config, tensors, adapter.name, device="cpu")
    lacking = {*loaded["missing_keys"], *(name for name, *_ in loaded["mismatched_keys"])}
    strange = sorted(name for name in loaded["unexpected_keys"] if not is_left_over(name))
    if strange:
        raise CheckpointError(
            f"{adapter.name} can't be merged into its base: that has no place for {len(strange)} of its weights, "
            f"{strange[0]} first"
        )
    if whole and (mismatched := sorted(loaded["mismatched_keys"])):
        weight, found, expected = mismatched[0]
        raise CheckpointError(
            f"{adapter.name} can't be merged into its base: the shape of its {weight} is {tuple(found)}, where the "
            f"base has {tuple(expected)}"
        )
    return model, {name: tensor for name, tensor in model.state_dict().items() if name not in lacking}, lacking
