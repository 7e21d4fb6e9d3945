"""Several processes that train one model, as `torchrun` and `accelerate launch` start them: which of them this one is,
and how they come to one mind. With one process, all of this is nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=7)
"""For the first process, while it decodes a data set."""


class Processes:
    """`count` of them, of which this is number `rank`; `here`: how many of them are on this machine."""

    def __init__(self, *, on_cpu: bool) -> None:
        """Connects them. On a CPU by gloo, on GPUs by NCCL."""
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if self.count > 1:
            self._state = PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)
        self.rank = self._state.process_index if self.count > 1 else 0

    @property
    def is_first(self) -> bool:
        """It alone writes what all of them share."""
        return self.rank == 0

    def device(self, chosen: torch.device) -> torch.device:
        """This one's own card, of those of that kind."""
        return self._state.device if self.count > 1 and chosen.type == "cuda" else chosen

    def agree(self, value: T) -> T:
        """The first one's value."""
        if self.count == 1:
            return value
        values = [value]
        broadcast_object_list(values, from_process=0)
        return values[0]

    def any(self, value: bool) -> bool:
        """Whether it is so in one of them."""
        return value if self.count == 1 else any(gather_object([value]))

    def wait_for_all(self) -> None:
        if self.count > 1:
            self._state.wait_for_everyone()

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The others come when the first is through."""
        if not self.is_first:
            self.wait_for_all()
        yield
        if self.is_first:
            self.wait_for_all()
