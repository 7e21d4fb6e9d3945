"""How an image becomes a model's input: the recipe that a checkpoint's image processor says. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias, cast, get_args

from PIL import Image

from deit_batch.errors import CheckpointError, UsageError
from deit_batch.limits import require_number, require_whole_number

Rounding: TypeAlias = Literal["down", "half-even"]

_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
_CLIP: dict[str, Any] = {
    "size": {"shortest_edge": 224},
    "resample": Image.Resampling.BICUBIC,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_MOBILENET: dict[str, Any] = {
    "size": {"shortest_edge": 256},
    "resample": Image.Resampling.BILINEAR,
    "do_center_crop": True,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    # transformers/models/*/image_processing_pil_*.py: what a preprocessor_config.json leaves out. A mean or deviation
    # that is not here is 0.5; a size that is one number is a short side where the default is one.
    "vit": {"size": 224, "resample": Image.Resampling.BILINEAR, "do_center_crop": False},
    "deit": {"size": 256, "resample": Image.Resampling.BICUBIC, "do_center_crop": True},
    "beit": {"size": 224, "resample": Image.Resampling.BICUBIC, "do_center_crop": False},
    "bit": _CLIP,
    "clip": _CLIP,
    "convnext": {"size": {"shortest_edge": 384}, "resample": Image.Resampling.BICUBIC, "do_center_crop": False},
    "mobilenetv1": _MOBILENET,
    "mobilenetv2": _MOBILENET,
    "pvt": {"size": 224, "resample": Image.Resampling.BICUBIC, "do_center_crop": False, **_IMAGENET},
    "siglip": {
        "size": 224,
        "resample": Image.Resampling.BICUBIC,
        "do_center_crop": False,
        "do_convert_rgb": True,
    },
}
_CONVNEXT_CROP = 224 / 256
_CONVNEXT_WARPED = 384
"""From this size on, ConvNeXt's processor takes no crop."""

MOST_TIMES_LARGER = 16
"""Than its result, in each direction, may an image be made on the way there: 224 pixels are cut out of 256, or of 3,584
at the most. So what an image costs is bounded by the model's size, which its weights prove."""
_LEAST, _MOST = 1e-6, 1e6
"""Of factors, means and deviations: beyond, no pixel comes out as a number that a model can do with."""

