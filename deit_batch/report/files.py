"""A finished file under its name."""

from __future__ import annotations

from pathlib import Path

from deit_batch.errors import OutputError
from deit_batch.system.atomic import make_missing_folder, write_atomically


def write_file(path: Path, data: bytes) -> None:
    """Raises OutputError if it can't be written, UsageError if there is no place for it; what was there before
    then still is."""
    make_missing_folder(path)
    try:
        write_atomically(path, data)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror}") from error
