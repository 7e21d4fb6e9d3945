"""A whole run: order, completeness, formats, and going on after it was cut short."""

from __future__ import annotations

import base64
import csv
import dataclasses
import inspect
import io
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import click
import pyarrow.parquet as pq
import pytest
import torch
from helpers import LABELS, interrupted_after, jpeg, read_json, read_jsonl, scored, valid
from hypothesis import given
from hypothesis import strategies as st

from deit_batch import embed, score
from deit_batch import io as records_io
from deit_batch.cli import main
from deit_batch.commands._types import Duration
from deit_batch.errors import (
    CheckpointError,
    InputError,
    Interrupted,
    OutputError,
    TimeIsUp,
    TooManyFailures,
    UsageError,
)
from deit_batch.io import FeatureName, Tally
from deit_batch.limits import Limits
from deit_batch.loading.loader import PREFETCH_FACTOR, Loader, batched
from deit_batch.model.checkpoint import DEFAULT_MODEL
from deit_batch.model.recipe import CARD_RECIPE
from deit_batch.options import Options, ScoreOptions
from deit_batch.output.formats import choose_format
from deit_batch.output.threshold import ErrorThreshold
from deit_batch.plan import Plan
from deit_batch.predictions import top_predictions
from deit_batch.runner import run


def test_a_run_that_is_out_of_time_ends_with_its_batch_and_is_continued(
    photos: Path, vit: Path, tmp_path: Path
) -> None:
    whole = scored(photos, vit, tmp_path, out="whole.jsonl")
    with pytest.raises(TimeIsUp) as stopped:
        scored(photos, vit, tmp_path, time_limit=1e-6)
    assert (stopped.value.exit_status, "--time-limit" in str(stopped.value)) == (143, True)
    assert len(read_jsonl(tmp_path / "p.jsonl.partial")) == 4  # a batch, so that runs without end get to one
    assert scored(photos, vit, tmp_path).read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("text", "seconds"), [("6h", 21_600), ("1h30m", 5_400), ("90s", 90), ("1d", 86_400), ("9" * 400 + "s", 1e6)]
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "6", "h", "6 h", "0s", "-1h", "1m1h", "1.5h", "٣h", "nan", "inf"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(click.BadParameter, match="such as 6h"):
        Duration().convert(text, None, None)


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_every_input_has_its_record_in_its_place(photos: Path, vit: Path, tmp_path: Path, workers: int) -> None:
    """With failures strewn in, each image still has its own scores, the same as when it is scored alone."""
    for number in (0, 7, 8, 19, 39):
        (photos / f"{number:02}.jpg").write_bytes(b"broken")
    out = scored(photos, vit, tmp_path, workers=workers, top_k=None)
    records = read_jsonl(out)
    assert [record["index"] for record in records] == list(range(40))
    assert [record["image"] for record in records] == [f"{photos}/{number:02}.jpg" for number in range(40)]
    assert [r["index"] for r in records if r.get("error")] == [0, 7, 8, 19, 39]
    for record in records:
        if "error" in record:
            assert (record["predictions"], record["error"]["type"]) == ([], "DecodeError")
            continue
        (alone,) = score(record["image"], model=str(vit), workers=0, top_k=None)
        ours = {p["label"]: p["score"] for p in record["predictions"]}
        assert ours == pytest.approx({p["label"]: p["score"] for p in alone.predictions}, abs=1e-5)
        values = [p["score"] for p in record["predictions"]]
        assert values == sorted(values, reverse=True)
        assert set(ours) == set(LABELS)


