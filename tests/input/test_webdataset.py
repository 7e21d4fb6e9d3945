"""WebDataset tars: samples, shards, damage."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tarfile
import tempfile
from pathlib import Path

import pytest
import webdataset  # type: ignore[import-untyped]
from braceexpand import braceexpand
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tars import PICTURES, samples, write_tar

from deit_batch import score
from deit_batch.errors import InputError, UsageError
from deit_batch.input.labels import open_labelled
from deit_batch.input.open import open_source
from deit_batch.input.passed_over import WITHOUT_ENDING
from deit_batch.input.webdataset import expand, paths_of
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
        "README.txt": b"words only",
        "labels.json": b"{}",
        "a.txt": b"a caption",
        "a.cls": b"1",
        "folder/.hidden": b"",
        ".git/logo.png": picture,
        "__index__/x.json": b"",
        "c.seg.npy": b"\0" * 100,
        "c.JPG": picture,
        "IMG.NEF": b"",
        "IMG.MOV": b"",
    }
    tar = write_tar(tmp_path / "a.tar", members)
    source = open_source(str(tar))
    first, second = source.references
    assert isinstance(first.location, Failure)
    assert "a.tar/a: there is no image in this sample" in first.location.message
    assert (second.image, second.location) == (f"{tar}/c.JPG", picture)
    assert source.passed_over == {
        WITHOUT_ENDING: 1, ".txt": 1, ".json": 1, "hidden": 2, "WebDataset's own": 1, ".npy": 1, ".nef": 1, ".mov": 1,
    }  # fmt: skip


DATES = [f"CAM1_2024.05.{day:02}_12.30.png" for day in range(1, 9)]


@pytest.mark.parametrize(
    ("names", "images", "passed_over"),
    [
        (DATES, DATES, {}),
        (["./v1.0/b.png", "./v1.0/noext", "img"], ["./v1.0/b.png"], {WITHOUT_ENDING: 2}),
        (["b.left.png", "b.right.png"], ["b.left.png", "b.right.png"], {}),
        (["b.left.png", "b.right.png", "b.json"], ["b.left.png"], {"further images of a sample": 1}),
        (["IMG_1.jpg", "IMG_1.png"], ["IMG_1.jpg"], {"further images of a sample": 1}),
        (["a.png", "a.PNG", "a.png"], ["a.png", "a.PNG", "a.png"], {}),
        (["IMG.jpg", "IMG.1.jpg", "IMG.1.txt"], ["IMG.jpg", "IMG.1.jpg"], {".txt": 1}),
    ],
)
def test_every_image_is_an_input_but_for_those_of_one_sample(
    names: list[str], images: list[str], passed_over: dict[str, int], tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    source = open_source(str(tmp_path / "a.tar"))
    assert [reference.image for reference in source.references] == [f"{tmp_path}/a.tar/{name}" for name in images]
    assert source.passed_over == passed_over


def test_ten_thousand_dotted_names_are_read_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are one group until something in it tells otherwise; here nothing does."""
    monkeypatch.setattr("deit_batch.input.webdataset.MAX_ROW_BYTES", 20_000)
    tar = write_tar(tmp_path / "a.tar", {f"x.{number}.png": b"" for number in range(10_000)})
    assert sum(1 for _ in open_source(str(tar)).references) == 10_000


NAMES = st.from_regex(
    r"(\./)?([a-c]/|v1\.0/)?[ab](\.[xY1]{1,2})?\.(png|JPG|json|cls|txt|npy|left\.png)", fullmatch=True
)


