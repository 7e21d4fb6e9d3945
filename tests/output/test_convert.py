"""A finished result in other forms: as score would have written it, and as people and spreadsheets want it."""

from __future__ import annotations

import base64
import csv
import json
import os
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import EXAMPLES, deit_batch, read_json, read_jsonl, valid
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.errors import UsageError
from deit_batch.options import Options
from deit_batch.output.convert import Conversion, convert
from deit_batch.output.form import Form
from deit_batch.output.read import read_records
from deit_batch.output.spreadsheet import harmless, original
from deit_batch.runner import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What score writes in each format, of a table with a kept column, a missing file and a malformed row."""
    folder = tmp_path_factory.mktemp("results")
    pictures = sorted(EXAMPLES.glob("*/*.png"))[:5]
    rows = [*(f"{picture},{number}" for number, picture in enumerate(pictures)), "broken", "missing.png,=1+1"]
    (folder / "t.csv").write_text("image,id\n" + "\n".join(rows) + "\n")
    for ending in ("jsonl", "csv", "parquet", "json"):
        options = Options(input=str(folder / "t.csv"), model="demo", keep=("id",), workers=0, top_k=None)
        run(options, out=str(folder / f"p.{ending}"), quiet=True)
    return folder


def converted(predictions: Path, out: Path, **more: Any) -> Path:
    form = Form(**{name: more.pop(name) for name in Form.__slots__ if name in more})
    convert(Conversion(predictions, out, form=form, **more))
    return out


def without_nulls(path: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in record.items() if value is not None or name == "image"}
        for record in read_records(path)
    ]


@pytest.mark.parametrize("start", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("end", ["jsonl", "csv", "parquet", "json"])
def test_every_format_from_every_other_is_what_score_writes(start: str, end: str, folder: Path, tmp_path: Path) -> None:
    out = converted(folder / f"p.{start}", tmp_path / f"o.{end}")
    if end == "jsonl" and start != end:  # a column is there for all rows, and null where a record has no such field
        assert without_nulls(out) == without_nulls(folder / "p.jsonl")
    else:
        assert out.read_bytes() == (folder / f"p.{end}").read_bytes()
    assert os.listdir(tmp_path) == [out.name]


def test_fewer_labels(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = read_jsonl(folder / "p.jsonl")
    for top_k, threshold in ((1, 0.0), (3, 0.0), (None, 0.01), (2, 0.5)):
        out = converted(folder / "p.jsonl", tmp_path / "o.jsonl", top_k=top_k, threshold=threshold)
        for before, after in zip(whole, read_jsonl(out), strict=True):
            left = [each for each in before["predictions"] if each["score"] >= threshold]
            assert after == before | {"predictions": left[:top_k]}
    assert caplog.messages == []
    converted(folder / "p.jsonl", tmp_path / "o.jsonl", top_k=11, threshold=1.0)
    assert [message.partition(":")[0] for message in caplog.messages if "--top-k 11" in message] == ["--top-k 11"]
    assert any("leaves no label to 5 of 5 images" in message for message in caplog.messages)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_flat_records_have_their_best_label_beside_and_are_read_back_without(
    ending: str, folder: Path, tmp_path: Path
) -> None:
    out = converted(folder / "p.jsonl", tmp_path / f"o.{ending}", flat=True)
    rows = pq.read_table(out).to_pylist() if ending == "parquet" else read_jsonl(out)
    for row in rows:
        best = row["predictions"][0] if row["predictions"] else {"label": None, "score": None}
        assert {name: row[name] for name in ("label", "score")} == best
    # `report` and `evaluate` would take a field of that name for what the image truly shows.
    assert without_nulls(out) == without_nulls(folder / "p.jsonl")
    again = converted(out, tmp_path / "again.csv")
    assert again.read_bytes() == (folder / "p.csv").read_bytes()


def test_a_kept_label_stays(tmp_path: Path) -> None:
    record = {"index": 0, "image": "a", "predictions": [{"label": "cat", "score": 0.5}], "label": "cat", "score": 0.4}
    (tmp_path / "p.jsonl").write_text(json.dumps(record) + "\n")
    assert list(read_records(tmp_path / "p.jsonl")) == [record]
    for out, more in (("o.jsonl", {"flat": True}), ("o.csv", {}), ("o.csv", {"layout": "long"})):
        with pytest.raises(UsageError, match="has a kept column label, which"):
            converted(tmp_path / "p.jsonl", tmp_path / out, **more)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_wide_and_long(ending: str, folder: Path, tmp_path: Path) -> None:
    def rows(layout: str) -> list[dict[str, Any]]:
        out = converted(folder / "p.jsonl", tmp_path / f"{layout}.{ending}", layout=layout, top_k=3)
        if ending == "parquet":
            return list(pq.read_table(out).to_pylist())
        with open(out, newline="") as file:
            return list(csv.DictReader(file))

    records = list(read_records(folder / "p.jsonl"))
    wide, long = rows("wide"), rows("long")
    assert [int(row["index"]) for row in wide] == [record["index"] for record in records]
    for row, record in zip(wide, records, strict=True):
        labels = [(row[f"label_{rank}"], float(row[f"score_{rank}"])) for rank in (1, 2, 3) if row[f"label_{rank}"]]
        mine = [each for each in long if int(each["index"]) == record["index"]]
        assert labels == [(each["label"], each["score"]) for each in record["predictions"][:3]]
        assert labels == [(each["label"], float(each["score"])) for each in mine if each["label"]]
        assert len(mine) == max(1, len(labels))
        for each in (row, *mine):
            assert (each["error_type"] or None, each["id"] or None) == (
                record.get("error", {}).get("type"),
                record.get("id"),
            )


def test_a_spreadsheet_runs_nothing_and_reads_the_accents(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["=1+1.png", "+a", "-5", "@a", "'=a", "é.png", "\tx", "plain", "a\nb"]
    records = [
        {"index": place, "image": name, "predictions": [{"label": "=cmd|' /C calc'!A0", "score": 0.5}], "=x": name}
        for place, name in enumerate(names)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    out = converted(tmp_path / "p.jsonl", tmp_path / "o.csv", excel=True)
    assert out.read_bytes().startswith(b"\xef\xbb\xbfindex,")
    with open(out, encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert {cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t"))} == {"-5"}
    assert list(read_records(out)) == records
    assert converted(out, tmp_path / "again.jsonl").read_text() == "".join(
        json.dumps(record, ensure_ascii=False) + "\n" for record in records
    )
    assert caplog.messages == []
    records[0]["predictions"] = [{"label": f"label {number}", "score": 0.001} for number in range(1000)]
    (tmp_path / "p.jsonl").write_text(json.dumps(records[0]) + "\n")
    converted(tmp_path / "p.jsonl", tmp_path / "o.csv", excel=True)
    assert any("1 cells are longer than the 32,767" in message for message in caplog.messages)


@given(st.text() | st.text("'=+-@1 \t\r\n＝."))
def test_text_made_harmless_is_read_back(text: str) -> None:
    cell = harmless(text)
    assert original(cell) == text
    assert not cell.startswith(("=", "@", "\t", "\r"))


@pytest.mark.parametrize(
    ("ending", "form"),
    [
        ("jsonl", Form(flat=True, unsure_below=0.9)),
        ("parquet", Form(flat=True, unsure_below=0.9)),
        ("csv", Form(excel=True, unsure_below=0.9)),
        ("csv", Form(layout="wide", excel=True)),
        ("parquet", Form(layout="long", unsure_below=0.9)),
    ],
)
def test_score_writes_the_same_form(ending: str, form: Form, folder: Path, tmp_path: Path) -> None:
    options = Options(input=str(folder / "t.csv"), model="demo", keep=("id",), workers=0, top_k=2)
    for _ in range(2):  # the second finds it finished
        run(options, out=str(tmp_path / f"p.{ending}"), quiet=True, form=form)
    convert(Conversion(folder / "p.jsonl", tmp_path / f"c.{ending}", top_k=2, form=form))
    assert (tmp_path / f"p.{ending}").read_bytes() == (tmp_path / f"c.{ending}").read_bytes()
    read_json(tmp_path / f"p.{ending}.run.json")
    with pytest.raises(UsageError, match="form was"):
        run(options, out=str(tmp_path / f"p.{ending}"), quiet=True)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_unsure_images_are_marked_and_keep_their_labels(ending: str, folder: Path, tmp_path: Path) -> None:
    records = read_jsonl(folder / "p.jsonl")
    best = sorted(record["predictions"][0]["score"] for record in records if record["predictions"])
    below = best[2]
    wanted = [
        "false" if "error" in record else json.dumps(record["predictions"][0]["score"] < below) for record in records
    ]
    out = tmp_path / f"o.{ending}"
    arguments = ["convert", f"p.{ending}", "--out", str(out), "--unsure-below", str(below)]
    done = deit_batch(*arguments, "--review", str(tmp_path / "r.csv"), cwd=folder)
    assert (done.returncode, "2 images unsure" in done.stderr) == (0, True), done.stderr
    found = list(read_records(out))
    assert [json.dumps(each["unsure"]).strip('"') for each in found] == wanted
    assert [each["predictions"] for each in found] == [each["predictions"] for each in records]
    with open(tmp_path / "r.csv", encoding="utf-8-sig", newline="") as file:
        listed = list(csv.DictReader(file))
    assert [int(row["index"]) for row in listed] == [place for place, mark in enumerate(wanted) if mark == "true"]
    assert all(row["label_1"] and row["label_3"] and "label_4" not in row for row in listed)
    again = converted(out, tmp_path / "again.jsonl", unsure_below=0.0)  # what is marked already is marked anew
    assert [each["unsure"] for each in read_jsonl(again)] == [False] * len(records)


def test_a_kept_column_that_is_no_mark_is_not_taken_for_one(tmp_path: Path) -> None:
    record = {"index": 0, "image": "a.jpg", "predictions": [{"label": "a", "score": 0.9}], "unsure": 1}
    (tmp_path / "p.jsonl").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="has a kept column unsure"):
        converted(tmp_path / "p.jsonl", tmp_path / "o.jsonl", unsure_below=0.5)


def test_score_lists_what_is_unsure(tmp_path: Path) -> None:
    command: list[str] = ["score", str(EXAMPLES / "bag"), *"--model demo --out p.jsonl --review r.csv".split()]
    done = deit_batch(*command, cwd=tmp_path)
    assert (done.returncode, "--review lists the images that are unsure" in done.stderr) == (2, True)
    done = deit_batch(*command, "--unsure-below", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = read_jsonl(tmp_path / "p.jsonl")
    assert all(record["unsure"] and record["predictions"] for record in records)
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 1 + len(records)
    plain = ["score", str(EXAMPLES / "bag"), "--model", "demo", "--out", "plain.jsonl"]
    again = ["convert", "plain.jsonl", "--out", "c.jsonl", "--unsure-below", "1", "--review", "c.csv"]
    assert (deit_batch(*plain, cwd=tmp_path).returncode, deit_batch(*again, cwd=tmp_path).returncode) == (0, 0)
    assert (tmp_path / "c.csv").read_bytes() == (tmp_path / "r.csv").read_bytes()
    for refused in (["--threshold", "1", "--unsure-below", "0.5"], ["--shard", "0/2"], ["--layout", "wide"]):
        done = deit_batch(*command, "--unsure-below", "1", *refused, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
    assert read_jsonl(tmp_path / "p.jsonl") == records


def test_a_list_for_review_takes_the_place_of_nothing_else(tmp_path: Path) -> None:
    """It is refused before anything is scored, also where a table alone names what would be written over."""
    photo = (EXAMPLES / "bag" / "00018.png").read_bytes()
    for name in ("a.png", "b.csv"):
        (tmp_path / name).write_bytes(photo)
    (tmp_path / "t.txt").write_text("a.png\nb.csv\n")
    (tmp_path / "r.csv.run.json").write_text("{}")
    command = ["score", "t.txt", *"--model demo --out p.jsonl --unsure-below 1 --review".split()]
    for review, why in (
        ("a.png", "--review a.png must end in .csv: the list is a table of CSV, which a spreadsheet opens"),
        ("b.csv", "--review b.csv is the input's image 1"),
        ("r.csv", "--review r.csv is the result of a run"),
        ("nowhere/r.csv", "--review nowhere/r.csv: there is no folder nowhere"),
    ):
        done = deit_batch(*command, review, cwd=tmp_path)
        assert (done.returncode, why in done.stderr) == (2, True), done.stderr
        assert not (tmp_path / "p.jsonl").exists()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.csv").read_bytes() == photo


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["p.jsonl", "--out", "o.xlsx"], "--out o.xlsx: end it in"),
        (["p.jsonl", "--out", "o.json", "--excel"], "--excel is for csv, and o.json is json"),
        (["p.jsonl", "--out", "o.jsonl", "--layout", "long"], "--layout long is for csv and parquet"),
        (["p.jsonl", "--out", "o.csv", "--flat"], "--flat is for records in jsonl and parquet"),
        (["p.jsonl", "--out", "p.csv"], "--out p.csv is the result of a run, with its report"),
        (["p.jsonl", "--out", "p.jsonl"], "--out p.jsonl would take the place of the input"),
        (["p.jsonl", "--out", "nowhere/deeper/o.csv"], "there is no folder nowhere"),
        (["p.json", "--out", "o.csv"], "says of no prediction which image it is of"),
        (["t.csv", "--out", "o.jsonl"], "there is no 'index' in it"),
        (["/dev/null", "--out", "o.jsonl"], "is no file: it is read twice"),
        (["cut.jsonl", "--out", "old.csv"], "record 2: can't be read as predictions"),
        (["huge.jsonl", "--out", "old.parquet"], "a value of it can't be written as parquet"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    arguments: list[str], why: str, folder: Path, tmp_path: Path
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    line = (folder / "p.jsonl").read_bytes().splitlines()[0]
    (tmp_path / "cut.jsonl").write_bytes(line + b"\n" + line[:50])
    (tmp_path / "huge.jsonl").write_text(json.dumps(json.loads(line) | {"index": 10**40}) + "\n")
    (tmp_path / "old.csv").write_text("of somebody")
    (tmp_path / "old.parquet").write_text("of somebody")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = deit_batch("convert", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_types_that_arrow_does_not_know_are_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"index": [0]}), path)
    stored = pq.read_metadata(path).metadata[b"ARROW:schema"]
    of_128_bits = base64.b64decode(stored).replace(struct.pack("<i", 64), struct.pack("<i", 128))
    path.write_bytes(path.read_bytes().replace(stored, base64.b64encode(of_128_bits)))
    with pytest.raises(UsageError, match=r"p\.parquet, record 1: can't be read as predictions of score: .* 64 bits"):
        list(read_records(path))


def test_odd_json_of_others_becomes_valid(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"index": 0, "image": "\\ud800", "predictions": [], "k": NaN, "\\udfff": 1}\n')
    (record,) = read_jsonl(converted(tmp_path / "p.jsonl", tmp_path / "o.jsonl"))
    assert valid(record, "record") == {"index": 0, "image": "\ufffd", "predictions": [], "k": None, "\ufffd": 1}
    converted(tmp_path / "p.jsonl", tmp_path / "o.parquet")


def test_a_pipe_is_refused_and_an_old_file_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text("old")
    done = deit_batch("convert", folder / "p.jsonl", "--out", "o.csv", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "deit-batch: 7 images, 2 failed: o.csv\n")
    assert (tmp_path / "o.csv").read_bytes() == (folder / "p.csv").read_bytes()
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "is no file" in deit_batch("convert", "pipe.jsonl", "--out", "o.csv", cwd=tmp_path).stderr
