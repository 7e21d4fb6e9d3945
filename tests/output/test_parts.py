"""The folder of parts, without any cluster: what stands, what is made anew, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from helpers import read_json
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.errors import DeitBatchError, OutputError, UsageError
from deit_batch.input.stamps import stamp_of
from deit_batch.io import Failure, LocalFile, Prediction, Record, Reference
from deit_batch.output.formats import Columns
from deit_batch.output.manifest import read_manifest, require_all
from deit_batch.output.merge import merge
from deit_batch.output.part import Block, Part, convert_part, part_name, split_into_blocks, write_part
from deit_batch.output.part_list import PartList
from deit_batch.output.parts import Folder
from deit_batch.output.place import LocalPlace, Place
from deit_batch.output.read import read_records
from deit_batch.output.resume import StaleResult
from deit_batch.system import atomic
from deit_batch.system.atomic import is_inside

SETTINGS = {"input": "imgs/", "part_size": 2}


def references(count: int) -> Iterator[Reference]:
    for index in range(count):
        yield Reference(index, f"{index}.jpg", LocalFile(f"{index}.jpg"), {"kind": index % 3})


def record(reference: Reference) -> Record:
    """Every fifth has failed."""
    failed = reference.index % 5 == 4
    result = Failure("DecodeError", "no image") if failed else [Prediction(label="can", score=0.5)]
    return Record.of(reference, result, stamp=stamp_of(reference.location))


def write(folder: Place, block: Block) -> Part:
    return write_part(folder, block, [record(reference) for reference in block.references])


@pytest.fixture
def died(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run over nine files of this folder that has left the parts 0, 1 and 3 of five."""
    monkeypatch.chdir(tmp_path_factory.mktemp("images"))
    for index in range(10):
        Path(f"{index}.jpg").touch()
    out = tmp_path / "out"
    with closing(Folder(out, SETTINGS, fresh=False)) as folder:
        folder.begin()
        for block in split_into_blocks(references(9), 2):
            if block.number in (0, 1, 3):
                write(folder.partial, block)
    return out


def standing(out: Path, count: int = 9) -> dict[int, Part]:
    with closing(Folder(out, SETTINGS, fresh=False)) as folder:
        return {block.number: part for block, part in folder.standing(split_into_blocks(references(count), 2)) if part}


def finish(out: Path, *, fresh: bool = False) -> None:
    with closing(Folder(out, SETTINGS, fresh=fresh)) as folder:
        folder.begin()
        parts = PartList()
        for block, part in folder.standing(split_into_blocks(references(9), 2)):
            parts.add(part or write(folder.partial, block))
        require_all(parts, block.after)
        folder.finish(parts, {}, "jsonl")


def test_what_a_dead_run_has_finished_stands(died: Path) -> None:
    found = standing(died)
    blocks = {block.number: block for block in split_into_blocks(references(9), 2)}
    assert found == {number: write(LocalPlace(died.parent), blocks[number]) for number in (0, 1, 3)}


def test_the_folder_appears_when_it_is_whole(died: Path) -> None:
    assert not died.exists()
    (died.with_name("out.partial") / f".part-000002.jsonl.{'0' * 32}.tmp").write_text("half")
    finish(died)
    assert sorted(os.listdir(died.parent)) == ["out"]
    names = [part_name(number) for number in range(5)]
    assert sorted(os.listdir(died)) == ["manifest.json", *names, "run.json", "stamps"]
    manifest = read_json(died / "manifest.json")
    assert [row["name"] for row in manifest["parts"]] == names
    assert (manifest["inputs"], manifest["failed"]) == (9, 1)
    lines = [line for name in names for line in (died / name).read_bytes().splitlines()]
    assert [json.loads(line)["index"] for line in lines] == list(range(9))


def test_a_finished_folder_is_not_made_again(died: Path) -> None:
    finish(died)
    with closing(Folder(died, SETTINGS, fresh=False)) as folder:
        assert folder.complete
        assert folder.finished(split_into_blocks(references(9), 2), "jsonl") == read_manifest(LocalPlace(died))
        with pytest.raises(UsageError, match="its input has changed since"):
            folder.finished(split_into_blocks(references(10), 2), "jsonl")
    path = died / part_name(2)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UsageError, match=r"part-000002\.jsonl is not what its run has left there"):
        read_manifest(LocalPlace(died))
    path.unlink()
    with pytest.raises(UsageError, match=r"/part-000002\.jsonl is missing, of a result .*; bring that one file back"):
        read_manifest(LocalPlace(died))


