"""RandAugment (arXiv 1909.13719) as DeiT was trained with it: "rand-m9-mstd0.5-inc1" of timm.

Two operations are drawn for each image, with replacement; each is done with probability 0.5, at a magnitude drawn from
a normal distribution around the one that is set, within 0..10. On this scale ("inc1") a larger magnitude m is a
stronger change. The operations and their ranges are those of timm/data/auto_augment.py (Apache-2.0): brightness,
contrast, colour and sharpness change by a factor of 1 ± 0.09 m; images are turned by ± 3 m degrees, sheared by
± 0.03 m, moved by ± 0.045 m of their side; pixels from 256 - 25.6 m on are inverted, 11 m is added to those below 128,
and 4 - 0.4 m bits are left of each. Autocontrast, equalisation and inversion have no magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

LARGEST = 10.0
"""Magnitude."""
LAYERS = 2
PROBABILITY = 0.5
DEVIATION = 0.5

Operation: TypeAlias = Callable[[Image.Image, float, int, "RandAugment"], Image.Image]
"""An RGB image, a magnitude in 0..10 and a direction, 1 or -1, to an image of the same size."""


class RandAugment:
    """RGB images to RGB images. `fill` is what stands where an image was moved away from."""

    def __init__(self, magnitude: float, fill: tuple[int, int, int], resample: int) -> None:
        """`resample`: one of Pillow's filters; those that can't turn an image are replaced by the bicubic one."""
        self._magnitude = magnitude
        self.fill = fill
        known = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
        self.resample = Image.Resampling(resample if resample in known else Image.Resampling.BICUBIC)

    def __call__(self, image: Image.Image, dice: np.random.Generator) -> Image.Image:
        for name in dice.choice(list(OPERATIONS), LAYERS):
            if dice.random() < PROBABILITY:
                magnitude = min(max(dice.normal(self._magnitude, DEVIATION), 0.0), LARGEST)
                image = OPERATIONS[name](image, magnitude, 1 if dice.random() < 0.5 else -1, self)
        return image


def _enhanced(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    def operation(image: Image.Image, magnitude: float, sign: int, how: RandAugment) -> Image.Image:
        return enhancer(image).enhance(max(0.1, 1 + sign * 0.09 * magnitude))

    return operation


def _moved(matrix: Callable[[float, Image.Image], tuple[float, ...]], most: float) -> Operation:
    """`matrix`: of the affine transformation from the result's pixels to the image's, as Pillow takes it; `most`: its
    argument at the largest magnitude."""

    def operation(image: Image.Image, magnitude: float, sign: int, how: RandAugment) -> Image.Image:
        values = matrix(sign * most * magnitude / LARGEST, image)
        return image.transform(image.size, Image.Transform.AFFINE, values, resample=how.resample, fillcolor=how.fill)

    return operation


def _rotate(image: Image.Image, magnitude: float, sign: int, how: RandAugment) -> Image.Image:
    return image.rotate(sign * 3 * magnitude, resample=how.resample, fillcolor=how.fill)


def _posterize(image: Image.Image, magnitude: float, sign: int, how: RandAugment) -> Image.Image:
    bits = 4 - int(0.4 * magnitude)
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)  # of no bit: black, as in timm


def _solarize(image: Image.Image, magnitude: float, sign: int, how: RandAugment) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(25.6 * magnitude))


def _solarize_add(image: Image.Image, magnitude: float, sign: int, how: RandAugment) -> Image.Image:
    added = int(11 * magnitude)
    return image.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)


OPERATIONS: dict[str, Operation] = {
    "autocontrast": lambda image, *_: ImageOps.autocontrast(image),
    "equalize": lambda image, *_: ImageOps.equalize(image),
    "invert": lambda image, *_: ImageOps.invert(image),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": _moved(lambda shear, image: (1, shear, 0, 0, 1, 0), 0.3),
    "shear_y": _moved(lambda shear, image: (1, 0, 0, shear, 1, 0), 0.3),
    "translate_x": _moved(lambda share, image: (1, 0, share * image.width, 0, 1, 0), 0.45),
    "translate_y": _moved(lambda share, image: (1, 0, 0, 0, 1, share * image.height), 0.45),
}
