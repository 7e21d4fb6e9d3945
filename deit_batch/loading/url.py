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
            return self._follow(httpx2.URL(url), gone)
        except httpcore2.TimeoutException as error:
            raise TransientFetchError(f"not complete within {self._limits.fetch_seconds:g} s") from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise TransientFetchError(str(error) or type(error).__name__) from error
        except (httpx2.InvalidURL, httpcore2.UnsupportedProtocol, UnicodeError) as error:
            # Their own words quote a part of it: of a password with a slash, for one.
            raise FetchError("not a valid URL: look at its host and port; in a password, / is written %2F") from error

    def _follow(self, here: httpx2.URL, gone: threading.Event) -> bytes:
        """A request, and those to which it redirects. Credentials in the URL go to its own host only."""
        seconds = self._limits.fetch_seconds
        for _ in range(self._limits.redirects + 1):
            with self._host_limit.of(here.host):
                if gone.is_set():
                    raise FetchError("nobody waits for it any more")
                start = time.monotonic()
                with self._network.deadline(seconds):
                    answer = self._get(here)
            if isinstance(answer, bytes):
                return answer
            seconds -= time.monotonic() - start
            here = here.join(answer).copy_with(userinfo=b"")
        raise FetchError(f"more than {self._limits.redirects} redirects")

    def _get(self, url: httpx2.URL) -> bytes | httpx2.URL:
        """The body, or where it is to be looked for."""
        if url.scheme not in ("http", "https") or not url.host:
            raise FetchError("not an http or https URL with a host")
        target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        with self._pool.stream("GET", target, headers=_headers(url)) as response:
            answer = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in _REDIRECTS and "location" in answer:
                return httpx2.URL(answer["location"])
            self._check(response.status, answer)
            return self._body(response)

    def _check(self, status: int, answer: dict[str, str]) -> None:
        """Raises FetchError for an answer whose body is no use, before it is read."""
        if status in (408, 425, 429) or status >= 500:
            raise TransientFetchError(f"HTTP {status}", _retry_after(answer.get("retry-after")))
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
            raise too_large(self._limits)

    def _body(self, response: httpcore2.Response) -> bytes:
        body = bytearray()
        for chunk in response.iter_stream():
            body += chunk
            if len(body) > self._limits.image_bytes:
                raise too_large(self._limits)
        return bytes(body)


def _headers(url: httpx2.URL) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"Host", url.netloc),
        (b"User-Agent", b"deit-batch"),
        (b"Accept", b"image/*,*/*;q=0.5"),
        (b"Accept-Encoding", b"identity"),
    ]
    if url.userinfo:
        login = f"{url.username}:{url.password}".encode()
        headers.append((b"Authorization", b"Basic " + base64.b64encode(login)))
    return headers


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, section 10.2.3): a number of seconds or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value) if value.isdigit() else parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
