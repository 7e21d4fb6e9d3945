"""Zips: of images, or of one table; whatever a member is, it costs itself alone."""

from __future__ import annotations

import io
import stat
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import deit_batch, read_jsonl
from hypothesis import given
from hypothesis import strategies as st
from tars import PICTURES

from deit_batch.errors import DeitBatchError, InputError, UsageError
from deit_batch.input import zipped
from deit_batch.input.labels import open_labelled
from deit_batch.input.open import open_source
from deit_batch.io import Failure, Reference

IMAGE = PICTURES[0].read_bytes()


def write_zip(path: Path, members: dict[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def read(spec: Path | str, **options: Any) -> list[Reference]:
    return list(open_source(str(spec), **options).references)


def failure(reference: Reference) -> str:
    assert isinstance(reference.location, Failure), reference
    assert reference.location.type == "RowError"
    return reference.location.message


def test_its_images_come_in_the_order_of_its_list_and_the_rest_is_counted(tmp_path: Path) -> None:
    names = [
        "z/b.png",
        "a.PNG",
        "../up.jpg",
        "/abs.jpg",
        "notes.txt",
        "items.csv",
        "inner.zip",
        ".hid/c.png",
        "__MACOSX/._a.png",
    ]
    path = write_zip(tmp_path / "imgs.zip", {"z/": b"", **{name: name.encode() for name in names}})
    source = open_source(str(path))
    assert [(reference.image, reference.location) for reference in source.references] == [
        (f"{path}/{name}", name.encode()) for name in names[:4]
    ]
    assert source.passed_over == {".txt": 1, ".csv": 1, ".zip": 1, "hidden": 2}
    assert source.total(0) == 4
    assert list(tmp_path.iterdir()) == [path]


def test_a_member_that_cant_be_read_is_its_own_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipped, "MAX_ROW_BYTES", 5000)
    path = tmp_path / "imgs.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("good.png", "crc.png", "secret.png", "cut.png"):
            file.writestr(name, IMAGE)
        file.writestr("bzip2.png", IMAGE, zipfile.ZIP_BZIP2)
        file.writestr("large.png", bytes(6000), zipfile.ZIP_DEFLATED)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "good.png")
        file.writestr("last.png", IMAGE)
        offsets = {info.filename: info.header_offset for info in file.infolist()}
    data = bytearray(path.read_bytes())
    data[offsets["crc.png"] + 100] ^= 1
    data[offsets["cut.png"]] ^= 1
    listed = data.rindex(b"secret.png") - 46
    data[listed + 8] |= 1
    path.write_bytes(data)
    good, crc, secret, cut, bzip2, large, link_, last = read(path)
    assert (good.location, last.location) == (IMAGE, IMAGE)
    assert crc.image == f"{path}/crc.png"
    assert failure(crc) == "it is damaged in the zip: Bad CRC-32 for file 'crc.png'"
    assert failure(secret) == "it is encrypted in the zip: unpack it"
    assert failure(cut).startswith("it is damaged in the zip: ")
    assert failure(bzip2) == "it is packed by the zip's method 12, which is not read: unpack it"
    assert failure(large) == "larger than 5,000 bytes"
    assert failure(link_) == "it is a link in the zip, and not the file itself"


def test_names_are_of_utf_8_or_keep_their_bytes(tmp_path: Path) -> None:
    """As `zip` on Linux and macOS writes them, without a mark; zipfile itself takes them for those of MS-DOS."""
    path = write_zip(tmp_path / "imgs.zip", {"xx.png": IMAGE, "yy.png": IMAGE, "ü.png": IMAGE})
    data = path.read_bytes().replace(b"xx.png", "é.png".encode()).replace(b"yy.png", b"\xe9\xe8.png")
    path.write_bytes(data)
    assert [str(reference.image).removeprefix(f"{path}/") for reference in read(path)] == [
        "é.png",
        "\udce9\udce8.png",
        "ü.png",
    ]


