"""Objects on object stores, through fsspec: listed page by page, read, streamed, and put there whole.

An address is `s3://bucket/key`; the account, its credentials and the host are what the store's own library finds in the
environment, never what an address says. fsspec must not be carried over a fork: a process makes `Store`s of its own.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from deit_batch.errors import RowError, UsageError
from deit_batch.io import StoredFile
from deit_batch.system.extras import needing

_LIBRARIES = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "abfs": ("adlfs", "azure"),
    "abfss": ("adlfs", "azure"),
    "az": ("adlfs", "azure"),
    "hf": ("huggingface_hub", ""),
}
"""Of each scheme, the library that fsspec finds it in, and the extra that brings it. No other scheme is opened: fsspec
has some that read local files, or whatever host an address names."""

_SCHEME = re.compile(r"\s*([A-Za-z0-9]+)://")
# A repository or bucket of the Hub, and something in it; a repository alone is a data set (input.arrow.open_dataset).
_HUB_FILES = re.compile(r"\s*hf://(datasets/[^/?]+/[^/?]+/[^?]|buckets/[^/?]+/[^/?]+)", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_BLOCK = 8 * 2**20
"""Bytes that are asked for at a time, of what is read as a stream and of what is uploaded."""

_MOST_PARTS = 10_000
"""Of an upload, on S3."""

_NO_ANSWER = frozenset(
    "HTTPClientError IncompleteReadError ResponseParserError "  # botocore
    "ClientConnectionError ClientPayloadError "  # aiohttp
    "TransportError ServiceRequestError ServiceResponseError".split()  # Google's and Azure's
)
"""The names of exceptions (the libraries may be missing): the connection broke, or the answer was cut short."""

ObjectVersion: TypeAlias = list[object]
"""What tells an object from another that stands under its name later: size, time of change (ns), ETag."""


class StoreError(OSError):
    """What went wrong with an object, in one line. `passing`: it may be gone in a moment."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class NoSuchObjectError(StoreError):
    """Nothing is there."""


def is_stored(text: str) -> bool:
    """Whether it is the address of something on a store."""
    scheme = _SCHEME.match(text)
    if not scheme or scheme[1].lower() not in _LIBRARIES:
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
    parts: list[str] = []
    for part in key.split("/"):
        if part == "..":
            del parts[-1:]
        elif part != ".":
            parts.append(part)
    library, extra = _LIBRARIES[scheme]
    with needing(extra):
        import_module(library)
    return scheme, bucket + slash + "/".join(parts)


