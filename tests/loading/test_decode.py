"""Pixels equal those of the Hugging Face image processors bit for bit."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import PROCESSORS, jpeg, photo
from hypothesis import given, settings
from hypothesis import strategies as st
from other_classes import KINDS
from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_utils import load_image

from deit_batch.errors import CheckpointError, DecodeError, Interrupted
from deit_batch.limits import Limits
from deit_batch.loading import decode as decoding
from deit_batch.model.recipe import CARD_RECIPE, Recipe, recipe_from_config
from deit_batch.model.timm import recipe_of_authors

LIMITS = Limits()


def decode(data: bytes, recipe: Recipe, limits: Limits = LIMITS) -> Any:
    return decoding.decode(data, recipe, limits)


CARD = {"image_processor_type": "DeiTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def reference_pixels(config: dict[str, Any], folder: Path, image: Path | str) -> Any:
    """What the pipeline's own loading and image processor make of an image, before rescaling and normalising."""
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"model_type": "vit"}')
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    batch = processor(load_image(str(image)), do_rescale=False, do_normalize=False, return_tensors="np")
    return batch["pixel_values"][0].transpose(1, 2, 0)


FAMILIES = {name: kind.processor for name, kind in KINDS.items() if name != "resnet"}  # which no recipe says
FAMILIES |= {
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": 40, "crop_size": 32},
    "convnext, warped": {"image_processor_type": "ConvNextImageProcessor"},
    "mobilenet": {
        "image_processor_type": "MobileNetV2ImageProcessor",
        "size": 40,
        "crop_size": {"height": 32, "width": 31},
    },
    "pvt": {"image_processor_type": "PvtImageProcessor", "size": {"height": 32, "width": 24}},
    "transparent is white": {"image_processor_type": "ViTImageProcessor", "size": 32, "do_convert_rgb": True},
}


@pytest.mark.parametrize(
    "config", [*PROCESSORS.values(), CARD, *FAMILIES.values()], ids=[*PROCESSORS, "card", *FAMILIES]
)
def test_every_kind_of_image_equals_the_image_processors(
    config: dict[str, Any], all_kinds: Path, tmp_path: Path
) -> None:
    recipe = recipe_from_config(config, "vit")
    for image in sorted(all_kinds.iterdir()):
        expected = reference_pixels(config, tmp_path, image)
        assert np.array_equal(decode(image.read_bytes(), recipe), expected), image.name


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.one_of(st.integers(8, 60), st.tuples(st.integers(8, 60), st.integers(8, 60)), st.none()),
    crop=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    resample=st.sampled_from([0, 2, 3]),
)
def test_any_resize_and_crop_equals_the_image_processors(
    width: int,
    height: int,
    size: int | tuple[int, int] | None,
    crop: tuple[int, int],
    resample: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("processor")
    photo(width, height).save(folder / "image.png")
    config = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": size is not None,
        "size": {"height": size[0], "width": size[1]} if isinstance(size, tuple) else {"shortest_edge": size or 8},
        "resample": resample,
        "do_center_crop": True,
        "crop_size": {"height": crop[0], "width": crop[1]},
    }
    pixels = decode((folder / "image.png").read_bytes(), recipe_from_config(config, "vit"))
    assert np.array_equal(pixels, reference_pixels(config, folder, folder / "image.png"))


FAMILY_NAMES = "ViT DeiT Beit Bit CLIP ConvNext MobileNetV1 MobileNetV2 Pvt Siglip".split()


def test_normalisation_constants_are_the_image_processors(tmp_path: Path) -> None:
    bare = {family: {"image_processor_type": f"{family}ImageProcessor"} for family in FAMILY_NAMES}
    for name, config in {**PROCESSORS, **FAMILIES, **bare}.items():
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        (tmp_path / "config.json").write_text('{"model_type": "vit"}')
        processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
        recipe = recipe_from_config(config, "vit")
        assert recipe.mean == tuple(processor.image_mean), name
        assert recipe.std == tuple(processor.image_std), name
        assert recipe.rescale_factor == processor.rescale_factor, name
        assert recipe.resample == processor.resample, name
        assert recipe.transparent_is_white is bool(processor.do_convert_rgb), name


def test_the_cards_recipe_is_the_cards_text() -> None:
    expected = Recipe((256, 256), 3, (224, 224), 1 / 255, (0.5,) * 3, (0.5,) * 3)
    assert recipe_from_config({}, "deit") == expected
    assert expected == CARD_RECIPE


