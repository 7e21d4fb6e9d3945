"""Two files of predictions: what a new model, or a new night, changed.

An image of one is found in the other by its identity (input/identity.py), or, if none is, by its file's name; one that
is there several times, by which time it is. Of the old file a few numbers an image stay in memory; the new one is read
past them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from deit_batch import __version__
from deit_batch.errors import UsageError
from deit_batch.evaluation.judged import file_name
from deit_batch.input.identity import identity_of
from deit_batch.io import NAME_FIELDS, Tally, counted
from deit_batch.names import alike
from deit_batch.output.read import read_records, read_run_report
from deit_batch.report.chosen import Best, Sample
from deit_batch.report.truth import warn_of_missing
from deit_batch.report.verdict import Judgement, Outcome, Truths, Verdict, judge, outcome_of

logger = logging.getLogger("deit_batch")

State: TypeAlias = Literal[
    "same label", "flipped", "fails now", "failed before", "fails in both", "only in old", "only in new"
]
Json: TypeAlias = dict[str, Any]

NO_LABEL = "(no label)"
"""Of an image that was scored, but with every score below the run's threshold."""

_SETTINGS = (
    "model commit checkpoint_sha256 recipe device dtype top_k threshold pass_size input column id recursive "
    "limit".split()
)


class Answer(NamedTuple):
    """The best label of an image and its score; or that it failed, and then both say nothing. `judgement`: by the
    image's label, if that is known."""

    label: str = ""
    score: float = 0.0
    failed: bool = False
    judgement: Judgement | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any], judgement: Judgement | None = None) -> Answer:
        if "error" in record:
            return cls(failed=True, judgement=judgement)
        predictions = record["predictions"]
        if not predictions:
            return cls(NO_LABEL, judgement=judgement)
        return cls(alike(predictions[0]["label"]), float(predictions[0]["score"]), judgement=judgement)


class Change(NamedTuple):
    """One image in both files, or None on the side that lacks it. `place`: among all of them, those of the new file
    first, in its order; `after`: the new score of the label that was the best before, None if it is not among those
    that were kept; `truth`: the image's labels, if they are known."""

    place: int
    state: State
    record: Json
    before: Answer | None
    now: Answer | None
    after: float | None = None
    truth: tuple[str, ...] | None = None

    @property
    def outcome(self) -> Outcome | None:
        return outcome_of(self.before.judgement, self.now.judgement) if self.before and self.now else None

    @property
    def change(self) -> float | None:
        """Of that label's score; one that was not kept counts as 0, and so the change as a little too large."""
        if self.before is None or self.now is None or self.before.failed or self.now.failed:
            return None
        return None if self.before.label == NO_LABEL else (self.after or 0.0) - self.before.score


@dataclass(slots=True)
class Side:
    """One of the two files. `classes`: its images by best label."""

    path: Path
    tally: Tally = field(default_factory=Tally)
    classes: Counter[str] = field(default_factory=Counter)

    def count(self, record: Mapping[str, Any], answer: Answer) -> None:
        self.tally.count(record)
        if not answer.failed:
            self.classes[answer.label] += 1

    def as_dict(self) -> Json:
        tally = self.tally
        return {
            "file": str(self.path),
            "inputs": tally.inputs,
            "scored": tally.scored,
            "failed": tally.failed,
            "failures": dict(tally.failures),
        }


