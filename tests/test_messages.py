"""What is wrong with a file that a user gave is said in words, whatever the file and whatever is in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.errors import DeitBatchError
from deit_batch.evaluation.outcomes import read_baseline
from deit_batch.input.open import open_source
from deit_batch.io import Failure
from deit_batch.limits import Limits
from deit_batch.loading.decode import decode
from deit_batch.model.matching import read_label_map
from deit_batch.model.recipe import CARD_RECIPE
from deit_batch.output.manifest import read_manifest
from deit_batch.output.merge import open_shard_result
from deit_batch.output.place import LocalPlace
from deit_batch.output.read import read_records

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
PYTHON = re.compile(
    r"\w+(Error|Exception|Warning)\b|object has no attribute|not subscriptable|to unpack|indices must|<class|codec|"
    r"argument|NoneType|unhashable|not iterable"
)
"""What only a programmer reads."""


def whole(path: Path) -> None:
    for reference in open_source(str(path)).references:
        assert not isinstance(reference.location, Failure) or PYTHON.search(reference.location.message) is None


def merged(path: Path) -> None:
    Path(f"{path}.run.json").write_bytes(path.read_bytes())
    open_shard_result(path)


def in_parts(path: Path) -> None:
    folder = path.with_suffix(".parts")
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(path.read_bytes())
    read_manifest(LocalPlace(folder))


READERS: dict[str, list[Callable[[Path], object]]] = {
    ".json": [lambda path: read_label_map(str(path)), read_baseline, whole, merged, in_parts],
    ".csv": [lambda path: read_label_map(str(path)), lambda path: list(read_records(path)), whole],
    ".jsonl": [lambda path: list(read_records(path)), whole],
    ".parquet": [lambda path: list(read_records(path)), whole],
    ".tar": [whole],
    ".txt": [whole],
}

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["input_data", "columns", "data", "outcomes", "classes", "keys", "truth", "parts", "name"])
            | st.sampled_from(["status", "settings", "index", "image", "predictions", "label", "score", "output"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def read_all(path: Path) -> None:
    for read in READERS[path.suffix]:
        try:
            read(path)
            continue
        except DeitBatchError as error:
            told = str(error).replace(str(path), "")
        assert PYTHON.search(told) is None, told


@given(VALUES)
def test_no_document_is_answered_in_python(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name in ("any.json", "any.jsonl"):
        (folder / name).write_text(json.dumps(value))
        read_all(folder / name)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"\xea,b\n", b"\0", b"[" * 100_000, b"a,b\n1\n", b"{", b'"'])
def test_no_bytes_are_answered_in_python(content: bytes, tmp_path: Path) -> None:
    for suffix in READERS:
        (tmp_path / f"any{suffix}").write_bytes(content)
        read_all(tmp_path / f"any{suffix}")


@pytest.mark.parametrize("suffix", list(READERS))
def test_a_pointer_of_git_lfs_is_named(suffix: str, tmp_path: Path) -> None:
    """Of an image, a table, a result, a label map."""
    path = tmp_path / f"any{suffix}"
    path.write_text(POINTER)
    readers = READERS[suffix][: -2 if suffix == ".json" else None]  # but for reports, which git does not hold
    for read in readers:
        with pytest.raises(DeitBatchError, match=r"any\.\w+: .*a pointer of Git LFS.*: run 'git lfs pull'"):
            read(path)
    with pytest.raises(Exception, match="a pointer of Git LFS"):
        decode(POINTER.encode(), CARD_RECIPE, Limits())


def test_a_number_stands_before_no_plural_of_ours() -> None:
    """But by io.counted, which knows of 1; a limit of ours, which is named by a constant, is never 1, and a speed is a
    unit."""
    program = Path(__file__).parent.parent / "deit_batch"
    plural = re.compile(
        r"(\{[^{}]*:,\}|%\(\w+\)s|%s|%d) (images|inputs|rows|records|folders|requests|classes|labels)\b(?!/s)"
    )
    found = [
        line.strip()
        for path in program.rglob("*.py")
        for line in path.read_text().splitlines()
        if plural.search(line) and not re.search(r"\{[A-Z_]+:,\} |MOST_CLASSES|folders whose", line)
    ]
    assert found == []
