"""Values in Parquet that Python has none for: each costs its own row, or is kept as text."""

from __future__ import annotations

import io
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deit_batch.errors import DeitBatchError, InputError
from deit_batch.input.open import open_source
from deit_batch.io import Failure, LocalFile, Record, json_line


def _kept(values: pyarrow.Array, path: Path) -> list[Any]:
    """What is kept of a column, as a record has it; a failed row's failure."""
    pyarrow.parquet.write_table(pyarrow.table({"image": [f"{n}.png" for n in range(len(values))], "t": values}), path)
    kept: list[Any] = []
    for reference in open_source(str(path), keep=["t"]).references:
        json_line(Record.of(reference, []).as_dict())
        kept.append(reference.location if isinstance(reference.location, Failure) else reference.keep["t"])
    return kept


def test_what_unpacks_too_far_is_not_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deit_batch.input.arrow._BOMB_BYTES", 1000)
    table = pyarrow.table({"image": ["A" * 10**6]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", compression="zstd")
    with pytest.raises(InputError, match=r"a row group unpacks to 1,0.*, of a file of") as caught:
        list(open_source(str(tmp_path / "t.parquet")).references)
    assert caught.value.exit_status == 2


def test_damaged_pages_are_not_worth_another_try(tmp_path: Path) -> None:
    table = pyarrow.table({"image": [f"{number}.png" for number in range(10_000)]})
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(table, path, compression="snappy", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[1000:30_000] = bytes(29_000)
    path.write_bytes(data)
    with pytest.raises(InputError, match="can't be read past row") as caught:
        list(open_source(str(path)).references)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("type", "odd"),
    [
        (pyarrow.timestamp("us"), 2**60),
        (pyarrow.timestamp("ns", tz="Nowhere/Town"), 1),
        (pyarrow.timestamp("us", tz="+99:99"), 1),
        (pyarrow.date32(), 2**31 - 1),
        (pyarrow.date64(), 2**60),
        (pyarrow.duration("s"), 2**60),
        (pyarrow.duration("ms"), 2**62),
    ],
    ids=str,
)
def test_a_date_out_of_range_costs_no_other_row(type: pyarrow.DataType, odd: int, tmp_path: Path) -> None:
    integers = pyarrow.int32() if type == pyarrow.date32() else pyarrow.int64()
    values = pyarrow.array([0, odd, 0], integers).view(type)
    first, second, third = _kept(values, tmp_path / "t.parquet")
    if type == pyarrow.timestamp("ns", tz="Nowhere/Town") or type == pyarrow.timestamp("us", tz="+99:99"):
        return  # in each row
    assert not isinstance(first, Failure | str)
    assert third == first
    assert isinstance(second, str) or "row 2: t holds a " in second.message


def test_a_time_of_day_keeps_its_nanoseconds(tmp_path: Path) -> None:
    values = pyarrow.array([1, None, 3_600_000_000_000], pyarrow.time64("ns"))
    assert _kept(values, tmp_path / "t.parquet") == ["00:00:00.000000001", None, "01:00:00.000000000"]


def test_text_that_is_not_utf8_finds_its_file_as_in_other_tables(tmp_path: Path) -> None:
    names = [b"a.png", b"\xff\xfe.png", b"c.png"]
    offsets = struct.pack("<4i", 0, *(len(b"".join(names[: n + 1])) for n in range(3)))
    image = pyarrow.StringArray.from_buffers(3, pyarrow.py_buffer(offsets), pyarrow.py_buffer(b"".join(names)))
    for column in (image, image.dictionary_encode()):
        pyarrow.parquet.write_table(pyarrow.table({"image": column}), tmp_path / "t.parquet")
        locations = [reference.location for reference in open_source(str(tmp_path / "t.parquet")).references]
        assert locations == [LocalFile(f"{tmp_path}/{name}") for name in ("a.png", "\udcff\udcfe.png", "c.png")]


def test_what_is_nested_costs_its_row(tmp_path: Path) -> None:
    inner = pyarrow.array([0, 2**60, 0], pyarrow.int64()).view(pyarrow.timestamp("us"))
    kept = _kept(pyarrow.StructArray.from_arrays([inner], ["at"]), tmp_path / "t.parquet")
    assert [isinstance(value, Failure) for value in kept] == [False, True, False]
    assert "row 2: t holds a struct<at: timestamp[us]> that can't be read: " in kept[1].message


ZONES = (None, "UTC", "Europe/Vienna", "No")
TYPES = st.sampled_from(
    [pyarrow.date64(), pyarrow.time64("us"), pyarrow.time64("ns")]
    + [pyarrow.timestamp(unit, zone) for unit in ("ms", "us", "ns") for zone in ZONES]
    + [pyarrow.duration(unit) for unit in ("s", "ms", "us", "ns")]
)


@settings(deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.none(), min_size=1, max_size=20), TYPES)
def test_no_number_in_a_date_ends_the_run(numbers: list[int | None], type: pyarrow.DataType) -> None:
    with tempfile.TemporaryDirectory() as folder:
        values = pyarrow.array(numbers, pyarrow.int64()).view(type)
        assert len(_kept(values, Path(folder) / "t.parquet")) == len(numbers)


@pytest.mark.parametrize("repetition", [b"\0", b"\4"], ids=["required", "repeated"])
def test_damaged_statistics_end_no_process(repetition: bytes, tmp_path: Path) -> None:
    """A column's histograms of levels fit no more, of which pyarrow's own view of the column ends the process."""
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png"] * 40}), path)
    whole, column = path.read_bytes(), b"%b\x18\5image"  # repetition and name of a SchemaElement, of parquet.thrift
    assert column % b"\2" in whole
    path.write_bytes(whole.replace(column % b"\2", column % repetition))
    with pytest.raises(DeitBatchError, match="can't be read past row 0: ") as caught:
        list(open_source(str(path)).references)
    assert caught.value.exit_status == 2


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(4, 1200), st.integers(0, 255)), max_size=6))
def test_a_damaged_file_is_refused_in_a_sentence(changes: list[tuple[int, int]]) -> None:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png"] * 40, "t": list(range(40))}), buffer)
    whole = bytearray(buffer.getvalue())
    for place, value in changes:
        whole[place % len(whole)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        path.write_bytes(whole)
        with suppress(DeitBatchError):
            list(open_source(str(path), keep=["t"]).references)
