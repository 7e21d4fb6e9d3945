"""Predictions beside labels, as arrays: all that is to be known of a model on a data set.

Records are read one by one. What stays in memory is a few numbers an image and, where the records hold every class's
score, float32 [images, classes]: 200 MB for the 50,000 images and 1,000 classes of ImageNet's validation set.
"""

from __future__ import annotations

import hashlib
import json
import ntpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deit_batch.errors import UsageError, nothing_left
from deit_batch.input.identity import identity_of
from deit_batch.io import counts
from deit_batch.model.matching import Matching
from deit_batch.names import alike

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]

_KEY_CHARS = 12  # of SHA-256 in hexadecimal: of 50,000 images no two share theirs but once in 200,000 data sets


@dataclass(frozen=True, slots=True)
class SingleLabel:
    """Of n images, one label each. `keys`: a digest of the image's identity and label, by which one evaluation finds
    the images of another; `files`: the same of the file's name alone, for images in another folder ([] of an evaluation
    that has not kept them); `labels`, `predicted`: numbers of classes; `rank`: at which place of the predictions the
    label stands, from 1, or 0 if it is not among them; `depth`: how many there are at least; `confidence`: the best
    score; `loss`: minus the logarithm of the label's score, NaN if that is not there. All [n]."""

    classes: list[str]
    keys: list[str]
    labels: Ints
    predicted: Ints
    rank: Ints
    confidence: Floats
    loss: Floats
    depth: int
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MultiLabel:
    """Of n images, any number of labels each. `truth` and `predicted`: [n, classes]; the latter None if of some image
    labels may be missing whose scores reach the threshold; `keys` and `files` as above."""

    classes: list[str]
    keys: list[str]
    truth: Bools
    predicted: Bools | None
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Judged:
    """`outcomes` of all images that have predictions and known labels. `images` and `places` say which: their names,
    and which of the labelled input's rows they are. `scores`: float32 [n, classes]; None if not every class's is there.
    `failures` of the others by type; `unknown_images`: how many have a label that the model does not know; which labels
    those are, `matching` knows."""

    outcomes: SingleLabel | MultiLabel
    images: list[str | None]
    places: list[int]
    scores: NDArray[np.float32] | None
    failures: Counter[str]
    unknown_images: int
    matching: Matching


@dataclass(frozen=True, slots=True)
class Pair:
    """A record of predictions, the labels of its image, and its place in the input."""

    record: dict[str, Any]
    labels: Sequence[str]
    place: int


@dataclass(frozen=True, slots=True)
class PredictionsSummary:
    """What a file of predictions alone tells: the names of its classes, how many predictions a record holds that holds
    them all (0 if that can't be told), and whether an image may have several labels."""

    classes: list[str]
    full: int
    multi_label: bool


def summarise_predictions(records: Iterable[dict[str, Any]], *, multi_label: bool) -> PredictionsSummary:
    """Records hold every class's score if all name the same labels, each as often (classes may share a name), and (one
    label an image) their scores add up to one. An image may have several labels if the data set says so
    (`multi_label`), a record that keeps its labels has a list of them, or the scores of any add up to more than shares
    of one do: to less, the best few do, too."""
    names: set[str] = set()
    first: Counter[str] | None = None
    same = True
    least, most = 1.0, 1.0  # sums of scores
    for record in records:
        multi_label |= isinstance(record.get("label"), list)
        if predictions := record["predictions"]:
            labels = Counter(prediction["label"] for prediction in predictions)
            names.update(labels)
            first = first or labels
            same &= labels == first
            total = sum(prediction["score"] for prediction in predictions)
            least, most = min(least, total), max(most, total)
    multi_label |= most > 1.01
    whole = same and (multi_label or (least > 0.999 and most < 1.001))
    return PredictionsSummary(sorted(names), first.total() if first and whole else 0, multi_label)


def require_known(told: PredictionsSummary, labels: Iterable[str], label_map: Mapping[str, str]) -> None:
    """Raises UsageError if there are labels, and predictions, but none of the labels is ever predicted, not even as a
    lesser one: then they are other names, of which no image could be right. What the map says of a label is believed,
    unless records hold every class."""
    is_class = Matching(told.classes, label_map)
    for label in labels:
        if is_class(label) is not None or (alike(label) in label_map and not told.full):
            return
    if is_class.unknown and told.classes:
        seen, known = (", ".join(sorted(names)[:3]) for names in (is_class.unknown, told.classes))
        raise UsageError(
            f"none of the labels ({seen}, …) is ever predicted, but {known}, …: say in a --label-map which is which"
        )


def known_classes(told: PredictionsSummary, labels: Iterable[str], label_map: Mapping[str, str]) -> list[str]:
    """The classes that predictions are judged by. What the model knows can't be told from its best few: a label that it
    never predicts is a class, too."""
    if told.full:
        return told.classes
    is_class = Matching(told.classes, label_map)
    return sorted({*told.classes, *(label_map.get(name, name) for name in labels if is_class(name) is None)})


