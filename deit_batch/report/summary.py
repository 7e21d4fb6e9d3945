"""A file of predictions, read once from start to end, to all that a page says of it. What stays in memory is bounded:
counts, the records that stand out, and as many rows as the page's table may hold."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal, NamedTuple, TypeAlias

from deit_batch.evaluation.judged import sum_by_label
from deit_batch.io import NAME_FIELDS, Tally
from deit_batch.report.chosen import Best, Sample, take_turns
from deit_batch.report.confidence import Confidence
from deit_batch.report.table import Bar

MOST_LABELS = 5
"""Of an image's predictions that a page shows."""

OF_EACH_CLASS = 3
"""Pictures of the surest of a class's images, and as many of the least sure."""

_CANDIDATES = 10
"""For each place in a list of images that stand out, so that it need not be of one class."""

MOST_REASONS = 200
"""Different failures that are told apart; each further one counts as one of its type."""

PREDICTED_FROM = 0.5
"""Where images have several labels: the score from which one counts as predicted."""

Json: TypeAlias = dict[str, Any]
Truth: TypeAlias = Callable[[Mapping[str, Any]], Sequence[str] | None]
"""The labels of a record's image, in the model's own names where it has them; None if there are none."""


State: TypeAlias = Literal["failed", "no label", "scored", "right", "wrong"]
"""Of a record; "no label": all are below the run's threshold."""


class Seen(NamedTuple):
    """A record without its predictions, and the best of those; its place in the file, from 0; its image's labels."""

    place: int
    record: Json
    bars: Sequence[Bar]
    truth: Sequence[str] | None
    state: State


class Reason(NamedTuple):
    """Why images failed; `message` is empty where those of a type are no longer told apart."""

    type: str
    message: str


@dataclass(slots=True)
class Confusions:
    """`labelled`: all images with labels, those included that `failed` or are `without_prediction`; `judged`: the
    others, as an evaluation counts them; `taken`: how many of one label (the first) were taken for another; where an
    image may have several, `found`, `missed` and `made_up` count by label instead."""

    several: bool
    labelled: int = 0
    right: int = 0
    failed: int = 0
    without_prediction: int = 0
    taken: Counter[tuple[str, str]] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    made_up: Counter[str] = field(default_factory=Counter)

    @property
    def judged(self) -> int:
        return self.labelled - self.failed - self.without_prediction

    def add(self, truth: Sequence[str], predictions: Sequence[Json], state: State) -> None:
        self.labelled += 1
        self.right += state == "right"
        self.failed += state == "failed"
        self.without_prediction += state == "no label"
        if state not in ("right", "wrong"):
            return
        if not self.several:
            self.taken[truth[0], _best(predictions)] += 1
            return
        labels, predicted = set(truth), _predicted(predictions)
        self.found.update(labels & predicted)
        self.missed.update(labels - predicted)
        self.made_up.update(predicted - labels)


def _is_right(truth: Sequence[str], predictions: Sequence[Json], *, several: bool) -> bool:
    """Whether the best label is the image's; where it may have several, whether all are found and none is made up."""
    return set(truth) == _predicted(predictions) if several else _best(predictions) == truth[0]


def _best(predictions: Iterable[Json]) -> str:
    """Classes of one name are one."""
    return next(iter(sum_by_label(predictions)))


def _predicted(predictions: Iterable[Json]) -> set[str]:
    return {label for label, score in sum_by_label(predictions).items() if score >= PREDICTED_FROM}


@dataclass(slots=True)
class ClassPictures:
    """Those of a class's images that are shown: no image is in both lists, and each begins with its extreme."""

    surest: list[Seen]
    least_sure: list[Seen]


class _Extremes:
    """Of one class's images."""

    def __init__(self) -> None:
        self._most, self._least = Best[Seen](OF_EACH_CLASS), Best[Seen](OF_EACH_CLASS)

    def offer(self, score: float, seen: Seen) -> None:
        self._most.offer(score, seen)
        self._least.offer(-score, seen)

    def pictures(self) -> ClassPictures:
        """Of few images a half each, so that the least sure of three is not among the surest."""
        most = self._most.ranked()
        shown = {seen.place for seen in most}
        least = [seen for seen in self._least.ranked() if seen.place not in shown]
        from_the_surest = [*most, *reversed(least)]
        half = (len(from_the_surest) + 1) // 2
        return ClassPictures(from_the_surest[:half], from_the_surest[half:][::-1])


