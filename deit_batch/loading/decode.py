"""Bytes to pixels: decoding, and the resize and crop of a checkpoint's image processor. Imports no torch.

The result equals that of the Hugging Face image-classification pipeline bit for bit: the EXIF orientation is applied,
then every mode becomes RGB by Pillow's own conversion (alpha dropped, 16-bit grey clipped at 255 unless the recipe
scales it), then Pillow resizes. What most photographs are, a JPEG that lies upright, `turbo.py` does with the same
values in half the time.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from deit_batch.errors import DecodeError
from deit_batch.input.kinds import HOW_TO_READ_HEIF
from deit_batch.limits import Limits
from deit_batch.loading import turbo
from deit_batch.loading.deep_gray import DEEP_GRAY, is_deep_gray, mend_planes, scaled_to_8_bits
from deit_batch.loading.turbo import Box
from deit_batch.model.recipe import MOST_TIMES_LARGER, Recipe
from deit_batch.system.extras import is_installed
from deit_batch.system.git_lfs import NOT_HERE, is_pointer

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF")
"""The decoders that input may reach, HEIF's with the extra heic; Pillow has some forty more, for formats that nobody
photographs in."""

HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))
"""What may stand in the first box of a HEIF file (ISO/IEC 23008-12, annex B), but for AVIF's."""

JPEG = b"\xff\xd8\xff"

BLOCKS_KEPT = 8
"""Of 16 MiB, that Pillow keeps for the next image instead of asking the system for empty pages again: two images of 12
megapixels, as one and its turned copy are."""

_TURNED = (5, 6, 7, 8)
"""EXIF orientations whose rows are the image's columns."""

_EXIF_TROUBLE = (OSError, SyntaxError, TypeError, ValueError, KeyError, struct.error)
"""Of EXIF that can't be read: the picture is whole, only its orientation is not known."""

FAST_GAP = 1.5
"""With `Recipe.fast`, how many times the result's size is left for the resampling filter to do."""


def decode(data: bytes, recipe: Recipe, limits: Limits, *, met: Counter[str] | None = None) -> NDArray[Any]:
    """An encoded image to pixels: `recipe.dtype` of shape [height, width, 3], of `recipe.size`. In `met`, one of deep
    grey is counted as DEEP_GRAY.

    With `limits.allow_truncated`, what is missing at the end of a file is grey (but for HEIF, which has no part that
    could be shown). Raises DecodeError if the bytes are no
    whole image of an accepted format, or one that has more than `limits.image_pixels` or comes to have them.
    """
    with _as_decode_errors(limits):
        pixels = _by_turbo(data, recipe, limits.image_pixels)
        return _by_pillow(data, recipe, limits, met) if pixels is None else pixels


def decode_held(image: Image.Image, recipe: Recipe, limits: Limits, *, met: Counter[str] | None = None) -> NDArray[Any]:
    """As `decode`, of an image that the program holds; one that it has merely opened is loaded, as the program has told
    Pillow to load images. Nothing else in it changes."""
    with _trouble_as_decode_errors():
        _require_few_pixels(image, limits.image_pixels)
        image.load()
        upright = image.copy()
        with suppress(*_EXIF_TROUBLE):
            upright = ImageOps.exif_transpose(image)
        return _by_recipe(_in_rgb(upright, recipe, limits, met, tags=image), recipe, limits)


def decode_part(data: bytes, recipe: Recipe, limits: Limits, choose: Callable[[int, int], Box]) -> Image.Image:
    """The part of an encoded image that `choose` picks, given the width and height of the upright image: its left, top,
    width and height in pixels. It is resized to `recipe.size` by the recipe's filter: an RGB image, for training, with
    the short cuts of `Recipe.fast` where a JPEG is much larger than its part needs to be. Raises as `decode`."""
    with _as_decode_errors(limits):
        image = _open(data, limits.image_pixels)
        width, height = image.size[::-1] if _orientation(image) in _TURNED else image.size
        box = choose(width, height)
        shrunk = max(FAST_GAP * recipe.size[1] / box[2], FAST_GAP * recipe.size[0] / box[3])
        if shrunk < 1:
            image.draft(None, (math.ceil(image.width * shrunk), math.ceil(image.height * shrunk)))
        pixels = _part_by_turbo(data, image, (width, height), box, recipe)
        if pixels is not None:
            return Image.fromarray(pixels)
        image = _opaque(_finished(image, recipe, limits, None), recipe)
        left, top, wide, high = _scaled(box, (width, height), image.size)
        cut = image.crop((left, top, left + wide, top + high))
        return cut.resize(recipe.size[::-1], Image.Resampling(recipe.resample))


