"""One location to bytes, within limits; the URLs of a batch side by side."""

from __future__ import annotations

import binascii
import os
import stat
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import httpx2

from deit_batch.errors import FetchError, ImageError, RowError
from deit_batch.io import Base64, Failure, LocalFile, Location, Url

_STANDARD_ALPHABET = str.maketrans("-_", "+/")


@dataclass(frozen=True, slots=True)
class Limits:
    image_bytes: int = 100 * 2**20
    fetch_seconds: float = 30.0
    decode_seconds: float = 60.0
    connections: int = 16


class Fetcher:
    """Fetches for one process; connections are made on first use and kept."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    @cached_property
    def _client(self) -> httpx2.Client:
        limits = httpx2.Limits(max_connections=self._limits.connections)
        return httpx2.Client(
            follow_redirects=True,
            timeout=self._limits.fetch_seconds,
            transport=httpx2.HTTPTransport(retries=2, limits=limits),
            headers={"User-Agent": "deit-batch", "Accept": "image/*,*/*;q=0.5"},
        )

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._limits.connections, thread_name_prefix="fetch")

    def fetch_all(self, locations: Sequence[Location]) -> list[bytes | Failure]:
        """The bytes at each location, in order, or why they can't be had. URLs are fetched at the same time."""
        urls = [(i, self._threads.submit(self.fetch, at)) for i, at in enumerate(locations) if isinstance(at, Url)]
        results = [b"" if isinstance(at, Url) else self.fetch(at) for at in locations]
        for i, future in urls:
            results[i] = future.result()
        return results

    def fetch(self, location: Location) -> bytes | Failure:
        try:
            match location:
                case Failure():
                    return location
                case bytes():
                    data = location
                case Base64(text):
                    data = decode_base64(text)
                case LocalFile(path):
                    data = self._read_file(path)
                case Url(url):
                    data = self._download(url)
            if not data:
                raise FetchError("no bytes: the file or field is empty")
            if len(data) > self._limits.image_bytes:
                raise FetchError(self._too_large())
        except ImageError as error:
            return Failure.of(error)
        return data

    def _too_large(self) -> str:
        return f"larger than {self._limits.image_bytes:,} bytes"

    def _read_file(self, path: str) -> bytes:
        try:
            # A pipe or a device would be read for ever.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise FetchError("not a regular file")
            with open(path, "rb") as file:
                return file.read(self._limits.image_bytes + 1)
        except OSError as error:
            raise FetchError(error.strerror or str(error)) from error
        except ValueError as error:  # a NUL byte, or half a surrogate pair, in the name
            raise FetchError(f"not a file name: {error}") from error

    def _download(self, url: str) -> bytes:
        deadline = time.monotonic() + self._limits.fetch_seconds
        data = bytearray()
        try:
            with self._client.stream("GET", url) as response:
                if response.status_code != 200:
                    raise FetchError(f"HTTP {response.status_code} {response.reason_phrase}".rstrip())
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > self._limits.image_bytes:
                        raise FetchError(self._too_large())
                    if time.monotonic() > deadline:
                        raise FetchError(f"not complete after {self._limits.fetch_seconds:g} s")
        except httpx2.TimeoutException as error:
            raise FetchError(f"no answer within {self._limits.fetch_seconds:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            raise FetchError(str(error) or type(error).__name__) from error
        return bytes(data)


def decode_base64(text: str) -> bytes:
    """Bytes of base64 text: standard or URL-safe alphabet, line breaks and padding optional. Raises RowError."""
    compact = "".join(text.split()).translate(_STANDARD_ALPHABET).rstrip("=")
    try:
        return binascii.a2b_base64(compact + "=" * (-len(compact) % 4), strict_mode=True)
    except ValueError as error:
        raise RowError(f"not base64: {error}") from error
