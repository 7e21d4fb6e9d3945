"""Reports: what stands in the page, that names stay text, where pictures come from. What a browser makes of it is in
test_pages.py."""

from __future__ import annotations

import base64
import faulthandler
import fcntl
import json
import os
import re
import shutil
import signal
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import EXAMPLES, LABELS, jpeg, photo, read_json, read_jsonl, scored
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_results import Json, Page, invoke, record, write
from PIL import Image

from deit_batch.errors import DecodeError, UsageError
from deit_batch.io import Failure
from deit_batch.limits import Limits
from deit_batch.loading import decode as decoding
from deit_batch.loading import worker
from deit_batch.loading.decode import decode
from deit_batch.model.recipe import Recipe
from deit_batch.output.read import read_records, read_run_report
from deit_batch.report.chosen import Best, Sample, take_turns
from deit_batch.report.gallery import Pictures
from deit_batch.report.headline import answer
from deit_batch.report.pictures import as_uri
from deit_batch.report.report import as_page
from deit_batch.report.summary import MOST_REASONS, Reason, summarise


def reported(predictions: Path, *options: str | Path) -> Page:
    out = predictions.with_name("report.html")
    done = invoke("report", predictions, "--out", out, *options)
    assert done.exit_code == 0, done.output
    return Page(out.read_text())


def pictures_in(page: Page) -> int:
    """How many images have one."""
    return len({*page.pictured, *page.data["pictures"]})


# --- what it says ---------------------------------------------------------------------------------------------------


def test_the_page_of_a_run(photos: Path, vit: Path, tmp_path: Path) -> None:
    (photos / "07.jpg").write_bytes(b"no image")
    predictions = scored(photos, vit, tmp_path)
    page = reported(predictions, "--thumbnails", "3")
    records = read_jsonl(predictions)
    run = read_json(tmp_path / "p.jsonl.run.json")
    for figure in (f"images {len(records)}", "scored 39", "failed 1", f"images/s {run['images_per_second']:,}"):
        assert figure in page.text
    for fact in (
        f"Speed {run['images_per_second']:,} images/s once the model was loaded",
        str(vit),
        "resized to 32×32, bilinear; mean 0.5, deviation 0.5",
        run["settings"]["checkpoint_sha256"][:12],
    ):
        assert fact in page.text
    found = Counter(r["predictions"][0]["label"] for r in records if r["predictions"])
    assert all(f"{label} {images}" in page.text for label, images in found.items())
    assert f"DecodeError {records[7]['error']['message']}" in page.text
    by_score = sorted((r for r in records if r["predictions"]), key=lambda r: r["predictions"][0]["score"])
    least = page.text.split(" Least sure ")[-1].split(" Classes ")[0]
    assert os.path.basename(by_score[0]["image"]) in least
    shown = {place for place in range(40) if str(place) not in page.data["pictures"]}
    for label in found:  # the surest of each class, and the least sure
        of_class = [r["index"] for r in by_score if r["predictions"][0]["label"] == label]
        assert {*of_class[:3], *of_class[-3:]} <= shown
    assert {7} | {int(place) for place in page.data["pictures"]} | shown == set(range(40))
    assert page.data["folder"] + page.data["names"][5] == records[5]["image"]
    assert page.data["bars"][0]["rows"][5][1] == round(records[5]["predictions"][0]["score"] * 10_000)
    assert "All 40 of them" in page.text


def test_a_page_of_many_records_says_that_it_holds_a_sample(tmp_path: Path) -> None:
    records = [record(n, f"{n:04}.jpg", (LABELS[n % 5], n / 1000)) for n in range(1000)]
    page = reported(write(tmp_path / "p.jsonl", records), "--rows", "50", "--thumbnails", "2")
    assert 50 <= len(page.data["names"]) <= 80
    assert "A random sample of" in page.text
    assert "can 200 · 20 %" in page.text
    assert {"0000.jpg", "0001.jpg", "0998.jpg", "0999.jpg"} <= set(page.data["names"])  # those that stand out
    assert "model and speed are not known" in page.text


