"""The bytes behind a URL, in one try."""

from __future__ import annotations

import base64
import threading
import time
from email.utils import parsedate_to_datetime

import httpcore2
import httpx2

from deit_batch.errors import FetchError
from deit_batch.limits import Limits
from deit_batch.loading.remote import HostLimit, TransientFetchError, too_large
from deit_batch.loading.safe_network import Network

_REDIRECTS = (301, 302, 303, 307, 308)
_NO_IMAGES = ("text/", "application/json", "application/xml", "application/xhtml")
_COMPRESSIONS = {"gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd"}
"""Of the content codings. Others (`identity`, and what is none: `aws-chunked`, `UTF-8`) leave the bytes as they are."""
_BINARY = bytes({*range(0x20)} - {*b"\t\n\f\r\x1b"})
"""Bytes that no text has (mimesniff.spec.whatwg.org, "binary data byte")."""
_SNIFFED = 1445
"""Bytes at the start that tell a text from what is none (the same, "resource header")."""


class UrlReader:
    """For one process and any number of threads; connections are kept."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._host_limit = HostLimit(limits.connections)
        self._network = Network(allow_private_hosts=limits.allow_private_hosts)
        self._pool = httpcore2.ConnectionPool(
            httpx2.create_ssl_context(),
            max_connections=None,
            max_keepalive_connections=64,
            network_backend=self._network,
        )

    def read(self, url: str, gone: threading.Event) -> bytes:
        """Raises FetchError, without a request if whoever waits for it has `gone`; TransientFetchError if another try
        may help."""
        try:
            return self._follow(_parse(url), gone)
        except httpcore2.TimeoutException as error:
            raise TransientFetchError(f"not complete within {self._limits.fetch_seconds:g} s") from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise TransientFetchError(str(error) or type(error).__name__) from error

    def _follow(self, here: httpx2.URL, gone: threading.Event) -> bytes:
        """A request, and those to which it redirects. Credentials in the URL go to its own host only."""
        seconds, login = self._limits.fetch_seconds, _login(here)
        for _ in range(self._limits.redirects + 1):
            with self._host_limit.of(here.host):
                if gone.is_set():
                    raise FetchError("nobody waits for it any more")
                start = time.monotonic()
                with self._network.deadline(seconds):
                    answer = self._get(here, login)
            if isinstance(answer, bytes):
                return answer
            seconds -= time.monotonic() - start
            login = login if _may_know_login(here, answer) else None
            here = answer
        raise FetchError(f"more than {self._limits.redirects} redirects")

    def _get(self, url: httpx2.URL, login: bytes | None) -> bytes | httpx2.URL:
        """The body, or where it is to be looked for."""
        if url.scheme not in ("http", "https") or not url.host:
            raise FetchError("not an http or https URL with a host")
        target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        with self._pool.stream("GET", target, headers=_headers(url, login)) as response:
            answer = httpx2.Headers(response.headers)
            if response.status in _REDIRECTS and "location" in answer:
                return _redirect(url, answer["location"])
            self._check(response.status, answer)
            body = self._body(response)
        _require_no_page(body, answer.get("content-type", ""))
        return body

    def _check(self, status: int, answer: httpx2.Headers) -> None:
        """Raises FetchError for an answer whose body is no use, before it is read."""
        if status in (408, 425, 429) or status >= 500:
            raise TransientFetchError(f"HTTP {status}", _retry_after(answer.get("retry-after")))
        if status not in (200, 203):  # 203: a proxy has changed something about it
            raise FetchError(f"HTTP {status}")
        codings = [coding.strip().lower() for coding in answer.get("content-encoding", "").split(",")]
        if compressions := _COMPRESSIONS.intersection(codings):
            # Not asked for; and a few bytes of it can unpack to gigabytes.
            raise FetchError(f"the server sends it compressed ({', '.join(sorted(compressions))})")
        if int(answer.get("content-length", 0)) > self._limits.image_bytes:  # h11 has seen to it that it is a number
            raise too_large(self._limits)

    def _body(self, response: httpcore2.Response) -> bytes:
        body = bytearray()
        for chunk in response.iter_stream():
            body += chunk
            if len(body) > self._limits.image_bytes:
                raise too_large(self._limits)
        return bytes(body)


def _parse(url: str) -> httpx2.URL:
    """Raises FetchError."""
    try:
        return httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError) as error:
        # Their own words quote a part of it: of a password with a slash, for one.
        raise FetchError("not a valid URL: look at its host and port; in a password, / is written %2F") from error


def _login(url: httpx2.URL) -> bytes | None:
    """The Authorization header of a URL's user info."""
    return b"Basic " + base64.b64encode(f"{url.username}:{url.password}".encode()) if url.userinfo else None


def _may_know_login(first: httpx2.URL, then: httpx2.URL) -> bool:
    """Whether the host that a URL's login is for is that of another URL, too; https may take the place of http."""
    ports = (first.origin.port, then.origin.port)
    is_upgrade = (first.scheme, then.scheme, ports) == ("http", "https", (80, 443))
    return first.host == then.host and (first.origin == then.origin or is_upgrade)


def _redirect(here: httpx2.URL, location: str) -> httpx2.URL:
    """Where a Location header (its UTF-8 decoded, if it is that) leads, without user info. As the pipeline's client, it
    takes one with a scheme but no host (`https:///a.jpg`) for one of the same host. Raises FetchError."""
    try:
        there = httpx2.URL(location)
        if there.scheme and not there.host:
            there = there.copy_with(host=here.host)
        return here.join(there).copy_with(userinfo=b"")
    except (httpx2.InvalidURL, ValueError) as error:
        raise FetchError("the server redirects to what is no URL") from error


def _require_no_page(body: bytes, content_type: str) -> None:
    """Raises FetchError for a text that is said to be one: mostly a login page in the place of the image. Whatever the
    server calls them, bytes that are no text may be an image."""
    kind = content_type.partition(";")[0].strip().lower()
    start = body[:_SNIFFED]
    if kind.startswith(_NO_IMAGES) and start == start.translate(None, _BINARY):
        raise FetchError(f"the server sends {kind}, no image")


def _headers(url: httpx2.URL, login: bytes | None) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"Host", url.netloc),
        (b"User-Agent", b"deit-batch"),
        (b"Accept", b"image/*,*/*;q=0.5"),
        (b"Accept-Encoding", b"identity"),
    ]
    if login:
        headers.append((b"Authorization", login))
    return headers


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, section 10.2.3): a number of seconds or a date. None for what is
    neither, or a date that no calendar has."""
    if value is None:
        return None
    try:
        return max(0.0, float(value) if value.isdigit() else parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