def judge(
    pairs: Iterable[Pair],
    classes: Sequence[str],
    matching: Matching,
    *,
    multi_label: bool,
    full: int,
    threshold: float,
    unpaired: Counter[str] | None = None,
) -> Judged:
    """`classes`: the model's, each name once. A model may have two classes of one name (ImageNet's "crane"): nothing in
    the predictions tells them apart, and they count as one, with the sum of their scores, as far as those are there.
    `full`: how many predictions a record holds that holds all; `threshold`: from which score up a label counts as
    predicted, where an image may have several. `unpaired`: once all pairs are read, why others are none. An image of
    which any label is unknown is not judged. Raises UsageError if none is left, or InputError if one could not be
    fetched, which another try may mend."""
    numbers = {name: number for number, name in enumerate(classes)}
    failures: Counter[str] = Counter()
    unknown_images = 0
    kept: list[_Kept] = []
    for pair in pairs:
        record = pair.record
        if "error" in record:
            failures[record["error"]["type"]] += 1
            continue
        if not (multi_label or record["predictions"]):  # all were below the --threshold of score
            failures["no prediction"] += 1
            continue
        labels = [matching(label) for label in pair.labels]
        if None in labels:
            unknown_images += 1
            continue
        known = sorted({label for label in labels if label is not None})
        kept.append(_keep(pair, known, numbers, classes, full))
    failures.update(unpaired or {})
    if not kept and matching.unknown:
        raise unknown_labels(matching, classes)
    if not kept:
        raise nothing_left(f"no image can be judged: {counts(failures) or 'there is none'}", failures)
    scores = None
    if all(item.scores is not None for item in kept):
        scores = np.stack([item.scores for item in kept if item.scores is not None])
    outcomes = _multi(kept, classes, threshold) if multi_label else _single(kept, classes)
    images, places = [item.image for item in kept], [item.place for item in kept]
    return Judged(outcomes, images, places, scores, failures, unknown_images, matching)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Of one image what is kept until all are read. `predicted`, `values`: classes and scores of its predictions, the
    best first, equal scores in the order of the record; `rank`, `score`: the place among them, from 1, and the score of
    the first of its labels, 0 and NaN if it is not there; `depth`: how many those were."""

    image: str | None
    place: int
    key: str
    file: str
    labels: list[int]
    predicted: Ints
    values: NDArray[np.float32]
    scores: NDArray[np.float32] | None
    rank: int
    score: float
    depth: int


def _keep(pair: Pair, labels: list[int], numbers: Mapping[str, int], classes: Sequence[str], full: int) -> _Kept:
    predictions = pair.record["predictions"]
    summed = sum_by_label(predictions)
    predicted = np.array([numbers.get(label, -1) for label in summed], np.int64)
    values = np.array(list(summed.values()), np.float32)
    places: Sequence[int] = np.flatnonzero(predicted == labels[0]).tolist() if labels else []
    rank, score = (places[0] + 1, float(values[places[0]])) if places else (0, np.nan)
    scores = None
    if len(predictions) == full and predicted.min(initial=0) >= 0:
        scores = np.zeros(len(numbers), np.float32)
        scores[predicted] = values
        # What is best is all that is still needed: the rest is in `scores`.
        predicted, values = predicted[:1], values[:1]
    shown = sorted(alike(classes[label]) for label in labels)
    key, file = _digest([identity_of(pair.record), shown]), _digest([file_name(pair.record), shown])
    return _Kept(
        pair.record["image"], pair.place, key, file, labels, predicted, values, scores, rank, score, len(predictions)
    )


def file_name(record: Mapping[str, Any]) -> str:
    """The last part of the image's name, for images in another folder or service, and of a URL without its query;
    the image's identity, if its name does not tell."""
    if record.get("image_id") or not record["image"]:
        return str(identity_of(record))
    name = str(record["image"])
    if name.lstrip()[:8].lower().startswith(("http://", "https://")):
        name = name.partition("#")[0].partition("?")[0]
    return alike(ntpath.basename(name))  # also of a name that Windows has written, on whatever machine this is


def _digest(told: list[Any]) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:_KEY_CHARS]


def sum_by_label(predictions: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Labels with their scores, the best first; classes of one name are one label, and a score is 1 at the most."""
    sums: dict[str, float] = {}
    for prediction in predictions:
        sums[prediction["label"]] = min(1.0, sums.get(prediction["label"], 0.0) + prediction["score"])
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _single(kept: list[_Kept], classes: Sequence[str]) -> SingleLabel:
    score = np.array([item.score for item in kept], np.float64)
    smallest = np.finfo(np.float32).eps  # as sklearn.metrics.log_loss bounds it
    return SingleLabel(
        classes=list(classes),
        keys=[item.key for item in kept],
        labels=np.array([item.labels[0] for item in kept], np.int64),
        predicted=np.array([item.predicted[0] for item in kept], np.int64),
        rank=np.array([item.rank for item in kept], np.int64),
        confidence=np.array([item.values[0] for item in kept], np.float64),
        loss=-np.log(np.clip(score, smallest, 1)),
        depth=min(len(classes) if item.scores is not None else item.depth for item in kept),
        files=[item.file for item in kept],
    )


def _multi(kept: list[_Kept], classes: Sequence[str], threshold: float) -> MultiLabel:
    """What was not kept has no higher score than the lowest that was: unless that is below the threshold, what else
    was predicted is unknown, and no miss of the model."""
    truth, predicted = (np.zeros((len(kept), len(classes)), np.bool_) for _ in range(2))
    cut = False
    for row, item in enumerate(kept):
        truth[row, item.labels] = True
        if item.scores is not None:
            predicted[row] = item.scores >= threshold
        else:
            predicted[row, item.predicted[(item.values >= threshold) & (item.predicted >= 0)]] = True
            cut |= bool(item.values.min(initial=np.inf) >= threshold)
    keys, files = [item.key for item in kept], [item.file for item in kept]
    return MultiLabel(list(classes), keys, truth, None if cut else predicted, files)


def unknown_labels(matching: Matching, classes: Sequence[str]) -> UsageError:
    """Of labels none of which is a class."""
    seen, known = (", ".join(list(names)[:3]) for names in (matching.unknown, classes))
    return UsageError(
        f"the model knows none of the labels ({seen}, …), but {known}, …: say in a --label-map which is which"
    )