@pytest.mark.parametrize("kind", ["folders", "carried", "several"])
def test_labels_give_confusions(kind: str, tmp_path: Path) -> None:
    records = [
        record(n, f"v/{'jar' if n < 6 else 'milk_bottle'}/{n}.jpg", ("jar", 0.9), ("milk_bottle", 0.1))
        for n in range(8)
    ]
    records.append(record(8, "v/jar/8.jpg", error="broken"))
    options: list[str | Path] = ["--gallery", "0"]
    if kind == "folders":
        for each in records:
            path = tmp_path / each["image"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        options += ["--labels", tmp_path / "v"]
    else:
        for n, each in enumerate(records):
            label = "jar" if n < 6 else "milk_bottle"
            each["label"] = [label] if kind == "several" else label
    page = reported(write(tmp_path / "p.jsonl", records), *options)
    assert "6 of 8 judged images are right (75.0 %), of 9 labelled ones; 1 could not be scored" in page.text
    if kind == "several":
        assert "milk_bottle 0 2 0" in page.text  # found, missed, made up
        assert "jar 6 0 2" in page.text
    else:
        assert "jar (6) 100 milk_bottle (2) 100" in page.text
    states = [page.data["states"][number] for number in page.data["values"]["state"]]
    assert states == ["right"] * 6 + ["wrong"] * 2 + ["failed"]


def test_labelled_images_that_failed_or_have_no_prediction_are_not_judged(tmp_path: Path) -> None:
    records = [record(n, f"{n}.jpg", ("can", 0.9), label="can") for n in range(5)]
    records += [record(n, f"{n}.jpg", error="broken", label="can") for n in range(5, 9)]
    records += [record(9, "9.jpg", label="can"), record(10, "10.jpg", ("jar", 0.9), label="can")]
    page = reported(write(tmp_path / "p.jsonl", records), "--gallery", "0")
    told = (
        "5 of 6 judged images are right (83.3 %), of 11 labelled ones; 4 could not be scored; "
        "1 had no label from the run's threshold"
    )
    assert told in page.text
    assert "right 83.3 %" in page.text


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_a_report_counts_as_an_evaluation_does(several: bool, whole: bool, tmp_path: Path) -> None:
    """Of images that are there twice, failed, without prediction, label or record, of labels that are unknown or can't
    be read, and of two classes of one name. `whole`: records hold every class's score."""
    classes = ["can", "crane", "crane", "jar"]
    labels = [*classes * 6, "Can", "unheard of", "can", "jar", ""]
    names = [f"{n}.jpg" for n in range(len(labels))]
    random = np.random.default_rng(0)
    records: list[dict[str, Any]] = []
    for n, name in enumerate([*names[:-3], "0.jpg", "other.jpg"]):
        scores = random.random(4) if several else random.dirichlet(np.ones(4))
        best = sorted(zip(classes, scores.tolist(), strict=True), key=lambda pair: -pair[1])
        records.append(record(n, name, *best[: None if whole else 2]))
    records[3] = record(3, names[3], error="broken")
    records[4] = record(4, names[4], *([] if not whole else best))
    table = [
        {"image": n, "label": [label] if several and label else label} for n, label in zip(names, labels, strict=True)
    ]
    table.append(table[5])
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    predictions = write(tmp_path / "p.jsonl", records)
    done = invoke("evaluate", "--input", tmp_path / "l.jsonl", "--predictions", predictions, "--out", tmp_path / "ev")
    assert done.exit_code in (0, 3), done.output
    evaluated = read_json(tmp_path / "ev" / "metrics.json")
    page = reported(predictions, "--labels", tmp_path / "l.jsonl", "--gallery", "0")
    found = re.search(r"(\d+) of (\d+) judged images are right \(.*?\), of (\d+) labelled ones", page.text)
    assert found, page.text
    assert evaluated["inputs"] == len(labels)
    assert list(map(int, found.groups()[1:])) == [evaluated["judged"], evaluated["inputs"]]
    if "accuracy" in evaluated["metrics"]:
        assert int(found[1]) == round(evaluated["metrics"]["accuracy"] * evaluated["judged"])
    states = Counter(page.data["states"][number] for number in page.data["values"]["state"])
    assert states["right"] + states["wrong"] == evaluated["judged"]


def test_labels_none_of_which_is_ever_predicted_judge_nothing(tmp_path: Path) -> None:
    """By one rule, whether records hold every class or the best ones, and whatever asks for it."""
    (tmp_path / "l.csv").write_text("image,label\na.jpg,station 1\nb.jpg,station 2\n")
    (tmp_path / "map.csv").write_text("station 1,jar\nstation 2,lid\n")
    labels: list[str | Path] = ["--labels", tmp_path / "l.csv"]
    commands: list[list[str | Path]]
    for scores in ((0.8, 0.1), (0.8, 0.2)):
        answers = list(zip(("can", "jar"), scores, strict=True))
        bare = write(tmp_path / "p.jsonl", [record(n, f"{name}.jpg", *answers) for n, name in enumerate("ab")])
        commands = [
            ["report", bare, *labels, "--out", tmp_path / "r.html"],
            ["compare", bare, bare, *labels],
            ["evaluate", "--input", tmp_path / "l.csv", "--predictions", bare, "--out", tmp_path / "e"],
        ]
        for command in commands:
            done = invoke(*command)
            assert done.exit_code == 2, command
            told = "none of the labels (station 1, station 2, …) is ever predicted, but can, jar, …"
            assert told in done.stderr, done.stderr
            assert not list(tmp_path.glob("*.html"))
    mapped = reported(bare, *labels, "--label-map", tmp_path / "map.csv", "--gallery", "0")
    assert "0 of 1 judged images are right" in mapped.text
    kept = write(tmp_path / "k.jsonl", [record(0, "a.jpg", ("can", 0.8), ("jar", 0.1), label="station 1")])
    done = invoke("report", kept, "--out", tmp_path / "r.html", "--gallery", "0")
    assert (done.exit_code, "the labels in the records' field 'label' are left out: none of" in done.stderr) == (
        0,
        True,
    )
    assert "Against the labels" not in Page((tmp_path / "r.html").read_text()).text
    assert invoke("report", kept, "--label-column", "label", "--out", tmp_path / "r.html").exit_code == 2


def test_a_kept_label_that_stands_for_a_missing_one_is_none_unless_a_class_is_called_so(tmp_path: Path) -> None:
    given = [("can", "can"), ("jar", "NaN"), ("None", "None")]
    records = [record(n, f"{n}.jpg", (predicted, 0.9), label=label) for n, (predicted, label) in enumerate(given)]
    page = reported(write(tmp_path / "p.jsonl", records), "--gallery", "0")
    assert "2 of 2 judged images are right (100.0 %)." in page.text


@pytest.mark.parametrize("options", [[], ["--label-column", "label"]])
def test_a_malformed_first_row_hides_no_labels(options: list[str], tmp_path: Path) -> None:
    records = [record(0, None, error="line 1: no image"), record(1, "b.jpg", ("can", 0.9), label="can")]
    page = reported(write(tmp_path / "p.jsonl", records), "--gallery", "0", *options)
    assert "1 of 1 judged images are right" in page.text


def test_labels_that_are_not_there_are_wrong_usage(tmp_path: Path) -> None:
    predictions = write(tmp_path / "p.jsonl", [record(0, "a.jpg", ("can", 0.9))])
    for wrong in (["--label-column", "kind"], ["--label-map", "imagenet"], ["--labels", "none"], ["--images", "none"]):
        assert invoke("report", predictions, "--out", tmp_path / "r.html", *wrong).exit_code == 2, wrong
    assert invoke("report", predictions, "--out", tmp_path / "no" / "no" / "r.html").exit_code == 2
    assert os.listdir(tmp_path) == ["p.jsonl"]


def test_an_ending_that_is_not_written_is_refused_before_any_work(tmp_path: Path) -> None:
    """Nothing that is named is read: none of it could be."""
    broken = str(write(tmp_path / "p.jsonl", []))
    (tmp_path / "p.jsonl").write_text("no records")
    for command, out, told in (
        (["report", broken], "r.pdf", "end it in .html or .htm,"),
        (["report", broken], "r", "end it in .html or .htm,"),
        (["compare", broken, broken], "r.csv", "end it in .html or .htm or .json,"),
        (["plot", "none.jpg", "--model", "none"], "cat.jpg", "end it in .png,"),
    ):
        done = invoke(*command, "--out", tmp_path / "new" / out)
        assert (done.exit_code, f"{out}: {told}" in done.stderr) == (2, True), done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == ["p.jsonl"]


def test_a_page_may_go_into_a_pipe(tmp_path: Path) -> None:
    """Which has no ending."""
    predictions = write(tmp_path / "p.jsonl", [record(0, "a.jpg", ("can", 0.9))])
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 2**20)  # the page waits in it
    assert invoke("report", predictions, "--thumbnails", "0", "--out", tmp_path / "pipe").exit_code == 0
    assert os.read(reader, 2**20).startswith(b"<!doctype html>")
    os.close(reader)


