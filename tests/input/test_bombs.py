"""Small files that unpack to much, in every format that is read: memory stays bounded, and the run is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bombs import BOMBS
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


@pytest.mark.parametrize(
    ("name", "write", "message"),
    BOMBS,
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
