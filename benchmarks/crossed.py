"""Many clients at one server, each with pictures of its own and some with faults: is an answer lost, or another's?"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import material
from clients import Client, request, running

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

import trapped  # noqa: E402
from misbehaving import serve  # noqa: E402

from deit_batch import score  # noqa: E402
from deit_batch.io import Prediction  # noqa: E402

CLIENTS, PICTURES, QUEUE, BODY_BYTES = 32, 400, 48, 200_000
KEY = "of-the-load-test"
SECONDS_BETWEEN_KILLS = 3.0

Predictions = list[Prediction]


@dataclass
class Night:
    """What became of the requests, by kind."""

    sent: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    wrong: int = 0
    crossed: int = 0
    busy: int = 0
    killed: int = 0
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, found: str) -> None:
        """`found`: lost, wrong, crossed, or well."""
        with self.lock:
            self.sent[kind] += 1
            if found != "well":
                setattr(self, found, getattr(self, found) + 1)
                self.problems.append(f"{kind}: {found}")

    def as_markdown(self) -> str:
        rows = "\n".join(f"| {kind} | {count:,} |" for kind, count in self.sent.most_common())
        return PAGE.format(
            total=sum(self.sent.values()),
            clients=CLIENTS,
            pictures=PICTURES,
            queue=QUEUE,
            seconds=SECONDS_BETWEEN_KILLS,
            rows=rows,
            **{name: f"{getattr(self, name):,}" for name in ("lost", "wrong", "crossed", "busy", "killed")},
        )


PAGE = """{clients} clients with {pictures} pictures, no two of which have the same scores, at the demo model behind
`deit-batch serve --queue {queue}`; every {seconds:g} seconds one of the server's decoders is killed. {total:,}
requests, each answer compared with the records of `deit-batch score`:

| request | sent |
| --- | ---: |
{rows}

Answered with 429 and sent again: {busy}. Decoders killed: {killed}. Requests that got no answer, and were not to go
without: **{lost}**; answers with the scores of another's picture: **{crossed}**; answers that were otherwise not what
they had to be: **{wrong}**. In the end no image is left in the server, and SIGTERM ends it with status 0."""


class Asker:
    """One client. A kind of request returns the body, and what its answer must be: a status, or a list with the
    predictions of each image, or the type of its error."""

    def __init__(self, night: Night, port: int, web: str, pictures: list[bytes], known: list[Predictions]) -> None:
        self._night, self._port, self._web = night, port, web
        self._pictures, self._known = pictures, known
        self._client = Client(port, KEY)
        self._dice = random.Random(0)

    def run(self, numbers: itertools.count[int], total: int) -> None:
        for number in iter(lambda: next(numbers), None):
            if number >= total:
                break
            self._dice.seed(number)
            kind = self._dice.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
            self._night.note(kind, KINDS[kind][1](self))
        self._client.close()

    def _ask(self, body: bytes, expected: int | list[object], **headers: str) -> str:
        while True:
            try:
                status, answer = self._client.post(body, **headers)
            except (OSError, http.client.HTTPException):
                return "lost"
            if status != 429 or expected == 429:
                break
            with self._night.lock:
                self._night.busy += 1
            time.sleep(self._dice.uniform(0, 0.2))
        if isinstance(expected, int):
            return "well" if status == expected else "wrong"
        return self._judge(json.loads(answer), expected) if status == 200 else "wrong"

    def _judge(self, answers: list[Any], expected: list[object]) -> str:
        if len(answers) != len(expected):
            return "lost"
        for answer, right in zip(answers, expected, strict=True):
            found = answer["error"]["type"] if isinstance(answer, dict) else answer
            if found != right:
                return "crossed" if found in self._known else "wrong"
        return "well"

    def _some(self, count: int) -> list[int]:
        return [self._dice.randrange(len(self._pictures)) for _ in range(count)]

    def good(self, count: int = 1) -> str:
        numbers = self._some(count)
        return self._ask(request(*[self._pictures[n] for n in numbers]), [self._known[n] for n in numbers])

    def several(self) -> str:
        return self.good(self._dice.randint(2, 4))

    def some_bad(self) -> str:
        images: list[tuple[bytes | str, object]] = [(self._pictures[n], self._known[n]) for n in self._some(2)]
        images += [(b"no picture", "DecodeError"), ("", "RowError"), ("/etc/passwd.", "RowError")]
        images += [(f"{self._web}/gone.jpg", "FetchError")]
        self._dice.shuffle(images)
        return self._ask(request(*[image for image, _ in images]), [right for _, right in images])

    def by_url(self) -> str:
        (number,) = self._some(1)
        return self._ask(request(f"{self._web}/{number:04}.png"), [self._known[number]])

    def trap(self, data: bytes) -> str:
        (number,) = self._some(1)
        return self._ask(request(data, self._pictures[number]), ["DecodeError", self._known[number]])

    def broken(self) -> str:
        body = request(self._pictures[0])
        return self._ask(body[: self._dice.randrange(len(body))], 400)

    def too_large(self) -> str:
        return self._ask(b" " * (BODY_BYTES + 1), 413)

    def wrong_key(self) -> str:
        return self._ask(request(self._pictures[0]), 401, Authorization="Bearer guessed")

    def leaves(self, share: float = 1.0) -> str:
        """Sends its request, or a part of it, and is gone; there is no answer to lose."""
        body = request(*[self._pictures[n] for n in self._some(3)])
        head = "".join(f"{name}: {value}\r\n" for name, value in self._client.headers.items())
        whole = f"POST /score HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        with socket.create_connection(("127.0.0.1", self._port), 60) as connection:
            connection.sendall(whole[: int(share * len(whole))])
            time.sleep(self._dice.uniform(0, 0.1))
        return "well"

    def leaves_half_way(self) -> str:
        return self.leaves(self._dice.random())


KINDS: dict[str, tuple[float, Callable[[Asker], str]]] = {
    "one picture": (60, Asker.good),
    "two to four pictures": (12, Asker.several),
    "good and bad images mixed": (8, Asker.some_bad),
    "a picture by URL": (5, Asker.by_url),
    "broken JSON": (4, Asker.broken),
    "too large": (1, Asker.too_large),
    "a wrong key": (3, Asker.wrong_key),
    "a client that leaves before its answer": (4, Asker.leaves),
    "a client that leaves in the middle of its request": (3, Asker.leaves_half_way),
    "an image that crashes its decoder": (0.2, lambda asker: asker.trap(trapped.CRASH)),
    "an image that hangs its decoder": (0.1, lambda asker: asker.trap(trapped.HANG)),
}


def kill_decoders(night: Night, server: subprocess.Popen[bytes], done: threading.Event) -> None:
    dice = random.Random(0)
    while not done.wait(SECONDS_BETWEEN_KILLS):
        with suppress(FileNotFoundError, ProcessLookupError):  # one that has just died of something else
            if alive := list(decoders(server.pid)):
                os.kill(dice.choice(alive), signal.SIGKILL)
                night.killed += 1


def decoders(server: int) -> Iterator[int]:
    """The processes that any of the server's threads has started."""
    for children in Path(f"/proc/{server}/task").glob("*/children"):
        for pid in children.read_text().split():
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                yield int(pid)