def test_an_image_is_counted_where_the_table_finds_it() -> None:
    scores = [0.049996, 0.05, 0.04994, 0.15, 0.99999, 1.0, 0.0]
    found = summarise((record(n, "x", ("can", score)) for n, score in enumerate(scores)), most_rows=9, most_shown=0)
    assert {number: images for number, images in enumerate(found.confidence.bins(20)) if images} == {
        0: 2,
        1: 2,
        3: 1,
        19: 2,
    }
    assert found.confidence.kept_from(0.05).images == 5


@pytest.mark.parametrize(
    ("scores", "failed", "passed_over", "said"),
    [
        ([], 0, 0, "No images."),
        ([], 2, 0, "2 images, and none could be scored."),
        (
            [0.9],
            0,
            1,
            "1 image, all scored. 1 other file was passed over. "
            "The model is sure of 100 % (a score from 0.80 up), and unsure of 0 % (below 0.50).",
        ),
        (
            [0.8, 0.49, *[0.6] * 399],
            1,
            0,
            "402 images: 401 scored, 1 unreadable. "
            "The model is sure of under 1 % (a score from 0.80 up), and unsure of under 1 % (below 0.50).",
        ),
    ],
    ids=["empty", "failed", "one", "many"],
)
def test_the_page_answers_first(scores: list[float], failed: int, passed_over: int, said: str) -> None:
    records = [record(n, "x", ("can", score)) for n, score in enumerate(scores)]
    records += [record(n, "x", error="broken") for n in range(failed)]
    assert answer(summarise(records, most_rows=9, most_shown=0), passed_over) == said


