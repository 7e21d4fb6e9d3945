"""One run at a time on one output."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from deit_batch.errors import OutputError, UsageError
from deit_batch.system.process import HOLDER, describe_this_process

logger = logging.getLogger("deit_batch")

_MOST_BYTES = 1000
_PATIENCE = 0.2
"""Seconds, for one that is just being released."""


def held_by(holder: str, what: str) -> OutputError:
    return OutputError(f"{what} is being written by {holder}; wait for it, or give another --out")


class Lock:
    """Held by this process until it is released or the process ends, however it ends: a lock of the system, not the
    mere presence of a file, so nothing stale can block. It is not inherited by workers, which may outlive a run."""

    def __init__(self, path: Path, what: str, *, wait: bool = False) -> None:
        """Raises OutputError, saying who holds it, if another process does, unless it is to `wait` for that; and if a
        file of that name is no lock."""
        from filelock import FileLock, Timeout

        self._path = path
        self._lock = FileLock(path, thread_local=False, fallback_to_soft=False, on_acquired=self._sign)
        try:
            self._lock.acquire(timeout=-1 if wait else _PATIENCE)
        except Timeout:
            raise held_by(_holder_of(path), what) from None

    def _sign(self, descriptor: int) -> None:
        """Writes into the lock who holds it. Nothing stands in one that is being taken."""
        if os.read(descriptor, len(HOLDER)) not in (b"", HOLDER.encode()):
            raise UsageError(f"{self._path} is there and is no lock of a run; give another --out")
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, describe_this_process().encode())

    def require(self) -> None:
        """Nothing can take it away."""

    def ask(self) -> None:
        """As require."""

    def release(self) -> None:
        """A file that can't be removed is said, and blocks nothing."""
        try:
            if os.name != "nt":  # there, no file is removed that is open; filelock does it afterwards
                self._path.unlink(missing_ok=True)  # whoever waits for it sees that it is gone, and takes a new one
        except OSError as error:
            logger.warning("%s can't be removed (%s): it blocks nothing", self._path, error.strerror)
        finally:
            self._lock.release()


def _holder_of(path: Path) -> str:
    """What stands in the file of a lock but for its first byte, which on Windows is what is locked, and is not read."""
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(1)
            rest = file.read(_MOST_BYTES)
    except OSError:  # released just now
        rest = b""
    return (HOLDER[0] + rest.decode(errors="replace")).strip() if rest else "another process"
