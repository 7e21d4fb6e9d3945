"""Small files that unpack to much, in every format that is read: memory stays bounded, and the run is told."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from tars import write_tar

from deit_batch.errors import UsageError
from deit_batch.input.open import open_source

READ_ALL = """
import resource, sys
import pyarrow.parquet
from deit_batch.errors import DeitBatchError
from deit_batch.input.open import open_source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for reference in open_source(sys.argv[1]).references:
        print(getattr(reference.location, "message", type(reference.location).__name__))
except DeitBatchError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
MOST_MEGABYTES = 300
MANY = 120_000_000


def _gzipped(*pieces: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with gzip.open(path, "wb", 1) as file:
            for piece in pieces:
                file.write(piece)

    return write


def _parquet(length: int) -> Callable[[Path], None]:
    """Three rows that hold the same long text."""

    def write(path: Path) -> None:
        cells = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 0, 0], pyarrow.int32()), ["A" * length])
        pyarrow.parquet.write_table(pyarrow.table({"image": cells}), path, compression="zstd")

    return write


def _tar(type: bytes, size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        header = tarfile.TarInfo("a.png")
        header.type, header.size = type, size
        with gzip.open(path, "wb", 1) as file:
            file.write(header.tobuf(tarfile.USTAR_FORMAT))
            for _ in range(0, size, 2**20):
                file.write(bytes(2**20))
            file.write(bytes(1024))

    return write


def _open_quote(path: Path) -> None:
    path.write_text('image\n"' + "a\n" * 600_000)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.parquet", _parquet(200_000_000), "unpacks"),
        ("b.parquet", _parquet(60_000_000), "Base64 Base64 Base64"),
        ("a.tar.gz", _tar(tarfile.XHDTYPE, 2**29), "a header of more than 1,048,576 bytes"),
        ("b.tar.gz", _tar(tarfile.GNUTYPE_LONGNAME, 2**29), "a header of more than 1,048,576 bytes"),
        ("c.tar.gz", _tar(tarfile.REGTYPE, 2**28), "larger than 134,217,728 bytes"),
        ("d.tar.gz", _tar(tarfile.REGTYPE, 2**27 - 2**20), "bytes"),
        ("a.csv", _open_quote, "line 2: longer than 33,554,432 characters"),
        ("b.csv.gz", _gzipped(b'image\n"', b"A" * 33_000_000, b'"\n'), "Base64"),
        ("c.csv.gz", _gzipped(b"a," * (MANY // 2)), "the table's header can't be read: line 1: longer than"),
        ("d.csv.gz", _gzipped(b"image\n", b"," * 30_000_000), "line 2: more than 1,000,000 values"),
        ("a.jsonl.gz", _gzipped(b'{"image":"', b"A" * MANY), "line 1: longer than 33,554,432 characters"),
        ("b.jsonl.gz", _gzipped(b'{"image":"a","x":[', b"[]," * 11_000_000, b"[]]}"), "more than 1,000,000 values"),
        ("a.json.gz", _gzipped(b'["', b"A" * MANY, b'"]'), "more than 67,108,864 characters"),
        ("b.json.gz", _gzipped(b"[", b"[]," * 20_000_000, b"[]]"), "more than 1,000,000 values"),
        ("a.txt.gz", _gzipped(b"A" * MANY), "line 1: longer than 33,554,432 characters"),
    ],
)
def test_memory_stays_bounded(name: str, write: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    run = subprocess.run([sys.executable, "-c", READ_ALL, tmp_path / name], capture_output=True, text=True)
    *said, megabytes = run.stdout.splitlines()
    assert message in " ".join(said), run.stderr
    assert int(megabytes) < MOST_MEGABYTES


def test_values_of_a_sample_are_bounded_too(tmp_path: Path) -> None:
    """What is no JSON that may be read stays text."""
    members = {"a.png": b"", "a.json": b"[" + b"0," * 1_000_001 + b"0]"}
    (reference,) = open_source(str(write_tar(tmp_path / "a.tar", members)), keep=["json"]).references
    assert isinstance(reference.keep["json"], str)


def test_a_folder_may_be_as_deep_as_its_path_may_be_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
    Path("a.png").touch()
    os.chdir(tmp_path)
    Path("e.png").touch()
    try:
        assert [str(reference.image) for reference in open_source(".").references] == [
            f"./{'d/' * 1100}a.png",
            "./e.png",
        ]
        with pytest.raises(UsageError, match=r"\*\*/\*.png: there are folders too deep for a pattern; give the folder"):
            open_source("**/*.png")
    finally:  # which pytest could not remove
        os.unlink(f"{'d/' * 1100}a.png")
        for depth in range(1100, 0, -1):
            os.rmdir("d/" * depth)
