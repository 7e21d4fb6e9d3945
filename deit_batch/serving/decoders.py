"""Decoding in processes of its own, so that an image which crashes or hangs its decoder costs nobody else anything.
Imports no torch: the processes are small, and quick to replace."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import queue
import signal
import time
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

from numpy.typing import NDArray

from deit_batch.errors import DecodeError, DeitBatchError
from deit_batch.io import Base64, Failure
from deit_batch.limits import Limits, end_process_after
from deit_batch.loading.decode import decode
from deit_batch.loading.deep_gray import DEEP_GRAY, warn_of_deep_gray
from deit_batch.loading.fetch import Fetcher
from deit_batch.model.recipe import Recipe
from deit_batch.system.signals import HANGUP

logger = logging.getLogger("deit_batch")

Pixels: TypeAlias = NDArray[Any]
"""Of one image: [height, width, 3], of the recipe's size and dtype."""

TRIES = 2
"""Of an image whose worker died: the kernel may have chosen that worker for other reasons."""
STARTS = 10
"""Of a worker that dies before it is given an image."""


class Decoders:
    """`await decoders(image)` is its pixels, or why there are none. Each of `workers` processes has one image at a
    time, so it is known which one a process has died of; then another takes its place.

    A ProcessPoolExecutor would do less: when a process of it is killed while it hands over its result, the executor
    waits for the rest of that for ever, for it holds the other end of the pipe itself."""

    def __init__(self, recipe: Recipe, limits: Limits, *, workers: int) -> None:
        self._recipe, self._limits = recipe, limits
        self._workers = [_Worker(recipe, limits) for _ in range(workers)]
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(workers):
            self._idle.put(number)
        self._threads = ThreadPoolExecutor(workers, "decode")  # one for each, that waits for it
        self._is_closed = False
        self._has_met_deep_gray = False

    async def __call__(self, image: Base64 | bytes) -> Pixels | Failure:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, image)

    async def warm_up(self, image: bytes) -> None:
        """Waits until all processes run. Raises DeitBatchError if they do not."""
        await asyncio.gather(*[self(image) for _ in self._workers])

    def close(self) -> None:
        """Ends the processes at once, whatever they are in the middle of."""
        self._is_closed = True
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _decode(self, image: Base64 | bytes) -> Pixels | Failure:
        number = self._idle.get()
        try:
            for _ in range(TRIES):
                worker = self._ready(number)
                start = time.monotonic()
                try:
                    result, is_deep_gray = worker(image)
                    if is_deep_gray and not self._has_met_deep_gray:
                        self._has_met_deep_gray = True
                        warn_of_deep_gray(1, scaled=self._recipe.scale_deep_gray)
                    return result
                except (EOFError, OSError):
                    worker.kill()  # its connection may end a moment before it does
                    if time.monotonic() - start >= self._limits.decode_seconds:
                        break
                except BaseException:
                    worker.kill()  # its reply may still be under way: it must not be taken for the next image's
                    raise
        finally:
            self._idle.put(number)
        return Failure.of(
            DecodeError(f"its decoder crashed or did not end in time; {self._limits.decode_seconds:g} s are allowed")
        )

    def _ready(self, number: int) -> _Worker:
        """A worker that lives; what it may have died of so far, this image has not done. Raises CancelledError after
        `close`, and DeitBatchError if none lives."""
        for _ in range(STARTS):
            if self._workers[number].is_ready():
                return self._workers[number]
            self._workers[number].kill()
            if not self._is_closed:
                logger.warning("a decode worker died; another takes its place")
                self._workers[number] = _Worker(self._recipe, self._limits)
            if self._is_closed:  # meanwhile
                self._workers[number].kill()
                raise CancelledError
        raise DeitBatchError(f"the processes that decode do not live: {STARTS} have died before they had an image")


class _Worker:
    """One process. It is spawned, not forked: forking one that runs torch's threads is not safe. It ends when our end
    of the connection is closed, however that comes."""

    def __init__(self, recipe: Recipe, limits: Limits) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, recipe, limits), name="decode")
        self._process.start()
        theirs.close()  # or its death would not be the end of the connection
        self._has_started = False

    def __call__(self, image: Base64 | bytes) -> tuple[Pixels | Failure, bool]:
        """Raises EOFError or OSError if the process has died."""
        self._connection.send(image)
        result: tuple[Pixels | Failure, bool] = self._connection.recv()
        return result

    def is_ready(self) -> bool:
        """Whether it lives; waits until it has started."""
        try:
            self._has_started = self._has_started or self._connection.recv()
        except (EOFError, OSError):
            return False
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _work(connection: Connection, recipe: Recipe, limits: Limits) -> None:
    """Ctrl-C, SIGTERM and SIGHUP often go to all processes of a service, but only the main one acts on them. And
    libtiff writes hundreds of lines about a broken file to descriptor 2."""
    for signum in (signal.SIGINT, signal.SIGTERM, *HANGUP):
        signal.signal(signum, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        connection.send(True)
        while True:
            connection.send(_pixels(connection.recv(), recipe, limits))
    except (EOFError, OSError):
        pass  # the main process is gone


def _pixels(image: Base64 | bytes, recipe: Recipe, limits: Limits) -> tuple[Pixels | Failure, bool]:
    """And whether it is grey of more than 8 bits."""
    data = Fetcher(limits).fetch(image)  # which makes bytes of base64, and sees to their number
    if isinstance(data, Failure):
        return data, False
    met: Counter[str] = Counter()
    try:
        with end_process_after(limits.decode_seconds):
            return decode(data, recipe, limits, met=met), met[DEEP_GRAY] > 0
    except DecodeError as error:
        return Failure.of(error), False
