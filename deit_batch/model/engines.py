"""How forward passes are run: on a CPU side by side in threads, on a GPU one by one, with the copies beside them.

Both take uint8 pixels on the CPU, [n, height, width, 3], and give float32 scores (or features) of each on the CPU,
[n, ...], when asked.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Scores: TypeAlias = Callable[[Tensor], Tensor]
"""uint8 [n, height, width, 3] to float32 [n, classes], or [n, features, width]; both on the same device."""

Result: TypeAlias = Callable[[], Tensor]
"""Waits for a pass's end, and returns its scores or raises what went wrong."""


class Engine(Protocol):
    def start(self, pixels: Tensor, pass_size: int) -> Result:
        """Begins a pass of `pass_size` images, of which the first are given, and black ones fill up the rest. May raise
        torch.OutOfMemoryError, as may the result, which must not keep the error: its traceback holds the tensors of the
        pass."""

    def empty_cache(self) -> None:
        """Gives back the device's memory that torch holds though nothing uses it."""

    def close(self) -> object: ...


class Threads:
    """Each pass in a thread of its own, `passes` at once, each with so many `threads` for its operations. With all
    cores in one pass, each would wait for the slowest after every operation, and a core that also decodes would hold up
    the others."""

    def __init__(self, scores: Scores, device: torch.device, *, passes: int, threads: int) -> None:
        self._scores, self._device = scores, device
        self._pool = ThreadPoolExecutor(passes, "forward", torch.set_num_threads, (threads,))
        # Called by the user, or else when the program ends: later, what it needs may be gone.
        self.close = weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def start(self, pixels: Tensor, pass_size: int) -> Result:
        ended = self._pool.submit(self._pass, pixels, pass_size)

        def result() -> Tensor:
            found = ended.result()
            if isinstance(found, str):
                raise torch.OutOfMemoryError(found)
            return found

        return result

    @torch.inference_mode()
    def _pass(self, pixels: Tensor, pass_size: int) -> Tensor | str:
        """The scores, or what is said of memory that is full. Were it raised here, the future would keep the error, and
        with it the tensors of the pass, until somebody asks for the result."""
        try:
            return self._scores(_filled(pixels.to(self._device), pass_size))[: len(pixels)].cpu()
        except torch.OutOfMemoryError as error:
            return str(error)

    def empty_cache(self) -> None:
        if self._device.type == "mps":
            torch.mps.empty_cache()


@contextmanager
def one_thread_beside(device: torch.device) -> Iterator[None]:
    """On a GPU, what torch's threads have to do are small operations with the scores. While all cores decode, each
    would wait for the slowest of them, and the card for all (benchmarks/gpu.md)."""
    threads = torch.get_num_threads()
    if device.type == "cuda":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Streams:
    """While a pass computes, the pixels of the next are copied to the card and the scores of the last come back, each
    on a stream of its own; from and to pinned memory, or the copies would wait for each other. Nothing here waits for
    the card but a result (pytorch.org/docs/stable/notes/cuda.html, "CUDA streams", "Use pinned memory buffers")."""

    def __init__(self, scores: Scores, device: torch.device) -> None:
        self._scores, self._device = scores, device
        self._computing = torch.cuda.current_stream(device)
        self._going, self._coming = torch.cuda.Stream(device), torch.cuda.Stream(device)

    @torch.inference_mode()
    def start(self, pixels: Tensor, pass_size: int) -> Result:
        with torch.cuda.device(self._device):
            return self._start(pixels, pass_size)

    def _start(self, pixels: Tensor, pass_size: int) -> Result:
        with torch.cuda.stream(self._going):
            there = pixels.to(self._device, non_blocking=True)
        self._computing.wait_stream(self._going)
        there.record_stream(self._computing)  # its memory is not to be used again before that is through with it
        scores = self._scores(_filled(there, pass_size))[: len(pixels)].clone()  # a graph's output is written over
        self._coming.wait_stream(self._computing)
        with torch.cuda.stream(self._coming):
            back = torch.empty(scores.shape, pin_memory=True)
            back.copy_(scores, non_blocking=True)
            scores.record_stream(self._coming)
            there_and_back = torch.cuda.Event()
            there_and_back.record()

        def result() -> Tensor:
            there_and_back.synchronize()
            return back

        return result

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()

    def close(self) -> None:
        with suppress(RuntimeError):  # the card has failed, which was said
            torch.cuda.synchronize(self._device)


def _filled(pixels: Tensor, count: int) -> Tensor:
    missing = count - len(pixels)
    return torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])]) if missing else pixels
