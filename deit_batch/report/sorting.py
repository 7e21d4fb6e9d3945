"""Images into folders by what a run has found in them: by link, copy or move. Interrupted and run again, it goes on.

Where each image goes is decided once, and kept in a database in the folder before anything is done: so a second run
does what is missing, and nothing twice. A copy grows under a name of its own, and is renamed when it is whole."""

from __future__ import annotations

import errno
import filecmp
import logging
import os
import shutil
import sqlite3
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from deit_batch.errors import MALFORMED, OutputError, UsageError
from deit_batch.escaping import escape_controls
from deit_batch.io import NAME_FIELDS, Failure, LocalFile, Location, json_line
from deit_batch.names import path_on_disk
from deit_batch.output.read import read_records, read_run_report
from deit_batch.report.folder_names import file_names, folder_name, is_plain
from deit_batch.report.originals import find_originals
from deit_batch.system.atomic import (
    behind_links,
    digest_of,
    make_missing_folder,
    rename_durably,
    require_room,
    write_atomically,
)
from deit_batch.system.lock import Lock
from deit_batch.system.regular_file import read_regular_file

logger = logging.getLogger("deit_batch")

By: TypeAlias = Literal["link", "copy", "move"]

STATE = ".deit-batch-sort"
_NO_LABEL = "no-label"
_BATCH = 20_000
"""Records whose images are looked for at a time: a table is read once for each."""
_SETTINGS_BYTES = 2**16
_NO_LINKS = frozenset((errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP))
"""What file systems without links say, and Windows to most users."""
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Sorting:
    """What is asked for. `below`: the score under which an image goes to another folder, and its name; `failed`: the
    name of the folder for images that could not be scored; `images`: where relative names start from."""

    predictions: Path
    out: Path
    by: By = "link"
    below: tuple[float, str] | None = None
    failed: str = "failed"
    images: str | None = None

    def folder_of(self, record: dict[str, Any]) -> str:
        """For the image of the record."""
        if "error" in record:
            return self.failed
        best = record["predictions"][0] if record["predictions"] else None
        if self.below and (best is None or best["score"] < self.below[0]):
            return self.below[1]
        return folder_name(best["label"], self._own_names) if best else _NO_LABEL

    @property
    def _own_names(self) -> tuple[str, ...]:
        return (self.failed, _NO_LABEL, *([self.below[1]] if self.below else []))


@dataclass(slots=True)
class Sorted:
    """How many images are in each folder, how many of them have been there before, how many are in none, and how many
    records were of an image that an earlier one has put into the same folder."""

    folders: Counter[str] = field(default_factory=Counter)
    there: int = 0
    missing: int = 0
    again: int = 0

    def miss(self, name: str | None, why: str) -> None:
        self.missing += 1
        if self.missing <= _SHOWN:
            logger.warning("%s is not sorted: %s", escape_controls(name or "an image without a name"), why)


class _Miss(Exception):  # noqa: N818 - no fault
    """Why one image can't be put anywhere."""


class _Again(Exception):  # noqa: N818 - no fault
    """An earlier record of the image has put it into the same folder."""


@dataclass(frozen=True, slots=True)
class _Image:
    """`record`: the number of its record, by which a second run knows it."""

    record: int
    name: str | None
    location: Location
    folder: str


@dataclass(frozen=True, slots=True)
class _Placed:
    """From where an image comes, and its place below the folder that images are sorted into."""

    name: str | None
    source: str
    place: str


def preview(request: Sorting) -> Sorted:
    """What `sort_images` would do; nothing is written."""
    _require_names(request)
    out = behind_links(request.out)
    _require_own(out, request.out)
    if (out / STATE).is_dir():
        raise UsageError(f"--dry-run: {request.out} has images already; without it, what is missing there is added")
    result = Sorted()
    with closing(_Places(out, "")) as places:  # a database of its own, in no place
        for placed in _planned(request, out, places, result):
            result.folders.update(os.path.dirname(each.place) for each in placed)
    return result


def sort_images(request: Sorting, check: Callable[[], None]) -> Sorted:
    """Puts each image where it belongs. `check` is called before each, and may raise.

    Raises UsageError if the folder holds anything but an earlier, unfinished or finished, run of this; OutputError if
    it can't be written."""
    _require_names(request)
    make_missing_folder(request.out)
    require_room(request.out, "--out")
    out = behind_links(request.out)
    _require_own(out, request.out)
    try:
        (out / STATE).mkdir(parents=True, exist_ok=True)
        lock = Lock(out / STATE / "lock", str(request.out))
        try:
            _require_same(request, out / STATE / "settings.json")
            with closing(_Places(out, out / STATE / "places.sqlite")) as places:
                return _sort(request, out, places, check)
        finally:
            lock.release()
    except (OSError, sqlite3.Error) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise OutputError(
            f"{request.out}: can't be written: {why or error}; mend that, and run the same command again to go on"
        ) from error


