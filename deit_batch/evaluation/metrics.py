"""Arrays to numbers, by scikit-learn.

What scikit-learn would only warn of is left out, and why is said: what is not there is not taken for bad.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from deit_batch.evaluation.judged import Bools, Floats, Judged, MultiLabel, SingleLabel
from deit_batch.evaluation.names import AVERAGES

BINS = 15
"""Of the confidence, as in Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599), section 5."""

_NO_SCORES = "needs every class's score: score with --top-k all"
_CUT = "of some images labels may be missing whose scores reach the threshold: score with --top-k all, no --threshold"
_ONE_CLASS = "needs images of two classes"
_THRESHOLDS = np.linspace(0, 1, 101)
_MOST_TABLES = 100  # classes


@dataclass(slots=True)
class Metrics:
    """`values` by name; `unavailable`: why another has none; `per_class`: a row of each class, by number; `bins`: of
    the reliability curve; `accuracy_table`: counts at each of many thresholds, one class against the rest."""

    values: dict[str, float] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    per_class: list[dict[str, Any]] = field(default_factory=list)
    bins: list[dict[str, float]] = field(default_factory=list)
    accuracy_table: dict[str, Any] = field(default_factory=dict)


def compute(judged: Judged, inputs: int) -> Metrics:
    """All metrics. `inputs`: how many images there are, those without a prediction or a known label included."""
    outcomes = judged.outcomes
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="sklearn")  # of classes without samples: those are reported
        found = _single(outcomes, judged) if isinstance(outcomes, SingleLabel) else _multi(outcomes, judged)
    found.values = {name: float(value) for name, value in found.values.items()}  # some scikit-learns give NumPy's
    if "accuracy" in found.values:
        found.values["accuracy_of_all_inputs"] = found.values["accuracy"] * len(outcomes.keys) / inputs
    return found


def _single(outcomes: SingleLabel, judged: Judged) -> Metrics:
    labels, predicted, classes = outcomes.labels, outcomes.predicted, len(outcomes.classes)
    support = np.bincount(labels, minlength=classes)
    found = Metrics()
    found.values = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "weighted_accuracy": sk.accuracy_score(labels, predicted, sample_weight=support[labels]),
        **_averaged(labels, predicted, [*AVERAGES, *(["binary"] if classes == 2 else [])]),
    }
    if np.ptp(labels) and np.ptp(predicted):
        found.values["matthews_corrcoef"] = sk.matthews_corrcoef(labels, predicted)
    else:
        found.unavailable["matthews_corrcoef"] = "needs two classes among the labels, and two among the predictions"
    if np.count_nonzero(support) > 1:
        found.values["balanced_accuracy_adjusted"] = sk.balanced_accuracy_score(labels, predicted, adjusted=True)
    else:
        found.unavailable["balanced_accuracy_adjusted"] = _ONE_CLASS
    if outcomes.depth >= 5:
        found.values["top_5_accuracy"] = float(((outcomes.rank > 0) & (outcomes.rank <= 5)).mean())
    else:
        found.unavailable["top_5_accuracy"] = f"needs 5 predictions an image, there are {outcomes.depth}"
    found.bins = reliability(outcomes.confidence, labels == predicted)
    found.values["expected_calibration_error"] = calibration_error(found.bins)
    found.per_class = _rows_of_classes(outcomes, support)
    truth = np.zeros((len(labels), classes), np.bool_)
    truth[np.arange(len(labels)), labels] = True
    _add_what_needs_scores(found, truth, judged, single=True)
    return found


def _multi(outcomes: MultiLabel, judged: Judged) -> Metrics:
    truth, predicted = outcomes.truth, outcomes.predicted
    found = Metrics()
    if predicted is None:
        names = [f"{name}_{average}" for name in ("precision", "recall", "f1", "jaccard") for average in AVERAGES]
        names += ["jaccard_samples", "balanced_accuracy", "balanced_accuracy_adjusted"]
        found.unavailable = dict.fromkeys(["accuracy", "accuracy_of_all_inputs", *names], _CUT)
        counts = truth.sum(0).tolist()
        found.per_class = [{"class": name, "images": n} for name, n in zip(outcomes.classes, counts, strict=True)]
        _add_what_needs_scores(found, truth, judged, single=False)
        return found
    found.values = {"accuracy": sk.accuracy_score(truth, predicted), **_averaged(truth, predicted, AVERAGES)}
    for average in AVERAGES:
        found.values[f"jaccard_{average}"] = sk.jaccard_score(truth, predicted, average=average, zero_division=0)
    found.values["jaccard_samples"] = jaccard_of_images(truth, predicted)
    balanced = balanced_accuracies(truth, predicted)
    if len(balanced):
        found.values |= {
            "balanced_accuracy": balanced.mean(),
            "balanced_accuracy_adjusted": 2 * balanced.mean() - 1,
        }
    else:
        found.unavailable |= dict.fromkeys(("balanced_accuracy", "balanced_accuracy_adjusted"), _ONE_CLASS)
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, predicted, zero_division=0)
    counts = sk.multilabel_confusion_matrix(truth, predicted)
    for number, name in enumerate(outcomes.classes):
        (tn, fp), (fn, tp) = counts[number].tolist()
        quality = {"precision": precision[number], "recall": recall[number], "f1": f1[number]}
        numbers = {"images": int(support[number]), "tp": tp, "fp": fp, "fn": fn, "tn": tn}
        found.per_class.append({"class": name, **numbers, **{key: float(value) for key, value in quality.items()}})
    _add_what_needs_scores(found, truth, judged, single=False)
    return found


def jaccard_of_images(truth: Bools, predicted: Bools) -> float:
    """Of each image the labels that are right, of all that it has or is said to have; 1 of an image that has none and
    is said to have none. The mean over the images."""
    return float(sk.jaccard_score(truth, predicted, average="samples", zero_division=1))


def balanced_accuracies(truth: Bools, predicted: Bools) -> Floats:
    """Of each class that some images have and others have not, the mean of two shares: of the images with it that are
    said to have it, and of those without it that are not."""
    there = truth.sum(0)
    told = (there > 0) & (there < len(truth))
    found, kept = (truth & predicted).sum(0), (~truth & ~predicted).sum(0)
    return np.asarray((found[told] / there[told] + kept[told] / (len(truth) - there[told])) / 2)


def log_loss_of_labels(truth: Bools, scores: NDArray[Any]) -> float:
    """The mean over all images and classes of minus the logarithm of what the score gives to the truth: s where the
    image has the label, 1 - s where it has not; bounded as scikit-learn bounds it."""
    smallest = np.finfo(np.float32).eps
    share = np.clip(np.where(truth, scores, 1 - scores.astype(np.float64)), smallest, 1)
    return float(-np.log(share).mean())


def _averaged(labels: NDArray[Any], predicted: NDArray[Any], averages: Any) -> dict[str, float]:
    values: dict[str, float] = {}
    for average in averages:
        found = sk.precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)
        values |= {f"{name}_{average}": float(found[place]) for place, name in enumerate(("precision", "recall", "f1"))}
    return values


def _rows_of_classes(outcomes: SingleLabel, support: NDArray[np.int64]) -> list[dict[str, Any]]:
    """With the rows of the confusion matrix: `predicted_as` counts by name what images of the class were taken for."""
    numbers = np.arange(len(outcomes.classes))
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        outcomes.labels, outcomes.predicted, labels=numbers, zero_division=0
    )
    matrix = confusion(outcomes)
    return [
        {
            "class": name,
            "images": int(support[number]),
            "precision": float(precision[number]),
            "recall": float(recall[number]),
            "f1": float(f1[number]),
            "predicted_as": {outcomes.classes[j]: int(matrix[number, j]) for j in np.flatnonzero(matrix[number])},
        }
        for number, name in enumerate(outcomes.classes)
    ]


def confusion(outcomes: SingleLabel) -> NDArray[np.int64]:
    """[classes, classes]: how many images of a row's class were taken for a column's."""
    return np.asarray(sk.confusion_matrix(outcomes.labels, outcomes.predicted, labels=range(len(outcomes.classes))))


# --- of scores ------------------------------------------------------------------------------------------------------


def _add_what_needs_scores(found: Metrics, truth: Bools, judged: Judged, *, single: bool) -> None:
    """One class against the rest, over the classes that some images are of and others are not."""
    scores = judged.scores
    ranking = [f"{name}_{average}" for name in ("roc_auc", "average_precision") for average in AVERAGES]
    if scores is None:
        names = [*ranking, "log_loss"] if single else [*ranking, "log_loss", "expected_calibration_error"]
        found.unavailable |= dict.fromkeys(names, _NO_SCORES)
        return
    if single:
        shares = scores.astype(np.float64) / scores.sum(1, keepdims=True, dtype=np.float64)
        found.values["log_loss"] = float(sk.log_loss(truth.argmax(1), shares, labels=range(truth.shape[1])))
    else:
        found.values["log_loss"] = log_loss_of_labels(truth, scores)
        found.bins = reliability(scores.ravel().astype(np.float64), truth.ravel())
        found.values["expected_calibration_error"] = calibration_error(found.bins)
    support = truth.sum(0)
    told = np.flatnonzero((support > 0) & (support < len(truth)))
    if not len(told):
        found.unavailable |= dict.fromkeys(ranking, _ONE_CLASS)
        return
    for name, score in (("roc_auc", sk.roc_auc_score), ("average_precision", sk.average_precision_score)):
        by_class = np.array([score(truth[:, number], scores[:, number]) for number in told])
        for number, value in zip(told, by_class, strict=True):
            found.per_class[number][name] = float(value)
        found.values[f"{name}_macro"] = float(by_class.mean())
        found.values[f"{name}_weighted"] = float(np.average(by_class, weights=support[told]))
        found.values[f"{name}_micro"] = float(score(truth.ravel(), scores.ravel()))
        if single and truth.shape[1] == 2:
            found.values[f"{name}_binary"] = float(by_class[-1])
    found.accuracy_table = dict(_accuracy_tables(truth, scores, [row["class"] for row in found.per_class]))


def _accuracy_tables(truth: Bools, scores: NDArray[np.float32], classes: list[str]) -> Iterator[tuple[str, Any]]:
    """Of all classes together and, if they are not too many, of each: [thresholds][tp, fp, fn, tn]."""
    tables = np.zeros((len(classes), len(_THRESHOLDS), 4), np.int64)
    for number in range(len(classes)):
        positive, negative = (np.sort(scores[truth[:, number] == is_it, number]) for is_it in (True, False))
        tp, fp = (len(part) - np.searchsorted(part, _THRESHOLDS.astype(np.float32)) for part in (positive, negative))
        tables[number] = np.stack([tp, fp, len(positive) - tp, len(negative) - fp], 1)
    yield "columns", ["tp", "fp", "fn", "tn"]
    yield "thresholds", [round(float(threshold), 2) for threshold in _THRESHOLDS]
    yield "all", tables.sum(0).tolist()
    if len(classes) <= _MOST_TABLES:
        yield "per_class", {name: table.tolist() for name, table in zip(classes, tables, strict=True)}


def reliability(confidence: Floats, right: Bools) -> list[dict[str, float]]:
    """The bins of equal width of the confidence, (0, 1/15] and so on, that are not empty: Guo et al., section 2. For
    several labels an image, every label of every image is a sample: its score is the confidence that it is there."""
    number = bin_numbers(confidence)
    counts = np.bincount(number, minlength=BINS)
    sums = np.bincount(number, confidence, minlength=BINS), np.bincount(number, right, minlength=BINS)
    return [
        {
            "from": bin_ / BINS,
            "to": (bin_ + 1) / BINS,
            "samples": int(counts[bin_]),
            "confidence": float(sums[0][bin_] / counts[bin_]),
            "accuracy": float(sums[1][bin_] / counts[bin_]),
        }
        for bin_ in np.flatnonzero(counts).tolist()
    ]


def bin_numbers(confidence: Floats) -> NDArray[np.int64]:
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def calibration_error(bins: list[dict[str, float]]) -> float:
    """The expected calibration error: Guo et al., equation 3."""
    total = sum(bin_["samples"] for bin_ in bins)
    return sum(bin_["samples"] / total * abs(bin_["accuracy"] - bin_["confidence"]) for bin_ in bins)