def _scaled(box: Box, size: turbo.Size, reduced: turbo.Size) -> Box:
    """A part of an image of `size` to that of its smaller copy."""
    across, down = reduced[0] / size[0], reduced[1] / size[1]
    left, top = round(box[0] * across), round(box[1] * down)
    right, bottom = round((box[0] + box[2]) * across), round((box[1] + box[3]) * down)
    return left, top, max(right - left, 1), max(bottom - top, 1)


@contextmanager
def _as_decode_errors(limits: Limits) -> Iterator[None]:
    """Sets Pillow's own limits, and raises DecodeError for whatever its decoders raise meanwhile."""
    # Pillow keeps these three in its modules; there is no other way to tell it.
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, limits.allow_truncated
    Image.core.set_blocks_max(BLOCKS_KEPT)  # type: ignore[attr-defined]
    with _trouble_as_decode_errors():
        yield


@contextmanager
def _trouble_as_decode_errors() -> Iterator[None]:
    try:
        # Pillow warns about every oddity in a file; a million odd files would bury what matters.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DecodeError:
        raise
    except MemoryError as error:
        raise DecodeError("not enough memory to decode it") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files: OSError, SyntaxError, struct
        raise DecodeError(f"can't be decoded: {str(error) or type(error).__name__}") from error


def _by_turbo(data: bytes, recipe: Recipe, max_pixels: int) -> NDArray[np.uint8] | None:
    """None unless it is a JPEG that lies upright, and has no trouble of any kind: that is for Pillow to judge."""
    if recipe.resize is None or recipe.processor or not data.startswith(JPEG) or turbo.why_not():
        return None
    image = _open(data, max_pixels)
    if not _is_for_turbo(image):
        return None
    width, height = size = _resized(image.size, recipe.resize)
    if width * height > max_pixels:
        return None
    resize = turbo.Resize(size, recipe.resample, _window(size, recipe))
    reduce = _draft_factor(image.size, recipe.resize) if recipe.fast else 1
    return turbo.pixels_of(data, image.size, resize, reduce=reduce) if resize.is_possible else None


def _part_by_turbo(
    data: bytes, image: Image.Image, size: turbo.Size, box: Box, recipe: Recipe
) -> NDArray[np.uint8] | None:
    """None as `_by_turbo`. `size`: that of the file, of which `image`, not loaded yet, may be a reduced form."""
    if turbo.why_not() or not _is_for_turbo(image):
        return None
    target = recipe.size[::-1]
    resize = turbo.Resize(target, recipe.resample, (0, 0, *target))
    part = _scaled(box, size, image.size)
    reduce = round(size[0] / image.width)
    return turbo.pixels_of(data, size, resize, reduce=reduce, part=part) if resize.is_possible else None


