"""A web server on loopback that serves a folder, and misbehaves on request: by path, as listed here."""

from __future__ import annotations

import gzip
import http.server
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

GOOD = "/00.jpg"  # must be in the folder
ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "/html.jpg": (200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>"),
    "/gzip.jpg": (200, {"Content-Encoding": "gzip"}, gzip.compress(b"\0" * 10_000_000)),
    "/huge.jpg": (200, {"Content-Length": str(10**12)}, b""),
    "/short.jpg": (200, {"Content-Length": "1000"}, b"x" * 10),  # less than it promises
    "/loop.jpg": (302, {"Location": "/loop.jpg"}, b""),
    "/to-file.jpg": (302, {"Location": "file:///etc/passwd"}, b""),
    "/to-ftp.jpg": (302, {"Location": "ftp://127.0.0.1/x.jpg"}, b""),
    "/latest.jpg": (503, {"Retry-After": "1 Jan 99999999999999999999 00:00:00 GMT"}, b""),
    "/to-bracket.jpg": (302, {"Location": "http:////["}, b""),
    "/nonsense.jpg": (302, {"Location": "http://[::"}, b""),
    "/gone.jpg": (410, {}, b""),
    "/empty.jpg": (200, {}, b""),
    "/no-content.jpg": (204, {}, b""),
    "/moved.jpg": (302, {"Location": GOOD}, b""),
}
FAULTS = [path for path in ANSWERS if path != "/moved.jpg"]
FAULTS += ["/endless.jpg", "/drip-headers.jpg", "/slow.jpg", "/drip.jpg", "/no-such.jpg"]
"""What must become a failed record, each."""


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.release = threading.Event()
        self.busy = 0
        self.logins: list[tuple[str, str | None]] = []
        """Host and credentials of each request under /login and of where it is sent on to."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    with Server(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.release.set()
        server.shutdown()


class ScriptedServer(socketserver.ThreadingTCPServer):
    """Answers each request with the next of `answers`, bytes as they are; the last one it gives again and again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.answers: list[bytes] = []
        self.requests: list[bytes] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class ScriptedHandler(socketserver.StreamRequestHandler):
    server: ScriptedServer

    def handle(self) -> None:
        head = b""
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            head += line
        self.server.requests.append(head)
        answers = self.server.answers
        with suppress(ConnectionError):
            self.wfile.write(answers.pop(0) if len(answers) > 1 else answers[0])


@contextmanager
def scripted() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that has had enough
            super().handle()

    def do_GET(self) -> None:
        release = self.server.release
        if self.path in ANSWERS:
            self._answer(*ANSWERS[self.path])
        elif self.path.startswith("/get?key="):  # the image that a parameter names, and nothing else does
            self._serve("/" + self.path.removeprefix("/get?key="))
        elif self.path == "/octets.jpg":
            self._answer(200, {"Content-Type": "binary/octet-stream"}, Path(self.directory, GOOD[1:]).read_bytes())
        elif self.path == "/busy.jpg":  # twice too busy, then well
            self.server.busy += 1
            if self.server.busy < 3:
                self._answer(429 if self.server.busy == 1 else 503, {"Retry-After": "0"}, b"")
            else:
                self._serve(GOOD)
        elif self.path.startswith("/login"):  # well only with the right credentials, which must not be passed on
            self._log_in()
            self._answer(302, {"Location": f"http://localhost:{self.server.server_port}/elsewhere.jpg"}, b"")
        elif self.path == "/elsewhere.jpg":
            self._log_in()
            self._serve(GOOD)
        elif self.path == "/endless.jpg":
            self._answer(200, {}, b"")
            while not release.is_set():
                self.wfile.write(b"x" * 65536)
        elif self.path == "/drip-headers.jpg":
            while not release.wait(0.05):
                self.wfile.write(b"H")
        elif self.path == "/slow.jpg":
            release.wait(20)
        elif self.path == "/drip.jpg":  # each byte in time, never an end
            self._answer(200, {}, b"")
            while not release.wait(0.05):
                self.wfile.write(b"x")
        else:
            super().do_GET()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _serve(self, path: str) -> None:
        self.path = path
        super().do_GET()

    def _log_in(self) -> None:
        self.server.logins.append((str(self.headers["Host"]), self.headers["Authorization"]))
