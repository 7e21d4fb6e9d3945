"""JPEGs to pixels, value for value as Pillow makes them, in half the time: decoded by simplejpeg (libjpeg-turbo, as
Pillow's), resized by `_resize.c`. Both are optional: the one comes with the extra `turbo`, the other where the package
was compiled. Imports no torch.

They are used where they are known to give Pillow's values: if they did so, in this process, for a set of small JPEGs of
every kind and for every filter (`why_not`). For a file of another kind, or one that they don't decode without a
complaint, there are no pixels from here, and Pillow judges it.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deit_batch.system.extras import how_to_install, is_installed

Size = tuple[int, int]
"""Width and height."""

Box = tuple[int, int, int, int]
"""Left, top, width and height."""

COLOURS = ("YCbCr", "Gray")
SUBSAMPLINGS = ("444", "422", "420", "440", "411", "Gray")
"""What a JPEG may be that is decoded here: kinds that `why_not` compares."""

FILTERS = range(1, 6)
"""Of Pillow, by number: Lanczos, bilinear, bicubic, box, Hamming."""


MOST_KEPT = 64 * 2**20
"""Bytes of memory that a process keeps for its next image: enough for one of 20 megapixels."""


class Resize(NamedTuple):
    """To `size` by Pillow's filter `resample`; then what is in `window` is cut out."""

    size: Size
    resample: int
    window: Box

    @property
    def is_possible(self) -> bool:
        (width, height), (left, top, window_width, window_height) = self.size, self.window
        fits = 0 <= left <= width - window_width and 0 <= top <= height - window_height
        return self.resample in FILTERS and fits


def pixels_of(
    data: bytes, size: Size, resize: Resize, *, reduce: int = 1, part: Box | None = None
) -> NDArray[np.uint8] | None:
    """Of a JPEG whose header says `size`: uint8 of shape [height, width, 3], of the size of the window. None where
    these are not surely Pillow's, or where there is any trouble with the file. With `reduce` (2, 4 or 8) it is decoded
    at that part of its size, as `draft` of Pillow does it; the values are then not Pillow's own. With `part`, that is
    cut out of what was decoded, and resized alone."""
    import simplejpeg

    from deit_batch.loading import _resize

    width, height = reduced = (-(-size[0] // reduce), -(-size[1] // reduce))
    target = np.empty((resize.window[3], resize.window[2], 3), np.uint8)
    left, top, wide, high = part or (0, 0, *reduced)
    in_file, scratch = 3 * width * height, scratch_bytes((wide, high), resize.window)
    try:
        *sides, colours, subsampling = simplejpeg.decode_jpeg_header(data)
        if sides != [size[1], size[0]] or colours not in COLOURS or subsampling not in SUBSAMPLINGS:
            return None
        room = _room(in_file + scratch, threading.get_ident())
        source = simplejpeg.decode_jpeg(data, "RGB", min_width=width, min_height=height, buffer=room[:in_file])
        source = np.ascontiguousarray(source[top : top + high, left : left + wide])  # a copy of a part only
        _resize.resize(source, (wide, high), resize.size, resize.resample, resize.window, target, room[in_file:])
    except (LookupError, MemoryError, RuntimeError, ValueError):
        return None
    return target


def scratch_bytes(size: Size, window: Box) -> int:
    """What `_resize` needs to work in: sixteen rows, and what is between its two steps."""
    (width, height), (_, _, window_width, window_height) = size, window
    return 3 * (16 * width + max(window_width * height, width * window_height))


def _room(wanted: int, thread: int) -> NDArray[np.uint8]:
    return _kept_room(thread)[:wanted] if wanted <= MOST_KEPT else np.empty(wanted, np.uint8)


@lru_cache(maxsize=1)
def _kept_room(thread: int) -> NDArray[np.uint8]:
    """For one image after the other that this thread decodes: new memory would be cleared by the system, page by page,
    each time, which takes as long as the decoding. What is not written to takes none."""
    return np.empty(MOST_KEPT, np.uint8)


@cache
def why_not() -> str | None:
    """None if `pixels_of` gives Pillow's values here; else why it is not to be used. Takes some hundredths of a second
    the first time."""
    if not is_installed("simplejpeg"):
        return f"simplejpeg is not installed; {how_to_install('turbo')}"
    try:
        differing = [name for name, data, resize in _samples() if not _is_pillows(data, resize)]
    except Exception as error:  # a broken installation is no reason to stop: there is Pillow
        return f"{type(error).__name__}: {error}"
    return f"pixels would not be Pillow's ({differing[0]})" if differing else None


def decoder() -> str:
    """What decodes JPEGs here."""
    return "pillow" if why_not() else "simplejpeg"


def _is_pillows(data: bytes, resize: Resize) -> bool:
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    left, top, width, height = resize.window
    expected = image.convert("RGB").resize(resize.size, Image.Resampling(resize.resample))
    pixels = pixels_of(data, image.size, resize)
    expected = expected.crop((left, top, left + width, top + height))
    return pixels is not None and np.array_equal(pixels, np.asarray(expected))


def _samples() -> Iterator[tuple[str, bytes, Resize]]:
    """Every kind of JPEG, and every filter on every shape."""
    for kind, data in _kinds(97, 61):
        yield kind, data, Resize((40, 40), Image.Resampling.BILINEAR, (4, 4, 32, 32))
    for width, height in ((41, 160), (160, 41), (24, 18)):
        data = _as_jpeg(_picture(width, height))
        for filter, size in product(FILTERS, ((32, 32), (48, 20))):
            yield f"filter {filter} on {width}x{height}", data, Resize(size, filter, (0, 0, *size))


def _kinds(width: int, height: int) -> Iterator[tuple[str, bytes]]:
    import simplejpeg

    picture = _picture(width, height)
    for quality, progressive, number in product((40, 95), (False, True), (0, 1, 2)):
        name = f"{SUBSAMPLINGS[number]}, quality {quality}" + (", progressive" if progressive else "")
        yield name, _as_jpeg(picture, quality=quality, progressive=progressive, subsampling=number)
    for subsampling in ("440", "411"):  # Pillow writes none
        yield subsampling, simplejpeg.encode_jpeg(np.asarray(picture), colorsubsampling=subsampling)
    for progressive in (False, True):
        yield "grey" + (", progressive" if progressive else ""), _as_jpeg(picture.convert("L"), progressive=progressive)


def _picture(width: int, height: int) -> Image.Image:
    """Slopes, edges and noise, in colour."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 60, (height, width))
    colours = [3 * x + noise, 255 * ((x // 9 + y // 7) % 2) - noise, 5 * y - x + noise]
    return Image.fromarray(np.stack(colours, -1).clip(0, 255).astype(np.uint8))


def _as_jpeg(picture: Image.Image, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **options)
    return buffer.getvalue()
