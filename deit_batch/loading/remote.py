"""What reading from other machines needs, whatever the protocol: faults that pass, a limit of size, turns by host."""

from __future__ import annotations

import threading
from weakref import WeakValueDictionary

from deit_batch.errors import FetchError
from deit_batch.limits import Limits


class TransientFetchError(FetchError):
    """A fault that may be gone in a moment. `wait`: how many seconds the server asks for. `throttled`: a store says
    that it is asked too often."""

    def __init__(self, message: str, wait: float | None = None, *, throttled: bool = False) -> None:
        super().__init__(message)
        self.wait = wait
        self.throttled = throttled


def too_large(limits: Limits) -> FetchError:
    return FetchError(f"larger than {limits.image_bytes:,} bytes")


class HostLimit:
    """Lets so many threads at a time read from one host."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._lock = threading.Lock()
        self._hosts: WeakValueDictionary[str, threading.Semaphore] = WeakValueDictionary()
        """Those that are being read from: a server that runs for months must not remember all it ever saw."""

    def of(self, host: str) -> threading.Semaphore:
        with self._lock:
            return self._hosts.setdefault(host, threading.Semaphore(self._at_once))
