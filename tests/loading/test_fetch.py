"""Bytes from files, fields and a real web server, within limits."""

from __future__ import annotations

import base64
import ipaddress
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import misbehaving
import pytest
from helpers import jpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from misbehaving import ScriptedServer, Server

from deit_batch.errors import FetchError, RowError
from deit_batch.io import LONGEST_MESSAGE, Base64, Failure, LocalFile, Url
from deit_batch.limits import Limits
from deit_batch.loading import safe_network
from deit_batch.loading.fetch import Fetcher, decode_base64
from deit_batch.loading.url import _may_know_login, _redirect, _require_no_page, _retry_after

LIMITS = Limits(image_bytes=5000, fetch_seconds=1.0, retries=0, allow_private_hosts=True)
UNREDIRECTED = Fetcher(Limits(fetch_seconds=2.0, retries=0, redirects=0, allow_private_hosts=True))
CONFINED = Fetcher(Limits(fetch_seconds=2.0, retries=0))


@pytest.fixture(scope="module")
def scripted() -> Iterator[ScriptedServer]:
    with misbehaving.scripted() as server:
        yield server


def answer(*headers: str | bytes, status: str = "200 OK", body: bytes = jpeg(1)) -> bytes:
    lines = [header if isinstance(header, bytes) else header.encode() for header in headers]
    head = [f"HTTP/1.1 {status}".encode(), b"Content-Length: %d" % len(body), b"Connection: close", *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def message(result: object) -> str:
    assert isinstance(result, Failure)
    return f"{result.type}: {result.message}"


def test_a_batch_comes_back_in_order_with_failures_in_their_places(photos: Path, server: str) -> None:
    good = Failure("RowError", "line 2: bad")
    results = Fetcher(LIMITS).fetch_all(
        [
            Url(f"{server}/01.jpg"),
            LocalFile(f"{photos}/00.jpg"),
            good,
            Url(f"{server}/none.jpg"),
            b"bytes",
            Base64("Ynl0ZXM"),
            Url(f"{server}/moved.jpg"),
        ]
    )
    assert results[:3] == [jpeg(1), jpeg(0), good]
    assert message(results[3]) == "FetchError: HTTP 404"
    assert results[4:] == [b"bytes", b"bytes", jpeg(0)]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/short.jpg", "peer closed connection"),
        ("/slow.jpg", "not complete within 1 s"),
        ("/drip.jpg", "not complete within 1 s"),
        ("/drip-headers.jpg", "not complete within 1 s"),
        ("/endless.jpg", "larger than 5,000 bytes"),
        ("/huge.jpg", "larger than 5,000 bytes"),
        ("/gzip.jpg", "compressed (gzip)"),
        ("/html.jpg", "text/html, no image"),
        ("/loop.jpg", "more than 5 redirects"),
        ("/to-file.jpg", "not an http or https URL"),
        ("/to-ftp.jpg", "not an http or https URL"),
        ("/nonsense.jpg", "redirects to what is no URL"),
        ("/to-bracket.jpg", "FetchError: "),
        ("/latest.jpg", "HTTP 503"),
        ("/gone.jpg", "HTTP 410"),
        ("/no-content.jpg", "HTTP 204"),
        ("/empty.jpg", "no bytes"),
    ],
)
def test_a_misbehaving_server_is_a_failure_in_time(server: str, path: str, expected: str) -> None:
    start = time.monotonic()
    assert expected in message(Fetcher(LIMITS).fetch(Url(server + path)))
    assert time.monotonic() - start < 5


def test_when_nobody_waits_any_more_there_is_no_other_try(web: Server) -> None:
    gone = threading.Event()
    patient = Limits(retries=100, allow_private_hosts=True)
    gone.set()
    assert "nobody waits" in message(Fetcher(patient).start(Url(f"{web.address}/busy.jpg"), gone).result())
    assert web.busy == 0


def test_a_passing_fault_is_tried_again(server: str) -> None:
    assert "HTTP 429" in message(Fetcher(LIMITS).fetch(Url(f"{server}/busy.jpg")))
    patient = Limits(retries=1, allow_private_hosts=True)
    assert Fetcher(patient).fetch(Url(f"{server}/busy.jpg")) == jpeg(0)
    assert "HTTP 404" in message(Fetcher(patient).fetch(Url(f"{server}/none.jpg")))


