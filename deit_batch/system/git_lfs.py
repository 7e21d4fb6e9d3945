"""Files that stand for others: a clone without Git LFS has only pointers
(https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""

from __future__ import annotations

_POINTER = b"version https://git-lfs.github.com/spec/"

NOT_HERE = "a pointer of Git LFS, and not the file itself: run 'git lfs pull' where it lies"


def is_pointer(start: bytes) -> bool:
    """Whether a file that begins so is one."""
    return start.startswith(_POINTER)


def is_pointer_file(path: str) -> bool:
    """Whether there is a file that is one."""
    try:
        with open(path, "rb") as file:
            return is_pointer(file.read(len(_POINTER)))
    except OSError:
        return False
