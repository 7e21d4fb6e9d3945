"""The folder that a result in parts is in: files by name, each read and written whole, and how the finished folder
comes to its own name."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from deit_batch.errors import UsageError
from deit_batch.output.stored_place import StoredPlace, require_sizes
from deit_batch.system.atomic import (
    behind_links,
    digest_of,
    make_missing_folder,
    mend_folder,
    publish_folder,
    remove_folder,
    remove_temporary_files,
    write_atomically,
)
from deit_batch.system.lock import Lock
from deit_batch.system.object_store import is_stored


class Held(Protocol):
    """What keeps other runs away from a result."""

    def require(self) -> None:
        """Raises OutputError if it does no longer, as far as is known."""

    def ask(self) -> None:
        """Raises OutputError if it does no longer."""

    def release(self) -> None: ...


class Place(Protocol):
    """A folder that can be pickled: what is written to it by another process, on another machine, is in the same one.

    All that goes wrong with it is an OSError; a file that is not there, a FileNotFoundError. A digest is as that of
    atomic.digest_of. `name` of a file or folder: without a slash."""

    @property
    def partial(self) -> Place:
        """The folder in which the one of this name grows."""

    def inside(self, name: str) -> Place:
        """A folder in it."""

    def exists(self) -> bool:
        """Whether there is anything of that name: an empty folder is none, as on a store."""

    def make(self) -> None:
        """Makes the folder, if it is not there."""

    def names(self) -> Iterator[str]:
        """Of the files in it."""

    def everything(self) -> list[str]:
        """The paths, from here, of all files and folders in it and in its folders; of a folder that is a link, or none,
        its own name."""

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def open(self, name: str) -> BinaryIO:
        """To be read."""

    def read(self, name: str) -> bytes: ...

    def read_each(self, names: Iterable[str]) -> Generator[bytes | None, None, None]:
        """The files in turn, None for one that is not there."""

    def write(self, name: str, data: bytes) -> None:
        """The file appears whole or not at all, whoever else may be writing the same."""

    def write_chunks(self, name: str, chunks: Iterable[bytes]) -> dict[str, object]:
        """A file that is larger than one would hold, and that nobody else writes; returns its digest."""

    def remove(self, names: Iterable[str]) -> None:
        """The files that are there of these."""

    def remove_all(self) -> None:
        """The folder with all that is in it."""

    def first_unlike(self, outputs: Mapping[str, object]) -> str | None:
        """Of files and what their digests should be, the first that differs, or is missing."""

    def hold(self) -> Held:
        """Keeps other runs away. Raises OutputError, saying who is there, if another run does; UsageError if nothing
        can stand there."""

    def mend(self) -> None:
        """Goes on with, or takes back, what a process that was killed in `publish` has left. The caller holds this."""

    @property
    def is_replaced_whole(self) -> bool:
        """Whether `publish` leaves no other file here."""

    def publish(self, inside: str | None, sizes: Mapping[str, int], held: Held) -> None:
        """Makes `partial`, or the folder of that name inside it, appear here with these files, for what stood here, if
        they have these sizes. The first says what the folder is, the last that it is whole. The caller holds this by
        `held`, which is asked just before anything changes here."""


def place_at(name: str) -> Place:
    """The folder of that name, which is there."""
    return StoredPlace.of(name) if is_stored(name) else LocalPlace(Path(name))


def result_place(out: str | Path) -> Place:
    """Where the folder `out` is to appear. Raises UsageError if none can."""
    if not is_stored(str(out)):
        return LocalPlace(behind_links(out))
    place = StoredPlace.of(str(out))
    scheme, _, path = place.address.partition("://")
    if scheme == "hf" or "/" not in path:
        raise UsageError(f"--out {out}: a result in parts goes into a folder of a bucket, of s3://, gs:// or abfs://")
    return place


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """On a file system that all who write to it see. Its path is no link."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def partial(self) -> LocalPlace:
        return LocalPlace(self.path.with_name(f"{self.path.name}.partial"))

    def inside(self, name: str) -> LocalPlace:
        return LocalPlace(self.path / name)

    def exists(self) -> bool:
        if self.path.is_dir():
            return any(self.path.iterdir())
        return os.path.lexists(self.path)

    def make(self) -> None:
        self.path.mkdir(exist_ok=True)

    def names(self) -> Iterator[str]:
        with os.scandir(self.path) as entries:
            yield from (entry.name for entry in entries if entry.is_file())

    def everything(self) -> list[str]:
        if self.path.is_symlink() or not self.path.is_dir():
            return [self.path.name]
        return [path.relative_to(self.path).as_posix() for path in self.path.rglob("*")]

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def open(self, name: str) -> BinaryIO:
        return open(self.path / name, "rb")

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def read_each(self, names: Iterable[str]) -> Generator[bytes | None, None, None]:
        for name in names:
            try:
                data = self.read(name)
            except FileNotFoundError:
                yield None
            else:
                yield data

    def write(self, name: str, data: bytes) -> None:
        # What a writer that was killed has left goes in `publish`: to look for it at each of many files takes long.
        write_atomically(self.path / name, data, sweeps=False)

    def write_chunks(self, name: str, chunks: Iterable[bytes]) -> dict[str, object]:
        with open(self.path / name, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        return digest_of(self.path / name)

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def remove_all(self) -> None:
        if self.path.exists():
            remove_folder(self.path, self.path)

    def first_unlike(self, outputs: Mapping[str, object]) -> str | None:
        return next((name for name, output in outputs.items() if self._digest(name) != output), None)

    def _digest(self, name: str) -> dict[str, object] | None:
        """None if it is not there."""
        try:
            return digest_of(self.path / name)
        except FileNotFoundError:
            return None

    def hold(self) -> Lock:
        make_missing_folder(self.path)
        return Lock(self.path.with_name(f"{self.path.name}.lock"), str(self.path))

    def mend(self) -> None:
        mend_folder(self.path, self.partial.path)

    @property
    def is_replaced_whole(self) -> bool:
        return True

    def publish(self, inside: str | None, sizes: Mapping[str, int], held: Held) -> None:
        source = self.partial.path / (inside or "")
        remove_temporary_files(source)  # of writers that were killed
        require_sizes(sizes, lambda name: os.stat(source / name).st_size, str(source))
        held.ask()
        publish_folder(source, self.path, replace=True)
