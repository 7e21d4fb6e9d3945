"""What runs on the machines of a cluster."""

from __future__ import annotations

import logging
import platform
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeAlias

from deit_batch.block_runner import Done, Planned
from deit_batch.blocks import MOST_AHEAD, BlockScorer
from deit_batch.errors import DecodeError
from deit_batch.input.stamps import stamp_of
from deit_batch.io import Failure, Record, Reference
from deit_batch.loading.deep_gray import DEEP_GRAY
from deit_batch.options import Options
from deit_batch.output.formats import Columns
from deit_batch.output.part import NOTHING_YET, Block, Part, convert_part, write_part
from deit_batch.output.place import Place
from deit_batch.plan import Plan, default_workers
from deit_batch.system import machine
from deit_batch.system.progress import Stopwatch

CALLS = MOST_AHEAD + 1
"""At a time: each waits for its block."""
MOMENT = 0.01
"""Seconds to wait for a block while others are under way, whose results must not wait for it."""

Found: TypeAlias = tuple[list[Record], Counter[str], int]
"""The records of a block, the seconds that each stage took since those of the last, and how many images met since then
were of deep grey."""


class Started(NamedTuple):
    """What an actor says when it is there. `ahead`: how many blocks it should have at a time."""

    plan: Planned
    device: str
    machine: str
    ahead: int
    warnings: list[str]


class Scored(NamedTuple):
    done: Done
    warnings: list[str]


class BlockActor:
    """One BlockScorer, which a thread keeps at work: blocks come in by one queue, in whatever calls, and their records
    go back to those."""

    def __init__(self, options: Options, part_size: int, cores: int) -> None:
        self._options, self._part_size, self._cores = options, part_size, cores
        self._queue: SimpleQueue[tuple[Block, Future[Found]]] = SimpleQueue()
        self._under_way: deque[Future[Found]] = deque()
        self._warnings = _Warnings()
        logging.getLogger("deit_batch").addHandler(self._warnings)

    def start(self) -> Started:
        """Returns when it is known what results depend on; then the model is loaded. Raises as Plan.of."""
        plan = Plan.of(self._options)
        if self._options.workers is None:
            plan = replace(plan, workers=default_workers(plan.device, max(self._cores, 1)))
        on_cpu = plan.device.type == "cpu"
        scorer = BlockScorer(
            plan, self._options, part_size=self._part_size, most_cores=max(self._cores, 1) if on_cpu else None
        )
        threading.Thread(target=self._work, args=(scorer,), daemon=True).start()
        about = f"{platform.node()}: {machine.describe()}"
        return Started(Planned.of(plan, self._options), plan.device.type, about, scorer.ahead, self._warnings.take())

    def score(self, block: Block, deadly: frozenset[int], partial: Place) -> Scored:
        """Writes the part of the block. `deadly`: places of images that are not to be looked at, for actors died of
        them."""
        records, seconds, deep_gray = self._score(_without(block, deadly))
        records = [
            replace(record, stamp=stamp_of(reference.location)) if place in deadly else record
            for place, (record, reference) in enumerate(zip(records, block.references, strict=True))
        ]
        stopwatch = Stopwatch()
        with stopwatch("write"):
            part = write_part(partial, block, records)
        seconds.update(stopwatch.seconds)
        return Scored(Done(part, seconds, deep_gray), self._warnings.take())

    def try_image(self, reference: Reference) -> None:
        """Returns if the process lives on."""
        self._score(Block(0, [reference], NOTHING_YET, NOTHING_YET))

    def convert(self, partial: Place, part: Part, format: str, columns: Columns) -> Part:
        return convert_part(partial, part, format, columns)

    def _score(self, block: Block) -> Found:
        result: Future[Found] = Future()
        self._queue.put((block, result))
        return result.result()

    def _work(self, scorer: BlockScorer) -> None:
        stopwatch, met = Stopwatch(), Counter[str]()
        try:
            scorer.start()
            for _, records in scorer.records(self._blocks(), stopwatch, met):
                self._under_way.popleft().set_result((records, Counter(stopwatch.seconds), met[DEEP_GRAY]))
                stopwatch.seconds.clear()
                met.clear()
        except BaseException as error:
            while True:  # whoever comes later shall hear it, too
                result = self._under_way.popleft() if self._under_way else self._queue.get()[1]
                result.set_exception(error)

    def _blocks(self) -> Iterator[Block | None]:
        while True:
            try:
                block, result = self._queue.get(timeout=MOMENT if self._under_way else None)
            except Empty:
                yield None
            else:
                self._under_way.append(result)
                yield block


def _without(block: Block, deadly: frozenset[int]) -> Block:
    failure = Failure.of(DecodeError("two actors of the cluster died of it"))
    references = [
        replace(reference, location=failure) if place in deadly else reference
        for place, reference in enumerate(block.references)
    ]
    return replace(block, references=references) if deadly else block


class _Warnings(logging.Handler):
    """What is to be said where the run was started."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._messages: SimpleQueue[str] = SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.put(record.getMessage())

    def take(self) -> list[str]:
        return [self._messages.get() for _ in range(self._messages.qsize())]
