"""A model's name to a folder on this machine, found fit to score with before torch is even imported.

Hub names are resolved to one commit first and everything is read from that commit's snapshot, so a run never mixes
two versions and needs no network once its checkpoint is cached.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import safetensors

from deit_batch.errors import CheckpointAccessError, CheckpointError, UsageError, in_words
from deit_batch.io import counted
from deit_batch.model.architecture import (
    CLASSES,
    Geometry,
    Shape,
    check_tensors,
    geometry_from_config,
    without_wrappers,
)
from deit_batch.model.config import (
    Runtime,
    architecture_from_config,
    choose_runtime,
    dtype_from_config,
    head_size,
    is_multi_label,
    not_ours,
    require_plain_numbers,
)
from deit_batch.model.hub import HUB_NAME, snapshot
from deit_batch.model.labels import DEFAULT_CLASSES, labels_from_config, read_id2label
from deit_batch.model.place import ADAPTER, CONFIG, RECIPE, Place, kept_folder, place_in
from deit_batch.model.recipe import CARD_RECIPE, MOST_TIMES_LARGER, Recipe, recipe_from_config
from deit_batch.model.timm import (
    config_from_timm,
    is_timms,
    recipe_from_timm,
    recipe_of_authors,
    shapes_as_transformers,
)
from deit_batch.system.git_lfs import NOT_HERE, is_pointer_file
from deit_batch.system.regular_file import read_settings

logger = logging.getLogger("deit_batch")

DEFAULT_MODEL = "facebook/deit-base-patch16-224"
DEMO_FOLDER = Path(__file__).parent.parent / "demo"

WeightsFormat: TypeAlias = Literal["safetensors", "pickle", "onnx"]
_FORMATS: dict[str, WeightsFormat] = {
    ".safetensors": "safetensors",
    ".bin": "pickle",
    ".pth": "pickle",
    ".onnx": "onnx",
}
Form: TypeAlias = Literal["transformers", "timm", "adapter"]
"""An adapter's files are those of what it was merged to, which has the form of `transformers`."""

_PICKLE_FILE = ".pth"
"""Of weights alone, as DeiT's authors publish them."""

_FLOATS = ("F64", "F32", "F16", "BF16")
_COUNTERS = "I64"
"""Of batches, positions and tokens: what some classes keep beside their weights."""
_FOR_GOOD = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP)
"""What the system says of a file that another try will not find readable either."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk that has passed every check that can be made before its weights are loaded. `folder` is
    where it was found, `files` hold the weights, in the names and shapes of `form`; `config` is what its `config_file`
    says, in the form of `transformers`; `recipe` is what says its own one, a file or timm's config, or None;
    `commit` is the Hub's, None for a folder; `digest` is the SHA-256 of its config and weights; `exported_dtype` is
    what an ONNX one computes in, None for others. `own_geometry` is that of DeiTs and ViTs, None for other classes: of
    those only `transformers` can say whether the weights fit (auto_model.py)."""

    name: str
    folder: Path
    files: tuple[Path, ...]
    form: Form
    config_file: Path | None
    config: Mapping[str, Any]
    recipe: Path | Mapping[str, Any] | None
    commit: str | None
    digest: str
    weights: WeightsFormat
    exported_dtype: Literal["float32", "int8"] | None
    runtime: Runtime
    architecture: str
    own_geometry: Geometry | None
    labels: list[str]
    multi_label: bool

    def in_absolute_paths(self) -> Checkpoint:
        """So that it can be loaded whatever the working folder is then."""
        return replace(
            self,
            folder=self.folder.absolute(),
            files=tuple(file.absolute() for file in self.files),
            config_file=self.config_file and self.config_file.absolute(),
            recipe=self.recipe.absolute() if isinstance(self.recipe, Path) else self.recipe,
        )

    @property
    def geometry(self) -> Geometry:
        """For what is done with our own classes alone. Raises UsageError if it is of another."""
        if self.own_geometry is None:
            raise UsageError(not_ours(self.architecture, self.name))
        return self.own_geometry

    @property
    def description(self) -> str:
        """What it is: its name, commit, class and labels."""
        commit = f", commit {self.commit}" if self.commit else ""
        return f"{self.name}{commit}: {self.architecture}, {counted(len(self.labels), 'label')}"


