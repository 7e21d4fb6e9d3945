"""Files whose content somebody else wrote: only regular ones are read, and no more of one than its kind can need."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from deit_batch.system.git_lfs import NOT_HERE, is_pointer

MOST_SETTINGS_BYTES = 8 * 2**20
"""Of a file that says how others are to be read. The config.json of a model with 20,000 labels has 1.5 MB; JSON of this
size takes some 200 MB of memory at the worst."""

_NOT_WAITING = getattr(os, "O_NONBLOCK", 0)
"""Else a pipe would wait for its writer; on Windows, where there is no such way of opening, no file is one."""


def read_regular_file(path: str | Path, most_bytes: int) -> bytes:
    """Its bytes, one more than `most_bytes` at the most. Raises OSError; of EINVAL for a pipe or a device, which would
    be read for ever, and ValueError for what can't be a file's name."""
    with open(path, "rb", opener=_open_regular) as file:
        return file.read(most_bytes + 1)


def _open_regular(path: str, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | _NOT_WAITING)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise OSError(errno.EINVAL, "not a regular file", path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor


def read_settings(path: Path) -> bytes:
    """The bytes of a file that says how others are to be read. Raises OSError as `read_regular_file`, and ValueError
    for one that is too large or is not itself here."""
    return require_settings(read_regular_file(path, MOST_SETTINGS_BYTES))


def require_settings(data: bytes) -> bytes:
    """The bytes of such a file, of which one more than MOST_SETTINGS_BYTES has been read at the most, if they are all
    there; else raises ValueError."""
    if len(data) > MOST_SETTINGS_BYTES:
        raise ValueError(f"it is larger than {MOST_SETTINGS_BYTES:,} bytes")
    if is_pointer(data):
        raise ValueError(NOT_HERE)
    return data
