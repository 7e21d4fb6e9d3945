"""How sure a model was: images counted by their best score, as a page shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

SCALE = 10_000
"""Scores are whole numbers of ten-thousandths: what a page shows of them, in half the bytes."""


class Kept(NamedTuple):
    """Images from a threshold up; those of them that were judged against a label, and those that were right."""

    images: int
    judged: int
    right: int


def _zeros() -> list[int]:
    return [0] * (SCALE + 1)


@dataclass(slots=True)
class Confidence:
    """Each list has a count for every score that a page can show, so that its table finds what is counted here.
    `without`: images that were scored, but have no label from the run's threshold up, and so no score that is known."""

    images: list[int] = field(default_factory=_zeros)
    judged: list[int] = field(default_factory=_zeros)
    right: list[int] = field(default_factory=_zeros)
    without: int = 0

    def add(self, score: float, state: str) -> None:
        step = round(score * SCALE)
        self.images[step] += 1
        self.judged[step] += state in ("right", "wrong")
        self.right[step] += state == "right"

    @property
    def total(self) -> int:
        """All images that were scored: what shares are of."""
        return sum(self.images) + self.without

    def kept_from(self, threshold: float) -> Kept:
        step = round(threshold * SCALE)
        return Kept(sum(self.images[step:]), sum(self.judged[step:]), sum(self.right[step:]))

    def bins(self, number: int) -> list[int]:
        """Images in so many steps of equal width; the last one has the score 1, too."""
        starts = [SCALE * step // number for step in range(number)]
        return [sum(self.images[start:end]) for start, end in zip(starts, [*starts[1:], SCALE + 1], strict=True)]
