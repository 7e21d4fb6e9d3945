"""Pictures of more than 8 bits a channel of which Pillow makes something else: grey ones, which its conversion to RGB
cuts off at 255, and TIFFs in planes, which it reads wrongly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from deit_batch.errors import DecodeError
from deit_batch.io import counted
from deit_batch.system.logs import warn_even_if_quiet

DEEP_GRAY = "deep gray"
"""Under which such images are counted."""

_BAND = 2**20  # pixels

_SIXTEEN_BITS = frozenset(("I;16", "I;16L", "I;16B", "I;16N"))
_WIDER = frozenset(("I", "F"))

# Tags of TIFF 6.0.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR = 258, 262, 284
_WHITE_IS_ZERO, _IN_PLANES = 0, 2


def is_deep_gray(image: Image.Image) -> bool:
    return image.mode in _SIXTEEN_BITS or image.mode in _WIDER


def scaled_to_8_bits(image: Image.Image, opened: Image.Image) -> Image.Image:
    """A deep grey image as one of mode L: of 16 bits (or 12, as its TIFF says) all that they can hold becomes 0..255,
    of wider integers and floats what lies between the least and the greatest. `opened`: the same, or the one that it
    was made of, with its file's tags. Raises DecodeError if no value is finite."""
    values = np.asarray(image)
    tags = getattr(opened, "tag_v2", {})
    if image.mode in _SIXTEEN_BITS:
        bits = min(16, (tags.get(_BITS_PER_SAMPLE) or (16,))[0])
        table = np.rint(np.arange(2**16) * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)
        grey = table[values]
    else:
        grey = _by_range(values)
    return Image.fromarray(255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey)


def _by_range(values: NDArray[np.int32] | NDArray[np.float32]) -> NDArray[np.uint8]:
    """NaN and infinities are black. In bands of rows, for the copies would be several times as large as the image."""
    height, width = values.shape
    rows = max(1, _BAND // width)
    bands = [slice(start, start + rows) for start in range(0, height, rows)]
    finite = (values[band][np.isfinite(values[band])] for band in bands)
    ranges = [(float(band.min()), float(band.max())) for band in finite if band.size]
    if not ranges:
        raise DecodeError("not one of its values is finite")
    least, greatest = min(low for low, _ in ranges), max(high for _, high in ranges)
    grey = np.empty(values.shape, np.uint8)
    for band in bands:
        shares = (values[band].astype(np.float64) - least) / ((greatest - least) or 1.0)
        grey[band] = np.rint(np.where(np.isfinite(shares), shares, 0) * 255)
    return grey


def mend_planes(image: Image.Image) -> None:
    """Of an uncompressed TIFF in planes of 16 bits a channel, Pillow takes each byte for a pixel of 8 bits: it is told
    to take the upper byte of each two, as it does where the channels lie beside each other."""
    if not isinstance(image, TiffImageFile):
        return
    tags = image.tag_v2
    if tags.get(_PLANAR) != _IN_PLANES or max(tags.get(_BITS_PER_SAMPLE) or (8,)) != 16:
        return
    order = "L" if tags.prefix == b"II" else "B"
    image.tile = [
        tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))
        if tile.codec_name == "raw" and isinstance(tile.args, tuple) and len(tile.args[0]) == 1
        else tile
        for tile in image.tile
    ]


def warn_of_deep_gray(images: int, *, scaled: bool, remedy: str = "--deep-gray scale takes their whole range") -> None:
    """At the end of a run, if there were any."""
    if images and not scaled:
        warn_even_if_quiet(
            "%s grey of more than 8 bits: values are cut off at 0 and 255 (so most become white, or of floats in 0..1 "
            "black), as in the transformers pipeline; %s",
            counted(images, "image is", "images are"),
            remedy,
        )