@given(st.lists(NAMES, unique_by=str.lower, max_size=12))
def test_samples_are_those_of_the_library(names: list[str]) -> None:
    """Whatever we take for a sample has the key and the fields that `webdataset` gives it, decoded."""
    contents = {"json": b'{"a": [1, null]}', "cls": b"7\n", "txt": b" caption\n"}
    members = {name: contents.get(name.rpartition(".")[2], name.encode()) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = write_tar(Path(folder) / "a.tar", members)
        kept = ["key", "json", "cls", "txt"]
        theirs = list(webdataset.WebDataset(str(path), shardshuffle=False).decode(only=kept[1:]) if names else ())
        found = [(each, each.location) for each in open_source(str(path), keep=kept).references]
        ours = [(reference, image.decode()) for reference, image in found if isinstance(image, bytes)]
    for reference, image in ours:
        (sample,) = [sample for sample in theirs if image.encode() in sample.values()]
        assert reference.keep["key"] == sample["__key__"]
        fields = {name: value for name, value in reference.keep.items() if name != "key" and value is not None}
        assert fields in ({}, {name: sample[name] for name in kept[1:] if name in sample})
    images = {name for name in names if name.lower().endswith(("png", "jpg"))}
    assert {image for _, image in ours} <= images


def test_shards_that_the_library_wrote(tmp_path: Path) -> None:
    with webdataset.ShardWriter(f"{tmp_path}/s-%03d.tar", maxcount=4, verbose=0) as shards:
        for number, picture in enumerate(PICTURES):
            fields = {"png": picture.read_bytes(), "cls": number, "json": {"from": picture.name}, "caption.txt": "ö "}
            shards.write({"__key__": f"train/{number:04}", "seg.npy": b"", **fields})
    theirs = list(webdataset.WebDataset(f"{tmp_path}/s-{{000..001}}.tar", shardshuffle=False).decode(only=KEPT[1:]))
    source = open_source(f"{tmp_path}/s-{{000..001}}.tar", keep=KEPT)
    for reference, sample in zip(source.references, theirs, strict=True):
        assert reference.location == sample["png"]
        assert reference.keep == {"key": sample["__key__"], **{name: sample[name] for name in KEPT[1:]}}
    assert source.passed_over == {".npy": len(PICTURES)}


KEPT = ["key", "cls", "json", "caption.txt"]


def test_links_are_followed_to_their_members(tmp_path: Path) -> None:
    """Two passes over a tar that can only be read forwards; what leads out of it, or nowhere, fails alone."""
    picture = PICTURES[0].read_bytes()
    links = [
        ("in/b.png", tarfile.LNKTYPE, "in/a.png"),
        ("./in/c.png", tarfile.SYMTYPE, "../in/a.png"),
        ("d.png", tarfile.SYMTYPE, "in/c.png"),
        ("e.png", tarfile.SYMTYPE, "objects/1f"),
        ("out.png", tarfile.SYMTYPE, "/etc/passwd"),
        ("up.png", tarfile.SYMTYPE, "../a.png"),
        ("loop.png", tarfile.SYMTYPE, "loop.png"),
        ("notes.md", tarfile.LNKTYPE, "in/a.png"),
        ("s.jpg", tarfile.LNKTYPE, "in/a.png"),
    ]
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        _add(tar, "in/a.png", picture)
        for name, type, target in links:
            header = tarfile.TarInfo(name)
            header.type, header.linkname = type, target
            tar.addfile(header)
        _add(tar, "s.cls", b"3")
        _add(tar, "objects/1f", b"raw")
        _add(tar, "z.png", picture)
    source = open_source(str(tmp_path / "a.tar.gz"), keep=["cls"])
    references = list(source.references)
    names = [str(reference.image).removeprefix(f"{tmp_path}/a.tar.gz/") for reference in references]
    assert names[:7] == ["in/a.png", "z.png", "in/b.png", "./in/c.png", "d.png", "s.jpg", "e.png"]
    assert [reference.location for reference in references[:7]] == [picture] * 6 + [b"raw"]
    assert references[5].keep == {"cls": 3}
    for reference, name in zip(references[7:], ["out", "up", "loop"], strict=True):
        assert isinstance(reference.location, Failure)
        assert f"{name}.png: it is a link to" in reference.location.message
    assert source.passed_over == {".md": 1, WITHOUT_ENDING: 1}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))