def test_one_table_stands_for_the_zip(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "items.csv.zip", {"x/items.csv": "image;n\na.png;1\n", "README.txt": "about it"})
    source = open_source(str(path), keep=["n"])
    (reference,) = source.references
    assert (reference.image, reference.location.path, reference.keep) == (  # type: ignore[union-attr]
        "a.png",
        f"{tmp_path}/a.png",
        {"n": "1"},
    )
    assert source.passed_over == {".txt": 1}
    assert [example.labels for example in open_labelled(str(path), label_column="n").examples] == [("1",)]
    (reference,) = read(write_zip(tmp_path / "b.zip", {"list.txt": "a.png\n"}), base=str(tmp_path))
    assert reference.image == "a.png"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.csv": "", "b.json": ""}, r"z\.zip holds 2 tables \(a\.csv, b\.json\): unpack it, and name one of them"),
        ({"a.parquet": ""}, r"z\.zip holds a\.parquet, which is read from its end: unpack it"),
        ({"a.doc": "", ".b.png": ""}, r"z\.zip holds no image and no table \(1 \.doc, 1 hidden\)"),
        ({}, r"z\.zip holds no image and no table \(it is empty\)"),
    ],
)
def test_a_zip_of_neither_is_wrong_usage(members: dict[str, bytes | str], message: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "z.zip", members)
    with pytest.raises(UsageError, match=message):
        open_source(str(path))


def test_a_zip_that_is_cut_short_may_still_be_being_copied_and_another_file_is_none(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "z.zip", {"a.png": IMAGE})
    whole = path.read_bytes()
    for data, status, message in (
        (whole[:-30], 1, "it ends early, before its list of members"),
        (b"no zip", 2, "not a zip file"),
        (whole.replace(b"PK\x01\x02", b"PK\x01\x03"), 2, "its list of members can't be read: Bad magic number"),
    ):
        path.write_bytes(data)
        with pytest.raises(DeitBatchError, match=message) as caught:
            open_source(str(path))
        assert caught.value.exit_status == status


def test_a_damaged_table_in_it_ends_the_run(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "z.zip", {"a.csv": "image\n" + "".join(f"{n}.png\n" for n in range(50_000))})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"z\.zip/a\.csv: can't be read past line .*: no zip data, or damaged ones"):
        read(path)


def test_memory_for_the_list_of_members_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipped, "MOST_LISTED_BYTES", 500)
    path = write_zip(tmp_path / "z.zip", {f"{n}.png": b"" for n in range(20)})
    with pytest.raises(
        InputError, match="its list of members can't be read: it is longer than 500 bytes; make several"
    ):
        open_source(str(path))


def test_a_folder_or_a_glob_of_zips_is_all_of_them(tmp_path: Path) -> None:
    for name in ("b.zip", "a.zip"):
        write_zip(tmp_path / name, {f"cat/{name}.png": IMAGE, "x.png": IMAGE})
    names = [
        f"{tmp_path}/{name}" for name in ("a.zip/cat/a.zip.png", "a.zip/x.png", "b.zip/cat/b.zip.png", "b.zip/x.png")
    ]
    assert [reference.image for reference in read(tmp_path)] == names
    assert [reference.image for reference in read(tmp_path / "*.zip")] == names
    examples = list(open_labelled(str(tmp_path)).examples)
    assert [example.labels for example in examples] == [("cat",), (), ("cat",), ()]
    assert failure(examples[1].reference) == "it lies in no class folder"


def test_options_for_rows_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "z.zip", {"a.png": IMAGE})
    for options in ({"column": "image"}, {"base": str(tmp_path)}, {"delimiter": ";"}):
        with pytest.raises(UsageError, match=r"z\.zip (has no columns|has no rows that name images|is no text with)"):
            open_source(str(path), **options)  # type: ignore[arg-type]


@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4))
def test_any_zip_is_records_or_one_of_our_errors(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, changes: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.zip"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", data)
        file.writestr("b/c.png", data * 3)
    whole = bytearray(buffer.getvalue())
    for place, value in changes:
        whole[place % len(whole)] = value
    path.write_bytes(whole)
    with suppress(DeitBatchError):
        read(path)


def test_a_zip_is_scored_looked_at_and_continued(tmp_path: Path) -> None:
    members = {f"{picture.parent.name}/{picture.name}": picture.read_bytes() for picture in PICTURES}
    write_zip(tmp_path / "imgs.zip", {**members, "bad.png": b"no picture"}, zipfile.ZIP_STORED)
    look = deit_batch("score", "imgs.zip", "--model", "demo", "--dry-run", cwd=tmp_path)
    assert (look.returncode, look.stdout.splitlines()[0]) == (0, f"{len(PICTURES) + 1} inputs: 7 images in the table")
    run = deit_batch("score", "imgs.zip", "--model", "demo", "--out", "preds.jsonl", "--workers", "1", cwd=tmp_path)
    records = read_jsonl(tmp_path / "preds.jsonl")
    assert (run.returncode, len(records), records[-1]["error"]["type"]) == (3, len(PICTURES) + 1, "DecodeError")
    assert [record["image"] for record in records] == [f"imgs.zip/{name}" for name in [*members, "bad.png"]]