def _sort(request: Sorting, out: Path, places: _Places, check: Callable[[], None]) -> Sorted:
    result = Sorted()
    for placed in _planned(request, out, places, result):
        for image in placed:
            check()
            try:
                result.there += not _put(image.source, out, image.place, request.by)
                result.folders[os.path.dirname(image.place)] += 1
            except _Miss as miss:
                result.miss(image.name, str(miss))
    return result


def _planned(request: Sorting, out: Path, places: _Places, result: Sorted) -> Iterator[list[_Placed]]:
    """Where images are to be, some at a time, when that is decided for good. What is in no place is counted."""
    images = _images(request)
    while some := list(islice(images, 1000)):
        planned = []
        for image in some:
            try:
                planned.append(_placed(image, request, out, places))
            except _Again:
                result.again += 1
            except _Miss as miss:
                result.miss(image.name, str(miss))
        places.commit()
        yield planned


def _placed(image: _Image, request: Sorting, out: Path, places: _Places) -> _Placed:
    source = _source(image.location, out)
    known = places.known(image, source)
    if known:
        return known
    _require_file(source, request.by)
    return places.new(image, source)


def _images(request: Sorting) -> Iterator[_Image]:
    run = read_run_report(request.predictions)
    places: dict[str, Any] = {"folder": request.images, "beside": request.predictions}
    records = (
        (number, (_names_in(record), request.folder_of(record)))
        for number, record in enumerate(read_records(request.predictions))
    )
    while some := dict(islice(records, _BATCH)):
        names = {number: name for number, (name, _) in some.items()}
        for found in find_originals(names, run and run["settings"], **places, fetch=False):
            yield _Image(found.index, found.image, found.location, some[found.index][1])


def _names_in(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("index", *NAME_FIELDS) if name in record}


def _source(location: Location, out: Path) -> str:
    """The one path of a file, whatever links lead to its folder."""
    if isinstance(location, Failure):
        raise _Miss(location.message)
    if not isinstance(location, LocalFile):
        raise _Miss("it is no file of its own")
    try:
        folder, name = os.path.split(os.path.abspath(path_on_disk(location.path)))
        source = os.path.join(os.path.realpath(folder), name)
        os.fsencode(source)
    except ValueError as error:
        raise _Miss("its name is none of a file") from error
    if source.startswith(f"{out}{os.sep}"):
        raise _Miss("it is in the folder that images are sorted into")
    return source


def _require_file(source: str, by: By) -> None:
    try:
        status = os.lstat(source) if by == "move" else os.stat(source)
    except (OSError, ValueError) as error:
        raise _Miss(getattr(error, "strerror", None) or "its name is none of a file") from error
    if stat.S_ISLNK(status.st_mode):
        raise _Miss("it is a link, which is not moved")
    if not stat.S_ISREG(status.st_mode):
        raise _Miss("it is no file")


def _put(source: str, out: Path, place: str, by: By) -> bool:
    """Whether anything was to be done. Raises _Miss for what is the image's fault, OSError for what is the folder's."""
    target = out / place
    if target.parent.is_symlink():
        raise OSError(errno.ELOOP, f"{target.parent.name} is a link", str(target.parent))
    if os.path.lexists(target):
        if by == "move" and os.path.lexists(source):  # killed after it was copied from another disk
            _remove_copied(source, target)
        return False
    _require_file(source, by)
    target.parent.mkdir(exist_ok=True)
    if by == "link":
        _link(source, target)
    elif by == "copy":
        _copy(source, target, out)
    else:
        _move(source, target, out)
    return True


def _link(source: str, target: Path) -> None:
    try:
        os.symlink(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        why = (
            "no links can be made there (Windows allows them in its Developer Mode): give another --out, and --by copy"
        )
        raise OSError(errno.EPERM, why, str(target)) from error


def _move(source: str, target: Path, out: Path) -> None:
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, target, out)
        _remove_copied(source, target)