@pytest.mark.parametrize("size", [224, 384])
@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (333, 251), (100, 517), (259, 256)])
def test_the_papers_recipe_is_the_authors_code(size: int, width: int, height: int) -> None:
    """Resize(int(size / 0.875), 3) and CenterCrop(size), as torchvision says them."""
    image = photo(width, height)
    short = int(size / 0.875)
    sides = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    resized = image.resize(sides, Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2.0) for side in sides)
    expected = np.asarray(resized.crop((left, top, left + size, top + size)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    recipe = recipe_of_authors(size)
    assert np.array_equal(decode(buffer.getvalue(), recipe), expected)
    assert (recipe.mean, recipe.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "LevitImageProcessor"}, "LevitImageProcessor"),
        ({"image_processor_type": "ConvNextImageProcessor", "do_center_crop": True}, "do_center_crop"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"height": 32, "width": 32}}, "a short side"),
        ({"image_processor_type": "CLIPImageProcessor", "default_to_square": True}, "default_to_square"),
        ({"do_pad": True}, "do_pad"),
        ({"image_mean": [0.5]}, "three channels"),
        ({"size": {"height": 224}}, "can't be read"),
        ({"size": 40, "default_to_square": False}, "default_to_square"),
        ({"resample": 99}, "can't be read"),
        ({"image_std": 0}, "image_std is 0"),
    ],
)
def test_a_recipe_we_would_get_wrong_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        recipe_from_config(config, "vit")


def test_switched_off_steps_are_left_out() -> None:
    recipe = recipe_from_config(
        {"do_resize": False, "do_center_crop": True, "do_normalize": False, "do_rescale": False}, "vit"
    )
    assert recipe == Recipe(None, 2, (224, 224), 1.0, (0.0,) * 3, (1.0,) * 3)


def test_a_recipe_without_one_size_is_refused() -> None:
    with pytest.raises(CheckpointError, match="different sizes"):
        _ = recipe_from_config({"size": {"shortest_edge": 224}}, "vit").size


SMALL = Recipe((8, 8), 2, None, 1 / 255, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (jpeg()[:-300], "truncated"),
        (b"<html>not found</html>", "not an image that we read"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS, .*run 'git lfs pull'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image that we read"),
    ],
)
def test_what_is_no_whole_image_is_an_error(data: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        decode(data, SMALL)


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    buffer = io.BytesIO()
    Image.new("1", (side, side * 2)).save(buffer, "PNG")
    assert side * side * 2 > LIMITS.image_pixels
    with pytest.raises(DecodeError, match="pixels"):
        decode(buffer.getvalue(), SMALL)


def test_a_truncated_image_is_scored_if_asked() -> None:
    whole, cut = jpeg(), jpeg()[:-300]
    pixels = decode(cut, SMALL, Limits(allow_truncated=True))
    assert np.array_equal(pixels[:4], decode(whole, SMALL)[:4])
    with pytest.raises(DecodeError, match="truncated"):
        decode(cut, SMALL)


def test_the_limit_of_pixels_can_be_set() -> None:
    with pytest.raises(DecodeError, match="61x47 is more than 2,000 pixels"):
        decode(jpeg(), SMALL, Limits(image_pixels=2000))


def test_a_signal_is_not_taken_for_a_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(data: bytes, max_pixels: int) -> Image.Image:
        raise Interrupted(2)

    monkeypatch.setattr(decoding, "_open", interrupted)
    with pytest.raises(Interrupted):
        decode(jpeg(), SMALL)


def test_broken_exif_does_not_lose_the_picture(recwarn: pytest.WarningsRecorder) -> None:
    buffer = io.BytesIO()
    photo().save(buffer, "JPEG", exif=b"Exif\0\0MM\0*" + struct.pack(">LH", 8, 9) + b"\x01\x12broken")
    assert np.array_equal(decode(buffer.getvalue(), SMALL), decode(jpeg(), SMALL))
    assert not recwarn


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("processor", [{"size": 32}, {"size": {"shortest_edge": 40}, "crop_size": 32}])
def test_fast_decoding_changes_large_images_a_little_and_small_ones_not_at_all(
    processor: dict[str, Any], orientation: int
) -> None:
    exact = recipe_from_config(processor, "deit" if "crop_size" in processor else "vit")
    fast = replace(exact, fast=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for width, height, format in [(1600, 1200, "JPEG"), (1600, 1200, "PNG"), (45, 40, "JPEG"), (20, 45, "PNG")]:
        buffer = io.BytesIO()
        smooth = photo(64, 48).resize((width, height), Image.Resampling.BICUBIC)
        smooth.save(buffer, format, exif=exif.tobytes())
        ours, theirs = (decode(buffer.getvalue(), recipe).astype(int) for recipe in (fast, exact))
        assert ours.shape == (32, 32, 3)
        difference = np.abs(ours - theirs)
        assert difference.mean() < 3
        assert difference.max() > 0 if width == 1600 else difference.max() == 0


@pytest.mark.parametrize("mode", ["La", "RGBa", "LA", "PA", "CMYK", "YCbCr", "LAB", "HSV", "I;16B", "F", "1"])
def test_an_image_of_any_mode_is_taken(mode: str) -> None:
    straight = {"La": "LA", "RGBa": "RGBA"}.get(mode)
    image = Image.new("LA", (8, 8), (200, 128)).convert("La") if mode == "La" else Image.new(mode, (8, 8))
    pixels = decoding.decode_held(image, SMALL, Limits())
    assert not straight or np.array_equal(pixels, decoding.decode_held(image.convert(straight), SMALL, Limits()))
