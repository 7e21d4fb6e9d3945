"""One run at a time on one output."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from pathlib import Path

from deit_batch.errors import OutputError, UsageError

logger = logging.getLogger("deit_batch")

_HOLDER = "process "
"""How the file of a lock begins; nothing stands in it while it is being taken."""


def describe_this_process() -> str:
    """For whoever finds that it holds a result."""
    return f"{_HOLDER}{os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"


def held_by(holder: str, what: str) -> OutputError:
    return OutputError(f"{what} is being written by {holder}; wait for it, or give another --out")


class Lock:
    """Held by this process until it is released or the process ends, however it ends: a lock of the system, not the
    mere presence of a file, so nothing stale can block. It is not inherited by workers, which may outlive a run."""

    def __init__(self, path: Path, what: str, *, wait: bool = False) -> None:
        """Raises OutputError, saying who holds it, if another process does, unless it is to `wait` for that; and if a
        file of that name is no lock."""
        self._path = path
        while True:
            self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as the lock is held
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                self._file.seek(0)
                holder = self._file.read().strip() or "another process"
                self._file.close()
                raise held_by(holder, what) from None
            if self._is_there():
                break
            self._file.close()  # its last holder has just removed it
        self._file.seek(0)
        if self._file.read(len(_HOLDER)) not in ("", _HOLDER):
            self._file.close()
            raise UsageError(f"{path} is there and is no lock of a run; give another --out")
        self._file.truncate(0)
        self._file.write(describe_this_process())
        self._file.flush()

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False

    def require(self) -> None:
        """Nothing can take it away."""

    def release(self) -> None:
        """A file that can't be removed is said, and blocks nothing."""
        try:
            self._path.unlink(missing_ok=True)
            self._file.close()
        except OSError as error:
            logger.warning("%s can't be removed (%s): it blocks nothing", self._path, error.strerror)
