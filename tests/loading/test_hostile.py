"""Bad and hostile input, all kinds at once: every input accounted for, and none that is good lost. `scripts/faults`
does the same with more of it."""

from __future__ import annotations

import os
from pathlib import Path

import corpus
import pytest
import tables_of_bad_rows
from helpers import EXAMPLES, deit_batch, read_jsonl

from deit_batch import score

GOOD = str(sorted(EXAMPLES.glob("*/*.png"))[0])


def test_every_file_of_the_corpus_has_its_record(tmp_path: Path) -> None:
    corpus.make(tmp_path / "corpus", flips=8, swaps=4)
    done = deit_batch("score", "--input", "corpus", "--model", "demo", "--out", "p.jsonl", cwd=tmp_path)
    assert done.returncode == 3
    assert all(line.startswith("deit-batch: ") for line in done.stderr.splitlines())  # no spam of a library
    expected = sum(name.endswith(corpus.SUFFIXES) for _, _, names in os.walk(tmp_path / "corpus") for name in names)
    records = read_jsonl(tmp_path / "p.jsonl")
    assert [record["index"] for record in records] == list(range(expected))
    assert all(bool(record["predictions"]) != ("error" in record) for record in records)
    assert sum("error" not in record for record in records) > 100


@pytest.mark.parametrize("table", list(tables_of_bad_rows.make(GOOD)), ids=lambda table: str(table[0]))
def test_a_malformed_row_fails_alone(table: tables_of_bad_rows.Table, tmp_path: Path) -> None:
    name, data, good = table
    (tmp_path / name).write_bytes(data)
    records = list(score(tmp_path / name, model="demo", column="image", workers=0))
    assert [bool(record.predictions) for record in records] == good
