"""JPEGs have the same values, or the same error, whichever way they are decoded."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import EXAMPLES, photo, read_json, scored
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from PIL import Image

from deit_batch.errors import DecodeError
from deit_batch.limits import Limits
from deit_batch.loading import decode as decoding
from deit_batch.loading import turbo
from deit_batch.model.recipe import CARD_RECIPE, Recipe

if why_not := turbo.why_not():
    pytest.skip(f"{why_not}; python setup.py build_ext --inplace", allow_module_level=True)

from deit_batch.loading import _resize

LIMITS = Limits()
BASE = Recipe((224, 224), 2, None, 1 / 255, (0.5,) * 3, (0.5,) * 3)
RECIPES = [
    BASE,
    CARD_RECIPE,
    replace(BASE, resize=(384, 384), resample=3),
    replace(BASE, resize=248, resample=3, crop=(224, 224), rounding="half-even"),
    *(replace(BASE, resize=(60, 90), crop=(50, 50), resample=filter) for filter in turbo.FILTERS),
]


def as_jpeg(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        picture.save(buffer, "JPEG", **options)
    except OSError:  # Pillow's buffer is too small for much noise
        reject()
    return buffer.getvalue()


def by_pillow(data: bytes, recipe: Recipe, limits: Limits = LIMITS) -> Any:
    return decoding._by_pillow(data, recipe, limits, None)


def by_turbo(data: bytes, recipe: Recipe, limits: Limits = LIMITS) -> Any:
    return decoding._by_turbo(data, recipe, limits.image_pixels)


sides = st.one_of(st.integers(1, 16), st.integers(17, 700))


@settings(max_examples=40, deadline=None)
@given(
    width=sides,
    height=sides,
    seed=st.integers(0, 99),
    roughness=st.sampled_from([0, 30, 255]),
    quality=st.integers(1, 100),
    subsampling=st.integers(0, 2),
    progressive=st.booleans(),
    mode=st.sampled_from(["RGB", "RGB", "L"]),
    recipe=st.sampled_from(RECIPES),
)
def test_any_jpeg_has_pillows_values(
    width: int,
    height: int,
    seed: int,
    roughness: int,
    quality: int,
    subsampling: int,
    progressive: bool,
    mode: str,
    recipe: Recipe,
) -> None:
    assume(max(width, height) < 250 * min(width, height))  # else what it becomes has a side of more than 65,535
    noise = np.random.default_rng(seed).integers(-roughness, roughness + 1, (height, width, 3))
    pixels = (np.asarray(photo(width, height)) + noise).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    data = as_jpeg(
        picture, quality=quality, progressive=progressive, **({"subsampling": subsampling} if mode == "RGB" else {})
    )
    assert np.array_equal(by_turbo(data, recipe), by_pillow(data, recipe))


def with_orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return as_jpeg(photo(61, 47), exif=exif)


def several_pictures() -> bytes:
    buffer = io.BytesIO()
    photo(61, 47).save(buffer, "MPO", save_all=True, append_images=[photo(30, 20)])
    return buffer.getvalue()


@pytest.mark.parametrize("data", [with_orientation(1), several_pictures(), as_jpeg(photo(61, 47), comment=b"x" * 999)])
def test_what_cameras_write_is_decoded_by_turbo(data: bytes) -> None:
    assert np.array_equal(by_turbo(data, BASE), by_pillow(data, BASE))


@pytest.mark.parametrize("size", [(500, 375), (1900, 1501)], ids=["whole", "reduced"])
@pytest.mark.parametrize("share", [(0.0, 0.0, 1.0, 1.0), (0.1, 0.03, 0.81, 0.9), (0.9, 0.8, 0.1, 0.2)])
def test_a_part_to_train_on_has_the_values_that_pillow_cuts_out(
    size: tuple[int, int], share: tuple[float, float, float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = as_jpeg(photo(*size))
    taken: list[Any] = []
    pixels_of = turbo.pixels_of

    def noted(*args: Any, **more: Any) -> Any:
        taken.append(pixels_of(*args, **more))
        return taken[-1]

    monkeypatch.setattr(turbo, "pixels_of", noted)

    def part() -> Any:
        box = tuple(round(one * side) for one, side in zip(share, (*size, *size), strict=True))
        return np.asarray(decoding.decode_part(data, BASE, LIMITS, lambda width, height: box))  # type: ignore[arg-type,return-value]

    ours = part()
    assert np.array_equal(ours, taken[0])
    monkeypatch.setattr(turbo, "why_not", lambda: "not now")
    assert np.array_equal(ours, part())


def without_end(data: bytes) -> bytes:
    return data[:-40]


def with_a_hole(data: bytes) -> bytes:
    middle = len(data) * 2 // 3
    return data[:middle] + b"\xff\xd9" + data[middle + 2 :]


def saying_rgb(data: bytes) -> bytes:
    """Adobe's marker, which says that the colours are not transformed."""
    return data[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + data[20:]


PHOTO = as_jpeg(photo(61, 47))


@pytest.mark.parametrize(
    ("data", "recipe"),
    [
        (as_jpeg(photo(61, 47).convert("CMYK")), BASE),
        *((with_orientation(value), BASE) for value in (0, 2, 3, 6, 8, 9)),
        (without_end(PHOTO), BASE),
        (with_a_hole(PHOTO), BASE),
        (saying_rgb(PHOTO), BASE),
        (PHOTO[:100], BASE),
        (b"\xff\xd8\xff", BASE),
        (PHOTO, replace(BASE, resample=0)),
        (PHOTO, replace(BASE, resample=max(Image.Resampling))),
        (PHOTO, replace(BASE, resize=(40, 40), crop=(50, 50))),
        (PHOTO, replace(BASE, resize=None, crop=(50, 50))),
        ((EXAMPLES / "bag" / "00018.png").read_bytes(), BASE),
    ],
)
@pytest.mark.parametrize("limits", [LIMITS, Limits(allow_truncated=True)], ids=["whole", "truncated"])
def test_turbo_steps_aside_for_what_it_is_not_sure_of(data: bytes, recipe: Recipe, limits: Limits) -> None:
    with_turbo = outcome(data, recipe, limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turbo, "why_not", lambda: "switched off")
        assert outcome(data, recipe, limits) == with_turbo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_by_pillow", lambda *_: np.zeros((1, 1, 3), np.uint8))
        try:
            assert decoding.decode(data, recipe, limits).shape == (1, 1, 3)
        except DecodeError:
            assert isinstance(with_turbo, str)  # told by the header


def outcome(data: bytes, recipe: Recipe, limits: Limits) -> tuple[bytes, tuple[int, ...]] | str:
    try:
        pixels = decoding.decode(data, recipe, limits)
    except DecodeError as error:
        return str(error)
    return pixels.tobytes(), pixels.shape


@settings(max_examples=150, deadline=None)
@given(place=st.integers(2, len(PHOTO) - 1), bytes_=st.binary(min_size=1, max_size=3), progressive=st.booleans())
def test_a_spoilt_file_has_the_same_pixels_or_the_same_error(place: int, bytes_: bytes, progressive: bool) -> None:
    data = bytearray(as_jpeg(photo(61, 47), progressive=progressive))
    data[place : place + len(bytes_)] = bytes_
    limits = Limits(image_pixels=10_000_000)
    with_turbo = outcome(bytes(data), BASE, limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turbo, "why_not", lambda: "switched off")
        assert outcome(bytes(data), BASE, limits) == with_turbo


def test_the_pixels_are_counted_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turbo, "pixels_of", None)  # to call it would be a TypeError
    with pytest.raises(DecodeError, match="61x47 is more than 2,000 pixels"):
        decoding.decode(PHOTO, BASE, Limits(image_pixels=2000))


