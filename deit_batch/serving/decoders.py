"""Decoding in processes of its own, so that an image which crashes or hangs its decoder costs nobody else anything.
Imports no torch: the processes are small, and quick to replace."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from deit_batch.errors import DecodeError
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

    For one event loop. The processes are spawned, not forked: forking one that runs torch's threads is not safe."""

    def __init__(self, recipe: Recipe, limits: Limits, *, workers: int) -> None:
        self._recipe, self._limits = recipe, limits
        self._loop = asyncio.get_running_loop()
        self._others = multiprocessing.active_children()
        self._idle: asyncio.Queue[ProcessPoolExecutor] = asyncio.Queue()
        for _ in range(workers):
            self._idle.put_nowait(_new_worker())

    async def __call__(self, image: Base64 | bytes) -> Pixels | Failure:
        for _ in range(TRIES):
            worker = await self._idle.get()
            start = time.monotonic()
            try:
                return await asyncio.wrap_future(self._start(worker, image))
            except BrokenProcessPool:
                logger.warning("a decode worker died; another takes its place")
                if time.monotonic() - start >= self._limits.decode_seconds:
                    break
        return Failure.of(
            DecodeError(f"its decoder crashed or did not end in time; {self._limits.decode_seconds:g} s are allowed")
        )

    def _start(self, worker: ProcessPoolExecutor, image: Base64 | bytes) -> Future[Pixels | Failure]:
        """The worker is idle again when it is done, not when whoever waits for the image has gone."""

        def back(future: Future[Pixels | Failure]) -> None:
            broken = not future.cancelled() and isinstance(future.exception(), BrokenProcessPool)
            with suppress(RuntimeError):  # the loop is closed: the program ends
                self._loop.call_soon_threadsafe(self._idle.put_nowait, _replaced(worker) if broken else worker)

        try:
            future = worker.submit(_pixels, image, self._recipe, self._limits)
        except BrokenProcessPool:  # it has died while it was idle, of nothing that the image did
            return self._start(_replaced(worker), image)
        future.add_done_callback(back)
        return future

    async def warm_up(self, image: bytes) -> None:
        """Starts all processes, by giving each an image."""
        await asyncio.gather(*[self(image) for _ in range(self._idle.qsize())])

    def close(self) -> None:
        """Ends the processes at once, whatever they are in the middle of."""
        for process in multiprocessing.active_children():
            if process not in self._others:
                process.kill()


def _new_worker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_start)


def _replaced(worker: ProcessPoolExecutor) -> ProcessPoolExecutor:
    worker.shutdown(wait=False)
    return _new_worker()


def _start() -> None:
    """Ctrl-C and SIGTERM often go to all processes of a service, but only the main one acts on them; if it is gone,
    however that came, so is this one. And libtiff writes hundreds of lines about a broken file to descriptor 2."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _end_with_the_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(0)


def _pixels(image: Base64 | bytes, recipe: Recipe, limits: Limits) -> Pixels | Failure:
    data = Fetcher(limits).fetch(image)  # which makes bytes of base64, and sees to their number
    if isinstance(data, Failure):
        return data
    try:
        with end_process_after(limits.decode_seconds):
            return decode(data, recipe, limits)
    except DecodeError as error:
        return Failure.of(error)
