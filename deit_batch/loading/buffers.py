"""Memory for the pixels of a few batches, made once, shared with the decode workers and used again and again.

Without it every batch would be new shared memory: its pages are made in the worker, handed over by a socket and given
back by the main process, which takes longer than reading a small image.
"""

from __future__ import annotations

import logging
import mmap
import multiprocessing
import weakref
from contextlib import suppress

import torch
from torch import Tensor

logger = logging.getLogger("deit_batch")


class PixelBuffers:
    """`count` buffers, each for `shape` values. They are there before the workers are, which inherit them; pages
    that are never written to cost nothing."""

    def __init__(self, count: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._buffers: list[Tensor] = []
        if count and multiprocessing.get_start_method() == "fork":  # other workers inherit no memory
            with suppress(OSError):  # no room: the loader has another way
                size = count * torch.Size(shape).numel() * dtype.itemsize
                memory = torch.frombuffer(mmap.mmap(-1, size), dtype=dtype)
                self._buffers = list(memory.view(count, *shape))
        self._free = list(range(len(self._buffers)))
        self._is_pinned = False

    def __len__(self) -> int:
        return len(self._buffers)

    def __getitem__(self, number: int) -> Tensor:
        return self._buffers[number]

    def take(self, images: int) -> int | None:
        """The number of a buffer that nothing uses, the last that was given back; None if there is none that holds so
        many."""
        return self._free.pop() if self._free and images <= len(self._buffers[0]) else None

    def give_back(self, number: int) -> None:
        """Nothing reads it any more, and nothing writes to it."""
        self._free.append(number)

    def pin(self) -> None:
        """Registers the memory with CUDA, once, so that copies to the card need not wait
        (docs.nvidia.com/cuda/cuda-runtime-api, cudaHostRegister). After the workers have started: CUDA must not be
        initialised in a process that is then forked."""
        if self._is_pinned:
            return
        self._is_pinned = True
        pinned: list[int] = []
        weakref.finalize(self, _unregister, pinned)
        for buffer in self._buffers:
            try:
                error: object = int(torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0))
            except (AttributeError, RuntimeError, TypeError) as raised:  # another binding than the one we know
                error = raised
            if error:
                logger.debug("CUDA error %s: pixels are not pinned, and copies to the card wait for each other", error)
                _forget_last_error()
                return
            pinned.append(buffer.data_ptr())


def _unregister(addresses: list[int]) -> None:
    """Of memory that is given back while it is registered, CUDA refuses what is later made at the same address."""
    for address in addresses:
        if int(torch.cuda.cudart().cudaHostUnregister(address)):
            _forget_last_error()


def _forget_last_error() -> None:
    """Else the next operation on the card raises it as its own."""
    with suppress(RuntimeError, AssertionError):  # the second, of a torch without CUDA
        torch.zeros(1, device="cuda")