def test_images_whose_labels_a_threshold_took_are_in_every_share(tmp_path: Path) -> None:
    records = [record(n, f"{n}.jpg", ("can", 0.9), label="can") for n in range(6)]
    records += [record(n, f"{n}.jpg", label="can") for n in range(6, 10)]
    page = reported(write(tmp_path / "p.jsonl", records), "--gallery", "0")
    assert (
        "10 images, all scored. The model is sure of 60 % (a score from 0.80 up), and unsure of 0 % (below 0.50); "
        "4 images have no label from the run's threshold up. "
        "Of 6 with a label to judge by, 100 % are right; 4 more have no prediction, and can't be judged."
    ) in page.text
    assert page.data["thresholds"][50] == "At 0.50: 60 % of the images kept (6 of 10), 100 % of them right"
    assert "0.50 6 60 % 100 %" in page.text  # the table of thresholds
    assert "can 6 · 60 %" in page.text
    none = answer(summarise([record(0, "a.jpg")], most_rows=9, most_shown=0), 0)
    assert none.endswith("and unsure of 0 % (below 0.50); 1 image has no label from the run's threshold up.")


def test_who_opens_the_page_sees_whose_it_is_and_gets_to_every_part(photos: Path, vit: Path, tmp_path: Path) -> None:
    (photos / "notes.txt").touch()
    (photos / "itself").symlink_to(photos)  # a folder, and no file
    predictions = scored(photos, vit, tmp_path)
    page = reported(predictions, "--gallery", "0", "--title", "Cameras <1> & 2")
    assert "Cameras <1> & 2" in page.text
    assert "40 images, all scored. 1 other file was passed over." in page.text
    assert "1 folder seen under another name" in page.text
    ended = datetime.fromisoformat(read_json(tmp_path / "p.jsonl.run.json")["ended_at"])
    assert f"deit-batch report · {ended.day} {ended:%B %Y, %H:%M} UTC" in page.text
    parts = {"#classes", "#confidence", "#failures", "#records", "#run"}
    assert parts < set(page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    (tmp_path / "p.jsonl.run.json").unlink()
    os.utime(predictions, (0, 0))
    assert "· file of 1 January 1970, 00:00 UTC" in reported(predictions, "--gallery", "0").text


def test_failures_of_endless_kinds_are_bounded() -> None:
    found = summarise((record(n, "x", error=f"line {n}") for n in range(1000)), most_rows=10, most_shown=1)
    assert len(found.reasons) == MOST_REASONS + 1
    assert found.reasons[Reason("DecodeError", "")] == 1000 - MOST_REASONS
    assert found.reasons.total() == found.tally.failed == 1000


# --- names and labels stay text -------------------------------------------------------------------------------------

TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "</script><script>alert(1)</script>",
            "<!--<script>",
            "<img src=x onerror=alert(1)>",
            "{{ 7 * 7 }}",
            "&lt;",
            "'\"",
            "]]>",
        ]
    ),
)


