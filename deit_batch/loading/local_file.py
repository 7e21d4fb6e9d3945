"""The bytes of a local file: a regular one, in the folder of --root if that is set."""

from __future__ import annotations

import os

from deit_batch.errors import FetchError
from deit_batch.input.kinds import image_endings
from deit_batch.io import LocalFile
from deit_batch.limits import Limits
from deit_batch.names import path_on_disk
from deit_batch.system import object_store
from deit_batch.system.missing_file import explain_missing
from deit_batch.system.regular_file import read_regular_file


def read_file(file: LocalFile, limits: Limits) -> bytes:
    """Its bytes, one more than the limit at the most. Raises FetchError."""
    try:
        return read_regular_file(confined(path_on_disk(file.path), limits.root), limits.image_bytes)
    except FileNotFoundError as error:
        raise FetchError(why_missing(file, limits.root)) from error
    except OSError as error:
        raise FetchError(error.strerror or str(error)) from error
    except ValueError as error:  # a NUL byte, or half a surrogate pair, in the name
        raise FetchError(f"not a file name: {error}") from error


def why_missing(file: LocalFile, root: str | None) -> str:
    """Of one that is not there. `root`: the folder outside of which nothing is spoken of."""

    def is_visible(path: str) -> bool:
        try:
            return os.path.exists(confined(path, root))
        except FetchError:
            return False

    return explain_missing(file.path, file.folder, is_visible=is_visible, endings=image_endings())


def confined(path: str, root: str | None) -> str:
    """The path with every link resolved, if a root is set: what is opened is what was checked."""
    if root is None:
        return path
    if object_store.is_stored(root):
        raise FetchError("outside of --root")
    root, real = os.path.realpath(root), os.path.realpath(path)
    if os.path.commonpath([root, real]) != root:
        raise FetchError("outside of --root")
    return real
