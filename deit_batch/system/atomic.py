"""Files and folders that appear whole or not at all, and outlive a power cut."""

from __future__ import annotations

import ctypes
import glob
import hashlib
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from deit_batch.errors import OutputError, UsageError
from deit_batch.redaction import redact
from deit_batch.system import object_store

logger = logging.getLogger("deit_batch")

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_SHOWN = 40
"""Characters of a name that the names of its temporary files begin with."""
_REPLACED = ".replaced"
"""The mark in a folder that another takes the place of."""
_WINDOWS = os.name == "nt"
"""Where a file that is open can be neither renamed nor removed, no folder can be synced, and no file that was opened
for reading."""
_DEAD_AFTER = 86_400.0
"""Seconds, on Windows."""
_HERE = -100
"""AT_FDCWD of Linux: paths are as they are for any other call."""
_SWAP = 2
"""RENAME_EXCHANGE of Linux, and RENAME_SWAP of macOS."""


def require_room(path: Path, option: str) -> None:
    """Raises UsageError where no file could be put: better before the work than after it."""
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: the folder {path.parent} can't be written to")


def make_missing_folder(path: Path) -> None:
    """Makes the folder that the --out `path` is to lie in, if it alone is missing, and says so. Where more is missing,
    a disk may not be mounted, and another would be filled: raises UsageError. Raises OutputError if it can't be made.
    """
    folder = path.parent
    if folder.is_dir():
        return
    if not folder.parent.is_dir():
        name = os.path.basename(redact(str(folder)))
        raise UsageError(f"--out {path}: there is no folder {folder.parent}, nor {name} in it; make the first")
    try:
        folder.mkdir()
    except OSError as error:
        raise OutputError(f"{folder}: no folder can be made: {error.strerror}") from error
    logger.info("made the folder %s", folder)


def behind_links(path: Path | str) -> Path:
    """The file or folder that is meant: a link as an output stays a link, and what it leads to is replaced."""
    return Path(os.path.realpath(path))


def is_same_file(one: str, other: str) -> bool:
    """Whether two names, of which neither need exist, are of one file or folder."""
    if "-" in (one, other):  # a stream, whatever the folder has of that name
        return False
    try:
        return one == other or os.path.samefile(one, other)
    except (OSError, ValueError):  # one of them is not there, or no path at all: base64 is long
        return False


def is_inside(path: str, folder: str) -> bool:
    """Whether a file of this name, which need not exist, lies in the folder, or is the folder."""
    if path == "-" or object_store.is_stored(path) != object_store.is_stored(folder):
        return False
    if object_store.is_stored(path):
        return object_store.is_below(path, folder)
    real, around = os.path.realpath(path), os.path.realpath(folder)
    return real == around or real.startswith(os.path.join(around, ""))


def require_not_read(option: str, out: str, written: Iterable[str], inputs: Iterable[str]) -> None:
    """Raises UsageError if one of the inputs is one of the files and folders `written` for the option, or lies in
    one."""
    inputs = list(inputs)
    written = list(written)
    for path in written:
        for read in inputs:
            if _is_written_over(read, path):
                raise UsageError(f"{option} {out} would take the place of the input {read}")
    there = [os.path.realpath(path) for path in written if not object_store.is_stored(path) and os.path.exists(path)]
    for pattern in inputs:
        if there and glob.has_magic(pattern) and not os.path.exists(pattern) and "://" not in pattern:
            for read in _lying_in(there, glob.iglob(pattern, recursive=True)):
                raise UsageError(f"{option} {out} would take the place of the input {read}")


def _lying_in(written: Sequence[str], found: Iterable[str]) -> Iterator[str]:
    """Of the names found, those of a file or folder `written`, or of something in one."""
    real_folder = cache(os.path.realpath)
    for path in found:
        folder, name = os.path.split(path)
        real = os.path.join(real_folder(folder or os.curdir), name)
        if any(real == one or real.startswith(one + os.sep) for one in written):
            yield path


def _is_written_over(read: str, written: str) -> bool:
    if object_store.is_stored(written):
        return read == written
    if not os.path.exists(written) or read == "-":
        return False
    return (os.path.exists(read) and is_inside(read, written)) or is_same_file(read, written)