@dataclass(slots=True)
class Comparison:
    """`runs`: the two run reports, where there are any; `flips`: images by the label before and now; `largest`: the
    largest changes of score; `verdict`: which file is better, if labels are known, and then of the images that are now
    wrong, and of those that are now right, those of the highest score; `changed`: every image that is not as it was (a
    random sample, if those are many; `sampled` of them) and those that stand out, by place."""

    old: Side
    new: Side
    settings: dict[str, list[Any]]
    states: Counter[State] = field(default_factory=Counter)
    flips: Counter[tuple[str, str]] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    largest: list[Change] = field(default_factory=list)
    changed: list[Change] = field(default_factory=list)
    sampled: int = 0
    runs: Sequence[Json | None] = (None, None)
    verdict: Verdict | None = None
    now_wrong: list[Change] = field(default_factory=list)
    now_right: list[Change] = field(default_factory=list)

    @property
    def standing_out(self) -> list[Change]:
        return [*self.now_wrong, *self.now_right, *self.largest]

    @property
    def compared(self) -> int:
        """Images in both of which at least one run could score them."""
        return sum(self.states[state] for state in ("same label", "flipped", "fails now", "failed before"))

    @property
    def agreement(self) -> float | None:
        """The share of those that have the same best label: that an image fails in one run alone is no agreement. None
        if there are none."""
        return self.states["same label"] / self.compared if self.compared else None

    @property
    def agreement_of_old(self) -> float | None:
        """The same, where an image that the new file lacks is no agreement either: what a gate is about, for no gate is
        passed by leaving images out."""
        images = self.compared + self.states["only in old"]
        return self.states["same label"] / images if self.compared else None

    def as_dict(self, fail_under: float | None) -> Json:
        """In JSON's types. `passed`: the agreement, of all images of the old file, is no lower than `fail_under`, if
        there is that."""
        gated = self.agreement_of_old
        names = sorted({*self.old.classes, *self.new.classes})
        lost, gained = Counter[str](), Counter[str]()
        for (before, now), images in self.flips.items():
            lost[before] += images
            gained[now] += images
        return {
            "deit_batch": __version__,
            "old": self.old.as_dict(),
            "new": self.new.as_dict(),
            "settings": {name: {"old": old, "new": new} for name, (old, new) in self.settings.items()},
            "images": {state.replace(" ", "_"): self.states[state] for state in get_args(State)},
            "compared": self.compared,
            "agreement": self.agreement,
            "accuracy": self.verdict and self.verdict.as_dict(),
            "fail_under": fail_under,
            "passed": fail_under is None or (gated is not None and gated >= fail_under),
            "flips": [
                {"before": before, "now": now, "images": images} for (before, now), images in self.flips.most_common()
            ],
            "classes": [
                {
                    "label": name,
                    "old": self.old.classes[name],
                    "new": self.new.classes[name],
                    "kept": self.kept[name],
                    "lost": lost[name],
                    "gained": gained[name],
                }
                for name in names
            ],
            "largest_changes": [_as_dict(change) for change in self.largest],
        }


def _as_dict(change: Change) -> Json:
    def answer(given: Answer | None) -> Json | None:
        return None if given is None or given.failed else {"label": given.label, "score": given.score}

    return {
        "index": change.record["index"],
        "image": change.record["image"],
        "before": answer(change.before),
        "now": answer(change.now),
        "score_now_of_label_before": change.after,
        "change": change.change,
    }


class NoImageInBothError(UsageError):
    """Nothing can be compared."""


def compare_in_any_folder(
    old: Path, new: Path, find_truths: Callable[[], Truths | None], *, most_rows: int, most_shown: int
) -> Comparison:
    """By the images' names, or, if no image is in both, by those of their files. Raises as `compare`."""
    truths = find_truths()
    try:
        return compare(old, new, truths, most_rows=most_rows, most_shown=most_shown)
    except NoImageInBothError:
        names = _names_of_files(old, new)
        # Anew, for each label is given but once; where there are none, that has been said.
        compared = compare(old, new, truths and find_truths(), most_rows=most_rows, most_shown=most_shown, key=names)
        logger.warning(
            "no image is both in %s and in %s by its whole name: %s joined by their files' names",
            *(old, new, counted(compared.compared, "image is", "images are")),
        )
        return compared


def compare(
    old: Path,
    new: Path,
    truths: Truths | None = None,
    *,
    most_rows: int,
    most_shown: int,
    key: Callable[[Json], str] | None = None,
) -> Comparison:
    """`key`: what is the same of the same image, instead of its identity. Raises NoImageInBothError, and UsageError if
    one is no file of predictions."""
    runs = [read_run_report(path) for path in (old, new)]
    comparison = Comparison(Side(old), Side(new), _different(runs), runs=runs)
    comparison.verdict = Verdict(truths.new.origin) if truths else None
    sample = Sample[Change](most_rows)
    largest, now_wrong, now_right = (Best[Change](most_shown) for _ in range(3))
    for change in _changes(comparison, truths, key or _key):
        comparison.states[change.state] += 1
        if comparison.verdict and change.before and change.now:
            comparison.verdict.count(change.before.judgement, change.now.judgement)
            if change.outcome == "now wrong":
                now_wrong.offer(change.now.score, change)
            elif change.outcome == "now right":
                now_right.offer(change.now.score, change)
        if change.state == "same label" and change.now:
            comparison.kept[change.now.label] += 1
        elif change.state == "flipped" and change.before and change.now:
            comparison.flips[change.before.label, change.now.label] += 1
        if change.change:
            largest.offer(abs(change.change), change)
        if change.state != "same label":
            sample.offer(change)
    if comparison.verdict and truths:
        warn_of_missing(truths.new)
    comparison.largest = largest.ranked()
    comparison.now_wrong, comparison.now_right = now_wrong.ranked(), now_right.ranked()
    shown = {change.place: change for change in (*sample.kept, *comparison.standing_out)}
    comparison.sampled = len(sample.kept)
    comparison.changed = [shown[place] for place in sorted(shown)]
    if not (comparison.compared or comparison.states["fails in both"]):
        raise NoImageInBothError(
            f"no image is both in {old} and in {new}: images are joined by their names, or by --id if both runs had it"
        )
    return comparison


