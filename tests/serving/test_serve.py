"""The server, as its clients and those who run it see it: real processes on loopback."""

from __future__ import annotations

import asyncio
import io
import json
import multiprocessing.connection
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import pytest
import trapped
from helpers import COMMAND, NOT_ASKED, jpeg, valid
from misbehaving import Server, serve
from PIL import Image
from server_process import KEY, Process, b64, running

from deit_batch import score
from deit_batch.errors import UsageError
from deit_batch.io import Failure
from deit_batch.limits import Limits
from deit_batch.model.checkpoint import find_checkpoint, find_recipe
from deit_batch.serving import server as serving
from deit_batch.serving.decoders import Decoders
from deit_batch.serving.metrics import ServerMetrics, Watched

QUEUE = 8
BODY_BYTES = 400_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds two keys, and what the web server serves."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "keys").write_text(f"an-older-key\n{KEY}\n")
    for number in range(20):
        (folder / f"{number:02}.jpg").write_bytes(jpeg(number))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, vit: Path) -> Iterator[Process]:
    options = ["--api-key-file", "keys", "--queue", str(QUEUE), "--body-bytes", str(BODY_BYTES), "--retries", "0"]
    options += ["--allow-private-hosts", "--decode-seconds", "4", "--log-format", "json", "--batch-window", "20"]
    with running(folder, vit, *options) as server:
        yield server
        server.end()


@pytest.fixture(scope="module")
def web(folder: Path) -> Iterator[Server]:
    with serve(folder) as web:
        yield web


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_batch_path(server: Process, vit: Path, all_kinds: Path) -> None:
    records = list(score(all_kinds, model=str(vit), workers=0))
    assert len(records) > 30
    for record in records:
        (answer,) = server.score(b64(Path(str(record.image)).read_bytes()))
        assert answer == record.predictions, record.image


def test_a_checkpoint_of_timm_is_served_with_the_names_that_it_is_given(folder: Path, tmp_path: Path) -> None:
    golden = Path(__file__).parent.parent / "model" / "golden" / "deit-distilled"
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\ne\n")
    (record,) = score(folder / "00.jpg", model=golden, id2label=names, workers=0)
    with running(folder, golden, "--id2label", str(names)) as server:
        assert server.score(b64((folder / "00.jpg").read_bytes())) == [record.predictions]
    assert {prediction["label"] for prediction in record.predictions} == set("abcde")


def test_many_clients_share_batches_and_each_gets_its_own(server: Process, vit: Path, folder: Path) -> None:
    expected = [record.predictions for record in score(folder, model=str(vit), workers=0)]
    before = [server.metric(f"deit_batch_batch_images_{what}") for what in ("sum", "count")]

    def client(number: int) -> bool:
        return bool(server.score(b64(jpeg(number % 20))) == [expected[number % 20]])

    with ThreadPoolExecutor(QUEUE) as clients:
        assert all(clients.map(client, range(60)))
    images, batches = (
        server.metric(f"deit_batch_batch_images_{what}") - start
        for what, start in zip(("sum", "count"), before, strict=True)
    )
    assert images == 60
    assert batches < 60