_KNOWN = frozenset(
    "do_resize size resample do_center_crop crop_size do_convert_rgb do_rescale rescale_factor do_normalize "
    "image_mean image_std crop_rounding".split()
)
# Settings that don't change the pixels of an RGB picture.
_HARMLESS = frozenset(
    "image_processor_type feature_extractor_type processor_class _processor_class data_format "
    "input_data_format return_tensors device disable_grouping".split()
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an image becomes the model's input. Sizes are (height, width) in pixels; `resize` as a single number is
    the short side, the aspect kept. A value x of 0..255 becomes (x * rescale_factor - mean) / std. `fast` takes short
    cuts on the way from a large image to a small one, whose pixels then differ a little from the image processor's.
    `scale_deep_gray` takes grey values of more than 8 bits to 0..255; the image processor cuts them off at 255.
    `rounding` is of half the pixels that the crop takes away: down, as `transformers`, or to even, as torchvision.
    `transparent_is_white` makes white what has the colour that a file without alpha names as transparent.

    Where `processor` is a preprocessor_config.json (its text), all but the decoding is done by the class of
    `transformers` that it names, and `resize` is the size of what comes out of that (image_processor.py)."""

    resize: tuple[int, int] | int | None
    resample: int
    crop: tuple[int, int] | None
    rescale_factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fast: bool = False
    scale_deep_gray: bool = False
    rounding: Rounding = "down"
    transparent_is_white: bool = False
    processor: str | None = None

    @property
    def dtype(self) -> Literal["uint8", "float32"]:
        """Of the values of every image that comes out."""
        return "float32" if self.processor else "uint8"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image that comes out."""
        size = self.crop or self.resize
        if not isinstance(size, tuple):
            raise CheckpointError("the image processor leaves images of different sizes; it needs a crop or a size")
        return size

    def cut_before(self, surplus: int) -> int:
        """Of so many pixels more than the crop has, how many are taken away at the left or at the top."""
        return round(surplus / 2) if self.rounding == "half-even" else surplus // 2

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "processor": json.loads(self.processor) if self.processor else None}

    def as_config(self) -> dict[str, object]:
        """A preprocessor_config.json that says the same, for `recipe_from_config` and for `transformers`."""
        size = {"shortest_edge": self.resize} if isinstance(self.resize, int) else _sides(self.resize)
        return {
            "image_processor_type": "DeiTImageProcessor",
            "do_resize": self.resize is not None,
            **({"size": size} if size else {}),
            "resample": self.resample,
            "do_center_crop": self.crop is not None,
            **({"crop_size": _sides(self.crop)} if self.crop else {}),
            **({"do_convert_rgb": True} if self.transparent_is_white else {}),
            **({"crop_rounding": self.rounding} if self.rounding != "down" else {}),  # ours: `transformers` has none
            "do_rescale": True,
            "rescale_factor": self.rescale_factor,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def scaled(self, image_size: int) -> Recipe:
        """The same for a model that takes squares of `image_size` pixels: sizes in proportion, a short side
        rounded down, as the authors' code has it (datasets.py: 438 for 384)."""
        factor = image_size / self.size[0]

        def sides(old: tuple[int, int] | None) -> tuple[int, int] | None:
            return old and (round(old[0] * factor), round(old[1] * factor))

        resize = self.resize * image_size // self.size[0] if isinstance(self.resize, int) else sides(self.resize)
        return replace(self, resize=resize, crop=sides(self.crop))


def _sides(size: tuple[int, int] | None) -> dict[str, int] | None:
    return {"height": size[0], "width": size[1]} if size else None


def recipe_from_config(config: Mapping[str, Any], family: str) -> Recipe:
    """The recipe that a preprocessor_config.json says, as `AutoImageProcessor` of `transformers` 5 reads it.

    `family` ("vit", "deit", …) decides where the file names no type. Raises CheckpointError for a type or a setting
    that can't be said as a Recipe.
    """
    named = config.get("image_processor_type") or config.get("feature_extractor_type") or family
    name = f"{named!s:.60}"
    family = name.removesuffix("Pil").removesuffix("Fast").removesuffix("ImageProcessor")
    family = family.removesuffix("FeatureExtractor").lower()
    if family not in _DEFAULTS:
        raise CheckpointError(f"an image processor of type {name} is not a DeiT's; use --image-processor card")
    defaults = _DEFAULTS[family]
    strange = [key for key in config if not _is_known(key, config[key], family)]
    if strange:
        raise CheckpointError(
            f"the image processor sets {', '.join(strange)}, which we don't know; see --image-processor"
        )
    try:
        do_crop = _get(config, "do_center_crop", defaults["do_center_crop"])
        normalize = _get(config, "do_normalize", True)
        mean, std = defaults.get("image_mean", 0.5), defaults.get("image_std", 0.5)
        recipe = Recipe(
            resize=_size(_get(config, "size", defaults["size"]), square=not isinstance(defaults["size"], dict))
            if _get(config, "do_resize", True)
            else None,
            resample=_resample(_get(config, "resample", defaults["resample"])),
            crop=_sides_of("crop_size", _get(config, "crop_size", 224)) if do_crop else None,
            rescale_factor=_number("rescale_factor", _get(config, "rescale_factor", 1 / 255), _LEAST)
            if _get(config, "do_rescale", True)
            else 1.0,
            mean=_channels("image_mean", _get(config, "image_mean", mean), -_MOST) if normalize else (0.0,) * 3,
            std=_channels("image_std", _get(config, "image_std", std), _LEAST) if normalize else (1.0,) * 3,
            rounding=_rounding(_get(config, "crop_rounding", "down")),
            transparent_is_white=bool(_get(config, "do_convert_rgb", defaults.get("do_convert_rgb"))),
        )
        if family == "convnext" and recipe.resize:
            return _convnext(recipe, _number("crop_pct", _get(config, "crop_pct", _CONVNEXT_CROP), _LEAST))
        return recipe
    except (UsageError, ValueError) as error:
        raise CheckpointError(f"the image processor's settings can't be read: {error}") from error


def _is_known(key: str, value: object, family: str) -> bool:
    """Whether a setting is followed here, or changes nothing."""
    if key == "default_to_square":
        return value is None or value is not isinstance(_DEFAULTS[family]["size"], dict)
    if family == "convnext" and key in ("do_center_crop", "crop_pct"):
        return key == "crop_pct" or not value
    return key in _KNOWN or key in _HARMLESS or not value


def _convnext(recipe: Recipe, crop: float) -> Recipe:
    """Its size is what comes out: for a small one, more is resized than is kept. Raises ValueError for two sides."""
    side = recipe.resize
    if not isinstance(side, int):
        raise ValueError(f"size is {side!r:.60}; a ConvNeXt's is a short side")
    if side >= _CONVNEXT_WARPED:
        return replace(recipe, resize=(side, side))
    return replace(recipe, resize=int(side / crop), crop=(side, side))


def _get(config: Mapping[str, Any], key: str, default: Any) -> Any:
    value = config.get(key)
    return default if value is None else value


def _size(size: Any, *, square: bool) -> tuple[int, int] | int:
    """`square`: what one number alone means."""
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return _side("size", size["shortest_edge"])
    if not square and isinstance(size, int):
        return _side("size", size)
    return _sides_of("size", size)


def _sides_of(name: str, size: Any) -> tuple[int, int]:
    """Height and width, however they are said."""
    sides = [size.get("height"), size.get("width")] if isinstance(size, Mapping) else size
    sides = sides if isinstance(sides, list) else [sides, sides]
    if len(sides) != 2:
        raise ValueError(f"{name} is {size!r:.60}; it must be a number, or height and width")
    return _side(name, sides[0]), _side(name, sides[1])


def _side(name: str, value: object) -> int:
    require_whole_number(name, value, 1)
    return cast(int, value)


def _number(name: str, value: object, least: float) -> float:
    require_number(name, value, least, _MOST)
    return float(cast(float, value))


def _channels(name: str, value: object, least: float) -> tuple[float, ...]:
    values = value if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3:
        raise ValueError(f"{name} has {len(values)} values, and there are three channels")
    return tuple(_number(name, one, least) for one in values)


def _resample(value: object) -> int:
    if value not in list(Image.Resampling) or isinstance(value, bool):
        raise ValueError(f"resample is {value!r:.60}; it must be one of Pillow's filters, 0 to 5")
    return int(cast(int, value))


def _rounding(value: object) -> Rounding:
    if value not in get_args(Rounding):
        raise ValueError(f"crop_rounding is {value!r:.60}; it must be one of {', '.join(get_args(Rounding))}")
    return cast(Rounding, value)


CARD_RECIPE = recipe_from_config({}, "deit")
"""The model card's text: "rescaled to the same resolution 256x256, center-cropped at 224x224 and then normalized
across the RGB channels with mean (0.5, 0.5, 0.5) and standard deviation (0.5, 0.5, 0.5)". These are the defaults of
DeiTImageProcessor, from which the filter is taken."""
