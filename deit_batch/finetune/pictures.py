"""Where training reads its images from, at random and in any process: their pixels, or their encoded bytes, in a file,
in memory, or wherever the input has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deit_batch.errors import InputError
from deit_batch.io import Failure, Location
from deit_batch.limits import Limits
from deit_batch.loading.decode import decode, decode_part
from deit_batch.loading.fetch import Fetcher
from deit_batch.model.recipe import Recipe

Choose: TypeAlias = Callable[[int, int], tuple[int, int, int, int]]
"""As `decode_part` takes it."""


class File:
    """A file of bytes, mapped into memory when it is first read, by whichever process reads it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def array(self) -> NDArray[np.uint8]:
        return np.memmap(self._path, np.uint8, "r") if self._path.stat().st_size else np.empty(0, np.uint8)

    def __reduce__(self) -> tuple[type[File], tuple[Path]]:
        return File, (self._path,)


class Memory:
    """The same in this process's memory, which its workers inherit."""

    def __init__(self, data: bytearray) -> None:
        self.array: NDArray[np.uint8] = np.frombuffer(data, np.uint8)


class KeptPixels:
    """Images as the recipe gives them."""

    def __init__(self, store: File | Memory, size: tuple[int, int]) -> None:
        self._store, self._shape = store, (-1, *size, 3)

    def pixels(self, row: int) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self._store.array.reshape(self._shape)[row]
        return pixels


class Originals:
    """Images that are decoded whenever they are shown."""

    def __init__(self, read: Callable[[int], bytes], recipe: Recipe, limits: Limits) -> None:
        self._read, self._recipe, self._limits = read, recipe, limits

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """uint8 [height, width, 3], as the recipe gives it. Raises InputError if the image is no longer there."""
        return decode(self._read(row), self._recipe, self._limits)

    def part(self, row: int, choose: Choose) -> Image.Image:
        """The part that `choose` picks, of the model's size. Raises as `pixels`."""
        return decode_part(self._read(row), self._recipe, self._limits, choose)


class KeptBytes:
    """The encoded bytes of an image; `ends`: int64 [n], where each one's end in the store."""

    def __init__(self, store: File | Memory, ends: NDArray[np.int64]) -> None:
        self._store, self._ends = store, ends

    def __call__(self, row: int) -> bytes:
        start = self._ends[row - 1] if row else 0
        return self._store.array[start : self._ends[row]].tobytes()


class Fetched:
    """The encoded bytes of an image, fetched anew. `images`: where each is, and what it is called."""

    def __init__(self, images: Sequence[tuple[Location, str | None]], limits: Limits) -> None:
        self._images, self._limits = images, limits

    @cached_property
    def _fetcher(self) -> Fetcher:
        return Fetcher(self._limits)

    def __call__(self, row: int) -> bytes:
        location, name = self._images[row]
        found = self._fetcher.fetch(location)
        if isinstance(found, Failure):
            raise InputError(
                f"{name or 'an image'} could be read before the first step, and can't any more: {found.message}; run "
                "the same command again to go on"
            )
        return found


Pictures: TypeAlias = KeptPixels | Originals