def find_checkpoint(
    name: str,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    id2label: str | None = None,
    runtime: str = "auto",
    fetch: bool = True,
) -> Checkpoint:
    """The checkpoint called `name`: "demo", a folder (place.place_in), a file of pickled weights, or a name on the Hub
    (fetched if not cached, unless `fetch` is False); its classes are called as `id2label` says, if that is given
    (labels.read_id2label); `runtime` is one of them, or "auto".

    Raises CheckpointAccessError if it can't be had now, CheckpointError, saying what to do, if there is none or it must
    not be scored with, UsageError if the names are not of its classes or the runtime is not for it.
    """
    found, commit = _find_folder(name, revision, allow_pickle, fetch)
    is_adapter = _is_adapter(found)
    found = _merged_folder(found, name, allow_pickle, fetch) if is_adapter else found
    place = place_in(found) if found.is_dir() else Place(found, None, None)
    said = _read_object(place.config, f"{name} is no checkpoint") if place.config else {}
    try:
        files = _weights(place.weights, name, allow_pickle)
        _require_content(files)
        weights = _FORMATS[files[0].suffix]
        form: Form = "timm" if place.config is None or is_timms(said) else "adapter" if is_adapter else "transformers"
        other_class = form != "timm" and architecture_from_config(said, name) not in CLASSES
        shapes = _shapes(files, weights, name, counters=other_class)
        config = config_from_timm(said, shapes or {}, name) if form == "timm" else said
        architecture = architecture_from_config(config, name)
        require_plain_numbers(said, name)
        classes = head_size(architecture, shapes or {})
        if other_class and shapes and config.get("id2label") is None:
            from deit_batch.model.auto_model import count_classes  # imports torch and transformers

            classes = count_classes(config, shapes, name)
            config = {**config, "num_labels": classes or DEFAULT_CLASSES}
        labels = _labels(config, classes, id2label, name)
        geometry = None if other_class else geometry_from_config(config, architecture, classes=len(labels))
        checkpoint = Checkpoint(
            name=name,
            folder=found,
            files=tuple(files),
            form=form,
            config_file=place.config,
            config=config,
            recipe=said if form == "timm" else place.recipe,
            commit=commit,
            digest=_digest([*([place.config] if place.config else []), *files]),
            weights=weights,
            exported_dtype=dtype_from_config(config) if weights == "onnx" else None,
            runtime=choose_runtime(runtime, architecture, name, is_exported=weights == "onnx"),
            architecture=architecture,
            own_geometry=geometry,
            labels=labels,
            multi_label=is_multi_label(config, name, classes=len(labels)),
        )
    except ValueError as error:
        raise CheckpointError(f"the configuration in {found} can't be understood: {error}") from error
    except OSError as error:
        raise _unreadable(error) from error
    if shapes is not None and geometry is not None:
        check_tensors(shapes_of(checkpoint, geometry, shapes), geometry, name)
    return checkpoint


def shapes_of(checkpoint: Checkpoint, geometry: Geometry, stored: Mapping[str, Shape]) -> Mapping[str, Shape]:
    """Those of the tensors in the form of `transformers`, from those of the tensors as they are stored."""
    if checkpoint.form != "timm":
        return stored
    return shapes_as_transformers(stored, geometry.tokens, checkpoint.name)


def find_recipe(checkpoint: Checkpoint, image_processor: str | None, *, fetch: bool = True) -> Recipe:
    """The preprocessing: the checkpoint's own, or what `image_processor` names ("card", "paper", a folder, a JSON file,
    a Hub id, which is fetched as the checkpoint is). Raises CheckpointError if there is none or its images do not fit
    the checkpoint."""
    geometry = checkpoint.own_geometry
    if image_processor == "card":
        recipe = CARD_RECIPE
    elif image_processor == "paper":
        recipe = recipe_of_authors(checkpoint.geometry.image_size[0])
    elif image_processor is None and isinstance(checkpoint.recipe, Mapping):
        recipe = recipe_from_timm(checkpoint.recipe, checkpoint.geometry.image_size[0], checkpoint.name)
    else:
        config = _read_object(_recipe_file(checkpoint, image_processor, fetch), "no image processor")
        if checkpoint.runtime == "transformers":
            from deit_batch.model.image_processor import recipe_of

            recipe = recipe_of(config, str(checkpoint.config.get("model_type")))
        else:
            recipe = recipe_from_config(config, checkpoint.geometry.parts.body)
    if geometry and recipe.size != geometry.image_size:
        height, width = geometry.image_size
        raise CheckpointError(
            f"the image processor gives images of {recipe.size[0]}x{recipe.size[1]} pixels but {checkpoint.name} takes "
            f"{height}x{width}; name another with --image-processor"
        )
    resize = recipe.resize if isinstance(recipe.resize, tuple) else (recipe.resize or 1,) * 2
    if any(made > MOST_TIMES_LARGER * kept for made, kept in zip(resize, recipe.size, strict=True)):
        raise CheckpointError(
            f"the image processor makes images of {resize[0]}x{resize[1]} pixels to keep {recipe.size[0]}x"
            f"{recipe.size[1]} of them; that is too much, name another with --image-processor"
        )
    return recipe


