"""What lies among images and is none is counted by its ending; photos among it are a warning that nobody can miss."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from helpers import deit_batch, jpeg, read_json, read_jsonl, scored
from hypothesis import given
from hypothesis import strategies as st
from made_up_results import Page

from deit_batch import score
from deit_batch.errors import UsageError
from deit_batch.input.kinds import IMAGES
from deit_batch.input.open import open_source
from deit_batch.input.passed_over import (
    MOST_KINDS,
    OTHER_ENDINGS,
    PHOTOS,
    WITHOUT_ENDING,
    counts_of,
    ending_of,
    files_in,
    pass_over,
    photos_in,
    warn_of_photos,
)
from deit_batch.io import counts

NAMES = ["1.jpg", "2.NEF", "3.nef", "4.mov", "5", "6.jpg?width=300", "7.jpg_original", "8.", ".hidden.jpg"]
PASSED_OVER = {
    "hidden": 1, ".nef": 2, ".mov": 1, WITHOUT_ENDING: 2, ".jpg…": 1, ".jpg_original": 1,
}  # fmt: skip
WARNING = (
    "photos were passed over: 2 .nef, 1 .jpg…; to have them read, convert them to JPEG or PNG and rename those that "
    "end in more than .jpg or the like"
)


@pytest.fixture
def camera(tmp_path: Path) -> Path:
    """A folder with a photo and what else a camera, a browser and an editor leave."""
    folder = tmp_path / "camera"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(jpeg())
    return folder


@pytest.mark.parametrize("spec", ["camera", "camera/", "camera/*", "./**/*"])
def test_a_folder_and_a_glob_count_by_ending(spec: str, camera: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(camera.parent)
    source = open_source(spec)
    assert [os.path.basename(str(reference.image)) for reference in source.references] == ["1.jpg"]
    expected = Counter(PASSED_OVER)
    expected["folders"] += "**" in spec
    assert source.passed_over == +expected


def test_the_summary_the_report_and_the_page_count_it_and_quiet_lets_the_warning_through(camera: Path) -> None:
    run = ("score", "--input", "camera", "--model", "demo", "--out", "p.jsonl")
    first = deit_batch(*run, cwd=camera.parent)
    assert "1 of 1 image scored, 8 passed over (2 .nef, 2 without an ending, " in first.stderr
    assert first.stderr.count(WARNING) == 1
    assert read_json(camera.parent / "p.jsonl.run.json")["counts"]["passed_over"] == PASSED_OVER
    for again in ([], ["--fresh"]):
        assert deit_batch(*run, "--quiet", *again, cwd=camera.parent).stderr == f"deit-batch: {WARNING}\n"
    as_json = deit_batch(*run, "--quiet", "--fresh", "--log-format", "json", cwd=camera.parent)
    assert json.loads(as_json.stderr)["message"] == WARNING
    assert deit_batch("report", "p.jsonl", "--out", "r.html", cwd=camera.parent).returncode == 0
    page = Page((camera.parent / "r.html").read_text())
    assert "passed over 8" in page.text
    assert "Photos that were not read, and are in no figure here: 2 .nef, 1 .jpg…." in page.text


def test_embed_evaluate_finetune_and_python_warn_too(camera: Path, messages: list[str]) -> None:
    for name in ("a", "b"):
        (camera / name).mkdir()
        for number in range(3):
            (camera / name / f"{number}.jpg").write_bytes(jpeg(number + 10 * (name == "b")))
        (camera / name / "x.jxl").touch()
    for command in (
        ("embed", "--out", "e.npy"),
        ("evaluate", "--out", "evaluation", "--label-map", "map.json"),
        ("finetune", "--out", "tuned", "--max-steps", "1", "--freeze-backbone"),
    ):
        (camera.parent / "map.json").write_text('{"a": "Bag", "b": "Coat"}')
        done = deit_batch(*command, "--input", "camera", "--model", "demo", "--quiet", cwd=camera.parent)
        assert "photos were passed over: 2 .nef, 2 .jxl, 1 .jpg…; " in done.stderr, done.stderr
    found = camera.parent / "evaluation"
    assert read_json(found / "metrics.json")["passed_over"][".jxl"] == 2
    told = "photos that were not read, and are in no figure here: 2 .nef, 2 .jxl, 1 .jpg…"
    assert told in (found / "report.md").read_text()
    assert told in Page((found / "report.html").read_text()).text
    again = ("--predictions", "evaluation/predictions.jsonl", "--label-map", "map.json", "--out", "again")
    assert deit_batch("evaluate", *again, "--input", "camera", cwd=camera.parent).returncode in (0, 3)
    assert told in (camera.parent / "again" / "report.md").read_text()
    list(score(str(camera), model="demo", workers=0))
    assert [text for text in messages if text.startswith("photos were passed over: ")]


def test_what_is_no_photo_is_counted_and_no_warning(
    photos: Path, vit: Path, tmp_path: Path, messages: list[str]
) -> None:
    for name in ("notes.md", "x.mov", "Thumbs.db", "a.jpg_original", "a.jpeg~"):
        (photos / name).touch()
    out = scored(photos, vit, tmp_path)
    assert len(read_jsonl(out)) == 40
    assert not [text for text in messages if "photos were passed over" in text]


def test_one_is_told_as_one() -> None:
    passed_over = Counter({"folders": 1, "folders seen under another name": 2, ".mov": 1})
    assert counts_of(passed_over) == "2 folders seen under another name, 1 folder, 1 .mov"
    assert files_in(passed_over) == 1


def test_where_all_are_passed_over_the_error_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.CR2").touch()
    with pytest.raises(UsageError, match=r"holds no image \(1 \.cr2\).*to have its photos read, convert them"):
        open_source(str(tmp_path))


@given(st.lists(st.text(st.characters(exclude_characters="/\0"), max_size=30), max_size=300))
def test_whatever_names_there_are_few_kinds_are_told_apart_and_none_is_lost(names: list[str]) -> None:
    found: Counter[str] = Counter()
    for name in names:
        pass_over(found, ending_of(name))
    assert found.total() == len(names)
    assert len(found) <= MOST_KINDS + 1
    assert all(len(kind) <= 20 and kind.isprintable() for kind in found)
    json.dumps(found).encode()


def test_photos_are_told_apart_behind_any_number_of_endings() -> None:
    found: Counter[str] = Counter()
    for number in range(10_000):
        pass_over(found, ending_of(f"x.{number}"))
    pass_over(found, ending_of("IMG_1.HEIC"))
    assert (len(found), found[OTHER_ENDINGS]) == (MOST_KINDS + 2, 10_000 - MOST_KINDS)
    assert photos_in(found) == {".heic": 1}
    assert counts(found, most=2) == "9,900 of other endings, 1 .0, 100 of other kinds"


def test_an_ending_that_is_read_is_no_lost_photo(messages: list[str]) -> None:
    assert not IMAGES & PHOTOS
    warn_of_photos(Counter({"hidden": 1, ".mov": 2}))
    assert messages == []
