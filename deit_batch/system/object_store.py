"""Objects on object stores, through fsspec: listed page by page, read, streamed, and put there whole.

An address is `s3://bucket/key`; the account, its credentials and the host are what the store's own library finds in the
environment, never what an address says. fsspec must not be carried over a fork: a process makes `Store`s of its own.
"""

from __future__ import annotations

import io
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from deit_batch.errors import RowError, UsageError
from deit_batch.io import StoredFile
from deit_batch.redaction import redact
from deit_batch.system import store_library
from deit_batch.system.backoff import wait_after
from deit_batch.system.store_errors import NoSuchObjectError as NoSuchObjectError
from deit_batch.system.store_errors import StoreError as StoreError
from deit_batch.system.store_errors import bucket_is_there, translated
from deit_batch.system.store_library import (
    ask_azure_to_write,
    begin_upload_to_google,
    blobs_in_folder,
    import_library,
    is_known,
    name_of_library,
    open_file_system,
)

_SCHEME = re.compile(r"\s*([A-Za-z0-9]+)://")
# A repository or bucket of the Hub, and something in it; a repository alone is a data set (input.arrow.open_dataset).
_HUB_FILES = re.compile(r"\s*hf://(datasets/[^/?]+/[^/?]+/[^?]|buckets/[^/?]+/[^/?]+)", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_VERSION = "?versionid="
"""Where adlfs cuts off the name of a blob, and takes another."""

_BLOCK = 8 * 2**20
"""Bytes that are asked for at a time, of what is read as a stream and of what is uploaded."""

THROTTLED_TRIES = 10
"""Of a request that the store refuses because it has too many: a fifth of all refused, one in ten million fails."""

_MOST_PARTS = 10_000
"""Of an upload, on S3."""

ObjectVersion: TypeAlias = list[object]
"""What tells an object from another that stands under its name later: size, time of change (ns), ETag."""

_Page: TypeAlias = tuple[list[str], list[dict[str, Any]], str | None]
"""Of a listing: folders, objects, and how the next page is asked for. All names are within the bucket."""

T = TypeVar("T")


def is_stored(text: str) -> bool:
    """Whether it is the address of something on a store."""
    scheme = _SCHEME.match(text)
    if not scheme or not is_known(scheme[1].lower()):
        return False
    return scheme[1].lower() != "hf" or bool(_HUB_FILES.match(text))


def parse(text: str) -> tuple[str, str]:
    """Scheme and path (bucket and key, joined by a slash) of an address; `.` and `..` in it are resolved within the
    bucket, so that a row may be relative to its table. Raises RowError if it is none, UsageError if the library for it
    is not installed."""
    scheme, _, path = text.strip().partition("://")
    scheme = scheme.lower()
    bucket, slash, key = path.partition("/")
    if "@" in bucket:
        raise RowError(f"{scheme}://{bucket}: the account is the environment's; name the container alone")
    if not _BUCKET.fullmatch(bucket):
        raise RowError(f"not an address: {scheme}://{bucket!r:.60} is no bucket")
    if "?" in key and redact(text) != text:
        raise RowError(f"{redact(text)}: what gives access is the environment's; name the object alone")
    if _VERSION in key and name_of_library(scheme) == "adlfs":
        raise RowError(f"{scheme}://{path}: no version of a blob can be named, nor a name with {_VERSION} in it")
    parts: list[str] = []
    for part in key.split("/"):
        if part == "..":
            del parts[-1:]
        elif part != ".":
            parts.append(part)
    import_library(scheme)
    return scheme, bucket + slash + "/".join(parts)


def is_below(address: str, folder: str) -> bool:
    """Whether an address is that of something in a folder, or of the folder. Raises UsageError if one is none."""
    try:
        (one, path), (other, prefix) = parse(address), parse(folder)
    except RowError as error:
        raise UsageError(str(error)) from error
    prefix = prefix.rstrip("/")
    return name_of_library(one) == name_of_library(other) and (path == prefix or path.startswith(f"{prefix}/"))


class Store:
    """A store, for one process and any number of threads. `patient`: what passes is tried again, for some minutes;
    otherwise whoever calls does that. `connections`: open at a time. Raises StoreError where the environment does not
    say whose it is."""

    def __init__(self, scheme: str, *, patient: bool = True, connections: int = 10) -> None:
        self._scheme = scheme
        self._library = name_of_library(scheme)
        self._patient = patient
        with translated():
            self._files: Any = open_file_system(scheme, patient=patient, connections=connections)

    def address(self, path: str) -> str:
        return f"{self._scheme}://{path}"

    def _tried(self, call: Callable[[], T]) -> T:
        """What `call` returns. As long as the store says that it is asked too often, it is asked again later: the
        libraries see that in some of its ways to say so, and not often enough."""
        failures = 0
        while True:
            try:
                with translated():
                    return call()
            except StoreError as error:
                failures += 1
                if not (self._patient and error.throttled and failures < THROTTLED_TRIES):
                    raise
            time.sleep(wait_after(failures))

    # --- one object -------------------------------------------------------------------------------------------------

    def look_at(self, path: str, seconds: float | None = None) -> StoredFile:
        """Its size and time of change. Raises StoreError, as all here do."""
        return self._stored(self._info(path, seconds))

    def version(self, path: str) -> ObjectVersion | None:
        """None if there is no such object."""
        try:
            info = self._info(path, None)
        except NoSuchObjectError:
            return None
        return [info["size"], _modified_ns(info), info.get("ETag") or info.get("etag")]

    def _info(self, path: str, seconds: float | None) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            info: dict[str, Any] = self._files.info(path, **self._within(seconds))
            if info["type"] != "file":
                raise FileNotFoundError(path)
            return info

        return self._tried(ask)

    def read(self, path: str, most: int, seconds: float) -> bytes:
        """The first `most` bytes at the most, in one request."""
        data: bytes = self._tried(lambda: self._files.cat_file(path, start=0, end=most, **self._within(seconds)))
        return data

    def _within(self, seconds: float | None) -> dict[str, float]:
        """fsspec ends a call of its asynchronous stores at a time limit; others (hf) have that of their library."""
        return {"timeout": seconds} if seconds and self._files.async_impl else {}

    def open(self, path: str) -> io.BufferedReader:
        """A stream that is read in blocks, each tried again if need be; an error that if it was replaced meanwhile."""
        options = {"cache_type": "readahead"} if self._library == "gcsfs" else {}  # its own reads on in the background
        file = self._tried(lambda: self._files.open(path, "rb", block_size=_BLOCK, **options))
        return io.BufferedReader(_Body(file, self._tried), 2**20)

    def put(self, source: Path, path: str) -> None:
        """Uploads a file. Its name appears when it is whole: a multipart upload is completed last."""
        with bucket_is_there(_bucket_of(path)):
            self._put(source, path)

    def _put(self, source: Path, path: str) -> None:
        options: dict[str, Any] = {}
        if self._scheme == "s3":
            chunk = max(_BLOCK, math.ceil(source.stat().st_size / _MOST_PARTS))
            options = {"chunksize": chunk, "max_concurrency": 4}
        elif self._library == "adlfs":
            options = {"overwrite": True}
        elif self._library == "gcsfs" and source.stat().st_size > store_library.GOOGLES_CHUNK:
            bucket, _, key = path.partition("/")
            store_library.upload_to_google(self._files, source, bucket, key, self._tried)
            return
        self._tried(lambda: self._files.put_file(str(source), path, **options))

    def read_whole(self, path: str) -> bytes:
        """Of one that fits into memory."""
        in_one_request = {"max_concurrency": 1} if self._scheme == "s3" else {}
        data: bytes = self._tried(partial(self._files.cat_file, path, **in_one_request))
        return data

    def write(self, path: str, data: bytes) -> None:
        """The object appears whole, for what was there."""
        with bucket_is_there(_bucket_of(path)):
            self._tried(partial(self._files.pipe_file, path, data))

    def copy(self, source: str, target: str) -> None:
        """Within the store. The copy is whole when this returns."""
        if self._library == "adlfs":  # Azure answers before it has copied
            self.write(target, self.read_whole(source))
            return
        self._tried(partial(self._files.cp_file, source, target))

    def remove(self, path: str) -> None:
        """If it is there."""
        with suppress(NoSuchObjectError):
            self._tried(partial(self._files.rm_file, path))

    def require_writable(self, path: str) -> None:
        """Finds out early that there is no such bucket, or no right to write there: by an upload that is begun and
        given up, or, on Azure, bound to a condition that nothing meets. (The Hub can't be asked.)"""
        with bucket_is_there(_bucket_of(path)):
            self._try_to_write(path)

    def _try_to_write(self, path: str) -> None:
        bucket, _, key = path.partition("/")
        match self._library:
            case "s3fs":
                upload = self._tried(partial(self._files.call_s3, "create_multipart_upload", Bucket=bucket, Key=key))
                with suppress(Exception):  # no right to give up: the store will, in time
                    self._files.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload["UploadId"])
            case "gcsfs":
                upload = self._tried(partial(begin_upload_to_google, self._files, bucket, key))
                with suppress(Exception):
                    self._files.call("DELETE", upload)
            case "adlfs":
                self._tried(partial(ask_azure_to_write, self._files, bucket, key))

    # --- listing ----------------------------------------------------------------------------------------------------

    def list(self, folder: str, *, recursive: bool) -> Iterator[StoredFile | str]:
        """What is under a folder (a path that ends in a slash, or is a bucket), by name, byte for byte; the path of a
        folder in it only if that is not entered.

        Objects of S3 and Google come in pages of a thousand. Other stores are listed folder by folder, each of which is
        held."""
        pages = {"s3fs": self._page_of_s3, "gcsfs": self._page_of_google}.get(self._library)
        try:
            yield from self._pages(folder, recursive, pages) if pages else self._walk(folder, recursive)
        except NoSuchObjectError as error:
            raise NoSuchObjectError("no such bucket, or no such folder in it") from error

    def _pages(self, folder: str, recursive: bool, ask: Callable[..., _Page]) -> Iterator[StoredFile | str]:
        bucket, _, prefix = folder.partition("/")
        token = None
        while True:
            folders, infos, token = self._tried(partial(ask, bucket, prefix, "" if recursive else "/", token))
            for name in folders:
                yield f"{bucket}/{name}"
            for info in infos:
                if not info["name"].endswith("/"):  # the mark of an empty folder
                    yield self._stored({**info, "name": f"{bucket}/{info['name']}"})
            if not token:
                return

    def _page_of_s3(self, bucket: str, prefix: str, delimiter: str, token: str | None) -> _Page:
        more = {"ContinuationToken": token} if token else {}
        page = self._files.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter=delimiter, **more)
        infos = [{**info, "name": info["Key"], "size": info["Size"]} for info in page.get("Contents", [])]
        return [found["Prefix"] for found in page.get("CommonPrefixes", [])], infos, page.get("NextContinuationToken")

    def _page_of_google(self, bucket: str, prefix: str, delimiter: str, token: str | None) -> _Page:
        asked = {"prefix": prefix or None, "delimiter": delimiter or None, "pageToken": token}
        page = self._files.call("GET", "b/{}/o", bucket, json_out=True, **asked)
        infos = [
            {"name": info["name"], "size": int(info["size"]), "mtime": datetime.fromisoformat(info["updated"])}
            for info in page.get("items", [])
        ]
        return page.get("prefixes", []), infos, page.get("nextPageToken")

    def _walk(self, folder: str, recursive: bool) -> Iterator[StoredFile | str]:
        content = self._content_on_azure if self._library == "adlfs" else self._content
        for info in sorted(content(folder), key=lambda info: str(info["name"])):
            if not info["name"].endswith("/"):
                yield self._stored(info)
            elif info["name"] == folder:  # its own mark
                continue
            elif recursive:
                yield from self._walk(info["name"], recursive)
            else:
                yield info["name"]

    def _content(self, folder: str) -> Iterable[dict[str, Any]]:
        """What is directly in a folder; the names of folders end in a slash."""
        found = self._tried(lambda: self._files.ls(folder.rstrip("/"), detail=True))
        self._files.invalidate_cache()  # or it would keep every folder
        return [
            {**info, "name": info["name"].rstrip("/") + "/" if info["type"] == "directory" else info["name"]}
            for info in found
        ]

    def _content_on_azure(self, folder: str) -> Iterable[dict[str, Any]]:
        """adlfs takes a blob for the folder of the same name, and does not see what is below an empty name."""
        container, _, prefix = folder.partition("/")
        found = self._tried(partial(blobs_in_folder, self._files, container, prefix))
        return [
            {"name": f"{container}/{blob.name}", "size": blob.get("size"), "last_modified": blob.get("last_modified")}
            for blob in found
            if not _marks_folder(blob.get("metadata"))
        ]

    def _stored(self, info: dict[str, Any]) -> StoredFile:
        return StoredFile(self.address(info["name"]), info["size"], _modified_ns(info))


