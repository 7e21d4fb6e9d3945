"""What was taken for what, as a table that is read at a glance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from deit_batch.evaluation.confused import MOST_CLASSES, most_confused
from deit_batch.report.table import PageTable

STEPS = 10
"""Of the shade of a cell, from none of a label's images to all."""


class Cell(NamedTuple):
    """`percent`: of the row's images; `step`: its shade; `filter`: what finds the images in the page's table."""

    label: str
    images: int
    percent: str
    step: int
    right: bool
    filter: Mapping[str, int]


def as_matrix(taken: Counter[tuple[str, str]], table: PageTable) -> dict[str, Any] | None:
    """A row for each label and a column for each that was found, the same and in the same order; of many, those that
    are confused the most. `taken`: images by label and by what it was taken for. None if there are none."""
    names = sorted({name for pair in taken for name in pair})
    if not names:
        return None
    totals, met, wrong = Counter[str](), Counter[str](), Counter[str]()
    for (truth, label), images in taken.items():
        totals[truth] += images
        for name in (truth, label):
            met[name] += images
            wrong[name] += images if truth != label else 0
    vectors = [np.array([count[name] for name in names]) for count in (met, wrong)]
    shown = [names[place] for place in most_confused(*vectors)]
    return {
        "labels": shown,
        "all_labels": len(names),
        "most": MOST_CLASSES,
        "rows": [
            {
                "label": truth,
                "images": totals[truth],
                "cells": [_cell(truth, label, taken[truth, label], totals[truth], table) for label in shown],
            }
            for truth in shown
        ],
    }


def _cell(truth: str, label: str, images: int, total: int, table: PageTable) -> Cell:
    part = images / max(total, 1)
    percent = "" if not images else "<1" if part < 0.005 else f"{100 * part:.0f}"
    found = {"truth": table.label(truth), "label": table.label(label)}
    return Cell(label, images, percent, ceil(part * STEPS), truth == label, found)
