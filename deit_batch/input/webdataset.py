"""Tars to rows, lazily: of WebDataset's samples, or of images that lie in a tar as they do in a folder.

In a WebDataset, the members that share a name up to its first dot are one sample, and one row: the sample's first image
as `image`, its `key`, and each member by what follows that dot, images as `{bytes, path}`, `json` parsed, `cls` as a
number, `txt` as text. The layout is WebDataset's: https://github.com/webdataset/webdataset, `base_plus_ext` and
`group_by_keys` of `tariterators.py`, `decoders` of `autodecode.py`.
"""

from __future__ import annotations

import glob
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any, BinaryIO, cast

from deit_batch.errors import InputError, RowError, UsageError
from deit_batch.input.kinds import InputKind, InputName, files_of, is_image_name, parse_input_name, parts_of
from deit_batch.input.passed_over import ending_of, is_hidden, pass_over
from deit_batch.input.streams import open_stream
from deit_batch.input.tables import MAX_ROW_BYTES, Row, Table, Value, load_json, row_failure
from deit_batch.input.tar import Tar
from deit_batch.io import COLUMNS
from deit_batch.system import object_store

MAX_LINKS_BYTES = 2**26
"""What is remembered of the links in a tar."""

_MEMBER_BYTES = 1024
"""What a member takes in memory beside its data, roughly."""

_MOST_LINKS_TO_LINKS = 40  # as on Linux

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_BRACES = re.compile(r"(\{\d+\.\.\d+\}|\{[^{},]*(?:,[^{},]*)+\})")
_WEBDATASETS_OWN = re.compile(r"__[^/]*__(/|$)")


def open_tars(spec: str, given: InputName, *, always_samples: bool = False) -> Table:
    """Of one tar, several (`expand`), a glob or a folder of them; on a store neither of the last two. `always_samples`:
    whatever shares a key is one sample.

    Raises UsageError if one is not there."""
    paths = _paths(spec, given)
    stored = [path for path in paths if object_store.is_stored(path)]
    sizes = dict(zip(stored, _sizes_of_stored(stored), strict=True)) if stored else {}
    sizes |= {path: os.path.getsize(path) for path in paths if path not in sizes}
    bytes_read = [0] * len(paths)
    passed_over: Counter[str] = Counter()

    def values(place: int, path: str) -> Iterator[Value]:
        links = _Links(path)
        with _open(path) as stream:
            for value in _values(Tar(stream, path), path, links, passed_over, always_samples):
                bytes_read[place] = stream.tell()
                yield value
        bytes_read[place] = sizes[path]
        if links:
            with _open(path) as stream:
                yield from links.rows(Tar(stream, path))

    def total(read: int) -> int | None:
        return round(read * sum(map(sizes.__getitem__, paths)) / sum(bytes_read)) if read and any(bytes_read) else None

    return _table((value for place, path in enumerate(paths) for value in values(place, path)), passed_over, total)


def open_tar_stream(stream: BinaryIO, name: str, *, always_samples: bool = False) -> Table:
    """Of a tar that can be read but once: its links are failures."""
    passed_over: Counter[str] = Counter()

    def values() -> Iterator[Value]:
        links = _Links(name)
        yield from _values(Tar(stream, name), name, links, passed_over, always_samples)
        yield from links.failures()

    return _table(values(), passed_over)


def _table(
    values: Iterator[Value], passed_over: Counter[str], total: Callable[[int], int | None] = lambda read: None
) -> Table:
    rows = (Row(line, value) for line, value in enumerate(values, 1))
    return Table(rows, total=total, passed_over=passed_over, takes=COLUMNS)


def paths_of(spec: str) -> list[str]:
    """The files that it names: several, if it is of several tars or parts."""
    given = parse_input_name(spec)
    return _named(spec, given) if given.kind is InputKind.TARS else parts_of(spec)


def _open(path: str) -> BinaryIO:
    """Raises InputError if that can't be had any more."""
    try:
        return cast(BinaryIO, open_stream(path))
    except OSError as error:
        raise InputError(f"{path}: can't be read at all: {error.strerror or error}") from error


def _named(spec: str, given: InputName) -> list[str]:
    """In an order that is the same on every machine."""
    if given.exists:
        return files_of(spec, InputKind.TARS) or [spec]
    return list(expand(spec))


def _paths(spec: str, given: InputName) -> list[str]:
    """Raises UsageError if one that is on the disk is not there."""
    paths = _named(spec, given)
    if paths == [spec] and glob.has_magic(spec) and not given.exists and not given.stored:
        paths = sorted(glob.glob(spec, recursive=True), key=os.fsencode)
        if not paths:
            raise UsageError(f"{spec} matches no file")
    missing = [path for path in paths if not (object_store.is_stored(path) or os.path.isfile(path))]
    if missing:
        others = f", nor {len(missing) - 1:,} others of the {len(paths):,}" if len(missing) > 1 else ""
        raise UsageError(f"{missing[0]}: no such file{others}")
    return paths


