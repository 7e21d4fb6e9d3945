"""Batches that are read where their reader calls for it, not where the workers are given them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from deit_batch.io import Reference


class ReadAhead:
    """A stream's batches: `read` by whoever may wait for the input, taken by `next_batch`, which never waits."""

    def __init__(self, batches: Iterable[list[Reference]]) -> None:
        self._batches = iter(batches)
        self._at_hand: deque[list[Reference]] = deque()
        self._error: Exception | None = None
        self._is_read = False

    @property
    def is_to_be_read(self) -> bool:
        """Whether nothing is at hand, and the input may have more."""
        return not (self._at_hand or self._is_read)

    def read(self) -> list[Reference] | None:
        """The next batch, which is then at hand. None after the last, or after one that can't be read."""
        try:
            batch = None if self._is_read else next(self._batches, None)
        except Exception as error:
            batch, self._error = None, error
        if batch is None:
            self._is_read = True
        else:
            self._at_hand.append(batch)
        return batch

    def next_batch(self) -> list[Reference] | None:
        """None if nothing is at hand. Raises why there is no more, after all that was read before."""
        if self._at_hand:
            return self._at_hand.popleft()
        if self._error:
            raise self._error
        return None
