"""A model and the workers that decode for it: made once, for one stream of images after another."""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from deit_batch.errors import UsageError
from deit_batch.io import FeatureName, Record, Reference
from deit_batch.loading.deep_gray import DEEP_GRAY
from deit_batch.options import Options
from deit_batch.output.incremental import PredictionCache
from deit_batch.plan import Plan
from deit_batch.predictions import score_batch
from deit_batch.system.progress import Stopwatch

if TYPE_CHECKING:
    from torch import Tensor

    from deit_batch.loading.loader import Decoded, Loader
    from deit_batch.loading.read_ahead import ReadAhead
    from deit_batch.model.cards import Cards

    Pass: TypeAlias = tuple[list[Reference], Decoded, Callable[[], Tensor]]

BATCHES_A_CARD = 2
"""Under way: one that it computes, and the next."""


class Scorer:
    """Takes streams of batches one after another, or several at a time and from several threads, which then take turns
    batch by batch; between them, each reads its own input. The workers and the model start with the first, or by
    `start`."""

    def __init__(self, plan: Plan, options: Options, *, digests: bool = False, most_cores: int | None = None) -> None:
        """`digests`: of each image's bytes, for a cache. `most_cores`: for the model, of those that are granted."""
        from deit_batch.loading.loader import Loader

        self._plan, self._options, self._most_cores = plan, options, most_cores
        self._loader = Loader(
            plan.recipe,
            options.limits,
            workers=plan.workers,
            pin_memory=plan.device.type == "cuda",
            digests=digests,
            batch_size=plan.batch_size,
            batches_at_once=BATCHES_A_CARD * len(plan.devices),
        )
        self._classifiers: dict[tuple[FeatureName, ...] | None, Cards] = {}
        self._left: deque[Pass] = deque()  # begun for streams that were not read to their end
        self._lock = threading.RLock()
        self._is_closed = False
        self._process = os.getpid()
        # The loader is part of a cycle: without this, both would stay until the garbage collector looks.
        weakref.finalize(self, _let_go, self._loader, self._classifiers, self._process).atexit = False

    def start(self) -> None:
        """Returns when the model is loaded; meanwhile the workers start. Raises CheckpointError if its weights do not
        fit."""
        with self._turn():
            self._loader.start()
            self._load(self._options.features)

    def scored(
        self,
        batches: Iterable[list[Reference]],
        options: Options | None = None,
        *,
        stopwatch: Stopwatch | None = None,
        cache: PredictionCache | None = None,
        met: Counter[str] | None = None,
    ) -> Generator[list[Record], None, None]:
        """The records of each batch, in order. The next batch is being scored while the records of one are made and
        written; if the model is not there yet, the first images are decoded while it loads. An empty batch says that
        there is no other for the moment: it has no records, and those of all before it come without waiting for the
        next. In `met`, images of deep grey are counted. `options`, if they are others than the scorer's, say what comes
        out of the scores, nothing else.

        The batches are read between the turns: they may come out of what this scorer finds, in this thread or another,
        and whoever waits for them keeps nobody from a turn.

        Raises UsageError if the scorer is closed, or another process's."""
        from deit_batch.loading.read_ahead import ReadAhead

        self._require_open()
        stopwatch = stopwatch or Stopwatch()
        ahead = ReadAhead(batches)
        steps = self._steps(ahead, options or self._options, stopwatch, cache, met)
        try:
            with stopwatch("wait for images"):
                self._loader.read_first(ahead)
            while True:
                if ahead.is_to_be_read:
                    with stopwatch("wait for images"):
                        ahead.read()
                with self._turn():
                    records = next(steps, None)
                if records is None:
                    return
                if records:
                    yield records
        finally:
            if self._is_of_this_process:
                with self._lock:
                    steps.close()

    def close(self) -> None:
        if not self._is_of_this_process:
            return
        with self._lock:
            self._is_closed = True
            _let_go(self._loader, self._classifiers, self._process)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        from deit_batch.model.engines import one_thread_beside

        self._require_open()
        with self._lock:
            self._require_open()
            with one_thread_beside(self._plan.device):
                yield

    @property
    def _is_of_this_process(self) -> bool:
        """Not so in a process that was forked from the scorer's: it would take results out of that one's queues, and
        wait for a lock that a thread held which it doesn't have."""
        return os.getpid() == self._process

    def _require_open(self) -> None:
        if not self._is_of_this_process:
            raise UsageError("the model was loaded in another process, and this was forked from it: load it here")
        if self._is_closed:
            raise UsageError("the model is closed: load it again")

    def _load(self, features: tuple[FeatureName, ...] | None) -> Cards:
        if features not in self._classifiers:
            self._classifiers[features] = replace(self._plan, features=features).load(self._most_cores)
        return self._classifiers[features]

    def _steps(
        self,
        batches: ReadAhead,
        options: Options,
        stopwatch: Stopwatch,
        cache: PredictionCache | None,
        met: Counter[str] | None,
    ) -> Generator[list[Record], None, None]:
        """No records where the next batch is to be read."""
        from deit_batch.loading.loader import TO_BE_READ

        self._give_back_left()
        with closing(self._loader.stream(batches)) as stream:
            with stopwatch("load"):
                classifier = self._load(options.features)
            under_way: deque[Pass] = deque()

            def finished() -> list[Record]:
                references, decoded, result = under_way[0]
                with stopwatch("wait for scores"):
                    scores = result()
                under_way.popleft()
                self._loader.give_back(decoded)
                records = score_batch(references, decoded, scores, self._plan.checkpoint.labels, options)
                if cache:
                    cache.remember(references, decoded.digests, records)
                return records

            # One more with each that is through: the first records are not to wait until more batches, of many more
            # images, are decoded, one for each card.
            allowed = 1
            try:
                while True:
                    with stopwatch("wait for images"):
                        item = next(stream, None)
                    if item is None:
                        break
                    if item is TO_BE_READ:
                        yield []
                        continue
                    references, decoded = item
                    if not references:
                        while under_way:
                            yield finished()
                        continue
                    if met is not None:
                        met[DEEP_GRAY] += decoded.deep_gray
                    under_way.append((references, decoded, classifier.submit(decoded.pixels)))
                    if len(under_way) == allowed:
                        yield finished()
                        allowed = min(allowed + 1, BATCHES_A_CARD * len(self._plan.devices))
                while under_way:
                    yield finished()
            finally:
                self._left.extend(under_way)

    def _give_back_left(self) -> None:
        """The model may still read those pixels."""
        while self._left:
            _, decoded, result = self._left.popleft()
            with suppress(Exception):
                result()
            self._loader.give_back(decoded)


def _let_go(loader: Loader, classifiers: dict[tuple[FeatureName, ...] | None, Cards], process: int) -> None:
    """Ends the workers, and the model's threads, if they are of this process."""
    if os.getpid() == process:
        loader.close()
        for classifier in classifiers.values():
            classifier.close()
        classifiers.clear()
