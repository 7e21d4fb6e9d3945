"""One location to bytes, within limits; the URLs and stored objects of a batch side by side."""

from __future__ import annotations

import binascii
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cached_property

from deit_batch.errors import DeitBatchError, FetchError, ImageError, RowError
from deit_batch.io import Base64, Failure, LocalFile, Location, Picture, StoredFile, Url
from deit_batch.limits import Limits
from deit_batch.loading.local_file import read_file
from deit_batch.loading.remote import TransientFetchError, too_large
from deit_batch.loading.stored_file import StoredFileReader
from deit_batch.loading.url import UrlReader
from deit_batch.system import backoff
from deit_batch.system.object_store import THROTTLED_TRIES

MOST_AT_ONCE = 64
"""URLs and stored objects, of all hosts."""

_STANDARD_ALPHABET = str.maketrans("-_", "+/")


class Fetcher:
    """Fetches for one process. The readers of what is far away are made on first use and kept: neither connections nor
    stores must be carried into a worker."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    @cached_property
    def _urls(self) -> UrlReader:
        return UrlReader(self._limits)

    @cached_property
    def _stored_files(self) -> StoredFileReader:
        return StoredFileReader(self._limits)

    @cached_property
    def _places(self) -> threading.Semaphore:
        return threading.Semaphore(MOST_AT_ONCE)

    def start(self, far: Url | StoredFile, gone: threading.Event | None = None) -> Future[bytes | Failure]:
        """Fetches it in a thread, which keeps no program from ending, and, once whoever waits for it has `gone`, makes
        no other try."""
        for _ in (self._urls, self._stored_files, self._places):
            pass  # made here, or several threads would each make their own
        future: Future[bytes | Failure] = Future()
        threading.Thread(target=self._fetch_for, args=(future, far, gone), name="fetch", daemon=True).start()
        return future

    def _fetch_for(self, future: Future[bytes | Failure], far: Url | StoredFile, gone: threading.Event | None) -> None:
        with self._places:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(self.fetch(far, gone))
            except BaseException as error:
                future.set_exception(error)

    def fetch_all(self, locations: Sequence[Location]) -> list[bytes | Picture | Failure]:
        """The bytes at each location, in order, or why they can't be had; of a picture, itself. What is far away is
        fetched at the same time."""
        coming = [(i, self.start(at)) for i, at in enumerate(locations) if isinstance(at, Url | StoredFile)]
        results: list[bytes | Picture | Failure] = [
            b"" if isinstance(at, Url | StoredFile) else at if isinstance(at, Picture) else self.fetch(at)
            for at in locations
        ]
        for i, future in coming:
            results[i] = future.result()
        return results

    def fetch(self, location: Location, gone: threading.Event | None = None) -> bytes | Failure:
        """Whatever goes wrong is this location's failure: no answer of a server ends the run."""
        if isinstance(location, Failure):
            return location
        try:
            data = self._read(location, gone or threading.Event())
            if not data:
                raise FetchError("no bytes: the file or field is empty")
            if len(data) > self._limits.image_bytes:
                raise too_large(self._limits)
        except ImageError as error:
            return Failure.of(error)
        except DeitBatchError:  # not of this location: a library that is not installed
            raise
        except MemoryError:
            return Failure.of(FetchError("not enough memory to fetch it"))
        except Exception as error:  # of HTTP's and the stores' libraries, which raise nearly anything on broken answers
            return Failure.of(FetchError(f"can't be fetched: {type(error).__name__}: {error}"))
        return data

    def _read(self, location: LocalFile | Url | StoredFile | Base64 | Picture | bytes, gone: threading.Event) -> bytes:
        match location:
            case bytes():
                return location
            case Base64(text):
                return decode_base64(text)
            case LocalFile():
                return read_file(location, self._limits)
            case Url(url):
                return self._read_with_retries(lambda: self._urls.read(url, gone), gone)
            case StoredFile():
                return self._read_with_retries(lambda: self._stored_files.read(location), gone)
            case Picture():
                raise TypeError("it is decoded already")

    def _read_with_retries(self, read: Callable[[], bytes], gone: threading.Event) -> bytes:
        """A store that is asked too often is tried again on its own account: that says nothing about the image."""
        most = {False: self._limits.retries + 1, True: THROTTLED_TRIES}
        failures = {False: 0, True: 0}
        while True:
            try:
                return read()
            except TransientFetchError as error:
                failures[error.throttled] += 1
                if failures[error.throttled] == most[error.throttled]:
                    raise FetchError(str(error)) from error
                wait = backoff.wait_after(failures[error.throttled]) if error.wait is None else error.wait
            # not in the `except`: the error's traceback keeps what came of the body
            gone.wait(min(wait, backoff.LONGEST_WAIT))


def decode_base64(text: str) -> bytes:
    """Bytes of base64 text: standard or URL-safe alphabet, line breaks and padding optional. Raises RowError."""
    compact = "".join(text.split()).translate(_STANDARD_ALPHABET).rstrip("=")
    try:
        return binascii.a2b_base64(compact + "=" * (-len(compact) % 4), strict_mode=True)
    except ValueError as error:
        raise RowError(f"not base64: {error}") from error
