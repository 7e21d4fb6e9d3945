"""References to batches of pixels: a PyTorch DataLoader whose "sampler" is the lazily read input.

A batch is decoded in tasks of a few images each, so that all workers have something to do whatever its size. DataLoader
hands each task that the batch sampler yields to a worker (worker.py), and gives the results back in order, reading
ahead no further than workers x prefetch factor tasks. So order and back-pressure come with it, and neither the input
nor the results are ever held whole.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import signal
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import util
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from deit_batch.errors import DecodeError, DeitBatchError
from deit_batch.input.stamps import stamp_of
from deit_batch.io import Base64, Failure, Reference, StoredFile, Url
from deit_batch.limits import Limits
from deit_batch.loading.buffers import PixelBuffers
from deit_batch.loading.worker import NOTHING, Deadly, Decoder, Sent, Settled, Task, Wanted, start_worker
from deit_batch.model.recipe import Recipe

logger = logging.getLogger("deit_batch")

TASK_SECONDS = 0.05
"""What a task may take to decode: much more than handing it over, much less than a user would wait."""
TASK_IMAGES = 16
"""In a task, at most."""
TASK_FETCHES = 32
"""Of images that are far away: a worker waits for them all at the same time."""
PREFETCH_FACTOR = 4
"""Tasks of each worker at a time, at least: some take longer than others, and results come in order."""
HELD_BATCHES = 5
"""At a time outside of the workers: one that is being put together, two that are scored, one that is written."""
MAX_INLINE_CHARS = 32 * 2**20
MOST_SETTLED = 4096
MOST_DEATHS = 10
"""Of workers in a row, neither with an image to blame nor with a batch that came through between them."""

SECONDS_TO_NOTICE = 0.5  # that a worker has died


class Decoded(NamedTuple):
    """Of those of a batch's references that were not settled before. `pixels`: uint8 [n, height, width, 3] of the n
    images to be scored, in order; `settled`: the others, by their place; `digests`: SHA-256 of the bytes by place, if
    asked for; `stamps`: by place, what each file was before it was read (input/stamps.py); `buffer`: which of the
    loader's buffers holds the pixels, if one does; `deep_gray`: how many were grey of more than 8 bits."""

    pixels: Tensor
    settled: dict[int, Settled]
    digests: dict[int, str]
    stamps: Sequence[bytes] = ()
    buffer: int | None = None
    deep_gray: int = 0


@dataclass(slots=True)
class _Batch:
    """One that is under way: its tasks, and what has come back of the first of them."""

    references: list[Reference]
    tasks: list[Task]
    buffer: int | None
    sent: list[Sent] = field(default_factory=list)


def batched(
    references: Iterable[Reference], batch_size: int, *, first_size: int | None = None
) -> Iterator[list[Reference]]:
    """Lists of `batch_size` references that are to be looked at, and whatever settled ones (some thousands at most) lie
    between; shorter where images in the input itself (base64) would fill the memory. The first may be set to be
    smaller, so that its records come sooner.

    The cuts depend on the input alone: a run that is continued makes the same batches."""
    size = first_size or batch_size
    batch: list[Reference] = []
    settled = inline = 0
    for reference in references:
        batch.append(reference)
        settled += reference.is_settled
        inline += _inline_chars(reference)
        if len(batch) - settled == size or inline > MAX_INLINE_CHARS or settled == MOST_SETTLED:
            yield batch
            batch, settled, inline = [], 0, 0
            size = batch_size
    if batch:
        yield batch


def _inline_chars(reference: Reference) -> int:
    match reference.location:
        case Base64(text):
            return len(text)
        case bytes() as data:
            return len(data)
        case _:
            return 0


