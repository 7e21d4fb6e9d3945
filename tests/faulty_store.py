"""A real S3 server on loopback (moto's, in a process of its own), and before it, or before the server of another kind
of store, a proxy that does to a client what stores do on a bad day: throttles, answers 500, cuts connections."""

from __future__ import annotations

import http.client
import http.server
import json
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["SlowDown", "InternalError", "AccessDenied", "rateLimitExceeded", "cut", "refused", "slow", "silence"]
STATUS = {"SlowDown": 503, "InternalError": 500, "AccessDenied": 403}
SECRET = "not-to-be-shown"

Answer = tuple[int, list[tuple[str, str]], bytes]
"""Status, headers, body."""


def _refusal(status: int, code: str, kind: str, body: str) -> Answer:
    headers = [("Content-Type", kind), ("x-ms-error-code", code), ("Content-Length", str(len(body)))]
    return status, headers, body.encode()


def _xml(status: int, code: str) -> Answer:
    text = f"<Error><Code>{code}</Code><Message>Please reduce your request rate.</Message></Error>"
    return _refusal(status, code, "application/xml", text)


def _google(status: int, reason: str, message: str) -> Answer:
    error = {"code": status, "message": message, "errors": [{"message": message, "reason": reason}]}
    return _refusal(status, reason, "application/json", json.dumps({"error": error}))


REFUSALS: dict[str, list[Answer]] = {
    "s3": [_xml(503, "SlowDown"), _xml(429, "TooManyRequests")],
    "gs": [
        _google(503, "backendError", "Backend Error"),
        _google(429, "rateLimitExceeded", "Rate limit exceeded"),
        _google(403, "rateLimitExceeded", "Rate Limit Exceeded"),
    ],
    "abfs": [_xml(503, "ServerBusy"), _xml(429, "TooManyRequests")],
}
"""How a store of each kind says that it is asked too often."""


@dataclass
class Fault:
    """What happens to the next `times` requests that match, as in "GET /bucket/a.jpg", `after` so many to which nothing
    does."""

    kind: Kind
    pattern: str
    times: int = 10**9
    after: int = 0


class FaultyStore(http.server.ThreadingHTTPServer):
    """The proxy. `page_size`: how many objects a page of a listing has. `refused`: the share of all requests that are
    refused, as a store of the `kind` does that is asked too often; which ones, is drawn with a seed."""

    def __init__(self, port: int, kind: str = "s3", *, refused: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.port = port
        self.kind = kind
        self.refused = refused
        self.refusals = 0
        self.random = random.Random(0)
        self.page_size = 1000
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.busy = self.busiest = 0
        self.release = threading.Event()
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def refusal(self) -> Answer | None:
        with self.lock:
            if self.random.random() >= self.refused:
                return None
            self.refusals += 1
            return self.random.choice(REFUSALS[self.kind])

    def next_fault(self, request: str) -> Kind | None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times and re.match(fault.pattern, request):
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return fault.kind
        return None


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyStore

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that has had enough
            super().handle()

    def do_any(self) -> None:
        with self.server.lock:
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
        try:
            self._answer()
        finally:
            with self.server.lock:
                self.server.busy -= 1

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_any  # noqa: N815 - the base class asks for these

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.next_fault(f"{self.command} {self.path}")
        if refusal := self.server.refusal():
            self._send(*refusal)
        elif fault == "refused":
            self.close_connection = True
        elif fault == "silence":
            self.server.release.wait(20)
            self.close_connection = True
        elif fault == "rateLimitExceeded":
            self._send(*REFUSALS["gs"][-1])
        elif fault in STATUS:
            text = f"<Error><Code>{fault}</Code><Message>{fault}, it said</Message></Error>".encode()
            self._send(STATUS[fault], [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))], text)
        else:
            if fault == "slow":
                self.server.release.wait(0.2)
            self._send(*self._forward(body), cut=fault == "cut")

    def _forward(self, body: bytes) -> Answer:
        path = self.path
        if "list-type=2" in path:
            path += f"&max-keys={self.server.page_size}"
        behind = http.client.HTTPConnection("127.0.0.1", self.server.port)
        behind.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            behind.putheader(name, value)
        behind.endheaders(body)
        answer = behind.getresponse()
        data = answer.read()
        here, there = f"127.0.0.1:{self.server.server_port}", f"127.0.0.1:{self.server.port}"
        headers = [
            (name, value.replace(there, here))  # where an upload goes on
            for name, value in answer.getheaders()
            if name.lower() not in ("connection", "transfer-encoding")
        ]
        if answer.getheader("Content-Length") is None:
            headers.append(("Content-Length", str(len(data))))
        behind.close()
        return answer.status, headers, data

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = cut


@contextmanager
def serve_s3() -> Iterator[int]:
    """The port of moto's server."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        lines = iter(process.stderr.readline, "")
        port = next(int(found[1]) for line in lines if (found := re.search(r"http://127\.0\.0\.1:(\d+)", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()  # or its log would fill the pipe
        yield port
    finally:
        process.kill()  # asked politely, it waits for its connections
        process.wait()


def s3_environment(address: str) -> dict[str, str]:
    """Where a program finds the server, and as whom."""
    return {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
    }


class Bucket:
    """A bucket of its own, seen through the proxy by the code under test and directly by the test."""

    def __init__(self, proxy: FaultyStore, name: str) -> None:
        import boto3

        self.proxy = proxy
        self.name = name
        self._client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{proxy.port}")
        self._client.create_bucket(Bucket=name)

    def address(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def put(self, key: str, data: bytes) -> str:
        self._client.put_object(Bucket=self.name, Key=key, Body=data)
        return self.address(key)

    def get(self, key: str) -> bytes:
        data: bytes = self._client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return data

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=key)

    def names(self) -> list[str]:
        return [found["Key"] for found in self._client.list_objects_v2(Bucket=self.name).get("Contents", [])]

    def unfinished_uploads(self) -> int:
        return len(self._client.list_multipart_uploads(Bucket=self.name).get("Uploads", []))

    def fault(self, kind: Kind, request: str, times: int = 10**9, *, after: int = 0) -> None:
        """`request` is a method and a key, both regular expressions."""
        method, _, key = request.partition(" ")
        self.proxy.faults.append(Fault(kind, f"{method} /{self.name}/?{key}", times, after))

    def seen(self, request: str) -> int:
        """How many requests matched."""
        method, _, key = request.partition(" ")
        pattern = f"{method} /{self.name}/?{key}"
        return sum(bool(re.match(pattern, request)) for request in self.proxy.requests)


@contextmanager
def misbehaving(port: int, kind: str = "s3", *, refused: float = 0.0) -> Iterator[FaultyStore]:
    with FaultyStore(port, kind, refused=refused) as store:
        threading.Thread(target=store.serve_forever, daemon=True).start()
        yield store
        store.release.set()
        store.shutdown()
