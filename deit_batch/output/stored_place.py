"""A folder of a result in parts on an object store: what lies under a prefix. Nothing of it is kept on a machine, so a
run is continued from any.

A store renames nothing: what has grown is copied by the store itself, file by file, and the manifest last. Until that
is there, what has been copied is no result; once it is, what had grown is marked, then removed. A run that is killed
at any of these steps has lost nothing: the next one copies what is missing, or removes what is left.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EIO, ENOENT
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from deit_batch.io import StoredFile
from deit_batch.system.lease import Lease
from deit_batch.system.object_store import NoSuchObjectError, Store, open_store

if TYPE_CHECKING:
    from deit_batch.output.place import Held

AT_ONCE = 10
"""Requests."""
_SPENT = ".replaced"
"""The mark of what has grown and is no longer needed."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class StoredPlace:
    """What is under `address`, which ends in no slash."""

    address: str

    @classmethod
    def of(cls, name: str) -> Self:
        """As a user gives it. Raises UsageError if it is no address."""
        store, path = open_store(name)
        return cls(store.address(path.rstrip("/")))

    def __str__(self) -> str:
        return self.address

    def __reduce__(self) -> tuple[type[StoredPlace], tuple[str]]:
        """Without its connections."""
        return type(self), (self.address,)

    @cached_property
    def _opened(self) -> tuple[Store, str]:
        return open_store(self.address)

    @property
    def _store(self) -> Store:
        return self._opened[0]

    def _path(self, name: str = "") -> str:
        return f"{self._opened[1]}/{name}"

    @property
    def partial(self) -> StoredPlace:
        return StoredPlace(f"{self.address}.partial")

    def inside(self, name: str) -> StoredPlace:
        return StoredPlace(f"{self.address}/{name}")

    # --- files ------------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        return next(self._listed(recursive=True), None) is not None

    def make(self) -> None:
        """A store has no folders."""

    def names(self) -> Iterator[str]:
        return (each.address.rpartition("/")[2] for each in self._listed(recursive=False))

    def everything(self) -> list[str]:
        return [each.address.removeprefix(f"{self}/") for each in self._listed(recursive=True)]

    def _files(self) -> dict[str, StoredFile]:
        return {each.address.rpartition("/")[2]: each for each in self._listed(recursive=False)}

    def _listed(self, *, recursive: bool) -> Generator[StoredFile, None, None]:
        try:
            for found in self._store.list(self._path(), recursive=recursive):
                if isinstance(found, StoredFile):
                    yield found
        except NoSuchObjectError:  # some stores say so of a folder with nothing in it
            return

    def has(self, name: str) -> bool:
        return self._store.version(self._path(name)) is not None

    def open(self, name: str) -> io.BufferedReader:
        with _absent_is_absent(f"{self}/{name}"):
            return self._store.open(self._path(name))

    def read(self, name: str) -> bytes:
        with _absent_is_absent(f"{self}/{name}"):
            return self._store.read_whole(self._path(name))

    def read_each(self, names: Iterable[str]) -> Generator[bytes | None, None, None]:
        return at_once(partial(_read_or_none, self._store), map(self._path, names))

    def write(self, name: str, data: bytes) -> None:
        self._store.write(self._path(name), data)

    def write_chunks(self, name: str, chunks: Iterable[bytes]) -> dict[str, object]:
        digest, size = hashlib.sha256(), 0
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder, name)
            with open(whole, "wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    size += file.write(chunk)
            self._store.put(whole, self._path(name))
        return {"bytes": size, "sha256": digest.hexdigest()}

    def remove(self, names: Iterable[str]) -> None:
        self._remove(self._path(name) for name in names)

    def _remove(self, paths: Iterable[str]) -> None:
        for _ in at_once(self._store.remove, paths):
            pass

    def remove_all(self) -> None:
        """In an order such that what is left of it, if this process is killed, is known for what it is."""
        if not self.exists():
            return
        self.write(_SPENT, b"")
        mark = self._path(_SPENT)
        paths = (found.address.partition("://")[2] for found in self._listed(recursive=True))
        self._remove(path for path in paths if path != mark)
        self.remove([_SPENT])

    def first_unlike(self, outputs: Mapping[str, object]) -> str | None:
        """By its size alone, which costs no transfer."""
        sizes = {name: found.size for name, found in self._files().items()}
        return next((name for name, output in outputs.items() if not _has_size(output, sizes.get(name))), None)

    # --- the folder of a run ----------------------------------------------------------------------------------------

    def hold(self) -> Lease:
        return Lease(self._store, f"{self._opened[1]}.lock/", str(self))

    def mend(self) -> None:
        if _SPENT in self.partial.names():
            self.partial.remove_all()

    @property
    def is_replaced_whole(self) -> bool:
        return False

    def publish(self, inside: str | None, sizes: Mapping[str, int], held: Held) -> None:
        source = self.partial.inside(inside) if inside else self.partial
        grown, there = source._files(), self._files()
        require_sizes(sizes, lambda name: grown[name].size, str(source))
        first, *others, last = sizes
        held.ask()
        if last in there:  # or it is of a run that has taken this one for dead, and ended in this moment
            self.remove([last])
        copy = partial(self._copy, source)
        copy(first)
        wanted = (name for name in others if not _is_copied(grown[name], there.get(name)))
        for _ in at_once(copy, wanted):
            pass
        copy(last)

    def _copy(self, source: StoredPlace, name: str) -> None:
        self._store.copy(source._path(name), self._path(name))


@contextmanager
def _absent_is_absent(address: str) -> Iterator[None]:
    try:
        yield
    except NoSuchObjectError as error:
        raise FileNotFoundError(ENOENT, "no such object", address) from error


def _is_copied(source: StoredFile, there: StoredFile | None) -> bool:
    """Whether it is there already, from a run that was killed: nothing else would put one of this size there after the
    source was made. In the same tick of the store's clock, it is copied again."""
    if there is None or there.size != source.size or source.modified_ns is None or there.modified_ns is None:
        return False
    return there.modified_ns > source.modified_ns


def require_sizes(sizes: Mapping[str, int], size_of: Callable[[str], int | None], folder: str) -> None:
    """Raises OSError unless the files in the folder have these sizes. `size_of` may raise KeyError or FileNotFoundError
    of one that is not there."""
    for name, size in sizes.items():
        try:
            found = size_of(name)
        except (KeyError, FileNotFoundError):
            raise FileNotFoundError(ENOENT, f"{name} is missing", folder) from None
        if found != size:
            raise OSError(EIO, f"somebody has changed {name} since it was written", folder)


def _has_size(output: object, size: int | None) -> bool:
    return isinstance(output, Mapping) and size is not None and output.get("bytes") == size


def _read_or_none(store: Store, path: str) -> bytes | None:
    try:
        return store.read_whole(path)
    except NoSuchObjectError:
        return None


def at_once(call: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """What the call returns for each, in turn, made for some of them at a time: no more are held than that."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(call, item))
                if len(waiting) >= 2 * AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
