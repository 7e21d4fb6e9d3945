"""Bytes to pixels: decoding, and the resize and crop of a checkpoint's image processor. Imports no torch.

The result equals that of the Hugging Face image-classification pipeline bit for bit: the EXIF orientation is applied,
then every mode becomes RGB by Pillow's own conversion (alpha dropped, 16-bit grey clipped at 255), then Pillow resizes.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from deit_batch.errors import CheckpointError, DecodeError
from deit_batch.limits import Limits

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
"""The decoders that input may reach; Pillow has some forty more, for formats that nobody photographs in."""

FAST_GAP = 1.5
"""With `Recipe.fast`, how many times the result's size is left for the resampling filter to do."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    # transformers/models/{vit,deit}/image_processing_*.py: what a preprocessor_config.json leaves out.
    "vit": {"size": 224, "resample": Image.Resampling.BILINEAR, "do_center_crop": False},
    "deit": {"size": 256, "resample": Image.Resampling.BICUBIC, "do_center_crop": True},
}

_KNOWN = frozenset(
    "do_resize size resample do_center_crop crop_size do_rescale rescale_factor do_normalize "
    "image_mean image_std".split()
)
# Settings that don't change the pixels of an RGB picture.
_HARMLESS = frozenset(
    "image_processor_type feature_extractor_type processor_class _processor_class do_convert_rgb data_format "
    "input_data_format return_tensors device disable_grouping".split()
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an image becomes the model's input. Sizes are (height, width) in pixels; `resize` as a single number is
    the short side, the aspect kept. A value x of 0..255 becomes (x * rescale_factor - mean) / std. `fast` takes short
    cuts on the way from a large image to a small one, whose pixels then differ a little from the image processor's."""

    resize: tuple[int, int] | int | None
    resample: int
    crop: tuple[int, int] | None
    rescale_factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fast: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image that comes out."""
        size = self.crop or self.resize
        if not isinstance(size, tuple):
            raise CheckpointError("the image processor leaves images of different sizes; it needs a crop or a size")
        return size

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

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
            "do_rescale": True,
            "rescale_factor": self.rescale_factor,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def scaled(self, image_size: int) -> Recipe:
        """The same for a model that takes squares of `image_size` pixels: sizes in proportion."""
        factor = image_size / self.size[0]

        def sides(old: tuple[int, int] | None) -> tuple[int, int] | None:
            return old and (round(old[0] * factor), round(old[1] * factor))

        resize = round(self.resize * factor) if isinstance(self.resize, int) else sides(self.resize)
        return replace(self, resize=resize, crop=sides(self.crop))


def _sides(size: tuple[int, int] | None) -> dict[str, int] | None:
    return {"height": size[0], "width": size[1]} if size else None


def recipe_from_config(config: Mapping[str, Any], model_type: str) -> Recipe:
    """The recipe that a preprocessor_config.json says, as `AutoImageProcessor` of `transformers` 5 reads it.

    `model_type` ("vit" or "deit") decides where the file names no type. Raises CheckpointError for a type or a
    setting that is not one of the ViT and DeiT processors'.
    """
    name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or model_type)
    family = name.removesuffix("Pil").removesuffix("Fast").removesuffix("ImageProcessor")
    family = family.removesuffix("FeatureExtractor").lower()
    if family not in _DEFAULTS:
        raise CheckpointError(f"an image processor of type {name} is not a DeiT's; use --image-processor card")
    strange = [key for key, value in config.items() if value and key not in {*_KNOWN, *_HARMLESS, "default_to_square"}]
    if config.get("default_to_square") is False:
        strange.append("default_to_square")
    if strange:
        raise CheckpointError(
            f"the image processor sets {', '.join(strange)}, which we don't know; see --image-processor"
        )
    defaults = _DEFAULTS[family]
    try:
        do_crop = _get(config, "do_center_crop", defaults["do_center_crop"])
        normalize = _get(config, "do_normalize", True)
        return Recipe(
            resize=_size(_get(config, "size", defaults["size"])) if _get(config, "do_resize", True) else None,
            resample=int(Image.Resampling(_get(config, "resample", defaults["resample"]))),
            crop=_crop(_get(config, "crop_size", 224)) if do_crop else None,
            rescale_factor=float(_get(config, "rescale_factor", 1 / 255)) if _get(config, "do_rescale", True) else 1.0,
            mean=_channels(_get(config, "image_mean", 0.5)) if normalize else (0.0,) * 3,
            std=_nonzero(_channels(_get(config, "image_std", 0.5))) if normalize else (1.0,) * 3,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the image processor's settings can't be read: {error!r}") from error


def _get(config: Mapping[str, Any], key: str, default: Any) -> Any:
    value = config.get(key)
    return default if value is None else value


def _size(size: Any) -> tuple[int, int] | int:
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    return _crop(size)


def _crop(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    if isinstance(size, Sequence):
        height, width = size
        return int(height), int(width)
    return int(size), int(size)


def _channels(value: Any) -> tuple[float, ...]:
    values = tuple(map(float, value)) if isinstance(value, Sequence) else (float(value),) * 3
    if len(values) != 3:
        raise ValueError(f"{len(values)} values where there are three channels")
    return values


def _nonzero(values: tuple[float, ...]) -> tuple[float, ...]:
    if not all(values):
        raise ValueError("a standard deviation of 0")
    return values


CARD_RECIPE = recipe_from_config({}, "deit")
"""The model card's text: "rescaled to the same resolution 256x256, center-cropped at 224x224 and then normalized
across the RGB channels with mean (0.5, 0.5, 0.5) and standard deviation (0.5, 0.5, 0.5)". These are the defaults of
DeiTImageProcessor, from which the filter is taken."""


def decode(data: bytes, recipe: Recipe, limits: Limits) -> NDArray[np.uint8]:
    """An encoded image to pixels: uint8 of shape [height, width, 3], of `recipe.size`.

    With `limits.allow_truncated`, what is missing at the end of a file is grey. Raises DecodeError if the bytes are no
    whole image of an accepted format, or one that has more than `limits.image_pixels` or comes to have them.
    """
    # Pillow keeps these two in its modules; there is no other way to tell it.
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, limits.allow_truncated
    try:
        # Pillow warns about every oddity in a file; a million odd files would bury what matters.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _open(data, limits.image_pixels)
            if recipe.fast and recipe.resize:
                # A JPEG is then decoded to a half, quarter or eighth of its size: libjpeg scales the DCT's blocks.
                image.draft(None, _draft_size(recipe.resize))
            return np.asarray(_crop_center(_resize(_rgb(_upright(image)), recipe, limits.image_pixels), recipe))
    except DecodeError:
        raise
    except MemoryError as error:
        raise DecodeError("not enough memory to decode it") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files: OSError, SyntaxError, struct
        raise DecodeError(f"can't be decoded: {str(error) or type(error).__name__}") from error


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise DecodeError(f"not an image that we read ({', '.join(FORMATS)}); starts with {data[:12]!r}") from error
    if image.width * image.height > max_pixels:
        raise DecodeError(f"{image.width}x{image.height} is more than {max_pixels:,} pixels")
    return image


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # so that only EXIF trouble can be mistaken for EXIF trouble
    # Unreadable EXIF: the picture is whole, only its orientation is not known.
    with suppress(OSError, SyntaxError, TypeError, ValueError, KeyError, struct.error):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies, even what is RGB already


def _draft_size(resize: tuple[int, int] | int) -> tuple[int, int]:
    """What is left must be larger than the result, or the resampling filter would have too little to go by."""
    side = round(FAST_GAP * (resize if isinstance(resize, int) else max(resize)))
    return side, side  # whichever way up it is


def _resize(image: Image.Image, recipe: Recipe, max_pixels: int) -> Image.Image:
    match recipe.resize:
        case None:
            return image
        case (height, width):
            size = (width, height)
        case short:
            # As get_resize_output_image_size of transformers: the long side is rounded down.
            long = int(short * max(image.size) / min(image.size))
            size = (short, long) if image.width <= image.height else (long, short)
            if short * long > max_pixels:  # a line of pixels, as a file of a few hundred bytes can hold it
                raise DecodeError(f"{image.width}x{image.height} becomes more than {max_pixels:,} pixels when resized")
    return image.resize(size, Image.Resampling(recipe.resample), reducing_gap=FAST_GAP if recipe.fast else None)


def _crop_center(image: Image.Image, recipe: Recipe) -> Image.Image:
    """Cuts out the centre; where the image is smaller, fills with black around it."""
    if recipe.crop is None:
        return image
    height, width = recipe.crop
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
