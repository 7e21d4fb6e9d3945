"""Out of any number of items a few: a random sample, or those that stand out."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Sample(Generic[Item]):
    """At most `size` of what is offered, each as likely as any other (Vitter, Random Sampling with a Reservoir, ACM
    Transactions on Mathematical Software 11, 1985: algorithm R); the same ones of the same items. In no order."""

    def __init__(self, size: int) -> None:
        self.kept: list[Item] = []
        self.offered = 0
        self._size = size
        self._random = random.Random(0)  # noqa: S311

    def offer(self, item: Item) -> None:
        self.offered += 1
        if len(self.kept) < self._size:
            self.kept.append(item)
        elif (place := self._random.randrange(self.offered)) < self._size:
            self.kept[place] = item


class Best(Generic[Item]):
    """The `size` of the highest value; of equal ones the first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._offered = 0
        self._heap: list[tuple[float, int, Item]] = []

    def offer(self, value: float, item: Item) -> None:
        self._offered += 1
        entry = (value, -self._offered, item)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        elif self._heap and entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def ranked(self) -> list[Item]:
        return [item for _, _, item in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def take_turns(items: Iterable[Item], kind: Callable[[Item], Hashable]) -> list[Item]:
    """The same items: the first of each kind, then the second of each, and so on, each time in their order."""
    met = Counter[Hashable]()
    turns: list[tuple[int, Item]] = []
    for item in items:
        turns.append((met[kind(item)], item))
        met[kind(item)] += 1
    return [item for _, item in sorted(turns, key=lambda turn: turn[0])]
