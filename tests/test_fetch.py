"""Bytes from files, fields and a real web server, within limits."""

from __future__ import annotations

import base64
import os
import socket
from pathlib import Path

import pytest
from conftest import jpeg
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.errors import RowError
from deit_batch.fetch import Fetcher, Limits, decode_base64
from deit_batch.io import Base64, Failure, LocalFile, Url

LIMITS = Limits(image_bytes=5000, fetch_seconds=1.0)


def message(result: bytes | Failure) -> str:
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
    assert message(results[3]) == "FetchError: HTTP 404 File not found"
    assert results[4:] == [b"bytes", b"bytes", jpeg(0)]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/short.jpg", "peer closed connection"),
        ("/slow.jpg", "no answer within 1 s"),
        ("/drip.jpg", "not complete after 1 s"),
    ],
)
def test_a_misbehaving_server_is_a_failure_in_time(server: str, path: str, expected: str) -> None:
    assert expected in message(Fetcher(LIMITS).fetch(Url(server + path)))


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "http://127.0.0.1:1/x.jpg", "https://no-such-host.invalid/", "http://a\x00b/"]
)
def test_an_address_that_leads_nowhere_is_a_failure(url: str) -> None:
    assert message(Fetcher(LIMITS).fetch(Url(url))).startswith("FetchError: ")


def test_what_is_larger_than_the_limit_is_a_failure(photos: Path, server: str) -> None:
    fetcher = Fetcher(Limits(image_bytes=100))
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