def test_urls_data_uris_and_bad_images_have_their_places(server: Process, web: Server, folder: Path) -> None:
    good = server.score(b64(jpeg(3)))[0]
    answers = server.score(
        f"{web.address}/03.jpg",
        "data:image/jpeg;base64," + b64(jpeg(3)),
        str(folder / "03.jpg"),
        b64(b"\x89PNG\r\n\x1a\n" + b"no picture follows this head"),
        "",
        3,
        f"{web.address}/gone.jpg",
        b64(jpeg(3)),
    )
    assert [answer for answer in answers if isinstance(answer, list)] == [good, good, good]
    assert [answer["error"]["type"] for answer in answers if isinstance(answer, dict)] == [
        *("RowError", "DecodeError", "RowError", "RowError", "FetchError")
    ]
    assert server.score() == []
    document = server.client.get("/openapi.json").json()
    form = document["paths"]["/score"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(answers, {**form, "components": document["components"]})


def test_a_request_means_the_same_as_in_a_file(server: Process, vit: Path, tmp_path: Path) -> None:
    images = [b64(jpeg(1)), b64(jpeg(2))]
    table = {"columns": ["image"], "index": [0, 1], "data": [images[0], [images[1]]]}
    rows = {"columns": ["text", "image"], "data": [["x", image] for image in images]}
    for data in (images, table, rows):
        for params in ({"top_k": 1}, {"top_k": 5, "threshold": 0.3}, {}):
            request = json.dumps({"input_data": data, "params": params})
            (tmp_path / "r.json").write_text(request)
            expected = [record.predictions for record in score(tmp_path / "r.json", model=vit, top_k=5, workers=0)]
            answer = server.client.post("/score", content=request, headers={"Content-Type": "application/json"})
            assert answer.json() == expected, answer.text
    assert {len(predictions) for predictions in expected} == {5}


@pytest.mark.parametrize("path", ["03.jpg", "{folder}/03.jpg", "file://{folder}/03.jpg", "/dev/zero", "\0", "~"])
def test_paths_are_never_read(server: Process, folder: Path, path: str) -> None:
    (answer,) = server.score(path.format(folder=folder))
    assert answer["error"]["type"] == "RowError"
    assert "paths are not read" in answer["error"]["message"] or "\0" in path or path.startswith("file:")


def test_a_decoder_that_was_killed_while_idle_costs_no_image(server: Process) -> None:
    decoders = server.decoders()
    for pid in decoders:
        os.kill(pid, signal.SIGKILL)
    while server.decoders():
        time.sleep(0.01)
    for number in range(2 * len(decoders)):
        assert len(server.score(b64(jpeg(number)))[0]) == 5
    assert not set(server.decoders()) & set(decoders)


def test_an_image_that_crashes_or_hangs_its_decoder_fails_alone(server: Process) -> None:
    before = server.metric('deit_batch_images_total{result="DecodeError"}')

    def alone(data: bytes) -> Any:
        return server.score("data:;base64," + b64(data))[0]

    with ThreadPoolExecutor() as clients:
        bad = [clients.submit(alone, data) for data in (trapped.CRASH, trapped.HANG, trapped.HALF)]
        good = [clients.submit(alone, jpeg(number)) for number in range(5)]
        assert [future.result()["error"]["type"] for future in bad] == ["DecodeError"] * 3
        assert [answer for future in good if not isinstance(answer := future.result(), list)] == []
    assert server.metric('deit_batch_images_total{result="DecodeError"}') == before + 3


# --- requests that are refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("", 400, "not JSON"),
        ("[]", 400, "a JSON list where an object should be"),
        ("{}", 400, 'there is no "input_data" in it'),
        ('{"input_data": "x"}', 400, '"input_data" holds no list of images'),
        *((f'{{"input_data": [], {more}}}', 400, says) for more, says in NOT_ASKED),
        (b'{"input_data": ["\xff"]}', 400, "not UTF-8"),
        ("[" * 100_000, 400, "nested too deeply"),
        (json.dumps({"input_data": ["x"] * (QUEUE + 1)}), 413, "at most 8"),
        ('{"input_data": [' + "0," * 100_000 + "0]}", 413, "more than 8 images"),
        ("x" * (BODY_BYTES + 1), 413, "larger than 400,000 bytes"),
    ],
)
def test_a_bad_request_is_told_in_a_sentence(server: Process, body: str | bytes, status: int, says: str) -> None:
    answer = server.client.post("/score", content=body, headers={"Content-Type": "application/json"})
    detail = answer.json()["detail"]
    assert (answer.status_code, says in detail, "\n" in detail) == (status, True, False), detail


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
        ({"Content-Type": "application/json", "Authorization": "Bearer wrong"}, 401),
        ({"Content-Type": "application/json", "Authorization": ""}, 401),
        ({"Content-Type": "application/json", "Authorization": "Bearer an-older-key"}, 200),
    ],
)
def test_what_the_head_of_a_request_must_say(server: Process, headers: dict[str, str], status: int) -> None:
    assert server.client.post("/score", content='{"input_data": []}', headers=headers).status_code == status


def test_a_parameter_in_the_query_is_not_ignored(server: Process) -> None:
    answer = server.client.post("/score?top_k=1", json={"input_data": []})
    assert (answer.status_code, "top_k goes into the body" in answer.json()["detail"]) == (400, True)


def test_health_and_docs_need_no_key_and_metrics_do(server: Process) -> None:
    with httpx2.Client(base_url=server.client.base_url) as stranger:
        statuses = {path: stranger.get(path).status_code for path in ("/health", "/ready", "/docs", "/metrics")}
    assert statuses == {"/health": 200, "/ready": 200, "/docs": 200, "/metrics": 401}


@pytest.mark.parametrize("length", [str(10**15), "-1", "many", "1" * 30])
def test_a_hostile_content_length_is_answered_before_any_body(server: Process, length: str) -> None:
    head = f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    with server.connect() as client:
        client.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
        assert client.recv(1000).split()[1] in (b"400", b"413")


