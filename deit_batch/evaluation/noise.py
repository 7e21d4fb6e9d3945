"""How far chance could have moved a metric: intervals, and whether a change from an earlier evaluation is more than it.

Shares of images have the intervals and the test of shares.py; the intervals of the others are percentiles of bootstrap
resamples of the images. The calibration error has none: chance adds to it, and so does resampling. Two models on the
same images are compared by differences within the same resamples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deit_batch.errors import UsageError
from deit_batch.evaluation.judged import Bools, Floats, MultiLabel, SingleLabel
from deit_batch.evaluation.metrics import bin_numbers
from deit_batch.evaluation.shares import (
    RESAMPLES,
    chance_of_difference,
    is_within_noise,
    percentile_interval,
    share_interval,
)
from deit_batch.names import alike

Outcomes: TypeAlias = SingleLabel | MultiLabel

_PER_MULTIPLICATION = 50  # resamples


def intervals(outcomes: Outcomes) -> dict[str, tuple[float, float]]:
    """Of the headline metrics, from where to where their intervals reach."""
    found = {name: percentile_interval(values) for name, values in resampled(outcomes).items()}
    found.pop("expected_calibration_error", None)
    return found | {name: share_interval(int(right.sum()), len(right)) for name, right in _shares(outcomes).items()}


def compare(before: Outcomes, now: Outcomes, called: str = "--baseline") -> dict[str, Any]:
    """The change of each headline metric on the images that both have seen, with the same labels. `within_noise`: the
    interval of the difference holds 0, or, where there is a `p_value`, that is not below what LEVEL leaves. `missing`:
    how many images of `before` are not in `now` with that label. `called`: what `before` is, in messages.
    Raises UsageError if there is nothing to compare."""
    if type(before) is not type(now):
        one, other = ("several labels", "one label")[:: 1 if isinstance(before, MultiLabel) else -1]
        raise UsageError(f"{called} is of images with {one} each, and these have {other}: give one of the same kind")
    before, now, missing = _paired(before, now, called)
    shares = [_shares(outcomes) for outcomes in (before, now)]
    tests = {name: _mcnemar(shares[0][name], shares[1][name]) for name in shares[0].keys() & shares[1].keys()}
    changes: dict[str, Any] = {}
    old, new = resampled(before), resampled(now)
    was, is_ = (statistics(outcomes, np.ones((1, len(outcomes.keys)))) for outcomes in (before, now))
    for name in (name for name in new if name in old):
        low, high = percentile_interval(new[name] - old[name])
        p_value = tests.get(name)
        changes[name] = {
            "before": float(was[name][0]),
            "now": float(is_[name][0]),
            "change": float(is_[name][0] - was[name][0]),
            "interval": [low, high],
            **({} if p_value is None else {"p_value": p_value}),
            "within_noise": low <= 0 <= high if p_value is None else is_within_noise(p_value),
        }
    return {"images": len(now.keys), "missing": missing, "metrics": changes}


def resampled(outcomes: Outcomes) -> dict[str, Floats]:
    """Each headline metric of RESAMPLES resamples; the same ones for as many images."""
    n = len(outcomes.keys)
    random = np.random.default_rng(0)
    parts = []
    for _ in range(RESAMPLES // _PER_MULTIPLICATION):
        draws = random.integers(n, size=(_PER_MULTIPLICATION, n))
        parts.append(statistics(outcomes, np.stack([np.bincount(draw, minlength=n) for draw in draws])))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def statistics(outcomes: Outcomes, weights: NDArray[Any]) -> dict[str, Floats]:
    """The headline metrics of weighted images. `weights`: [resamples, n]; each metric: [resamples]."""
    if isinstance(outcomes, MultiLabel):
        truth, predicted = outcomes.truth, outcomes.predicted
        if predicted is None:
            return {}
        weights = weights.astype(np.float32)
        tp, said, there = (weights @ part.astype(np.float32) for part in (truth & predicted, predicted, truth))
        sums = tp.sum(1), (said + there).sum(1)
        return {
            **{name: _mean(right, weights) for name, right in _shares(outcomes).items()},
            "f1_micro": 2 * sums[0] / np.maximum(sums[1], 1),
            "f1_macro": (2 * tp / np.maximum(said + there, 1)).mean(1),
            "jaccard_macro": (tp / np.maximum(said + there - tp, 1)).mean(1),
        }
    found = {name: _mean(right, weights) for name, right in _shares(outcomes).items()}
    found |= _of_confusion(outcomes, weights)
    if not np.isnan(outcomes.loss).any():
        found["log_loss"] = _mean(outcomes.loss, weights)
    found["expected_calibration_error"] = _calibration_errors(outcomes, weights)
    return found


def _of_confusion(outcomes: SingleLabel, weights: NDArray[Any]) -> dict[str, Floats]:
    """Balanced accuracy and macro F1, over the classes that scikit-learn takes them over: those with a sample; those
    with a sample or a prediction."""
    classes = len(outcomes.classes)
    right = outcomes.labels == outcomes.predicted
    recalls, f1s = np.zeros((2, len(weights)))
    for row, weight in enumerate(weights):
        there = np.bincount(outcomes.labels, weight, minlength=classes)
        said = np.bincount(outcomes.predicted, weight, minlength=classes)
        tp = np.bincount(outcomes.labels, weight * right, minlength=classes)
        recalls[row] = (tp[there > 0] / there[there > 0]).mean()
        f1s[row] = (2 * tp[there + said > 0] / (there + said)[there + said > 0]).mean()
    return {"balanced_accuracy": recalls, "f1_macro": f1s}


def _calibration_errors(outcomes: SingleLabel, weights: NDArray[Any]) -> Floats:
    """As metrics.calibration_error: the gaps of the bins, each weighted with its samples, are sums over those."""
    number = bin_numbers(outcomes.confidence)
    gap = (outcomes.labels == outcomes.predicted) - outcomes.confidence
    gaps = [np.abs(np.bincount(number, weight * gap)).sum() / weight.sum() for weight in weights]
    return np.array(gaps)


def _mean(values: NDArray[Any], weights: NDArray[Any]) -> Floats:
    return np.asarray(weights @ values.astype(np.float64) / weights.sum(1))


def _shares(outcomes: Outcomes) -> dict[str, Bools]:
    """Of the metrics that are shares of images, which images count."""
    if isinstance(outcomes, MultiLabel):
        return {} if outcomes.predicted is None else {"accuracy": (outcomes.truth == outcomes.predicted).all(1)}
    found = {"accuracy": outcomes.labels == outcomes.predicted}
    if outcomes.depth >= 5:
        found["top_5_accuracy"] = (outcomes.rank > 0) & (outcomes.rank <= 5)
    return found


def _mcnemar(before: NDArray[np.bool_], now: NDArray[np.bool_]) -> float:
    return chance_of_difference(int((before & ~now).sum()), int((now & ~before).sum()))


def _paired(before: Outcomes, now: Outcomes, called: str) -> tuple[Outcomes, Outcomes, int]:
    """The images that both have, in one order, with one numbering of the classes; how many only the first has."""
    classes = list(dict.fromkeys(map(alike, [*now.classes, *before.classes])))
    names = before.keys, now.keys
    rows = _shared(*names)
    if not rows:
        names = before.files, now.files
        rows = _shared(*map(_once, names))
    if not rows:
        raise UsageError(f"{called}: no image of it is here with the same label, neither by its name nor its file's")
    missing = (Counter(names[0]) - Counter(names[1])).total()
    return _chosen(before, [was for was, _ in rows], classes), _chosen(now, [is_ for _, is_ in rows], classes), missing


def _shared(before: Sequence[str | None], now: Sequence[str | None]) -> list[tuple[int, int]]:
    """The rows of what both have."""
    there = {key: row for row, key in enumerate(before) if key is not None}
    return [(there[key], row) for row, key in enumerate(now) if key is not None and key in there]


def _once(files: list[str]) -> list[str | None]:
    """None for those that are there more often."""
    counts = Counter(files)
    return [file if counts[file] == 1 else None for file in files]


def _chosen(outcomes: Outcomes, rows: list[int], classes: list[str]) -> Outcomes:
    numbers = np.array([classes.index(alike(name)) for name in outcomes.classes])
    keys = [outcomes.keys[row] for row in rows]
    if isinstance(outcomes, MultiLabel):
        truth, predicted = np.zeros((2, len(rows), len(classes)), np.bool_)
        truth[:, numbers] = outcomes.truth[rows]
        if outcomes.predicted is None:
            return replace(outcomes, classes=classes, keys=keys, files=[], truth=truth)
        predicted[:, numbers] = outcomes.predicted[rows]
        return replace(outcomes, classes=classes, keys=keys, files=[], truth=truth, predicted=predicted)
    return replace(
        outcomes,
        classes=classes,
        keys=keys,
        files=[],
        labels=numbers[outcomes.labels[rows]],
        predicted=numbers[outcomes.predicted[rows]],
        rank=outcomes.rank[rows],
        confidence=outcomes.confidence[rows],
        loss=outcomes.loss[rows],
    )
