"""How many inputs of a run may fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from deit_batch.errors import TooManyFailures
from deit_batch.io import Tally, counted, counts

FEWEST_INPUTS = 1000
"""Of a run that a percentage ends before all is tried: a smaller one costs little, and its result says what failed."""


@dataclass(frozen=True, slots=True)
class ErrorThreshold:
    """A number of inputs, or a percentage of all."""

    amount: float
    percent: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of "3" or "1%". Raises ValueError if it is neither a number from 0 up nor a percentage from 0 to 100."""
        percent = text.endswith("%")
        amount = float(text.removesuffix("%")) if percent else int(text)
        if not (0 <= amount <= 100 if percent else text.isdecimal()):
            raise ValueError(text)
        return cls(amount, percent)

    def __str__(self) -> str:
        """As it was given."""
        return f"{self.amount:g}%" if self.percent else f"{self.amount:g}"

    def allows(self, failed: int, inputs: int) -> bool:
        return failed <= (self.amount / 100 * inputs if self.percent else self.amount)

    def check(self, tally: Tally, total: int | None) -> None:
        """While the run goes on; `total` may be a guess. Raises TooManyFailures when more have failed than may, of a
        percentage in a run of FEWEST_INPUTS or more."""
        inputs = max(tally.inputs, total or 0)
        is_told = not self.percent or inputs >= FEWEST_INPUTS
        if is_told and not self.allows(tally.failed, inputs):
            raise TooManyFailures(
                f"given up: {tally.failed:,} of {counted(tally.inputs, 'input')} failed ({counts(tally.failures)}), "
                "more than --error-threshold allows. Mend the cause and run the same command again: it goes on from "
                "the first that failed"
            )