class Gone(threading.Event):
    """Notes which error is being handled when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.handled: list[BaseException | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.handled.append(sys.exc_info()[1])
        return False


def test_half_a_body_is_not_kept_until_the_next_try(server: str) -> None:
    """By the traceback of the error."""
    gone = Gone()
    Fetcher(Limits(retries=1, allow_private_hosts=True)).fetch(Url(f"{server}/short.jpg"), gone)
    assert gone.handled == [None]


def test_retry_after_is_a_number_or_a_date() -> None:
    assert _retry_after("7") == 7
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert _retry_after(None) is _retry_after("soon") is None
    assert _retry_after("1 Jan 99999999999999999999 00:00:00 GMT") is _retry_after("\xb2") is None


# --- what answers there are ------------------------------------------------------------------------------------------


def pipelines(url: str) -> bytes:
    """What `transformers.image_utils.load_image` fetches."""
    return httpx2.get(url, timeout=5, follow_redirects=True).content


VALID = [
    answer("Content-Type: text/plain"),
    answer("Content-Type: text/html; charset=utf-8"),
    answer("Content-Type: application/json"),
    answer("Content-Encoding: aws-chunked"),
    answer("Content-Encoding: UTF-8"),
    answer("Content-Encoding: "),
    answer("Content-Encoding: none"),
    answer("Content-Encoding: Identity"),
    answer("Content-Encoding: identity, binary"),
    answer("Content-Encoding: utf-8", "Content-Encoding: identity"),
    answer(b"X-Name: caf\xe9"),
    answer(b"X-Name: caf\xc3\xa9", status="200"),
    answer(status="203 Non-Authoritative Information"),
    b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + answer(),
    b"HTTP/1.0 200 OK\r\n\r\n" + jpeg(1),
]


@pytest.mark.parametrize("valid", VALID)
def test_an_answer_that_the_pipeline_takes_is_taken(scripted: ScriptedServer, valid: bytes) -> None:
    """The bytes decide, not what the server calls them."""
    scripted.answers[:] = [valid]
    assert Fetcher(LIMITS).fetch(Url(scripted.address)) == pipelines(scripted.address) == jpeg(1)


@pytest.mark.parametrize("location", ["/café.jpg", "/a b.jpg", "?x=ü", "//127.0.0.1:{port}/ü", "\t/b.jpg", ""])
def test_a_redirect_that_the_pipeline_follows_is_followed(scripted: ScriptedServer, location: str) -> None:
    location = location.format(port=scripted.server_address[1])
    answers = [answer(f"Location: {location}", status="302 Found", body=b""), answer()]
    asked = []
    for fetch in (lambda url: Fetcher(LIMITS).fetch(Url(url)), pipelines):
        scripted.answers[:], scripted.requests[:] = answers, []
        assert fetch(f"{scripted.address}/old/") == jpeg(1)
        asked.append([request.splitlines()[0] for request in scripted.requests])
    assert asked[0] == asked[1]


def test_a_redirect_without_a_host_stays_at_its_host() -> None:
    assert _redirect(httpx2.URL("http://a.example/b"), "https:///c") == "https://a.example/c"


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "aws-chunked, br", "deflate", "zstd"])
def test_a_compressed_body_is_refused(scripted: ScriptedServer, coding: str) -> None:
    scripted.answers[:] = [answer(f"Content-Encoding: {coding}")]
    assert "the server sends it compressed" in message(Fetcher(LIMITS).fetch(Url(scripted.address)))


@given(st.text(st.characters(max_codepoint=255, blacklist_categories=["Cc"])), st.sampled_from(["text/html", "TEXT/x"]))
def test_a_text_that_is_called_one_is_no_image(text: str, kind: str) -> None:
    with pytest.raises(FetchError, match=f"sends {kind.lower()}, no image"):
        _require_no_page(text.encode(), f"{kind}; charset=utf-8")


STATUSES = st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.1 302 Found", b"HTTP/1.1 503 Busy", b"HTTP/1.0 308"])
NAMES = st.sampled_from(
    b"Location Retry-After Content-Type Content-Encoding Content-Length Transfer-Encoding Connection Upgrade".split()
)
PIECES = st.sampled_from(
    b"http https : / // [ ] @ % ? # , ; - + . 127.0.0.1 [::1] 0 99999 \xc2\xb2 \xe9 \xff Jan GMT gzip chunked".split()
    + b" |\t|\x1b|close|Wed, 21 Oct 2015 07:28:00 GMT".split(b"|")
    + [b"9" * 5000, b"x" * 5000]
)
VALUES = st.lists(PIECES, max_size=6).map(b"".join) | st.binary(max_size=20)
LINES = st.lists(st.tuples(NAMES, VALUES).map(b": ".join) | st.binary(max_size=20), max_size=5)


@given(STATUSES | st.binary(max_size=30), LINES, st.sampled_from([b"", b"xyz", b"5\r\nabcde\r\n0\r\n\r\n"]))
@settings(deadline=None)
def test_whatever_a_server_answers_costs_its_own_reference_alone(
    scripted: ScriptedServer, status: bytes, lines: list[bytes], body: bytes
) -> None:
    scripted.answers[:] = [b"\r\n".join([status, *lines]) + b"\r\n\r\n" + body]
    result = UNREDIRECTED.fetch(Url(scripted.address + "/a.jpg"))
    assert isinstance(result, bytes) or (result.type == "FetchError" and len(result.message) <= LONGEST_MESSAGE + 1)


def test_what_nobody_has_thought_of_is_a_failure_too() -> None:
    nonsense: Any = 3
    assert message(Fetcher(LIMITS).fetch(Url(nonsense))).startswith("FetchError: can't be fetched: TypeError: ")


@given(st.lists(PIECES.map(lambda piece: piece.decode("utf-8", "surrogateescape")) | st.text(max_size=3), max_size=8))
@settings(deadline=None)
def test_whatever_a_url_is_costs_its_own_reference_alone(pieces: list[str]) -> None:
    numeric = partial(socket.getaddrinfo, flags=socket.AI_NUMERICHOST)
    with pytest.MonkeyPatch.context() as patched:  # no name is looked up: whoever answers may be slow
        patched.setattr(socket, "getaddrinfo", numeric)
        result = CONFINED.fetch(Url("http://127.0.0.1" + "".join(pieces)))
    assert isinstance(result, Failure)
    assert "can't be fetched" not in result.message  # the words for what nobody has thought of


def test_a_plain_binary_content_type_is_no_obstacle(server: str) -> None:
    assert Fetcher(LIMITS).fetch(Url(f"{server}/octets.jpg")) == jpeg(0)


def test_credentials_go_to_their_own_host_only(web: Server) -> None:
    address = web.address.removeprefix("http://")
    assert Fetcher(LIMITS).fetch(Url(f"http://user:p%40ss@{address}/login.jpg")) == jpeg(0)
    (first, login), (second, nothing) = web.logins
    assert login == "Basic " + base64.b64encode(b"user:p@ss").decode()
    assert (first, nothing) == (address, None)
    assert second.startswith("localhost:")


def test_credentials_outlast_a_redirect_within_their_host(scripted: ScriptedServer) -> None:
    scripted.answers[:] = [answer("Location: /b.jpg", status="302 Found", body=b""), answer()]
    scripted.requests.clear()
    host = scripted.address.removeprefix("http://")
    assert Fetcher(LIMITS).fetch(Url(f"http://user:pass@{host}/a.jpg")) == jpeg(1)
    assert [b"Authorization: Basic dXNlcjpwYXNz" in request for request in scripted.requests] == [True, True]


@pytest.mark.parametrize(
    ("first", "then", "may"),
    [
        ("http://a.example/x", "http://a.example:80/y", True),
        ("http://a.example/x", "https://a.example/y", True),
        ("https://a.example/x", "http://a.example/y", False),
        ("http://a.example/x", "http://a.example:8080/y", False),
        ("http://a.example/x", "http://b.a.example/y", False),
    ],
)
def test_which_redirects_may_know_the_credentials(first: str, then: str, may: bool) -> None:
    assert _may_know_login(httpx2.URL(first), httpx2.URL(then)) is may


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0177.0.0.1", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "127.1"],
)
def test_hosts_that_are_not_public_are_refused_in_every_notation(server: str, host: str) -> None:
    port = server.rpartition(":")[2]
    refused = message(Fetcher(Limits(retries=0)).fetch(Url(f"http://{host}:{port}/00.jpg")))
    assert "is no host of the public internet" in refused or "not a valid URL" in refused


def test_a_redirect_into_the_private_net_is_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 127.0.0.1 were a public address, and localhost's were not."""
    addresses = {"127.0.0.1": "127.0.0.1", "localhost": "127.0.0.2"}
    monkeypatch.setattr(safe_network, "is_public", lambda address: address == "127.0.0.1")
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **more: resolve(addresses[host], *args, **more))
    fetcher = Fetcher(Limits(retries=0))
    assert fetcher.fetch(Url(f"{server}/00.jpg")) == jpeg(0)
    assert "localhost is no host of the public internet (127.0.0.2)" in message(
        fetcher.fetch(Url(f"{server}/login.jpg"))
    )


