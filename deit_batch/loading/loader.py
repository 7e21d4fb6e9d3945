"""References to batches of pixels: a PyTorch DataLoader whose "sampler" is the lazily read input.

A batch is decoded in tasks of a few images each, so that all workers have something to do whatever its size. DataLoader
hands each task that the batch sampler yields to a worker (worker.py), and gives the results back in order, reading
ahead no further than workers x prefetch factor tasks. So order and back-pressure come with it, and neither the input
nor the results are ever held whole.

The sampler never ends: when nobody asks for more images, it yields tasks of none. So the workers stay for the next
stream, and DataLoader need not be told of its end.
"""

from __future__ import annotations

import itertools
import logging
import math
import multiprocessing
import os
import signal
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection, util
from multiprocessing.process import BaseProcess
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from deit_batch.errors import DecodeError, DeitBatchError, UsageError
from deit_batch.input.stamps import stamp_of
from deit_batch.io import Base64, Failure, Location, Picture, Reference, StoredFile, Url
from deit_batch.limits import Limits
from deit_batch.loading.buffers import PixelBuffers
from deit_batch.loading.read_ahead import ReadAhead
from deit_batch.loading.worker import NOT_BEGUN, Deadly, Decoder, Sent, Settled, Task, Wanted
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
HELD_BATCHES = 3
"""At a time outside of the workers, beside those that are scored: one is put together, one is written, one to spare."""
MAX_INLINE_CHARS = 32 * 2**20
MOST_SETTLED = 4096
MOST_DEATHS = 10
"""Of workers in a row, neither with an image to blame nor with a batch that came through between them."""

SECONDS_TO_NOTICE = 0.5  # that a worker has died


class Decoded(NamedTuple):
    """Of those of a batch's references that were not settled before. `pixels`: [n, height, width, 3], of the recipe's
    dtype, of the n images to be scored, in order; `settled`: the others, by their place; `digests`: SHA-256 of the
    bytes by place, if asked for; `stamps`: by place, what each file was before it was read (input/stamps.py); `buffer`:
    which of the loader's buffers holds the pixels, if one does; `deep_gray`: how many were grey of more than 8 bits;
    `encoded`: the bytes of those that could be decoded, by place, if asked for."""

    pixels: Tensor
    settled: dict[int, Settled]
    digests: dict[int, str]
    stamps: Sequence[bytes] = ()
    buffer: int | None = None
    deep_gray: int = 0
    encoded: Mapping[int, bytes] = MappingProxyType({})


TO_BE_READ: tuple[list[Reference], Decoded] = ([], Decoded(torch.empty(0), {}, {}))
"""Stands in a stream where its next batch is to be read (ReadAhead)."""


@dataclass(slots=True, eq=False)
class _Stream:
    """One input: its batches, how many of them are under way, and those that are ready. `error`: why it can't be read
    on, raised when all that was read before is through."""

    batches: Iterator[list[Reference]] | ReadAhead
    under_way: int = 0
    ready: deque[tuple[list[Reference], Decoded]] = field(default_factory=deque)
    is_read: bool = False
    is_left: bool = False
    error: Exception | None = None

    @property
    def is_to_be_read(self) -> bool:
        """Whether somebody else reads it, and should now."""
        return isinstance(self.batches, ReadAhead) and self.batches.is_to_be_read

    def next_batch(self) -> list[Reference] | None:
        """None if there is no more, or nothing at hand."""
        if self.is_read or self.is_to_be_read:
            return None
        try:
            batches = self.batches
            references = batches.next_batch() if isinstance(batches, ReadAhead) else next(batches, None)
        except Exception as error:
            references, self.error = None, error
        self.is_read = references is None
        return references

    def end(self, error: Exception) -> None:
        """What is under way will not come."""
        self.is_read, self.under_way, self.error = True, 0, error


@dataclass(slots=True)
class _Batch:
    """One that is under way: its tasks, and what has come back of the first of them."""

    stream: _Stream | None
    references: list[Reference]
    tasks: list[Task]
    buffer: int | None
    sent: list[Sent] = field(default_factory=list)

    @property
    def is_wanted(self) -> bool:
        return self.stream is not None and not self.stream.is_left

    @property
    def missing(self) -> list[Task]:
        return self.tasks[len(self.sent) :]


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
        case Picture(pixels):
            return getattr(pixels, "nbytes", 0)
        case _:
            return 0