# --- where it is ----------------------------------------------------------------------------------------------------


def _find_folder(name: str, revision: str | None, allow_pickle: bool, fetch: bool) -> tuple[Path, str | None]:
    if name == "demo" or os.path.isdir(name) or (name.endswith(_PICKLE_FILE) and os.path.isfile(name)):
        if revision:
            raise UsageError(f"--revision is for models on the Hub; {name} is here")
        return (DEMO_FOLDER if name == "demo" else Path(name)), None
    if not HUB_NAME.fullmatch(name):
        raise CheckpointError(f"no folder {name}, and no model on the Hub can have that name")
    patterns = [CONFIG, ADAPTER, RECIPE]
    patterns += ["model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"]
    if allow_pickle:
        patterns += ["pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_model.bin"]
    folder = snapshot(name, revision, patterns, fetch)
    if not fetch and not any(path.suffix in _FORMATS for path in folder.iterdir()):
        raise CheckpointAccessError(f"the weights of {name} are not on this machine")
    return folder, folder.name


def _recipe_file(checkpoint: Checkpoint, image_processor: str | None, fetch: bool) -> Path:
    if image_processor is None:
        path = checkpoint.recipe
        if not isinstance(path, Path) or not path.is_file():
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
    if path.suffix == ".json" or not HUB_NAME.fullmatch(image_processor):
        raise CheckpointError(f"--image-processor {image_processor}: no such file or folder")
    return snapshot(image_processor, None, ["preprocessor_config.json"], fetch) / "preprocessor_config.json"


