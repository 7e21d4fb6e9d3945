"""A result in parts, made by this process: the records of a result in one file, whatever comes between."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import LOOPBACK, deit_batch, interrupted_after, read_json, scored

from deit_batch.block_runner import LocalEngine, run
from deit_batch.errors import Interrupted, TimeIsUp, TooManyFailures, UsageError
from deit_batch.options import Options
from deit_batch.output.merge import merge
from deit_batch.output.threshold import ErrorThreshold


@pytest.fixture
def in_parts(photos: Path, vit: Path, tmp_path: Path) -> Callable[..., Any]:
    """Scores the 40 photos, in batches of 4, into parts of 10."""

    def score(*, options: dict[str, Any] | None = None, **more: Any) -> Any:
        usual: dict[str, Any] = {"input": str(photos), "model": str(vit), "workers": 0, "batch_size": 4}
        chosen = Options(**{**usual, "limits": LOOPBACK, **(options or {})})
        return run(chosen, LocalEngine, out=str(tmp_path / "out"), part_size=10, quiet=True, **more)

    return score


def records(folder: Path) -> list[bytes]:
    """Line by line."""
    names = [row["name"] for row in read_json(folder / "manifest.json")["parts"]]
    return [line for name in names for line in (folder / name).read_bytes().splitlines(keepends=True)]


def test_the_parts_are_the_result_in_one_file_cut(
    in_parts: Callable[..., Any], photos: Path, vit: Path, tmp_path: Path
) -> None:
    one_file = scored(photos, vit, tmp_path).read_bytes()
    done = in_parts()
    assert (done.tally.inputs, done.tally.failed) == (40, 0)
    out = tmp_path / "out"
    assert [len((out / f"part-{number:06}.jsonl").read_bytes().splitlines()) for number in range(4)] == [10] * 4
    assert b"".join(records(out)) == one_file
    assert read_json(out / "run.json")["batch_size"] == 4
    assert in_parts().report == {}  # finished already
    merge([out], str(tmp_path / "merged.jsonl"))
    assert (tmp_path / "merged.jsonl").read_bytes() == one_file
    with pytest.raises(UsageError, match="top_k was 5, is 1"):
        in_parts(options={"top_k": 1})


def test_a_run_that_was_stopped_goes_on_with_the_parts_that_are_missing(
    in_parts: Callable[..., Any], photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with interrupted_after(6, monkeypatch), pytest.raises(Interrupted):
        in_parts()
    assert not (tmp_path / "out").exists()
    assert read_json(tmp_path / "out.partial" / "run.json")["status"] == "interrupted"
    parts = {path: path.stat().st_ino for path in (tmp_path / "out.partial").glob("part-*.jsonl")}
    assert 1 <= len(parts) < 4
    (first := min(parts)).unlink()
    del parts[first]
    with pytest.raises(TimeIsUp):
        in_parts(time_limit=0)
    done = in_parts()
    assert (done.tally.inputs, done.report["counts"]["inputs"]) == (40, 40)
    assert {path: (tmp_path / "out" / path.name).stat().st_ino for path in parts} == parts
    assert b"".join(records(tmp_path / "out")) == scored(photos, vit, tmp_path).read_bytes()


def test_after_giving_up_it_goes_on_and_parquet_comes_out(
    in_parts: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    whole = (photos / "25.jpg").read_bytes()
    (photos / "25.jpg").write_bytes(whole[:100])
    with pytest.raises(TooManyFailures):
        in_parts(format="parquet", error_threshold=ErrorThreshold(0))
    assert read_json(tmp_path / "out.partial" / "run.json")["status"] == "gave up"
    (photos / "25.jpg").write_bytes(whole)
    done = in_parts(format="parquet", error_threshold=ErrorThreshold(0))
    assert (done.tally.inputs, done.tally.failed) == (40, 0)
    names = [row["name"] for row in read_json(tmp_path / "out" / "manifest.json")["parts"]]
    assert names == [f"part-{number:06}.parquet" for number in range(4)]
    rows = [row for name in names for row in pq.read_table(tmp_path / "out" / name).to_pylist()]
    assert [row["index"] for row in rows] == list(range(40))


def test_the_command_and_its_exit_statuses(photos: Path, vit: Path, tmp_path: Path) -> None:
    (photos / "07.jpg").write_bytes(b"no image")
    words = ["score", "--input", str(photos), "--model", str(vit), "--out", "preds/"]
    done = deit_batch(*words, cwd=tmp_path)
    assert done.returncode == 3
    assert "39 of 40 images scored, 1 failed (1 DecodeError)" in done.stderr
    lines = (tmp_path / "preds" / "part-000000.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(40))
    again = deit_batch(*words, "--part-size", "5", cwd=tmp_path)
    assert again.returncode == 2
    assert "part_size was 256, is 5" in again.stderr


def test_what_a_result_in_parts_can_not_be_is_said_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a.png\n")
    for options, message in {
        ("--engine", "ray", "--out", "-"): "a result in parts is a folder of several files; give --out DIR/",
        ("--part-size", "5", "--out", "x.jsonl"): "a result in parts is a folder of several files; give --out DIR/",
        ("--out", "x/", "--incremental"): "--incremental is for a result in one file",
        ("--engine", "ray", "--out", "x", "--shard", "0/2"): "--shard is for a result in one file",
        ("--out", "x/", "--flat"): "--flat, --excel and --unsure-below go neither with a folder of parts",
        ("--out", "x/", "--format", "csv"): "--format csv: a folder of parts holds jsonl or parquet",
        ("--out", "x.jsonl", "--actors", "2"): "--actors is for --engine ray",
        ("--out", "x/", "--actors-per-gpu", "2"): "--actors-per-gpu is for --engine ray",
    }.items():
        done = deit_batch("score", "--input", "t.txt", *options, cwd=tmp_path)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert sorted(os.listdir(tmp_path)) == ["t.txt"]


def test_features_in_parts_are_those_in_one_file(
    in_parts: Callable[..., Any], photos: Path, vit: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    (photos / "07.jpg").write_bytes(b"no image")
    one_file = scored(photos, vit, tmp_path, "f.parquet", features=("cls", "mean"))
    done = in_parts(options={"features": ("cls", "mean")})
    assert dict(done.tally.failures) == {"DecodeError": 1}
    parts = [pq.read_table(tmp_path / "out" / f"part-{number:06}.parquet").to_pylist() for number in range(4)]
    assert [row for part in parts for row in part] == pq.read_table(one_file).to_pylist()
