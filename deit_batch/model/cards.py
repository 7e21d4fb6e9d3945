"""The cards of a machine, each with a classifier of its own, to which batches go in turn; or the CPU, with one."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle

import torch
from torch import Tensor

from deit_batch.errors import DeitBatchError, UsageError
from deit_batch.io import counted
from deit_batch.model.classifier import Classifier, choose_device
from deit_batch.model.engines import Result
from deit_batch.system.logs import warn_even_if_quiet

logger = logging.getLogger("deit_batch")

_FAULT_OF_A_CARD = re.compile(r"\b(CUDA|cuDNN|cuBLAS)")
"""How messages of torch begin that are not ours: for most, it has no type (torch.AcceleratorError is a newer one)."""


def choose_devices(name: str) -> tuple[torch.device, ...]:
    """ "auto" and "cuda" are all cards that are visible, and "cuda:0,2" two of them; without a card, "auto" is the CPU.
    Raises UsageError for a device that this machine does not have."""
    names = device_names(name, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    if len(set(names)) < len(names):
        raise UsageError(f"--device {name}: it names a card twice")
    devices = tuple(map(choose_device, names))
    kinds = {torch.cuda.get_device_name(device) for device in devices if device.type == "cuda"}
    if len(kinds) > 1:
        logger.warning(
            "the cards are of several kinds (%s): the last digits of an image's scores depend on the one that it comes "
            "to; --device can name those of one kind",
            ", ".join(sorted(kinds)),
        )
    return devices


def device_names(name: str, cards: int) -> list[str]:
    """torch's names of what `--device` names, where so many cards are visible."""
    if name == "auto" and not cards:
        return ["cpu"]
    if name in ("auto", "cuda") and cards:
        return [f"cuda:{card}" for card in range(cards)]
    kind, _, numbers = name.partition(":")
    return [f"{kind}:{number}" for number in numbers.split(",")] if "," in numbers else [name]


def describe(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


class Cards:
    """Scores as a Classifier does; calling `submit` again before a result is asked for keeps all cards at work.

    The work is dealt out in turn and not to who is free: cards of one machine are mostly alike, and results are wanted
    in order. So a slow card holds up the others."""

    def __init__(self, devices: Sequence[torch.device], classifiers: Sequence[Classifier]) -> None:
        self._classifiers = classifiers
        self._turns = cycle(zip(devices, classifiers, strict=True))

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.submit(pixels)()

    def submit(self, pixels: Tensor) -> Result:
        """As of a Classifier. It and its result raise DeitBatchError if the card fails."""
        device, classifier = next(self._turns)
        with _faults_named(device):
            result = classifier.submit(pixels)

        def scores() -> Tensor:
            with _faults_named(device):
                return result()

        return scores

    def close(self) -> None:
        for classifier in self._classifiers:
            classifier.close()
        repeated = sum(classifier.repeated for classifier in self._classifiers)
        if repeated:
            warn_even_if_quiet(
                "scored in float32, for in float16 the scores are not finite: %s", counted(repeated, "image")
            )


@contextmanager
def _faults_named(device: torch.device) -> Iterator[None]:
    """A card that has failed can't be used again by this process, and what torch shares among cards (pinned memory,
    events) may fail next; so the run ends. (CUDA runtime API, cudaErrorIllegalAddress and others: "the process must be
    terminated and relaunched".)"""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not _FAULT_OF_A_CARD.search(str(error)):
            raise
        reason = str(error).splitlines()[0]
        raise DeitBatchError(
            f"{device} failed: {reason}; the same command goes on where this one stopped, and --device can leave out a "
            "card"
        ) from error