@settings(max_examples=40)
@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=4))
def test_names_labels_and_messages_come_back_as_text(texts: list[tuple[str, str, str]]) -> None:
    records = [record(n, name, (label, 0.5)) for n, (name, label, _) in enumerate(texts)]
    records += [record(n, name, error=message) for n, (name, _, message) in enumerate(texts, len(texts))]

    def page(records: list[Json]) -> Page:
        summary = summarise(records, most_rows=100, most_shown=9, most_pictures=9)
        pictures = Pictures({n: Failure("FetchError", "gone") if n else "data:," for n in range(len(records))})
        return Page(as_page(Path("p.jsonl"), summary, None, None, pictures, [None] * len(records)).decode())

    hostile, tame = page(records), page([record(n, f"{n}", ("a", 0.5)) for n in range(len(texts))])
    assert (hostile.tags["script"], hostile.tags["img"], hostile.tags["b"]) == (2, 2, 0)  # of the card and the class
    assert hostile.tags["h2"] == tame.tags["h2"]
    shown = [name if name is None else hostile.data["folder"] + name for name in hostile.data["names"]]
    assert shown == [each["image"] for each in records]
    labels = [hostile.data["labels"][number] for number in hostile.data["values"]["label"][: len(texts)]]
    assert labels == [label for _, label, _ in texts]
    messages = [hostile.data["messages"][n] for n in hostile.data["notes"] if n >= 0]
    assert messages == [f"DecodeError: {message}" for _, _, message in texts]
    text = hostile.text.replace("\0", "\ufffd")  # as some versions of the parser have it
    assert all(" ".join(label.replace("\0", "\ufffd").split()) in text for _, label, _ in texts)


def test_half_a_surrogate_pair_does_no_harm(tmp_path: Path) -> None:
    page = reported(write(tmp_path / "p.jsonl", [record(0, "\ud800.jpg", ("\udfff", 0.9))]), "--thumbnails", "1")
    assert page.data["names"] == ["?.jpg"]


# --- pictures -------------------------------------------------------------------------------------------------------


def test_pictures_of_inline_data_come_from_the_runs_input(vit: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"image_base64": base64.b64encode(jpeg(n)).decode()}) for n in range(6)]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    predictions = scored(tmp_path / "t.jsonl", vit, tmp_path)
    assert pictures_in(reported(predictions, "--thumbnails", "3")) == 6
    (tmp_path / "t.jsonl").write_text("\n".join([*rows[:2], rows[1], *rows[3:]]))  # the third is another now
    again = reported(predictions, "--thumbnails", "3")
    assert pictures_in(again) == 5
    assert "which is not at hand" in again.text


