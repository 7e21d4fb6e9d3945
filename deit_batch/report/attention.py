"""What a model looked at, over a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NAMES = {"cls_token": "class token", "distillation_token": "distillation token"}
"""Of the tokens that heads look at."""

_DARKEST = 0.85
"""Of the shade over what was looked at the least, how much of the picture it hides."""


def shade(shares: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[rows, columns] to black of RGBA, [rows, columns, 4], the thinner the larger the share: what was looked at the
    most stays as it is."""
    least, most = float(shares.min()), float(shares.max())
    relative = (shares - least) / (most - least) if most > least else np.ones_like(shares)
    black = np.zeros((*shares.shape, 4), np.uint8)
    black[..., 3] = np.round(255 * _DARKEST * (1 - relative))
    return black
