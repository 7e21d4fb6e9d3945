"""What a decode worker does: it gets the bytes of a task's images, decodes them, and says which image it is at, so that
the main process knows what its death may be due to."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import reduction
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from deit_batch.errors import DecodeError
from deit_batch.input.stamps import stamp_of
from deit_batch.io import Failure, Location, Picture
from deit_batch.limits import OUT_OF_TIME, Limits, end_process_after
from deit_batch.loading.buffers import PixelBuffers
from deit_batch.loading.decode import decode
from deit_batch.loading.deep_gray import DEEP_GRAY
from deit_batch.loading.fetch import Fetcher
from deit_batch.model.recipe import Recipe
from deit_batch.system.signals import HANGUP

NOTHING = -1
"""What a worker decodes that decodes nothing."""
NOT_BEGUN = -2
"""The same, of one that is still being started."""

SECONDS_TO_NOTICE = 0.5  # that the process is no more that has started it

Settled: TypeAlias = Failure | Literal["same"]
"""Of an image that is not to be scored: why it can't be, or that its bytes are those that an earlier run scored."""


class Sent(NamedTuple):
    """What comes out of a worker of one task, each place counted within it. `pixels`: None if they are in the task's
    buffer, an array where there was no shared memory for a tensor; `seconds`: how long decoding took, of each image;
    `encoded`: the bytes of those that could be decoded, if asked for."""

    pixels: Tensor | NDArray[Any] | None
    settled: dict[int, Settled]
    digests: dict[int, str]
    stamps: list[bytes]
    seconds: float
    deep_gray: int
    encoded: dict[int, bytes]


class Deadly(NamedTuple):
    """An image that has ended its worker, and its stamp before it was looked at alone."""

    failure: Failure
    stamp: bytes


class Wanted(NamedTuple):
    """An image on its way into a worker: which of the input's, where it is, the digest of the bytes that need not be
    decoded again, and why it must not be decoded, if so."""

    number: int
    location: Location
    known: str | None
    deadly: Deadly | None = None


class Task(NamedTuple):
    """Images of one batch that a worker fetches and decodes together; their pixels go to the rows of the buffer that
    begin at `start`."""

    images: list[Wanted]
    buffer: int | None = None
    start: int = 0


