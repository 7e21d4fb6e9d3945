"""`deit-batch serve` as a process, as its clients and those who run it see it."""

from __future__ import annotations

import base64
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import trapped
from helpers import counted

KEY = "the-key"


class Process:
    """A running server, and what it says."""

    def __init__(self, folder: Path, model: Path, *options: str) -> None:
        command = [sys.executable, trapped.__file__, "serve", "--model", str(model), "--port", "0", *options]
        self.process = subprocess.Popen(
            command, cwd=folder, env=os.environ | counted(), stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.lines: list[str] = []
        assert self.process.stderr
        first = self.process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", first)
        assert found, first + self.process.stderr.read()
        self.port = int(found[1])
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.client = httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        )
        while self.client.get("/ready").status_code != 200:
            time.sleep(0.05)

    def _read(self) -> None:
        assert self.process.stderr
        self.lines.extend(self.process.stderr)

    def score(self, *images: object) -> Any:
        answer = self.client.post("/score", json={"input_data": images})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def metric(self, name: str) -> float:
        page = self.client.get("/metrics").text
        (value,) = re.findall(rf"^{re.escape(name)} (.*)$", page, re.MULTILINE)
        return float(value)

    def decoders(self) -> list[int]:
        lists = Path(f"/proc/{self.process.pid}/task").glob("*/children")  # any thread may have started one
        pids = [pid for children in lists for pid in children.read_text().split()]
        return [int(pid) for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def end(self) -> int:
        self.process.terminate()
        return self.ended()

    def ended(self) -> int:
        status = self.process.wait(timeout=60)
        self.reader.join()
        return status


@contextmanager
def running(folder: Path, model: Path, *options: str) -> Iterator[Process]:
    server = Process(folder, model, *options)
    try:
        yield server
    finally:
        server.process.kill()
        server.ended()
        server.client.close()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
