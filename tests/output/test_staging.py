"""Outputs on an object store: there whole or not at all, resumed, and never written over by mistake."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_store import SECRET, Bucket, Kind
from helpers import COMMAND, LOOPBACK, deit_batch, interrupted_after, jpeg, read_jsonl, scored, valid

from deit_batch import runner
from deit_batch.errors import Interrupted, OutputError, UsageError
from deit_batch.options import Options
from deit_batch.output.merge import merge
from deit_batch.system import object_store

OUT = "out/preds.jsonl"


def run(bucket: Bucket, photos: Path, vit: Path, out: str = OUT, **options: Any) -> runner.RunResult:
    how = {key: options.pop(key) for key in ("mode", "incremental", "format") if key in options}
    chosen = Options(
        **{"input": str(photos), "model": str(vit), "workers": 0, "batch_size": 4, "limits": LOOPBACK, **options}
    )
    return runner.run(chosen, out=bucket.address(out), **how)


def stopped(bucket: Bucket, photos: Path, vit: Path) -> None:
    """The same run, interrupted in the middle."""
    with pytest.MonkeyPatch.context() as patch, interrupted_after(3, patch), pytest.raises(Interrupted):
        run(bucket, photos, vit)


def outboxes(tmp_path: Path) -> list[str]:
    """What is left on this machine."""
    return sorted(path.name for path in (tmp_path / "cache" / "deit-batch" / "outputs").rglob("*"))


def test_the_result_and_its_report_appear_and_nothing_else_is_left(
    bucket: Bucket, photos: Path, vit: Path, tmp_path: Path, messages: list[str]
) -> None:
    local = scored(photos, vit, tmp_path)
    run(bucket, photos, vit)
    assert bucket.names() == [OUT, f"{OUT}.run.json", f"{OUT}.stamps"]
    assert bucket.get(OUT) == local.read_bytes()
    report = valid(json.loads(bucket.get(f"{OUT}.run.json")), "run-report")
    assert report["status"] == "finished"
    assert report["output"]["sha256"] == hashlib.sha256(local.read_bytes()).hexdigest()
    assert SECRET not in json.dumps(report)
    assert outboxes(tmp_path) == []
    assert bucket.unfinished_uploads() == 0

    bucket.proxy.requests.clear()
    assert run(bucket, photos, vit).tally.scored == 40
    assert any(f"{bucket.address(OUT)} is finished already" in message for message in messages)
    assert bucket.seen(f"PUT {OUT}") == 0
    assert outboxes(tmp_path) == []


def test_an_interrupted_run_shows_nothing_and_goes_on(
    bucket: Bucket, photos: Path, vit: Path, tmp_path: Path, messages: list[str]
) -> None:
    stopped(bucket, photos, vit)
    assert bucket.names() == []
    assert "preds.jsonl.partial" in outboxes(tmp_path)
    assert "lies on this machine alone, in /" in messages[-1]
    run(bucket, photos, vit)
    assert any("going on after" in message for message in messages)
    assert bucket.get(OUT) == scored(photos, vit, tmp_path).read_bytes()
    assert outboxes(tmp_path) == []


def test_a_large_result_is_one_upload_that_is_completed_last(
    bucket: Bucket, photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_BLOCK", 5 * 2**20)  # the least that S3 takes
    (tmp_path / "large").write_bytes(bytes(range(256)) * 50_000)
    store, path = object_store.open_store(bucket.address("large"))
    bucket.fault("SlowDown", "PUT large.*partNumber=2", 1)
    bucket.fault("refused", "PUT large.*partNumber=3", 1)
    store.put(tmp_path / "large", path)
    assert bucket.get("large") == (tmp_path / "large").read_bytes()
    writes = [line for line in bucket.proxy.requests if line.startswith(("PUT", "POST"))]
    assert "?uploads" in writes[0]
    assert "POST" in writes[-1]

    bucket.delete("large")
    bucket.fault("AccessDenied", "PUT large.*partNumber=3")
    with pytest.raises(object_store.StoreError, match="not permitted"):
        store.put(tmp_path / "large", path)
    assert bucket.names() == []
    assert bucket.unfinished_uploads() == 0


def test_a_result_has_no_more_parts_than_an_upload_may_have(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_BLOCK", 5 * 2**20)
    monkeypatch.setattr(object_store, "_MOST_PARTS", 2)  # S3's are 10,000, of a result of 80 GiB and more
    (tmp_path / "large").write_bytes(bytes(13_000_000))
    store, path = object_store.open_store(bucket.address("large"))
    store.put(tmp_path / "large", path)
    assert len(bucket.get("large")) == 13_000_000
    assert bucket.seen("PUT large.*partNumber") == 2


@pytest.mark.parametrize(("kind", "what"), [("AccessDenied", OUT), ("AccessDenied", rf"{OUT}\.run\.json")])
def test_a_result_that_could_not_be_sent_is_sent_by_the_same_command(
    kind: Kind, what: str, bucket: Bucket, photos: Path, vit: Path, tmp_path: Path
) -> None:
    bucket.fault(kind, rf"PUT {what}$")
    with pytest.raises(OutputError, match=r"can't be written, but the result is whole, in .*: not permitted"):
        run(bucket, photos, vit)
    assert f"{OUT}.run.json" not in bucket.names()
    bucket.proxy.faults.clear()
    run(bucket, photos, vit)
    assert bucket.names() == [OUT, f"{OUT}.run.json", f"{OUT}.stamps"]
    assert outboxes(tmp_path) == []


def test_no_such_bucket_or_no_right_is_found_out_before_anything_is_scored(
    bucket: Bucket, photos: Path, vit: Path, tmp_path: Path
) -> None:
    chosen = Options(input=str(photos), model=str(vit))
    with pytest.raises(
        OutputError, match=r"p\.jsonl: can't be written: there is no bucket no-such-bucket; .*--out"
    ) as gone:
        runner.run(chosen, out="s3://no-such-bucket/p.jsonl")
    bucket.fault("AccessDenied", "POST out")
    with pytest.raises(OutputError, match=r"can't be written: not permitted.*; this run has scored") as denied:
        run(bucket, photos, vit)
    assert (denied.value.exit_status, gone.value.exit_status) == (2, 2)
    with pytest.raises(UsageError, match="name a file in it"):
        runner.run(chosen, out=bucket.address("out/"), format="jsonl")
    assert outboxes(tmp_path) == []


def test_what_is_of_another_run_is_left_alone_unless_told(
    bucket: Bucket, photos: Path, vit: Path, tmp_path: Path
) -> None:
    bucket.put(OUT, b"precious")
    with pytest.raises(UsageError, match=f"{bucket.address(OUT)} is there and no report beside it"):
        run(bucket, photos, vit)
    run(bucket, photos, vit, mode="fresh")
    with pytest.raises(UsageError, match="top_k was 5, is 1"):
        run(bucket, photos, vit, top_k=1)
    bucket.put(OUT, bucket.get(OUT) + b"{}\n")
    with pytest.raises(UsageError, match=f"{bucket.address(OUT)} is not what its run has left there"):
        run(bucket, photos, vit)
    assert bucket.get(OUT).endswith(b"{}\n")
    assert outboxes(tmp_path) == []


def test_a_run_elsewhere_that_was_faster_is_not_written_over(
    bucket: Bucket, photos: Path, vit: Path, tmp_path: Path
) -> None:
    stopped(bucket, photos, vit)
    bucket.put(OUT, b"theirs")
    with pytest.raises(UsageError, match="has changed since this run began, and is left as it is"):
        run(bucket, photos, vit)
    assert bucket.get(OUT) == b"theirs"
    run(bucket, photos, vit, mode="fresh")
    assert len(bucket.get(OUT).splitlines()) == 40


def test_an_upload_whose_answer_was_lost_is_recognised(bucket: Bucket, photos: Path, vit: Path, tmp_path: Path) -> None:
    bucket.fault("AccessDenied", rf"PUT {OUT}\.run")
    with pytest.raises(OutputError):
        run(bucket, photos, vit)
    bucket.proxy.faults.clear()
    # The result is as this run has made it, though nothing that it keeps here says so.
    assert bucket.names() == [OUT, f"{OUT}.stamps"]
    run(bucket, photos, vit)
    assert bucket.names() == [OUT, f"{OUT}.run.json", f"{OUT}.stamps"]


def test_what_failed_is_tried_again_and_what_is_known_is_kept_from_any_machine(
    bucket: Bucket, photos: Path, vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deit_batch.output.incremental._YOUNG_NS", 0)  # the objects are new, but nobody replaces them
    (photos / "00.jpg").write_bytes(b"no image")
    assert run(bucket, photos, vit).tally.failed == 1
    (photos / "00.jpg").write_bytes(jpeg())
    assert run(bucket, photos, vit, mode="retry-failed").tally.failed == 0

    for number in range(3):
        bucket.put(f"in/{number}.jpg", jpeg(number))
    into: dict[str, Any] = {
        "out": "inc.jsonl",
        "input": bucket.address("in/"),
        "incremental": True,
    }
    run(bucket, photos, vit, **into)
    bucket.put("in/3.jpg", jpeg(3))
    bucket.proxy.requests.clear()
    outcome = run(bucket, photos, vit, **into)
    assert (outcome.kept, outcome.tally.scored) == (3, 4)
    assert bucket.seen("GET in/[012].jpg") == 0
    assert "inc.jsonl.known" in bucket.names()


def test_features_and_merged_shards_go_there_too(bucket: Bucket, photos: Path, vit: Path, tmp_path: Path) -> None:
    run(bucket, photos, vit, out="f.npy", features=("cls",))
    assert bucket.names() == ["f.npy", "f.npy.rows.jsonl", "f.npy.run.json", "f.npy.stamps"]
    (tmp_path / "f.npy").write_bytes(bucket.get("f.npy"))
    assert np.load(tmp_path / "f.npy").shape == (40, 32)

    parts = [scored(photos, vit, tmp_path, f"part-{number}.jsonl", shard=(number, 2)) for number in range(2)]
    merge(parts, bucket.address("merged.jsonl"))
    assert bucket.get("merged.jsonl") == scored(photos, vit, tmp_path, "whole.jsonl").read_bytes()


def test_the_command_kills_and_all(bucket: Bucket, photos: Path, vit: Path, tmp_path: Path) -> None:
    """From a store to a store, killed in the middle, with workers, as cron would run it."""
    for photo in photos.iterdir():
        bucket.put(f"in/{photo.name}", photo.read_bytes())
    bucket.fault("slow", "GET in/[23]")
    command = [COMMAND, "score", "--input", bucket.address("in/"), "--model", str(vit), "--batch-size", "4"]
    command += ["--out", bucket.address(OUT), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path)
    partials = tmp_path / "cache" / "deit-batch" / "outputs"
    while not any(path.stat().st_size for path in partials.rglob("*.partial")):
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert bucket.names()[-1] == "in/39.jpg"  # nothing of the output
    done = deit_batch(*command[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on after" in done.stderr
    found = [json.loads(line) for line in bucket.get(OUT).splitlines()]
    expected = read_jsonl(scored(photos, vit, tmp_path))
    assert [record["image"] for record in found] == [bucket.address(f"in/{n:02}.jpg") for n in range(40)]
    assert [record["predictions"] for record in found] == [record["predictions"] for record in expected]
    assert SECRET not in done.stderr + bucket.get(f"{OUT}.run.json").decode()