def write_atomically(path: Path, data: bytes, *, sweeps: bool = True, mode: int | None = None) -> None:
    """Writes the file whole or not at all, whoever else may be writing the same: the last one's stands. A device or a
    pipe is written into. `sweeps`: whether to look for what dead writers have left; not for one of many in a folder.
    `mode`: who may read and write it, where that is not what the umask says."""
    target = behind_links(path)
    if target.exists() and not target.is_file() and not target.is_dir():
        target.write_bytes(data)
        return
    with temporary_file(target) as temporary:
        with open(temporary, "wb") as file:
            file.write(data)
        if mode is not None:
            temporary.chmod(mode)
        sync_file(temporary)
        rename_durably(temporary, target)
    if sweeps:
        sweep_files(target)


@contextmanager
def temporary_file(target: Path) -> Iterator[Path]:
    """An empty file of a name of its own, to be renamed to `target`, beside it; removed at the end if it was not. It is
    locked meanwhile, by which `sweep_files` knows it from one that a dead process has left."""
    path = _temporary_name(target, "tmp")
    try:
        with _locked(path):
            yield path
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Makes the file, and holds a lock of it; on Windows, where that would keep it from being renamed, it only makes
    it."""
    if _WINDOWS:
        path.touch(exist_ok=False)
        yield
        return
    from filelock import lock_descriptor

    while True:
        file = open(path, "xb")  # noqa: SIM115 - open as long as the lock is held
        with suppress(OSError):  # a file system without locks: there, nothing is swept either
            lock_descriptor(file.fileno())
        if path.exists():
            break
        file.close()  # swept, before it was locked
    with file:
        yield


def sweep_files(target: Path) -> None:
    """Removes what dead writers of this file have left beside it."""
    for path in _litter(target, "tmp"):
        with suppress(OSError):  # gone meanwhile, being written, or not ours to remove
            if path.is_file():
                _remove_if_dead(path)


def remove_temporary_files(folder: Path) -> None:
    """Of whatever file in the folder; its caller holds it, and no other file has such a name."""
    with os.scandir(folder) as entries:
        found = [entry.path for entry in entries if _TEMPORARY.fullmatch(entry.name) and entry.is_file()]
    for path in found:
        os.unlink(path)


def _remove_if_dead(path: Path) -> None:
    """If nobody holds its lock; on Windows, if it is a day old, and nobody has it open: there, that would be an
    OSError."""
    if _WINDOWS:
        if time.time() - path.stat().st_mtime > _DEAD_AFTER:
            path.unlink()
        return
    from filelock import lock_descriptor

    with open(path, "rb") as file:
        if lock_descriptor(file.fileno(), blocking=False):
            path.unlink()


def _temporary_name(target: Path, ending: str) -> Path:
    """Not longer than names may be (255 bytes), whatever the target's."""
    return target.with_name(f".{target.name[:_SHOWN]}.{uuid.uuid4().hex}.{ending}")


def _litter(target: Path, ending: str) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(target.name[:_SHOWN])}\.[0-9a-f]{{32}}\.{ending}")
    try:
        return [target.parent / name for name in os.listdir(target.parent) if pattern.fullmatch(name)]
    except OSError:  # a folder that one may write into but not list
        return []


def rename_durably(source: Path, target: Path) -> None:
    """Renames, and syncs the folder, so that the new name outlives a power cut. Where the system does not confirm that,
    it is only said: the name is there."""
    os.replace(source, target)
    _sync_names(target)


def _sync_names(target: Path) -> None:
    try:
        _sync_folder(target.parent)
    except OSError as error:
        logger.warning(
            "%s is there and whole, but the system does not confirm that it would outlive a power cut: %s",
            target,
            error.strerror,
        )


@contextmanager
def standing(target: Path | str) -> Iterator[None]:
    """For what is tidied up when `target` has appeared: an error of the system is said, and does not end the run."""
    try:
        yield
    except (OSError, OutputError) as error:
        logger.warning("%s is there and whole, but tidying up after it failed: %s", target, error)


# --- folders ----------------------------------------------------------------------------------------------------------


