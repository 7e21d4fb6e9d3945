"""Which classes of a confusion matrix are shown, where there are too many to be read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_CLASSES = 25


def most_confused(met: NDArray[np.int64], wrong: NDArray[np.int64]) -> NDArray[np.intp]:
    """The numbers of those that are shown, in order: the classes that were met; of many, those that are confused the
    most. `met`: [classes], how many images are of a class, and how many were taken for it; `wrong`: [classes], those of
    them that were taken for another class, or are of one."""
    there = np.flatnonzero(met)
    if len(there) <= MOST_CLASSES:
        return there
    return np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])
