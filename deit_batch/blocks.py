"""Blocks of references in, their records out: what a process does that scores for a result in parts, be it the only one
or an actor of a cluster."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from typing import TypeAlias

from deit_batch.io import Record, Reference
from deit_batch.options import Options
from deit_batch.output.part import Block
from deit_batch.plan import Plan
from deit_batch.scorer import BATCHES_A_CARD, Scorer
from deit_batch.system.progress import Stopwatch

BlockRecords: TypeAlias = tuple[Block, list[Record]]

MOST_AHEAD = 16


class BlockScorer:
    """A scorer whose batches are cut at the ends of blocks."""

    def __init__(self, plan: Plan, options: Options, *, part_size: int, most_cores: int | None = None) -> None:
        from deit_batch.loading.loader import PREFETCH_FACTOR, TASK_IMAGES

        plan = replace(plan, batch_size=min(plan.batch_size, part_size))
        self._batch_size = plan.batch_size
        self._scorer = Scorer(plan, options, most_cores=most_cores)
        # Those that the cards compute, and one more for each; those that workers read ahead; and the block that all of
        # this lies in.
        read_ahead = plan.workers * PREFETCH_FACTOR * TASK_IMAGES
        images = self._batch_size * (BATCHES_A_CARD + 1) * len(plan.devices) + read_ahead
        self.ahead = min(1 + -(-images // part_size), MOST_AHEAD)
        """Blocks that it should have at a time, so that nothing waits for the next."""

    def start(self) -> None:
        """As of Scorer: returns when the model is loaded."""
        self._scorer.start()

    def records(
        self, blocks: Iterable[Block | None], stopwatch: Stopwatch, met: Counter[str]
    ) -> Generator[BlockRecords, None, None]:
        """Each block with its records, in order. None among the blocks: there is no other for the moment."""
        from deit_batch.loading.loader import batched

        under_way: deque[Block] = deque()

        def batches() -> Iterator[list[Reference]]:
            for block in blocks:
                if block is None:
                    yield []
                else:
                    under_way.append(block)
                    yield from batched(block.references, self._batch_size)

        found: list[Record] = []
        for records in self._scorer.scored(batches(), stopwatch=stopwatch, met=met):
            found += records
            if len(found) == len(under_way[0].references):
                yield under_way.popleft(), found
                found = []

    def close(self) -> None:
        self._scorer.close()
