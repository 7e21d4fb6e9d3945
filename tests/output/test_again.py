"""Runs that build on earlier ones: --incremental, --retry-failed, and pictures that changed in between."""

from __future__ import annotations

import base64
import json
import os
import random
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import COMMAND, deit_batch, interrupted_after, jpeg, read_json, read_jsonl, scored, valid, wait_for_growth

from deit_batch import predictions, scorer
from deit_batch.errors import Interrupted, OutputError, UsageError
from deit_batch.limits import Limits
from deit_batch.output import file
from deit_batch.output.resume import Mode, StaleResult
from deit_batch.system import atomic
from deit_batch.system.logs import set_up_logging

SIGNED = "sv=2024-11-04&sr=b&sp=r&se={0}&sig={0}"
"""A link that is signed anew each night."""


def nightly(photos: Path, vit: Path, folder: Path, out: str = "p.jsonl", **options: Any) -> tuple[bytes, int]:
    """An incremental run: its result, and how many images it did not have to score."""
    path = scored(photos, vit, folder, out, incremental=True, **options)
    return path.read_bytes(), read_json(folder / f"{out}.run.json")["counts"]["kept"]


def full(photos: Path, vit: Path, folder: Path, out: str = "p.jsonl", **options: Any) -> bytes:
    """What a run that knows nothing gives."""
    (folder / "full").mkdir(exist_ok=True)
    return nightly(photos, vit, folder / "full", out, mode="fresh", **options)[0]


