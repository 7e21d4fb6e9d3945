"""One location to bytes, within limits; the URLs and stored objects of a batch side by side."""

from __future__ import annotations

import base64
import binascii
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from functools import cached_property
from weakref import WeakValueDictionary

import httpcore2
import httpx2

from deit_batch.errors import FetchError, ImageError, RowError
from deit_batch.io import Base64, Failure, LocalFile, Location, StoredFile, Url
from deit_batch.limits import Limits
from deit_batch.loading.safe_network import Network
from deit_batch.system import object_store

LONGEST_WAIT = 30.0
"""Seconds between two tries, at most, whatever a server's Retry-After says."""

MOST_AT_ONCE = 64
"""URLs and stored objects, of all hosts."""

_STANDARD_ALPHABET = str.maketrans("-_", "+/")
_NO_IMAGES = ("text/", "application/json", "application/xml", "application/xhtml")


class _PassingError(FetchError):
    """A fault that may be gone in a moment. `wait`: how many seconds the server asks for."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Fetcher:
    """Fetches for one process; connections are made on first use and kept."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._stores: dict[str, object_store.Store] = {}

    @cached_property
    def _network(self) -> Network:
        return Network(allow_private_hosts=self._limits.allow_private_hosts)

    @cached_property
    def _pool(self) -> httpcore2.ConnectionPool:
        return httpcore2.ConnectionPool(
            httpx2.create_ssl_context(),
            max_connections=None,
            max_keepalive_connections=64,
            network_backend=self._network,
        )

    @cached_property
    def _turns(self) -> WeakValueDictionary[str, threading.Semaphore]:
        """Of each host that is being fetched from: a server that runs for months must not remember all it ever saw."""
        return WeakValueDictionary()

    @cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    @cached_property
    def _places(self) -> threading.Semaphore:
        return threading.Semaphore(MOST_AT_ONCE)

    def start(self, far: Url | StoredFile, gone: threading.Event | None = None) -> Future[bytes | Failure]:
        """Fetches it in a thread, which keeps no program from ending, and, once whoever waits for it has `gone`, makes
        no other try."""
        for _ in (self._pool, self._turns, self._lock, self._places):
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

    def fetch_all(self, locations: Sequence[Location]) -> list[bytes | Failure]:
        """The bytes at each location, in order, or why they can't be had. What is far away is fetched at the same
        time."""
        coming = [(i, self.start(at)) for i, at in enumerate(locations) if isinstance(at, Url | StoredFile)]
        results = [b"" if isinstance(at, Url | StoredFile) else self.fetch(at) for at in locations]
        for i, future in coming:
            results[i] = future.result()
        return results

    def fetch(self, location: Location, gone: threading.Event | None = None) -> bytes | Failure:
        gone = gone or threading.Event()
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
                    data = self._persistently(lambda: self._follow(url, gone), gone)
                case StoredFile():
                    data = self._read_object(location, gone)
            if not data:
                raise FetchError("no bytes: the file or field is empty")
            if len(data) > self._limits.image_bytes:
                raise self._too_large()
        except ImageError as error:
            return Failure.of(error)
        return data

    def _too_large(self) -> FetchError:
        return FetchError(f"larger than {self._limits.image_bytes:,} bytes")

    # --- files ------------------------------------------------------------------------------------------------------

    def _read_file(self, path: str) -> bytes:
        try:
            path = self._confined(path)
            # A pipe or a device would be read for ever.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise FetchError("not a regular file")
            with open(path, "rb") as file:
                return file.read(self._limits.image_bytes + 1)
        except OSError as error:
            raise FetchError(error.strerror or str(error)) from error
        except ValueError as error:  # a NUL byte, or half a surrogate pair, in the name
            raise FetchError(f"not a file name: {error}") from error

    def _confined(self, path: str) -> str:
        """The path with every link resolved, if a root is set: what is opened is what was checked."""
        if self._limits.root is None:
            return path
        if object_store.is_stored(self._limits.root):
            raise FetchError("outside of --root")
        root, real = os.path.realpath(self._limits.root), os.path.realpath(path)
        if os.path.commonpath([root, real]) != root:
            raise FetchError("outside of --root")
        return real

    def _require_under_root(self, address: str) -> None:
        root = self._limits.root
        if root is None:
            return
        inside = object_store.is_stored(root) and address.startswith(root.rstrip("/") + "/")
        if not inside or ".." in address.split("/"):
            raise FetchError("outside of --root")

    # --- what is far away -------------------------------------------------------------------------------------------

    def _persistently(self, fetch: Callable[[], bytes], gone: threading.Event) -> bytes:
        for attempt in range(self._limits.retries + 1):
            try:
                return fetch()
            except _PassingError as error:
                if attempt == self._limits.retries:
                    raise FetchError(str(error)) from error
                # Full jitter: many workers that failed together must not come back together.
                wait = random.uniform(0, 2.0**attempt) if error.wait is None else error.wait  # noqa: S311
            gone.wait(min(wait, LONGEST_WAIT))  # not in the `except`: the error's traceback keeps what came of the body
        raise AssertionError  # the last attempt returns or raises

    def _read_object(self, file: StoredFile, gone: threading.Event) -> bytes:
        self._require_under_root(file.address)
        scheme, _, path = file.address.partition("://")
        return self._persistently(lambda: self._read_at_once(self._store(scheme), path, file.size), gone)

    def _store(self, scheme: str) -> object_store.Store:
        """Made where it is used: a store must not be carried into a worker."""
        with self._lock:
            if scheme not in self._stores:
                self._stores[scheme] = object_store.Store(scheme, patient=False, connections=self._limits.connections)
            return self._stores[scheme]

    def _read_at_once(self, store: object_store.Store, path: str, size: int | None) -> bytes:
        """One try, which is one request, but for an empty object whose size no listing has told: no range of it can be
        had."""
        try:
            with self._turn(path.partition("/")[0]):
                if size is not None and size > self._limits.image_bytes:
                    raise self._too_large()
                if size == 0:
                    return b""
                try:
                    return store.read(path, self._limits.image_bytes + 1, self._limits.fetch_seconds)
                except object_store.StoreError as error:
                    if error.passing or store.look_at(path, self._limits.fetch_seconds).size:
                        raise
                    return b""
        except object_store.StoreError as error:
            raise _PassingError(str(error)) if error.passing else FetchError(str(error)) from error

    def _follow(self, url: str, gone: threading.Event) -> bytes:
        """One try: a request, and those to which it redirects. Credentials in the URL go to its own host only."""
        try:
            here = httpx2.URL(url)
            seconds = self._limits.fetch_seconds
            for _ in range(self._limits.redirects + 1):
                with self._turn(here.host):
                    if gone.is_set():
                        raise FetchError("nobody waits for it any more")
                    start = time.monotonic()
                    with self._network.deadline(seconds):
                        answer = self._get(here)
                if isinstance(answer, bytes):
                    return answer
                seconds -= time.monotonic() - start
                here = here.join(answer).copy_with(userinfo=b"")
        except httpcore2.TimeoutException as error:
            raise _PassingError(f"not complete within {self._limits.fetch_seconds:g} s") from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise _PassingError(str(error) or type(error).__name__) from error
        except (httpx2.InvalidURL, httpcore2.UnsupportedProtocol, UnicodeError) as error:
            raise FetchError(str(error) or type(error).__name__) from error
        raise FetchError(f"more than {self._limits.redirects} redirects")

    def _turn(self, host: str) -> threading.Semaphore:
        with self._lock:
            return self._turns.setdefault(host, threading.Semaphore(self._limits.connections))

    def _get(self, url: httpx2.URL) -> bytes | httpx2.URL:
        """The body, or where it is to be looked for."""
        if url.scheme not in ("http", "https") or not url.host:
            raise FetchError("not an http or https URL with a host")
        target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        headers = [(b"Host", url.netloc), (b"User-Agent", b"deit-batch"), (b"Accept", b"image/*,*/*;q=0.5")]
        headers.append((b"Accept-Encoding", b"identity"))
        if url.userinfo:
            login = f"{url.username}:{url.password}".encode()
            headers.append((b"Authorization", b"Basic " + base64.b64encode(login)))
        with self._pool.stream("GET", target, headers=headers) as response:
            answer = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in (301, 302, 303, 307, 308) and "location" in answer:
                return httpx2.URL(answer["location"])
            self._check(response.status, answer)
            body = bytearray()
            for chunk in response.iter_stream():
                body += chunk
                if len(body) > self._limits.image_bytes:
                    raise self._too_large()
            return bytes(body)

    def _check(self, status: int, answer: dict[str, str]) -> None:
        """Raises FetchError for an answer whose body is no use, before it is read."""
        if status in (408, 425, 429) or status >= 500:
            raise _PassingError(f"HTTP {status}", _retry_after(answer.get("retry-after")))
        if status != 200:
            raise FetchError(f"HTTP {status}")
        kind = answer.get("content-type", "").lower()
        if kind.startswith(_NO_IMAGES):
            raise FetchError(f"the server sends {kind.partition(';')[0]}, no image")
        if answer.get("content-encoding", "identity") != "identity":
            # Not asked for; and a few bytes of it can unpack to gigabytes.
            raise FetchError(f"the server sends it compressed ({answer['content-encoding']})")
        length = answer.get("content-length", "")
        if length.isdigit() and int(length) > self._limits.image_bytes:
            raise self._too_large()


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, section 10.2.3): a number of seconds or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value) if value.isdigit() else parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def decode_base64(text: str) -> bytes:
    """Bytes of base64 text: standard or URL-safe alphabet, line breaks and padding optional. Raises RowError."""
    compact = "".join(text.split()).translate(_STANDARD_ALPHABET).rstrip("=")
    try:
        return binascii.a2b_base64(compact + "=" * (-len(compact) % 4), strict_mode=True)
    except ValueError as error:
        raise RowError(f"not base64: {error}") from error
