"""What comes by stdin is told by how it begins."""

from __future__ import annotations

import gzip
import io
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from helpers import deit_batch, read_jsonl
from hypothesis import given
from hypothesis import strategies as st
from tars import PICTURES, samples, write_tar

from deit_batch.errors import DeitBatchError, UsageError
from deit_batch.input.labels import open_labelled
from deit_batch.input.open import open_source
from deit_batch.io import Failure, Reference


def piped(*pieces: bytes) -> io.BufferedReader:
    """A pipe into which they are written one after another."""
    read, write = os.pipe()

    def send() -> None:
        with open(write, "wb", 0) as pipe:
            for piece in pieces:
                pipe.write(piece)

    threading.Thread(target=send).start()
    return open(read, "rb")


def sent(*pieces: bytes, **options: Any) -> list[Reference]:
    with piped(*pieces) as stdin:
        return list(open_source("-", stdin=stdin, **options).references)


def images(*pieces: bytes, **options: Any) -> list[str | None]:
    return [reference.image for reference in sent(*pieces, **options)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_table_by_its_header_or_because_a_column_is_asked_for(pack: Any) -> None:
    assert images(pack(b"image,label\na.png,cat\n")) == ["a.png"]
    assert images(pack(b"label;image\ncat;a.png\n")) == ["a.png"]
    assert images(pack(b"image\na.png\n")) == ["a.png"]
    assert images(pack(b'"path"\n"a, b.png"\n')) == ["a, b.png"]
    assert images(pack(b"n\n7\n"), column="n") == ["7"]
    (reference,) = sent(pack(b"image|n\na.png|7\n"), keep=["n"])
    assert reference.keep == {"n": "7"}
    assert images(pack(b"x%image\n1%a.png\n"), delimiter="%") == ["a.png"]
    assert images(pack("image,label\na.png,cat\n".encode("utf-16"))) == ["a.png"]


def test_a_list_and_json_lines_stay_what_they_were() -> None:
    assert images(b"image.png\nimage,label.png\n") == ["image.png", "image,label.png"]
    assert images(b'{"image": "a.png", "n": 1}\n', keep=["n"]) == ["a.png"]
    assert images(b"") == []
    assert images(b"a.png") == ["a.png"]


def test_a_file_that_is_called_as_a_column_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image").touch()
    assert images(b"image\na.png\n") == ["image", "a.png"]


def test_a_tar_packed_or_not(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", samples(PICTURES[:2])).read_bytes()
    for data in (tar, gzip.compress(tar)):
        references = sent(data[:300], data[300:], keep=["cls"])
        assert [(reference.image, reference.keep) for reference in references] == [
            ("stdin/0000.png", {"cls": 0}),
            ("stdin/0001.png", {"cls": 1}),
        ]
        assert references[0].location == PICTURES[0].read_bytes()
        with piped(data) as stdin:
            labels = [example.labels for example in open_labelled("-", stdin=stdin).examples]
        assert labels == [("0",), ("1",)]


def test_of_a_tar_that_is_read_once_links_fail(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(PICTURES[0], "a.png")
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)
    one, other = sent((tmp_path / "a.tar").read_bytes())
    assert isinstance(one.location, bytes)
    assert isinstance(other.location, Failure)
    assert other.location.message == "stdin/b.png: it is a link, and stdin is read once: give the file"


def test_what_is_read_from_its_end_is_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png"]}), tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="stdin is a Parquet file, which is read from its end: save it to a file"):
        sent((tmp_path / "t.parquet").read_bytes())
    with pytest.raises(UsageError, match="stdin is a zip, which"):
        sent(b"PK\x03\x04 and so on")


def test_what_is_damaged_or_cut_off_is_said() -> None:
    data = gzip.compress(b"image,label\n" + b"".join(b"%d.png,a\n" % number for number in range(10_000)))
    with pytest.raises(DeitBatchError, match=r"stdin: can't be read past line .*: it ends early") as caught:
        sent(data[:-100])
    assert caught.value.exit_status == 1
    with pytest.raises(DeitBatchError, match="stdin: can't be read: no gzip data, or damaged ones") as caught:
        sent(data[:5] + b"\xff" * 100)
    assert caught.value.exit_status == 2


def test_lines_that_come_slowly_are_not_waited_for() -> None:
    """Of a program that sends one name, and waits."""
    read, write = os.pipe()
    with open(write, "wb", 0) as pipe, open(read, "rb") as stdin:
        pipe.write(b"a.png\n")
        assert next(open_source("-", stdin=stdin).references).image == "a.png"


@given(st.binary(max_size=700))
def test_anything_is_rows_or_one_of_our_errors(data: bytes) -> None:
    try:
        references = list(open_source("-", stdin=io.BufferedReader(io.BytesIO(data))).references)
    except DeitBatchError:
        return
    assert [reference.index for reference in references] == list(range(len(references)))


def test_a_run_of_a_table_that_is_piped_goes_on_when_it_is_sent_again(tmp_path: Path) -> None:
    rows = gzip.compress(b"image,n\n" + b"".join(f"{path},{n}\n".encode() for n, path in enumerate(PICTURES)))
    out = tmp_path / "preds.jsonl"
    command = ["score", "--input", "-", "--model", "demo", "--keep", "n", "--out", str(out), "--workers", "1"]
    (tmp_path / "rows.csv.gz").write_bytes(rows)
    for said in ("stdin is a table", "is finished already"):
        with open(tmp_path / "rows.csv.gz", "rb") as stdin:
            run = deit_batch(*command, cwd=tmp_path, stdin=stdin)
        assert (run.returncode, said in run.stderr) == (0, True), run.stderr
    assert [record["n"] for record in read_jsonl(out)] == [str(n) for n in range(len(PICTURES))]