@dataclass(slots=True)
class Summary:
    """`classes`: images by best label; `confidence`: those by best score; `by_class`: which images of a class are
    shown, by its label; `standing_out`: all of which pictures are wanted, those first that tell the most; `rows`: at
    most as many as were asked for, a random sample of the file where it has more, and those that stand out."""

    tally: Tally = field(default_factory=Tally)
    classes: Counter[str] = field(default_factory=Counter)
    confidence: Confidence = field(default_factory=Confidence)
    reasons: Counter[Reason] = field(default_factory=Counter)
    confusions: Confusions | None = None
    least_sure: list[Seen] = field(default_factory=list)
    by_class: dict[str, ClassPictures] = field(default_factory=dict)
    mistakes: list[Seen] = field(default_factory=list)
    standing_out: list[Seen] = field(default_factory=list)
    rows: list[Seen] = field(default_factory=list)


def summarise(
    records: Iterable[Json],
    *,
    truth: Truth | None = None,
    several: bool = False,
    most_rows: int,
    most_shown: int,
    most_pictures: int = 0,
) -> Summary:
    """`truth`: the labels, if there are any; `several`: whether an image may have more than one; `most_shown`: how many
    images of each kind stand out: of the lowest score, and mistakes of the highest; `most_pictures`: how many stand out
    together with some of each class (of so many classes, at most: the first that are met)."""
    summary = Summary(confusions=Confusions(several) if truth else None)
    sample = Sample[Seen](most_rows)
    least, mistakes = (Best[Seen](most_shown * _CANDIDATES) for _ in range(2))
    extremes: dict[str, _Extremes] = {}
    for place, record in enumerate(records):
        bars = tuple(Bar(sys.intern(each["label"]), each["score"]) for each in record["predictions"][:MOST_LABELS])
        labels = truth(record) if truth else None
        seen = Seen(place, _slim(record), bars, labels, state_of(record, labels, several))
        sample.offer(seen)
        summary.tally.count(record)
        predictions = record["predictions"]
        if summary.confusions and labels is not None:
            summary.confusions.add(labels, predictions, seen.state)
        if "error" in record:
            _count_failure(summary.reasons, record)
            continue
        if not predictions:
            summary.confidence.without += 1
            continue
        best = predictions[0]
        summary.classes[best["label"]] += 1
        summary.confidence.add(best["score"], seen.state)
        least.offer(-best["score"], seen)
        if len(extremes) < most_pictures or best["label"] in extremes:
            extremes.setdefault(best["label"], _Extremes()).offer(best["score"], seen)
        if seen.state == "wrong":
            mistakes.offer(best["score"], seen)
    summary.least_sure = _varied(least.ranked(), most_shown, lambda seen: seen.bars[0].label)
    summary.mistakes = _varied(mistakes.ranked(), most_shown, lambda seen: (*(seen.truth or ()), seen.bars[0].label))
    ranked = [name for name, _ in summary.classes.most_common() if name in extremes]
    summary.by_class = {name: extremes[name].pictures() for name in ranked}
    of_classes = take_turns(_by_turns(summary.by_class.values()), lambda seen: seen.bars[0].label)
    summary.standing_out = [*summary.mistakes, *summary.least_sure, *of_classes][:most_pictures]
    shown = {seen.place: seen for seen in (*sample.kept, *summary.standing_out)}
    summary.rows = [shown[place] for place in sorted(shown)]
    return summary


def _by_turns(classes: Iterable[ClassPictures]) -> Iterator[Seen]:
    """Of each class the surest, the least sure, the second surest, and so on."""
    for shown in classes:
        for pair in zip_longest(shown.surest, shown.least_sure):
            yield from filter(None, pair)


def _varied(ranked: list[Seen], number: int, kind: Callable[[Seen], Hashable]) -> list[Seen]:
    """So many of them, in their order: one of each kind rather than ten of one."""
    chosen = {seen.place for seen in take_turns(ranked, kind)[:number]}
    return [seen for seen in ranked if seen.place in chosen]


def state_of(record: Mapping[str, Any], truth: Sequence[str] | None, several: bool) -> State:
    predictions = record["predictions"]
    if "error" in record:
        return "failed"
    if not (predictions or several):
        return "no label"
    if truth is None:
        return "scored" if predictions else "no label"
    return "right" if _is_right(truth, predictions, several=several) else "wrong"


def _slim(record: Json) -> Json:
    return {name: record[name] for name in ("index", *NAME_FIELDS, "error") if name in record}


def reason_of(record: Json) -> Reason:
    """Of a failed record. Where the message names the image, too, it is the same for all."""
    image, error = record["image"], record["error"]
    return Reason(error["type"], error["message"].replace(image, "…") if image and len(image) > 2 else error["message"])


def _count_failure(reasons: Counter[Reason], record: Json) -> None:
    reason = reason_of(record)
    reasons[reason if reason in reasons or len(reasons) < MOST_REASONS else Reason(reason.type, "")] += 1
