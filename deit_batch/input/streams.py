"""Files of bytes, on a disk or a store, as streams."""

from __future__ import annotations

import io
from typing import BinaryIO, cast

from deit_batch.errors import UsageError
from deit_batch.system import object_store
from deit_batch.system.git_lfs import NOT_HERE, is_pointer
from deit_batch.system.missing_file import explain_missing


def open_stream(path: str) -> io.BufferedReader:
    """Raises OSError if it can't be had, UsageError if it is no file of its own."""
    stream = object_store.open_stream(path) if object_store.is_stored(path) else open(path, "rb")  # noqa: SIM115
    if is_pointer(stream.peek()):
        raise UsageError(f"{path}: {NOT_HERE}")
    return stream


def open_input(path: str) -> BinaryIO:
    """Of an input, which is open to the end of the run. Raises UsageError if it can't be had."""
    try:
        return cast(BinaryIO, open_stream(path))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: {explain_missing(path)}") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
