"""Images into folders: each in one, none lost, none twice, nothing elsewhere; whatever a label is called."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import COMMAND, EXAMPLES, deit_batch
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.report.folder_names import file_names, folder_name, is_plain
from deit_batch.report.sorting import STATE

HOSTILE = [
    "../x", "a/b", "/etc", "", ".", "..", "x\0y", "l" * 300, "é" * 200, "CON", "nul.txt", "com1 .a", "a.", " a", "a\\b",
    "c:", "a\nb", "\ud800", "review", "Failed", "no-label", STATE, "cat ~0123456789ab", "e\u0301", "\u202egnp", "*",
    "~",
]  # fmt: skip


def write(path: Path, records: list[tuple[str, str | None, float]]) -> None:
    """Predictions of (image, label, score); a label of None is a failure."""
    lines = []
    for index, (image, label, score) in enumerate(records):
        line: dict[str, Any] = {"index": index, "image": image, "predictions": []}
        if label is None:
            line["error"] = {"type": "DecodeError", "message": "no image"}
        else:
            line["predictions"] = [{"label": label, "score": score}]
        lines.append(json.dumps(line) + "\n")
    path.write_text("".join(lines))


def files(folder: Path) -> dict[str, bytes]:
    """All files below it, but those of the work."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if not path.is_dir()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(STATE)}


@pytest.fixture
def pile(tmp_path: Path) -> Path:
    """60 small files in three folders, by the same names in each, and predictions of three labels."""
    records: list[tuple[str, str | None, float]] = []
    for number in range(60):
        path = tmp_path / "in" / str(number % 3) / f"{number // 3:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"picture {number}".encode() * 1000)
        records.append((f"in/{path.parent.name}/{path.name}", ["cat", "dog", None][number % 7 % 3], number / 60))
    write(tmp_path / "p.jsonl", records)
    return tmp_path


def expected(pile: Path, *, below: float = 0.0) -> dict[str, list[bytes]]:
    """What is to be in each folder."""
    found: dict[str, list[bytes]] = {}
    for line in (pile / "p.jsonl").read_text().splitlines():
        record = json.loads(line)
        number = record["index"]
        best = record["predictions"][0] if record["predictions"] else None
        folder = "failed" if best is None else "review" if best["score"] < below else best["label"]
        found.setdefault(folder, []).append(f"picture {number}".encode() * 1000)
    return {folder: sorted(data) for folder, data in found.items()}


def in_folders(out: Path) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for name, data in files(out).items():
        found.setdefault(os.path.dirname(name), []).append(data)
    return {folder: sorted(data) for folder, data in found.items()}


@pytest.mark.parametrize("by", ["link", "copy", "move"])
def test_each_image_is_in_its_folder_and_a_second_run_changes_nothing(by: str, pile: Path) -> None:
    arguments = ["sort", "p.jsonl", "--out", "out", "--by", by, "--below", "0.5=review"]
    before, right = files(pile), expected(pile, below=0.5)
    dry = deit_batch(*arguments, "--dry-run", cwd=pile)
    assert dry.returncode == 0
    assert dict(line.split("\t")[::-1] for line in dry.stdout.splitlines()) == {
        folder: str(len(data)) for folder, data in right.items()
    }
    assert files(pile) == before
    done = deit_batch(*arguments, cwd=pile)
    assert (done.returncode, done.stdout) == (0, "")
    assert "deit-batch: 60 images " in done.stderr
    assert in_folders(pile / "out") == right
    assert len(files(pile / "in")) == (0 if by == "move" else 60)
    once = files(pile)
    again = deit_batch(*arguments, cwd=pile)
    assert again.returncode == 0
    assert "(60 of them before)" in again.stderr
    assert files(pile) == once


