"""What one client may cost the others: real connections, to a server of its own or to one without a model."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from helpers import jpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from server_process import KEY, Process, b64, running

from deit_batch.serving import connection
from deit_batch.serving import server as serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "keys").write_text(KEY)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, vit: Path) -> Iterator[Process]:
    with running(folder, vit, "--api-key-file", "keys", "--workers", "1") as server:
        yield server
        server.end()


@contextmanager
def bare_server(body: bytes = b"") -> Iterator[tuple[serving.Server, tuple[str, int]]]:
    """One without a model, in this process, and where it listens."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(app, http=connection.Connection, backlog=serving.TAKEN, lifespan="off", log_config=None)
    server = serving.Server(config)
    with serving.listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield server, listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_connection_that_sends_no_whole_head_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    with (
        bare_server() as (_, address),
        socket.create_connection(address, 30) as silent,
        socket.create_connection(address, 30) as half,
    ):
        half.sendall(GET)
        assert half.recv(1000).split()[1] == b"200"
        half.sendall(b"GET / HT")  # the head of a second request, which never ends
        assert closed(half)
        assert closed(silent)


def test_beyond_the_most_connections_the_one_that_lets_us_wait_longest_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 3)
    with bare_server() as (server, address), ExitStack() as stack:

        def connect(sent: bytes) -> socket.socket:
            client = stack.enter_context(socket.create_connection(address, 30))
            client.sendall(sent)
            return client

        silent = connect(b"")
        while not server.server_state.connections:
            time.sleep(0.01)
        body = connect(GET.replace(b"Host", b"Content-Length: 9\r\nHost") + b"x")
        assert body.recv(1000).split()[1] == b"200"
        head = connect(GET[:-4])
        while len(server.server_state.connections) < 3:
            time.sleep(0.01)
        for victim in (silent, body, head):
            assert connect(GET).recv(1000).split()[1] == b"200"
            assert closed(victim)


def test_a_client_that_does_not_read_its_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 2)
    large = b"x" * 30_000_000
    with bare_server(large) as (server, address):
        with socket.create_connection(address, 30) as slow:
            slow.sendall(GET.replace(b"Host", b"Connection: close\r\nHost"))
            received = 0
            for _ in range(9):  # slowly, but on and on
                received += len(slow.recv(3_000_000, socket.MSG_WAITALL))
                time.sleep(0.3)
            while part := slow.recv(1_000_000):
                received += len(part)
            assert received > len(large)
        with socket.create_connection(address, 30) as deaf:
            deaf.sendall(GET)
            while not server.server_state.connections:
                time.sleep(0.01)
            while server.server_state.connections:
                time.sleep(0.01)


def closed(client: socket.socket) -> bool:
    with suppress(ConnectionResetError):
        rest(client)
    return True


def rest(client: socket.socket) -> bytes:
    """All that comes until the connection is closed."""
    received = b""
    while part := client.recv(65536):
        received += part
    return received


def test_an_answer_to_half_a_request_says_that_it_is_the_last_on_its_connection() -> None:
    """Or a client would send its next request there, where nobody reads it."""
    with bare_server(b"early") as (_, address), socket.create_connection(address, 30) as client:
        client.sendall(GET.replace(b"Host", b"Content-Length: 9\r\nHost"))
        head = client.recv(1000)
        assert head.split()[1] == b"200"
        assert b"connection: close" in head.lower()
        client.sendall(b"the rest." + GET)
        assert b"HTTP/1.1" not in rest(client)
    with bare_server(b"in time") as (_, address), socket.create_connection(address, 30) as client:
        for _ in range(2):
            client.sendall(GET.replace(b"Host", b"Content-Length: 4\r\nHost") + b"body")
            assert b"connection: close" not in client.recv(1000).lower()


# --- floods -----------------------------------------------------------------------------------------------------------

POST = (
    b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    + f"Authorization: Bearer {KEY}\r\n".encode()
)
HEALTHY_WITHIN = 10.0
"""Seconds, on a machine that has other things to do; `scripts/load` shows that it is under one."""


