"""References to batches of pixels: a PyTorch DataLoader whose "sampler" is the lazily read input.

DataLoader hands each list that the batch sampler yields to the data set's `__getitems__` in a worker, and gives the
results back in order, reading ahead no further than workers x prefetch factor batches. So order and back-pressure
come with it, and neither the input nor the results are ever held whole.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import multiprocessing
import os
import signal
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import reduction, util
from multiprocessing.process import BaseProcess
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from deit_batch.errors import DecodeError, DeitBatchError
from deit_batch.input.stamps import stamp_of
from deit_batch.io import Base64, Failure, Location, Reference
from deit_batch.limits import Limits, end_process_after
from deit_batch.loading.decode import decode
from deit_batch.loading.fetch import Fetcher
from deit_batch.model.recipe import Recipe

logger = logging.getLogger("deit_batch")

PREFETCH_FACTOR = 2
MAX_INLINE_CHARS = 32 * 2**20
MOST_SETTLED = 4096
MOST_DEATHS = 10
"""Of workers in a row, neither with an image to blame nor with a batch that came through between them."""

SECONDS_TO_NOTICE = 0.5  # that a worker has died

_NOTHING = -1

Settled: TypeAlias = Failure | Literal["same"]
"""Of an image that is not to be scored: why it can't be, or that its bytes are those that an earlier run scored."""


class Decoded(NamedTuple):
    """Of those of a batch's references that were not settled before. `pixels`: uint8 [n, height, width, 3] of the n
    images to be scored, in order; `settled`: the others, by their place; `digests`: SHA-256 of the bytes by place, if
    asked for; `stamps`: by place, what each file was before it was read (input/stamps.py)."""

    pixels: Tensor
    settled: dict[int, Settled]
    digests: dict[int, str]
    stamps: Sequence[bytes] = ()


class _Sent(NamedTuple):
    """The same on its way out of a worker: an array where there was no shared memory for a tensor."""

    pixels: Tensor | NDArray[np.uint8]
    settled: dict[int, Settled]
    digests: dict[int, str]
    stamps: list[bytes]


class _Deadly(NamedTuple):
    """An image that has ended its worker, and its stamp before it was looked at alone."""

    failure: Failure
    stamp: bytes


class _Wanted(NamedTuple):
    """An image on its way into a worker: which of the input's, where it is, the digest of the bytes that need not be
    decoded again, and why it must not be decoded, if so."""

    number: int
    location: Location
    known: str | None
    deadly: _Deadly | None = None


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


class Decoder(Dataset[_Sent]):
    """The data set: its "indices" are locations, fetched and decoded where the worker runs."""

    def __init__(self, recipe: Recipe, limits: Limits, *, workers: int, digests: bool = False) -> None:
        self.decoding = multiprocessing.RawArray("q", [_NOTHING] * workers)
        """The index of the image that each worker is decoding: if it dies, that one may be why."""
        self._digests = digests
        self._recipe = recipe
        self._limits = limits
        self._fetcher = Fetcher(limits)
        self._alone = False

    def __getitems__(self, batch: list[_Wanted]) -> _Sent:
        height, width = self._recipe.size
        pixels, way_out = _room_for((len(batch), height, width, 3))
        settled: dict[int, Settled] = {}
        digests: dict[int, str] = {}
        rows = list(pixels)
        # Before the bytes: what comes after is a change.
        stamps = [wanted.deadly.stamp if wanted.deadly else stamp_of(wanted.location) for wanted in batch]
        places = [wanted.deadly.failure if wanted.deadly else wanted.location for wanted in batch]
        for place, data in enumerate(self._fetcher.fetch_all(places)):
            if isinstance(data, Failure):
                settled[place] = data
                continue
            if self._digests:
                digests[place] = hashlib.sha256(data).hexdigest()
                if digests[place] == batch[place].known:
                    settled[place] = "same"
                    continue
            try:
                with self._noted(batch[place].number):
                    rows[place - len(settled)][:] = self._decode(data)
            except DecodeError as error:
                settled[place] = Failure.of(error)
        return _Sent(way_out[: len(batch) - len(settled)], settled, digests, stamps)

    @contextmanager
    def _noted(self, number: int) -> Iterator[None]:
        worker = get_worker_info()
        if worker is None:
            yield
            return
        self.decoding[worker.id] = number
        yield
        self.decoding[worker.id] = _NOTHING

    def _decode(self, data: bytes) -> NDArray[np.uint8]:
        if not self._alone and get_worker_info() is None:
            return decode(data, self._recipe, self._limits)  # the main process itself, with --workers 0
        with end_process_after(self._limits.decode_seconds):
            return decode(data, self._recipe, self._limits)

    def why_it_dies(self, location: Location) -> Failure | None:
        """Decodes one image in a process of its own: a failure, if it is the end of that process."""
        process = multiprocessing.Process(target=self._alone_with, args=(location,), daemon=True)
        process.start()
        process.join()
        code = process.exitcode or 0
        if code == 0:
            return None
        how = f"crashed ({signal.Signals(-code).name})" if code < 0 else "did not end in time"
        return Failure.of(DecodeError(f"its decoder {how}; at most {self._limits.decode_seconds:g} s are allowed"))

    def _alone_with(self, location: Location) -> None:
        _start_worker(0)
        self._alone = True
        self.__getitems__([_Wanted(0, location, None)])