def publish_folder(source: Path, target: Path, *, replace: bool) -> None:
    """Renames the folder `source` to `target`, on the same file system, when all that is in it is synced. A folder
    that stands there already is replaced if `replace`; if not, this is an OSError, unless it is empty. The caller holds
    the lock of the target, which is no link.

    The two are exchanged in one step where the system can do that (Linux: renameat2, macOS: renamex_np), so that one
    of them is at `target` at any moment. The old one is marked before, so that whoever finds it at `source`, of a
    process that was killed, knows that it has been replaced: `mend_folder` removes it. Where the system can't, the old
    one is renamed away first; if the process is killed before the new one is in its place, `mend_folder` puts the old
    one back."""
    _sync_all(source)
    if not (replace and target.exists()):
        rename_durably(source, target)
        return
    (target / _REPLACED).touch()
    if _exchange(source, target):
        _sync_names(target)
        _remove_replaced(source, target)
        return
    old = _temporary_name(target, "old")
    target.rename(old)
    try:
        rename_durably(source, target)
    except OSError:
        old.rename(target)
        raise
    _remove_replaced(old, target)


def _sync_all(folder: Path) -> None:
    """The folder and all in it, without a list of what that is: there may be millions of files."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                sync_file(Path(entry))
            elif entry.is_dir(follow_symlinks=False):
                _sync_all(Path(entry))
    _sync_folder(folder)


def mend_folder(target: Path, *sources: Path) -> None:
    """What a process that was killed in `publish_folder` has left of these is taken away or put back. The caller holds
    the lock of the target."""
    for source in sources:
        if (source / _REPLACED).exists():
            _remove_replaced(source, target)
    with suppress(OSError):  # there is none, or nothing may be changed there
        (target / _REPLACED).unlink()  # killed before the exchange: it has not been replaced
    for old in _litter(target, "old"):
        if target.exists():
            _remove_replaced(old, target)
        else:
            rename_durably(old, target)
    for folder in (folder for path in (target, *sources) for folder in _litter(path, "tmp")):
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)


def temporary_folder(target: Path) -> Path:
    """A new folder beside `target`, which whoever holds the target's lock after this process removes."""
    folder = _temporary_name(target, "tmp")
    folder.mkdir()
    return folder


def _remove_replaced(folder: Path, target: Path) -> None:
    with standing(target):
        remove_folder(folder, target)


def remove_folder(folder: Path, target: Path) -> None:
    """Under another name first: half of it would not be known for what it is. If this process is killed, `mend_folder`
    of the target removes the rest."""
    away = _temporary_name(target, "tmp")
    folder.rename(away)
    shutil.rmtree(away)


def _exchange(one: Path, other: Path) -> bool:
    """Gives each the other's name in one step: renameat2(2) with RENAME_EXCHANGE, renamex_np(2) with RENAME_SWAP. False
    where the system or the file system has nothing like it."""
    if _WINDOWS:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):
        return bool(libc.renameat2(_HERE, first, _HERE, second, _SWAP) == 0)
    if hasattr(libc, "renamex_np"):
        return bool(libc.renamex_np(first, second, _SWAP) == 0)
    return False


def sync_file(path: Path) -> None:
    """Returns when what was written into the file would outlive a power cut."""
    _sync(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)


def _sync_folder(path: Path) -> None:
    """The same of the names in a folder. Windows has no such call: NTFS keeps a journal of names."""
    if not _WINDOWS:
        _sync(path, os.O_RDONLY)


def _sync(path: Path, way: int) -> None:
    descriptor = os.open(path, way)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> dict[str, object]:
    """What tells a finished result from any other."""
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


@contextmanager
def beginning(target: object) -> Iterator[None]:
    """Raises OutputError for what the system says of `target` before the first image is read."""
    with as_output_error(target, "this run has scored nothing: mend that, or give another --out"):
        yield


@contextmanager
def writing(target: object) -> Iterator[None]:
    """Raises OutputError for what the system says while `target` is being written."""
    kept = "what is scored so far is kept: make room or mend the folder, and run the same command again to continue"
    with as_output_error(target, kept):
        yield


@contextmanager
def as_output_error(target: object, what_to_do: str) -> Iterator[None]:
    """Raises OutputError, with these words, for what the system says."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{target}: can't be written: {error.strerror or error}; {what_to_do}") from error