def _sizes_of_stored(addresses: list[str]) -> list[int]:
    """Asked for side by side: there may be thousands. Raises UsageError if one can't be had."""
    one_of_each = {object_store.parse(address)[0]: address for address in addresses}
    stores = {scheme: object_store.open_store(address)[0] for scheme, address in one_of_each.items()}

    def size(address: str) -> int:
        scheme, path = object_store.parse(address)
        try:
            return stores[scheme].look_at(path).size or 0
        except (object_store.StoreError, RowError) as error:
            raise UsageError(f"{address}: {error}") from error

    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(size, addresses))


def expand(spec: str) -> Iterator[str]:
    """Every name that `spec` stands for, in order: several are joined by `::`, and braces hold a range of numbers, as
    wide as the first of them, or alternatives."""
    for part in spec.split("::"):
        texts = _BRACES.split(part)[::2]
        choices = [_choices(braces) for braces in _BRACES.findall(part)]
        for chosen in product(*choices):
            yield "".join(piece for pair in zip(texts, [*chosen, ""], strict=True) for piece in pair)


def _choices(braces: str) -> list[str]:
    if numbers := _RANGE.fullmatch(braces):
        first, last = numbers[1], numbers[2]
        return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    return braces[1:-1].split(",")


@dataclass(frozen=True, slots=True)
class _Member:
    """`key` is its name up to the first dot in the last part, `ending` what follows that dot, in lower case: so the
    members of one sample are known."""

    key: str
    ending: str
    header: tarfile.TarInfo

    @property
    def is_image(self) -> bool:
        return is_image_name(self.header.name)

    @property
    def is_plain(self) -> bool:
        return bool(self.ending) and "." not in self.ending

    @property
    def decode(self) -> Callable[[str], Any] | None:
        """None if it is no field."""
        return DECODED.get(self.ending.rpartition(".")[2])

    @property
    def cost(self) -> int:
        """The bytes that it takes in memory."""
        is_read = self.header.isreg() and (self.is_image or self.decode)
        return _MEMBER_BYTES + (max(self.header.size, 0) if is_read else 0)


def _values(tar: Tar, path: str, links: _Links, passed_over: Counter[str], always_sample: bool) -> Iterator[Value]:
    for key, members in groupby(_members(tar, passed_over), lambda member: member.key):
        group = _Group(path, key, always_sample)
        for member in members:
            if not group.takes(member):
                yield from group.rows(passed_over, links)
                group = _Group(path, key, always_sample)
            group.add(member, tar)
        yield from group.rows(passed_over, links)


def _members(tar: Tar, passed_over: Counter[str]) -> Iterator[_Member]:
    """Those that may be in a sample, links among them; the others are counted."""
    for header in tar:
        folder, slash, name = header.name.rpartition("/")
        stem, _, ending = name.partition(".")
        if header.isdir():
            continue
        if is_hidden(header.name):
            pass_over(passed_over, "hidden")
        elif _WEBDATASETS_OWN.match(header.name):
            pass_over(passed_over, "WebDataset's own")
        elif not (header.isreg() or header.islnk() or header.issym()):
            pass_over(passed_over, "no files")
        else:
            yield _Member(f"{folder}{slash}{stem}", ending.lower(), header)


