"""Augmentation is what the papers, and timm's description of its own, say that it is."""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import kstest

from deit_batch.finetune import randaugment
from deit_batch.finetune.augmentation import Augmentation, crop_box, erased_box, jittered
from deit_batch.finetune.mixing import draw_mixing, erase, mix
from deit_batch.finetune.randaugment import OPERATIONS, RandAugment
from deit_batch.finetune.sampling import Draw, EpochSampler
from deit_batch.finetune.settings import Settings
from deit_batch.limits import DEFAULT_LIMITS
from deit_batch.loading.decode import decode, decode_part
from deit_batch.model.recipe import CARD_RECIPE, Recipe

RECIPE = replace(CARD_RECIPE, resize=(64, 64), crop=None)
GREY = (128, 128, 128)
GRADED = ["rotate", "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"]
"""The operations that change nothing at magnitude 0."""
PLAIN = Settings(input="", crop=1, flip=False)


def picture() -> Image.Image:
    """In colour, nearly smooth, and different in every part."""
    y, x = np.mgrid[0:64, 0:64]
    grain = np.random.default_rng(0).normal(0, 3, (64, 64))
    waves = [np.sin(x / 25) + np.cos(y / 20), np.sin((x + y) / 30), np.cos((x - y) / 25)]
    return Image.fromarray(np.stack([127 + 50 * wave + grain for wave in waves], -1).clip(0, 255).astype(np.uint8))


def changed(image: Image.Image, other: Image.Image) -> float:
    """Mean difference of the values, of 255."""
    return float(np.abs(np.asarray(image, float) - np.asarray(other, float)).mean())


@pytest.mark.parametrize("name", GRADED)
def test_a_larger_magnitude_is_a_stronger_change_in_both_directions(name: str) -> None:
    image, how = picture(), RandAugment(9, GREY, Image.Resampling.BICUBIC)
    for sign in (1, -1):
        changes = [
            changed(OPERATIONS[name](image, magnitude, sign, how), image) for magnitude in (0, 1, 3, 5, 7, 9, 10)
        ]
        assert changes[0] < 0.5
        assert changes[1] < 255 * 0.06  # nearly the identity
        assert changes == sorted(changes)
        assert changes[-1] > 2 * changes[1]
    assert OPERATIONS[name](image, 9, 1, how) != OPERATIONS[name](image, 9, -1, how)


def test_operations_that_cut_values_cut_more_at_larger_magnitudes() -> None:
    image, how = picture(), RandAugment(9, GREY, Image.Resampling.BICUBIC)
    for name in ("posterize", "solarize", "solarize_add"):
        changes = [changed(OPERATIONS[name](image, magnitude, 1, how), image) for magnitude in (1, 3, 5, 7, 9)]
        assert changes == sorted(changes)
        assert changes[0] < 255 * 0.05 < changes[-1]


