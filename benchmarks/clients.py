"""Servers as processes, and clients of theirs that cost as little as they can: they share the machine."""

from __future__ import annotations

import base64
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HANGS_AFTER = 120  # seconds: no answer may take as long


@contextmanager
def running(command: Sequence[object], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The server's process, and its port, once it is ready. What it says goes into `log`."""
    with open(log, "wb") as file, subprocess.Popen([*map(str, command)], stderr=file) as process:
        try:
            yield process, _port(process, log)
        finally:
            process.kill()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    while process.poll() is None:
        found = re.search(rb"http://127\.0\.0\.1:(\d+)", log.read_bytes())
        if found and _is_ready(int(found[1])):
            return int(found[1])
        time.sleep(0.1)
    sys.exit(f"{process.args!r} has ended: {log.read_text()}")


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANGS_AFTER)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except ConnectionError:
        return False
    finally:
        connection.close()


def request(*images: bytes | str) -> bytes:
    """The body: bytes in base64, text as it is."""
    texts = [image if isinstance(image, str) else base64.b64encode(image).decode() for image in images]
    return json.dumps({"input_data": texts}).encode()


class Client:
    """One connection, kept open, one request at a time."""

    def __init__(self, port: int, key: str = "") -> None:
        self.headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANGS_AFTER)

    def post(self, body: bytes, **headers: str) -> tuple[int, bytes]:
        """Status and body of the answer. Raises OSError or HTTPException if there is none."""
        try:
            self._connection.request("POST", "/score", body, {**self.headers, **headers})
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()  # the next request opens another
            raise

    def close(self) -> None:
        self._connection.close()


def latencies(port: int, bodies: Sequence[bytes], *, clients: int, seconds: float) -> tuple[list[float], float]:
    """Seconds from request to answer of each of many clients' requests, each client sending its next as soon as it has
    its answer; and how long all that took."""
    found: list[float] = []
    end = time.monotonic() + seconds

    def ask(number: int) -> None:
        client, turn = Client(port), number
        while (start := time.monotonic()) < end:
            status, answer = client.post(bodies[turn % len(bodies)])
            if status != 200:
                sys.exit(f"HTTP {status}: {answer.decode()}")
            found.append(time.monotonic() - start)
            turn += clients
        client.close()

    start = time.monotonic()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, time.monotonic() - start