def test_every_kind_of_reference_gives_the_same_scores(photos: Path, server: str, vit: Path, tmp_path: Path) -> None:
    inline = base64.b64encode(jpeg(3)).decode()
    rows = ["03.jpg", f"{server}/03.jpg", inline, f"data:image/jpeg;base64,{inline}"]
    with open(photos / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image"], *([row] for row in rows)])
    records = read_jsonl(scored(photos / "t.csv", vit, tmp_path))
    assert [record["image"] for record in records] == ["03.jpg", f"{server}/03.jpg", None, None]
    assert all(record["predictions"] == records[0]["predictions"] != [] for record in records)


def test_the_urls_of_a_batch_are_fetched_at_the_same_time(vit: Path, tmp_path: Path) -> None:
    """The server answers only when all eight requests are there."""
    import http.server
    import threading

    together = threading.Barrier(8)

    class Waits(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            together.wait(10)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(jpeg())

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Waits) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        (tmp_path / "t.txt").write_text(f"http://127.0.0.1:{httpd.server_port}/a.jpg\n" * 8)
        records = read_jsonl(scored(tmp_path / "t.txt", vit, tmp_path, batch_size=8))
        httpd.shutdown()
    assert all(record["predictions"] for record in records)


def test_top_k_and_threshold_trim_the_list(photos: Path, vit: Path, tmp_path: Path) -> None:
    whole = read_jsonl(scored(photos, vit, tmp_path, "all.jsonl", top_k=None))
    two = read_jsonl(scored(photos, vit, tmp_path, "two.jsonl", top_k=2))
    sure = read_jsonl(scored(photos, vit, tmp_path, "sure.jsonl", top_k=None, threshold=0.2))
    assert [r["predictions"][:2] for r in whole] == [r["predictions"] for r in two]
    assert [[p for p in r["predictions"] if p["score"] >= 0.2] for r in whole] == [r["predictions"] for r in sure]


def test_kept_columns_are_carried_into_the_record(photos: Path, vit: Path, tmp_path: Path) -> None:
    rows = [{"image": "00.jpg", "id": 7, "tags": ["a"], "x": float("nan")}, {"image": "none.jpg", "id": "ü"}]
    (photos / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_jsonl(scored(photos / "t.jsonl", vit, tmp_path, keep=("id", "tags", "x")))
    assert (first["id"], first["tags"], first["x"]) == (7, ["a"], None)
    assert (second["id"], second["tags"], second["error"]["type"]) == ("ü", None, "FetchError")


def test_the_formats(photos: Path, vit: Path, tmp_path: Path) -> None:
    (photos / "00.jpg").write_bytes(b"broken")
    with open(photos / "t.csv", "w") as file:
        file.writelines(["image,id\n", *(f"{number:02}.jpg,{number}\n" for number in range(40))])
    table = photos / "t.csv"
    lines = read_jsonl(scored(table, vit, tmp_path, "p.jsonl", keep=("id",)))
    predictions = [record["predictions"] for record in lines]
    whole = json.loads(scored(table, vit, tmp_path, "p.json").read_bytes())
    assert valid(whole, "sample-output") == predictions
    sample = scored(table, vit, tmp_path, "p.txt", format="sample").read_bytes().splitlines()
    assert list(map(json.loads, sample)) == predictions
    rows = list(csv.DictReader(io.StringIO(scored(table, vit, tmp_path, "p.csv", keep=("id",)).read_text())))
    assert [json.loads(row["predictions"]) for row in rows] == predictions
    assert [(row["label"], row["score"]) for row in rows[1:]] == [
        (p[0]["label"], str(p[0]["score"])) for p in predictions[1:]
    ]
    assert (rows[0]["label"], rows[0]["error_type"], rows[0]["id"]) == ("", "DecodeError", "0")
    parquet = pq.read_table(scored(table, vit, tmp_path, "p.parquet", keep=("id",))).to_pylist()
    assert [row["predictions"] for row in parquet] == predictions
    assert parquet[0]["error"]["type"] == "DecodeError"
    assert [row["id"] for row in parquet] == [str(number) for number in range(40)]
    assert sorted(path.suffix for path in tmp_path.glob("p.*") if not {".run", ".stamps"} & set(path.suffixes)) == [
        ".csv", ".json", ".jsonl", ".parquet", ".txt",
    ]  # nothing else is left behind  # fmt: skip


def test_an_out_without_a_known_ending_is_wrong_usage(photos: Path, vit: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="say --format"):
        scored(photos, vit, tmp_path, "p.xlsx")


def test_a_format_that_the_ending_denies_is_warned_of(messages: list[str]) -> None:
    assert choose_format("p.jsonl", "csv", ()).name == "csv"
    assert messages == ["--out p.jsonl ends as jsonl does, and is to hold csv: it is not read back by its ending"]


def test_undecodable_names_survive_the_round_trip(photos: Path, vit: Path, tmp_path: Path) -> None:
    name = os.fsencode(photos) + b"/caf\xe9 \xf0\x9f\x98\x80\n.jpg"
    with open(name, "wb") as file:
        file.write(jpeg(3))
    out = scored(photos, vit, tmp_path)
    records = [json.loads(line) for line in out.read_text("utf-8").splitlines()]  # strictly valid UTF-8
    (odd,) = [record for record in records if "image_bytes" in record]
    assert base64.b64decode(odd["image_bytes"]) == name
    assert odd["image"] == f"{photos}/caf\ufffd 😀\n.jpg"
    assert odd["predictions"][0]["label"] == records[3]["predictions"][0]["label"]
    odd["image"].encode("utf-8")


def test_the_report_says_how_the_run_went(photos: Path, vit: Path, tmp_path: Path) -> None:
    (photos / "00.jpg").write_bytes(b"broken")
    (photos / "01.jpg").unlink()
    (photos / "01.jpg").symlink_to("nowhere")
    (photos / "notes.md").touch()
    out = scored(photos, vit, tmp_path)
    report = read_json(out.with_name("p.jsonl.run.json"))
    assert report["status"] == "finished"
    assert report["counts"] == {
        "inputs": 40, "scored": 38, "failed": 2, "failures": {"DecodeError": 1, "FetchError": 1},
        "passed_over": {".md": 1},
    }  # fmt: skip
    assert report["settings"]["recipe"]["resize"] == [32, 32]
    assert report["settings"]["dtype"] == "float32"
    assert report["options"]["limits"]["retries"] == 2
    assert report["images_per_second"] > 0
    assert len(report["settings"]["checkpoint_sha256"]) == 64
    assert {"load", "wait for images", "wait for scores", "write", "total"} <= set(report["seconds"])
    assert {"deit-batch", "torch", "pillow", "python"} <= set(report["versions"])


# --- going on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["p.jsonl", "p.csv"])
@pytest.mark.parametrize("cut", [0, 1, 500, 5000, None])
@pytest.mark.parametrize("cut_stamps", [0, 99, None])
def test_a_run_that_died_is_continued_to_the_same_bytes(
    photos: Path, vit: Path, tmp_path: Path, out: str, cut: int | None, cut_stamps: int | None
) -> None:
    """Whatever was written of the partial file, even half a line, and of what the images were."""
    (photos / "05.jpg").write_bytes(b"broken")
    (tmp_path / "whole").mkdir()
    whole = scored(photos, vit, tmp_path / "whole", out).read_bytes()
    records = scored(photos, vit, tmp_path / "whole", "lines.jsonl").read_bytes()
    report = tmp_path / "whole" / f"{out}.run.json"
    settings = read_json(report)["settings"]
    (tmp_path / f"{out}.run.json").write_text(json.dumps({"status": "running", "settings": settings}))
    (tmp_path / f"{out}.partial").write_bytes(records[:cut])
    stamps = (tmp_path / "whole" / "lines.jsonl.stamps").read_bytes()
    (tmp_path / f"{out}.partial.stamps").write_bytes(stamps[:cut_stamps])
    assert scored(photos, vit, tmp_path, out).read_bytes() == whole
    assert read_json(tmp_path / f"{out}.run.json")["counts"]["failed"] == 1
    assert not list(tmp_path.glob(f"{out}.partial*"))
    assert (tmp_path / f"{out}.stamps").read_bytes() == stamps


def test_what_is_there_is_checked_not_trusted(photos: Path, vit: Path, tmp_path: Path) -> None:
    whole = scored(photos, vit, tmp_path)
    good = whole.read_bytes()
    lines = good.splitlines(keepends=True)
    partial = tmp_path / "p.jsonl.partial"
    for spoilt in (b"".join(lines[:6]) + b"{}\n" + b"".join(lines[7:]), good + b'{"index": 40}\n', b"\0" * 100):
        whole.unlink(missing_ok=True)
        partial.write_bytes(spoilt)
        assert scored(photos, vit, tmp_path).read_bytes() == good


def test_an_input_that_changed_is_explained_and_nothing_overwritten(photos: Path, vit: Path, tmp_path: Path) -> None:
    whole = scored(photos, vit, tmp_path)
    good = whole.read_bytes()
    whole.rename(tmp_path / "p.jsonl.partial")
    (photos / "00.jpg").rename(photos / "99.jpg")
    with pytest.raises(
        UsageError,
        match=r"Record 0 has image .*00.jpg.* bring the input back as it was, to go on, or start over with --fresh",
    ):
        scored(photos, vit, tmp_path)
    assert (tmp_path / "p.jsonl.partial").read_bytes() == good
    assert len(read_jsonl(scored(photos, vit, tmp_path, mode="fresh"))) == 40


def test_inline_images_that_changed_places_are_found_out(vit: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"

    def write(numbers: list[int]) -> None:
        rows = [base64.b64encode(jpeg(number)).decode() for number in numbers]
        table.write_text("image\n" + "\n".join(rows))

    write(list(range(8)))
    whole = scored(table, vit, tmp_path)
    assert len({record["image_sha256"] for record in read_jsonl(whole)}) == 8
    write(list(reversed(range(8))))
    with pytest.raises(UsageError, match="its input has changed since"):
        scored(table, vit, tmp_path)
    whole.rename(tmp_path / "p.jsonl.partial")
    with pytest.raises(UsageError, match="Record 0 has image_sha256"):
        scored(table, vit, tmp_path)


def test_an_input_that_shrank_loses_no_record_in_silence(photos: Path, vit: Path, tmp_path: Path) -> None:
    names = [f"{photos}/{number:02}.jpg\n" for number in range(40)]
    table = tmp_path / "t.txt"
    table.write_text("".join(names))
    scored(table, vit, tmp_path).rename(tmp_path / "p.jsonl.partial")
    (tmp_path / "p.jsonl.stamps").rename(tmp_path / "p.jsonl.partial.stamps")
    report = (tmp_path / "p.jsonl.run.json").read_bytes()
    table.write_text("".join(names[:20]))
    with pytest.raises(UsageError, match="It ends now after 20 images, but more have records"):
        scored(table, vit, tmp_path)
    assert len(read_jsonl(tmp_path / "p.jsonl.partial")) == 40
    assert (tmp_path / "p.jsonl.run.json").read_bytes() == report  # wrong usage changes nothing


def test_a_finished_result_that_was_changed_is_found_out(photos: Path, vit: Path, tmp_path: Path) -> None:
    out = scored(photos, vit, tmp_path)
    out.write_bytes(out.read_bytes()[:-1])
    with pytest.raises(UsageError, match="is not what its run has left there"):
        scored(photos, vit, tmp_path)


def test_a_result_taken_from_an_unfinished_run_is_not_overwritten(
    photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted), interrupted_after(3, monkeypatch):
        scored(photos, vit, tmp_path)
    (tmp_path / "p.jsonl.partial").rename(tmp_path / "p.jsonl")
    for limit in (None, 3):
        with pytest.raises(UsageError, match="--fresh"):
            scored(photos, vit, tmp_path, limit=limit)
    assert len(read_jsonl(tmp_path / "p.jsonl")) == 12


def test_a_refused_run_leaves_nothing_that_blocks_the_next(photos: Path, vit: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(vit, tmp_path / "model")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(CheckpointError):
        scored(photos, broken, tmp_path)
    (broken / "model.safetensors").write_bytes(weights)
    assert len(read_jsonl(scored(photos, broken, tmp_path))) == 40


@pytest.mark.parametrize("workers", [0, 1])
def test_kept_values_of_any_kind_do_not_end_a_run(photos: Path, vit: Path, tmp_path: Path, workers: int) -> None:
    deep = "[" * 600 + "]" * 600
    (photos / "t.jsonl").write_text(
        f'{{"image": "00.jpg", "m": {deep}}}\n{{"image": "01.jpg", "m": ["\\ud800", 1e999]}}\n'
    )
    first, second = read_jsonl(scored(photos / "t.jsonl", vit, tmp_path, keep=("m",), workers=workers))
    assert first["predictions"]
    assert second["m"] == ["\ufffd", None]


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan, math.inf]), min_size=6, max_size=6), min_size=1),
    st.none() | st.integers(1, 8),
    st.sampled_from([0.0, 0.3]),
)
def test_equal_scores_are_in_the_order_of_the_classes(
    rows: list[list[float]], top_k: int | None, threshold: float
) -> None:
    labels = [f"class {number}" for number in range(6)]
    for row, found in zip(rows, top_predictions(torch.tensor(rows), labels, top_k, threshold), strict=True):
        if not all(map(math.isfinite, row)):
            assert isinstance(found, records_io.Failure)
            continue
        best = sorted(range(6), key=lambda number: (-row[number], number))[:top_k]
        assert found == [{"label": labels[n], "score": row[n]} for n in best if row[n] >= threshold]


