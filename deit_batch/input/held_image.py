"""An image that a Python program holds, in whatever form, to what the loader takes."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from PIL import Image

from deit_batch.errors import RowError
from deit_batch.io import Picture

_CHANNELS = ((), (3,), (4,))
"""What may follow on an array's height and width: grey, RGB, RGBA."""


def is_array(value: object) -> bool:
    """Of more than one axis, whoever's. (Text in an array, and a Series, are iterated over.)"""
    return hasattr(value, "dtype") and len(getattr(value, "shape", ())) > 1


def is_lazy_table(value: object) -> bool:
    """As polars' LazyFrame is: a plan for a DataFrame."""
    return hasattr(type(value), "collect") and hasattr(type(value), "collect_schema")


def held_image(value: object) -> str | bytes | Picture | None:
    """Where it is, its encoded bytes, or its pixels: of an image of Pillow in any mode, or of a NumPy array uint8 of
    shape [height, width], [height, width, 3] (RGB) or [height, width, 4] (RGBA). None for what is nothing of this.

    Raises RowError for an image without pixels, and an array that might be more than one thing: of other numbers, or
    with other axes."""
    match value:
        case str():
            return str(value)  # and not NumPy's, which shows itself as np.str_('…')
        case bytes():
            return value
        case bytearray() | memoryview():
            return bytes(value)
        case os.PathLike():
            return os.fsdecode(value)
        case Image.Image():
            if 0 in value.size:  # as a crop beside the picture is
                raise RowError(f"an image of {value.width}x{value.height} pixels")
            return Picture(value)
        case _ if is_array(value):
            return Picture(_of_array(value))
        case _:
            return None


def what_to_give(value: object) -> str:
    """The end of a message about what is no image: of a table that is not read yet, an open file, or what is like
    one."""
    if is_lazy_table(value):
        return "; give what its .collect() returns"
    if isinstance(value, io.BytesIO):
        return "; give its .getvalue()"
    return "; give what its .read() returns" if hasattr(value, "read") else ""


def _of_array(array: Any) -> Image.Image:
    is_plain = isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.size > 0
    if not is_plain or array.shape[2:] not in _CHANNELS:
        shape = ", ".join(map(str, array.shape))
        several = "; of several images, a list" if len(array.shape) == 4 else ""
        raise RowError(
            f"{type(array).__name__} of {array.dtype} [{shape}]; give a NumPy array of uint8 [height, width], "
            f"[height, width, 3] (RGB) or [height, width, 4] (RGBA){several}"
        )
    return Image.fromarray(array)
