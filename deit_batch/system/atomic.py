"""Files and folders that appear whole or not at all, and outlive a power cut."""

from __future__ import annotations

import hashlib
import os
import shutil
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
    _sync(target.parent)


def publish_folder(source: Path, target: Path, *, replace: bool) -> None:
    """Renames the folder `source` to `target`, on the same file system, when all that is in it is synced. A folder
    that stands there already is replaced if `replace`; if not, this is an OSError, unless it is empty.

    No folder can be renamed onto one that is not empty, so replacing takes two renames: of the old one to TARGET.old,
    and of the new one. If the process dies, or the power fails,

        before the first     the old folder is at `target`, whole, and the new one at `source`
        between the two      nothing is at `target`; the old folder is at TARGET.old, whole, and the new one at `source`
        after the second     the new folder is at `target`, whole, and what is left of the old one at TARGET.old

    Nothing at `target` is mended by the next call with the same two names. It leaves TARGET.old alone: nothing says
    that this function has made it. Only the call that replaces a folder removes what has that name."""
    for path in (source, *source.rglob("*")):
        if path.is_file() or path.is_dir():
            _sync(path)
    replaces = replace and target.exists()
    old = target.with_name(f"{target.name}.old")
    if replaces:
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    rename_durably(source, target)
    if replaces:
        shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