def test_a_body_that_never_says_its_length_is_bounded(server: Process) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    answer = server.client.post("/score", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


# --- more than there is room for, and clients that leave ----------------------------------------------------------


def test_a_full_queue_answers_429_and_a_client_that_leaves_frees_its_places(server: Process, web: Server) -> None:
    held = json.dumps({"input_data": [f"{web.address}/slow.jpg"] * QUEUE}).encode()
    head = f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    with server.connect() as client:
        client.sendall(f"{head}Content-Length: {len(held)}\r\n\r\n".encode() + held)
        while server.metric("deit_batch_queue_images") < QUEUE:
            time.sleep(0.01)
        answer = server.client.post("/score", json={"input_data": [b64(jpeg())]})
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) >= 1
        assert server.client.get("/health").status_code == 200
    while server.metric("deit_batch_queue_images"):
        time.sleep(0.01)
    assert len(server.score(b64(jpeg()))) == 1
    assert server.metric('deit_batch_requests_total{status="429"}') >= 1
    assert server.metric('deit_batch_requests_total{status="499"}') >= 1


def test_pages_of_other_sites_send_nothing(tmp_path: Path, vit: Path) -> None:
    with running(tmp_path, vit, "--workers", "1") as open_server:
        assert_own_pages_only(open_server)


def assert_own_pages_only(server: Process) -> None:
    body = {"input_data": [b64(jpeg())]}
    odd = [("http://[", 403), ("http://[::1", 403), ("//", 403), ("http://127.0.0.1:x", 200), ("", 403)]
    for origin, status in [
        *odd,
        ("http://evil.example:8000", 403),
        ("null", 403),
        (f"http://127.0.0.1:{server.port}", 200),
    ]:
        headers = {"Origin": origin, "Host": "evil.example:8000"}
        assert server.client.post("/score", json=body, headers=headers).status_code == status, origin


def test_a_decoder_whose_reply_was_not_taken_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its next image would get that reply: another client's."""

    def colour(number: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (28, 28), (number, number, number)).save(buffer, "PNG")
        return buffer.getvalue()

    async def decoded() -> list[int]:
        decoders = Decoders(find_recipe(find_checkpoint("demo"), None), Limits(), workers=1)
        await decoders.warm_up(colour(0))
        with monkeypatch.context() as patched:
            patched.setattr(multiprocessing.connection.Connection, "recv", no_memory)
            with pytest.raises(MemoryError):
                await decoders(colour(50))
        found = [await decoders(colour(number)) for number in (100, 150)]
        decoders.close()
        return [int(pixels[0, 0, 0]) for pixels in found if not isinstance(pixels, Failure)]

    assert asyncio.run(decoded()) == [100, 150]


def no_memory(connection: object) -> None:
    raise MemoryError


def test_what_is_wrong_with_a_request_is_said_in_few_words(server: Process) -> None:
    answer = server.client.post("/score", json={"input_data": [], "k" * 100_000: 1})
    assert answer.status_code == 400
    assert len(answer.text) < 500


# --- the page, the log, the end --------------------------------------------------------------------------------------


def test_the_docs_need_nothing_from_elsewhere(server: Process) -> None:
    page = server.client.get("/docs").text
    loads = re.findall(r'(?:src|href|url)\s*[=:]\s*["\']([^"\']+)', page)
    assert len(loads) >= 4
    for address in loads:
        assert address.startswith("/"), address
        assert server.client.get(address).status_code == 200, address
    schema = server.client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/score", "/health", "/ready", "/metrics"}
    assert {"200", "400", "401", "413", "429", "503"} <= set(schema["paths"]["/score"]["post"]["responses"])


def test_each_request_has_its_line_in_the_log(server: Process) -> None:
    server.score(b64(jpeg()), "")
    server.client.post("/a%0Ab")
    while not any("a%0Ab" in line for line in server.lines):
        time.sleep(0.01)
    told = [valid(json.loads(line), "log-line") for line in server.lines]
    scored = [line for line in told if line.get("images") == 2][-1]
    assert (scored["status"], scored["failed"], scored["path"], scored["client"]) == (200, 1, "/score", "127.0.0.1")