class Store:
    """A store, for one process and any number of threads. `patient`: the library tries again by itself, for a minute or
    so; otherwise whoever calls does. `connections`: open at a time."""

    def __init__(self, scheme: str, *, patient: bool = True, connections: int = 10) -> None:
        import fsspec

        options: dict[str, Any] = {}
        if scheme == "s3":
            own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            options["config_kwargs"] = {"max_pool_connections": connections, **own}
            if not patient:
                options["config_kwargs"]["retries"] = {"total_max_attempts": 1}
        self._scheme = scheme
        # fsspec keeps the instance of a process and thread, for a new one takes a while. Many threads are to share one.
        self._files: Any = fsspec.filesystem(scheme, skip_instance_cache=not patient, **options)
        if not patient and hasattr(self._files, "retries"):
            self._files.retries = 1

    def address(self, path: str) -> str:
        return f"{self._scheme}://{path}"

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
        with _translated():
            info: dict[str, Any] = self._files.info(path, **self._within(seconds))
            if info["type"] != "file":
                raise FileNotFoundError(path)
            return info

    def read(self, path: str, most: int, seconds: float) -> bytes:
        """The first `most` bytes at the most, in one request."""
        with _translated():
            data: bytes = self._files.cat_file(path, start=0, end=most, **self._within(seconds))
            return data

    def _within(self, seconds: float | None) -> dict[str, float]:
        """fsspec ends a call of its asynchronous stores at a time limit; others (hf) have that of their library."""
        return {"timeout": seconds} if seconds and self._files.async_impl else {}

    def open(self, path: str) -> io.BufferedReader:
        """A stream that is read in blocks, each tried again if need be; an error that if it was replaced meanwhile."""
        with _translated():
            return io.BufferedReader(_Body(self._files.open(path, "rb", block_size=_BLOCK)), 2**20)

    def put(self, source: Path, path: str) -> None:
        """Uploads a file. Its name appears when it is whole: a multipart upload is completed last."""
        options: dict[str, Any] = {}
        if self._scheme == "s3":
            chunk = max(_BLOCK, math.ceil(source.stat().st_size / _MOST_PARTS))
            options = {"chunksize": chunk, "max_concurrency": 4}
        elif _LIBRARIES[self._scheme][0] == "adlfs":
            options = {"overwrite": True}
        with _translated():
            self._files.put_file(str(source), path, **options)

    def read_whole(self, path: str) -> bytes:
        """Of one that fits into memory."""
        with _translated():
            in_one_request = {"max_concurrency": 1} if self._scheme == "s3" else {}
            data: bytes = self._files.cat_file(path, **in_one_request)
            return data

    def write(self, path: str, data: bytes) -> None:
        """The object appears whole, for what was there."""
        with _translated():
            self._files.pipe_file(path, data)

    def copy(self, source: str, target: str) -> None:
        """Within the store. The copy is whole when this returns."""
        if _LIBRARIES[self._scheme][0] == "adlfs":  # Azure answers before it has copied
            self.write(target, self.read_whole(source))
            return
        with _translated():
            self._files.cp_file(source, target)

    def remove(self, path: str) -> None:
        """If it is there."""
        with suppress(NoSuchObjectError), _translated():
            self._files.rm_file(path)

    def require_writable(self, path: str) -> None:
        """Finds out early that there is no such bucket, or no right to write there: by a multipart upload that is begun
        and given up. Only S3 can be asked."""
        if self._scheme != "s3":
            return
        bucket, _, key = path.partition("/")
        with _translated():
            upload = self._files.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
        with suppress(Exception):  # no right to give up: the store will, in time
            self._files.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)

    # --- listing ----------------------------------------------------------------------------------------------------

    def list(self, folder: str, *, recursive: bool) -> Iterator[StoredFile | str]:
        """What is under a folder (a path that ends in a slash, or is a bucket), by name, byte for byte; the path of a
        folder in it only if that is not entered.

        Objects of S3 come in pages of a thousand. Other stores are listed folder by folder, each of which is held."""
        with _translated():
            yield from (self._pages if self._scheme == "s3" else self._walk)(folder, recursive)

    def _pages(self, folder: str, recursive: bool) -> Iterator[StoredFile | str]:
        bucket, _, prefix = folder.partition("/")
        more: dict[str, str] = {}
        while True:
            page = self._files.call_s3(
                "list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter="" if recursive else "/", **more
            )
            for found in page.get("CommonPrefixes", []):
                yield f"{bucket}/{found['Prefix']}"
            for info in page.get("Contents", []):
                if not info["Key"].endswith("/"):  # the mark of an empty folder
                    yield self._stored({**info, "name": f"{bucket}/{info['Key']}", "size": info["Size"]})
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _walk(self, folder: str, recursive: bool) -> Iterator[StoredFile | str]:
        infos = [
            {**info, "name": info["name"] + "/" if info["type"] == "directory" else info["name"]}
            for info in self._files.ls(folder.rstrip("/"), detail=True)
        ]
        self._files.invalidate_cache()  # or it would keep every folder
        for info in sorted(infos, key=lambda info: str(info["name"])):
            if not info["name"].endswith("/"):
                yield self._stored(info)
            elif info["name"].rstrip("/") != folder.rstrip("/"):
                if recursive:
                    yield from self._walk(info["name"], recursive)
                else:
                    yield info["name"]

    def _stored(self, info: dict[str, Any]) -> StoredFile:
        return StoredFile(self.address(info["name"]), info["size"], _modified_ns(info))


class _Body(io.RawIOBase):
    """A file of fsspec's, of which every error is a StoreError."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _translated():
            return int(self._file.readinto(buffer))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _modified_ns(info: dict[str, Any]) -> int | None:
    """To a millisecond: what a listing tells."""
    found = next((info[name] for name in ("LastModified", "mtime", "last_modified") if name in info), None)
    return int(found.timestamp() * 1000) * 10**6 if isinstance(found, datetime) else None


@contextmanager
def _translated() -> Iterator[None]:
    """Stores raise whatever their libraries do: here that becomes a StoreError."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise NoSuchObjectError("no such object") from error
    except TimeoutError as error:
        raise StoreError("not complete in time", passing=True) from error
    except Exception as error:
        text = " ".join((getattr(error, "strerror", None) or str(error)).split()) or type(error).__name__
        if isinstance(error, PermissionError):
            text = f"not permitted: {text}"
        raise StoreError(text, passing=_is_passing(error)) from error


def _is_passing(error: Exception) -> bool:
    """No answer at all, throttling, or a fault of the server: an answer that says no stays no."""
    names = {base.__name__ for base in type(error).__mro__}
    if isinstance(error, ConnectionError) or names & _NO_ANSWER:
        return True
    status = _status(error) or _status(error.__cause__)
    return status is not None and (status in (408, 425, 429) or status >= 500)


def _status(error: BaseException | None) -> int | None:
    """The status of the HTTP answer that an error of any of the libraries tells of."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore's
        found = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(error, "status_code", getattr(error, "code", getattr(error, "status", None)))
    return found if isinstance(found, int) else None


def open_store(address: str) -> tuple[Store, str]:
    """The store of an address, and the path in it. Raises UsageError if it is no address."""
    try:
        scheme, path = parse(address)
    except RowError as error:
        raise UsageError(str(error)) from error
    return Store(scheme), path


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