@pytest.mark.parametrize("by", ["link", "copy", "move"])
def test_killed_again_and_again_nothing_is_lost_or_twice(by: str, pile: Path) -> None:
    right, kills = expected(pile), 0
    for most in (1, 20, 40):
        process = subprocess.Popen([COMMAND, "sort", "p.jsonl", "--out", "out", "--by", by], cwd=pile)
        while process.poll() is None and len(files_there(pile / "out")) < most:
            pass
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait(60)
    assert kills
    there = [*files(pile / "in").values(), *files(pile / "out").values()]
    assert {b"picture %d" % number * 1000 for number in range(60)} == {*there}
    done = deit_batch("sort", "p.jsonl", "--out", "out", "--by", by, cwd=pile)
    assert done.returncode == 0, done.stderr
    assert in_folders(pile / "out") == right
    assert len(files(pile / "in")) == (0 if by == "move" else 60)


def files_there(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*/*") if path.parent.name != STATE]


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is no second file system here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_a_move_to_another_disk_and_one_that_died_before_it_removed(pile: Path, other_disk: Path) -> None:
    arguments = ["sort", "p.jsonl", "--out", str(other_disk / "out"), "--by", "move"]
    assert deit_batch(*arguments, cwd=pile).returncode == 0
    assert in_folders(other_disk / "out") == expected(pile)
    assert files(pile / "in") == {}
    (pile / "in/0/00.jpg").write_bytes(b"picture 0" * 1000)  # as after a kill between copying and removing
    (pile / "in/1/00.jpg").write_bytes(b"another one")
    done = deit_batch(*arguments, cwd=pile)
    assert done.returncode == 3
    assert "in/1/00.jpg is not sorted: another file was put in its place" in done.stderr
    assert files(pile / "in") == {"1/00.jpg": b"another one"}
    assert in_folders(other_disk / "out") == expected(pile)


def test_hostile_labels_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(len(HOSTILE)):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(b"%d" % number)
    write(tmp_path / "p.jsonl", [(f"in/{number}.jpg", label, 0.9) for number, label in enumerate(HOSTILE)])
    before = files(tmp_path)
    done = deit_batch("sort", "p.jsonl", "--out", "out", "--by", "copy", "--below", "0.5=review", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {name: data for name, data in files(tmp_path).items() if not name.startswith("out/")} == before
    found = files(tmp_path / "out")
    assert sorted(found.values()) == sorted(b"%d" % number for number in range(len(HOSTILE)))
    assert all(name.count("/") == 1 for name in found)
    assert len({os.path.dirname(name) for name in found}) == len(HOSTILE)
    assert not {"review", "failed", "no-label", "CON", ".."} & {os.path.dirname(name) for name in found}


@given(st.lists(st.text() | st.sampled_from(HOSTILE), unique=True, max_size=5))
def test_a_folder_name_is_one_plain_part_and_of_one_label(labels: list[str]) -> None:
    names = [folder_name(label, ("failed", "review", "no-label")) for label in labels]
    assert len(set(names)) == len(labels)
    for label, name in zip(labels, names, strict=True):
        assert os.path.basename(name) == name
        assert name not in ("", ".", "..", "failed", "review", "no-label")
        assert not name.startswith(".")
        assert len(name.encode()) <= 255
        assert "\0" not in name
        assert name == label or not is_plain(name)


@given(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=80))
def test_file_names_fit_and_differ(name: str) -> None:
    first, *others = file_names(f"/in/{name}")
    assert first == name
    for other in others:
        assert other != name
        assert "/" not in other
        assert len(os.fsencode(other)) <= 255


def test_what_can_not_be_sorted_is_counted_and_said(pile: Path) -> None:
    (pile / "in/link.jpg").symlink_to("0/00.jpg")
    (pile / "folder.jpg").mkdir()
    names = ["in/0/00.jpg", "in/0/00.jpg", "in/link.jpg", "folder.jpg", "gone.jpg", "https://a.example/b.jpg", "a\0b"]
    write(pile / "p.jsonl", [*((name, "cat", 0.9) for name in names), ("in/../in/0/00.jpg", "dog", 0.8)])
    said = "1 folder, 6 not sorted, 1 record of the same images: out"
    for more, moved in (["--dry-run"], "would be moved"), ([], "moved"), ([], "moved (1 of them before)"):
        done = deit_batch("sort", "p.jsonl", "--out", "out", "--by", "move", *more, cwd=pile)
        assert (done.returncode, done.stdout) == (3, "1\tcat\n" if more else "")
        assert f"1 image {moved}, {said}" in done.stderr
    assert files(pile / "out") == {"cat/00.jpg": b"picture 0" * 1000}
    assert (pile / "in/link.jpg").is_symlink()


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (["--out", "in"], 2, "is not empty, and no sort has made it"),
        (["--out", "p.csv"], 2, "is a file"),
        (["--out", "no/such/place"], 2, "there is no folder no"),
        (["--out", "new", "--failed", "../x"], 2, "--failed ../x: can't be the name of one folder"),
        (["--out", "new", "--below", "0.5=a/b"], 2, "--below a/b: can't be the name of one folder"),
        (["--out", "new", "--below", "0.5"], 2, "is not X=NAME"),
        (["--out", "new", "--below", "2=review"], 2, "is not X=NAME"),
        (["--out", "done", "--by", "copy"], 2, "done is sorted by other predictions or options"),
        (["--out", "done", "--below", "0.1=x"], 2, "done is sorted by other predictions or options"),
        (["--out", "done", "--images", "."], 2, "done is sorted by other predictions or options"),
        (["--out", "done", "--dry-run"], 2, "--dry-run: done has images already"),
        (["--out", "aside"], 1, "cat is a link"),
    ],
)
def test_what_is_refused_writes_nothing(arguments: list[str], status: int, why: str, pile: Path) -> None:
    assert deit_batch("sort", "p.jsonl", "--out", "done", cwd=pile).returncode == 0
    (pile / "p.csv").write_text("of somebody")
    (pile / "elsewhere").mkdir()
    (pile / "aside" / STATE).mkdir(parents=True)
    (pile / "aside/cat").symlink_to("../elsewhere")
    before = files(pile)
    done = deit_batch("sort", "p.jsonl", *arguments, cwd=pile)
    assert (done.returncode, done.stdout) == (status, "")
    assert why in done.stderr
    now = files(pile)
    assert {name: now[name] for name in now if not name.startswith(f"aside/{STATE}")} == before
    assert list((pile / "elsewhere").iterdir()) == []


def test_images_of_the_same_names_from_elsewhere_are_not_mixed_in(pile: Path) -> None:
    """Without --images, names start from where the command runs, and then from where the predictions are."""
    (pile / "p.jsonl").rename(pile / "in/p.jsonl")
    (pile / "other/in").mkdir(parents=True)
    arguments = ["sort", str(pile / "in/p.jsonl"), "--out", str(pile / "out"), "--by", "copy"]
    assert deit_batch(*arguments, cwd=pile).returncode == 0
    before = files(pile / "out")
    assert "(60 of them before)" in deit_batch(*arguments, cwd=pile).stderr
    (pile / "in/0").rename(pile / "other/in/0")
    done = deit_batch(*arguments, cwd=pile / "other")
    assert done.returncode == 2
    assert f"has {pile}/in/0/00.jpg, for which {pile}/other/in/0/00.jpg is found now: give another --out" in done.stderr
    assert files(pile / "out") == before


def test_images_of_a_run_over_a_table_and_ones_that_were_moved(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    pictures = sorted(EXAMPLES.glob("*/*.png"))[:3]
    for picture in pictures:
        (data / picture.name).write_bytes(picture.read_bytes())
    (data / "t.csv").write_text("image\n" + "".join(f"{picture.name}\n" for picture in pictures))
    arguments = ["--model", "demo", "--input", "data/t.csv", "--out", "p.jsonl", "--workers", "0"]
    assert deit_batch("score", *arguments, cwd=tmp_path).returncode == 0
    for more in ([], ["--images", "data"]):
        done = deit_batch("sort", "p.jsonl", "--out", f"out{len(more)}", "--by", "copy", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found = files(tmp_path / f"out{len(more)}").values()
        assert sorted(found) == sorted(picture.read_bytes() for picture in pictures)