def test_a_name_that_changes_its_answer_gains_nothing(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: public when first asked, loopback ever after. What was checked is what is connected to."""
    answers = ["192.0.2.1"]  # TEST-NET-1 (RFC 5737): nobody is there
    resolve = socket.getaddrinfo
    monkeypatch.setattr(safe_network, "is_public", lambda address: address == "192.0.2.1")
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **more: resolve(
            (answers.pop() if answers else "127.0.0.1") if host == "rebinds.example" else host, *args, **more
        ),
    )
    port = server.rpartition(":")[2]
    fetcher = Fetcher(Limits(retries=0, fetch_seconds=1.0))
    assert "no host of the public internet" not in message(fetcher.fetch(Url(f"http://rebinds.example:{port}/00.jpg")))
    assert "no host of the public internet" in message(fetcher.fetch(Url(f"http://rebinds.example:{port}/00.jpg")))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("0.0.0.0", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::5db8:d822", True),
        ("2002:7f00:1::", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert safe_network.is_public(address) is public


# iana.org/assignments, "Special-Purpose Address Registry" of both versions, and networks that were given up: of each
# the first and the last address, whatever the Python that runs this knows of it.
@pytest.mark.parametrize(
    "network",
    """0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
    192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
    ::/96 ::ffff:0:0:0/96 ::ffff:10.0.0.0/104 64:ff9b::a00:0/104 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001:2::/48
    2001:10::/28 2001:db8::/32 2002:a00::/24 3fff::/20 5f00::/16 4000::/3 fc00::/7 fe80::/10 fec0::/10
    ff00::/8""".split(),
)
def test_networks_that_are_not_public(network: str) -> None:
    addresses = ipaddress.ip_network(network)
    assert [safe_network.is_public(str(addresses[i])) for i in (0, -1)] == [False, False]


@pytest.mark.parametrize(
    "address", ["1.0.0.0", "9.255.255.255", "172.32.0.0", "198.20.0.0", "223.255.255.255", "2600::1", "2a00:1450::8"]
)
def test_their_neighbours_are_public(address: str) -> None:
    assert safe_network.is_public(address)


def test_local_files_can_be_confined_to_a_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    for path in (root / "sub" / "in.jpg", tmp_path / "out.jpg"):
        path.write_bytes(b"bytes")
    (root / "link.jpg").symlink_to(tmp_path / "out.jpg")
    (root / "inner.jpg").symlink_to(root / "sub" / "in.jpg")
    (root / "away").symlink_to(tmp_path)
    fetcher = Fetcher(Limits(root=str(root)))
    for inside in (f"{root}/sub/in.jpg", f"{root}/sub/../sub/in.jpg", f"{root}/inner.jpg"):
        assert fetcher.fetch(LocalFile(inside)) == b"bytes", inside
    for outside in (
        f"{root}/../out.jpg",
        f"{root}/link.jpg",
        f"{root}/away/out.jpg",
        "/etc/passwd",
        f"{tmp_path}/rooted",
    ):
        assert message(fetcher.fetch(LocalFile(outside))) == "FetchError: outside of --root", outside


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "http://127.0.0.1:1/x.jpg", "https://no-such-host.invalid/", "http://a\x00b/"]
)
def test_an_address_that_leads_nowhere_is_a_failure(url: str) -> None:
    assert message(Fetcher(LIMITS).fetch(Url(url))).startswith("FetchError: ")


def test_what_is_larger_than_the_limit_is_a_failure(photos: Path, server: str) -> None:
    fetcher = Fetcher(Limits(image_bytes=100, allow_private_hosts=True))
    for location in (LocalFile(f"{photos}/00.jpg"), Url(f"{server}/00.jpg"), Base64("A" * 1000), b"x" * 101):
        assert "larger than 100 bytes" in message(fetcher.fetch(location))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket.jpg"))
        expected = {
            "folder.jpg": "not a regular file",
            "empty.jpg": "no bytes",
            "dangling.jpg": "No such file",
            "pipe.jpg": "not a regular file",
            "socket.jpg": "not a regular file",
            "none.jpg": "No such file",
            "n\0ul.jpg": "not a file name",
            "\ud800.jpg": "not a file name",
        }
        for name, text in expected.items():
            assert text in message(Fetcher(LIMITS).fetch(LocalFile(f"{tmp_path}/{name}"))), name


@given(st.binary(), st.integers(1, 80), st.booleans(), st.booleans())
def test_base64_of_any_style_is_decoded(data: bytes, width: int, url_safe: bool, padded: bool) -> None:
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(data).decode()
    text = text if padded else text.rstrip("=")
    lines = "\r\n".join(text[start : start + width] for start in range(0, len(text), width))
    assert decode_base64(lines) == data


@pytest.mark.parametrize("text", ["A", "AAAAA", "not base64!", "AA=A", "ÄÖÜ"])
def test_what_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(RowError, match="not base64"):
        decode_base64(text)
