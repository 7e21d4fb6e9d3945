"""--engine ray on a real cluster of three nodes on this machine: equal to the local engine, whoever is killed."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from helpers import EXAMPLES, HEIC, deit_batch, read_json, read_jsonl
from PIL import Image
from ray.cluster_utils import Cluster

from deit_batch import runner
from deit_batch.distributed.run import Where, run
from deit_batch.errors import CheckpointError, Interrupted, TooManyFailures, UsageError
from deit_batch.io import RECORD_FIELDS
from deit_batch.output.merge import merge
from deit_batch.output.threshold import ErrorThreshold
from deit_batch.plan import Options

PART_SIZE, ROWS = 8, 320
MEMORY = 80 * 2**20  # of an object store, in bytes: the least that Ray takes is 75 MiB


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that does no work, and two nodes of one core each."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        monkeypatch.setenv("RAY_worker_niceness", "0")
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY}
        made = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            made.add_node(num_cpus=1, object_store_memory=MEMORY)
        ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
        yield made
        ray.shutdown()
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
    rows[3], rows[100], rows[200] = "one field only", "missing.png,100", "broken.png,200"
    (folder / "t.csv").write_text("image,number\n" + "\n".join(rows) + "\n")
    return folder / "t.csv"


@pytest.fixture(scope="module")
def local(table: Path) -> Path:
    """What the local engine makes of it."""
    runner.run(chosen(table), out=str(table.with_name("local.jsonl")), quiet=True)
    return table.with_name("local.jsonl")


def chosen(table: Path, **more: Any) -> Options:
    return Options(**{"input": str(table), "model": "demo", "keep": ("number",), **more})


def on_ray(table: Path, out: Path, *, options: dict[str, Any] | None = None, **more: Any) -> runner.RunResult:
    return run(chosen(table, **(options or {})), Where(part_size=PART_SIZE), out=str(out), quiet=True, **more)


def lines(folder: Path) -> list[bytes]:
    return sorted(line for path in folder.glob("part-*.jsonl") for line in path.read_bytes().splitlines())


class when_there_are:  # noqa: N801 - reads as a sentence
    """Does something in a thread as soon as the run in the block has finished some parts."""

    def __init__(self, parts: int, out: Path, action: Callable[[], object]) -> None:
        self._parts, self._action = parts, action
        self._partial = out.with_name(f"{out.name}.partial")
        self._thread = threading.Thread(target=self._watch)
        self._over = False
        self.acted = False

    def _watch(self) -> None:
        while len(list(self._partial.glob("part-*.jsonl"))) < self._parts:
            if self._over:
                return
            time.sleep(0.01)
        self.acted = True
        self._action()

    def __enter__(self) -> when_there_are:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._over = True
        self._thread.join()


def an_actor() -> int:
    """The process of one that scores."""
    processes = Path("/proc").glob("[0-9]*/cmdline")
    return next(int(path.parent.name) for path in processes if path.read_bytes().startswith(b"ray::MapWorker("))


@pytest.mark.usefixtures("cluster")
def test_a_run_that_was_stopped_continues_from_its_parts_to_the_local_result(
    table: Path, local: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with when_there_are(3, out, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(Interrupted):
        on_ray(table, out)
    assert not out.exists()
    before = {path.name: path.stat().st_ino for path in (tmp_path / "out.partial").glob("part-*.jsonl")}
    assert 3 <= len(before) < ROWS / PART_SIZE
    outcome = on_ray(table, out)
    assert (outcome.tally.inputs, dict(outcome.tally.failures)) == (
        ROWS,
        {"RowError": 1, "FetchError": 1, "DecodeError": 1},
    )
    assert {name: (out / name).stat().st_ino for name in before} == before
    assert lines(out) == sorted(local.read_bytes().splitlines())

    counts = read_json(out / "run.json")["counts"]
    assert counts["inputs"] == read_json(out / "manifest.json")["inputs"] == ROWS
    assert counts["deep_gray"] == 1
    assert on_ray(table, out).report == {}  # finished already
    with pytest.raises(UsageError, match="top_k was 5, is 1"):
        on_ray(table, out, options={"top_k": 1})

    merge([out], str(tmp_path / "merged.jsonl"))
    assert read_json(tmp_path / "merged.jsonl.run.json")["parts"] == str(out)
    assert (tmp_path / "merged.jsonl").read_bytes() == local.read_bytes()
    runner.run(chosen(table), out=str(tmp_path / "merged.jsonl"), quiet=True)  # takes it for its own


@pytest.mark.usefixtures("cluster")
def test_after_giving_up_it_goes_on_and_parquet_comes_out(table: Path, local: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    out = tmp_path / "out"
    with pytest.raises(TooManyFailures):
        on_ray(table, out, format="parquet", options={"limit": 20}, error_threshold=ErrorThreshold(0))
    assert read_json(tmp_path / "out.partial" / "run.json")["status"] == "gave up"
    on_ray(table, out, format="parquet", options={"limit": 20})
    names = [row["name"] for row in read_json(out / "manifest.json")["parts"]]
    assert names == [f"part-{number:06}.parquet" for number in range(3)]
    rows = [row for name in names for row in pq.read_table(out / name).to_pylist()]
    for row, record in zip(rows, read_jsonl(local)[:20], strict=True):
        assert {name: row[name] for name in RECORD_FIELDS} == {name: record.get(name) for name in RECORD_FIELDS}


@pytest.mark.usefixtures("cluster")
def test_a_model_that_is_none_ends_the_run_before_it_begins(table: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        on_ray(table, tmp_path / "out", options={"model": str(tmp_path)})
    assert os.listdir(tmp_path) == []


def test_an_actor_and_then_a_node_are_killed_and_nothing_is_lost(
    cluster: Cluster, table: Path, local: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    node = sorted(cluster.worker_nodes, key=id)[0]
    finished: dict[str, int] = {}

    def remove() -> None:
        finished.update({path.name: path.stat().st_ino for path in (tmp_path / "out.partial").glob("part-*.jsonl")})
        cluster.remove_node(node, allow_graceful=False)

    def kill() -> None:
        os.kill(an_actor(), signal.SIGKILL)
        with when_there_are(12, out, remove):
            while (tmp_path / "out.partial").exists():
                time.sleep(0.05)

    with when_there_are(4, out, kill) as killing:
        outcome = on_ray(table, out)
    assert killing.acted
    assert len(cluster.worker_nodes) == 1
    assert outcome.tally.inputs == ROWS
    assert lines(out) == sorted(local.read_bytes().splitlines())
    assert len(finished) >= 12
    again = [name for name, inode in finished.items() if (out / name).stat().st_ino != inode]
    assert len(again) < 6  # those whose ends had not come through to the driver yet


def test_what_only_the_local_engine_can_do_is_said_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a.png\n")
    for options, message in {
        ("--engine", "ray", "--out", "-"): "--engine ray writes a folder of parts",
        ("--engine", "ray", "--out", "s3://bucket/x"): "writes to a folder that all machines see, not to a store",
        ("--engine", "ray", "--out", "x", "--incremental"): "--incremental is for the local engine",
        ("--engine", "ray", "--out", "x", "--shard", "0/2"): "--engine ray shares out by itself",
        ("--out", "x.jsonl", "--actors", "2"): "--actors is for --engine ray",
    }.items():
        done = deit_batch("score", "--input", "t.txt", *options, cwd=tmp_path)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert sorted(os.listdir(tmp_path)) == ["t.txt"]
