"""Tables and tars that are packed: by gzip, bzip2, xz or zstd, on a disk or on stdin."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tars import PICTURES, samples, write_tar

from deit_batch.errors import DeitBatchError
from deit_batch.input import packed
from deit_batch.input.open import open_source
from deit_batch.input.packed import unpacked


def zstd(data: bytes) -> bytes:
    buffer = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(data)
    return bytes(buffer.getvalue())


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": partial(bz2.compress, compresslevel=1),
    ".xz": lzma.compress,
    ".zst": zstd,
}
ROWS = {
    ".csv": "image\na.jpg\nb.jpg\n",
    ".jsonl": '"a.jpg"\n"b.jpg"\n',
    ".txt": "a.jpg\nb.jpg\n",
    ".json": '["a.jpg", "b.jpg"]',
}
_generator = random.Random(0)
ROWS_MANY = "image\n" + "".join(f"{_generator.random()}.jpg\n" for _ in range(20_000))
endings = pytest.mark.parametrize("ending", PACK)


def images(spec: Path | str) -> list[str | None]:
    return [reference.image for reference in open_source(str(spec)).references]


def opened(data: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(data))


@endings
@pytest.mark.parametrize("table", ROWS)
def test_tables(table: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"t{table}{ending}"
    path.write_bytes(PACK[ending](ROWS[table].encode()))
    assert images(path) == ["a.jpg", "b.jpg"]


@endings
def test_tars_are_told_by_their_first_bytes(ending: str, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", samples(PICTURES[:2]))
    names = images(tar)
    data = PACK[ending](tar.read_bytes())
    tar.write_bytes(data)
    assert images(tar) == names
    short = {".gz": ".tgz", ".bz2": ".tbz2", ".xz": ".txz", ".zst": ".tzst"}[ending]
    for name in (f"a.tar{ending}", f"a{short}"):
        (tmp_path / name).write_bytes(data)
        assert [str(found).rpartition("/")[2] for found in images(tmp_path / name)] == ["0000.png", "0001.png"]


@endings
def test_what_ends_early_may_still_be_being_copied(ending: str, tmp_path: Path) -> None:
    rows = ROWS_MANY
    path = tmp_path / f"t.txt{ending}"
    path.write_bytes(PACK[ending](rows.encode())[:-5_000])
    seen: list[str] = []
    with pytest.raises(DeitBatchError, match=r"can't be read past line .*: it ends early") as caught:
        seen.extend(f"{reference.image}\n" for reference in open_source(str(path)).references)
    assert caught.value.exit_status == 1
    assert len(seen) > 1000
    assert rows.startswith("".join(seen))


@endings
@pytest.mark.parametrize("name", ["t.txt", "t.csv", "t.json", "t.tar"])
def test_what_is_damaged_is_not_worth_another_try(name: str, ending: str, tmp_path: Path) -> None:
    content = ROWS_MANY.encode()
    if name == "t.tar":
        content = write_tar(tmp_path / name, {"a.png": content}).read_bytes()
    data = bytearray(PACK[ending](content))
    for place in range(len(data) // 2, len(data) // 2 + 30):
        data[place] ^= 0xFF
    path = tmp_path / f"{name}{ending}"
    path.write_bytes(data)
    with pytest.raises(DeitBatchError, match=r"no \w+ data, or damaged ones") as caught:
        list(open_source(str(path)).references)
    assert caught.value.exit_status == 2


@endings
def test_a_name_that_says_so_is_believed(ending: str, tmp_path: Path) -> None:
    """Or its bytes would be read as rows."""
    (tmp_path / f"t.txt{ending}").write_bytes(b"a.jpg\n")
    with pytest.raises(DeitBatchError, match=r"t\.txt.*: can't be read: no \w+ data, or damaged ones"):
        images(tmp_path / f"t.txt{ending}")


@endings
def test_streams_may_follow_on_one_another(ending: str) -> None:
    one, other = PACK[ending](b"one\n"), PACK[ending](b"two\n")
    assert unpacked(opened(one + other)).read() == b"one\ntwo\n"
    if ending != ".zst":
        assert unpacked(opened(one + bytes(8) + other + bytes(4))).read() == b"one\ntwo\n"
    with pytest.raises(OSError, match="or damaged ones"):
        unpacked(opened(one + b"something else")).read()


def test_memory_that_xz_and_zstd_ask_for_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2 * packed.MOST_MEMORY}])
    with pytest.raises(OSError, match="xz data that need more than 134,217,728 bytes of memory"):
        unpacked(opened(wide)).read()
    # A frame that says its window is of 256 MiB (RFC 8878, 3.1.1.1.2), and one raw block.
    wide = bytes.fromhex("28b52ffd0090") + (1 | 1 << 3).to_bytes(3, "little") + b"x"
    with pytest.raises(OSError, match="zstd data that need more than 134,217,728 bytes of memory"):
        unpacked(opened(wide)).read()


@given(st.binary(), st.sampled_from(list(PACK)), st.integers(1, 9))
def test_what_was_packed_comes_back(data: bytes, ending: str, size: int) -> None:
    stream = unpacked(opened(PACK[ending](data)))
    assert b"".join(iter(lambda: stream.read(size), b"")) == data


@given(st.sampled_from([PACK[ending](b"some text, and some more\n" * 20) for ending in PACK]), st.data())
def test_damage_is_damage_or_an_early_end_and_nothing_else(whole: bytes, data: st.DataObject) -> None:
    bytes_ = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, max(len(bytes_) - 1, 0)), max_size=3)):
        bytes_[place : place + 1] = data.draw(st.binary(max_size=2))
    try:
        unpacked(opened(bytes(bytes_))).read()
    except EOFError:
        pass
    except OSError as error:
        assert error.errno is None  # noqa: PT017 - or it would be the medium's
