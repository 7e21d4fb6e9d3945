"""Image files by name: one, those of a folder or of a glob, on a disk or a store, in an order that is the same on every
machine."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from deit_batch.errors import InputError, UsageError
from deit_batch.input.kinds import InputKind, InputName, image_endings, is_image_name
from deit_batch.input.passed_over import FOLDERS, SEEN_FOLDERS, counts_of, ending_of, pass_over, photos_in, remedy
from deit_batch.io import LocalFile, Reference, Source, StoredFile, counted
from deit_batch.system import object_store

logger = logging.getLogger("deit_batch")


def open_image(path: str) -> Source:
    others = sum(other != path for other in _glob(path, Counter())) if glob.has_magic(path) else 0
    if others:
        logger.warning(
            "%s is the name of a file, read alone; as a pattern it has %s more", path, counted(others, "image")
        )
    return _files(lambda passed_over: iter([path]), "")


def open_folder(folder: str, recursive: bool) -> Source:
    return _files(lambda passed_over: _walk(folder, recursive, passed_over, set()), f"{folder} holds no image")


def open_glob(pattern: str) -> Source:
    return _files(lambda passed_over: _glob(pattern, passed_over), f"{pattern} matches no image")


def _files(find: Callable[[Counter[str]], Iterator[str]], if_empty: str) -> Source:
    """The files that `find` yields. It is run twice: names alone are quick to count, for the time that is left."""
    count = sum(1 for _ in find(Counter()))
    passed_over: Counter[str] = Counter()
    if not count:
        for _ in find(passed_over):
            pass
        raise _no_image(if_empty, passed_over)
    references = (Reference(index, path, LocalFile(path)) for index, path in enumerate(find(passed_over)))
    return Source(references, lambda read: count, passed_over)


def _no_image(what: str, passed_over: Counter[str]) -> UsageError:
    reasons = counts_of(passed_over) or "it is empty"
    photos = photos_in(passed_over)
    hint = f"; to have its photos read, {remedy(photos)}" if photos else ""
    return UsageError(f"{what} ({reasons}); known names end in {' '.join(sorted(image_endings()))}{hint}")


def open_stored(spec: str, given: InputName, recursive: bool) -> Source:
    """An image on a store, or a folder, which is listed as it is scored: so nobody knows how many there are. Raises
    UsageError for a pattern, as for an object that is not there."""
    store, path = object_store.open_store(spec)
    passed_over: Counter[str] = Counter()
    try:
        if given.kind is InputKind.FOLDER:
            path = path.rstrip("/") + "/"
            files = _images(store.list(path, recursive=recursive), len(store.address(path)), passed_over)
        else:
            files = iter([store.look_at(path)])
        first = list(islice(files, 1))
    except object_store.StoreError as error:
        hint = "; patterns are for folders on a disk: give the folder, or a list" if glob.has_magic(spec) else ""
        raise UsageError(f"{spec}: can't be read: {error}{hint}") from error
    if not first:
        raise _no_image(f"{spec} holds no image", passed_over)
    references = (Reference(index, file.address, file) for index, file in enumerate(_until_broken(spec, first, files)))
    return Source(references, passed_over=passed_over)


def _images(found: Iterator[StoredFile | str], start: int, passed_over: Counter[str]) -> Iterator[StoredFile]:
    """`start`: how long the folder's own address is."""
    for file in found:
        if isinstance(file, str):
            pass_over(passed_over, FOLDERS)
        elif file.address.startswith(".", start) or "/." in file.address[start:]:
            pass_over(passed_over, "hidden")
        elif is_image_name(file.address):
            yield file
        else:
            pass_over(passed_over, ending_of(file.address))


def _until_broken(spec: str, first: Iterable[StoredFile], files: Iterable[StoredFile]) -> Iterator[StoredFile]:
    last = ""
    try:
        for file in chain(first, files):
            yield file
            last = file.address
    except object_store.StoreError as error:
        raise InputError(f"{spec}: can't be listed past {last}: {error}") from error


def walk_images(folder: str) -> Iterator[str]:
    """Those in a folder on a disk, at whatever depth."""
    return _walk(folder, True, Counter(), set())


def _walk(folder: str, recursive: bool, passed_over: Counter[str], seen: set[tuple[int, int]]) -> Iterator[str]:
    """The images under a folder, by name, byte for byte (a locale would order them otherwise on another machine).

    Links to folders are followed, but each folder is entered once, under the first of its names."""
    inside = [_names(folder, seen)]  # of each folder from `folder` down, what is still to come
    while inside:
        path = next(inside[-1], None)
        if path is None:
            inside.pop()
        elif os.path.basename(path).startswith("."):
            pass_over(passed_over, "hidden")
        elif os.path.isdir(path):
            status = os.stat(path)
            if not recursive:
                pass_over(passed_over, FOLDERS)
            elif (status.st_dev, status.st_ino) in seen:
                pass_over(passed_over, SEEN_FOLDERS)
            else:
                inside.append(_names(path, seen))
        elif is_image_name(path):
            yield path
        else:
            pass_over(passed_over, ending_of(path))


def _names(folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    try:
        status = os.stat(folder)
        names = sorted(os.listdir(os.fsencode(folder)))  # bytes: half the memory of what scandir gives
    except OSError as error:
        raise InputError(f"{folder}: can't be listed: {error.strerror}") from error
    seen.add((status.st_dev, status.st_ino))
    return (os.path.join(folder, os.fsdecode(name)) for name in names)


def _glob(pattern: str, passed_over: Counter[str]) -> Iterator[str]:
    """As the shell's: `**` is any depth of folders, not through links, and hidden names must be asked for."""
    path = Path(pattern)
    start = Path(path.anchor)
    wanted = {part for part in path.parts if part.startswith(".")}
    try:
        matching = sorted(start.glob(str(path.relative_to(start))), key=os.fsencode)
    except RecursionError as error:
        raise UsageError(f"{pattern}: there are folders too deep for a pattern; give the folder") from error
    for found in matching:
        if any(part.startswith(".") and part not in wanted for part in found.parts):
            pass_over(passed_over, "hidden")
        elif found.is_dir():
            pass_over(passed_over, FOLDERS)
        elif is_image_name(found.name):
            yield str(found)
        else:
            pass_over(passed_over, ending_of(found.name))
