"""What training does to single images, where they are decoded: in the workers, on Pillow's images.

All randomness comes from the generator that is given, which is made of the seed, the epoch and the image's place in it
(sampling.py): so a resumed run draws the same, whatever the number of workers. The operations, and their order, are
those that DeiT was trained with (timm/data/transforms_factory.py: transforms_imagenet_train). Mixup, CutMix and what
stands in an erased rectangle are matters of a batch: mixing.py.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from deit_batch.finetune.randaugment import RandAugment
from deit_batch.finetune.settings import Settings
from deit_batch.model.recipe import Recipe

Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, width and height, in pixels."""

CROP_RATIO = (3 / 4, 4 / 3)
"""Width over height, of a random crop."""
ERASED_AREA = (0.02, 1 / 3)
"""Share of the image's; arXiv 1708.04896 goes on to 0.4, timm's RandomErasing to a third."""
ERASED_RATIO = (0.3, 1 / 0.3)
"""Height over width, of an erased rectangle."""
TRIES = 10
"""To find a rectangle that lies within the image."""


class Augmentation:
    """`crops`: whether `choose_box` says which part of the original an image is cut out of; else it comes as the recipe
    gives it."""

    def __init__(self, settings: Settings, recipe: Recipe) -> None:
        self._settings = settings
        self.crops = settings.crop < 1
        red, green, blue = (min(255, max(0, round(mean / recipe.rescale_factor))) for mean in recipe.mean)
        magnitude = settings.randaugment
        self._randaugment = RandAugment(magnitude, (red, green, blue), recipe.resample) if magnitude else None

    def choose_box(self, width: int, height: int, dice: np.random.Generator) -> Box:
        """Of an image, a part to be trained on."""
        return crop_box(width, height, self._settings.crop, dice)

    def __call__(self, image: Image.Image, dice: np.random.Generator) -> tuple[NDArray[np.uint8], Box]:
        """An RGB image of the model's size to its pixels, uint8 [height, width, 3], and what of it is erased, which has
        no width where nothing is."""
        settings = self._settings
        if settings.flip and dice.random() < 0.5:
            image = ImageOps.mirror(image)
        if self._randaugment:
            image = self._randaugment(image, dice)
        if settings.color_jitter:
            image = jittered(image, settings.color_jitter, dice)
        erased = (0, 0, 0, 0)
        if settings.random_erasing and dice.random() < settings.random_erasing:
            erased = erased_box(image.width, image.height, dice)
        return np.asarray(image), erased


def crop_box(width: int, height: int, smallest: float, dice: np.random.Generator) -> Box:
    """Of an area between the share `smallest` and 1; if no try lies within the image, its centre (Inception's crop, in
    the form of torchvision's RandomResizedCrop)."""
    for _ in range(TRIES):
        area = width * height * dice.uniform(smallest, 1)
        ratio = _ratio(CROP_RATIO, dice)
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            return int(dice.integers(width - wide + 1)), int(dice.integers(height - high + 1)), wide, high
    wide, high = min(width, round(height * CROP_RATIO[1])), min(height, round(width / CROP_RATIO[0]))
    return (width - wide) // 2, (height - high) // 2, max(wide, 1), max(high, 1)


def erased_box(width: int, height: int, dice: np.random.Generator) -> Box:
    for _ in range(TRIES):
        area = width * height * dice.uniform(*ERASED_AREA)
        ratio = _ratio(ERASED_RATIO, dice)
        high, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if wide < width and high < height:
            return int(dice.integers(width - wide + 1)), int(dice.integers(height - high + 1)), wide, high
    return 0, 0, 0, 0


def _ratio(bounds: tuple[float, float], dice: np.random.Generator) -> float:
    """As often below 1 as above."""
    return math.exp(dice.uniform(math.log(bounds[0]), math.log(bounds[1])))


def jittered(image: Image.Image, strength: float, dice: np.random.Generator) -> Image.Image:
    """Brightness, contrast and colour, in any order, each by a factor within 1 ± `strength`."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for number in dice.permutation(len(enhancers)):
        image = enhancers[number](image).enhance(dice.uniform(max(0.0, 1 - strength), 1 + strength))
    return image
