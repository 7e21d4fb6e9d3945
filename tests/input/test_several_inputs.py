"""Several inputs of one run: all are taken, in order, and no value that was given is dropped without a word."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from helpers import EXAMPLES, deit_batch, interrupted_after, read_json, read_jsonl, scored

from deit_batch import score
from deit_batch.cli import main
from deit_batch.errors import Interrupted, UsageError
from deit_batch.input import open as opening
from deit_batch.input.open import open_source
from deit_batch.io import LocalFile
from deit_batch.output.merge import merge


@pytest.fixture
def three(photos: Path, tmp_path: Path) -> tuple[str, ...]:
    """A folder, a table in another one, and a single image: 3, 2 and 1 of the 40 photos."""
    (tmp_path / "imgs").mkdir()
    for number in range(3):
        shutil.copy(photos / f"{number:02}.jpg", tmp_path / "imgs")
    (tmp_path / "imgs" / "README.md").touch()
    (photos / "t.csv").write_text("url,id\n03.jpg,a\n04.jpg,b\n")
    return str(tmp_path / "imgs"), str(photos / "t.csv"), str(photos / "05.jpg")


def run(*args: object, **variables: str) -> Result:
    return CliRunner().invoke(main, list(map(str, args)), env=variables)


def options(*args: object, **variables: str) -> dict[str, Any]:
    """As --dry-run says them."""
    done = run("score", "--dry-run", *args, **variables)
    assert done.exit_code == 0, done.stderr
    return {
        name: json.loads(value)
        for name, value in (line.strip().split(" = ", 1) for line in done.stdout.splitlines() if " = " in line)
    }


def names(references: Iterator[Any]) -> list[tuple[int, str]]:
    return [(reference.index, os.path.basename(str(reference.image))) for reference in references]


ALL = [(number, f"{number:02}.jpg") for number in range(6)]


# --- sources ----------------------------------------------------------------------------------------------------------


def test_indices_the_limit_and_shards_count_over_all(three: tuple[str, ...]) -> None:
    source = open_source(three, column="url")
    assert (names(source.references), source.passed_over) == (ALL, {".md": 1})
    assert names(open_source(three, column="url", limit=4).references) == ALL[:4]
    assert names(open_source(three, column="url", shard=(1, 4)).references) == [ALL[1], ALL[5]]
    digests = set()
    for number in range(2):
        shard = open_source(three, column="url", shard=(number, 2))
        list(shard.references)
        digests.add(shard.whole())
    assert len(digests) == 1


def test_the_total_is_known_if_each_input_s_is(three: tuple[str, ...]) -> None:
    folder, table, image = three
    source = open_source([folder, image, folder])
    assert [source.total(number) for number in range(8)] == [7] * 8
    read = 0
    for read, _ in enumerate(source.references, 1):
        assert source.total(read) == 7
    assert read == 7
    source = open_source([folder, table], column="url")
    assert source.total(0) is None
    for _ in source.references:
        pass
    assert source.total(5) == 5


def test_columns_are_for_the_tables_among_them(three: tuple[str, ...]) -> None:
    folder, table, image = three
    kept = [reference.keep for reference in open_source(three, column="url", keep=["id"]).references]
    assert kept == [{}, {}, {}, {"id": "a"}, {"id": "b"}, {}]
    with pytest.raises(UsageError, match="has no columns; --column, --keep is for tables"):
        open_source([folder, image], column="url", keep=["id"])
    with pytest.raises(UsageError, match="no column is called 'nope'"):
        open_source([folder, table], column="nope")


def test_what_is_wrong_with_the_last_is_known_at_once(three: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.csv: No such file"):
        open_source([*three, str(tmp_path / "none.csv")], column="url")
    with pytest.raises(UsageError, match="stdin is named twice"):
        open_source(["-", three[0], "-"])


def test_stdin_is_stdin_whatever_the_folder_has_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "imgs").mkdir()
    shutil.copy(EXAMPLES / "bag" / "00018.png", tmp_path / "a.png")
    for make in (tmp_path.joinpath("-").touch, tmp_path.joinpath("-").mkdir):
        make()
        done = deit_batch("score", "-", "--out", "-", "--model", "demo", cwd=tmp_path, input="a.png\n")
        assert (done.returncode, done.stdout.count('"image": "a.png"')) == (0, 1), done.stderr
        (tmp_path / "-").unlink() if (tmp_path / "-").is_file() else (tmp_path / "-").rmdir()


def test_stdin_may_be_one_of_them(three: tuple[str, ...], photos: Path) -> None:
    stdin = io.BufferedReader(io.BytesIO(f"{photos}/07.jpg\n".encode()))
    assert names(open_source([three[0], "-"], stdin=stdin).references) == [*ALL[:3], (3, "07.jpg")]


def test_more_tables_than_files_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is opened for a look before the run, and again in its turn."""
    monkeypatch.setattr(opening, "MOST_TABLES_OPEN", 2)
    tables = []
    for number in range(40):
        tables.append(str(tmp_path / f"{number:02}.csv"))
        Path(tables[-1]).write_text(f"image\n{number:02}.jpg\n")

    def open_tables() -> int:
        links = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
        return sum(os.path.realpath(link).startswith(str(tmp_path)) for link in links if os.path.islink(link))

    source = open_source(tables)
    assert open_tables() <= 2
    found = []
    for reference in source.references:
        found.append(reference.index)
        assert open_tables() <= 3
    assert found == list(range(40))


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_over_several_inputs_is_stopped_continued_sharded_and_merged(
    three: tuple[str, ...], vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: dict[str, Any] = {"input": three, "column": "url", "batch_size": 2}
    whole = scored(tmp_path, vit, tmp_path, "whole.jsonl", **chosen)
    assert [(r["index"], os.path.basename(r["image"])) for r in read_jsonl(whole)] == ALL
    report = read_json(tmp_path / "whole.jsonl.run.json")
    assert report["settings"]["input"] == report["options"]["input"] == list(three)
    assert report["counts"]["passed_over"] == {".md": 1}
    with pytest.raises(Interrupted), interrupted_after(2, monkeypatch):
        scored(tmp_path, vit, tmp_path, **chosen)
    assert scored(tmp_path, vit, tmp_path, **chosen).read_bytes() == whole.read_bytes()
    with pytest.raises(UsageError, match="input was"):
        scored(tmp_path, vit, tmp_path, **{**chosen, "input": three[::-1]})
    for number in range(2):
        scored(tmp_path, vit, tmp_path, f"{number}.jsonl", shard=(number, 2), **chosen)
    merge([tmp_path / "0.jsonl", tmp_path / "1.jsonl"], str(tmp_path / "all.jsonl"))
    assert (tmp_path / "all.jsonl").read_bytes() == whole.read_bytes()


def test_none_of_them_is_written_over(three: tuple[str, ...], vit: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="would take the place of the input"):
        scored(tmp_path, vit, tmp_path / "photos", "t.csv", input=three, column="url", mode="fresh")


def test_an_input_is_not_written_over_wherever_it_is_named(photos: Path, vit: Path, tmp_path: Path) -> None:
    for input, out in ((photos, "03.jpg"), (f"{photos}/*.jpg", "03.jpg"), (f"{photos}/s-{{0..1}}.tar", "s-1.tar")):
        for number in range(2):
            shutil.copy(photos / "00.jpg", photos / f"s-{number}.tar")
        before = (photos / out).read_bytes()
        with pytest.raises(UsageError, match=r"is the input's image|take the place of the input"):
            scored(tmp_path, vit, photos, out, input=str(input), format="jsonl", mode="fresh")
        assert (photos / out).read_bytes() == before


def test_tables_of_the_same_names_in_two_folders_are_not_mixed_up(photos: Path, vit: Path, tmp_path: Path) -> None:
    for name, number in (("x", 1), ("y", 2)):
        (tmp_path / name).mkdir()
        shutil.copy(photos / f"{number:02}.jpg", tmp_path / name / "a.jpg")
        (tmp_path / name / "t.csv").write_text("image\na.jpg\n")
    tables = tuple(str(tmp_path / name / "t.csv") for name in ("y", "x"))
    records = read_jsonl(scored(tmp_path, vit, tmp_path, input=tables, incremental=True))
    assert [record["image"] for record in records] == [f"{tmp_path}/y/a.jpg", f"{tmp_path}/x/a.jpg"]
    again = read_jsonl(scored(tmp_path, vit, tmp_path, input=tables[::-1], incremental=True))
    assert [record["predictions"] for record in again] == [record["predictions"] for record in records][::-1]


def test_names_without_an_ending_or_from_one_base_are_shown_as_those_of_one_input(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.csv").write_text("image\n1\n")
    tables = [str(tmp_path / name / "t.csv") for name in ("x", "y")]
    suffixed = list(open_source(tables, suffix=".jpg").references)
    assert [each.image for each in suffixed] == [f"{tmp_path}/x/1", f"{tmp_path}/y/1"]
    assert [each.location for each in suffixed] == [LocalFile(f"{tmp_path}/{name}/1.jpg") for name in ("x", "y")]
    for base in (str(tmp_path), "s3://b/imgs"):
        found = list(open_source(tables, base=base, suffix=".jpg").references)
        assert [each.image for each in found] == ["1", "1"]
        assert all(str(getattr(each.location, "path", "") or each.location).count("1.jpg") for each in found)


def test_python_takes_several_too(three: tuple[str, ...], vit: Path) -> None:
    found = score([Path(three[0]), three[2]], model=str(vit), workers=0)
    assert [record.index for record in found] == [0, 1, 2, 3]
    assert list(score([], model=str(vit), workers=0)) == []  # as of a generator that gives nothing


# --- the command line -------------------------------------------------------------------------------------------------


def test_a_repeated_input_and_plain_arguments_are_the_same(tmp_path: Path) -> None:
    """As when a shell has expanded a glob."""
    images = sorted(map(str, EXAMPLES.glob("bag/*.png")))
    command = ["score", "--model", "demo", "--out"]
    done = deit_batch(*command, "a.jsonl", *images, EXAMPLES / "coat", cwd=tmp_path)
    assert (done.returncode, "8 of 8 images scored" in done.stderr) == (0, True), done.stderr
    named = [word for image in [*images, str(EXAMPLES / "coat")] for word in ("--input", image)]
    done = deit_batch(*command, "b.jsonl", *named, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert [record["index"] for record in read_jsonl(tmp_path / "a.jsonl")] == list(range(8))
    again = deit_batch(*command, "a.jsonl", *images, EXAMPLES / "coat", cwd=tmp_path)
    assert (again.returncode, "finished already" in again.stderr) == (0, True)
    embedded = deit_batch("embed", "--model", "demo", "--out", "f.npy", *images, cwd=tmp_path)
    assert (embedded.returncode, "4 of 4 images embedded" in embedded.stderr) == (0, True)


def test_what_is_given_in_two_ways_or_in_none_is_wrong_usage(three: tuple[str, ...]) -> None:
    both = run("score", "--dry-run", "--input", three[0], three[2])
    assert (both.exit_code, "give all in one way" in both.stderr) == (2, True)
    for command in ("score", "embed"):
        none = run(command, "--model", "demo", "--out", "p.npy")
        assert (none.exit_code, "Missing option '--input'" in none.stderr) == (2, True)


def test_a_variable_or_a_text_in_the_file_of_options_is_one_input(tmp_path: Path) -> None:
    folder, other = tmp_path / "my imgs", tmp_path / "b"
    for each in (folder, other):
        each.mkdir()
        shutil.copy(EXAMPLES / "bag" / "00018.png", each)
    config = tmp_path / "d.toml"
    assert options(DEIT_BATCH_SCORE_INPUT=str(folder))["input"] == str(folder)
    assert options(other, DEIT_BATCH_SCORE_INPUT=str(folder))["input"] == str(other)
    assert options("--input", other, DEIT_BATCH_SCORE_INPUT=str(folder))["input"] == str(other)
    config.write_text(f'input = "{folder}"\n')
    assert options("--config", config)["input"] == str(folder)
    assert options("--config", config, other)["input"] == str(other)
    config.write_text(f'input = ["{folder}", "{other}"]\n')
    assert options("--config", config)["input"] == [str(folder), str(other)]
    for name in ("inputs", "INPUTS"):
        wrong = run("score", "--dry-run", other, **{f"DEIT_BATCH_SCORE_{name.upper()}": "x"})
        assert (wrong.exit_code, "no option for the variable DEIT_BATCH_SCORE_INPUTS" in wrong.stderr) == (2, True)
    config.write_text(f'input = ["{folder}", 3]\n')
    wrong = run("score", "--dry-run", "--config", config)
    assert (wrong.exit_code, "3: no such file or folder" in wrong.stderr) == (2, True), wrong.stderr
    config.write_text(f'inputs = ["{folder}"]\n')
    wrong = run("score", "--dry-run", "--config", config)
    assert (wrong.exit_code, "there is no option inputs" in wrong.stderr) == (2, True)


@pytest.mark.parametrize("command", main.commands)
def test_no_other_option_takes_the_last_of_two_values(command: str) -> None:
    for param in main.commands[command].params:
        if not isinstance(param, click.Option) or param.multiple or (param.is_flag and not param.secondary_opts):
            continue
        words = [*param.opts[-1:], *(param.secondary_opts or param.opts)[-1:]]
        if not param.is_flag:
            words = [words[0], "1", f"{words[1]}=2"]
        done = run(command, *words)
        assert (done.exit_code, "is given 2 times; it takes one value" in done.stderr) == (2, True), done.stderr


def test_a_flag_may_be_given_twice() -> None:
    assert options(EXAMPLES, "--compile", "--compile")["compile"] is True
