"""Small files that unpack to much, in every format of tables and tars: bombs.py FOLDER writes them all."""

from __future__ import annotations

import gzip
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet

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


def _packed(codec: str, *pieces: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with pyarrow.CompressedOutputStream(str(path), codec) as file:
            for piece in pieces:
                file.write(piece)

    return write


def _zip_of(size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
            file.writestr("a.png", bytes(size))

    return write


def _zip_of_nothing_but_a_list(size: int) -> Callable[[Path], None]:
    """Of members that have one letter as a name each, and are nowhere (4.3.12 and 4.3.16 of APPNOTE.TXT)."""

    def write(path: Path) -> None:
        entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *(20, 20, 0, 0, 0, 0), *(0, 0, 0), *(5, 0, 0, 0, 0), 0, 0)
        number = size // (len(entry) + 5)
        with open(path, "wb") as file:
            file.write((entry + b"a.png") * number)
            listed = number * (len(entry) + 5)
            # More than 65,535 members need ZIP64's record of the end (4.3.14), and what says where it is (4.3.15).
            file.write(struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, number, number, listed, 0))
            file.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, listed, 1))
            file.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))

    return write


def _open_quote(path: Path) -> None:
    path.write_text('image\n"' + "a\n" * 600_000)


BOMBS: list[tuple[str, Callable[[Path], None], str]] = [
    ("a.parquet", _parquet(200_000_000), "unpacks"),
    ("b.parquet", _parquet(60_000_000), "Base64 Base64 Base64"),
    ("a.tar.gz", _tar(tarfile.XHDTYPE, 2**29), "a header of more than 1,048,576 bytes"),
    ("b.tar.gz", _tar(tarfile.GNUTYPE_LONGNAME, 2**29), "a header of more than 1,048,576 bytes"),
    ("c.tar.gz", _tar(tarfile.REGTYPE, 2**28), "larger than 134,217,728 bytes"),
    ("d.tar.gz", _tar(tarfile.REGTYPE, 2**27 - 2**20), "bytes"),
    ("a.csv.zst", _packed("zstd", b"image\n", b"A" * MANY), "line 2: longer than 33,554,432 characters"),
    ("a.txt.bz2", _packed("bz2", b"A" * MANY), "line 1: longer than 33,554,432 characters"),
    ("a.zip", _zip_of(2**28), "larger than 134,217,728 bytes"),
    ("b.zip", _zip_of(2**27), "bytes"),
    ("c.zip", _zip_of_nothing_but_a_list(2**25 + 100), "it is longer than 33,554,432 bytes"),
    ("a.csv", _open_quote, "line 2: longer than 33,554,432 characters"),
    ("b.csv.gz", _gzipped(b'image\n"', b"A" * 33_000_000, b'"\n'), "Base64"),
    ("c.csv.gz", _gzipped(b"a," * (MANY // 2)), "its header can't be read: line 1: longer than"),
    ("d.csv.gz", _gzipped(b"image\n", b"," * 30_000_000), "line 2: more than 1,000,000 values"),
    ("a.jsonl.gz", _gzipped(b'{"image":"', b"A" * MANY), "line 1: longer than 33,554,432 characters"),
    ("b.jsonl.gz", _gzipped(b'{"image":"a","x":[', b"[]," * 11_000_000, b"[]]}"), "more than 1,000,000 values"),
    ("a.json.gz", _gzipped(b'["', b"A" * MANY, b'"]'), "more than 67,108,864 characters"),
    ("b.json.gz", _gzipped(b"[", b"[]," * 20_000_000, b"[]]"), "more than 1,000,000 values"),
    ("a.txt.gz", _gzipped(b"A" * MANY), "line 1: longer than 33,554,432 characters"),
]
"""Of each file its name, what writes it, and what is said of it."""

if __name__ == "__main__":
    for name, write, _ in BOMBS:
        write(Path(sys.argv[1]) / name)