def test_pictures_that_are_not_there_and_ones_that_are_elsewhere(
    photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    predictions = scored(Path("photos"), vit, tmp_path, limit=6)
    (tmp_path / "moved").mkdir()
    shutil.move(photos, tmp_path / "moved")
    page = reported(predictions, "--thumbnails", "3")
    assert (pictures_in(page), "No such file: " in page.text) == (0, True)
    assert pictures_in(reported(predictions, "--thumbnails", "3", "--images", tmp_path / "moved")) == 6


def test_pictures_are_looked_for_beside_the_predictions_and_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record(n, f"imgs/{n}.jpg", ("can", 0.5)) for n in range(4)]
    (tmp_path / "imgs").mkdir()
    predictions, out = write(tmp_path / "p.jsonl", records), tmp_path / "r.html"
    monkeypatch.chdir("/")
    done = invoke("report", predictions, "--out", out)
    trouble = "none of 4 pictures was found; the first: No such file: /imgs/0.jpg"
    assert trouble in done.stderr
    page = Page(out.read_text())
    assert f"Pictures: {trouble}" in page.text
    assert "Pictures by class" not in page.text
    assert page.data["links"] == {"start": None, "others": {}}
    for n in range(3):
        (tmp_path / "imgs" / f"{n}.jpg").write_bytes(jpeg(n))
    done = invoke("report", predictions, "--out", out)
    page = Page(out.read_text())
    assert pictures_in(page) == 3
    assert "1 picture of 4 could not be had; the first: No such file: " in done.stderr
    assert page.data["links"] == {"start": f"{tmp_path.as_uri()}/", "others": {"3": None}}


def test_the_page_holds_so_many_pictures_one_of_each_class_first_and_links_to_the_rest(tmp_path: Path) -> None:
    for n in range(30):
        (tmp_path / f"{n} %.jpg").write_bytes(jpeg(n % 3))
    records = [record(n, f"{n} %.jpg", (LABELS[0 if n < 26 else n - 25], 0.5 + n / 100)) for n in range(30)]
    records += [record(30, "https://h/30.jpg?a=b"), record(31, "https://u:***@h/x.jpg")]
    records += [record(32, "30.jpg", error="broken"), record(33, None)]
    predictions = write(tmp_path / "p.jsonl", records)
    page = reported(predictions, "--gallery", "5", "--thumbnails", "0")
    assert (len(page.pictures), page.data["pictures"]) == (5, {})
    assert page.tags["h3"] == 5  # one of each class
    assert page.data["links"]["start"] == f"{tmp_path.as_uri()}/"
    assert page.data["links"]["others"] == {"31": None, "32": None}
    page = reported(predictions, "--gallery", "20", "--thumbnails", "0")
    assert pictures_in(page) == 20
    assert [int(place) for place in page.data["pictures"]] == [*range(3, 13)]  # the others, in the order of the file
    assert reported(predictions, "--gallery", "0").pictures == []


def test_no_picture_has_a_rank_that_it_has_not(tmp_path: Path) -> None:
    scores = {"jar": [0.92, 0.89, 0.46], "can": [0.99, 0.45, 0.41, 0.40], "cup": [0.8]}
    named = [(label, score) for label, of_label in scores.items() for score in of_label]
    for n in range(len(named)):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n))
    predictions = write(tmp_path / "p.jsonl", [record(n, f"{n}.jpg", best) for n, best in enumerate(named)])

    def by_class(*options: str) -> str:
        return reported(predictions, *options).text.split(" One opens by a click. ")[1].split(" Least sure ")[0].strip()

    assert by_class("--thumbnails", "3") == (
        "can 4 images surest 0.99 0.45 least sure 0.40 0.41 jar 3 images surest 0.92 0.89 least sure 0.46 "
        "cup 1 image surest 0.80"
    )
    few = reported(predictions, "--gallery", "3")  # all of them go to the least sure: one of each class
    assert "surest 0.46" not in few.text
    assert "The page holds the pictures of 3 of 8 scored images" in few.text
    assert "one of each class before a second of it" in few.text
    few = reported(predictions, "--gallery", "2")
    assert ": 1 of 3 classes is not among the pictures by class" in few.text
    assert "The page holds" not in reported(predictions).text


def test_links_lead_nowhere_outside_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = [tmp_path / "in" / "a.jpg", tmp_path / "b.jpg"]
    for name in names:
        name.write_bytes(jpeg(0))
    records = [record(n, str(name), ("can", 0.5)) for n, name in enumerate(names)]
    page = reported(write(tmp_path / "p.jsonl", records), "--root", tmp_path / "in")
    assert page.data["links"] == {"start": "file://", "others": {"1": None}}
    assert pictures_in(page) == 1


def test_a_thousand_pictures_of_noise_are_under_30_megabytes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    assert len(as_uri(noise)) < 29_000