def without_the_last(manifest: dict[str, Any]) -> None:
    del manifest["parts"][-1]


def without_the_last_and_its_counts(manifest: dict[str, Any]) -> None:
    last = manifest["parts"].pop()
    manifest["inputs"] -= last["scored"]


def swapped(manifest: dict[str, Any]) -> None:
    manifest["parts"][:2] = manifest["parts"][1::-1]


def swapped_and_renumbered(manifest: dict[str, Any]) -> None:
    swapped(manifest)
    for number, row in enumerate(manifest["parts"]):
        row["number"] = number


def of_another_file(manifest: dict[str, Any]) -> None:
    manifest["parts"][1]["name"] = "./part-000001.jsonl"


def with_fewer_failures(manifest: dict[str, Any]) -> None:
    manifest["failed"] = 0


@pytest.mark.parametrize(
    "damage",
    [
        without_the_last,
        without_the_last_and_its_counts,
        swapped,
        swapped_and_renumbered,
        of_another_file,
        with_fewer_failures,
    ],
)
def test_a_manifest_that_is_not_of_all_the_parts_in_order_is_refused(
    died: Path, damage: Callable[[dict[str, Any]], None]
) -> None:
    finish(died)
    manifest = read_json(died / "manifest.json")
    damage(manifest)
    (died / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        UsageError, match=r"manifest\.json (and run\.json are not of one run|is not what its run has left)"
    ):
        read_manifest(LocalPlace(died))
    with (
        closing(Folder(died, SETTINGS, fresh=False)) as folder,
        pytest.raises(UsageError, match="score it again, with --fresh"),
    ):
        folder.finished(split_into_blocks(references(9), 2), "jsonl")
    finish(died, fresh=True)
    assert len(read_manifest(LocalPlace(died))) == 5


@pytest.mark.parametrize(
    "name", ["part-000000.jsonl", "manifest.json", "all.jsonl", "../link/all.jsonl", "../to.jsonl"]
)
def test_nothing_is_merged_into_the_folder_that_is_read(died: Path, name: str) -> None:
    finish(died)
    died.with_name("link").symlink_to(died)
    died.with_name("to.jsonl").symlink_to(died / "part-000001.jsonl")
    before = {path.name: path.read_bytes() for path in died.iterdir()}
    with pytest.raises(UsageError, match="lies in the folder that is merged"):
        merge([died], str(died / name), format="jsonl", mode="fresh")
    assert {path.name: path.read_bytes() for path in died.iterdir()} == before
    assert not is_inside(f"{died}.jsonl", str(died))


