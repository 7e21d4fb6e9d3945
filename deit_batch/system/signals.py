"""Ctrl-C and SIGTERM: finish the batch in hand, but never take long about it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from deit_batch.errors import Interrupted

SECONDS_TO_FINISH = 3.0
"""How long the batch in hand may take; then the run stops where it is. What is written stays whole either way."""


class Stop:
    """Whether a signal has asked to stop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._signum: int | None = None

    @property
    def asked(self) -> bool:
        return self._signum is not None

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            raise Interrupted(signum)  # asked twice: now
        self._signum = signum
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def _now(self, signum: int, frame: FrameType | None) -> None:
        raise Interrupted(self._signum or signal.SIGTERM)

    def check(self) -> None:
        """Between two batches. Raises Interrupted if a signal has come."""
        if self._signum is not None:
            raise Interrupted(self._signum)


@contextmanager
def stop_on_signals(seconds: float = SECONDS_TO_FINISH) -> Iterator[Stop]:
    stop = Stop(seconds)
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals belong to the main thread, and to the program that runs us in another
        return
    handlers = {signal.SIGINT: stop._ask, signal.SIGTERM: stop._ask, signal.SIGALRM: stop._now}
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield stop
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in before.items():
            signal.signal(signum, handler)
