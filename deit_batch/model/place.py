"""Where in a folder, or a mount, the files of a checkpoint are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from deit_batch.errors import CheckpointAccessError, CheckpointError
from deit_batch.system.regular_file import read_settings

CONFIG, RECIPE, MLMODEL = "config.json", "preprocessor_config.json", "MLmodel"
ADAPTER = "adapter_config.json"


def kept_folder(name: str) -> Path:
    """In the user's cache: of a checkpoint that was made of another, to be taken from there by the next run."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "deit-batch" / name


class Place(NamedTuple):
    """`weights` is the folder that they are in, or a file of them alone; then there is no `config` and no `recipe`."""

    weights: Path
    config: Path | None
    recipe: Path | None


def place_in(folder: Path) -> Place:
    """Of a folder as `transformers` or timm saves it, of an MLflow model, or of a folder that holds one of these, as
    the mount of a registered model does. Raises CheckpointError if it holds several, or an MLflow model of another
    kind."""
    if not (folder / CONFIG).exists():
        if (folder / MLMODEL).exists():
            return _place_in_mlflow_model(folder)
        inside = sorted({path.parent for name in (MLMODEL, CONFIG) for path in folder.glob(f"*/{name}")})
        if len(inside) > 1:
            raise CheckpointError(f"{folder} holds several checkpoints, {inside[0]} and {inside[1]} among them")
        if inside:
            return place_in(inside[0])
    return Place(folder, folder / CONFIG, folder / RECIPE)


def _place_in_mlflow_model(folder: Path) -> Place:
    """By MLflow's flavour for `transformers` (mlflow/transformers/model_io.py), or Azure ML's older one of its model
    catalogue (azureml.evaluate.mlflow)."""
    flavours = _flavours(folder / MLMODEL)
    if "transformers" in flavours:
        model = _inside(folder, flavours["transformers"].get("model_binary", "model"))
        processor = folder / "components" / "image_processor" / RECIPE
        return Place(model, model / CONFIG, processor if processor.exists() else model / RECIPE)
    for name in ("hftransformersv2", "hftransformers"):
        if name in flavours:
            data = _inside(folder, flavours[name].get("model_data", "data"))
            config = data / "config" / CONFIG
            config = config if config.exists() else data / "model" / CONFIG
            return Place(data / "model", config, data / "tokenizer" / RECIPE)
    raise CheckpointError(
        f"{folder} is an MLflow model of another flavour ({', '.join(flavours) or 'none'}); only those of the flavour "
        "transformers can be scored"
    )


def _flavours(path: Path) -> dict[str, Mapping[str, Any]]:
    import yaml

    try:
        flavours = yaml.safe_load(read_settings(path))["flavors"]
        return {str(name): about for name, about in flavours.items() if isinstance(about, Mapping)}
    except OSError as error:
        raise CheckpointAccessError(f"{path} can't be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read: it names no flavors ({type(error).__name__})") from error


def _inside(folder: Path, name: object) -> Path:
    """The folder of that name in it. Raises CheckpointError for one elsewhere."""
    if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise CheckpointError(f"{folder / MLMODEL} names {name!r:.60}, which is no folder in it")
    return folder / name