def test_fresh_replaces_what_stands_there_only_at_the_end(died: Path) -> None:
    finish(died)
    before = (died / "run.json").stat().st_ino
    with closing(Folder(died, SETTINGS, fresh=True)) as folder:
        folder.begin()
        assert not folder.complete
        assert (died / "run.json").stat().st_ino == before
    finish(died, fresh=True)
    assert (died / "run.json").stat().st_ino != before
    assert sorted(os.listdir(died.parent)) == ["out"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_dies_while_it_replaces_a_folder_is_mended_by_the_next_run(
    died: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The old folder or the new one is there at any moment, and the old one is never taken for work that goes on."""
    finish(died)
    old = (died / "run.json").stat().st_ino
    exchange = atomic._exchange

    def dies(one: Path, other: Path) -> bool:
        if when == "after":
            assert exchange(one, other)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(atomic, "_exchange", dies)
    with pytest.raises(OutputError):
        finish(died, fresh=True)
    monkeypatch.undo()
    new = (died / "run.json").stat().st_ino
    assert (new == old) == (when == "before")
    assert len(read_manifest(LocalPlace(died))) == 5
    with closing(Folder(died, SETTINGS, fresh=False)) as folder:
        assert folder.complete == (when == "after")
    finish(died)
    assert len(read_manifest(LocalPlace(died))) == 5
    assert os.listdir(died.parent) == ["out"]


def test_other_settings_and_foreign_folders_are_refused(died: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is of another run \(part_size was 2, is 3\)"):
        Folder(died, {**SETTINGS, "part_size": 3}, fresh=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"no run\.json in it says what it is"):
        Folder(tmp_path / "mine", SETTINGS, fresh=False)


def test_what_no_run_has_made_is_never_taken_away(tmp_path: Path) -> None:
    for name in ("photos", "photos.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(b"precious")
        with pytest.raises(UsageError, match=r"no run\.json in it says what it is"):
            Folder(tmp_path / "photos", SETTINGS, fresh=True)
        assert (tmp_path / name / "a.jpg").read_bytes() == b"precious"
        shutil.rmtree(tmp_path / name)


class Killed(BaseException):
    """In place of SIGKILL: what a process has done to the files when it is raised is all that it does."""


@pytest.fixture
def killed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Lets the n-th change of a name or a file below `tmp_path`, and all after it, not happen; 0: all happen again."""
    left = [0]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # which takes long

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if not left[0]:
            return
        writes = event == "open" and isinstance(arguments[1], str) and bool(set(arguments[1]) & set("wxa+"))
        if writes or event in ("os.remove", "os.rename", "os.rmdir", "os.mkdir"):
            path = str(arguments[0])
            if (os.path.isabs(path) and not path.startswith(str(tmp_path))) or path.endswith(".lock"):
                return
            if left[0] == 1:
                raise Killed
            left[0] -= 1

    sys.addaudithook(watch)
    yield lambda count: left.__setitem__(0, count)
    left[0] = 0


def run(out: Path, *, format: str, fresh: bool, settings: dict[str, Any]) -> None:
    with closing(Folder(out, settings, fresh=fresh)) as folder:
        if folder.complete:
            folder.finished(split_into_blocks(references(3), 2), format)
            return
        folder.begin()
        parts = PartList()
        for block, part in folder.standing(split_into_blocks(references(3), 2)):
            parts.add(part or write(folder.partial, block))
        require_all(parts, block.after)
        for part in parts:
            parts.add(convert_part(folder.partial, part, format, Columns(())))
        folder.finish(parts, {}, format)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("left", "format"), [("nothing", "parquet"), ("finished", "jsonl"), ("partial", "jsonl")])
def test_wherever_a_run_is_killed_the_same_command_comes_to_the_whole_result(
    tmp_path: Path, killed_at: Callable[[int], None], format: str, left: str
) -> None:
    for name in ("old", "new", "out"):
        (tmp_path / name).mkdir()
    settings = {"format": format, "part_size": 2}
    run(tmp_path / "new" / "out", format=format, fresh=False, settings=settings)
    if left == "finished":
        run(tmp_path / "old" / "out", format=format, fresh=False, settings=settings | {"top_k": 1})
    if left == "partial":
        with closing(Folder(tmp_path / "old" / "out", settings | {"top_k": 1}, fresh=False)) as folder:
            folder.begin()
            for block in split_into_blocks(references(4), 2):
                write(folder.partial, block)
    whole = contents(tmp_path / "new")
    fresh = left != "nothing"
    out = tmp_path / "out" / "out"
    for moment in range(1, 200):
        shutil.rmtree(out.parent)
        shutil.copytree(tmp_path / "old", out.parent)
        killed_at(moment)
        try:
            run(out, format=format, fresh=fresh, settings=settings)
        except Killed:
            was_killed = True
        else:
            was_killed = False
        killed_at(0)
        run(out, format=format, fresh=fresh, settings=settings)
        assert contents(out.parent) == whole, moment
        assert os.listdir(out.parent) == ["out"], moment
        if not was_killed:
            break
    assert moment > 15


def test_what_a_killed_run_has_left_without_a_report_is_taken_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    temporary = f".run.json.{'0' * 32}.tmp"
    for names in ([], [temporary], ["part-000000.jsonl", "part-000000.stamps"], ["parquet/part-000003.parquet"]):
        for name in names:
            (path := tmp_path / "out.partial" / name).parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (tmp_path / "out.partial").mkdir(exist_ok=True)
        caplog.clear()
        with caplog.at_level("INFO"), closing(Folder(tmp_path / "out", SETTINGS, fresh=False)) as folder:
            assert not folder.partial.exists()
        assert any("without a report: it is taken away" in each for each in caplog.messages) == bool(names)
    for name in ("part-000000.jsonl/a.jpg", "a.jpg", "parquet/a.jpg", ".part-000000.jsonl.tmp"):
        for each in (name, "part-000001.jsonl"):
            (path := tmp_path / "out.partial" / each).parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        with pytest.raises(UsageError, match=r"no run\.json in it says what it is"):
            Folder(tmp_path / "out", SETTINGS, fresh=True)
        assert (tmp_path / "out.partial" / name).exists()
        shutil.rmtree(tmp_path / "out.partial")


def test_an_empty_folder_may_be_there_before(died: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    with closing(Folder(tmp_path / "link", SETTINGS, fresh=False)) as folder:
        folder.begin()
        folder.finish([], {}, "jsonl")
    assert read_manifest(LocalPlace(tmp_path / "disk")) == []
    died.mkdir()
    finish(died)
    assert len(read_manifest(LocalPlace(died))) == 5
    assert sorted(os.listdir(tmp_path)) == ["disk", "link", "out"]


def test_a_finished_folder_says_which_images_have_changed(tmp_path: Path, messages: list[str]) -> None:
    (tmp_path / "a.jpg").write_bytes(b"old")
    reference = Reference(0, "a.jpg", LocalFile(str(tmp_path / "a.jpg")), {})
    with closing(Folder(tmp_path / "out", SETTINGS, fresh=False)) as folder:
        folder.begin()
        (block,) = split_into_blocks([reference], 2)
        folder.finish([write(folder.partial, block)], {}, "jsonl")
    time.sleep(0.01)
    (tmp_path / "a.jpg").write_bytes(b"new")
    with closing(Folder(tmp_path / "out", SETTINGS, fresh=False)) as folder:
        folder.finished(split_into_blocks([reference], 2), "jsonl")
        assert any("1 image has changed since" in message and "a.jpg first" in message for message in messages)
        with pytest.raises(StaleResult, match=r"a\.jpg first: the records of such are old; --fresh makes new ones"):
            folder.finished(split_into_blocks([reference], 2), "jsonl", current=True)


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _image_replaced(path: Path) -> None:
    """One that was read, and replaced before the last part was written."""
    Path("new").touch()
    os.utime("new", ns=(0, 0))
    os.rename("new", "3.jpg")


def _stamps_lost(path: Path) -> None:
    path.with_suffix(".stamps").unlink()


def _changed(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.6"))


def _of_another_run(path: Path) -> None:
    """Whose machine was taken for dead, wakes up, and writes what it had in hand."""
    block = list(split_into_blocks(references(9), 2, "of other settings"))[1]
    write(LocalPlace(path.parent), block)


@pytest.mark.parametrize("damage", [_cut_off, _image_replaced, _stamps_lost, _changed, _of_another_run])
def test_a_damaged_part_is_made_anew_and_that_is_said(
    died: Path, damage: Callable[[Path], None], messages: list[str]
) -> None:
    damage(died.with_name("out.partial") / part_name(1))
    assert set(standing(died)) == {0, 3}
    assert [message for message in messages if "made anew" in message] == [
        "3.jpg has changed since it was scored: its part is made anew"
        if damage is _image_replaced
        else "part-000001.jsonl is not what this run has left there: it is made anew"
    ]
    assert not (died.with_name("out.partial") / part_name(1)).exists()


@pytest.mark.parametrize("harm", [Path.unlink, _cut_off])
def test_a_part_that_somebody_takes_or_changes_under_the_run_is_not_published(
    died: Path, harm: Callable[[Path], None]
) -> None:
    with closing(Folder(died, SETTINGS, fresh=False)) as folder:
        folder.begin()
        parts = {block.number: write(folder.partial, block) for block in split_into_blocks(references(9), 2)}
        harm(died.with_name("out.partial") / part_name(1))
        with pytest.raises(
            OutputError, match=r"part-000001\.jsonl (is missing|since it was written); what is scored so"
        ):
            folder.finish(list(parts.values()), {}, "jsonl")
    assert not died.exists()
    finish(died)
    assert len(read_manifest(LocalPlace(died))) == 5


def test_files_that_no_run_has_made_are_never_replaced(died: Path) -> None:
    """Where the result is to be. What a person's tools leave in the partial folder is in nobody's way."""
    (died.with_name("out.partial") / ".ipynb_checkpoints").mkdir()
    finish(died)
    (died / ".ipynb_checkpoints").rmdir()
    (notes := died / "part-000000.csv").write_text("mine")
    with pytest.raises(
        UsageError, match=r"out would be replaced, and has files that no run has made: part-000000\.csv;"
    ):
        finish(died, fresh=True)
    finish_meanwhile(died, notes)
    assert notes.read_text() == "mine"
    assert len(list(read_records(died))) == 9
    notes.unlink()
    finish(died)
    assert sorted(os.listdir(died.parent)) == ["out"]


def finish_meanwhile(out: Path, notes: Path) -> None:
    """A run that replaces the result, into which somebody puts a file after it has begun."""
    notes.unlink()
    with closing(Folder(out, SETTINGS, fresh=True)) as folder:
        folder.begin()
        parts = [write(folder.partial, block) for block in split_into_blocks(references(9), 2)]
        notes.write_text("mine")
        with pytest.raises(OutputError, match="move them away, and run the same command again, without --fresh"):
            folder.finish(parts, {}, "jsonl")


def test_a_folder_is_read_by_its_manifest(died: Path) -> None:
    with pytest.raises(UsageError, match=r"is no finished result in parts: there is no manifest\.json in it"):
        list(read_records(died.with_name("out.partial")))
    finish(died)
    for name in ("part-000001.stamps", "part-000009.jsonl"):  # of a run that was killed, or of anybody
        shutil.copy(died / part_name(0), died / name)
    assert [record["index"] for record in read_records(died)] == list(range(9))


def test_after_giving_up_the_parts_with_failures_are_made_anew(died: Path, messages: list[str]) -> None:
    with closing(Folder(died, SETTINGS, fresh=False)) as folder:
        folder.interrupt({}, gave_up=True)
    with closing(Folder(died, SETTINGS, fresh=False)) as folder:
        for block in split_into_blocks(references(9), 2):  # 4 is in part 2
            write(folder.partial, block)
    with closing(Folder(died, SETTINGS, fresh=False)) as folder:
        folder.begin()
        assert folder.left() == {0, 1, 3, 4}
        assert messages[-1] == "the earlier run gave up: 1 part with failures is made anew"
        next(folder.standing(split_into_blocks(references(9), 2)))
    # It was killed before it looked at part 2, or made it; and what the next has made stays.
    assert set(standing(died)) == {0, 1, 3, 4}
    with closing(Folder(died, SETTINGS, fresh=False)) as folder:
        folder.begin()
        write(folder.partial, list(split_into_blocks(references(9), 2))[2])
    assert set(standing(died)) == {0, 1, 2, 3, 4}


def test_a_run_that_is_killed_while_it_takes_failures_away_still_knows_that_it_gave_up(
    died: Path, killed_at: Callable[[int], None]
) -> None:
    with closing(Folder(died, SETTINGS, fresh=False)) as folder:
        for block in split_into_blocks(references(9), 2):
            write(folder.partial, block)
        folder.partial.write(part_name(3), (died.with_name("out.partial") / part_name(2)).read_bytes())
        folder.interrupt({}, gave_up=True)
    with closing(Folder(died, SETTINGS, fresh=False)) as folder:
        killed_at(2)
        with pytest.raises(Killed):
            folder.begin()
        killed_at(0)
    assert part_name(3) in os.listdir(died.with_name("out.partial"))
    with closing(Folder(died, SETTINGS, fresh=False)) as folder:
        folder.begin()
        assert folder.left() == {0, 1, 4}


def test_an_input_that_has_changed_is_refused(died: Path) -> None:
    with pytest.raises(UsageError, match=r"the input has become shorter, and part-000003\.jsonl"):
        standing(died, 5)
    changed = [Reference(index, f"x{index}.jpg", LocalFile("x")) for index in range(9)]
    with (
        closing(Folder(died, SETTINGS, fresh=False)) as folder,
        pytest.raises(UsageError, match="Record 0 has image"),
    ):
        list(folder.standing(split_into_blocks(changed, 2)))


def test_parts_of_two_readings_that_differ_do_not_go_together(tmp_path: Path) -> None:
    parts = {block.number: write(LocalPlace(tmp_path), block) for block in split_into_blocks(references(6), 2)}
    end = parts[2].after
    known = PartList()
    for number in (2, 0, 1, 2):
        known.add(parts[number])
    assert (list(known), len(known)) == (list(parts.values()), 3)
    require_all(known, end)
    others = [Reference(index, "other.jpg", LocalFile("other.jpg")) for index in range(6)]
    mixed = parts | {
        block.number: write(LocalPlace(tmp_path), block) for block in split_into_blocks(others, 2) if block.number == 2
    }
    with pytest.raises(DeitBatchError, match=r"part-000002\.jsonl does not fit behind"):
        require_all(list(mixed.values()), end)
    with pytest.raises(DeitBatchError, match="does not fit"):
        require_all([parts[0], parts[2]], end)
    with pytest.raises(DeitBatchError, match=r"part-000002\.jsonl is missing"):
        require_all([parts[0], parts[1]], end)


@given(count=st.integers(0, 30), size=st.integers(1, 9))
def test_blocks_are_fixed_ranges_of_the_input(count: int, size: int) -> None:
    blocks = list(split_into_blocks(references(count), size))
    for number, block in enumerate(blocks):
        assert block.number == number
        assert [each.index for each in block.references] == list(range(count))[number * size : (number + 1) * size]
    assert [block.before for block in blocks[1:]] == [block.after for block in blocks[:-1]]
