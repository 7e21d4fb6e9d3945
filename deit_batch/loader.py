"""References to batches of pixels: a PyTorch DataLoader whose "sampler" is the lazily read input.

DataLoader hands each list that the batch sampler yields to the data set's `__getitems__` in a worker, and gives the
results back in order, reading ahead no further than workers x prefetch factor batches. So order and back-pressure
come with it, and neither the input nor the results are ever held whole.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deit_batch.errors import DecodeError, DeitBatchError
from deit_batch.fetch import Fetcher, Limits
from deit_batch.images import Recipe, decode
from deit_batch.io import Base64, Failure, Reference

PREFETCH_FACTOR = 2
MAX_INLINE_CHARS = 32 * 2**20


class Decoded(NamedTuple):
    """`pixels`: uint8 [n, height, width, 3] of the n images that could be read, in order; `failures`: of the others,
    by their place in the batch."""

    pixels: Tensor
    failures: dict[int, Failure]


def batched(references: Iterable[Reference], batch_size: int) -> Iterator[list[Reference]]:
    """Lists of `batch_size` references; shorter where images in the input itself (base64) would fill the memory.

    The cuts depend on the input alone: a run that is continued makes the same batches, so it computes the same scores
    to the last bit."""
    batch: list[Reference] = []
    inline = 0
    for reference in references:
        batch.append(reference)
        inline += _inline_chars(reference)
        if len(batch) == batch_size or inline > MAX_INLINE_CHARS:
            yield batch
            batch, inline = [], 0
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


class Decoder(Dataset[Decoded]):
    """The data set: its "indices" are references, fetched and decoded where the worker runs."""

    def __init__(self, recipe: Recipe, limits: Limits) -> None:
        self._recipe = recipe
        self._fetcher = Fetcher(limits)

    def __getitems__(self, references: list[Reference]) -> Decoded:
        height, width = self._recipe.size
        pixels = torch.empty((len(references), height, width, 3), dtype=torch.uint8)
        failures: dict[int, Failure] = {}
        rows: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = list(pixels.numpy())
        for place, data in enumerate(self._fetcher.fetch_all([reference.location for reference in references])):
            try:
                if isinstance(data, bytes):
                    rows[place - len(failures)][:] = decode(data, self._recipe)
                else:
                    failures[place] = data
            except DecodeError as error:
                failures[place] = Failure.of(error)
        return Decoded(pixels[: len(references) - len(failures)], failures)


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
    """Iterates over (references, decoded) in input order. The workers start at once, in the constructor, so that they
    fetch and decode while the model loads."""

    def __init__(
        self, batches: Iterable[list[Reference]], recipe: Recipe, limits: Limits, *, workers: int, pin_memory: bool
    ) -> None:
        self._in_flight: deque[list[Reference]] = deque()
        self._input_error: DeitBatchError | None = None
        others = multiprocessing.active_children()
        with warnings.catch_warnings():
            # More workers than cores are right where they wait for a network.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            loader = DataLoader(
                Decoder(recipe, limits),
                batch_sampler=self._sampler(batches),
                num_workers=workers,
                prefetch_factor=PREFETCH_FACTOR if workers else None,
                collate_fn=_as_it_is,
                worker_init_fn=_start_worker,
                pin_memory=pin_memory,
            )
            self._decoded: Iterator[Decoded] = iter(loader)
        ours = [child for child in multiprocessing.active_children() if child not in others]
        # Called by the user, or else when this object or the program ends.
        self.close = weakref.finalize(self, _end, ours)

    def _sampler(self, batches: Iterable[list[Reference]]) -> Iterator[list[Reference]]:
        try:
            for batch in batches:
                # What is needed to write the records, without the images that came in the input itself.
                self._in_flight.append([replace(reference, location=b"") for reference in batch])
                yield batch
        except DeitBatchError as error:
            self._input_error = error  # raised when all that was read before it is through

    def __iter__(self) -> Iterator[tuple[list[Reference], Decoded]]:
        for decoded in self._decoded:
            yield self._in_flight.popleft(), decoded
        if self._input_error:
            raise self._input_error


def _end(workers: list[BaseProcess]) -> None:
    """Ends the workers at once, whatever they are in the middle of; asked politely, DataLoader would wait for a slow
    fetch. DataLoader takes the end of a worker for an accident, unless it does not hear of it."""
    if threading.current_thread() is not threading.main_thread():
        return  # signals can only be arranged from there; the workers end after the batch in hand
    heard_by = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()
    signal.signal(signal.SIGCHLD, heard_by)


def _as_it_is(decoded: Any) -> Any:
    return decoded
