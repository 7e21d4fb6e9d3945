"""A checkpoint as a folder of its own, in the form of `transformers`, whatever form it was found in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from deit_batch.errors import OutputError
from deit_batch.model.checkpoint import Checkpoint, find_recipe
from deit_batch.model.labels import id2label_of
from deit_batch.model.place import CONFIG, RECIPE
from deit_batch.system.atomic import make_missing_folder
from deit_batch.system.new_folder import new_folder


def save_checkpoint(checkpoint: Checkpoint, out: Path, *, has_new_names: bool = False) -> Path:
    """As a new folder that appears whole; returns it. Files that have that form already are copied as they are, others
    become safetensors. `has_new_names`: its classes have been given other names than its own. Raises UsageError if it
    is there already, OutputError if it can't be written, CheckpointError if the weights can't be loaded."""
    make_missing_folder(out)
    try:
        with new_folder(out) as growing:
            if checkpoint.form != "timm" and checkpoint.config_file and not has_new_names:
                shutil.copyfile(checkpoint.config_file, growing / CONFIG)
            else:
                write_config(checkpoint, growing)
            write_recipe(checkpoint, growing)
            _write_weights(checkpoint, growing)
    except OSError as error:
        raise OutputError(f"{out}: can't be written: {error.strerror}") from error
    return out


def write_config(checkpoint: Checkpoint, folder: Path, **more: object) -> None:
    """Its config.json, with the names that its classes have been given, and with `more` settings."""
    config = {**checkpoint.config, **id2label_of(checkpoint.labels), **more}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_recipe(checkpoint: Checkpoint, folder: Path) -> None:
    """Its preprocessor_config.json, if it has a recipe."""
    if checkpoint.form == "timm":
        config = find_recipe(checkpoint, None).as_config()
        (folder / RECIPE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    elif isinstance(checkpoint.recipe, Path) and checkpoint.recipe.exists():
        shutil.copyfile(checkpoint.recipe, folder / RECIPE)  # what a link of the cache leads to


def _write_weights(checkpoint: Checkpoint, folder: Path) -> None:
    if checkpoint.form != "timm" and checkpoint.weights != "pickle":
        indices = checkpoint.files[0].parent.glob("*.safetensors.index.json")
        for path in [*checkpoint.files, *indices]:
            shutil.copyfile(path, folder / path.name)
        return
    import safetensors.torch

    from deit_batch.model.transformer import load_tensors

    weights = folder / "model.safetensors"
    safetensors.torch.save_file(load_tensors(checkpoint), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes its own private
