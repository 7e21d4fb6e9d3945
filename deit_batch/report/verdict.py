"""Which of two results of the same images is better, by the images' labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from deit_batch.errors import UsageError
from deit_batch.io import counted
from deit_batch.report.summary import state_of
from deit_batch.report.truth import Labelling, find_labels

logger = logging.getLogger("deit_batch")

Judgement: TypeAlias = Literal["right", "wrong", "not judged"]
"""Of an image with a label; one without has none."""

Outcome: TypeAlias = Literal["right in both", "now right", "now wrong", "wrong in both"]
"""Of an image that both files have judged."""


class Truths(NamedTuple):
    """The labels as they are judged in the old and in the new file."""

    old: Labelling
    new: Labelling


def find_truths(
    old: Path, new: Path, labels: str | None, *, column: str | None, label_map: str | None, id: str | None
) -> Truths | None:
    """Those of another input, or else those that both files carry along; None if there are none. Raises UsageError if
    what was asked for is not there."""
    find = partial(find_labels, labels=labels, column=column, label_map=label_map, id=id)
    found = [find(old), find(new, again=True)]
    match found:
        case [None, None]:
            return None
        case [Labelling() as before, Labelling() as now]:
            if before.several != now.several:
                raise UsageError(
                    f"of {old} and {new} one has several labels an image, and the other has one: their answers can't "
                    "be judged alike"
                )
            return Truths(before, now)
    alone = old if found[0] else new
    logger.warning("only %s carries labels, so which is better is not told; name them by --labels", alone)
    return None


def require_judged(verdict: Verdict, labels: str | None) -> None:
    """Raises UsageError if no image could be judged by the `labels` that were asked for; a warning, if the records
    carry some."""
    if verdict.judged:
        return
    if labels:
        raise UsageError(
            f"--labels {labels}: none of these images is judged in both files; they are joined by the images' names, "
            "or by --id"
        )
    logger.warning("no image with a label is judged in both files, so which is better is not told")


def judge(record: Mapping[str, Any], labelling: Labelling) -> tuple[tuple[str, ...] | None, Judgement | None]:
    """The labels of a record's image, in the model's names, and whether its predictions are right."""
    unknown = labelling.unknown_images
    truth = labelling.of(record)
    if truth is None:
        return None, "not judged" if labelling.unknown_images > unknown else None
    state = state_of(record, truth, labelling.several)
    return truth, state if state in ("right", "wrong") else "not judged"


def outcome_of(before: Judgement | None, now: Judgement | None) -> Outcome | None:
    match before, now:
        case "right", "right":
            return "right in both"
        case "wrong", "right":
            return "now right"
        case "right", "wrong":
            return "now wrong"
        case "wrong", "wrong":
            return "wrong in both"
    return None


@dataclass(slots=True)
class Verdict:
    """`labels`: where they are from; how many images each outcome has; `not_judged`: those in both files that have a
    label, but of which one file has no prediction, or whose model does not know the label."""

    labels: str
    right_in_both: int = 0
    won: int = 0
    lost: int = 0
    wrong_in_both: int = 0
    not_judged: int = 0

    def count(self, before: Judgement | None, now: Judgement | None) -> None:
        match outcome_of(before, now):
            case "right in both":
                self.right_in_both += 1
            case "now right":
                self.won += 1
            case "now wrong":
                self.lost += 1
            case "wrong in both":
                self.wrong_in_both += 1
            case None:
                self.not_judged += before is not None or now is not None

    @property
    def judged(self) -> int:
        return self.right_in_both + self.won + self.lost + self.wrong_in_both

    def as_dict(self) -> dict[str, Any] | None:
        """In JSON's types, with intervals and a test as of an evaluation; None if no image is judged."""
        if not self.judged:
            return None
        from deit_batch.evaluation.shares import (
            chance_of_difference,
            difference_interval,
            is_within_noise,
            share_interval,
        )

        was, is_ = self.right_in_both + self.lost, self.right_in_both + self.won
        p_value = chance_of_difference(self.lost, self.won)
        verdict = "no difference beyond chance" if is_within_noise(p_value) else "better" if is_ > was else "worse"
        return {
            "verdict": verdict,
            "labels": self.labels,
            "judged": self.judged,
            "not_judged": self.not_judged,
            **{
                name: {
                    "right": right,
                    "accuracy": right / self.judged,
                    "interval": list(share_interval(right, self.judged)),
                }
                for name, right in (("old", was), ("new", is_))
            },
            "now_right": self.won,
            "now_wrong": self.lost,
            "change": (is_ - was) / self.judged,
            "interval": list(difference_interval(self.lost, self.won, self.judged)),
            "p_value": p_value,
        }


def verdict_in_words(accuracy: Mapping[str, Any]) -> str:
    """Of what `Verdict.as_dict` says."""
    old, new = accuracy["old"], accuracy["new"]
    head = {
        "better": "The new result is better",
        "worse": "The new result is worse",
    }.get(accuracy["verdict"], "There is no difference beyond chance")
    low, high = (100 * bound for bound in accuracy["interval"])
    rest = accuracy["not_judged"]
    return (
        f"{head}: of {counted(accuracy['judged'], 'image')} that both files have judged, {_share(new)} are right now, "
        f"{_share(old)} were before: {100 * accuracy['change']:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}; "
        f"McNemar's test, p = {accuracy['p_value']:.3g}). {accuracy['now_right']:,} are now right and "
        f"{accuracy['now_wrong']:,} now wrong."
        + (f" {rest:,} more with a label are not judged, and in no figure here." if rest else "")
    )


def _share(side: Mapping[str, Any]) -> str:
    low, high = (100 * bound for bound in side["interval"])
    return f"{100 * side['accuracy']:.2f} % ({low:.2f} to {high:.2f})"