class _Group:
    """Members that follow on one another and share their key, but no ending. `rows` makes of them

    - one sample, if two of their endings are plain, without a dot (`jpg` and `png`), or if one is that is no image's
      (`json`), or if the user has named a field of samples: the first image is its image;
    - or else, of photos with dots in their names (`CAM1_2024.05.01.png`), a row each.

    What is in no row is counted; links get theirs at the end of the tar."""

    def __init__(self, path: str, key: str, always_sample: bool) -> None:
        self._path, self._key, self._always_sample = path, key, always_sample
        self._members: dict[str, _Member] = {}
        self._fields: dict[str, Any] = {}
        self._plain = Counter[bool]()  # how many members with a plain ending are images, or not
        self._room = MAX_ROW_BYTES
        self._twice: str | None = None
        """An ending that two of its members have."""
        self._further_images = 0

    @property
    def is_sample(self) -> bool:
        return self._always_sample or self._plain[True] > 1 or self._plain[False] > 0

    def takes(self, member: _Member) -> bool:
        """Whether it belongs in here, and memory has room for it, or this is a sample, which then fails."""
        if member.ending in self._members:
            return self.is_sample  # which then fails: nothing tells to which image it belongs
        if not self._members or self.is_sample or (member.is_plain and not member.is_image):
            return True
        return self._room >= member.cost

    def add(self, member: _Member, tar: Tar) -> None:
        if self._room < 0:
            return
        if member.ending in self._members:
            self._twice = self._twice or member.ending
            self._further_images += member.is_image
            return
        self._members[member.ending] = member
        self._plain[member.is_image] += member.is_plain
        self._room -= member.cost
        if self._room < 0:
            self._fields.clear()
        elif not member.header.isreg():
            pass
        elif member.is_image:
            self._fields[member.ending] = _image(self._path, member.header.name, tar.read(member.header))
        elif member.decode:
            self._fields[member.ending] = member.decode(tar.read(member.header).decode("utf-8", "replace"))

    def rows(self, passed_over: Counter[str], links: _Links) -> Iterator[Value]:
        if self._room < 0:
            yield row_failure(f"{self._path}/{self._key}: larger than {MAX_ROW_BYTES:,} bytes")
            return
        if self._twice:
            if self._further_images:
                pass_over(passed_over, "further images of a sample", self._further_images)
            yield row_failure(f"{self._path}/{self._key}: two members of this sample end in .{self._twice}")
            return
        images = [name for name in self._fields if self._members[name].is_image]
        linked = [member for member in self._members.values() if member.is_image and not member.header.isreg()]
        fields = self._fields
        if not self.is_sample:
            for name in images:
                yield self._row(name, {name: fields[name]})
            fields = {}
        elif images:
            if len(images) > 1:
                pass_over(passed_over, "further images of a sample", len(images) - 1)
            yield self._row(images[0], fields)
        elif linked:
            yield from links.add(linked.pop(0), fields)
        elif fields and len(self._members) > 1:
            yield row_failure(f"{self._path}/{self._key}: there is no image in this sample")
        else:
            fields = {}
        for member in linked:
            yield from links.add(member, {})
        for name, member in self._members.items():
            if name not in fields and not member.is_image:
                pass_over(passed_over, ending_of(member.header.name))

    def _row(self, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        return {"image": self._fields[name], "key": self._key, **fields}


@dataclass(frozen=True, slots=True)
class _Link:
    name: str
    row: dict[str, Any]
    ending: str


class _Links:
    """Those of one tar to images. Each is read with its target, when all else has been read: tars are read forwards."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._waiting: list[_Link] = []
        self._targets: dict[str, str] = {}
        self._room = MAX_LINKS_BYTES

    def add(self, member: _Member, fields: dict[str, Any]) -> Iterator[Value]:
        """A failure, if there are more than memory may hold; its row is among `rows` else."""
        header = member.header
        folder = posixpath.dirname(header.name) if header.issym() else ""
        self._room -= _MEMBER_BYTES + len(header.name) + len(header.linkname) + len(repr(fields))
        if self._room < 0:
            yield row_failure(f"{self._path}/{header.name}: there are more links in this tar than memory may hold")
            return
        self._targets[posixpath.normpath(header.name)] = posixpath.normpath(posixpath.join(folder, header.linkname))
        self._waiting.append(_Link(header.name, {"key": member.key, **fields}, member.ending))

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def rows(self, tar: Tar) -> Iterator[Value]:
        """In the order of what they lead to; `tar` is the same once more. Those that lead to no member of it fail."""
        wanted: dict[str, list[_Link]] = {}
        for link in self._waiting:
            wanted.setdefault(self._target(link.name), []).append(link)
        for header in tar if wanted else ():
            links = wanted.pop(posixpath.normpath(header.name), []) if header.isreg() else []
            if links and header.size > MAX_ROW_BYTES:
                yield from (
                    row_failure(f"{self._path}/{link.name}: larger than {MAX_ROW_BYTES:,} bytes") for link in links
                )
                continue
            data = tar.read(header) if links else b""
            for link in links:
                image = _image(self._path, link.name, data)
                yield {"image": image, **link.row, link.ending: image}
            if not wanted:
                return
        for target, links in wanted.items():
            for link in links:
                yield row_failure(f"{self._path}/{link.name}: it is a link to {target}, which is not in the tar")

    def failures(self) -> Iterator[Value]:
        for link in self._waiting:
            yield row_failure(f"{self._path}/{link.name}: it is a link, and {self._path} is read once: give the file")

    def _target(self, name: str) -> str:
        """Through links to links."""
        target = self._targets[posixpath.normpath(name)]
        for _ in range(_MOST_LINKS_TO_LINKS):
            target = self._targets.get(target, target)
        return target


def _image(path: str, name: str, data: bytes) -> dict[str, Any]:
    return {"bytes": data, "path": f"{path}/{name}"}


def _number(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text.strip()


def _json(text: str) -> Any:
    try:
        return load_json(text)
    except (ValueError, RecursionError, RowError):
        return text


DECODED: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(("txt", "text", "transcript"), str),
    **dict.fromkeys(("cls", "cls2", "index", "inx", "id"), _number),
    **dict.fromkeys(("json", "jsn"), _json),
}
"""The fields of a sample beside its images, by what their endings end in, as `webdataset` decodes them."""