@pytest.fixture
def old_photos(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if they had lain there for a while: a file that is only just written is read again, to be sure."""
    monkeypatch.setattr("deit_batch.output.incremental._YOUNG_NS", 0)
    return photos


@pytest.mark.parametrize("out", ["p.jsonl", "p.parquet"])
def test_a_growing_folder_is_scored_night_by_night(old_photos: Path, vit: Path, tmp_path: Path, out: str) -> None:
    """New, changed, touched, vanished, mended and broken pictures, anywhere among the others."""
    photos = old_photos
    (photos / "11.jpg").write_bytes(b"broken")
    first, kept = nightly(photos, vit, tmp_path, out)
    assert (first, kept) == (full(photos, vit, tmp_path, out), 0)
    assert nightly(photos, vit, tmp_path, out) == (first, 39)

    (photos / "00a.jpg").write_bytes(jpeg(100))  # new
    (photos / "zz.jpg").write_bytes(jpeg(101))
    (photos / "05.jpg").write_bytes(jpeg(102))  # changed
    os.utime(photos / "06.jpg")  # touched
    (photos / "07.jpg").unlink()
    (photos / "11.jpg").write_bytes(jpeg(11))  # mended
    (photos / "20.jpg").write_bytes(b"broken")
    second, kept = nightly(photos, vit, tmp_path, out)
    assert read_json(tmp_path / f"{out}.run.json")["counts"]["vanished"] == 1  # what is broken now is still there
    assert (second, kept) == (full(photos, vit, tmp_path, out), 36)
    assert second != first


def test_any_history_gives_what_a_full_run_gives(old_photos: Path, vit: Path, tmp_path: Path) -> None:
    dice = random.Random(0)
    for _ in range(8):
        for _ in range(dice.randrange(1, 12)):
            path = old_photos / f"{dice.randrange(60):02}.jpg"
            match dice.randrange(3):
                case 0:
                    path.unlink(missing_ok=True)
                case 1:
                    path.write_bytes(jpeg(dice.randrange(200)))
                case 2:
                    path.write_bytes(b"broken")
        assert nightly(old_photos, vit, tmp_path)[0] == full(old_photos, vit, tmp_path)


def test_a_picture_replaced_by_one_of_the_same_size_and_time_is_seen(
    old_photos: Path, vit: Path, tmp_path: Path
) -> None:
    nightly(old_photos, vit, tmp_path)
    before = (old_photos / "03.jpg").stat()
    data = (old_photos / "04.jpg").read_bytes()
    (old_photos / "03.jpg").write_bytes(data + b"\0" * (before.st_size - len(data)))
    os.utime(old_photos / "03.jpg", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert nightly(old_photos, vit, tmp_path)[0] == full(old_photos, vit, tmp_path)


def test_a_file_that_has_just_changed_is_read_again(photos: Path, vit: Path, tmp_path: Path) -> None:
    """Its time of change could be that of the next change as well. Its content is the same, so its scores are kept."""
    first, _ = nightly(photos, vit, tmp_path)
    with sqlite3.connect(tmp_path / "p.jsonl.known") as database:
        assert database.execute("SELECT count(stamp) FROM known").fetchone() == (0,)
    assert nightly(photos, vit, tmp_path) == (first, 40)


def test_urls_and_inline_images_are_known_by_their_bytes(photos: Path, server: str, vit: Path, tmp_path: Path) -> None:
    import base64

    inline = [base64.b64encode(jpeg(number)).decode() for number in (1, 2)]
    table = tmp_path / "t.txt"
    signed = f"{server}/03.jpg?{SIGNED}"
    table.write_text("\n".join([signed.format("one"), inline[0], f"{server}/04.jpg", f"{server}/none.jpg"]))
    nightly(table, vit, tmp_path)
    table.write_text("\n".join([inline[1], signed.format("two"), inline[0], f"{server}/04.jpg"]))
    (photos / "04.jpg").write_bytes(jpeg(99))
    result, kept = nightly(table, vit, tmp_path)
    assert (result, kept) == (full(table, vit, tmp_path), 2)


def test_a_killed_run_has_kept_all_that_it_had_written(old_photos: Path, vit: Path, tmp_path: Path) -> None:
    """Not some seconds of it less: of a run that was killed with no warning."""
    (tmp_path / "t.txt").write_text("".join(f"{photo}\n" for photo in sorted(old_photos.iterdir())) * 500)
    command = ["score", "t.txt", "--model", str(vit), "--incremental", "--out", "p.jsonl", "--batch-size", "4"]
    with subprocess.Popen([COMMAND, *command], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        wait_for_growth(tmp_path / "p.jsonl.partial")
        process.kill()
    written = {record["image"] for record in map(json.loads, whole_lines(tmp_path / "p.jsonl.partial"))}
    (tmp_path / "t.txt").write_text("".join(f"{photo}\n" for photo in sorted(written)))
    _, kept = nightly(tmp_path / "t.txt", vit, tmp_path, batch_size=4)
    assert kept == len(written) > 0
    assert not list(tmp_path.glob("*-wal"))


def whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def test_a_table_keeps_its_columns_up_to_date(old_photos: Path, vit: Path, tmp_path: Path) -> None:
    table = old_photos / "t.csv"
    table.write_text("image,id\n01.jpg,a\n02.jpg,b\n02.jpg,twice\n")
    nightly(table, vit, tmp_path, keep=("id",))
    table.write_text("image,id\n02.jpg,c\n01.jpg,a\n")
    result, kept = nightly(table, vit, tmp_path, keep=("id",))
    assert [json.loads(line)["id"] for line in result.splitlines()] == ["c", "a"]
    assert (result, kept) == (full(table, vit, tmp_path, keep=("id",)), 2)


@pytest.mark.parametrize(
    "change", [{"top_k": 2}, {"limits": Limits(image_pixels=10)}, {"batch_size": 8}, {"model": "demo"}], ids=str
)
def test_another_setting_scores_everything_again(
    old_photos: Path, vit: Path, tmp_path: Path, change: dict[str, Any], messages: list[str]
) -> None:
    nightly(old_photos, vit, tmp_path)
    assert nightly(old_photos, vit, tmp_path, **change) == (full(old_photos, vit, tmp_path, **change), 0)
    assert any("not as before: everything is scored again" in message for message in messages)


def test_a_dead_incremental_run_is_no_obstacle_and_no_loss(
    old_photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the folder has changed since."""
    first, _ = nightly(old_photos, vit, tmp_path)
    for number in range(30):
        (old_photos / f"{number:02}.jpg").write_bytes(jpeg(100 + number))
    with pytest.raises(Interrupted), interrupted_after(5, monkeypatch):
        nightly(old_photos, vit, tmp_path)
    assert (tmp_path / "p.jsonl").read_bytes() == first
    (old_photos / "00.jpg").unlink()
    result, kept = nightly(old_photos, vit, tmp_path)
    assert (result, kept) == (full(old_photos, vit, tmp_path), 19 + 10)


def test_a_killed_incremental_run_loses_nothing_that_is_whole(old_photos: Path, vit: Path, tmp_path: Path) -> None:
    command = [COMMAND, "score", "--input", str(old_photos), "--model", str(vit), "--out", "p.jsonl", "--incremental"]
    command += ["--batch-size", "4", "--workers", "0", "--quiet"]
    expected = full(old_photos, vit, tmp_path)
    for seconds in (0.5, 2.0, 3.0, 3.5, 4.0):
        process = subprocess.Popen(command, cwd=tmp_path)
        time.sleep(seconds)
        process.kill()
        process.wait()
        if (tmp_path / "p.jsonl").exists():
            assert (tmp_path / "p.jsonl").read_bytes() == expected
    assert deit_batch(*command[1:], cwd=tmp_path).returncode == 0
    assert (tmp_path / "p.jsonl").read_bytes() == expected


def test_a_damaged_memory_is_made_anew(old_photos: Path, vit: Path, tmp_path: Path, messages: list[str]) -> None:
    first, _ = nightly(old_photos, vit, tmp_path)
    (tmp_path / "p.jsonl.known").write_bytes(b"SQLite format 3\0" + b"damaged " * 1000)
    assert nightly(old_photos, vit, tmp_path) == (first, 0)
    assert any("is damaged" in message for message in messages)


@pytest.mark.parametrize("mode", ["continue", "fresh"])
@pytest.mark.parametrize("ending", ["partial", "stamps", "known"])
def test_a_file_of_somebody_else_beside_the_result_stays(
    ending: str, mode: Mode, photos: Path, vit: Path, tmp_path: Path
) -> None:
    (tmp_path / f"p.jsonl.{ending}").write_text("notes of mine\n" * 1000)
    with pytest.raises(UsageError, match=rf"p\.jsonl\.{ending} is there"):
        scored(photos, vit, tmp_path, mode=mode, incremental=ending == "known")
    assert (tmp_path / f"p.jsonl.{ending}").read_text() == "notes of mine\n" * 1000
    assert not (tmp_path / "p.jsonl").exists()


def test_vanished_images_are_counted_and_forgotten_or_if_they_are_most_remembered_for_a_night(
    old_photos: Path, vit: Path, tmp_path: Path, messages: list[str]
) -> None:
    def known() -> int:
        nightly(old_photos, vit, tmp_path)
        with sqlite3.connect(tmp_path / "p.jsonl.known") as database:
            return int(database.execute("SELECT count(*) FROM known").fetchone()[0])

    assert known() == 40
    (old_photos / "39.jpg").unlink()
    assert (known(), messages) == (39, [])
    for number in range(29):
        (old_photos / f"{number:02}.jpg").unlink()
    assert known() == 39
    assert valid(read_json(tmp_path / "p.jsonl.run.json"), "run-report")["counts"]["vanished"] == 29
    assert messages == ["29 images of the last result are no longer in the input, which has 10: is all of it there?"]
    for number in range(2):
        (old_photos / f"{number:02}.jpg").write_bytes(jpeg(number))  # some are back
    assert known() == 12  # nobody has seen the others for two nights
    for number in range(2):
        (old_photos / f"{number:02}.jpg").unlink()
    nightly(old_photos, vit, tmp_path, top_k=1)  # with other settings, nothing is known but that they were there
    assert read_json(tmp_path / "p.jsonl.run.json")["counts"]["vanished"] == 2


def test_what_a_request_asks_for_is_neither_kept_for_others_nor_continued_with_another(
    old_photos: Path, vit: Path, tmp_path: Path
) -> None:
    document = old_photos / "r.json"

    def asking(params: str) -> list[int]:
        document.write_text(f'{{"input_data": ["00.jpg", "01.jpg"]{params}}}')
        result, _ = nightly(document, vit, tmp_path)
        return [len(json.loads(line)["predictions"]) for line in result.splitlines()]

    assert asking(', "params": {"top_k": 1}') == [1, 1]
    assert asking("") == [5, 5]
    assert asking(', "params": {"top_k": 2}') == [2, 2]
    scored(document, vit, tmp_path, "plain.jsonl")
    assert read_jsonl(tmp_path / "plain.jsonl")[0]["params"] == {"top_k": 2}
    document.write_text('{"input_data": ["00.jpg", "01.jpg"], "params": {"top_k": 3}}')
    with pytest.raises(UsageError, match="its input has changed"):
        scored(document, vit, tmp_path, "plain.jsonl")


def test_an_incremental_run_overwrites_only_results(photos: Path, vit: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("precious")
    with pytest.raises(UsageError, match="is not what its run has left there"):
        nightly(photos, vit, tmp_path)
    assert (tmp_path / "p.jsonl").read_text() == "precious"


@pytest.mark.parametrize("out", ["p.jsonl", "p.csv", "p.parquet"])
def test_what_a_plain_run_has_found_is_adopted(
    photos: Path, vit: Path, tmp_path: Path, messages: list[str], out: str
) -> None:
    (photos / "11.jpg").write_bytes(b"broken")
    plain = scored(photos, vit, tmp_path, out).read_bytes()
    assert nightly(photos, vit, tmp_path, out) == (plain, 39)
    assert any("says of 39 images counts" in message for message in messages)

    (photos / "05.jpg").unlink()
    (photos / "05.jpg").write_bytes(jpeg(102))
    (photos / "00a.jpg").write_bytes(jpeg(100))
    assert nightly(photos, vit, tmp_path, out) == (full(photos, vit, tmp_path, out), 38)


def test_what_changed_before_it_was_adopted_is_scored_again(photos: Path, vit: Path, tmp_path: Path) -> None:
    scored(photos, vit, tmp_path)
    (photos / "05.jpg").unlink()
    (photos / "05.jpg").write_bytes(jpeg(102))
    assert nightly(photos, vit, tmp_path) == (full(photos, vit, tmp_path), 39)


def test_results_that_say_nothing_of_their_images_or_of_other_settings_are_not_adopted(
    photos: Path, vit: Path, tmp_path: Path, messages: list[str]
) -> None:
    scored(photos, vit, tmp_path)
    (tmp_path / "p.jsonl.stamps").unlink()
    assert nightly(photos, vit, tmp_path) == (full(photos, vit, tmp_path), 0)
    scored(photos, vit, tmp_path, "q.jsonl")
    assert nightly(photos, vit, tmp_path, "q.jsonl", top_k=2) == (full(photos, vit, tmp_path, "q.jsonl", top_k=2), 0)
    said = f"{tmp_path}/q.jsonl was made with other settings or versions (top_k): everything is scored again"
    assert said in messages


def test_a_result_that_is_not_read_back_is_scored_again_and_said(
    photos: Path, vit: Path, tmp_path: Path, messages: list[str]
) -> None:
    plain = scored(photos, vit, tmp_path, "p.json").read_bytes()
    assert nightly(photos, vit, tmp_path, "p.json") == (plain, 0)
    assert any(message.endswith("everything is scored again") for message in messages)


def test_inline_images_are_adopted_by_their_digest(photos: Path, vit: Path, tmp_path: Path) -> None:
    rows = [{"image": base64.b64encode(jpeg(number)).decode()} for number in range(6)]
    table = tmp_path / "t.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = scored(table, vit, tmp_path).read_bytes()
    assert nightly(table, vit, tmp_path) == (plain, 6)


# --- retry-failed -------------------------------------------------------------------------------------------------


def test_only_what_failed_is_scored_again(photos: Path, vit: Path, tmp_path: Path, messages: list[str]) -> None:
    for number in (3, 17, 18):
        (photos / f"{number:02}.jpg").write_bytes(b"broken")
    first = scored(photos, vit, tmp_path).read_bytes().splitlines()
    (photos / "03.jpg").write_bytes(jpeg(3))
    (photos / "18.jpg").write_bytes(jpeg(18))
    (photos / "30.jpg").unlink()
    (photos / "30.jpg").write_bytes(b"broken since, but scored before")
    second = scored(photos, vit, tmp_path, mode="retry-failed").read_bytes().splitlines()
    assert [place for place in range(40) if first[place] != second[place]] == [3, 18]
    assert any("1 image has changed" in message and "30.jpg first" in message for message in messages)
    assert json.loads(second[3])["predictions"]
    assert read_json(tmp_path / "p.jsonl.run.json")["counts"]["failed"] == 1
    assert scored(photos, vit, tmp_path).read_bytes().splitlines() == second  # and that run is finished now


def test_a_retry_that_died_goes_on(photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = [(photos / f"{number:02}.jpg").read_bytes() for number in range(20)]
    for number in range(20):
        (photos / f"{number:02}.jpg").write_bytes(b"broken")
    first = scored(photos, vit, tmp_path).read_bytes()
    for number, data in enumerate(good):
        (photos / f"{number:02}.jpg").write_bytes(data)
    with pytest.raises(Interrupted), interrupted_after(2, monkeypatch):
        scored(photos, vit, tmp_path, mode="retry-failed")
    assert (tmp_path / "p.jsonl").read_bytes() == first
    second = scored(photos, vit, tmp_path).read_bytes()  # the plain command knows what was under way
    assert second.splitlines()[20:] == first.splitlines()[20:]
    assert all(record["predictions"] for record in read_jsonl(tmp_path / "p.jsonl"))


def test_what_changed_is_scored_again_where_a_result_must_be_current_also_after_a_run_that_died(
    photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scored(photos, vit, tmp_path).read_bytes().splitlines()
    time.sleep(0.05)
    changed = [2, 3, 4, *range(30, 38)]
    for number in changed:
        (photos / f"{number:02}.jpg").write_bytes(jpeg(100 + number))
    with pytest.raises(StaleResult, match=r"11 images have changed since .*02\.jpg first"):
        scored(photos, vit, tmp_path, mode="require-current")
    with pytest.raises(Interrupted), interrupted_after(1, monkeypatch):
        scored(photos, vit, tmp_path, mode="retry-changed")
    second = scored(photos, vit, tmp_path, mode="require-current").read_bytes().splitlines()
    assert [place for place in range(40) if first[place] != second[place]] == changed
    assert scored(photos, vit, tmp_path, mode="require-current").read_bytes().splitlines() == second


def test_a_retry_where_nothing_failed_does_nothing(photos: Path, vit: Path, tmp_path: Path) -> None:
    before = scored(photos, vit, tmp_path).stat()
    assert scored(photos, vit, tmp_path, mode="retry-failed").stat().st_ino == before.st_ino


def test_a_retry_of_another_input_is_refused(photos: Path, vit: Path, tmp_path: Path) -> None:
    (photos / "03.jpg").write_bytes(b"broken")
    first = scored(photos, vit, tmp_path).read_bytes()
    (photos / "02.jpg").rename(photos / "02a.jpg")
    with pytest.raises(UsageError, match="the input has changed"):
        scored(photos, vit, tmp_path, mode="retry-failed")
    assert (tmp_path / "p.jsonl").read_bytes() == first


def test_a_retry_over_an_input_that_has_grown_or_shrunk_is_refused(photos: Path, vit: Path, tmp_path: Path) -> None:
    (photos / "03.jpg").write_bytes(b"broken")
    first = scored(photos, vit, tmp_path).read_bytes()
    (photos / "zz.jpg").write_bytes(jpeg(100))
    with pytest.raises(UsageError, match="its input has become longer since"):
        scored(photos, vit, tmp_path, mode="retry-failed")
    (photos / "zz.jpg").unlink()
    (photos / "39.jpg").unlink()
    with pytest.raises(UsageError, match="its input has become shorter since"):
        scored(photos, vit, tmp_path, mode="retry-failed")
    assert (tmp_path / "p.jsonl").read_bytes() == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "p.csv", "--retry-failed"], "can't read csv files back"),
        (["--out", "-", "--incremental"], "stdout keeps nothing"),
        (["--out", "p.jsonl", "--retry-failed", "--incremental"], "goes neither with --fresh nor with --incremental"),
    ],
)
def test_what_can_not_be_had_is_wrong_usage(photos: Path, tmp_path: Path, options: list[str], message: str) -> None:
    done = deit_batch("score", "--input", photos, "--model", "demo", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


# --- pictures that change between runs ----------------------------------------------------------------------------


def test_a_picture_replaced_since_it_was_scored_is_scored_again(
    photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    with pytest.raises(Interrupted), interrupted_after(5, monkeypatch):
        scored(photos, vit, tmp_path)
    time.sleep(0.05)
    (photos / "07.jpg").write_bytes(jpeg(77))
    result = scored(photos, vit, tmp_path).read_bytes()
    assert any("07.jpg has changed since it was scored" in message for message in messages)
    assert result == scored(photos, vit, tmp_path, mode="fresh").read_bytes()


def test_a_picture_replaced_since_a_run_was_finished_is_told_also_with_quiet(
    photos: Path, vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = scored(photos, vit, tmp_path).read_bytes()
    time.sleep(0.05)
    (photos / "07.jpg").write_bytes(jpeg(77))
    set_up_logging(quiet=True, verbose=False)
    assert scored(photos, vit, tmp_path).read_bytes() == before
    (told,) = capsys.readouterr().err.splitlines()
    assert "1 image has changed" in told
    assert "07.jpg first" in told


@contextmanager
def replaced_after(batches: int, photo: Path, monkeypatch: pytest.MonkeyPatch, *, then_killed: bool) -> Iterator[None]:
    """The photo is another one as soon as so many batches have been scored; the run goes on, and may be stopped later.
    Its times are those of the old one: nothing but the name's own change tells."""
    left = [batches]
    original = predictions.score_batch

    def counted(*args: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            new = photo.with_suffix(".new")
            new.write_bytes(jpeg(77))
            os.utime(new, ns=(photo.stat().st_atime_ns, photo.stat().st_mtime_ns))
            new.rename(photo)
        if left[0] == -3 and then_killed:
            os.kill(os.getpid(), 15)
        return original(*args)

    monkeypatch.setattr(scorer, "score_batch", counted)
    yield
    monkeypatch.undo()


@pytest.mark.parametrize("out", ["p.jsonl", "p.csv"])
def test_a_picture_replaced_while_the_run_goes_on_is_noticed_by_the_next(
    photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str], out: str
) -> None:
    """After its record was written, and before the last one was."""
    with pytest.raises(Interrupted), replaced_after(3, photos / "00.jpg", monkeypatch, then_killed=True):
        scored(photos, vit, tmp_path, out)
    result = scored(photos, vit, tmp_path, out).read_bytes()
    assert any("00.jpg has changed since it was scored" in message for message in messages)
    assert result == scored(photos, vit, tmp_path, f"new-{out}").read_bytes()
    messages.clear()
    assert scored(photos, vit, tmp_path, out).read_bytes() == result
    assert not any("changed" in message for message in messages)


@pytest.mark.parametrize("again", [{}, {"mode": "retry-failed"}], ids=str)
def test_a_picture_replaced_while_a_run_comes_to_its_end_is_told_by_the_next(
    photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str], again: dict[str, Any]
) -> None:
    (photos / "30.jpg").write_bytes(b"broken")
    with replaced_after(3, photos / "00.jpg", monkeypatch, then_killed=False):
        scored(photos, vit, tmp_path)
    for _ in range(2):
        messages.clear()
        scored(photos, vit, tmp_path, **again)
        assert any("1 image has changed" in message and "00.jpg first" in message for message in messages)


def test_a_picture_that_appears_where_none_was_is_told(
    photos: Path, vit: Path, tmp_path: Path, messages: list[str]
) -> None:
    (tmp_path / "t.txt").write_text(f"{photos}/none.jpg\n{photos}/01.jpg\n{photos}/02.jpg\n")
    scored(tmp_path / "t.txt", vit, tmp_path)
    (photos / "02.jpg").unlink()
    (photos / "none.jpg").write_bytes(jpeg(1))
    scored(tmp_path / "t.txt", vit, tmp_path)
    assert any("1 image has changed" in message and "none.jpg first" in message for message in messages)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("out", ["p.jsonl", "p.csv"])
def test_a_run_that_dies_at_its_very_end_still_knows_its_images(
    photos: Path,
    vit: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    messages: list[str],
    out: str,
    place: int,
) -> None:
    """At each of the renames with which a result appears. What was known of the images is neither lost nor scored
    again."""
    renames = [0]
    original = atomic.rename_durably

    def failing(source: Path, target: Path) -> None:
        renames[0] += 1
        if ".partial" not in target.name and renames[0] > place + 1:  # the first is that of the report, at the start
            raise OSError(28, "No space left on device")
        original(source, target)

    for module in (atomic, file):
        monkeypatch.setattr(module, "rename_durably", failing)
    with suppress(OutputError):
        scored(photos, vit, tmp_path, out)
    monkeypatch.undo()
    scored_again = []
    monkeypatch.setattr(scorer, "score_batch", lambda *args: scored_again.append(args))
    result = scored(photos, vit, tmp_path, out).read_bytes()
    monkeypatch.undo()
    (photos / "07.jpg").write_bytes(jpeg(77))
    messages.clear()
    assert scored(photos, vit, tmp_path, out).read_bytes() == result
    assert any("1 image has changed" in message and "07.jpg first" in message for message in messages)
    assert sorted(path.name for path in tmp_path.glob(f"{out}*")) == [
        out, f"{out}.run.json", f"{out}.stamps"
    ]  # fmt: skip


def test_a_retry_that_was_cut_short_still_knows_what_the_images_were(
    photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    """After its first records, and after some more."""
    for number in range(0, 40, 3):
        (photos / f"{number:02}.jpg").write_bytes(b"broken")
    scored(photos, vit, tmp_path)
    (photos / "07.jpg").write_bytes(jpeg(77))
    for batches in (1, 2):
        with pytest.raises(Interrupted), interrupted_after(batches, monkeypatch):
            scored(photos, vit, tmp_path, mode="retry-failed")
        valid(json.loads((tmp_path / "p.jsonl.run.json").read_bytes()), "run-report")
    for _ in range(3):
        messages.clear()
        scored(photos, vit, tmp_path, mode="retry-failed")
        assert any("1 image has changed" in message and "07.jpg first" in message for message in messages)
        assert not any("can't be told" in message for message in messages)


def test_a_result_is_replaced_only_by_the_run_that_was_told_to(
    photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if that died before it had a record: another command then may not."""
    first = scored(photos, vit, tmp_path).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(scorer.Scorer, "scored", lambda *args, **more: (_ for _ in ()).throw(OutputError("dies")))
        with pytest.raises(OutputError):
            scored(photos, vit, tmp_path, mode="fresh", top_k=1)
    for other in ({}, {"limit": 3}, {"limit": 3, "mode": "retry-failed"}):
        with pytest.raises(UsageError, match="is of another run"):
            scored(photos, vit, tmp_path, **other)
        assert (tmp_path / "p.jsonl").read_bytes() == first
    assert scored(photos, vit, tmp_path, top_k=1).read_bytes() != first


@pytest.mark.parametrize("how", [{"incremental": True}, {"mode": "retry-failed"}], ids=str)
def test_a_run_that_dies_before_its_result_replaces_the_old_one_is_continued(
    photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str], how: dict[str, Any]
) -> None:
    """Its report says already that it has finished; the result that stands is still the one before."""
    (photos / "30.jpg").write_bytes(b"broken")
    scored(photos, vit, tmp_path, **{**how, "mode": "continue"})
    (photos / "30.jpg").write_bytes(jpeg(30))
    (photos / "07.jpg").write_bytes(jpeg(77))
    original = atomic.rename_durably

    def dies(source: Path, target: Path) -> None:
        if target.name == "p.jsonl":
            raise OSError(5, "Input/output error")
        original(source, target)

    monkeypatch.setattr(file, "rename_durably", dies)
    for _ in range(2):
        with pytest.raises(OutputError, match="run the same command again"):
            scored(photos, vit, tmp_path, **how)
    monkeypatch.undo()
    messages.clear()
    records = read_jsonl(scored(photos, vit, tmp_path, **how))
    assert not any("error" in record for record in records)
    assert not any("can't be told" in message for message in messages)
    changed = [message for message in messages if "1 image has changed" in message and "07.jpg" in message]
    assert bool(changed) == ("mode" in how)


def test_a_retry_that_is_cut_short_again_and_again_gets_on(
    photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    """Also where a file has changed whose record is kept."""
    for number in range(0, 40, 2):
        (photos / f"{number:02}.jpg").write_bytes(b"broken")
    scored(photos, vit, tmp_path)
    (photos / "01.jpg").write_bytes(jpeg(77))
    sizes = []
    for _ in range(3):
        with pytest.raises(Interrupted), interrupted_after(1, monkeypatch):
            scored(photos, vit, tmp_path, mode="retry-failed")
        sizes.append(len(read_jsonl(tmp_path / "p.jsonl.partial")))
    assert sizes == sorted(set(sizes))
    assert not any("going on from there" in message for message in messages)


def test_a_result_that_was_touched_since_a_run_died_is_left_alone(
    photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scored(photos, vit, tmp_path).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(scorer.Scorer, "scored", lambda *args, **more: (_ for _ in ()).throw(OutputError("dies")))
        with pytest.raises(OutputError):
            scored(photos, vit, tmp_path, mode="fresh")
    os.utime(tmp_path / "p.jsonl", ns=(0, 0))
    for mode in ("continue", "retry-failed"):
        with pytest.raises(UsageError, match="is not what its run has left there"):
            scored(photos, vit, tmp_path, mode=mode)
    assert (tmp_path / "p.jsonl").read_bytes() == first
    scored(photos, vit, tmp_path, mode="fresh")


def test_files_that_look_the_same_are_told_apart_by_their_numbers(
    photos: Path, vit: Path, tmp_path: Path, messages: list[str]
) -> None:
    """Of one size and time, as those that a camera writes within a tick of the clock."""
    for name, number in (("x", 1), ("y", 2)):
        (tmp_path / name).mkdir()
        data = jpeg(number)
        (tmp_path / name / "a.jpg").write_bytes(data + b"\0" * (20_000 - len(data)))
        os.utime(tmp_path / name / "a.jpg", ns=(0, 0))
    (tmp_path / "now").symlink_to("x")
    first = scored(tmp_path / "now", vit, tmp_path).read_bytes()
    (tmp_path / "now").unlink()
    (tmp_path / "now").symlink_to("y")
    assert scored(tmp_path / "now", vit, tmp_path).read_bytes() == first
    assert any("1 image has changed" in message for message in messages)


def test_a_row_that_names_a_folder_is_a_failure_that_does_not_change(
    photos: Path, vit: Path, tmp_path: Path, messages: list[str]
) -> None:
    (tmp_path / "t.txt").write_text(f"{photos}\n{photos}/01.jpg\n")
    scored(tmp_path / "t.txt", vit, tmp_path)
    (photos / "new.jpg").write_bytes(jpeg(1))
    scored(tmp_path / "t.txt", vit, tmp_path)
    assert not any("changed" in message for message in messages)


def test_what_can_not_be_told_of_the_images_is_said(
    photos: Path, vit: Path, tmp_path: Path, messages: list[str]
) -> None:
    """As of a result that another version has made; and again, for it is not found out by saying so."""
    (photos / "30.jpg").write_bytes(b"broken")
    scored(photos, vit, tmp_path)
    (tmp_path / "p.jsonl.stamps").unlink()
    for mode, count in (("continue", 40), ("retry-failed", 39), ("continue", 39)):
        messages.clear()
        scored(photos, vit, tmp_path, mode=mode)
        assert any(f"whether {count} images have changed" in message for message in messages), messages


def test_where_nothing_is_to_be_noted_of_files_nothing_is_left(
    photos: Path, server: str, vit: Path, tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_text(f"{server}/01.jpg\n{server}/02.jpg\n")
    scored(tmp_path / "t.txt", vit, tmp_path)
    assert read_json(tmp_path / "p.jsonl.run.json")["stamps"] is None
    assert not list(tmp_path.glob("*.stamps"))
    scored(photos, vit, tmp_path, "i.jsonl", incremental=True)
    assert not list(tmp_path.glob("*.stamps"))