def _is_for_turbo(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and not _may_be_turned(image)


def _may_be_turned(image: Image.Image) -> bool:
    return _orientation(image) != 1


def _orientation(image: Image.Image) -> object:
    """None if that can't be told."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF is as strange as people make it
        return None


def _by_pillow(data: bytes, recipe: Recipe, limits: Limits, met: Counter[str] | None) -> NDArray[Any]:
    image = _open(data, limits.image_pixels)
    if recipe.fast and recipe.resize:
        # A JPEG is then decoded to a half, quarter or eighth of its size: libjpeg scales the DCT's blocks.
        side = _least_side(recipe.resize)
        image.draft(None, (side, side))
    return _by_recipe(_finished(image, recipe, limits, met), recipe, limits)


def _by_recipe(image: Image.Image, recipe: Recipe, limits: Limits) -> NDArray[Any]:
    """Of one that is upright, and RGB."""
    if recipe.processor:
        return _processed(image, recipe, recipe.processor, limits.image_pixels)
    image = _opaque(image, recipe)
    return np.asarray(_crop_center(_resize(image, recipe, limits.image_pixels), recipe))


def _finished(image: Image.Image, recipe: Recipe, limits: Limits, met: Counter[str] | None) -> Image.Image:
    """The pixels of an image that was opened: upright, RGB, with few enough pixels."""
    return _in_rgb(_upright(image), recipe, limits, met, tags=image)


def _in_rgb(
    image: Image.Image, recipe: Recipe, limits: Limits, met: Counter[str] | None, *, tags: Image.Image
) -> Image.Image:
    """Of one that is upright; `tags`: the image that has its file's."""
    _require_few_pixels(image, limits.image_pixels)  # HEIF's size is known for sure when it is decoded
    if is_deep_gray(image):
        image = scaled_to_8_bits(image, tags) if recipe.scale_deep_gray else image
        if met is not None:
            met[DEEP_GRAY] += 1
    return _rgb(image)


def _opaque(image: Image.Image, recipe: Recipe) -> Image.Image:
    """White where an image in RGB says which of its colours is transparent, if the recipe wants that."""
    if recipe.transparent_is_white and image.info.get("transparency") is not None:
        return _on_white(image)
    return image


def _open(data: bytes, max_pixels: int) -> Image.Image:
    formats = _formats()
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        if "HEIF" not in formats and data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
            raise DecodeError(f"HEIC needs an extra: {HOW_TO_READ_HEIF}") from error
        if is_pointer(data):
            raise DecodeError(NOT_HERE) from error
        raise DecodeError(f"not an image that we read ({', '.join(formats)}); starts with {data[:12]!r}") from error
    _require_few_pixels(image, max_pixels)
    mend_planes(image)
    if image.format == "HEIF":
        # Where a byte of it is missing, the plugin would give a black picture, of not one pixel of the file.
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    return image


@cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS whose decoders are installed. HEIF's (libheif with libde265) is made known to Pillow, for the
    primary image alone; with one thread, for there are workers enough."""
    if not is_installed("pi_heif"):
        return tuple(name for name in FORMATS if name != "HEIF")
    from pi_heif import register_heif_opener

    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return FORMATS


def _require_few_pixels(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise DecodeError(f"{image.width}x{image.height} is more than {max_pixels:,} pixels")


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # so that only EXIF trouble can be mistaken for EXIF trouble
    with suppress(*_EXIF_TROUBLE):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # LA, multiplied by its alpha: Pillow converts it to that alone
        image = image.convert("LA")
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies, even what is RGB already


def _on_white(image: Image.Image) -> Image.Image:
    """As convert_to_rgb of transformers/image_transforms.py; alpha has been dropped before."""
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _least_side(resize: tuple[int, int] | int) -> int:
    """Of an image that is decoded smaller, whichever way up it is: larger than the result, or the resampling filter
    would have too little to go by."""
    return round(FAST_GAP * (resize if isinstance(resize, int) else max(resize)))


def _draft_factor(size: tuple[int, int], resize: tuple[int, int] | int) -> int:
    """How many times smaller `draft` of Pillow would decode it."""
    return next((factor for factor in (8, 4, 2) if min(size) // _least_side(resize) >= factor), 1)


def _resized(size: tuple[int, int], resize: tuple[int, int] | int) -> tuple[int, int]:
    """Width and height, of those of the image."""
    match resize:
        case (height, width):
            return width, height
        case short:
            # As get_resize_output_image_size of transformers: the long side is rounded down.
            long = int(short * max(size) / min(size))
            return (short, long) if size[0] <= size[1] else (long, short)


def _resize(image: Image.Image, recipe: Recipe, max_pixels: int) -> Image.Image:
    if recipe.resize is None:
        return image
    size = _resized(image.size, recipe.resize)
    if size[0] * size[1] > max_pixels:  # a line of pixels, as a file of a few hundred bytes can hold it
        raise DecodeError(f"{image.width}x{image.height} becomes more than {max_pixels:,} pixels when resized")
    return image.resize(size, Image.Resampling(recipe.resample), reducing_gap=FAST_GAP if recipe.fast else None)


def _processed(image: Image.Image, recipe: Recipe, processor: str, max_pixels: int) -> NDArray[np.float32]:
    """By a class of `transformers`, which is imported in those workers alone that need it."""
    from deit_batch.model.image_processor import processed

    # It may make the short side as long as the longest of its result, and the long side in proportion.
    if max(recipe.size) ** 2 * MOST_TIMES_LARGER * max(image.size) // min(image.size) > max_pixels:
        raise DecodeError(f"{image.width}x{image.height} becomes more than {max_pixels:,} pixels when resized")
    values = processed(image, processor)
    if values.shape != (*recipe.size, 3):
        height, width = values.shape[:2]
        raise DecodeError(f"the image processor makes {height}x{width} pixels of it, and {recipe.size} of others")
    return values


def _crop_center(image: Image.Image, recipe: Recipe) -> Image.Image:
    """Cuts out the centre; where the image is smaller, fills with black around it."""
    if recipe.crop is None:
        return image
    left, top, width, height = _window(image.size, recipe)
    return image.crop((left, top, left + width, top + height))


def _window(size: tuple[int, int], recipe: Recipe) -> tuple[int, int, int, int]:
    """Left, top, width and height of what is left of an image of this size."""
    if recipe.crop is None:
        return (0, 0, *size)
    height, width = recipe.crop
    return recipe.cut_before(size[0] - width), recipe.cut_before(size[1] - height), width, height