def test_urls_are_fetched_only_if_asked_for(server: str, vit: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("".join(f"{server}/0{n}.jpg\n" for n in range(4)))
    predictions = scored(tmp_path / "t.txt", vit, tmp_path)
    assert "only with --fetch" in reported(predictions).text
    assert pictures_in(reported(predictions, "--fetch", "--allow-private-hosts")) == 4


def test_an_image_that_kills_its_decoder_is_a_missing_picture(
    photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions = scored(photos, vit, tmp_path, limit=4)
    (photos / "02.jpg").write_bytes(b"crash")

    def crashing(data: bytes, recipe: Recipe, limits: Limits, **more: Any) -> Any:
        if data == b"crash":
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGSEGV)
        return decoding.decode(data, recipe, limits, **more)

    monkeypatch.setattr(worker, "decode", crashing)
    page = reported(predictions)
    assert (pictures_in(page), "its decoder crashed (SIGSEGV)" in page.text) == (3, True)


def test_a_line_of_pixels_is_not_blown_up(tmp_path: Path) -> None:
    photo(60_000, 1).save(tmp_path / "line.png")
    recipe = Recipe(resize=224, resample=2, crop=(224, 224), rescale_factor=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(DecodeError, match="60000x1 becomes more than 178,956,970 pixels when resized"):
        decode((tmp_path / "line.png").read_bytes(), recipe, Limits())


# --- results read back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_every_format_with_names_is_read_back(format: str, photos: Path, vit: Path, tmp_path: Path) -> None:
    (photos / "07.jpg").write_bytes(b"no image")
    as_jsonl = scored(photos, vit, tmp_path)
    as_other = scored(photos, vit, tmp_path, out=f"p.{format}")
    assert list(read_records(as_other)) == list(read_records(as_jsonl)) == read_jsonl(as_jsonl)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", "[[]]"),
        ("p.jsonl", "not json"),
        ("p.jsonl", "[]"),
        ("p.jsonl", '{"index": 0, "image": "a", "predictions": [{"label": "a", "score": NaN}]}'),
        ("p.jsonl", '{"index": 0, "image": "a", "predictions": [{"label": "a", "score": 1e308}]}'),
        ("p.jsonl", '{"index": 0, "image": "a", "predictions": [{"label": "a", "score": -0.1}]}'),
        ("p.jsonl", '{"index": 0, "image": "a", "predictions": [{"label": "a", "score": true}]}'),
        ("p.jsonl", '{"index": 0, "image": "a", "predictions": [{"label": "a", "score": 1%s}]}' % ("0" * 400)),
        ("p.jsonl", '{"index": 0, "image": "a", "image_bytes": 5, "predictions": []}'),
        ("p.jsonl", '{"index": 0, "image": "a", "predictions": [], "error": "x"}'),
        ("p.jsonl", '{"index": 0, "image": 5, "predictions": []}'),
        ("p.csv", "index,image\n0,a\n"),
        ("p.csv", "index,image,predictions,error_type,error_message\nx,a,[],,\n"),
        ("p.csv", "index,image,predictions,error_type,error_message\n0,a,[],,\n1,b"),
        ("p.csv", "index,image,predictions,error_type,error_message\n0,a,[],,,more\n"),
        ("p.parquet", "PAR1"),
    ],
)
def test_what_is_no_file_of_predictions_is_wrong_usage(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=name):
        list(read_records(tmp_path / name))
    done = invoke("report", tmp_path / name, "--out", tmp_path / "r.html")
    assert done.exit_code == 2
    assert not (tmp_path / "r.html").exists()


def test_a_run_report_of_another_file_is_not_believed(
    photos: Path, vit: Path, tmp_path: Path, messages: list[str]
) -> None:
    predictions = scored(photos, vit, tmp_path, limit=4)
    assert read_run_report(predictions)
    predictions.write_bytes(predictions.read_bytes() * 2)
    assert read_run_report(predictions) is None
    assert "is of another file" in messages[-1]


