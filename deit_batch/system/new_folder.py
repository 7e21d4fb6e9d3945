"""A new folder that one process makes at a time, and that appears whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deit_batch.errors import UsageError
from deit_batch.system.atomic import behind_links, mend_folder, publish_folder, temporary_folder
from deit_batch.system.lock import Lock


@contextmanager
def new_folder(out: Path, *, wait: bool = False) -> Iterator[Path]:
    """An empty folder, which is renamed to `out` when the block ends without an exception, and removed otherwise.
    `wait`: for another process that is making the same one.

    Raises UsageError if `out` is there, OutputError if another process is making it, OSError if it can't be made."""
    target = behind_links(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(target.with_name(f"{target.name}.lock"), str(out), wait=wait)
    try:
        if target.exists():
            raise UsageError(f"{out} is there already; name a new folder, or remove it")
        mend_folder(target)
        growing = temporary_folder(target)
        try:
            yield growing
            publish_folder(growing, target, replace=False)
        finally:
            shutil.rmtree(growing, ignore_errors=True)
    finally:
        lock.release()
