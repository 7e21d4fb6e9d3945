"""WebDataset tars: samples, shards, damage."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tars import PICTURES, samples, write_tar

from deit_batch import score
from deit_batch.errors import InputError, UsageError
from deit_batch.input.labels import open_labelled
from deit_batch.input.open import open_source
from deit_batch.input.webdataset import expand
from deit_batch.io import Failure


def test_samples_score_as_their_files_do(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-000.tar", samples(PICTURES[:4]))
    write_tar(tmp_path / "s-001.tar", samples(PICTURES[4:], 4))
    found = list(score(f"{tmp_path}/s-{{000..001}}.tar", model="demo", workers=2, keep=["key", "json"]))
    assert [record.image for record in found] == [
        f"{tmp_path}/s-{number // 4:03}.tar/{number:04}.png" for number in range(6)
    ]
    assert [record.keep for record in found] == [
        {"key": f"{number:04}", "json": {"from": picture.name}} for number, picture in enumerate(PICTURES)
    ]
    (tmp_path / "list.txt").write_text("\n".join(map(str, PICTURES)))
    expected = list(score(tmp_path / "list.txt", model="demo", workers=0))
    assert [record.predictions for record in found] == [record.predictions for record in expected]


@pytest.mark.parametrize(("name", "mode"), [("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar", "w")])
def test_a_glob_and_compressed_tars(name: str, mode: str, tmp_path: Path) -> None:
    write_tar(tmp_path / name, samples(PICTURES), mode)
    source = open_source(f"{tmp_path}/a*{name[1:]}")
    references = list(source.references)
    assert [reference.location for reference in references] == [picture.read_bytes() for picture in PICTURES]
    assert source.total(len(references)) == len(references)


def test_what_is_no_image_is_passed_over_and_a_sample_without_one_fails_alone(tmp_path: Path) -> None:
    picture = PICTURES[0].read_bytes()
    members = {
        "LICENSE": b"no extension",
        "a.txt": b"words only",
        "folder/b.left.png": picture,
        "folder/b.right.png": b"",
        "folder/.hidden": b"",
        "c.seg.npy": b"\0" * 100,
        "c.JPG": picture,
    }
    tar = write_tar(tmp_path / "a.tar", members)
    first, second, third = open_source(str(tar)).references
    assert isinstance(first.location, Failure)
    assert "a.tar/a: there is no image in this sample" in first.location.message
    assert (second.image, second.location) == (f"{tar}/folder/b.left.png", picture)
    assert third.image == f"{tar}/c.JPG"


def test_another_image_of_a_sample_is_a_column(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"b.left.png": b"left", "b.right.png": b"right"})
    (reference,) = open_source(str(tar), column="right.png").references
    assert reference.location == b"right"


def test_classes_are_labels(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", samples(PICTURES))
    labelled = open_labelled(str(tar))
    assert [example.labels for example in labelled.examples] == [("0",), ("1",)] * 3


def test_a_tar_that_ends_early_ends_the_run_after_what_it_gave(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", samples(PICTURES))
    whole = tar.read_bytes()
    tar.write_bytes(whole[: whole.index(PICTURES[3].read_bytes()) + 10])
    references = open_source(str(tar)).references
    assert [next(references).image for _ in range(3)][-1] == f"{tar}/0002.png"
    with pytest.raises(InputError, match="can't be read past 0003"):
        next(references)


def test_what_is_no_tar_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"<html>" * 1000)
    with pytest.raises(InputError, match="can't be read at all"):
        next(open_source(str(tmp_path / "a.tar")).references)


def test_a_missing_shard_is_wrong_usage_before_anything_is_read(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-0.tar", samples(PICTURES))
    with pytest.raises(UsageError, match=r"s-1\.tar: no such file, nor 1 others of the 3"):
        open_source(f"{tmp_path}/s-{{0..2}}.tar")
    with pytest.raises(UsageError, match="matches no file"):
        open_source(f"{tmp_path}/x-*.tar")


def test_a_sample_that_is_too_large_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deit_batch.input.webdataset.MAX_ROW_CHARS", 1000)
    tar = write_tar(tmp_path / "a.tar", {"a.png": b"x" * 600, "a.txt": b"x" * 600, "b.png": b"x" * 1000})
    first, second = open_source(str(tar)).references
    assert isinstance(first.location, Failure)
    assert second.location == b"x" * 1000


@given(st.integers(0, 120), st.integers(0, 30), st.integers(1, 4))
def test_numbered_names(first: int, more: int, width: int) -> None:
    names = list(expand(f"a/{{{first:0{width}}..{first + more:0{width}}}}.tar"))
    assert len(names) == more + 1
    assert [int(name[2:-4]) for name in names] == list(range(first, first + more + 1))
    assert len({len(name) for name in names if int(name[2:-4]) < 10 ** max(width, len(str(first)))}) == 1


def test_two_ranges_and_none() -> None:
    assert list(expand("{1..2}/{08..10}.tar")) == [f"{a}/{b}.tar" for a in "12" for b in ("08", "09", "10")]
    assert list(expand("plain.tar")) == ["plain.tar"]
