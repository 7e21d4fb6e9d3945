"""What a Python program hands over as input: what it is taken for, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from helpers import jpeg, photo
from hypothesis import given, strategies
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes
from PIL import Image

from deit_batch.errors import RowError, UsageError
from deit_batch.input.given import names_or_rows
from deit_batch.input.held_image import held_image
from deit_batch.input.open import open_source
from deit_batch.io import Failure, LocalFile, Picture, Reference, Url


def references(held: Any, **options: Any) -> list[Reference]:
    rows = names_or_rows(held)
    assert callable(rows)
    return list(open_source(rows, **options).references)


def test_names_are_opened_and_images_are_rows(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    (tmp_path / "without-an-ending").write_bytes(jpeg())
    table, image, bare = (str(tmp_path / name) for name in ("t.csv", "a.png", "without-an-ending"))
    for names in (str(tmp_path), table, image):
        assert names_or_rows(names) == names_or_rows(Path(names)) == names
    named: list[Any] = [[str(tmp_path), image], (table,), [Path(image), "*.png"], ["hf://x", image], ["-"], ["none"]]
    for several in named:
        assert names_or_rows(several) == tuple(map(str, several))
    for one in ("https://example.org/a.jpg", "data:,x"):
        assert [each.location for each in references(one)] == [Url(one) if one[0] == "h" else b"x"]
    found = references([Path(image), bare, "gone.jpg", "https://example.org/table.csv", "data:,x"])
    assert [each.location for each in found] == [
        *(LocalFile(path) for path in (image, bare, "gone.jpg")),
        Url("https://example.org/table.csv"),
        b"x",
    ]
    assert [each.image for each in references(name for name in (str(tmp_path), table))] == [str(tmp_path), table]


def test_whatever_holds_images_can_be_iterated_over(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpg"]
    held: list[Any] = [names, tuple(names), iter(names), pd.Series(names), pl.Series(names), np.array(names)]
    for each in held:
        assert [found.image for found in references(each)] == names
    assert [found.image for found in references(iter(names), limit=1)] == names[:1]
    assert [found.index for found in references(names, shard=(1, 2))] == [1]


def test_one_image_is_one_whatever_its_form() -> None:
    image, data = photo(), jpeg()
    one: list[Any] = [image, np.asarray(image), data, bytearray(data), memoryview(data)]
    for held in one:
        (found,) = references(held)
        assert isinstance(found.location, Picture | bytes)
        assert found.image is None
    assert references(data)[0].sha256


def test_what_is_no_image_costs_its_own_place_alone() -> None:
    odd: list[Any] = [
        None,
        " ",
        5,
        object(),
        np.float64(1),
        [photo()],
        np.nan,
        pd.NA,
        photo().crop((2, 2, 2, 9)),
        photo(),
    ]
    *failed, last = references(odd)
    assert isinstance(last.location, Picture)
    said = [each.location.message for each in failed if isinstance(each.location, Failure)]
    assert said == [
        "item 0 is empty",
        "item 1 is empty",
        "item 2 is no image, but of type int",
        "item 3 is no image, but of type object",
        "item 4 is no image, but of type float64",
        "item 5 is no image, but of type list",
        "item 6 is empty",
        "item 7 is empty",
        "item 8: an image of 0x7 pixels",
    ]


@pytest.mark.parametrize("nothing", [5, None, 1.5, {"image": "a.jpg"}, Path, np.array(3)], ids=str)
def test_what_can_not_be_iterated_over_is_wrong_usage(nothing: Any) -> None:
    with pytest.raises(UsageError, match="it must be a path, an image, a DataFrame, or a list"):
        references(nothing)


AMBIGUOUS: list[Any] = [
    np.zeros((8, 8, 3), np.float32),
    np.zeros((8, 8, 3), np.uint16),
    np.zeros((8, 8), bool),
    np.zeros((3, 8, 8), np.uint8),
    np.zeros((8, 8, 1), np.uint8),
    np.zeros((2, 8, 8, 3), np.uint8),
    np.zeros((0, 8, 3), np.uint8),
    torch.zeros((3, 8, 8)),
    torch.zeros((8, 8, 3), dtype=torch.uint8),
]


@pytest.mark.parametrize("array", AMBIGUOUS, ids=lambda array: f"{array.dtype}-{list(array.shape)}")
def test_an_array_that_may_be_more_than_one_thing_is_not_guessed_at(array: Any) -> None:
    (found,) = references(array)
    assert isinstance(found.location, Failure)
    shape = ", ".join(map(str, array.shape))
    said = f"item 0: {type(array).__name__} of {array.dtype} [{shape}]; give a NumPy array of uint8 [height, width]"
    assert found.location.message.startswith(said)
    assert found.location.message.endswith("; of several images, a list") == (array.ndim == 4)


@given(arrays(scalar_dtypes() | strategies.just(np.dtype(np.uint8)), array_shapes(min_dims=2, max_dims=4, max_side=4)))
def test_an_array_is_its_own_pixels_or_refused(array: np.ndarray[Any, Any]) -> None:
    try:
        held = held_image(array)
    except RowError:
        assert array.dtype != np.uint8 or (array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)))
    else:
        assert isinstance(held, Picture)
        assert np.array_equal(np.asarray(held.pixels), array)


def test_a_table_that_is_not_read_yet_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"it must be a path, an image, a DataFrame, .*; give what its \.collect\(\) ret"
    ):
        names_or_rows(pl.DataFrame(rows()).lazy())  # type: ignore[arg-type]


# --- tables ----------------------------------------------------------------------------------------------------------


def rows() -> dict[str, list[Any]]:
    return {"n": [7, 8, 9, 10], "path": ["a.jpg", None, "", "https://example.org/b.jpg"], "kind": ["x", None, "y", "z"]}


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_a_data_frame_is_a_table(frame: Any) -> None:
    found = references(frame(rows()), keep=("n", "kind"), id="n")
    assert [each.image for each in found] == ["a.jpg", None, None, "https://example.org/b.jpg"]
    assert [each.keep for each in found] == [
        {"n": n, "kind": kind} for n, kind in zip(rows()["n"], rows()["kind"], strict=True)
    ]
    assert len({each.id for each in found}) == 4
    failures = [each.location.message for each in found if isinstance(each.location, Failure)]
    assert failures == ["row 1: the image is empty", "row 2: the image is empty"]
    assert [each.image for each in references(frame({"a": ["b.jpg"], "c": ["d.jpg"]}), column="c")] == ["d.jpg"]
    with pytest.raises(UsageError, match=r"no column is called 'hue'. Columns seen: n, path, kind"):
        references(frame(rows()), keep=("hue",))
    with pytest.raises(UsageError, match=r"no column looks like the image; name it with --column. Columns seen: a, c"):
        references(frame({"a": ["b.jpg"], "c": ["d.jpg"]}))


def test_missing_values_of_pandas_are_missing(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "path": pd.array(["a.jpg", pd.NA, float("nan")], dtype=object),
            "n": pd.array([1, None, 3], dtype="Int64"),
            "day": pd.to_datetime(["2026-11-27", None, "2026-11-28"]),
            "share": np.array([0.5, np.nan, 1.0]),
        },
        index=[5, 5, 5],
    )
    found = references(frame, keep=("n", "day", "share"))
    assert [each.image for each in found] == ["a.jpg", None, None]
    assert [each.keep["n"] for each in found] == [1, None, 3]
    assert [str(each.keep["day"]) for each in found] == ["2026-11-27 00:00:00", "None", "2026-11-28 00:00:00"]
    assert [each.keep["share"] for each in found] == [0.5, None, 1.0]
    assert type(found[0].keep["share"]) is float


def test_a_cell_may_be_an_image() -> None:
    cells = [photo(), np.asarray(photo()), jpeg(), Path("a.jpg"), np.zeros(3), 5]
    tables: list[Iterable[Any]] = [pd.DataFrame({"image": cells}), ({"image": cell} for cell in cells)]
    for table in tables:
        places = [each.location for each in references(table, column="image")]
        assert list(map(type, places)) == [Picture, Picture, bytes, LocalFile, Failure, Failure]


def test_columns_are_for_tables() -> None:
    assert references(iter([{"file": "a.jpg", "label": "cat"}]), keep=("label",))[0].keep == {"label": "cat"}
    with pytest.raises(UsageError, match="what is given has no columns; --keep is for tables"):
        references(iter(["a.jpg"]), keep=("label",))
    assert references(iter([])) == []


def test_an_image_is_not_opened_before_its_turn(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        references([image])
        assert image.tile  # not loaded