@contextmanager
def flooded(server: Process, clients: int, parts: Callable[[], Iterator[bytes]]) -> Iterator[None]:
    """Many clients send what there is of `parts`, and when they are cut off, again."""
    over = threading.Event()

    def flood() -> None:
        while not over.is_set():
            with suppress(OSError), server.connect() as client:
                for part in parts():
                    client.sendall(part)
                    if over.is_set():
                        break

    threads = [threading.Thread(target=flood, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def assert_healthy(server: Process, seconds: float = 3) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert httpx2.get(server.client.base_url.join("/health"), timeout=HEALTHY_WITHIN).status_code == 200


@pytest.mark.parametrize("key", [True, False])
def test_a_body_in_chunks_of_a_byte_stops_nobody(server: Process, key: bool) -> None:
    head = POST if key else POST.replace(KEY.encode(), b"none")

    def parts() -> Iterator[bytes]:
        yield head + b"Transfer-Encoding: chunked\r\n\r\n"
        while True:
            yield b"1\r\na\r\n" * 40_000

    with flooded(server, 20, parts):
        assert_healthy(server)


@pytest.mark.parametrize("slow", [POST[:-1], POST + b"Content-Length: 1000\r\n\r\n{"])
def test_slow_heads_and_bodies_stop_nobody(server: Process, slow: bytes) -> None:
    def parts() -> Iterator[bytes]:
        yield slow
        while True:
            time.sleep(0.1)
            yield b" "

    with flooded(server, 100, parts):
        assert_healthy(server)


def test_clients_that_leave_stop_nobody(server: Process) -> None:
    with flooded(server, 8, lambda: iter([POST + b"Content-Length: 1000\r\n\r\n{"])):
        assert_healthy(server)


def test_idle_connections_beyond_what_may_be_open_stop_nobody(folder: Path, vit: Path) -> None:
    with running(folder, vit, "--workers", "1") as server, ExitStack() as stack:
        before = len(server.lines)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (300, 300))
        for _ in range(500):
            with suppress(ConnectionError):
                stack.enter_context(server.connect())
        assert_healthy(server, seconds=1)
        assert len(server.score(b64(jpeg()))[0]) == 5
        said = server.lines[before:]
        assert [line for line in said if "POST /score 200" not in line] == []


def test_a_body_may_come_in_small_chunks(server: Process) -> None:
    body = json.JSONEncoder().iterencode({"input_data": [b64(jpeg(3)), ""]})
    headers = {"Content-Type": "application/json"}
    answer = server.client.post("/score", content=(part.encode() for part in body), headers=headers)
    assert answer.json()[0] == server.score(b64(jpeg(3)))[0]


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 5000, b"chunks in its body"),
        (POST + b"A:b\r\n" * 5000 + b"\r\n", b"too many lines"),
        (POST + b"A: " + b"b" * 50_000 + b"\r\n\r\n", b"Invalid HTTP request"),
        (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", b"RFC 9112"),
        (POST + b"Authorization: Bearer x\r\nContent-Length: 2\r\n\r\n{}", b"more than one authorization"),
        (POST + b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", b"more than one content-type"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nz\r\n", b"Invalid HTTP request"),
        (POST.replace(b"POST", b"P\x01ST"), b"Invalid HTTP request"),
    ],
)
def test_what_is_no_fair_request_is_answered_once_and_the_connection_closed(
    server: Process, sent: bytes, says: bytes
) -> None:
    with server.connect() as client:
        client.sendall(sent + b"\r\n" + GET)
        answers = rest(client)
    head, _, body = answers.partition(b"\r\n\r\n")
    assert head.split()[1] == b"400"
    assert says in json.loads(body)["detail"].encode()


@pytest.mark.parametrize("length", [b"Content-Length: 3000000", b"Transfer-Encoding: chunked"])
def test_after_an_answer_to_an_unread_body_the_connection_closes(server: Process, length: bytes) -> None:
    """And the answer comes, though the client sends on."""
    with server.connect() as client:
        client.sendall(POST.replace(KEY.encode(), b"none") + length + b"\r\n\r\n2dc6c0\r\n")
        for _ in range(20):
            client.sendall(b"x" * 100_000)
        answer = rest(client)
    assert answer.split()[1] == b"401"
    assert answer.count(b"HTTP/1.1") == 1


def test_a_client_that_closes_its_side_is_answered(server: Process) -> None:
    body = json.dumps({"input_data": [b64(jpeg())]}).encode()
    request = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    for requests in (1, 3):  # pipelined
        with server.connect() as client:
            client.sendall(request * requests)
            client.shutdown(socket.SHUT_WR)
            assert rest(client).count(b"HTTP/1.1 200 OK") == requests
    with server.connect() as client:
        client.sendall(request[:-1])
        client.shutdown(socket.SHUT_WR)
        assert rest(client) == b""


def test_nothing_leads_where_the_host_of_a_request_says(server: Process) -> None:
    for path in ("/score/", "/health/"):
        answer = server.client.post(path, json={}, headers={"Host": "evil.example"})
        assert (answer.status_code, answer.headers.get("Location")) == (404, None)


@pytest.mark.parametrize("target", ["http://x/health", "HTTP://x:80/health?a=b", "http://x/%68ealth"])
def test_a_target_may_be_in_absolute_form(server: Process, target: str) -> None:
    """RFC 9112, section 3.2.2."""
    with server.connect() as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert rest(client).endswith(b'{"status":"ok"}')


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_a_probe_may_ask_for_the_head_alone(server: Process, path: str) -> None:
    answer = server.client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(server.client.get(path).content))


FIELDS = st.sampled_from(
    b"Origin Content-Type Content-Encoding Content-Length Transfer-Encoding Authorization Host Expect".split()
)
PIECES = st.sampled_from(
    b"http: // [ ] @ : / ; , = % identity chunked gzip application/json charset 100-continue 0 2 Bearer".split()
    + b" |\t|\xff|\xc2\xb2|\x1b|999999999999999999999999999999|the-key".split(b"|")
)
HEADS = st.lists(st.tuples(FIELDS, st.lists(PIECES, max_size=5).map(b"".join)).map(b": ".join), max_size=4)


@given(HEADS, st.booleans())
@settings(deadline=None)
def test_no_head_of_a_request_is_a_fault_of_ours(server: Process, fields: list[bytes], plain: bool) -> None:
    first = b"POST /score HTTP/1.1\r\n" if plain else POST
    with server.connect() as client:
        client.sendall(first + b"\r\n".join([*fields, b"", b"{}"]))
        client.shutdown(socket.SHUT_WR)
        answer = rest(client)
    assert answer == b"" or answer.split()[1] < b"500"
    assert not any("unexpected" in line or "verbose" in line for line in server.lines)