class _Body(io.RawIOBase):
    """A file of fsspec's, of which every error is a StoreError."""

    def __init__(self, file: Any, tried: Callable[[Callable[[], int]], int]) -> None:
        self._file = file
        self._tried = tried

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._tried(lambda: int(self._file.readinto(buffer)))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _marks_folder(metadata: dict[str, str] | None) -> bool:
    """Whether a blob of Azure stands for a folder: of Hadoop, or of an account with a hierarchy of them."""
    return any(name.lower() == "hdi_isfolder" and value == "true" for name, value in (metadata or {}).items())


def _bucket_of(path: str) -> str:
    return path.partition("/")[0]


def _modified_ns(info: dict[str, Any]) -> int | None:
    """To a millisecond: what a listing tells."""
    found = next((info[name] for name in ("LastModified", "mtime", "last_modified") if name in info), None)
    return int(found.timestamp() * 1000) * 10**6 if isinstance(found, datetime) else None


def open_store(address: str) -> tuple[Store, str]:
    """The store of an address, and the path in it. Raises UsageError if it is no address, or if the environment does
    not say whose store it is."""
    try:
        scheme, path = parse(address)
    except RowError as error:
        raise UsageError(str(error)) from error
    try:
        return Store(scheme), path
    except StoreError as error:
        raise UsageError(f"{address}: can't be opened: {error}") from error


def open_stream(address: str) -> io.BufferedReader:
    """Raises StoreError if it can't be opened, UsageError if it is no address."""
    store, path = open_store(address)
    return store.open(path)


def exists(address: str) -> bool:
    """Whether it is the address of an object, or of a folder with anything in it. Raises UsageError if the store does
    not say."""
    if not is_stored(address):
        return False
    store, path = open_store(address)
    try:
        there = store.version(path) or next(store.list(path.rstrip("/") + "/", recursive=True), None)
    except StoreError as error:
        raise UsageError(f"{address}: can't be read: {error}") from error
    return there is not None