def _room_for(shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], Tensor | NDArray[np.uint8]]:
    """An array to fill, and the same memory as what is to be handed on: shared with the main process if there is room.

    DataLoader would share it later, in a thread where a failure (a container with a small /dev/shm) is seen by nobody:
    the batch would be lost, and waited for, for ever. An array goes through a pipe instead."""
    pixels = torch.empty(shape, dtype=torch.uint8)
    if get_worker_info() is None:
        return pixels.numpy(), pixels
    with suppress(RuntimeError):
        if _can_hand_over_memory():
            pixels.share_memory_()
            return pixels.numpy(), pixels
    return pixels.numpy(), pixels.numpy()


@cache
def _can_hand_over_memory() -> bool:
    """Of a worker. Shared memory goes to the main process by a socket in the folder for temporary files, whose path may
    be too long for that (108 characters, unix(7)), or which can't be written to."""
    try:
        with open(os.devnull) as null:
            reduction.DupFd(null.fileno())
    except OSError:
        return False
    return True


def _start_worker(worker: int) -> None:
    """Ctrl-C, and often SIGTERM too, go to the whole process group: only the main process acts on them. And libtiff
    writes hundreds of lines about a broken file straight to descriptor 2, past Python."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_when_the_parent_says, daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _end_when_the_parent_says() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


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
    ) -> None:
        self._batches = iter(batches)
        self._in_flight: deque[list[Reference]] = deque()
        self._input_error: DeitBatchError | None = None
        self._decoder = Decoder(recipe, limits, workers=workers, digests=digests)
        self._deadly: dict[int, _Deadly | None] = {}
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
                prefetch_factor=PREFETCH_FACTOR if self._worker_count else None,
                collate_fn=_as_it_is,
                worker_init_fn=_start_worker,
                pin_memory=self._pin_memory,
                timeout=SECONDS_TO_NOTICE if self._worker_count else 0,
            )
            self._sent: Iterator[_Sent] = iter(loader)
        self._workers = [child for child in multiprocessing.active_children() if child not in others]
        # Called by the user, or else when this object or the program ends.
        self.close = weakref.finalize(self, _end, self._workers)

    def _sampler(self) -> Iterator[list[_Wanted]]:
        try:
            for batch in self._batches:
                self._in_flight.append(batch)
                yield [self._wanted(reference) for reference in batch if not reference.is_settled]
        except DeitBatchError as error:
            self._input_error = error  # raised when all that was read before it is through

    def __iter__(self) -> Iterator[tuple[list[Reference], Decoded]]:
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
            yield self._in_flight.popleft(), Decoded(torch.as_tensor(sent.pixels), *sent[1:])
        if self._input_error:
            raise self._input_error

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
        self._decoder.decoding[:] = [_NOTHING] * self._worker_count
        self._deaths += 1
        for reference in itertools.chain(*self._in_flight):
            if reference.index in suspects:
                self._deadly[reference.index] = self._judge(reference)
                self._deaths = 0
        if self._deaths > MOST_DEATHS:
            raise DeitBatchError(
                f"decode workers died {self._deaths} times in a row, and not of an image; if the machine is short of "
                "memory, run the same command again with fewer --workers"
            )
        self._batches = itertools.chain(tuple(self._in_flight), self._batches)
        self._in_flight.clear()
        self._start()

    def _judge(self, reference: Reference) -> _Deadly | None:
        stamp = stamp_of(reference.location)
        if reference.index in self._deadly:  # it has been let off once
            return _Deadly(Failure.of(DecodeError("two decode workers died of it")), stamp)
        failure = self._decoder.why_it_dies(reference.location)
        return _Deadly(failure, stamp) if failure else None

    def _wanted(self, reference: Reference) -> _Wanted:
        known = reference.earlier.sha256 if reference.earlier else None
        return _Wanted(reference.index, reference.location, known, self._deadly.get(reference.index))


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
