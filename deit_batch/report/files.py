"""A finished file under its name."""

from __future__ import annotations

from pathlib import Path

from deit_batch.errors import OutputError
from deit_batch.system.atomic import write_atomically


def write_file(path: Path, data: bytes) -> None:
    """Raises OutputError if it can't be written; what was there before then still is."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror}") from error
