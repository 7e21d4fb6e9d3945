"""Scores of a batch to its records: the best labels of each image, or its features by name, or why it has none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from deit_batch.errors import ScoreError
from deit_batch.io import Failure, FeatureName, Features, Prediction, Record, Reference, Wanted

if TYPE_CHECKING:
    from torch import Tensor

    from deit_batch.loading.loader import Decoded
    from deit_batch.options import Options


def score_batch(
    references: Sequence[Reference], decoded: Decoded, scores: Tensor, labels: Sequence[str], options: Options
) -> list[Record]:
    """One record for each reference: predictions for what was decoded or is known from earlier, the failure for what
    is neither. `scores`: float32 [images that were decoded, classes], or [..., features, width] where features are
    asked for, which then stand for the predictions."""
    found: Iterator[list[Prediction] | Features | Failure]
    if options.features:
        found = name_features(scores, options.features)
    else:
        found = top_predictions(scores, labels, *widest_bounds([each.wanted for each in references], options))
    places = count()
    embedded = bool(options.features)

    def record(reference: Reference) -> Record:
        earlier = reference.earlier
        if earlier and reference.is_settled:
            return Record.of(reference, earlier.predictions, embedded=embedded, stamp=earlier.stamp)
        place = next(places)
        settled = decoded.settled.get(place)
        result: list[Prediction] | Features | Failure
        if isinstance(settled, Failure):
            result = settled
        elif settled == "same" and earlier:
            result = earlier.predictions
        else:
            result = as_wanted(next(found), reference.wanted, options)
        return Record.of(reference, result, embedded=embedded, stamp=decoded.stamps[place])

    return [record(reference) for reference in references]


def widest_bounds(wanted: Sequence[Wanted | None], options: Options) -> tuple[int | None, float]:
    """`top_k` and `threshold` that leave in what is wanted of any image."""
    if not any(wanted):
        return _bounds(None, options)
    bounds = [_bounds(one, options) for one in wanted]
    most = [top_k for top_k, _ in bounds if top_k is not None]
    return max(most) if len(most) == len(bounds) else None, min(threshold for _, threshold in bounds)


def _bounds(wanted: Wanted | None, options: Options) -> tuple[int | None, float]:
    """`top_k` and `threshold` of an image whose request may ask for its own."""
    top_k, threshold = (wanted.top_k, wanted.threshold) if wanted else (None, None)
    return options.top_k if top_k is None else top_k, options.threshold if threshold is None else threshold


Result = TypeVar("Result", bound="list[Prediction] | Features | Failure")


def as_wanted(result: Result, wanted: Wanted | None, options: Options) -> Result:
    """Of predictions that may be more than an image's request wants, those that it does."""
    if wanted is None or not isinstance(result, list):
        return result
    top_k, threshold = _bounds(wanted, options)
    return [one for one in result if one["score"] >= threshold][:top_k]  # type: ignore[return-value]


def top_predictions(
    scores: Tensor, labels: Sequence[str], top_k: int | None, threshold: float
) -> Iterator[list[Prediction] | Failure]:
    """Of each image its labels, best first; equal scores in the order of the classes. `scores`: float32 [n, classes].
    An image with a score that is not finite is a failure."""
    finite = scores.sum(-1).isfinite().tolist()  # of numbers in 0..1: it is, unless one of them is not
    order = _best_classes(scores, top_k)
    for well, numbers, values in zip(finite, order.tolist(), scores.gather(-1, order).tolist(), strict=True):
        if well:
            pairs = zip(numbers, values, strict=True)
            yield [{"label": labels[number], "score": score} for number, score in pairs if score >= threshold]
        else:
            yield Failure.of(
                ScoreError("the model gave scores that are not finite; if --dtype is float16, try float32")
            )


def _best_classes(scores: Tensor, top_k: int | None) -> Tensor:
    """int64 [n, top_k]: `scores.argsort(descending=True, stable=True)[:, :top_k]`, but all classes are sorted only of
    images where two scores that matter are equal: `topk` says nothing of the order of those."""
    if top_k is None or top_k >= scores.shape[-1]:
        return scores.argsort(descending=True, stable=True)
    best, order = scores.topk(top_k + 1)
    order = order[:, :top_k]
    tied = (best[:, 1:] == best[:, :-1]).any(-1)
    if tied.any():
        order[tied] = scores[tied].argsort(descending=True, stable=True)[:, :top_k]
    return order


def name_features(features: Tensor, names: Sequence[FeatureName]) -> Iterator[Features | Failure]:
    """Of each image its features by their names. `features`: float32 [n, len(names), width]. An image of which one is
    not finite is a failure."""
    finite = features.isfinite().flatten(1).all(-1).tolist()
    for well, vectors in zip(finite, features.numpy(), strict=True):
        if well:
            yield dict(zip(names, vectors, strict=True))
        else:
            yield Failure.of(
                ScoreError("the model gave features that are not finite; if --dtype is float16, try float32")
            )