@pytest.mark.parametrize(
    "odd",
    [
        {"images_per_second": "fast"},
        {"seconds": [1]},
        {"seconds": {"total": "1"}},
        {"versions": ["torch"]},
        {"settings": {"commit": 5}},
        {"settings": {"recipe": {"resample": []}}},
        {"settings": {"recipe": {"mean": ["x"]}}},
        {"settings": {"threshold": float("nan")}},
        {"settings": {"limit": "x"}},
        {"settings": None},
        {"counts": [1]},
        {"counts": {"passed_over": [".mov"]}},
        {"counts": {"passed_over": {".mov": "1"}}},
    ],
    ids=str,
)
def test_a_run_report_of_odd_types_ends_nothing(odd: Json, tmp_path: Path, messages: list[str]) -> None:
    predictions = write(tmp_path / "p.jsonl", [record(0, "a.jpg", ("can", 0.9))])
    run = {"output": {"bytes": predictions.stat().st_size}, "settings": {}}
    (tmp_path / "p.jsonl.run.json").write_text(json.dumps(run))
    assert read_run_report(predictions) == run
    (tmp_path / "p.jsonl.run.json").write_text(json.dumps(run | odd))
    assert read_run_report(predictions) is None
    assert "can't be read" in messages[-1]


# --- the few out of many --------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.1, 0.5, 0.9, 1.0])), st.integers(0, 5))
def test_the_best_are_the_best_and_equals_the_first(values: list[float], size: int) -> None:
    best = Best[int](size)
    for place, value in enumerate(values):
        best.offer(value, place)
    assert best.ranked() == sorted(range(len(values)), key=lambda place: -values[place])[:size]


@given(st.lists(st.sampled_from("aabc")))
def test_taking_turns_loses_none_and_each_kind_is_there_before_the_second_of_one(kinds: list[str]) -> None:
    items = list(enumerate(kinds))
    turns = take_turns(items, lambda item: item[1])
    assert sorted(turns) == items
    assert {kind for _, kind in turns[: len(set(kinds))]} == set(kinds)
    for kind in set(kinds):
        assert [item for item in turns if item[1] == kind] == [item for item in items if item[1] == kind]


def test_a_sample_is_fair() -> None:
    many = Sample[int](1000)
    for item in range(10_000):
        many.offer(item)
    assert 4700 < sum(many.kept) / 1000 < 5300
    assert len(set(many.kept)) == 1000


# --- one image ------------------------------------------------------------------------------------------------------


def test_plot_draws_one_image(vit: Path, photos: Path, tmp_path: Path) -> None:
    done = invoke("plot", photos / "03.jpg", "--model", vit, "--top-k", "all", "--out", tmp_path / "p.png")
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.format == "PNG"
        assert picture.width == 1200
    records = read_jsonl(scored(photos / "03.jpg", vit, tmp_path))
    best = records[0]["predictions"][0]
    assert f"{best['label']} {best['score']:.4f}: " in done.stderr
    (photos / "04.jpg").write_bytes(b"broken")
    for image, problem, status in (
        (photos / "04.jpg", "not an image", 2),
        (photos / "none.jpg", "no such file", 2),
        (photos, "is a folder; give one image", 2),
    ):
        failed = invoke("plot", image, "--model", vit, "--out", tmp_path / "q.png")
        assert (failed.exit_code, problem in failed.stderr) == (status, True)
    assert invoke("plot", "ftp://h/x.jpg", "--model", vit, "--out", tmp_path / "q.png").exit_code == 2
    assert not (tmp_path / "q.png").exists()


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def without_jinja(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("deit_batch.report"):
            raise ModuleNotFoundError(name="jinja2")
        return real(name, *args, **more)

    predictions = write(tmp_path / "p.jsonl", [record(0, "a.jpg", ("can", 0.9))])
    monkeypatch.setattr(builtins, "__import__", without_jinja)
    done = invoke("report", predictions, "--out", tmp_path / "r.html")
    assert done.exit_code == 2
    assert "this needs jinja2: pip install '.[report]' in a clone of deit-batch" in done.stderr


def test_the_demo_is_reported(tmp_path: Path) -> None:
    """As in the docs: the sample pictures, their folders' names for labels."""
    done = invoke("score", "--input", EXAMPLES, "--model", "demo", "--out", tmp_path / "p.jsonl", "--quiet")
    assert done.exit_code == 0
    page = reported(tmp_path / "p.jsonl", "--labels", EXAMPLES)
    assert "Surest mistakes" in page.text