def test_a_line_of_pixels_does_not_become_a_huge_image() -> None:
    data = as_jpeg(photo(5000, 1))
    assert by_turbo(data, replace(BASE, resize=224, crop=(224, 224)), Limits(image_pixels=1_000_000)) is None
    with pytest.raises(DecodeError, match="5000x1 becomes more than 1,000,000 pixels when resized"):
        decoding.decode(data, replace(BASE, resize=224, crop=(224, 224)), Limits(image_pixels=1_000_000))


def test_one_value_that_differs_is_enough_to_step_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    turbo.why_not.cache_clear()
    resize: Any = _resize.resize

    def off_by_one(*arguments: Any) -> None:
        resize(*arguments)
        arguments[5][-1, -1, -1] ^= arguments[1] == (160, 41)

    monkeypatch.setattr(_resize, "resize", off_by_one)
    try:
        assert turbo.why_not() == "pixels would not be Pillow's (filter 1 on 160x41)"
        assert turbo.decoder() == "pillow"
    finally:
        turbo.why_not.cache_clear()


@pytest.mark.parametrize("missing", ["simplejpeg", "deit_batch.loading._resize"])
def test_without_one_of_its_parts_pillow_does_it(missing: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    script = f"""
import sys; sys.modules[{missing!r}] = None
from deit_batch.limits import Limits
from deit_batch.loading import decode, turbo
from deit_batch.model.recipe import CARD_RECIPE
sys.stderr.write(f"{{turbo.decoder()}}: {{turbo.why_not()}}")
sys.stdout.buffer.write(decode.decode(open("photo.jpg", "rb").read(), CARD_RECIPE, Limits()).tobytes())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, check=True)
    assert done.stderr.startswith(b"pillow: ")
    assert missing.rpartition(".")[2].encode() in done.stderr
    assert done.stdout == decoding.decode(PHOTO, CARD_RECIPE, LIMITS).tobytes()


GOOD = ((6, 4), (3, 2), 2, (0, 0, 3, 2))


@pytest.mark.parametrize(
    ("source", "arguments", "target"),
    [
        (6 * 4 * 3 - 1, GOOD, 18),
        (6 * 4 * 3 + 1, GOOD, 18),
        (6 * 4 * 3, GOOD, 17),
        (6 * 4 * 3, GOOD, 19),
        (0, ((0, 4), *GOOD[1:]), 18),
        (72, ((-6, -4), *GOOD[1:]), 18),
        (3 * 65536, ((65536, 1), *GOOD[1:]), 18),
        (72, ((6, 4), (3, 0), 2, (0, 0, 3, 2)), 18),
        (72, ((6, 4), (3, 65536), 2, (0, 0, 3, 2)), 18),
        (72, ((6, 4), (3, 2), 0, (0, 0, 3, 2)), 18),
        (72, ((6, 4), (3, 2), 6, (0, 0, 3, 2)), 18),
        (72, ((6, 4), (3, 2), -1, (0, 0, 3, 2)), 18),
        (72, ((6, 4), (3, 2), 2, (1, 0, 3, 2)), 18),
        (72, ((6, 4), (3, 2), 2, (0, -1, 3, 2)), 18),
        (72, ((6, 4), (3, 2), 2, (0, 1, 3, 2)), 18),
        (72, ((6, 4), (3, 2), 2, (0, 0, 0, 2)), 0),
        (72, ((6, 4), (3, 2), 2, (2**31 - 1, 0, 3, 2)), 18),
        (72, ((6, 4), (3, 2), 2, (0, 0, 3, 2)), -18),
    ],
)
def test_the_compiled_part_refuses_sizes_that_do_not_fit(
    source: int, arguments: tuple[Any, Any, Any, Any], target: int
) -> None:
    scratch = np.zeros(turbo.scratch_bytes((6, 4), (0, 0, 3, 2)) - (target < 0), np.uint8)
    with pytest.raises(ValueError, match="do not fit together"):
        _resize.resize(np.zeros(source, np.uint8), *arguments, np.zeros(abs(target), np.uint8), scratch)


def test_what_fits_is_enough() -> None:
    """Nothing is read or written beyond, at the edges of the four kinds of memory."""
    scratch = turbo.scratch_bytes((6, 4), (0, 0, 3, 2))
    memory = [np.full(count + 128, 7, np.uint8) for count in (72, 18, scratch)]
    source, target, room = (one[64:-64] for one in memory)
    source[:] = 100
    _resize.resize(source, *GOOD, target, room)
    assert (target == 100).all()
    assert all((one[:64] == 7).all() and (one[-64:] == 7).all() for one in memory)


def test_the_longest_sides_are_resized_as_by_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 65535, 3), np.uint8)
    sources: list[Any] = [pixels, pixels.reshape(65535, 1, 3), pixels[:, :2]]
    for source, size in zip(sources, ((7, 5), (5, 7), (65535, 1)), strict=True):
        target = np.zeros((size[1], size[0], 3), np.uint8)
        window = (0, 0, *size)
        scratch = np.empty(turbo.scratch_bytes(source.shape[1::-1], window), np.uint8)
        _resize.resize(np.ascontiguousarray(source), source.shape[1::-1], size, 1, window, target, scratch)
        expected = Image.fromarray(np.ascontiguousarray(source)).resize(size, Image.Resampling.LANCZOS)
        assert np.array_equal(target, np.asarray(expected))


def test_fast_is_exact_where_nothing_is_reduced() -> None:
    data = as_jpeg(photo(500, 375))
    assert np.array_equal(decoding.decode(data, replace(BASE, fast=True), LIMITS), by_pillow(data, BASE))


def test_fast_reduces_a_large_image_as_pillow_would() -> None:
    data = as_jpeg(photo(3001, 2000))
    fast = decoding.decode(data, replace(BASE, fast=True), LIMITS).astype(int)
    assert 0 < np.abs(fast - by_pillow(data, BASE)).max() < 40
    reduced: Any = partial(turbo.pixels_of, data, (3001, 2000), turbo.Resize((224, 224), 2, (0, 0, 224, 224)))
    assert np.array_equal(fast, reduced(reduce=4))
    assert np.array_equal(by_pillow(data, BASE), reduced())


def test_the_report_says_what_decoded(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    for decode in ("exact", "fast"):
        scored(tmp_path / "photo.jpg", Path("demo"), tmp_path, f"{decode}.jsonl", decode=decode)
        report = read_json(tmp_path / f"{decode}.jsonl.run.json")
        assert report["jpeg_decoder"] == "simplejpeg"
        assert ("simplejpeg" in report["versions"]) is (decode == "fast")


def test_pillow_keeps_memory_for_the_next_image() -> None:
    decoding.decode(PHOTO, BASE, LIMITS)
    assert Image.core.get_blocks_max() == decoding.BLOCKS_KEPT  # type: ignore[attr-defined]