class Loader:
    """Iterates over (references, decoded) in input order. The workers start at once, in the constructor.

    If a worker dies (killed for memory, or by a decoder's fault), the image that it was decoding is tried once more
    in a process of its own, and becomes a failure if that dies, too; all that was under way goes to new workers."""

    def __init__(
        self,
        batches: Iterable[list[Reference]],
        recipe: Recipe,
        limits: Limits,
        *,
        workers: int,
        pin_memory: bool,
        digests: bool = False,
        batch_size: int | None = None,
    ) -> None:
        """`batch_size`: of the largest batch, if the caller gives back each one when it has read its pixels
        (`give_back`): their memory is then used again."""
        self._batches = iter(batches)
        self._in_flight: deque[_Batch] = deque()
        self._input_error: DeitBatchError | None = None
        self._prefetch_factor = max(PREFETCH_FACTOR, -(-2 * (batch_size or 0) // (TASK_IMAGES * max(workers, 1))))
        self._task_images = 1
        ahead = workers * self._prefetch_factor * TASK_IMAGES
        count = -(-ahead // batch_size) + HELD_BATCHES if batch_size and workers else 0
        self._buffers = PixelBuffers(count, (batch_size or 0, *recipe.size, 3))
        self._decoder = Decoder(recipe, limits, self._buffers, workers=workers, digests=digests)
        self._deadly: dict[int, Deadly | None] = {}
        self._deaths = 0
        self._worker_count = workers
        self._pin_memory = pin_memory
        self._start()

    def _start(self) -> None:
        with suppress(OSError):  # found out by the workers, _can_hand_over_memory
            util.get_temp_dir()  # for their sockets: they inherit it, and this process, which is not killed, removes it
        others = multiprocessing.active_children()
        with warnings.catch_warnings(), _deaths_unheard():
            # More workers than cores are right where they wait for a network.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            loader = DataLoader(
                self._decoder,
                batch_sampler=self._sampler(),
                num_workers=self._worker_count,
                prefetch_factor=self._prefetch_factor if self._worker_count else None,
                collate_fn=_as_it_is,
                worker_init_fn=start_worker,
                pin_memory=self._pin_memory,
                timeout=SECONDS_TO_NOTICE if self._worker_count else 0,
            )
            self._sent: Iterator[Sent] = iter(loader)
        self._workers = [child for child in multiprocessing.active_children() if child not in others]
        # Called by the user, or else when this object or the program ends.
        self.close = weakref.finalize(self, _end, self._workers)

    def _sampler(self) -> Iterator[Any]:
        """Of Task: to DataLoader, an index is whatever the data set takes for one."""
        try:
            for references in self._batches:
                batch = self._cut_into_tasks(references)
                self._in_flight.append(batch)
                yield from batch.tasks
        except DeitBatchError as error:
            self._input_error = error  # raised when all that was read before it is through

    def _cut_into_tasks(self, references: list[Reference]) -> _Batch:
        wanted = [self._wanted(reference) for reference in references if not reference.is_settled]
        buffer = self._buffers.take(len(wanted))
        most = self._task_images if self._worker_count else len(wanted)  # by itself, the main process does all anyway
        tasks = [Task([], buffer)]
        room = 1.0
        for place, image in enumerate(wanted):
            if room <= 0:
                tasks.append(Task([], buffer, place))
                room = 1.0
            tasks[-1].images.append(image)
            room -= 1 / TASK_FETCHES if isinstance(image.location, Url | StoredFile) else 1 / most
        return _Batch(references, tasks, buffer)

    def give_back(self, decoded: Decoded) -> None:
        """Nothing will read its pixels any more."""
        if decoded.buffer is not None:
            self._buffers.give_back(decoded.buffer)

    def __iter__(self) -> Iterator[tuple[list[Reference], Decoded]]:
        if self._pin_memory:
            self._buffers.pin()
        while True:
            try:
                sent = next(self._sent, None)
            except (RuntimeError, EOFError, OSError) as error:  # the last two: a dead worker was to hand over
                if self._has_lost_a_worker():
                    self._recover()
                elif not str(error).startswith("DataLoader timed out"):  # that is: nothing yet, ask again
                    raise
                continue
            if sent is None:
                break
            self._deaths = 0
            self._fit_tasks_to(sent.seconds)
            batch = self._in_flight[0]
            batch.sent.append(sent)
            if len(batch.sent) == len(batch.tasks):
                self._in_flight.popleft()
                yield batch.references, self._put_together(batch)
        if self._input_error:
            raise self._input_error

    def _fit_tasks_to(self, seconds: float) -> None:
        """`seconds` an image: so many may be in a task from now on."""
        self._task_images = min(max(int(TASK_SECONDS / seconds), 1), TASK_IMAGES) if seconds else TASK_IMAGES

    def _put_together(self, batch: _Batch) -> Decoded:
        settled: dict[int, Settled] = {}
        digests: dict[int, str] = {}
        stamps: list[bytes] = []
        for sent in batch.sent:
            first = len(stamps)
            settled |= {first + place: why for place, why in sent.settled.items()}
            digests |= {first + place: digest for place, digest in sent.digests.items()}
            stamps += sent.stamps
        deep_gray = sum(sent.deep_gray for sent in batch.sent)
        return Decoded(self._pixels(batch), settled, digests, stamps, batch.buffer, deep_gray)

    def _pixels(self, batch: _Batch) -> Tensor:
        """uint8 [n, height, width, 3] of its n images that could be decoded."""
        if batch.buffer is None:
            parts = [torch.as_tensor(sent.pixels) for sent in batch.sent]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        buffer = self._buffers[batch.buffer]
        rows, end = buffer.numpy(), 0
        for task, sent in zip(batch.tasks, batch.sent, strict=True):
            count = len(task.images) - len(sent.settled)
            if end != task.start:  # an image before these could not be decoded
                rows[end : end + count] = rows[task.start : task.start + count]
            end += count
        return buffer[:end]

    def _has_lost_a_worker(self) -> bool:
        for worker in self._workers:
            worker.join(0.1)  # it may be about to end
        return not all(worker.is_alive() for worker in self._workers)

    def _recover(self) -> None:
        """Starts anew with what was under way. Raises DeitBatchError if that goes on for ever."""
        logger.warning("a decode worker died; what was under way is decoded again")
        dead = [not worker.is_alive() for worker in self._workers]
        suspects = set(itertools.compress(self._decoder.decoding, dead))
        self.close()
        self._decoder.decoding[:] = [NOTHING] * self._worker_count
        self._deaths += 1
        for reference in itertools.chain(*(batch.references for batch in self._in_flight)):
            if reference.index in suspects:
                self._deadly[reference.index] = self._judge(reference)
                self._deaths = 0
        if self._deaths > MOST_DEATHS:
            raise DeitBatchError(
                f"decode workers died {self._deaths} times in a row, and not of an image; if the machine is short of "
                "memory, run the same command again with fewer --workers"
            )
        self._batches = itertools.chain([batch.references for batch in self._in_flight], self._batches)
        for batch in self._in_flight:
            if batch.buffer is not None:
                self._buffers.give_back(batch.buffer)
        self._in_flight.clear()
        self._start()

    def _judge(self, reference: Reference) -> Deadly | None:
        stamp = stamp_of(reference.location)
        if reference.index in self._deadly:  # it has been let off once
            return Deadly(Failure.of(DecodeError("two decode workers died of it")), stamp)
        failure = self._decoder.why_it_dies(reference.location)
        return Deadly(failure, stamp) if failure else None

    def _wanted(self, reference: Reference) -> Wanted:
        known = reference.earlier.sha256 if reference.earlier else None
        return Wanted(reference.index, reference.location, known, self._deadly.get(reference.index))


@contextmanager
def _deaths_unheard() -> Iterator[None]:
    """DataLoader hears of a worker's death by a signal, and raises wherever the program happens to be, be it in the
    middle of writing a record. Without the signal, it finds out when it next waits for that worker."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


def _end(workers: list[BaseProcess]) -> None:
    """Ends the workers at once, whatever they are in the middle of; asked politely, DataLoader would wait for a slow
    fetch."""
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()


def _as_it_is(decoded: Any) -> Any:
    return decoded
