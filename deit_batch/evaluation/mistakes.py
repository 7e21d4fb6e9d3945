"""Where the model was wrong and the surest of it; and the pictures of those images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from deit_batch.evaluation.judged import Judged, SingleLabel
from deit_batch.io import Failure, Reference, clean
from deit_batch.limits import Limits
from deit_batch.loading.thumbnails import thumbnails

MOST = 24


@dataclass(frozen=True, slots=True)
class Mistake:
    """`place`: the row of the labelled input."""

    image: str
    place: int
    predicted: str
    label: str
    score: float


def most_confident_mistakes(judged: Judged) -> list[Mistake]:
    """The surest first. Where images have several labels: a label that is not the image's, with a high score."""
    outcomes = judged.outcomes
    if isinstance(outcomes, SingleLabel):
        wrong = np.flatnonzero(outcomes.labels != outcomes.predicted)
        order = wrong[np.argsort(-outcomes.confidence[wrong], kind="stable")][:MOST].tolist()
        found = [(row, int(outcomes.predicted[row]), float(outcomes.confidence[row])) for row in order]
        labels = {row: outcomes.classes[outcomes.labels[row]] for row in order}
    else:
        if judged.scores is None or outcomes.predicted is None:
            return []
        made_up = np.where(outcomes.predicted & ~outcomes.truth, judged.scores, -1.0)
        best = made_up.argmax(1)
        values = made_up[np.arange(len(best)), best]
        order = [row for row in np.argsort(-values, kind="stable")[:MOST].tolist() if values[row] >= 0]
        found = [(row, int(best[row]), float(values[row])) for row in order]
        labels = {
            row: " ".join(outcomes.classes[n] for n in np.flatnonzero(outcomes.truth[row])) or "(none)" for row in order
        }
    return [
        Mistake(
            clean(judged.images[row] or "(inline)"), judged.places[row], outcomes.classes[predicted], labels[row], score
        )
        for row, predicted, score in found
    ]


def thumbnails_of(
    mistakes: Sequence[Mistake], references: Iterable[Reference], limits: Limits
) -> list[NDArray[np.uint8] | None]:
    """Of each its thumbnail, looked up in the input once more; None for one that can't be had."""
    wanted = {mistake.place for mistake in mistakes}
    found = (reference for reference in references if reference.index in wanted)
    seen = {
        reference.index: None if isinstance(picture, Failure) else picture
        for reference, picture in thumbnails(islice(found, len(wanted)), limits)
    }
    return [seen.get(mistake.place) for mistake in mistakes]