def test_the_ranges_of_rand_m9_inc1() -> None:
    """As timm's table of levels has them, at magnitudes 9 and 10."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3))
    how = RandAugment(9, GREY, Image.Resampling.NEAREST)

    def values(name: str, magnitude: float, sign: int = 1) -> NDArray[np.int64]:
        return np.asarray(OPERATIONS[name](ramp, magnitude, sign, how))[0, :, 0].astype(int)

    assert len(set(values("posterize", 9))) == 2  # one bit
    assert (values("solarize", 9) == [v if v < 26 else 255 - v for v in range(256)]).all()
    assert (values("solarize_add", 9) == [min(255, v + 99) if v < 128 else v for v in range(256)]).all()
    assert values("brightness", 9)[100] == 181
    assert values("brightness", 9, -1)[100] == 19
    assert values("brightness", 10, -1)[100] == 10  # no less than a tenth
    assert (values("translate_x", 10)[:140] == range(115, 255)).all()  # 0.45 of 256
    assert (values("translate_x", 10, -1)[:115] == 128).all()  # nothing is there


def test_each_image_has_operations_of_its_own_each_with_probability_one_half(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float, int]] = []

    def noted(name: str) -> randaugment.Operation:
        def operation(image: Image.Image, magnitude: float, sign: int, how: RandAugment) -> Image.Image:
            seen.append((name, magnitude, sign))
            return image

        return operation

    monkeypatch.setattr(randaugment, "OPERATIONS", {name: noted(name) for name in OPERATIONS})
    augment, image, counts = RandAugment(9, GREY, Image.Resampling.BICUBIC), picture(), []
    for number in range(3000):
        seen_before = len(seen)
        augment(image, np.random.default_rng([0, number]))
        counts.append(len(seen) - seen_before)
    shares = Counter(counts)
    assert [shares[n] / 3000 for n in (0, 1, 2)] == pytest.approx([0.25, 0.5, 0.25], abs=0.04)
    names = Counter(name for name, _, _ in seen)
    assert set(names) == set(OPERATIONS)
    assert max(names.values()) < 1.5 * min(names.values())
    below = [magnitude for _, magnitude, _ in seen if magnitude < 10]
    assert kstest(below, "norm", args=(9, 0.5)).statistic < 0.05
    assert np.mean([sign for _, _, sign in seen]) == pytest.approx(0, abs=0.06)


def test_the_images_of_a_batch_differ() -> None:
    augmentation = Augmentation(replace(PLAIN, randaugment=9.0), RECIPE)
    results = [augmentation(picture(), Draw(0, 0, 0, place).dice())[0].tobytes() for place in range(32)]
    assert len(set(results)) > 20  # a quarter is left as it is


def test_the_same_draw_gives_the_same_image() -> None:
    settings = replace(PLAIN, flip=True, randaugment=9.0, color_jitter=0.4, random_erasing=0.5)
    augmentation = Augmentation(settings, RECIPE)
    for place in range(10):
        one, other = (augmentation(picture(), Draw(3, 1, 2, place).dice()) for _ in range(2))
        assert (one[0] == other[0]).all()
        assert one[1] == other[1]
    assert (Augmentation(PLAIN, RECIPE)(picture(), Draw(0, 0, 0, 0).dice())[0] == np.asarray(picture())).all()


def test_colour_jitter_stays_within_its_range() -> None:
    image = Image.new("RGB", (8, 8), (100, 100, 100))
    means = [np.asarray(jittered(image, 0.4, np.random.default_rng(seed))).mean() for seed in range(300)]
    assert 59 <= min(means) < 70  # only brightness changes what has one colour
    assert 130 < max(means) <= 141


def test_areas_of_crops_are_spread_evenly_from_the_smallest_to_the_whole() -> None:
    dice = np.random.default_rng(0)
    boxes = [crop_box(640, 480, 0.08, dice) for _ in range(3000)]
    shares = np.array([wide * high / (640 * 480) for _, _, wide, high in boxes])
    assert 0.075 < shares.min() < 0.1
    small = shares[shares < 0.6]  # of the large ones, some do not lie within the image
    assert kstest(small, "uniform", args=(0.08, 0.52)).statistic < 0.04
    ratios = np.log([wide / high for _, _, wide, high in boxes])[shares < 0.6]
    assert math.log(3 / 4) - 0.02 < ratios.min() < ratios.max() < math.log(4 / 3) + 0.02
    assert np.mean(ratios) == pytest.approx(0, abs=0.03)
    assert all(0 <= left <= 640 - wide and 0 <= top <= 480 - high for left, top, wide, high in boxes)


def test_an_erased_rectangle_takes_up_to_a_third() -> None:
    dice = np.random.default_rng(0)
    boxes = [erased_box(224, 224, dice) for _ in range(3000)]
    shares = np.array([wide * high / 224**2 for _, _, wide, high in boxes])
    assert 0.015 < shares.min() < 0.03
    assert 0.3 < shares.max() < 0.34
    assert kstest(shares, "uniform", args=(0.02, 1 / 3 - 0.02)).statistic < 0.06
    ratios = [high / wide for _, _, wide, high in boxes]
    assert 0.28 < min(ratios) < 0.35
    assert 2.9 < max(ratios) < 3.5
    augmentation = Augmentation(replace(PLAIN, random_erasing=0.25), RECIPE)
    erased = [augmentation(picture(), Draw(0, 0, 0, place).dice())[1][2] > 0 for place in range(2000)]
    assert np.mean(erased) == pytest.approx(0.25, abs=0.03)


def test_what_is_erased_is_noise_of_mean_0_and_deviation_1_for_the_model() -> None:
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    torch.manual_seed(0)
    values = torch.full((2, 3, 64, 64), 0.25)
    found = erase(values, torch.tensor([[8, 16, 32, 40], [0, 0, 0, 0]]), mean, std)
    assert torch.equal(found[1], values[1])
    inside = found[0, :, 16:56, 8:40]
    assert (inside != 0.25).all()
    assert (found[0] != 0.25).sum() == inside.numel()
    for channel in ((inside - mean[0]) / std[0]).unbind():
        assert kstest(channel.flatten().numpy(), "norm").statistic < 0.05


def shares_of(settings: Settings, count: int = 4000) -> NDArray[np.float32]:
    return np.stack([draw_mixing(settings, (224, 224), np.random.default_rng([0, n])) for n in range(count)])


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_the_shares_of_mixup_are_beta_distributed(alpha: float) -> None:
    rows = shares_of(replace(PLAIN, mixup=alpha))
    assert (rows[:, 0] == rows[:, 1]).all()
    assert (rows[:, 0] == rows[:, 2]).all()
    assert kstest(rows[:, 0], "beta", args=(alpha, alpha)).statistic < 0.03


def test_the_areas_of_cutmix_are_beta_distributed_where_they_lie_within() -> None:
    rows = shares_of(replace(PLAIN, cutmix=1.0))
    area = (rows[:, 5] - rows[:, 3]) * (rows[:, 6] - rows[:, 4]) / 224**2
    assert np.allclose(rows[:, 0], 1 - area, atol=1e-6)
    assert (rows[:, 1:3] == [1, 0]).all()
    whole = (rows[:, 3] > 0) & (rows[:, 5] < 224) & (rows[:, 4] > 0) & (rows[:, 6] < 224)
    assert 0.1 < whole.mean() < 0.8
    assert 0 < area.min() < 0.01
    assert area.max() > 0.85


def test_the_switching_probability_is_that_of_cutmix() -> None:
    for wanted in (0.0, 0.5, 0.8, 1.0):
        rows = shares_of(replace(PLAIN, mixup=0.8, cutmix=1.0, mixup_switch_prob=wanted), 2000)
        assert (rows[:, 1] != rows[:, 2]).mean() == pytest.approx(wanted, abs=0.04)


def test_labels_are_mixed_as_the_images_are() -> None:
    """A black image and a white one: the mean of what comes out is the share of white, and so is its label."""
    values = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    for seed in range(40):
        settings = replace(PLAIN, mixup=0.8, cutmix=1.0)
        row = draw_mixing(settings, (32, 32), np.random.default_rng(seed))
        mixed, targets = mix(values, torch.eye(2), torch.from_numpy(np.tile(row, (2, 1))))
        assert torch.allclose(mixed.mean((1, 2, 3)), targets[:, 1], atol=1e-5)
        assert torch.allclose(targets.sum(-1), torch.ones(2))
        assert len(mixed[0].unique()) == (2 if row[1] != row[2] and 0 < row[0] < 1 else 1)


def test_an_epoch_shows_each_image_once_in_an_order_of_its_own() -> None:
    sampler = EpochSampler(50, 7, 1)
    first = list(sampler)
    assert sorted(draw.image for draw in first) == list(range(50))
    assert [draw.place for draw in first] == list(range(50))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert [draw.image for draw in sampler] != [draw.image for draw in first]
    assert list(EpochSampler(50, 7, 1)) == first
    assert list(EpochSampler(50, 8, 1)) != first


def test_repeated_augmentation_shows_images_several_times_and_the_epoch_stays_as_long() -> None:
    draws = list(EpochSampler(50, 0, 3))
    assert len(draws) == 50
    assert sorted(Counter(draw.image for draw in draws).values()) == [2] + [3] * 16
    assert all(len({draw.image for draw in draws[n : n + 3]}) == 1 for n in range(0, 48, 3))
    augmentation = Augmentation(Settings(input=""), RECIPE)
    boxes = [augmentation.choose_box(640, 480, draw.dice()) for draw in draws[:3]]
    assert len(set(boxes)) == 3


def encoded(image: Image.Image, format: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **more)
    return buffer.getvalue()


def test_a_part_is_cut_out_of_the_original() -> None:
    image = picture().resize((320, 200))
    box = (40, 30, 200, 150)
    part = decode_part(encoded(image, "PNG"), RECIPE, DEFAULT_LIMITS, lambda width, height: box)
    expected = image.crop((40, 30, 240, 180)).resize((64, 64), Image.Resampling(RECIPE.resample))
    assert part == expected


def test_a_part_is_of_the_upright_image_and_of_a_large_jpeg_nearly_the_same() -> None:
    image = picture().resize((2000, 1500), Image.Resampling.BICUBIC)
    asked: list[tuple[int, int]] = []

    def choose(width: int, height: int) -> tuple[int, int, int, int]:
        asked.append((width, height))
        return width // 4, height // 8, width // 2, height // 2

    exif = Image.Exif()
    exif[0x0112] = 6
    turned = image.transpose(Image.Transpose.ROTATE_90)
    plain = decode_part(encoded(image, "JPEG", quality=95), RECIPE, DEFAULT_LIMITS, choose)
    upright = decode_part(encoded(turned, "JPEG", quality=95, exif=exif), RECIPE, DEFAULT_LIMITS, choose)
    assert asked == [(2000, 1500)] * 2
    assert changed(plain, upright) < 2
    exact = image.crop((500, 187, 1500, 937)).resize((64, 64), Image.Resampling(RECIPE.resample))
    assert changed(plain, exact) < 2


def test_the_whole_as_a_part_is_what_is_scored() -> None:
    data = encoded(picture().resize((320, 200)), "PNG")
    recipe: Recipe = replace(RECIPE, resize=(64, 64))
    whole = decode_part(data, recipe, DEFAULT_LIMITS, lambda width, height: (0, 0, width, height))
    assert (np.asarray(whole) == decode(data, recipe, DEFAULT_LIMITS)).all()
