"""A model's name to a folder on this machine, found fit to score with before torch is even imported.

Hub names are resolved to one commit first and everything is read from that commit's snapshot, so a run never mixes
two versions and needs no network once its checkpoint is cached.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import safetensors

from deit_batch.errors import CheckpointAccessError, CheckpointError, OutputError, UsageError
from deit_batch.model.architecture import CLASSES, Geometry, Shape, check_tensors, geometry_from_config
from deit_batch.model.labels import labels_from_config, read_id2label
from deit_batch.model.recipe import CARD_RECIPE, Recipe, recipe_from_config
from deit_batch.system.atomic import publish_folder

DEFAULT_MODEL = "facebook/deit-base-patch16-224"
DEMO_FOLDER = Path(__file__).parent.parent / "demo"

WeightsFormat: TypeAlias = Literal["safetensors", "pickle", "onnx"]
_FORMATS: dict[str, WeightsFormat] = {".safetensors": "safetensors", ".bin": "pickle", ".onnx": "onnx"}

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_TIMEOUT = 5.0  # seconds; without a bound, a machine without network would wait for a minute


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk that has passed every check that can be made before its weights are loaded. `files` hold
    them; `commit` is the Hub's, None for a folder; `digest` is the SHA-256 of its config and weights; `exported_dtype`
    is what an ONNX one computes in, None for others."""

    name: str
    folder: Path
    files: tuple[Path, ...]
    commit: str | None
    digest: str
    weights: WeightsFormat
    exported_dtype: Literal["float32", "int8"] | None
    geometry: Geometry
    labels: list[str]
    multi_label: bool


