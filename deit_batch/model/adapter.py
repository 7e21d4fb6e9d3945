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
_BEYOND = ("use_dora", "fan_in_fan_out", "alpha_pattern", "rank_pattern", "lora_bias", "layer_replication")
"""Settings by which there is more to add than the product of the two matrices, or another multiple of it."""


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
    heads = {len(tensor) for tensor in replaced.values() if tensor.ndim == 2}
    if len(heads) == 1:
        config |= id2label_of(placeholders(heads.pop()))
    # The names are those of the version of transformers that has saved them: only it can tell which they are today.
    base = read_files(adapter.base_files, adapter.name, counters=True)
    model, weights, lacking = _fitted(adapter, config, base)
    _, new_weights, _ = _fitted(adapter, config, replaced)
    _, additions, _ = _fitted(adapter, config, changes)
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
    config = adapter.config
    beyond = [name for name in _BEYOND if config.get(name)]
    if config.get("peft_type") != "LORA" or beyond:
        kind = f"LoRA with {', '.join(beyond)}" if beyond else f"{config.get('peft_type')!s:.60}"
        raise CheckpointError(
            f"{adapter.name} is an adapter of a kind that is not merged here ({kind}); merge it into its base "
            "(merge_and_unload of peft), save that, and name its folder"
        )
    tensors = {
        name.removeprefix(_PREFIX).replace(".modules_to_save.", "."): tensor.float()
        for name, tensor in read_files(adapter.files, adapter.name).items()
    }
    changes: dict[str, Tensor] = {}
    try:
        for name, down in tensors.items():
            if name.endswith(_A):
                rank = len(down)
                scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
                module = name.removesuffix(_A)
                changes[f"{module}.weight"] = scale * (tensors[f"{module}{_B}"] @ down)
    except (KeyError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{adapter.name} can't be merged into its base: {error}") from error
    return changes, {name: tensor for name, tensor in tensors.items() if not name.endswith((_A, _B))}


def _fitted(
    adapter: Adapter, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[Model, dict[str, Tensor], set[str]]:
    """A model that has these tensors, what they are called in it, and what it lacks. Raises CheckpointError for one
    that has no place."""
    model, loaded = load_into(str(config["architectures"][0]), config, tensors, adapter.name, device="cpu")
    lacking = {*loaded["missing_keys"], *(name for name, *_ in loaded["mismatched_keys"])}
    strange = sorted(name for name in loaded["unexpected_keys"] if not is_left_over(name))
    if strange:
        raise CheckpointError(
            f"{adapter.name} can't be merged into its base: that has no place for {len(strange)} of its weights, "
            f"{strange[0]} first"
        )
    return model, {name: tensor for name, tensor in model.state_dict().items() if name not in lacking}, lacking