class Decoder(Dataset[Sent]):
    """The data set: its "indices" are locations, fetched and decoded where the worker runs."""

    def __init__(
        self,
        recipe: Recipe,
        limits: Limits,
        buffers: PixelBuffers,
        *,
        workers: int,
        digests: bool = False,
        encoded: bool = False,
    ) -> None:
        self._buffers = buffers
        self.decoding = multiprocessing.RawArray("q", [NOT_BEGUN] * workers)
        """The index of the image that each worker is decoding: if it dies, that one may be why."""
        self._pids = multiprocessing.RawArray("q", workers)  # of each worker that has begun
        self._digests, self._encoded = digests, encoded
        self._recipe = recipe
        self._limits = limits
        self._fetcher = Fetcher(limits)
        self._alone = False

    def begin(self, worker: int) -> None:
        """In a worker, before its first task."""
        start_worker(worker)
        self._pids[worker] = os.getpid()
        self.decoding[worker] = NOTHING

    def decoded_by(self, pids: Collection[int | None]) -> set[int]:
        """The indices of the images that the workers with these process ids were decoding last."""
        return {number for number, pid in zip(self.decoding, self._pids, strict=True) if pid in pids}

    def __getitems__(self, task: Task) -> Sent:
        batch = task.images
        pixels, way_out = self._room_for(task)
        seconds = 0.0
        met: Counter[str] = Counter()
        settled: dict[int, Settled] = {}
        digests: dict[int, str] = {}
        encoded: dict[int, bytes] = {}
        rows = list(pixels)
        # Before the bytes: what comes after is a change.
        stamps = [wanted.deadly.stamp if wanted.deadly else stamp_of(wanted.location) for wanted in batch]
        places = [wanted.deadly.failure if wanted.deadly else wanted.location for wanted in batch]
        for place, data in enumerate(self._fetcher.fetch_all(places)):
            if isinstance(data, Failure):
                settled[place] = data
                continue
            if isinstance(data, Picture):
                rows[place - len(settled)][:] = data.pixels
                continue
            if self._digests:
                digests[place] = hashlib.sha256(data).hexdigest()
                if digests[place] == batch[place].known:
                    settled[place] = "same"
                    continue
            start = time.perf_counter()
            try:
                with self._noted(batch[place].number):
                    rows[place - len(settled)][:] = self._decode(data, met)
                if self._encoded:
                    encoded[place] = data
            except DecodeError as error:
                settled[place] = Failure.of(error)
            seconds += time.perf_counter() - start
        if way_out is not None:
            way_out = way_out[: len(batch) - len(settled)]
        return Sent(way_out, settled, digests, stamps, seconds / max(len(batch), 1), met[DEEP_GRAY], encoded)

    def _room_for(self, task: Task) -> tuple[NDArray[Any], Tensor | NDArray[Any] | None]:
        """An array to fill, and what is to be handed on of the same memory."""
        if task.buffer is not None:
            return self._buffers[task.buffer][task.start : task.start + len(task.images)].numpy(), None
        height, width = self._recipe.size
        return _new_memory((len(task.images), height, width, 3), self._recipe.dtype)

    @contextmanager
    def _noted(self, number: int) -> Iterator[None]:
        worker = get_worker_info()
        if worker is None:
            yield
            return
        self.decoding[worker.id] = number
        try:
            yield
        finally:
            self.decoding[worker.id] = NOTHING

    def _decode(self, data: bytes, met: Counter[str]) -> NDArray[Any]:
        if not self._alone and get_worker_info() is None:
            return decode(data, self._recipe, self._limits, met=met)  # the main process itself, with --workers 0
        with end_process_after(self._limits.decode_seconds):
            return decode(data, self._recipe, self._limits, met=met)

    def why_it_dies(self, location: Location) -> Failure | None:
        """Decodes one image in a process of its own: a failure, if it is the end of that process."""
        process = multiprocessing.Process(target=self._alone_with, args=(location,), daemon=True)
        process.start()
        process.join()
        code = process.exitcode or 0
        if code == 0:
            return None
        seconds = self._limits.decode_seconds
        return Failure.of(DecodeError(f"its decoder {how_it_ended(code)}; at most {seconds:g} s are allowed"))

    def _alone_with(self, location: Location) -> None:
        start_worker(0)
        self._alone = True
        self.__getitems__(Task([Wanted(0, location, None)]))


def how_it_ended(code: int) -> str:
    """Of a process that did not end well, by its exit code: a signal's number below 0, or, on Windows, that of an
    exception (https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-erref, section 2.3)."""
    if code == OUT_OF_TIME:
        return "did not end in time"
    return f"crashed ({f'code {code:#x}' if code > 0 else _name_of_signal(-code)})"


def _name_of_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most of the real-time ones have no name
        return f"signal {number}"


def _new_memory(shape: tuple[int, ...], dtype: str) -> tuple[NDArray[Any], Tensor | NDArray[Any]]:
    """An array to fill, and the same memory as what is to be handed on: shared with the main process if there is room.

    DataLoader would share it later, in a thread where a failure (a container with a small /dev/shm) is seen by nobody:
    the batch would be lost, and waited for, for ever. An array goes through a pipe instead."""
    pixels = torch.empty(shape, dtype=getattr(torch, dtype))
    if get_worker_info() is None:
        return pixels.numpy(), pixels
    with suppress(RuntimeError):
        if not hasattr(reduction, "DupFd") or _can_hand_over_memory():
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


def start_worker(worker: int) -> None:
    """Ctrl-C and SIGHUP, and often SIGTERM too, go to the whole process group: only the main process acts on them. And
    libtiff writes hundreds of lines about a broken file straight to descriptor 2, past Python."""
    for signum in (signal.SIGINT, *HANGUP):
        signal.signal(signum, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_when_the_parent_says, daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _end_when_the_parent_says() -> None:
    """Or when it is no more: as long as a worker lives, what it has inherited stays open, and whoever was connected
    with its parent does not hear that it was killed."""
    parent = os.getppid()
    while os.getppid() == parent:
        signalled = signal.sigtimedwait([signal.SIGTERM], SECONDS_TO_NOTICE)
        if signalled and signalled.si_pid == parent:
            break
    os._exit(0)