def test_another_image_of_a_sample_is_a_column(tmp_path: Path) -> None:
    """Who names a field says that there are samples."""
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
    with pytest.raises(InputError, match="can't be read past 0003") as caught:
        next(references)
    assert caught.value.exit_status == 1  # it may still be being copied


def test_no_damage_looks_like_an_end(tmp_path: Path) -> None:
    """A tar that is cut at a member's end, or whose next header is damaged: `tarfile` takes both for the end."""
    tar = write_tar(tmp_path / "a.tar", {"a.png": b"x" * 512, "b.png": b"y" * 512})
    whole = tar.read_bytes()
    for damaged, reason in (
        (whole[:1024], "it has no end mark, as if cut short; if it is whole, append 1,024 zero bytes to the tar"),
        (whole[:1024] + b"z" + whole[1025:], "what should be a header is none"),
        (whole[:1200], "it ends early"),
        (whole[:2048] + bytes(1024) + b"z" * 512, "after its end follows what is no tar"),
    ):
        tar.write_bytes(damaged)
        with pytest.raises(InputError, match=f"a.tar: can't be read past [ab].png: {reason}") as caught:
            list(open_source(str(tar)).references)
        assert caught.value.exit_status == (1 if "early" in reason or "cut short" in reason else 2)
    tar.write_bytes(whole[:2048] + bytes(1024))
    assert sum(1 for _ in open_source(str(tar)).references) == 2


def test_tars_behind_one_another_are_all_read(tmp_path: Path) -> None:
    """`cat a.tar b.tar`."""
    tars = [write_tar(tmp_path / f"{name}.tar", {f"{name}.png": name.encode()}) for name in "ab"]
    (tmp_path / "both.tar").write_bytes(b"".join(tar.read_bytes() for tar in tars))
    assert [reference.location for reference in open_source(f"{tmp_path}/both.tar").references] == [b"a", b"b"]