class Loader:
    """Takes one stream of batches after another, or several at a time, with the same workers.

    If a worker dies (killed for memory, or by a decoder's fault), the image that it was decoding is tried once more
    in a process of its own, and becomes a failure if that dies, too; all that was under way goes to new workers."""

    def __init__(
        self,
        recipe: Recipe,
        limits: Limits,
        *,
        workers: int,
        pin_memory: bool,
        digests: bool = False,
        encoded: bool = False,
        batch_size: int | None = None,
        batches_at_once: int = 2,
    ) -> None:
        """`batch_size`: of the largest batch, if the caller gives back each one when it has read its pixels
        (`give_back`): their memory is then used again. `batches_at_once`: how many the caller scores at a time."""
        self._in_flight: deque[_Batch] = deque()
        self._asking: _Stream | None = None
        self._prefetch_factor = max(
            PREFETCH_FACTOR, -(-batches_at_once * (batch_size or 0) // (TASK_IMAGES * max(workers, 1)))
        )
        self._task_images = 1
        ahead = workers * self._prefetch_factor * TASK_IMAGES
        count = -(-ahead // batch_size) + HELD_BATCHES + batches_at_once if batch_size and workers else 0
        self._buffers = PixelBuffers(count, (batch_size or 0, *recipe.size, 3), getattr(torch, recipe.dtype))
        self._decoder = Decoder(recipe, limits, self._buffers, workers=workers, digests=digests, encoded=encoded)
        self._numbers = itertools.count()
        self._let_off: set[int] = set()  # images that were decoded alone without harm, by their numbers
        self._deaths = 0
        self._worker_count = workers
        self._pin_memory = pin_memory
        self._workers: list[BaseProcess] = []
        self._sent: Iterator[Sent] | None = None
        self._end_workers: Callable[[], object] = lambda: None

    def start(self) -> None:
        """Starts the workers, unless they run."""
        if self._sent is None:
            self._start([])

    def read_first(self, ahead: ReadAhead) -> None:
        """As much as all workers have to do at first, if there is so much for the moment."""
        tasks = 0
        while tasks < self._worker_count * self._prefetch_factor and (batch := ahead.read()):
            tasks += math.ceil(sum(self._share(each.location) for each in batch if not each.is_settled)) or 1

    def stream(
        self, batches: Iterable[list[Reference]] | ReadAhead
    ) -> Generator[tuple[list[Reference], Decoded], None, None]:
        """(references, decoded) of each batch, in order. If this starts the workers, they begin with it at once. A
        batch may be empty: there is no other for the moment, and there may be one when its turn has come.

        Of a ReadAhead, TO_BE_READ comes whenever its next batch is to be read, before this is asked for more."""
        self._asking = _Stream(batches if isinstance(batches, ReadAhead) else iter(batches))
        self.start()
        return self._results(self._asking)

    def give_back(self, decoded: Decoded) -> None:
        """Nothing will read its pixels any more."""
        if decoded.buffer is not None:
            self._buffers.give_back(decoded.buffer)

    def close(self) -> None:
        """Ends the workers. A stream that is not through raises DeitBatchError when it is asked for more."""
        self._sent = None
        self._end_workers()
        for batch in self._in_flight:
            if batch.stream:
                batch.stream.end(DeitBatchError("the decode workers were ended before all images were decoded"))
            self._forget(batch)
        self._in_flight.clear()

    def _start(self, tasks: list[Task]) -> None:
        with suppress(OSError):  # found out by the workers, _can_hand_over_memory
            util.get_temp_dir()  # for their sockets: they inherit it, and this process, which is not killed, removes it
        others = multiprocessing.active_children()
        if self._worker_count and getattr(multiprocessing.current_process(), "_inheriting", False):
            raise SystemExit(1)  # a worker that runs the user's script: its parent says why (_could_not_begin)
        with warnings.catch_warnings(), _deaths_unheard():
            # More workers than cores are right where they wait for a network.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            loader = DataLoader(
                self._decoder,
                batch_sampler=self._sampler(tasks),
                num_workers=self._worker_count,
                prefetch_factor=self._prefetch_factor if self._worker_count else None,
                collate_fn=_as_it_is,
                worker_init_fn=self._decoder.begin,
                pin_memory=self._pin_memory and not len(self._buffers),  # a thread, which takes the main one's time
                timeout=SECONDS_TO_NOTICE if self._worker_count else 0,
            )
            try:
                self._sent = iter(loader)
            except (EOFError, ConnectionError):  # of a server that forks: the script has ended it
                raise _could_not_begin() from None
        self._workers = [child for child in multiprocessing.active_children() if child not in others]
        # Called by the user, or else when this object or the program ends.
        self._end_workers = weakref.finalize(self, _end, self._workers, os.getpid())

    def _sampler(self, tasks: list[Task]) -> Iterator[Any]:
        """Of Task: to DataLoader, an index is whatever the data set takes for one. These tasks come first."""
        yield from tasks
        while True:
            references = self._asking.next_batch() if self._asking else None
            if references:
                batch = self._cut_into_tasks(references, self._asking)
            else:
                batch = _Batch(None if references is None else self._asking, [], [Task([])], None)
            self._in_flight.append(batch)
            if batch.stream:
                batch.stream.under_way += 1
            for task in batch.tasks:
                yield task if batch.is_wanted else Task([])

    def _cut_into_tasks(self, references: list[Reference], stream: _Stream | None = None) -> _Batch:
        wanted = [self._wanted(reference) for reference in references if not reference.is_settled]
        buffer = self._buffers.take(len(wanted))
        tasks = [Task([], buffer)]
        room = 1.0
        for place, image in enumerate(wanted):
            if room <= 0:
                tasks.append(Task([], buffer, place))
                room = 1.0
            tasks[-1].images.append(image)
            room -= self._share(image.location)
        return _Batch(stream, references, tasks, buffer)

    def _share(self, location: Location) -> float:
        """Of a task, that an image there takes up."""
        if isinstance(location, Url | StoredFile):
            return 1 / TASK_FETCHES
        return 1 / self._task_images if self._worker_count else 0  # by itself, the main process does all anyway

    def _wanted(self, reference: Reference) -> Wanted:
        known = reference.earlier.sha256 if reference.earlier else None
        return Wanted(next(self._numbers), reference.location, known)

    def _results(self, stream: _Stream) -> Generator[tuple[list[Reference], Decoded], None, None]:
        if self._pin_memory:
            self._buffers.pin()
        try:
            while stream.ready or stream.under_way or not stream.is_read:
                if stream.ready:
                    yield stream.ready.popleft()
                elif stream.is_to_be_read:
                    yield TO_BE_READ
                else:
                    self._asking = stream
                    self._advance()
            if stream.error:
                raise stream.error
        finally:
            stream.is_left = True
            if self._asking is stream:
                self._asking = None
            for _, decoded in stream.ready:
                self.give_back(decoded)

    def _advance(self) -> None:
        """Gives what a worker has done to the stream that it belongs to, whereupon DataLoader takes the next task, of
        the stream that is asking. Waits for some time; then there may be nothing."""
        if self._sent is None:
            raise DeitBatchError("the decode workers were ended before all images were decoded")
        try:
            self._take(next(self._sent))
        except (RuntimeError, EOFError, OSError) as error:  # the last two: a dead worker was to hand over
            if self._has_lost_a_worker():
                self._recover()
            elif not str(error).startswith("DataLoader timed out"):  # that is: nothing yet, ask again
                self.close()
                raise
        except BaseException:  # Ctrl-C in a notebook, for one: nobody knows what DataLoader was in the middle of
            self.close()
            raise

    def _take(self, sent: Sent) -> None:
        batch = self._in_flight[0]
        if batch.missing[0].images:
            self._deaths = 0
            self._fit_tasks_to(sent.seconds)
        batch.sent.append(sent)
        if batch.missing:
            return
        self._in_flight.popleft()
        if batch.stream and batch.is_wanted:
            batch.stream.under_way -= 1
            batch.stream.ready.append((batch.references, self._put_together(batch)))
        else:
            self._forget(batch)

    def _forget(self, batch: _Batch) -> None:
        if batch.buffer is not None:
            self._buffers.give_back(batch.buffer)

    def _fit_tasks_to(self, seconds: float) -> None:
        """`seconds` an image: so many may be in a task from now on."""
        self._task_images = min(max(int(TASK_SECONDS / seconds), 1), TASK_IMAGES) if seconds else TASK_IMAGES

    def _put_together(self, batch: _Batch) -> Decoded:
        settled: dict[int, Settled] = {}
        digests: dict[int, str] = {}
        stamps: list[bytes] = []
        encoded: dict[int, bytes] = {}
        for sent in batch.sent:
            first = len(stamps)
            settled |= {first + place: why for place, why in sent.settled.items()}
            digests |= {first + place: digest for place, digest in sent.digests.items()}
            encoded |= {first + place: data for place, data in sent.encoded.items()}
            stamps += sent.stamps
        deep_gray = sum(sent.deep_gray for sent in batch.sent)
        return Decoded(self._pixels(batch), settled, digests, stamps, batch.buffer, deep_gray, encoded)

    def _pixels(self, batch: _Batch) -> Tensor:
        """[n, height, width, 3] of its n images that could be decoded."""
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
        return bool(connection.wait([worker.sentinel for worker in self._workers], 0.1))  # it may be about to end

    def _recover(self) -> None:
        """Starts anew with what was under way. Raises DeitBatchError if that goes on for ever."""
        if NOT_BEGUN in self._decoder.decoding and multiprocessing.get_start_method() != "fork":
            self.close()
            raise _could_not_begin() from None
        logger.warning("a decode worker died; what was under way is decoded again")
        suspects = self._decoder.decoded_by({worker.pid for worker in self._workers if not worker.is_alive()})
        self._end_workers()
        self._decoder.decoding[:] = [NOT_BEGUN] * self._worker_count
        self._deaths += 1
        missing = [task for batch in self._in_flight for task in batch.missing]
        for task in missing:
            for place, image in enumerate(task.images):
                if image.number in suspects:
                    task.images[place] = image._replace(deadly=self._judge(image))
                    self._deaths = 0
        if self._deaths > MOST_DEATHS:
            self.close()
            raise DeitBatchError(
                f"decode workers died {self._deaths} times in a row, and not of an image; if the machine is short of "
                "memory, run the same command again with fewer --workers"
            )
        self._start(missing)

    def _judge(self, image: Wanted) -> Deadly | None:
        stamp = stamp_of(image.location)
        if image.number in self._let_off:
            return Deadly(Failure.of(DecodeError("two decode workers died of it")), stamp)
        failure = self._decoder.why_it_dies(image.location)
        if failure is None:
            self._let_off.add(image.number)
        return Deadly(failure, stamp) if failure else None


def _could_not_begin() -> UsageError:
    """Of workers that begin with the user's own script, to find its names there. Where it scores as it is read, and not
    just as it is run, each worker would start workers."""
    return UsageError(
        'the decode workers could not start: a script must score within `if __name__ == "__main__":`, since they read '
        f"it, too (multiprocessing's start method here is {multiprocessing.get_start_method()}); or use workers=0"
    )


@contextmanager
def _deaths_unheard() -> Iterator[None]:
    """DataLoader hears of a worker's death by a signal, and raises wherever the program happens to be, be it in the
    middle of writing a record. Without the signal, it finds out when it next waits for that worker."""
    if not hasattr(signal, "SIGCHLD"):  # Windows has none
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


def _end(workers: list[BaseProcess], process: int) -> None:
    """Ends the workers at once, whatever they are in the middle of; asked politely, DataLoader would wait for a slow
    fetch. Those of another process, from which this was forked, are left alone."""
    if os.getpid() != process:
        return
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()


def _as_it_is(decoded: Any) -> Any:
    return decoded