def find_checkpoint(
    name: str, *, revision: str | None = None, allow_pickle: bool = False, id2label: str | None = None
) -> Checkpoint:
    """The checkpoint called `name`: "demo", a folder, or a name on the Hub (fetched if not cached); its classes are
    called as `id2label` says, if that is given (labels.read_id2label).

    Raises CheckpointError, saying what to do, if it can't be had or must not be scored with, UsageError if the names
    are not of its classes.
    """
    folder, commit = _find_folder(name, revision, allow_pickle)
    config = _read_json(folder / "config.json", f"{name} is no checkpoint")
    try:
        files = _weights(folder, name, allow_pickle)
        weights = _FORMATS[files[0].suffix]
        # The headers of safetensors say what is in them; other weights are checked when they are loaded.
        shapes = _shapes(files) if weights == "safetensors" else None
        architecture = _architecture(config, name)
        labels = _labels(config, _classes(architecture, shapes or {}), id2label, name)
        image_size = _image_size(config, name)
        geometry = geometry_from_config(config, architecture, classes=len(labels), image_size=image_size)
        checkpoint = Checkpoint(
            name=name,
            folder=folder,
            files=tuple(files),
            commit=commit,
            digest=_digest([folder / "config.json", *files]),
            weights=weights,
            exported_dtype=_exported_dtype(config) if weights == "onnx" else None,
            geometry=geometry,
            labels=labels,
            multi_label=_multi_label(config, len(labels), name),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the configuration in {folder} can't be understood: {error!r}") from error
    except OSError as error:
        raise CheckpointAccessError(f"{error.filename} can't be read: {error.strerror}") from error
    if shapes is not None:
        check_tensors(shapes, geometry, name)
    return checkpoint


def find_recipe(checkpoint: Checkpoint, image_processor: str | None) -> Recipe:
    """The preprocessing: the checkpoint's own, or what `image_processor` names ("card", a folder, a JSON file, a Hub
    id). Raises CheckpointError if there is none or its images do not fit the checkpoint."""
    if image_processor == "card":
        recipe = CARD_RECIPE
    else:
        file = _recipe_file(checkpoint, image_processor)
        recipe = recipe_from_config(_read_json(file, "no image processor"), checkpoint.geometry.parts.body)
    if recipe.size != checkpoint.geometry.image_size:
        height, width = checkpoint.geometry.image_size
        raise CheckpointError(
            f"the image processor gives images of {recipe.size[0]}x{recipe.size[1]} pixels but {checkpoint.name} takes "
            f"{height}x{width}; name another with --image-processor"
        )
    return recipe


def copy_checkpoint(checkpoint: Checkpoint, out: Path) -> Path:
    """Its files, as a new folder that appears whole; returns it. Raises UsageError if it is there already, OutputError
    if it can't be written."""
    if out.exists():
        raise UsageError(f"{out} is there already; give another --out")
    growing = out.with_name(f"{out.name}.partial")
    names = ["config.json", "preprocessor_config.json", *(path.name for path in checkpoint.files)]
    indices = [path.name for path in checkpoint.folder.glob("*.index.json")]
    try:
        shutil.rmtree(growing, ignore_errors=True)
        growing.mkdir(parents=True)
        for name in [*names, *indices]:
            shutil.copyfile(checkpoint.folder / name, growing / name)  # what a link of the cache leads to
        publish_folder(growing, out, replace=False)
    except OSError as error:
        raise OutputError(f"{out}: can't be written: {error.strerror}") from error
    return out


# --- where it is ----------------------------------------------------------------------------------------------------


def _find_folder(name: str, revision: str | None, allow_pickle: bool) -> tuple[Path, str | None]:
    if name == "demo" or os.path.isdir(name):
        if revision:
            raise UsageError(f"--revision is for models on the Hub; {name} is a folder")
        return (DEMO_FOLDER if name == "demo" else Path(name)), None
    if not _HUB_NAME.fullmatch(name):
        raise CheckpointError(f"no folder {name}, and no model on the Hub can have that name")
    patterns = ["config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json"]
    if allow_pickle:
        patterns += ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
    folder = _snapshot(name, revision, patterns)
    return folder, folder.name


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    """The folder of one commit in the Hub's cache; its name is the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    problem = why_not_the_hub(name, revision)
    disable_progress_bars()
    try:
        # By the revision as given, not by its commit: the cache remembers which commit a revision meant, for the
        # day when the Hub is out of reach.
        folder = snapshot_download(
            name, revision=revision, allow_patterns=patterns, local_files_only=problem is not None
        )
        return Path(folder)
    except LocalEntryNotFoundError:
        raise CheckpointAccessError(
            f"{name} is not on this machine and the Hub can't be reached ({problem}); where there is a network, fetch "
            f"it with 'deit-batch pull {name} --out DIR', and copy DIR here as --model DIR (or the cache, HF_HOME);"
            " to try the tool without any download use --model demo"
        ) from None
    except Exception as error:  # the client raises whatever the network, its HTTP library and the disk raise
        raise CheckpointAccessError(f"{name} can't be fetched from the Hub: {error}") from error


def why_not_the_hub(name: str, revision: str | None) -> str | None:
    """Why the Hub can't be asked for the model, or None if it answers. Raises CheckpointError if it answers no.

    Asked in a thread, because looking up a host's name has no time limit of its own."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if revision and _COMMIT.fullmatch(revision):
        from huggingface_hub import try_to_load_from_cache

        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return "not asked: the commit is cached"
    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT)
            answer.append(None)
        except Exception as error:  # handed to the caller, in its own thread
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(1.5 * _HUB_TIMEOUT)
    match answer:
        case [None]:
            return None
        case [RevisionNotFoundError()]:
            raise CheckpointError(f"{name} has no revision {revision} on the Hub")
        case [RepositoryNotFoundError()]:
            raise CheckpointError(
                f"there is no folder {name} here and no such model on the Hub, or it is private (then set HF_TOKEN)"
            )
        case [HfHubHTTPError() as error] if error.response.status_code < 500 and error.response.status_code != 429:
            raise CheckpointError(f"the Hub refuses {name}: {error}")
        case [Exception() as error]:
            return str(error).splitlines()[0] if str(error) else type(error).__name__
        case _:
            return f"no answer within {1.5 * _HUB_TIMEOUT:g} s"


