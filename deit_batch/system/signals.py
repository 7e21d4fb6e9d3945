"""Ctrl-C, SIGTERM, SIGHUP and a limit of time: finish the batch in hand, but never take long about it."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from deit_batch.errors import Interrupted, TimeIsUp

SECONDS_TO_FINISH = 3.0
"""How long the batch in hand may take; then the run stops where it is. What is written stays whole either way."""

HANGUP: tuple[signal.Signals, ...] = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()
"""What comes when a terminal or a connection has gone; on Windows, nothing."""

_HAS_ALARM = hasattr(signal, "setitimer")


def stopping_signals() -> list[signal.Signals]:
    """Those that ask to stop. Under nohup, SIGHUP is ignored, and stays so."""
    heard = [signum for signum in HANGUP if signal.getsignal(signum) is not signal.SIG_IGN]
    return [signal.SIGINT, signal.SIGTERM, *heard]


class Stop:
    """Whether a signal, or the time, has asked to stop."""

    def __init__(self, seconds: float, time_limit: float | None = None) -> None:
        self._seconds = seconds
        self._end = None if time_limit is None else time.monotonic() + time_limit
        self._signum: int | None = None
        self._timer: threading.Timer | None = None

    @property
    def asked(self) -> bool:
        return self._signum is not None

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            raise Interrupted(signum)  # asked twice: now
        self._signum = signum
        if _HAS_ALARM:
            signal.setitimer(signal.ITIMER_REAL, self._seconds)
        else:  # Windows: as if it had come again, for the main thread to see when it is back in Python
            self._timer = threading.Timer(self._seconds, _thread.interrupt_main, [signum])
            self._timer.daemon = True
            self._timer.start()

    def _end_alarm(self) -> None:
        if _HAS_ALARM:
            signal.setitimer(signal.ITIMER_REAL, 0)
        elif self._timer:
            self._timer.cancel()

    def _now(self, signum: int, frame: FrameType | None) -> None:
        raise Interrupted(self._signum or signal.SIGTERM)

    def check(self) -> None:
        """Between two batches. Raises Interrupted if a signal has come, TimeIsUp if the time limit has passed."""
        if self._signum is not None:
            raise Interrupted(self._signum)
        if self._end is not None and time.monotonic() >= self._end:
            raise TimeIsUp


@contextmanager
def stop_on_signals(seconds: float = SECONDS_TO_FINISH, *, time_limit: float | None = None) -> Iterator[Stop]:
    """`time_limit`: seconds from now on."""
    stop = Stop(seconds, time_limit)
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals belong to the main thread, and to the program that runs us in another
        return
    handlers = dict.fromkeys(stopping_signals(), stop._ask)
    if _HAS_ALARM:
        handlers[signal.SIGALRM] = stop._now
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield stop
    finally:
        stop._end_alarm()
        for signum, handler in before.items():
            signal.signal(signum, handler)
