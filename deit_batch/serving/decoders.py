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
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from deit_batch.errors import DecodeError, DeitBatchError
from deit_batch.fetch import Fetcher
from deit_batch.images import Recipe, decode
from deit_batch.io import Base64, Failure
from deit_batch.limits import Limits, end_process_after

logger = logging.getLogger("deit_batch")

Pixels: TypeAlias = NDArray[np.uint8]
"""Of one image: [height, width, 3], of the recipe's size."""

TRIES = 2
"""Of an image whose worker died: the kernel may have chosen that worker for other reasons."""


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

    async def __call__(self, image: Base64 | bytes) -> Pixels | Failure:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, image)

    async def warm_up(self, image: bytes) -> None:
        """Waits until all processes run. Raises DeitBatchError if they do not."""
        for result in await asyncio.gather(*[self(image) for _ in self._workers]):
            if isinstance(result, Failure):
                raise DeitBatchError(f"the decoders can't be started: {result.message}")

    def close(self) -> None:
        """Ends the processes at once, whatever they are in the middle of."""
        self._is_closed = True
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _decode(self, image: Base64 | bytes) -> Pixels | Failure:
        number = self._idle.get()
        try:
            if not self._workers[number].is_alive():
                self._replace(number)  # it has died while it was idle, of nothing that this image did
            for _ in range(TRIES):
                start = time.monotonic()
                try:
                    return self._workers[number](image)
                except (EOFError, OSError):
                    self._replace(number)
                if time.monotonic() - start >= self._limits.decode_seconds:
                    break
        finally:
            self._idle.put(number)
        return Failure.of(
            DecodeError(f"its decoder crashed or did not end in time; {self._limits.decode_seconds:g} s are allowed")
        )

    def _replace(self, number: int) -> None:
        self._workers[number].kill()
        if not self._is_closed:
            logger.warning("a decode worker died; another takes its place")
            self._workers[number] = _Worker(self._recipe, self._limits)
        if self._is_closed:  # meanwhile
            self._workers[number].kill()


class _Worker:
    """One process. It is spawned, not forked: forking one that runs torch's threads is not safe. It ends when our end
    of the connection is closed, however that comes."""

    def __init__(self, recipe: Recipe, limits: Limits) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, recipe, limits), name="decode")
        self._process.start()
        theirs.close()  # or its death would not be the end of the connection
        self.is_alive = self._process.is_alive

    def __call__(self, image: Base64 | bytes) -> Pixels | Failure:
        """Raises EOFError or OSError if the process has died."""
        self._connection.send(image)
        result: Pixels | Failure = self._connection.recv()
        return result

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _work(connection: Connection, recipe: Recipe, limits: Limits) -> None:
    """Ctrl-C and SIGTERM often go to all processes of a service, but only the main one acts on them. And libtiff writes
    hundreds of lines about a broken file to descriptor 2."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        while True:
            connection.send(_pixels(connection.recv(), recipe, limits))
    except (EOFError, OSError):
        pass  # the main process is gone


def _pixels(image: Base64 | bytes, recipe: Recipe, limits: Limits) -> Pixels | Failure:
    data = Fetcher(limits).fetch(image)  # which makes bytes of base64, and sees to their number
    if isinstance(data, Failure):
        return data
    try:
        with end_process_after(limits.decode_seconds):
            return decode(data, recipe, limits)
    except DecodeError as error:
        return Failure.of(error)
