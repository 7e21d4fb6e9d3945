"""How far chance could have moved the share of images that are right, and the difference of two such shares.

Intervals of a share are Wilson's (Probable Inference, the Law of Succession, and Statistical Inference, JASA 22, 1927),
which say something of 20 right out of 20, too. Two models on the same images are told apart by McNemar's exact test of
those on which they differ (Dietterich, Approximate Statistical Tests, Neural Computation 10, 1998, section 3.1); the
interval of their difference is of percentiles of bootstrap resamples of the images (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

LEVEL = 0.95
RESAMPLES = 1000


def share_interval(right: int, images: int) -> tuple[float, float]:
    reach = binomtest(right, images).proportion_ci(LEVEL, method="wilson")
    return float(reach.low), float(reach.high)


def chance_of_difference(lost: int, won: int) -> float:
    """The chance of differences as one-sided as these if neither model were better. `lost`: images that the first alone
    has right; `won`: those that the second alone has."""
    return float(binomtest(won, lost + won).pvalue) if lost + won else 1.0


def is_within_noise(p_value: float) -> bool:
    return p_value >= 1 - LEVEL


def difference_interval(lost: int, won: int, images: int) -> tuple[float, float]:
    """Of the second model's share less the first's. To draw images again is to draw how many of each kind there are:
    that is the same resample, whatever their number."""
    shares = np.array([lost, won, images - lost - won]) / images
    drawn = np.random.default_rng(0).multinomial(images, shares, size=RESAMPLES)
    return percentile_interval((drawn[:, 1] - drawn[:, 0]) / images)


def percentile_interval(resampled: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
