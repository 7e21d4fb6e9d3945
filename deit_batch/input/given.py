"""What a Python program hands over: names of inputs, or images and DataFrames, which become the rows of a table."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from deit_batch.errors import RowError, UsageError
from deit_batch.input.held_image import held_image, is_array, is_lazy_table, what_to_give
from deit_batch.input.kinds import InputKind, parse_input_name
from deit_batch.input.locate import locate
from deit_batch.input.open import ChooseColumns, OpenTable
from deit_batch.input.tables import Row, Table, Value, row_failure
from deit_batch.io import Base64, Url

GIVEN = "what is given"
"""The name of an input that has none."""

Images: TypeAlias = str | os.PathLike[str] | Image.Image | Iterable[Any]
"""What `score` takes: see `names_or_rows`."""


def names_or_rows(input: Images) -> str | tuple[str, ...] | OpenTable:
    """A path, or a list of them: the name of what is opened, or several. But a URL is one image; and where all in a
    list are URLs or paths of images, or where one is no path, and in whatever else can be iterated over, each is one:
    where it is, as a line of a list says it; its encoded bytes; or the image itself, as `held_image` takes it. So are
    the rows of a DataFrame, and dicts, if their column is one.

    Raises UsageError for what is none of this."""
    if isinstance(input, str | os.PathLike):
        name = _text(input)
        return partial(_open_items, [name]) if _is_far_or_inline(name) else name
    if isinstance(input, bytes | bytearray | memoryview | Image.Image) or is_array(input):
        return partial(_open_items, [input])
    if isinstance(input, list | tuple) and all(isinstance(each, str | os.PathLike) for each in input):
        names = tuple(map(_text, input))
        return partial(_open_items, names) if all(map(_is_one_image, names)) else names  # an empty list holds none
    if _is_frame(input):
        return partial(_open_frame, input)
    with suppress(TypeError):  # of what can't be iterated over
        # Lines of a file are no images, and a LazyFrame only seems to be one that can be iterated over.
        if not (isinstance(input, Mapping | io.IOBase) or is_lazy_table(input)):
            iter(input)
            return partial(_open_items, input)
    raise UsageError(
        f"input is {input!r:.80}; it must be a path, an image, a DataFrame, or a list or iterator of images, of where "
        f"they are, or of dicts{what_to_give(input)}"
    )


def _text(name: str | os.PathLike[Any]) -> str:
    path = os.fspath(name)
    return os.fsdecode(path) if isinstance(path, bytes) else str(path)  # NumPy's text, too, is Python's then


def _is_one_image(name: str) -> bool:
    """Whether it is where one image is, there or not; a name without an ending that is known may be one if it is
    there."""
    given = parse_input_name(name)
    return (
        _is_far_or_inline(name) or given.kind is InputKind.IMAGE or (given.kind is InputKind.UNKNOWN and given.exists)
    )


def _is_far_or_inline(name: str) -> bool:
    """Whether it is a URL, a data URI or base64, which the command line takes in tables alone."""
    with suppress(RowError):  # hf://, for one, is no image's
        return isinstance(locate(name), Url | Base64 | bytes)
    return False


def _is_frame(value: object) -> bool:
    """Whether it is a DataFrame of pandas or polars, or of whoever's that can be asked in the same way."""
    return hasattr(type(value), "iterrows") or hasattr(type(value), "iter_rows")


# --- images ----------------------------------------------------------------------------------------------------------


def _open_items(items: Iterable[object], wanted: ChooseColumns) -> Table:
    try:
        total = len(items)  # type: ignore[arg-type]
    except TypeError:
        return Table(_rows(items))
    return Table(_rows(items), total=lambda read: total)


def _rows(items: Iterable[object]) -> Iterator[Row]:
    for number, item in enumerate(items):
        yield Row(number, _value(item, number), unit="item")


def _value(item: object, number: int) -> Value:
    if isinstance(item, Mapping):
        return {name: _plain(cell) for name, cell in item.items()}
    try:
        image = held_image(item)
    except RowError as error:
        return row_failure(f"item {number}: {error}")
    if _plain(item) is None or (isinstance(image, str) and not image.strip()):
        return row_failure(f"item {number} is empty")
    if image is not None:
        return image
    return row_failure(f"item {number} is no image, but of type {type(item).__name__}{what_to_give(item)}")


# --- DataFrames ------------------------------------------------------------------------------------------------------


def _open_frame(frame: Any, wanted: ChooseColumns) -> Table:
    columns = [name for name in frame.columns if isinstance(name, str)]
    taken = wanted(columns)
    cells = zip(*(frame[name] for name in taken), strict=True)
    values = (dict(zip(taken, map(_plain, row), strict=True)) for row in cells)
    rows = (Row(number, value, unit="row") for number, value in enumerate(values))
    return Table(rows, columns, lambda read: len(frame))


def _plain(cell: Any) -> Any:
    """As Python has it; None for what pandas has in place of a value that is missing."""
    if isinstance(cell, np.generic):
        cell = cell.item()
    is_missing = type(cell).__name__ in ("NAType", "NaTType") or (isinstance(cell, float) and cell != cell)
    return None if is_missing else cell