def spend(night: Night, folder: Path, total: int) -> None:
    """Sends so many requests, and ends the server."""
    paths = material.tiny_pngs(folder / "pictures", PICTURES)
    pictures = [Path(path).read_bytes() for path in paths]
    known: list[Predictions] = [
        list(record.predictions) for record in score(folder / "pictures", model="demo", workers=0)
    ]
    if len({json.dumps(one) for one in known}) < PICTURES:
        sys.exit("two pictures have the same scores: it could not be seen if they were crossed")
    (folder / "keys").write_text(KEY)
    command = [sys.executable, TESTS / "trapped.py", "serve", "--model", "demo", "--port", 0, "--queue", QUEUE]
    command += ["--api-key-file", folder / "keys", "--body-bytes", BODY_BYTES, "--allow-private-hosts"]
    command += ["--decode-seconds", 2, "--retries", 0]
    numbers, done = itertools.count(), threading.Event()
    log = folder / "log"
    with serve(folder / "pictures") as web, running(command, log) as (server, port):
        askers = [Asker(night, port, web.address, pictures, known) for _ in range(CLIENTS)]
        threads = [threading.Thread(target=asker.run, args=(numbers, total)) for asker in askers]
        killer = threading.Thread(target=kill_decoders, args=(night, server, done))
        for thread in (*threads, killer):
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(5)
            print(f"{sum(night.sent.values()):,} requests, {night.busy:,} of them again, {night.problems}", flush=True)
        done.set()
        killer.join()
        left = until_empty(port)
        server.terminate()
        status = server.wait(60)
    if left or status or "every request was answered" not in log.read_text().splitlines()[-1]:
        sys.exit(f"{left:g} images were left in the server, and it ended with status {status}")


def until_empty(port: int) -> float:
    """Images that are in the server still, ten seconds after the last request at most."""
    left = 1.0
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    for _ in range(100):
        with urllib.request.urlopen(asked) as page:
            (value,) = re.findall(r"^deit_batch_queue_images (.*)$", page.read().decode(), re.MULTILINE)
        left = float(value)
        if not left:
            break
        time.sleep(0.1)
    return left
