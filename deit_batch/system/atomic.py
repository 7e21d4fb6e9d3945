"""Files that appear whole or not at all, and outlive a power cut."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deit_batch.errors import OutputError, UsageError


def require_room(path: Path, option: str) -> None:
    """Raises UsageError where no file could be put: better before the work than after it."""
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: the folder {path.parent} can't be written to")


def write_atomically(path: Path, data: bytes) -> None:
    """Writes the file whole or not at all: beside it first, synced, then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    rename_durably(temporary, path)


def rename_durably(source: Path, target: Path) -> None:
    """Renames, and syncs the folder, so that the new name outlives a power cut."""
    os.replace(source, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def digest_of(path: Path) -> dict[str, object]:
    """What tells a finished result from any other."""
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Raises OutputError for what the system says while `target` is being written."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{target}: can't be written: {error.strerror or error}; what is scored so far is kept: make room or "
            "mend the folder, and run the same command again to continue"
        ) from error
