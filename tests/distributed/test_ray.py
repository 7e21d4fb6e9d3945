"""--engine ray on a real cluster of one-core nodes on this machine: equal to the local engine, whoever is killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from faulty_store import Bucket, s3_environment
from helpers import COMMAND, EXAMPLES, HEIC, LOOPBACK, read_json, read_jsonl
from PIL import Image
from ray.cluster_utils import Cluster

from deit_batch import block_runner, runner
from deit_batch.block_runner import LocalEngine
from deit_batch.distributed.cluster import Where, connected
from deit_batch.distributed.engine import RayEngine
from deit_batch.errors import CheckpointError
from deit_batch.evaluation.evaluate import EvaluationRequest, evaluate
from deit_batch.io import RECORD_FIELDS
from deit_batch.options import Options
from deit_batch.report.evaluation import as_page

PART_SIZE, ROWS = 8, 320
BATCH = 4  # images; so an actor has three parts at a time
DEADLY = 100  # a row
MEMORY = 80 * 2**20  # of an object store, in bytes: the least that Ray takes is 75 MiB


@pytest.fixture(scope="module")
def cluster(s3_server: int) -> Iterator[Cluster]:
    """A head that does no work but to take jobs, and two nodes of one core each, whose environment says where S3 is."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        monkeypatch.setenv("RAY_worker_niceness", "0")
        for name, value in s3_environment(f"http://127.0.0.1:{s3_server}").items():
            monkeypatch.setenv(name, value)
        head: dict[str, Any] = {"num_cpus": 0, "include_dashboard": True, "object_store_memory": MEMORY}
        head |= {"dashboard_port": None, "dashboard_agent_listen_port": None}  # any: else all clusters had the same
        made = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            made.add_node(num_cpus=1, object_store_memory=MEMORY)
        with connected(made.address, verbose=False):
            yield made
        made.shutdown()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of many rows, with a malformed one, a missing file and a broken image among them."""
    folder = tmp_path_factory.mktemp("table")
    for number, picture in enumerate(sorted(EXAMPLES.glob("*/*.png"))):
        shutil.copy(picture, folder / f"{number}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:100])
    rows = [f"{number % 40}.png,{number}" for number in range(ROWS)]
    shutil.copy(HEIC[0], folder / "phone.heic")
    Image.new("I;16", (9, 9), 300).save(folder / "deep.png")
    rows[50], rows[310] = "phone.heic,50", "deep.png,310"
    rows[3], rows[90], rows[200] = "one field only", "missing.png,90", "broken.png,200"
    (folder / "t.csv").write_text("image,number\n" + "\n".join(rows) + "\n")
    return folder / "t.csv"


@pytest.fixture(scope="module")
def local(table: Path, vit: Path) -> Path:
    """What the local engine makes of it, in one file."""
    runner.run(chosen(table, vit), out=str(table.with_name("local.jsonl")), quiet=True)
    return table.with_name("local.jsonl")


def chosen(table: Path, model: Path, **more: Any) -> Options:
    return Options(**{"input": str(table), "model": str(model), "keep": ("number",), "batch_size": BATCH, **more})


def on_ray(options: Options, out: Path, where: Where | None = None, **more: Any) -> runner.RunResult:
    engine = partial(RayEngine, where=where or Where(), verbose=False)
    return block_runner.run(options, engine, out=str(out), part_size=PART_SIZE, **{"quiet": True, **more})


def records(folder: Path) -> bytes:
    names = [row["name"] for row in read_json(folder / "manifest.json")["parts"]]
    return b"".join((folder / name).read_bytes() for name in names)


def finished_parts(out: Path) -> dict[str, int]:
    """Of a run that is under way: their names and inode numbers."""
    return {path.name: path.stat().st_ino for path in out.with_name(f"{out.name}.partial").glob("part-*.jsonl")}


def actors() -> list[int]:
    """The processes of those that score, without their decode workers."""
    found = {
        process.pid: process.ppid()
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and process.info["cmdline"][0].startswith("ray::BlockActor")
    }
    return [pid for pid, parent in found.items() if parent not in found]


def wait_until(condition: Callable[[], object]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


@contextmanager
def beside(action: Callable[[], object]) -> Iterator[None]:
    """Does something in a thread while the block runs, which must not end before that."""
    thread = threading.Thread(target=action)
    thread.start()
    yield
    thread.join(0)
    assert not thread.is_alive()


def command(address: str, table: Path, model: Path, out: Path, *more: str) -> list[str]:
    """That of the same run in a process of its own."""
    words = [COMMAND, "score", "--input", str(table), "--model", str(model), "--keep", "number", "--out", str(out)]
    words += ["--batch-size", str(BATCH), "--part-size", str(PART_SIZE)]
    return [*words, "--engine", "ray", "--ray-address", address, *more]


def ended_by(signum: int, words: list[str], out: Path) -> subprocess.CompletedProcess[str]:
    """Started, and sent the signal when it has finished three parts."""
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: len(finished_parts(out)) >= 3 or process.poll() is not None)
        process.send_signal(signum)
        _, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess(words, process.returncode, "", stderr)


def test_a_run_that_was_stopped_on_the_cluster_goes_on_here(
    cluster: Cluster, table: Path, local: Path, vit: Path, tmp_path: Path
) -> None:
    """Its parts are those of either engine, to the byte."""
    out = tmp_path / "out"
    stopped = ended_by(signal.SIGTERM, command(cluster.address, table, vit, out), out)
    assert (stopped.returncode, "stopped by SIGTERM" in stopped.stderr) == (143, True), stopped.stderr
    assert not out.exists()
    left = finished_parts(out)
    assert 3 <= len(left) < ROWS / PART_SIZE
    report = read_json(tmp_path / "out.partial" / "run.json")
    assert (report["status"], report["actors"]["lost"]) == ("interrupted", 0)
    assert report["actors"]["cores"] == report["actors"]["actors"] > 0
    done = block_runner.run(chosen(table, vit), LocalEngine, out=str(out), part_size=PART_SIZE, quiet=True)
    assert (done.tally.inputs, dict(done.tally.failures)) == (ROWS, {"RowError": 1, "FetchError": 1, "DecodeError": 1})
    assert {name: (out / name).stat().st_ino for name in left} == left
    assert records(out) == local.read_bytes()


def test_actors_write_their_parts_to_a_store(
    cluster: Cluster, bucket: Bucket, table: Path, local: Path, vit: Path
) -> None:
    engine = partial(RayEngine, where=Where(ray_address=cluster.address), verbose=False)
    out = bucket.address("out")
    block_runner.run(chosen(table, vit, limit=20), engine, out=out, part_size=PART_SIZE, quiet=True)
    names = [f"out/part-{number:06}.jsonl" for number in range(3)]
    assert bucket.names() == ["out/manifest.json", *names, "out/run.json", "out/stamps"]
    assert b"".join(map(bucket.get, names)) == b"".join(local.read_bytes().splitlines(keepends=True)[:20])
    assert bucket.seen("PUT out.partial/part") == 0  # not through this process


def test_after_a_killed_driver_the_next_one_which_is_submitted_as_a_job_goes_on_at_once(
    cluster: Cluster, table: Path, local: Path, vit: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    out, more = tmp_path / "out", ("--format", "parquet", "--error-threshold", "5%")
    ended_by(signal.SIGKILL, command(cluster.address, table, vit, out, *more), out)
    assert 3 <= len(finished_parts(out)) < ROWS / PART_SIZE
    submit = [str(Path(COMMAND).with_name("ray")), "job", "submit", "--", *command("auto", table, vit, out, *more)]
    where = {**os.environ, "RAY_API_SERVER_ADDRESS": f"http://{cluster.webui_url}"}
    job = subprocess.run(submit, env=where, capture_output=True, text=True, check=False)
    assert job.returncode == 0, job.stdout + job.stderr
    said = job.stdout.partition("Running entrypoint for job")[2].splitlines()[1:]
    ours = list(takewhile(lambda line: line.startswith("deit-batch: "), said))
    assert "parts that an earlier run has left" in ours[0], job.stdout
    assert f"of {ROWS} images scored" in ours[-1]
    assert "succeeded" in said[len(ours) + 1], job.stdout
    names = [row["name"] for row in read_json(out / "manifest.json")["parts"]]
    assert names == [f"part-{number:06}.parquet" for number in range(ROWS // PART_SIZE)]
    rows = [row for name in names for row in pq.read_table(out / name).to_pylist()]
    for row, record in zip(rows, read_jsonl(local), strict=True):
        assert {name: row[name] for name in RECORD_FIELDS} == {name: record.get(name) for name in RECORD_FIELDS}


class Deadly(BaseHTTPRequestHandler):
    """Kills whoever asks for an image, be it an actor."""

    def do_GET(self) -> None:
        port = self.client_address[1]
        for each in psutil.net_connections("tcp"):
            if each.laddr and each.laddr.port == port and each.pid:
                os.kill(each.pid, signal.SIGKILL)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def deadly() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Deadly) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/x.png"
        server.shutdown()


def test_an_image_that_kills_actors_a_node_that_goes_and_one_that_comes(
    cluster: Cluster,
    table: Path,
    local: Path,
    vit: Path,
    deadly: str,
    tmp_path: Path,
    messages: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deit_batch.system.progress.SECONDS_BETWEEN_LINES", 0.0)
    lines = table.read_text().splitlines()
    lines[DEADLY + 1] = f"{deadly},{DEADLY}"
    (other := table.with_name("deadly.csv")).write_text("\n".join(lines) + "\n")
    out, first = tmp_path / "out", next(iter(cluster.worker_nodes))
    options = chosen(other, vit, workers=0, limits=LOOPBACK)  # without workers, an actor decodes by itself
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(on_ray, options, out, quiet=False)
        wait_until(lambda: finished_parts(out))
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        wait_until(lambda: len(actors()) >= 3 or run.done())  # on a busy machine, it may come too late
        cluster.remove_node(first, allow_graceful=False)
        done = run.result(60)
    assert done.tally.inputs == ROWS
    expected = read_jsonl(local)
    found = [record for path in sorted(out.glob("part-*.jsonl")) for record in read_jsonl(path)]
    assert found[DEADLY]["error"] == {"type": "DecodeError", "message": "two actors of the cluster died of it"}
    found[DEADLY] = expected[DEADLY]
    assert found == expected
    report = read_json(out / "run.json")["actors"]
    assert report["lost"] >= 4  # one more, where the node that goes had something to do
    told = [message for message in messages if "handed out again" in message]
    assert len(told) == report["lost"]
    assert any(re.search(r" failed, \d+ parts, \d actors, [1-9]\d* lost$", message) for message in messages)
    assert capfd.readouterr() == ("", "")


def test_several_actors_share_a_gpu(cluster: Cluster, table: Path, local: Path, vit: Path, tmp_path: Path) -> None:
    """As the cluster declares it: there is none."""
    node = cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=MEMORY)
    try:
        with beside(lambda: wait_until(lambda: len(actors()) == 2)):
            done = on_ray(chosen(table, vit, limit=80), tmp_path / "out", Where(actors_per_gpu=2))
    finally:
        cluster.remove_node(node)
    assert done.tally.inputs == 80
    report = read_json(tmp_path / "out" / "run.json")["actors"]
    assert report["gpus"] == report["actors"] / 2 > 0
    assert records(tmp_path / "out") == b"".join(local.read_bytes().splitlines(keepends=True)[:80])


@pytest.mark.usefixtures("cluster")
def test_a_model_that_is_none_ends_the_run_before_it_begins(table: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        on_ray(chosen(table, tmp_path), tmp_path / "out", Where(actors=1))
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("cluster")
def test_evaluations_and_features_of_the_cluster_are_the_local_ones(vit: Path, tmp_path: Path) -> None:
    for name, label in (("bag", "can"), ("trouser", "jar")):
        shutil.copytree(EXAMPLES / name, tmp_path / "val" / label)
    options = Options(input=str(tmp_path / "val"), model=str(vit), top_k=None, batch_size=BATCH)
    engine = partial(RayEngine, where=Where(actors=1), verbose=False)
    request = EvaluationRequest(options=options, out=tmp_path / "evaluated-here", gates={}, quiet=True)
    here = evaluate(request, as_page).document
    there = evaluate(replace(request, out=tmp_path / "evaluated", open_engine=engine, part_size=3), as_page).document
    assert here["judged"] == 8
    differing = {name for name, value in here.items() if there[name] != value}
    assert differing <= {"ended_at", "predictions", "model"}
    features = Options(input=str(tmp_path / "val"), model=str(vit), features=("cls",), batch_size=BATCH)
    for out, open_engine in (("here", LocalEngine), ("there", engine)):
        block_runner.run(features, open_engine, out=str(tmp_path / out), part_size=3, quiet=True)
    manifests = [read_json(tmp_path / out / "manifest.json") for out in ("here", "there")]
    assert manifests[0] == manifests[1]