def test_columns_that_a_format_has_already_are_refused(photos: Path, vit: Path, tmp_path: Path) -> None:
    (photos / "t.csv").write_text("image,label\n00.jpg,can\n")
    with pytest.raises(UsageError, match="the csv file has a column of that name"):
        scored(photos / "t.csv", vit, tmp_path, "p.csv", keep=("label",))
    with pytest.raises(UsageError, match="--keep label"):
        scored(photos / "t.csv", vit, tmp_path, keep=("label", "label"))


def test_another_model_or_option_is_explained_and_nothing_overwritten(photos: Path, vit: Path, tmp_path: Path) -> None:
    good = scored(photos, vit, tmp_path).read_bytes()
    with pytest.raises(UsageError, match=r"top_k was 5, is 3; pass_size was 4, is 8"):
        scored(photos, vit, tmp_path, top_k=3, batch_size=8)
    with pytest.raises(UsageError, match="checkpoint_sha256 was"):
        scored(photos, Path("demo"), tmp_path)
    assert (tmp_path / "p.jsonl").read_bytes() == good


def test_a_finished_run_is_not_done_again(photos: Path, vit: Path, tmp_path: Path) -> None:
    out = scored(photos, vit, tmp_path)
    before = out.stat()
    outcome = run(Options(input=str(photos), model=str(vit), workers=0, batch_size=4), out=str(out))
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert outcome.tally.scored == 40
    (photos / "new.jpg").write_bytes(jpeg())
    with pytest.raises(UsageError, match="its input has changed since"):
        scored(photos, vit, tmp_path)


