"""Images that a Python program holds: the same pixels as those of their files, and the same limits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import photo
from PIL import Image, ImageFile

from deit_batch.errors import DecodeError
from deit_batch.limits import DEFAULT_LIMITS, Limits
from deit_batch.loading.decode import decode, decode_held
from deit_batch.loading.deep_gray import DEEP_GRAY
from deit_batch.model.checkpoint import find_checkpoint, find_recipe


@pytest.mark.parametrize("odd", [{}, {"scale_deep_gray": True, "transparent_is_white": True}], ids=str)
def test_an_image_that_is_held_is_seen_as_its_file_is(all_kinds: Path, vit: Path, odd: dict[str, Any]) -> None:
    recipe = replace(find_recipe(find_checkpoint(str(vit)), None), **odd)
    held_met: Counter[str] = Counter()
    met: Counter[str] = Counter()
    for path in sorted(all_kinds.iterdir()):
        with Image.open(path) as image:
            held = decode_held(image, recipe, DEFAULT_LIMITS, met=held_met)
            assert np.array_equal(held, decode(path.read_bytes(), recipe, DEFAULT_LIMITS, met=met)), path.name
    assert held_met == met
    assert met[DEEP_GRAY]


def test_it_stays_as_it_is(all_kinds: Path, vit: Path) -> None:
    recipe = find_recipe(find_checkpoint(str(vit)), None)
    for name in ("orientation6.jpg", "palette-transparent.png", "grey16.tiff"):
        with Image.open(all_kinds / name) as image:
            image.load()
            before = image.mode, image.size, image.tobytes(), image.info.copy(), dict(image.getexif())
            first = decode_held(image, recipe, DEFAULT_LIMITS)
            assert (image.mode, image.size, image.tobytes(), image.info, dict(image.getexif())) == before
            assert np.array_equal(decode_held(image, recipe, DEFAULT_LIMITS), first)


def test_limits_hold_before_it_is_loaded(tmp_path: Path, vit: Path) -> None:
    recipe = find_recipe(find_checkpoint(str(vit)), None)
    photo(20, 10).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        with pytest.raises(DecodeError, match="20x10 is more than 100 pixels"):
            decode_held(image, recipe, Limits(image_pixels=100))
        assert image.tile  # not loaded
    with pytest.raises(DecodeError, match="becomes more than"):
        decode_held(photo(3000, 1), replace(recipe, resize=224), Limits(image_pixels=10_000))


def test_what_pillow_can_not_load_is_a_decode_error(tmp_path: Path, vit: Path) -> None:
    recipe = find_recipe(find_checkpoint(str(vit)), None)
    photo().save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-200])
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(DecodeError, match="can't be decoded: image file is t"):
        decode_held(image, recipe, DEFAULT_LIMITS)
    closed = photo()
    closed.close()
    with pytest.raises(DecodeError):
        decode_held(closed, recipe, DEFAULT_LIMITS)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
