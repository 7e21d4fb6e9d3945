"""The few numbers of each image that a later evaluation is compared by, in JSON: about 60 bytes an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from deit_batch.errors import MALFORMED, UsageError, in_words
from deit_batch.evaluation.judged import Bools, MultiLabel, SingleLabel
from deit_batch.system.git_lfs import NOT_HERE, is_pointer_file


def pack(outcomes: SingleLabel | MultiLabel) -> dict[str, Any]:
    """Columns, a place for each image; classes by their number in `classes`."""
    packed: dict[str, Any] = {"classes": outcomes.classes, "keys": outcomes.keys, "files": outcomes.files}
    if isinstance(outcomes, MultiLabel):
        predicted = outcomes.predicted
        return packed | {
            "truth": _numbers(outcomes.truth),
            "predicted": None if predicted is None else _numbers(predicted),
        }
    return packed | {
        "labels": outcomes.labels.tolist(),
        "predicted": outcomes.predicted.tolist(),
        "rank": outcomes.rank.tolist(),
        "confidence": [round(value, 6) for value in outcomes.confidence.tolist()],
        "loss": [None if np.isnan(value) else round(value, 6) for value in outcomes.loss.tolist()],
        "depth": outcomes.depth,
    }


def _numbers(marks: Bools) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in marks]


def _marks(numbers: list[list[int]], shape: tuple[int, int]) -> Bools:
    marks = np.zeros(shape, np.bool_)
    for row, marked in zip(marks, numbers, strict=True):
        row[marked] = True
    return marks


def read_baseline(path: Path) -> SingleLabel | MultiLabel:
    """The outcomes in the metrics.json of an earlier evaluation. Raises UsageError if it is none."""
    try:
        if is_pointer_file(str(path)):
            raise ValueError(NOT_HERE)
        packed = json.loads(path.read_bytes(), parse_constant=_refuse)["outcomes"]
        return unpack(packed)
    except OSError as error:
        raise UsageError(f"--baseline {path}: {error.strerror}") from error
    except MALFORMED as error:
        raise UsageError(f"--baseline {path}: not the metrics.json of an evaluation: {in_words(error)}") from error


def _refuse(name: str) -> float:
    """A gate against what is no number would be passed, or not, by chance."""
    raise ValueError(f"it has {name} in place of a number")


def unpack(packed: dict[str, Any]) -> SingleLabel | MultiLabel:
    classes, keys, files = list(packed["classes"]), list(packed["keys"]), list(packed.get("files", []))
    if files and len(files) != len(keys):
        raise ValueError("columns of different lengths")
    if "truth" in packed:
        shape, predicted = (len(keys), len(classes)), packed["predicted"]
        told = None if predicted is None else _marks(predicted, shape)
        return MultiLabel(classes, keys, _marks(packed["truth"], shape), told, files)
    labels, predicted, rank = (np.array(packed[name], np.int64) for name in ("labels", "predicted", "rank"))
    confidence, loss = (np.array(packed[name], np.float64) for name in ("confidence", "loss"))  # null becomes NaN
    if any(column.shape != (len(keys),) for column in (labels, predicted, rank, confidence, loss)):
        raise ValueError("columns of different lengths")
    return SingleLabel(classes, keys, labels, predicted, rank, confidence, loss, int(packed["depth"]), files)
