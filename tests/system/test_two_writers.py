"""Two processes that write one name at the same time: what is there in the end is whole, and nothing else is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest
from helpers import EXAMPLES, deit_batch, read_jsonl, warm
from PIL import Image
from safetensors.numpy import load_file

from deit_batch.cli import COMMANDS
from deit_batch.errors import OutputError, UsageError
from deit_batch.output.read import read_records
from deit_batch.system.atomic import write_atomically
from deit_batch.system.lock import Lock
from deit_batch.system.new_folder import new_folder

LIMIT = 120
"""Seconds, for what ends by itself unless it hangs."""
SOURCE = """
import sys
from pathlib import Path
from deit_batch.system.atomic import write_atomically

letter = sys.argv[1].encode()
for _ in range(60):
    write_atomically(Path("result"), letter * 3_000_000)
"""


def a_page(path: Path) -> bool:
    return path.read_bytes().rstrip().endswith(b"</html>")


def a_checkpoint(path: Path) -> bool:
    return bool(load_file(path / "model.safetensors")) and (path / "preprocessor_config.json").exists()


def an_evaluation(path: Path) -> bool:
    names = {"metrics.json", "report.md", "report.html"}
    return bool(json.loads((path / "metrics.json").read_bytes())["metrics"]) and names <= {*os.listdir(path)}


SCORE = ["--model", "demo", "--input", str(EXAMPLES), "--workers", "0"]
WRITING: dict[str, tuple[list[str], str, Callable[[Path], bool]]] = {
    "score": (["score", *SCORE], "out.jsonl", lambda path: len(read_jsonl(path)) == 40),
    "embed": (["embed", *SCORE], "out.parquet", lambda path: pyarrow.parquet.read_table(path).num_rows == 40),
    "merge": (["merge", "0.jsonl", "1.jsonl"], "out.jsonl", lambda path: len(read_jsonl(path)) == 40),
    "report": (["report", "p.jsonl", "--gallery", "0"], "out.html", a_page),
    "compare": (["compare", "p.jsonl", "p.jsonl", "--thumbnails", "0"], "out.html", a_page),
    "convert": (["convert", "p.jsonl"], "out.csv", lambda path: len(list(read_records(path))) == 40),
    "sort": (["sort", "p.jsonl"], "out", lambda path: len(list(path.glob("*/*.png"))) == 40),
    "plot": (
        ["plot", "cat.png", "--model", "demo"],
        "out.png",
        lambda path: Image.open(path).convert("L").getbbox() is not None,
    ),
    "evaluate": (["evaluate", "--input", str(EXAMPLES), "--predictions", "p.jsonl"], "out", an_evaluation),
    "finetune": (
        ["finetune", "--model", "demo", "--input", str(EXAMPLES), "--num-train-epochs", "1", "--workers", "0"],
        "out",
        a_checkpoint,
    ),
    "export": (["export", "demo"], "out", lambda path: (path / "model.onnx").exists()),
    "pull": (["pull", "demo"], "out", a_checkpoint),
}
HOLDER = """
import os, sys, time
from pathlib import Path
from deit_batch.system.lock import Lock

held = Lock(Path("it.lock"), "it")
if os.fork() == 0:  # a worker, which outlives the run
    time.sleep(60)
    os._exit(0)
print(flush=True)
sys.stdin.read()
"""
WRITES_NO_RESULT = {"serve", "doctor"}
REFUSED = (1, 2)
"""The second of two finds the name being written, or written."""


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predictions")
    (folder / "cat.png").write_bytes(next(EXAMPLES.rglob("*.png")).read_bytes())
    for out, more in (("p.jsonl", []), ("0.jsonl", ["--shard", "0/2"]), ("1.jsonl", ["--shard", "1/2"])):
        done = deit_batch("score", *SCORE, *more, "--out", out, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_every_command_that_writes_is_tried() -> None:
    names = {str(command.name) for commands in COMMANDS.values() for command in commands}
    assert {*WRITING} == names - WRITES_NO_RESULT


@pytest.mark.parametrize("command", WRITING)
def test_two_of_a_command_leave_one_whole_result(command: str, predictions: Path, tmp_path: Path) -> None:
    """By two names: of the folder, and of a link to it."""
    arguments, name, is_whole = WRITING[command]
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    two = [
        subprocess.Popen(
            [warm().path, *arguments, "--out", str(tmp_path / folder / name)],
            cwd=predictions,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder in ("real", "link")
    ]
    try:
        said = [process.communicate(timeout=LIMIT)[1] for process in two]
    finally:
        for process in two:
            process.kill()
    statuses = [process.returncode for process in two]
    assert 0 in statuses, said
    assert {*statuses} <= {0, *REFUSED}, said
    assert "unexpected" not in "".join(said)
    assert is_whole(tmp_path / "real" / name)
    beside = {f"{name}{ending}" for ending in ("", ".run.json", ".stamps", ".rows.jsonl")}
    assert {*os.listdir(tmp_path / "real")} <= beside


def test_no_reader_sees_a_short_file_and_no_writer_fails(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", SOURCE, letter], cwd=tmp_path) for letter in "ab"]
    seen = set()
    end = time.monotonic() + LIMIT
    while any(writer.poll() is None for writer in writers) and time.monotonic() < end:
        if (tmp_path / "result").exists():
            data = (tmp_path / "result").read_bytes()
            seen.add((len(data), len(set(data[::4096]))))
    for writer in writers:
        writer.kill()  # one that hangs has no status yet, and fails what follows
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen == {(3_000_000, 1)}
    assert os.listdir(tmp_path) == ["result"]


def test_what_a_dead_writer_has_left_is_swept_and_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / f".r.html.{'0' * 32}.tmp").write_bytes(b"half")
    for name in ("r.html.tmp", ".r.html.tmp", f".q.html.{'0' * 32}.tmp"):
        (tmp_path / name).write_bytes(b"of somebody")
    write_atomically(tmp_path / "r.html", b"whole")
    assert {*os.listdir(tmp_path)} == {"r.html", "r.html.tmp", ".r.html.tmp", f".q.html.{'0' * 32}.tmp"}


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.html").symlink_to("real/r.html")
    write_atomically(tmp_path / "link.html", b"whole")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "real" / "r.html").read_bytes() == b"whole"
    write_atomically(Path(os.devnull), b"whole")
    assert Path(os.devnull).is_char_device()


def test_a_file_of_the_users_is_no_lock_and_no_work(tmp_path: Path) -> None:
    (tmp_path / "m.lock").write_text("version = 1\n")
    (tmp_path / "n.partial").mkdir()
    with pytest.raises(UsageError, match="is no lock of a run"):
        Lock(tmp_path / "m.lock", "m")
    with new_folder(tmp_path / "n") as folder:
        (folder / "a.txt").write_text("whole")
    assert (tmp_path / "m.lock").read_text() == "version = 1\n"
    assert sorted(os.listdir(tmp_path)) == ["m.lock", "n", "n.partial"]


def test_a_lock_goes_with_its_process_though_a_worker_of_it_lives_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline()
        with pytest.raises(OutputError, match=f"it is being written by process {holder.pid} on "):
            Lock(tmp_path / "it.lock", "it")
        holder.kill()
        holder.wait()
        Lock(tmp_path / "it.lock", "it").release()
        os.killpg(holder.pid, signal.SIGKILL)
    assert os.listdir(tmp_path) == []