def _remove_copied(source: str, target: Path) -> None:
    try:
        if os.path.islink(source) or not filecmp.cmp(source, target, shallow=False):
            raise _Miss("another file was put in its place after it was moved")
        os.unlink(source)
    except OSError as error:
        raise _Miss(f"it is copied, and can't be removed from where it was: {error.strerror}") from error


def _copy(source: str, target: Path, out: Path) -> None:
    """The bytes and times of the file, which appears whole."""
    growing = out / STATE / "copying"
    try:
        read = open(source, "rb")  # noqa: SIM115 - what fails here is the image
    except OSError as error:
        raise _Miss(error.strerror or str(error)) from error
    growing.unlink(missing_ok=True)  # half of a copy, after a kill
    with read, open(growing, "xb") as written:
        shutil.copyfileobj(read, written, 2**20)
        written.flush()
        status = os.fstat(read.fileno())
        os.utime(growing, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(written.fileno())
    rename_durably(growing, target)


class _Places:
    """Which image is, or will be, where. Two names that differ in nothing that every file system knows are one."""

    def __init__(self, out: Path, database: Path | str) -> None:
        self._out = out
        self._database = sqlite3.connect(database)
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS places (source BLOB PRIMARY KEY, record INTEGER UNIQUE NOT NULL, "
            "place BLOB NOT NULL, key BLOB UNIQUE NOT NULL)"
        )

    def known(self, image: _Image, source: str) -> _Placed | None:
        """Its place, if it was given one.

        Raises _Again or _Miss if another record gave it; UsageError if its record's image was another one."""
        rows = self._database.execute(
            "SELECT record, source, place FROM places WHERE source = ? OR record = ?",
            (os.fsencode(source), image.record),
        )
        of_record = of_source = None
        for record, known, place in rows:
            found = _Placed(image.name, os.fsdecode(known), os.fsdecode(place))
            if record == image.record:
                of_record = found
            else:
                of_source = found
        if of_record and of_record.source != source and os.path.lexists(source):
            raise UsageError(
                f"{escape_controls(str(self._out))} has {escape_controls(of_record.source)}, for which "
                f"{escape_controls(source)} is found now: give another --out"
            )
        if of_source and not of_record:
            folder = os.path.dirname(of_source.place)
            raise _Again if folder == image.folder else _Miss(f"an earlier record of it has put it into {folder}")
        return of_record

    def new(self, image: _Image, source: str) -> _Placed:
        for name in file_names(source):
            place = os.path.join(image.folder, name)
            key = unicodedata.normalize("NFC", place).casefold().encode("utf-8", "surrogatepass")
            if os.path.lexists(self._out / place):
                continue  # somebody else's
            row = (os.fsencode(source), image.record, os.fsencode(place), key)
            if self._database.execute("INSERT OR IGNORE INTO places VALUES (?, ?, ?, ?)", row).rowcount:
                return _Placed(image.name, source, place)
        raise _Miss("files of all names that it could have are there")

    def commit(self) -> None:
        self._database.commit()

    def close(self) -> None:
        self._database.close()


def _require_names(request: Sorting) -> None:
    names = {"--failed": request.failed, **({"--below": request.below[1]} if request.below else {})}
    for option, name in names.items():
        if not is_plain(name):
            raise UsageError(f"{option} {escape_controls(name)}: can't be the name of one folder on every system")


def _require_own(out: Path, shown: Path) -> None:
    """Raises UsageError unless the folder is new, or empty, or made by this."""
    if not os.path.lexists(out):
        return
    if not out.is_dir() or (out / STATE).is_symlink():
        raise UsageError(f"--out {shown} is there and is no folder of sorted images")
    if not (out / STATE).is_dir() and any(out.iterdir()):
        raise UsageError(f"--out {shown} is there, is not empty, and no sort has made it; give another --out")


def _require_same(request: Sorting, path: Path) -> None:
    """Raises UsageError if the folder is of other predictions or options: what is in it would be in the wrong place."""
    wanted = json_line(
        {
            "predictions": digest_of(request.predictions),
            "by": request.by,
            "below": request.below,
            "failed": request.failed,
            "images": os.path.realpath(request.images) if request.images else None,
        }
    )
    try:
        found = read_regular_file(path, _SETTINGS_BYTES)
    except FileNotFoundError:
        write_atomically(path, wanted)
        return
    except MALFORMED:
        found = b""
    if found != wanted:
        raise UsageError(f"{request.out} is sorted by other predictions or options; give another --out")


def folders_of(result: Sorted) -> Sequence[tuple[str, int]]:
    """By their names."""
    return sorted(result.folders.items())