def _different(runs: Sequence[Mapping[str, Any] | None]) -> dict[str, list[Any]]:
    """Of what the scores depend on, what is not the same in both runs; nothing, if one is not known."""
    settings = [run["settings"] for run in runs if run]
    if len(settings) < len(runs):
        return {}
    values = {name: [each.get(name) for each in settings] for name in _SETTINGS}
    return {name: [before, now] for name, (before, now) in values.items() if before != now}


def _changes(comparison: Comparison, truths: Truths | None, key: Callable[[Json], str]) -> Iterator[Change]:
    """Of every image in either file: first those of the new one, in order, then those that are in the old one alone."""
    before, places = _Answers(key), count()
    for record in read_records(comparison.old.path):
        _, judgement = judge(record, truths.old) if truths else (None, None)
        answer = Answer.of(record, judgement)
        comparison.old.count(record, answer)
        before.add(record, answer)
    for record in read_records(comparison.new.path):
        truth, judgement = judge(record, truths.new) if truths else (None, None)
        answer = Answer.of(record, judgement)
        comparison.new.count(record, answer)
        yield _change(next(places), record, before.take(record), answer)._replace(truth=truth)
    for index, image, answer in before.left():
        yield Change(next(places), "only in old", {"index": index, "image": image}, answer, None)


def _change(place: int, record: Json, before: Answer | None, now: Answer) -> Change:
    slim: Json = {name: record[name] for name in ("index", *NAME_FIELDS, "error") if name in record}
    if before is None:
        return Change(place, "only in new", slim, None, now)
    after = next((each["score"] for each in record["predictions"] if alike(each["label"]) == before.label), None)
    return Change(place, _state(before, now), slim, before, now, after)


def _state(before: Answer, now: Answer) -> State:
    if before.failed or now.failed:
        return "fails in both" if before.failed and now.failed else "fails now" if now.failed else "failed before"
    return "same label" if before.label == now.label else "flipped"


class _Answers:
    """The old file's, until they are asked for. A label is one string, however many images have it."""

    def __init__(self, key: Callable[[Json], str]) -> None:
        self._key = key
        self._answers: dict[str, tuple[int, str | None, Answer]] = {}
        self._added: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()
        self._labels: dict[str, str] = {}

    def add(self, record: Json, answer: Answer) -> None:
        key = self._key(record)
        if key in self._answers:
            self._added[key] += 1
            key = _again(key, self._added[key])
        answer = answer._replace(label=self._labels.setdefault(answer.label, answer.label))
        self._answers[key] = (record["index"], record["image"], answer)

    def take(self, record: Json) -> Answer | None:
        key = self._key(record)
        found = self._answers.pop(key, None)
        if found is None and key in self._added:
            self._taken[key] += 1
            found = self._answers.pop(_again(key, self._taken[key]), None)
        return found[2] if found else None

    def left(self) -> Iterator[tuple[int, str | None, Answer]]:
        yield from self._answers.values()


def _key(record: Mapping[str, Any]) -> str:
    """A row without any name has its place."""
    return identity_of(record) or str(record["index"])


def _names_of_files(old: Path, new: Path) -> Callable[[Json], str]:
    """By its file's name an image is known if no other of the same result has it."""
    twice: set[str] = set()
    for path in (old, new):
        twice.update(name for name, number in Counter(map(file_name, read_records(path))).items() if number > 1)

    def key(record: Json) -> str:
        name = file_name(record)
        return _key(record) if name in twice or not record["image"] else name

    return key


def _again(key: str, time: int) -> str:
    return f"{key} {time}"