def test_a_file_that_is_not_ours_is_not_overwritten(photos: Path, vit: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("precious")
    for report in (None, "{", "[]"):
        if report:
            (tmp_path / "p.jsonl.run.json").write_text(report)
        with pytest.raises(UsageError, match="no report beside it"):
            scored(photos, vit, tmp_path)
    assert (tmp_path / "p.jsonl").read_text() == "precious"
    assert len(read_jsonl(scored(photos, vit, tmp_path, mode="fresh"))) == 40


def test_the_old_result_stands_until_a_fresh_one_is_whole(
    photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = scored(photos, vit, tmp_path, top_k=1).read_bytes()
    with pytest.raises(Interrupted), interrupted_after(3, monkeypatch):
        scored(photos, vit, tmp_path, mode="fresh")
    assert (tmp_path / "p.jsonl").read_bytes() == old
    assert len(read_jsonl(tmp_path / "p.jsonl.partial")) == 12
    assert read_json(tmp_path / "p.jsonl.run.json")["status"] == "interrupted"
    assert len(read_jsonl(scored(photos, vit, tmp_path))[0]["predictions"]) == 5


def test_an_input_that_ends_in_an_error_loses_nothing_before_it(
    photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip

    rows = "".join(f"{number % 40:02}.jpg\n" for number in range(5000))
    data = gzip.compress(rows.encode(), mtime=0)
    (photos / "t.txt.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="can't be read past line"):
        scored(photos / "t.txt.gz", vit, tmp_path, batch_size=64, workers=1)
    kept = len(read_jsonl(tmp_path / "p.jsonl.partial"))
    assert kept > 0
    (photos / "t.txt.gz").write_bytes(data)
    assert len(read_jsonl(scored(photos / "t.txt.gz", vit, tmp_path, batch_size=64, workers=1))) == 5000


@pytest.mark.parametrize("problem", ["no folder", "a folder of that name", "a full disk"])
def test_an_output_that_cannot_be_written_is_one_clear_error(
    photos: Path, vit: Path, tmp_path: Path, problem: str
) -> None:
    if problem == "no folder":
        with pytest.raises(UsageError, match="there is no folder"):
            scored(photos, vit, tmp_path, "none/deeper/p.jsonl")
        return
    if problem == "a folder of that name":
        (tmp_path / "p.jsonl.partial").mkdir()
        (tmp_path / "p.jsonl.run.json").write_text("{}")
        with pytest.raises((OutputError, UsageError)):
            scored(photos, vit, tmp_path)
        return
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OutputError, match="run the same command again to continue"):
            scored(photos, vit, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "p.jsonl").exists()
    assert len(read_jsonl(scored(photos, vit, tmp_path))) == 40


# --- parts --------------------------------------------------------------------------------------------------------


def test_a_table_without_rows_gives_an_empty_output(vit: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image\n")
    assert scored(tmp_path / "t.csv", vit, tmp_path).read_bytes() == b""


def test_an_error_threshold_in_percent_ends_no_small_run_and_no_large_one_too_early() -> None:
    threshold = ErrorThreshold(10, percent=True)
    threshold.check(Tally(0, Counter(FetchError=999)), None)
    threshold.check(Tally(50, Counter(FetchError=949)), 999)
    threshold.check(Tally(0, Counter(FetchError=500)), 5000)
    with pytest.raises(TooManyFailures, match=r"101 of 1,000 inputs failed \(101 FetchError\)"):
        threshold.check(Tally(899, Counter(FetchError=101)), None)
    with pytest.raises(TooManyFailures):
        threshold.check(Tally(0, Counter(FetchError=501)), 5000)


def test_batches_of_large_inline_images_are_cut_short() -> None:
    def references() -> Iterator[records_io.Reference]:
        for index in range(10):
            yield records_io.Reference(index, None, records_io.Base64("A" * 10 * 2**20))

    sizes = [len(batch) for batch in batched(references(), 16)]
    assert sizes == [4, 4, 2]


def test_records_from_python(photos: Path, vit: Path) -> None:
    records = list(score(str(photos), model=str(vit), limit=3, workers=0, keep=()))
    assert [record.index for record in records] == [0, 1, 2]
    assert records[0].predictions[0]["label"] in LABELS
    assert records[0].error is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"topk": 3}, r"score\(\) has no option topk \(do you mean top_k\?\)"),
        ({"hue": "red"}, r"score\(\) has no option hue; there are allow_pickle, base, batch_size"),
        ({"top_k": "all"}, "top_k is 'all'; it must be a whole number from 1 up, or None for all"),
        ({"allow_private_hosts": True}, r"it is one of limits=Limits\(allow_private_hosts=…\)"),
        ({"id2label": ["a", "b"]}, r"id2label is \['a', 'b'\]; it must be the name of a file with the names"),
        ({"top_k": True}, "top_k is True; it must be a whole number"),
        ({"top_k": 0}, "top_k is 0"),
        ({"limit": -1}, "limit is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1; it must be a whole number from 0 up"),
        ({"workers": 1.5}, "workers is 1.5"),
        ({"threshold": float("nan")}, "threshold is nan; it must be a number in 0..1"),
        ({"threshold": "0.5"}, "threshold is '0.5'"),
        ({"keep": "label"}, "keep is 'label'; it must be a sequence of names"),
        ({"column": 3}, "column is 3; it must be text"),
        ({"recursive": "no"}, "recursive is 'no'; it must be True or False"),
        ({"decode": "slow"}, "decode is 'slow'; it must be exact or fast"),
        ({"deep_gray": "white"}, "deep_gray is 'white'; it must be clip or scale"),
        ({"dtype": "double"}, "dtype 'double' is none of auto"),
        ({"device": "gpu"}, "device=gpu can't be used on this machine"),
        ({"limits": {"retries": 1}}, "limits is {'retries': 1}; it must be a Limits"),
        ({"shard": (3, 2)}, r"shard is \(3, 2\); it must be \(i, n\)"),
        ({"shard": "0/2"}, "shard is '0/2'"),
        ({"shard": (0, 1, 2)}, "shard is"),
        ({"limit": 10**30}, "limit is 1000"),
        ({"input": "a\0b.csv"}, "input is"),
        ({"input": ["a.csv", "a\0b.csv"]}, "input is"),
        ({"model": None}, "model is None; it must be text"),
    ],
    ids=str,
)
def test_python_refuses_what_the_command_would_when_it_is_called(
    photos: Path, vit: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        score(**{"input": photos, "model": vit, **wrong})


def test_python_refuses_limits_and_inputs_that_the_command_would(photos: Path, vit: Path) -> None:
    wrong: list[dict[str, Any]] = [{"retries": -1}, {"image_bytes": 0}, {"fetch_seconds": 0}, {"decode_seconds": "9"}]
    wrong += [{"image_bytes": 10**30}, {"root": 5}, {"root": ""}, {"allow_private_hosts": "no"}]
    for limits in wrong:
        with pytest.raises(UsageError, match=next(iter(limits))):
            Limits(**limits)
    nothing: Any = 5
    with pytest.raises(UsageError, match="input is 5; it must be a path, an image, a DataFrame, or a list"):
        score(nothing, model=vit)
    with pytest.raises(UsageError, match="no such file or folder"):
        score(photos / "none", model=vit)
    with pytest.raises(CheckpointError, match=r"is no checkpoint|no folder|there is no"):
        score(photos, model=photos)
    for features in (None, 5, [["cls"]], "cls2", []):
        with pytest.raises(UsageError, match="features are"):
            embed(photos, model=vit, features=cast(Any, features))
    more: dict[str, Any] = {"top_k": 1}
    with pytest.raises(UsageError, match=r"embed\(\) has no option top_k"):
        embed(photos, model=vit, **more)


def test_what_python_may_give_is_what_the_options_are() -> None:
    """The names and types of the one second list."""
    fields = {field.name: field.type for field in dataclasses.fields(Options)} | {
        "keep": "Sequence[str]",
        "map": "Mapping[str, str] | Sequence[tuple[str, str]]",
    }
    paths = {
        "base": "str | os.PathLike[str] | None",
        "model": "str | os.PathLike[str]",
        "image_processor": "str | os.PathLike[str] | None",
        "id2label": "str | os.PathLike[str] | None",
    }
    given = {name: str(kind.__forward_arg__) for name, kind in ScoreOptions.__annotations__.items()}
    assert given == {name: kind for name, kind in {**fields, **paths}.items() if name not in ("input", "features")}
    arguments = str(inspect.getdoc(score)).split("Args:\n")[1].split("\n\n")[0]
    entries = [" ".join(entry.split()) for entry in re.split(r"^ {4}(?=\w)", arguments, flags=re.MULTILINE)]
    told = dict(re.findall(r"^(\w+): .*Default: (.*)\.$", "\n".join(entries), re.MULTILINE))
    assert told.keys() == given.keys()
    for name, default in (("top_k", "5"), ("threshold", "0"), ("decode", '"exact"'), ("recursive", "True")):
        assert told[name] == default
    assert DEFAULT_MODEL in told["model"]


NO_PART_OF_RESULTS = {
    "revision": "its commit and digest are there",
    "image_processor": "the recipe is there",
    "decode": "it is part of the recipe",
    "deep_gray": "it is part of the recipe",
    "id2label": "the digest of its names is there",
    "allow_pickle": "the digest of what was loaded is there",
    "batch_size": "the pass size is there; batches change no score",
    "workers": "who decodes changes no pixel",
    "limits": "those that change a result are there one by one",
}


@pytest.mark.parametrize("features", [None, ("cls",)])
def test_a_run_is_not_continued_with_another_option_that_results_depend_on(
    photos: Path, vit: Path, features: tuple[FeatureName, ...] | None
) -> None:
    """A new option is in the settings, or here with the reason why not."""
    options = Options(input=str(photos), model=str(vit), features=features)
    known = Plan.of(options).settings(options).keys() | NO_PART_OF_RESULTS.keys()
    others = {"top_k", "threshold"} if features else {"features"}
    assert {field.name for field in dataclasses.fields(Options)} - known - others == set()


def test_each_default_of_a_command_is_that_of_its_options() -> None:
    for command in ("score", "embed", "plot", "serve"):
        context = main.commands[command].make_context(command, NEEDED[command], resilient_parsing=True)
        for kind in (Options, Limits):
            for field in dataclasses.fields(kind):
                if field.name in context.params and field.name not in ("input", "keep", "map", "features"):
                    assert context.params[field.name] == field.default, (command, field.name)


NEEDED = {"score": ["a"], "embed": ["a", "--out", "b.npy"], "plot": ["a", "--out", "b.png"], "serve": []}


def test_a_run_in_a_thread(photos: Path, vit: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        out = pool.submit(scored, photos, vit, tmp_path, workers=1).result(60)
    assert len(read_jsonl(out)) == 40


def test_reading_runs_only_a_little_ahead_of_scoring(photos: Path) -> None:
    """The input may be endless."""
    read = 0

    def endless() -> Iterator[records_io.Reference]:
        nonlocal read
        while True:
            path = f"{photos}/{read % 40:02}.jpg"
            yield records_io.Reference(read, path, records_io.LocalFile(path))
            read += 1

    loader = Loader(CARD_RECIPE, Limits(), workers=2, pin_memory=False)
    for place, (references, decoded) in enumerate(itertools.islice(loader.stream(batched(endless(), 4)), 50)):
        assert references[0].index == place * 4
        assert len(decoded.pixels) == 4
    loader.close()
    assert 200 <= read <= 200 + 2 * PREFETCH_FACTOR * 4 + 4


def test_a_program_that_leaves_off_in_the_middle_ends_at_once(photos: Path, vit: Path) -> None:
    program = f"""
from deit_batch import score
records = score({str(photos)!r}, model={str(vit)!r}, batch_size=2, workers=2)
print(next(records).index)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_stdout_streams_records(photos: Path, vit: Path, tmp_path: Path, capfdbinary: Any) -> None:
    assert sys.stdout is not None
    options = Options(input=str(photos), model=str(vit), workers=0)
    run(options, out="-")
    lines = capfdbinary.readouterr().out.splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(40))
    run(options, out="-", format="sample")
    samples = capfdbinary.readouterr().out.splitlines()
    assert [json.loads(line) for line in samples] == [json.loads(line)["predictions"] for line in lines]
    with pytest.raises(UsageError, match="can't go to stdout"):
        run(options, out="-", format="parquet")
