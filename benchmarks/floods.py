"""How long `/health` of a server takes while clients of one kind flood it. `floods.py PORT NUMBER` is such a flood."""

from __future__ import annotations

import http.client
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median

from clients import HANGS_AFTER, running

COMMAND = str(Path(sys.executable).parent / "deit-batch")
SECONDS = 10.0
"""Of each flood."""
MOST_SECONDS = 1.0
"""That an answer of `/health` may take."""
HEAD = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def tiny_chunks() -> Iterator[bytes]:
    yield HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"1\r\na\r\n" * 40_000


def many_lines() -> Iterator[bytes]:
    yield HEAD
    while True:
        yield b"a:\r\n" * 50_000


def unread_body() -> Iterator[bytes]:
    yield HEAD.replace(b"json", b"none") + b"Content-Length: 1000000000\r\n\r\n"
    while True:
        yield b"x" * 1_000_000


def slow_head() -> Iterator[bytes]:
    yield HEAD
    yield from slowly()


def slow_body() -> Iterator[bytes]:
    yield HEAD + b"Content-Length: 1000000\r\n\r\n"
    yield from slowly()


def idle() -> Iterator[bytes]:
    time.sleep(5)
    yield b""


def leaving() -> Iterator[bytes]:
    yield HEAD + b"Content-Length: 1000000\r\n\r\n{"


def slowly() -> Iterator[bytes]:
    while True:
        time.sleep(1)
        yield b" "


FLOODS: dict[str, tuple[int, Callable[[], Iterator[bytes]]]] = {
    "a body in chunks of one byte": (20, tiny_chunks),
    "a head of lines without end": (20, many_lines),
    "a body that nobody reads": (20, unread_body),
    "a head of one byte a second": (1000, slow_head),
    "a body of one byte a second": (1000, slow_body),
    "an idle connection": (2000, idle),
    "a client that leaves in the middle of its request": (20, leaving),
}
"""How many clients send what. When they are cut off, they come again."""


def health(port: int) -> float:
    """Seconds to its answer, on a connection of its own."""
    start = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANGS_AFTER)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        return time.monotonic() - start if answer.status == 200 else float("inf")
    except (OSError, http.client.HTTPException):
        return float("inf")
    finally:
        connection.close()


def flood(port: int, clients: int, parts: Callable[[], Iterator[bytes]]) -> None:
    """For ever."""

    def client() -> None:
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                for part in parts():
                    connection.sendall(part)

    threading.stack_size(2**18)
    for _ in range(clients):
        threading.Thread(target=client).start()


def watched(port: int, seconds: float) -> list[float]:
    """What each `/health` took."""
    end, found = time.monotonic() + seconds, []
    while time.monotonic() < end:
        found.append(health(port))
        time.sleep(0.05)
    return found


def measured(folder: Path) -> dict[str, list[float]]:
    """Of each flood, the seconds that each `/health` took meanwhile. The server may have 1,024 files open, as usual."""
    with ExitStack() as stack:
        command: list[object] = [COMMAND, "serve", "--model", "demo", "--port", 0, "--workers", 1]
        process, port = stack.enter_context(running(command, folder / "floods.log"))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (1024, hard))
        results = {"nobody else": watched(port, SECONDS)}
        for number, (name, (clients, _)) in enumerate(FLOODS.items()):
            with subprocess.Popen([sys.executable, __file__, str(port), str(number)]) as flooding:
                results[f"{clients:,} times {name}"] = found = watched(port, SECONDS)
                flooding.kill()
            print(f"{name}: /health in {max(found):.2f} s", flush=True)
    return results


def as_markdown(results: dict[str, list[float]]) -> Iterator[str]:
    yield "| at the same time | `/health` asked | median, ms | longest, ms |"
    yield "| --- | ---: | ---: | ---: |"
    for name, seconds in results.items():
        yield f"| {name} | {len(seconds)} | {1000 * median(seconds):.0f} | {1000 * max(seconds):.0f} |"


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    flood(int(sys.argv[1]), *list(FLOODS.values())[int(sys.argv[2])])