@settings(deadline=None)
@given(st.data())
def test_a_tar_of_any_bytes_is_read_or_refused(data: st.DataObject) -> None:
    """A real one, with headers of every kind, and some of its bytes changed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=data.draw(st.sampled_from([0, 1, 2]))) as tar:
        for name in ("a.png", "ö" * 60 + ".png", "b" * 120 + ".png"[: 4 * (tar.format != 0)]):
            with contextlib.suppress(ValueError):  # too long a name for the oldest format
                _add(tar, name, b"x" * 100)
    whole = bytearray(buffer.getvalue())
    for place in data.draw(st.lists(st.integers(0, 5119), max_size=8)):
        whole[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # let the changed headers pass
        for start in range(0, 5120, 512):
            sums = 256 + sum(whole[start : start + 148]) + sum(whole[start + 156 : start + 512])
            whole[start + 148 : start + 156] = b"%06o\0 " % sums
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        path.write_bytes(bytes(whole))
        with contextlib.suppress(InputError):
            list(open_source(str(path)).references)


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
    monkeypatch.setattr("deit_batch.input.webdataset.MAX_ROW_BYTES", 1024 + 1100)
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


def test_headers_that_claim_too_much_are_damage(tmp_path: Path) -> None:
    """They are read by `tarfile`, to which any size is one to be kept in memory."""
    claims = tarfile.TarInfo("claims.png")
    claims.type, claims.size = tarfile.XHDTYPE, 2**31
    nested = b"".join(_pax("12 comment=\n") for number in range(700))
    fields = b"".join(
        _pax("".join(f"8 {n}=\n" for n in range(start, start + 400)), tarfile.XGLTYPE)
        for start in range(1000, 5000, 400)
    )
    image = tarfile.TarInfo("a.png").tobuf()
    for start, reason in (
        (claims.tobuf(tarfile.USTAR_FORMAT), "a header of more than 1,048,576 bytes"),
        (nested, "headers nested too deeply"),
        (fields + image, "more than 1,000 fields that hold for all members"),
    ):
        (tmp_path / "a.tar").write_bytes(start + image + bytes(1024))
        with pytest.raises(InputError, match=f"a.tar: can't be read at all: {reason}") as caught:
            open_source(str(tmp_path / "a.tar"))
        assert caught.value.exit_status == 2


def _pax(fields: str, type: bytes = tarfile.XHDTYPE) -> bytes:
    header = tarfile.TarInfo("x")
    header.type, header.size = type, len(fields)
    return header.tobuf(tarfile.USTAR_FORMAT) + fields.encode().ljust(-(-len(fields) // 512) * 512, b"\0")


def test_a_sample_with_a_field_twice_fails_and_gives_nothing_to_another(tmp_path: Path) -> None:
    pictures = [picture.read_bytes() for picture in PICTURES[:3]]
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        members = [("1.png", pictures[0]), ("1.cls", b"3"), ("1.cls", b"4"), ("1.png", pictures[1])]
        for name, data in [*members, ("2.png", pictures[2]), ("2.cls", b"5")]:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    source = open_source(f"{tmp_path}/s.tar", keep=["cls"])
    first, second = source.references
    assert isinstance(first.location, Failure)
    assert "two members of this sample end in .cls" in first.location.message
    assert second.keep == {"cls": 5}
    assert source.passed_over == {"further images of a sample": 1}


def test_a_folder_of_tars_alone_is_their_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "b.tar", samples(PICTURES[:1]))
    write_tar(tmp_path / "a.tar.gz", samples(PICTURES[1:3]), "w:gz")
    for name in (".hidden", "_SUCCESS"):
        (tmp_path / name).touch()
    source = open_source(str(tmp_path), keep=["cls"])
    assert [(str(reference.image).rpartition("/")[2], reference.keep) for reference in source.references] == [
        ("0000.png", {"cls": 0}),
        ("0001.png", {"cls": 1}),
        ("0000.png", {"cls": 0}),
    ]
    assert paths_of(str(tmp_path)) == [f"{tmp_path}/a.tar.gz", f"{tmp_path}/b.tar"]
    (tmp_path / "readme.md").touch()
    with pytest.raises(UsageError, match=r"holds no image \(.*1 \.md"):
        open_source(str(tmp_path))


def test_alternatives_and_several_joined(tmp_path: Path) -> None:
    for name in ("cats-1", "dogs-1", "x"):
        write_tar(tmp_path / f"{name}.tar", samples(PICTURES[:1]))
    spec = f"{tmp_path}/{{dogs,cats}}-{{1..1}}.tar::{tmp_path}/x.tar"
    assert [os.path.relpath(str(reference.image), tmp_path) for reference in open_source(spec).references] == [
        "dogs-1.tar/0000.png",
        "cats-1.tar/0000.png",
        "x.tar/0000.png",
    ]
    literal = write_tar(tmp_path / "{a,b}.tar", samples(PICTURES[:1]))
    assert len(list(open_source(str(literal)).references)) == 1
    with pytest.raises(UsageError, match=r"/c\.tar: no such file"):
        open_source(f"{tmp_path}/x.tar::{tmp_path}/c.tar")


@given(st.lists(st.sampled_from(["a", "-", "{", "}", ",", "..", "1", "02", "{1..3}", "{a,b}", "::"]), max_size=8))
def test_names_are_those_that_webdataset_reads(pieces: list[str]) -> None:
    """But for braces in braces or without a partner, and ranges of letters or backwards, which we leave as they are."""
    spec = "".join(pieces)
    alone, ranges = r"[{}]", r"\{[^}]*\{|\.\."
    assume(not re.search(alone, re.sub(r"\{[^{}:]*\}", "", spec)))
    assume(not re.search(ranges, re.sub(r"\{1\.\.3\}", "", spec)))
    assert list(expand(spec)) == [name for part in spec.split("::") for name in braceexpand(part)]
