"""What is installed only on demand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deit_batch.errors import UsageError
from deit_batch.system.extras import needing


def test_an_extra_that_is_not_there_is_named() -> None:
    told = r"^this needs no_such_module: pip install '\.\[train\]' in a clone of deit-batch$"
    with pytest.raises(UsageError, match=told), needing("train"):
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401


def test_an_extra_that_is_too_old_is_to_be_upgraded() -> None:
    with pytest.raises(UsageError, match=r"^too old for this: .*; pip install --upgrade '\.\["), needing("train"):
        raise ImportError("the Trainer requires it>=1.1")


def test_nobody_is_sent_to_an_index_that_does_not_have_the_package() -> None:
    root = Path(__file__).parents[2]
    places = {"docs": "*.md", "deit_batch": "*.py", "deploy": "*", ".github": "*.yml", "scripts": "*"}
    found = [path for place, pattern in places.items() for path in (root / place).rglob(pattern)]
    files = [path for path in found if path.is_file() and path.parent.name != "__pycache__"]
    told = {path: path.read_text() for path in (*files, *map(root.joinpath, ("README.md", "Dockerfile", "action.yml")))}
    by_its_name = re.compile(r"pip install .*deit-batch\[|^ *- deit-batch(\[\w+\])?$", re.MULTILINE)
    assert [path for path, text in told.items() if by_its_name.search(text)] == []