def _recipe_file(checkpoint: Checkpoint, image_processor: str | None) -> Path:
    if image_processor is None:
        path = checkpoint.folder / "preprocessor_config.json"
        if not path.is_file():
            raise CheckpointError(
                f"{checkpoint.name} has no preprocessor_config.json; name one with --image-processor (a file, "
                "a folder, a Hub id, or card)"
            )
        return path
    path = Path(image_processor)
    if path.is_dir():
        return path / "preprocessor_config.json"
    if path.is_file():
        return path
    if path.suffix == ".json" or not _HUB_NAME.fullmatch(image_processor):
        raise CheckpointError(f"--image-processor {image_processor}: no such file or folder")
    return _snapshot(image_processor, None, ["preprocessor_config.json"]) / "preprocessor_config.json"


def _read_json(path: Path, if_missing: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{if_missing}: there is no {path}") from error
    except OSError as error:
        raise CheckpointAccessError(f"{path} can't be read: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


def _weights(folder: Path, name: str, allow_pickle: bool) -> list[Path]:
    """The files that the weights are in: one, or those that an index names."""
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if suffix == ".bin" and not allow_pickle:
            continue
        index = folder / f"{stem}{suffix}.index.json"
        if (folder / f"{stem}{suffix}").is_file():
            return [folder / f"{stem}{suffix}"]
        if index.is_file():
            shards = sorted(set(_read_json(index, name)["weight_map"].values()))
            if not all(shard.endswith(suffix) and "/" not in shard for shard in shards):
                raise CheckpointError(f"{index} names files that are not {suffix}")
            return [folder / shard for shard in shards]
    if (folder / "model.onnx").is_file():  # see onnx.py
        return [folder / "model.onnx"]
    hint = ""
    if not allow_pickle:
        hint = (
            "; if it has only pickled ones (pytorch_model.bin), which can run code when they are loaded, and you trust "
            "where they came from, add --allow-pickle"
        )
    raise CheckpointError(f"{name} has no weights: there is no model.safetensors in {folder}{hint}")


def _shapes(files: list[Path]) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for path in files:
        try:
            with safetensors.safe_open(path, "numpy") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except OSError as error:
            raise CheckpointAccessError(f"{path} can't be loaded: {error}") from error
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{path} can't be loaded: {error}") from error
    return shapes


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


# --- what its config says -------------------------------------------------------------------------------------------


def _architecture(config: dict[str, Any], name: str) -> str:
    """The class comes from the checkpoint: with any other, weights would be left out and made up instead."""
    named = config.get("architectures") or []
    if len(named) != 1 or named[0] not in CLASSES:
        raise CheckpointError(
            f"{name} is a {', '.join(named) or 'model of no stated class'}, not a DeiT classifier; those are "
            f"{', '.join(CLASSES)}"
        )
    expected = CLASSES[named[0]].body
    if config.get("model_type") != expected:
        raise CheckpointError(f"{name}: a {named[0]} has model_type {expected}, not {config.get('model_type')}")
    return str(named[0])


def _classes(architecture: str, shapes: Mapping[str, Shape]) -> int | None:
    """How many the head has, where that is known."""
    head = shapes.get(f"{CLASSES[architecture].heads[0]}.weight")
    return head[0] if head else None


def _labels(config: dict[str, Any], classes: int | None, id2label: str | None, name: str) -> list[str]:
    """Those that are given, or the config's."""
    own = labels_from_config(config, classes, name)
    if id2label is None:
        return own
    given = read_id2label(id2label)
    if len(given) != len(own):
        raise UsageError(f"--id2label {id2label} names {len(given):,} classes, but {name} has {len(own):,}")
    return given


def _image_size(config: dict[str, Any], name: str) -> tuple[int, int]:
    size = config.get("image_size", 224)
    height, width = size if isinstance(size, list) else (size, size)
    if config.get("num_channels", 3) != 3:
        raise CheckpointError(f"{name} takes images of {config['num_channels']} channels; only RGB is supported")
    return int(height), int(width)


def _exported_dtype(config: dict[str, Any]) -> Literal["float32", "int8"]:
    return "int8" if config.get("dtype") == "int8" else "float32"


def _multi_label(config: dict[str, Any], classes: int, name: str) -> bool:
    """Whether each label is scored for itself (sigmoid) or all share one (softmax); as the pipeline decides it."""
    problem = config.get("problem_type")
    if problem == "regression":
        raise CheckpointError(f"{name} is a regression model, not a classifier")
    return problem == "multi_label_classification" or classes == 1