def test_sigterm_answers_what_is_in_and_ends_with_0(folder: Path, vit: Path) -> None:
    with (
        serve(folder) as web,
        running(folder, vit, "--allow-private-hosts") as server,
        ThreadPoolExecutor() as clients,
    ):
        answer = clients.submit(server.score, f"{web.address}/slow.jpg", b64(jpeg()))
        while server.metric("deit_batch_queue_images") < 2:
            time.sleep(0.01)
        os.killpg(server.process.pid, signal.SIGHUP)  # as a terminal that goes does it: the decoders get it, too
        while not refused(server):
            time.sleep(0.01)
        web.release.set()
        slow, good = answer.result()
        assert slow["error"]["type"] == "FetchError"
        assert len(good) == 5
        assert server.ended() == 0
        assert server.lines[-1] == "deit-batch: every request was answered\n"


def refused(server: Process) -> bool:
    try:
        server.connect().close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_second_ctrl_c_ends_it_at_once(folder: Path, vit: Path) -> None:
    with serve(folder) as web, running(folder, vit, "--allow-private-hosts") as server:
        with server.connect() as client:
            body = json.dumps({"input_data": [f"{web.address}/slow.jpg"]})
            head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            client.sendall(f"{head}\r\n\r\n{body}".encode())
            while server.metric("deit_batch_queue_images") < 1:
                time.sleep(0.01)
            server.process.send_signal(signal.SIGINT)
            while not refused(server):
                time.sleep(0.01)
            decoders = server.decoders()
            assert decoders
            server.process.send_signal(signal.SIGINT)
            server.ended()
        assert not [pid for pid in decoders if Path(f"/proc/{pid}").exists()]


def test_a_drain_that_takes_too_long_is_answered_with_503_and_ends_with_1(folder: Path, vit: Path) -> None:
    with (
        serve(folder) as web,
        running(folder, vit, "--allow-private-hosts", "--drain-seconds", "0", "--verbose") as server,
        ThreadPoolExecutor() as clients,
    ):
        body = {"input_data": [f"{web.address}/slow.jpg"]}
        answer = clients.submit(server.client.post, "/score", json=body)
        while server.metric("deit_batch_queue_images") < 1:
            time.sleep(0.01)
        assert server.end() == 1
        assert answer.result().status_code == 503
        said = "".join(server.lines)
        assert "not answered, or the answer not read, within --drain-seconds 0: 1 request" in said
        web.release.set()


def ended(*options: str, program: str = "") -> tuple[int, list[str]]:
    command = [sys.executable, "-c", program] if program else [COMMAND]
    done = subprocess.run(
        [*command, "serve", *options], text=True, capture_output=True, timeout=60, stdin=subprocess.DEVNULL, check=False
    )
    return done.returncode, done.stderr.splitlines()


def test_a_port_that_is_taken_is_wrong_usage() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, lines = ended("--port", str(port), "--model", "demo")
    assert status == 2
    assert lines == [f"deit-batch: --host 127.0.0.1 --port {port} can't be listened at: Address already in use"]


def test_a_missing_extra_is_named() -> None:
    program = "import sys; sys.modules['fastapi'] = None; from deit_batch.cli import main; main()"
    assert ended(program=program) == (
        2,
        ["deit-batch: this needs fastapi: pip install '.[serve]' in a clone of deit-batch"],
    )


def test_weights_that_do_not_load_end_the_server(vit: Path, tmp_path: Path) -> None:
    program = (
        "from deit_batch import errors\nfrom deit_batch.model import transformer\n"
        "def fails(*args, **more): raise errors.CheckpointError('half of it is missing')\n"
        "transformer.load_weights = fails\n"
        "from deit_batch.cli import main; main()"
    )
    status, lines = ended("--port", "0", "--model", str(vit), program=program)
    assert status == 2
    assert lines[1:] == ["deit-batch: half of it is missing"]


@pytest.mark.parametrize("content", [None, b"", b" \n\n"])
def test_a_key_file_without_a_key_is_wrong_usage(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(UsageError, match="--api-key-file"):
        serving.read_keys(tmp_path / "keys")


def test_a_password_in_the_target_of_a_request_is_not_logged(messages: list[str]) -> None:
    async def missing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})

    async def nothing(*_: Any) -> None: ...

    watched = Watched(missing, ServerMetrics(), "/score")
    for path in ("http://u:p4ssw0rd@host/health", "/http://u:p4ssw0rd@host/health", "/a\nb"):
        asyncio.run(watched({"type": "http", "method": "GET", "path": path}, nothing, nothing))  # type: ignore[arg-type]
    assert len(messages) == 3
    assert "p4ssw0rd" not in "".join(messages)
    assert "/a%0Ab" in messages[2]
