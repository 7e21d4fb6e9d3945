"""Shards of a run, and their merging: what one run would have left, or a word on what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import EXAMPLES, deit_batch, read_json
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.errors import UsageError
from deit_batch.input.open import open_source
from deit_batch.options import Options
from deit_batch.output.merge import merge
from deit_batch.runner import run

OF = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with a bad row and a missing file among its images, its whole result, and those of its shards."""
    folder = tmp_path_factory.mktemp("shards")
    pictures = sorted(EXAMPLES.glob("*/*.png"))[:8]
    rows = [f"{picture},{picture.parent.name}" for picture in pictures]
    rows[2:2] = ["broken", "missing.png,nothing"]
    (folder / "t.csv").write_text("image,kind\n" + "\n".join(rows) + "\n")
    score(folder, "whole.jsonl")
    for number in range(OF):
        score(folder, f"part-{number}.jsonl", shard=(number, OF))
    return folder


def score(folder: Path, out: str, **more: Any) -> None:
    options = Options(input=str(folder / "t.csv"), model="demo", keep=("kind",), batch_size=2, workers=0, **more)
    run(options, out=str(folder / out), quiet=True)


def parts(folder: Path) -> list[Path]:
    return [folder / f"part-{number}.jsonl" for number in range(OF)]


def copied(folder: Path, to: Path) -> list[Path]:
    for path in folder.glob("part-*"):
        shutil.copy(path, to)
    return parts(to)


def test_the_shards_are_disjoint_and_merge_to_the_whole(folder: Path, tmp_path: Path) -> None:
    indices = [[json.loads(line)["index"] for line in path.read_bytes().splitlines()] for path in parts(folder)]
    assert indices == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    tally = merge(parts(folder)[::-1], str(tmp_path / "all.jsonl"))
    assert (tally.scored, tally.failed) == (8, 2)
    assert (tmp_path / "all.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    whole, merged = (read_json(path.with_name(f"{path.name}.run.json")) for path in
                     (folder / "whole.jsonl", tmp_path / "all.jsonl"))  # fmt: skip
    for name in ("status", "settings", "output", "references_sha256", "counts"):
        assert merged[name] == whole[name]


def test_a_merged_result_is_a_finished_run(folder: Path, tmp_path: Path) -> None:
    merge(parts(folder), str(folder / "again.jsonl"))
    before = (folder / "again.jsonl").stat().st_mtime_ns
    score(folder, "again.jsonl")
    merge(parts(folder), str(folder / "again.jsonl"))
    assert (folder / "again.jsonl").stat().st_mtime_ns == before


def test_any_format(folder: Path, tmp_path: Path) -> None:
    merge(parts(folder), str(tmp_path / "all.json"))
    found = json.loads((tmp_path / "all.json").read_bytes())
    lines = (folder / "whole.jsonl").read_bytes().splitlines()
    assert found == [json.loads(line)["predictions"] for line in lines]


def test_what_is_not_all_of_one_run_is_said_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "all.jsonl")
    first, second, third = copied(folder, tmp_path)
    with pytest.raises(UsageError, match="2 of 3 shards are given; 1/3 are missing"):
        merge([first, third], out)
    with pytest.raises(UsageError, match="shard 0/3 is there twice"):
        merge([first, first, second, third], out)
    with pytest.raises(UsageError, match="is no shard"):
        merge([folder / "whole.jsonl"], out)
    score(folder, "other.jsonl", shard=(2, OF), top_k=1)
    with pytest.raises(UsageError, match=r"not of one run: top_k differ"):
        merge([first, second, folder / "other.jsonl"], out)
    third.write_bytes(third.read_bytes()[:-20])
    with pytest.raises(UsageError, match="not what its run has left there"):
        merge([first, second, third], out)
    third.with_name("part-2.jsonl.run.json").unlink()
    with pytest.raises(UsageError, match=r"there is no part-2\.jsonl\.run\.json beside it"):
        merge([first, second, third], out)
    assert not Path(out).exists()


@pytest.mark.parametrize("name", ["part-0.jsonl", "part-2.jsonl.run.json", "link.jsonl"])
def test_no_shard_is_written_over(folder: Path, tmp_path: Path, name: str) -> None:
    paths = copied(folder, tmp_path)
    (tmp_path / "link.jsonl").symlink_to("part-1.jsonl")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=rf"--out .*{name} would take the place of the input .*part-\d\.jsonl"):
        merge(paths, str(tmp_path / name), format="jsonl", mode="fresh")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_unfinished_shard_is_refused(folder: Path, tmp_path: Path) -> None:
    paths = copied(folder, tmp_path)
    report = tmp_path / "part-1.jsonl.run.json"
    report.write_text(json.dumps({**json.loads(report.read_bytes()), "status": "interrupted"}))
    with pytest.raises(UsageError, match=r"has not finished \(interrupted\)"):
        merge(paths, str(tmp_path / "all.jsonl"))


@pytest.mark.parametrize("change", ["shorter", "in another order"])
def test_an_input_that_changed_between_the_shards_is_found_out(folder: Path, tmp_path: Path, change: str) -> None:
    text = (folder / "t.csv").read_text()
    head, *rows = text.splitlines()
    changed = rows[:4] if change == "shorter" else rows[::-1]
    (tmp_path / "t.csv").write_text(text)
    for number in range(OF):
        score(tmp_path, f"part-{number}.jsonl", shard=(number, OF))
        (tmp_path / "t.csv").write_text("\n".join([head, *changed]) + "\n")
    with pytest.raises(UsageError, match="not of one run: the input changed between them"):
        merge(parts(tmp_path), str(tmp_path / "all.jsonl"))
    assert not (tmp_path / "all.jsonl").exists()


def test_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    done = deit_batch("merge", *parts(folder), "--out", "all.jsonl", cwd=tmp_path)
    assert done.returncode == 3  # two failed
    assert "8 of 10 images scored, 2 failed (1 RowError, 1 FetchError): all.jsonl" in done.stderr
    done = deit_batch("merge", *parts(folder), "--out", "all.jsonl", "--error-threshold", "20%", cwd=tmp_path)
    assert done.returncode == 0
    done = deit_batch("score", "--shard", "3/3", "--input", "x", "--out", "y", cwd=tmp_path)
    assert done.returncode == 2
    assert "'3/3' is not I/N with I from 0 to N-1" in done.stderr


@given(rows=st.integers(0, 40), of=st.integers(1, 9), limit=st.none() | st.integers(0, 45))
def test_shards_share_out_every_reference_once(
    rows: int, of: int, limit: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("list") / "t.txt"
    path.write_text("".join(f"{number}.jpg\n" for number in range(rows)))
    found = []
    for number in range(of):
        source = open_source(str(path), shard=(number, of), limit=limit)
        share = [reference.index for reference in source.references]
        assert share == list(range(number, min(rows, rows if limit is None else limit), of))
        found += share
    assert sorted(found) == list(range(rows if limit is None else min(rows, limit)))


def test_a_folder_of_parts_that_is_not_finished_is_told(tmp_path: Path) -> None:
    (tmp_path / "p.partial").mkdir()
    (tmp_path / "p.partial" / "run.json").write_text("{}")
    with pytest.raises(UsageError, match=r"p/: its run has not finished: .*p\.partial is there; run the same command"):
        merge([f"{tmp_path}/p/"], str(tmp_path / "all.jsonl"))