def _read_object(path: Path, if_missing: str) -> dict[str, Any]:
    try:
        value = json.loads(read_settings(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"{if_missing}: there is no {path}") from error
    except OSError as error:
        raise _unreadable(error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read: {in_words(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


def _unreadable(error: OSError) -> CheckpointError:
    kind = CheckpointError if error.errno in _FOR_GOOD else CheckpointAccessError
    return kind(f"{error.filename} can't be read: {error.strerror}")


def _is_adapter(folder: Path) -> bool:
    """Whether it holds what was trained beside a model and saved without it."""
    return (folder / ADAPTER).is_file() and not (folder / CONFIG).exists()


def _merged_folder(folder: Path, name: str, allow_pickle: bool, fetch: bool) -> Path:
    """The folder of an adapter's checkpoint, which is merged when it is first asked for. Raises CheckpointError if its
    base can't be had, or it can't be merged into that."""
    said = _read_object(folder / ADAPTER, name)
    base = said.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{name} is an adapter, and its {ADAPTER} does not say of which base")
    here = next((path for path in (Path(base), folder / base) if path.is_dir()), None)
    revision = None if here else said.get("revision")
    try:
        found = here or _find_folder(base, revision, allow_pickle, fetch)[0]
        place = place_in(found)
        config = _read_object(place.config or found / CONFIG, "it is no checkpoint")
        base_files = _weights(place.weights, base, allow_pickle)
        files = _adapter_files(folder, allow_pickle)
        _require_content([*files, *base_files])
    except CheckpointError as error:
        raise type(error)(f"{name} is an adapter of {base}, and can't be merged into it: {error}") from error
    recipes = (folder / RECIPE, place.recipe)
    recipe = next((path for path in recipes if path and path.is_file()), None)
    made_of = [folder / ADAPTER, *files, found / CONFIG if place.config is None else place.config, *base_files]
    out = kept_folder(f"{_digest([*made_of, *([recipe] if recipe else [])])[:20]}-merged")
    if not out.exists():
        from deit_batch.model.adapter import Adapter, merge  # imports torch and transformers

        logger.info("merging %s into its base, %s, once: it is kept in %s", name, base, out)
        try:
            merge(Adapter(name, said, files, config, base_files, recipe), out)
        except UsageError:
            if not out.exists():  # made by another run meanwhile
                raise
    return out


def _adapter_files(folder: Path, allow_pickle: bool) -> list[Path]:
    for suffix in (".safetensors", *([".bin"] if allow_pickle else [])):
        if (path := folder / f"adapter_model{suffix}").is_file():
            return [path]
    raise CheckpointError(f"there is no adapter_model.safetensors in {folder}")


def _weights(folder: Path, name: str, allow_pickle: bool) -> list[Path]:
    """The files that the weights are in: one, or those that an index names; or the one that is no `folder`."""
    if folder.is_file():
        if not allow_pickle:
            raise CheckpointError(
                f"{name} is pickled, which can run code when it is loaded; if you trust where it came from, add "
                "--allow-pickle"
            )
        return [folder]
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if suffix == ".bin" and not allow_pickle:
            continue
        index = folder / f"{stem}{suffix}.index.json"
        if (folder / f"{stem}{suffix}").is_file():
            return [folder / f"{stem}{suffix}"]
        if index.is_file():
            return _shards(index, folder, suffix)
    if (folder / "model.onnx").is_file():  # see onnx.py
        return [folder / "model.onnx"]
    hint = ""
    if not allow_pickle:
        hint = (
            "; if it has only pickled ones (pytorch_model.bin), which can run code when they are loaded, and you trust "
            "where they came from, add --allow-pickle"
        )
    raise CheckpointError(f"{name} has no weights: there is no model.safetensors in {folder}{hint}")


def _shards(index: Path, folder: Path, suffix: str) -> list[Path]:
    weight_map = _read_object(index, str(folder)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} names no files: its weight_map must give one for each weight")
    names = list(weight_map.values())
    if not all(isinstance(name, str) and name.endswith(suffix) for name in names):
        raise CheckpointError(f"{index} names files that are not {suffix}")
    there = {path.name for path in folder.iterdir() if path.is_file()}
    missing = sorted(set(names) - there)
    if missing:
        raise CheckpointError(f"{index} names {json.dumps(missing[0])}, and there is no such file beside it")
    return [folder / name for name in sorted(set(names))]


def _require_content(files: list[Path]) -> None:
    for path in files:
        if is_pointer_file(str(path)):
            raise CheckpointError(f"{path} can't be loaded: {NOT_HERE}")


def _shapes(files: list[Path], weights: WeightsFormat, name: str, *, counters: bool) -> dict[str, Shape] | None:
    """By the names that the files have for them; None for ONNX, whose weights have others. `counters`: whether there
    may be some."""
    if weights == "onnx":
        return None
    if weights == "pickle":
        from deit_batch.model.pickled import shapes_in_pickle  # imports torch

        return without_wrappers(_merged(shapes_in_pickle(path, counters=counters) for path in files), name)
    return without_wrappers(_merged(_shapes_in_header(path, counters=counters) for path in files), name)


def _merged(parts: Iterable[Mapping[str, Shape]]) -> dict[str, Shape]:
    return {name: shape for part in parts for name, shape in part.items()}


def _shapes_in_header(path: Path, *, counters: bool) -> dict[str, Shape]:
    known = (*_FLOATS, _COUNTERS) if counters else _FLOATS
    try:
        with safetensors.safe_open(path, "numpy") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            other = [name for name, one in slices.items() if one.get_dtype() not in known]
            shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
    except OSError as error:
        raise CheckpointAccessError(f"{path} can't be loaded: {error}") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} can't be loaded: {error}") from error
    if other:  # by themselves, without their scales, they mean nothing
        raise CheckpointError(
            f"{path} can't be loaded: {len(other)} of its weights are quantised or whole numbers, {other[0]} first"
        )
    return shapes


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _labels(config: dict[str, Any], classes: int | None, id2label: str | None, name: str) -> list[str]:
    """Those that are given, or the config's."""
    own = labels_from_config(config, classes, name)
    if id2label is None:
        return own
    given = read_id2label(id2label)
    if len(given) != len(own):
        raise UsageError(
            f"--id2label {id2label} names {counted(len(given), 'class', 'classes')}, but {name} has {len(own):,}"
        )
    return given
